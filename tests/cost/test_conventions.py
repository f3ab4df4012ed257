"""What each convention counts for each kind of layer, and the figures of NNI's own profiler."""

import pytest
import torch
from published_networks import ONESHOT, PLUS, operations_of, shuffle_architecture
from torch import nn

from spos.cost.conventions import CONVENTIONS, count
from spos.cost.operations import list_operations
from spos.errors import ConfigError
from spos.spaces import build_space, build_subnet, space_spec
from spos.supernet import Supernet

pytestmark = pytest.mark.usefixtures("one_thread")

OPERATORS = ("k3e3", "k3e6", "k5e3", "k5e6", "k7e3", "k7e6", "skip")
ABS_SPOS = (2, 2, -1, 0, 0, -1, -1, 0, 5, -1, 4, 4, 0, 0, 4, 2, 3, 4, 4, 4, 3)

# One layer of 4 channels on 6 x 6: multiply-adds 36 * 4 * 8 and 8 outputs of a bias on each.
LAYERS = {
    "conv": nn.Conv2d(4, 8, 1, bias=False),
    "biased conv": nn.Conv2d(4, 8, 1),
    "grouped conv": nn.Conv2d(4, 8, 3, 2, 1, groups=2),
    "linear": nn.Linear(4, 5, bias=False),
    "biased linear": nn.Linear(4, 5),
    "norm": nn.BatchNorm2d(4),
    "plain norm": nn.BatchNorm2d(4, affine=False),
    "relu": nn.ReLU(),
    "relu6": nn.ReLU6(),
    "hswish": nn.Hardswish(),
    "mean": nn.AdaptiveAvgPool2d(1),
    "pool": nn.AvgPool2d(3),
}
RULES = {
    "macs": (1152, 1152, 9 * 144, 20, 20, 0, 0, 0, 0, 0, 0, 0),
    "canyonwind": (1152, 1152 + 288, 9 * 144 + 72, 20, 25, 0, 0, 0, 0, 0, 144, 144),
    "canyonwind-bn-relu": (1152, 1440, 9 * 144 + 72, 20, 25, 432, 432, 144, 0, 0, 144, 144),
    "mmrazor": (1152, 1440, 9 * 144 + 72, 20, 20, 288, 144, 144, 144, 0, 144, 144),
    "nni": (1152, 1440, 9 * 144 + 72, 20, 25, 576, 288, 144, 144, 0, 0, 0),
    "thop2019": (1152, 1440, 9 * 144 + 72, 35, 35, 0, 0, 0, 0, 0, 37 * 4, 4 * 16),
    "anglenas": (1152, 1440, 9 * 144 + 72, 35, 35, 0, 0, 0, 0, 0, 0, 0),
}


class _Vector(nn.Module):
    """A layer behind a convolution from the image, on features of one pixel if it is linear."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images[:, :1].expand(-1, 4, -1, -1)
        return self.layer(x[:, :, 0, 0] if isinstance(self.layer, nn.Linear) else x)


@pytest.mark.parametrize("convention", RULES)
def test_every_kind_of_layer_follows_its_rule(convention):
    found = [
        count(list_operations(_Vector(layer), 6), convention).flops for layer in LAYERS.values()
    ]
    assert dict(zip(LAYERS, found, strict=True)) == dict(
        zip(LAYERS, RULES[convention], strict=True)
    )


def test_every_convention_has_rules_here():
    assert RULES.keys() == CONVENTIONS.keys()


def test_angle_nas_and_mmrazor_count_the_searched_proxyless_network():
    spec = space_spec("proxyless_gpu", options={"image_size": 224, "num_classes": 1000})
    choices = {f"layer_{n}": OPERATORS[each] for n, each in enumerate(ABS_SPOS, start=1)}
    operations = operations_of(spec.architecture(choices))
    assert count(operations).flops == 470_792_064
    assert count(operations, "mmrazor").flops == 490_136_480
    counted = count(operations, "anglenas")
    assert (counted.flops, counted.params) == (472_519_072, 5_897_560)


def test_nni_convention_is_that_of_its_profiler():
    from nni.nas.profiler.pytorch.flops import FlopsParamsProfiler

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
                nn.Conv2d(8, 8, 5, padding=2, groups=8), nn.BatchNorm2d(8, affine=False),
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
            )  # fmt: skip

        def forward(self, x):
            return self.body(x)

    network = Network()
    result = FlopsParamsProfiler(network, torch.randn(1, 3, 16, 16)).profile({})
    counted = count(list_operations(network, 16), "nni")
    assert (counted.flops, counted.params) == (result.flops, result.params)


def test_active_path_is_counted_as_its_subnet():
    options = {"image_size": 32, "num_classes": 10, "channel_scales": [0.4, 1.0, 2.0]}
    with torch.device("meta"):
        supernet = Supernet(build_space("shufflenetv2plus", options=options, affine=True))
    spec = space_spec("shufflenetv2plus", options=options)
    for index in (0, -1):
        choices = {label: each[index] for label, each in spec.choices.items()}
        supernet.activate(choices)
        with torch.device("meta"):
            subnet = build_subnet(spec.architecture(choices))
        operations, expected = (list_operations(each, 32) for each in (supernet, subnet))
        for convention in CONVENTIONS:
            layers = count(operations, convention).layers
            same = count(expected, convention).layers
            assert [row[1:] for row in layers] == [row[1:] for row in same]


def test_operations_say_what_they_do():
    operations = operations_of(shuffle_architecture(ONESHOT, **{**PLUS, "channel_scales": None}))
    first, shuffle = operations[0], next(each for each in operations if each.kind == "shuffle")
    assert (first.name, first.kind, first.kernel, first.groups) == ("first_conv.0", "conv", 3, 1)
    assert (first.input_shape, first.output_shape) == ((3, 224, 224), (16, 112, 112))
    assert (shuffle.name, shuffle.input_shape, shuffle.params) == ("features.1", (64, 56, 56), 0)
    assert sum(each.kind == "shuffle" for each in operations) == 16
    depthwise = [each for each in operations if each.groups > 1]
    assert all(each.groups == each.channels and each.kernel > 1 for each in depthwise)
    pooled = next(each for each in operations if each.name == "globalpool")
    assert (pooled.kernel, pooled.output_shape) == (7, (640, 1, 1))


def test_parameters_used_twice_are_counted_once():
    conv = nn.Conv2d(3, 3, 3, padding=1)
    counted = count(list_operations(nn.Sequential(conv, nn.ReLU(), conv), 8))
    assert (counted.flops, counted.params) == (2 * 64 * 81, 84)


def test_unknown_layers_and_conventions_are_refused():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4))
    operations = list_operations(network, 8)
    assert count(operations).params == 24
    with pytest.raises(ConfigError, match="'mmrazor' has no rule for the layer 1"):
        count(operations, "mmrazor")
    with pytest.raises(ConfigError, match="no convention 'flops' for counting; there are macs"):
        count(operations, "flops")
    with pytest.raises(ConfigError, match="images of 1 x 1"):
        list_operations(nn.Conv2d(3, 4, 3), 1)
