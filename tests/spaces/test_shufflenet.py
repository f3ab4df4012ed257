"""The canonical network: its counts, its function, its names, and what it does to small images."""

import importlib
import random

import pytest
import torch
from torch import nn

from spos.architecture import Architecture, load_architecture
from spos.errors import ConfigError
from spos.spaces import build_space, build_subnet, space_spec
from spos.spaces.blocks import shuffle_block
from spos.spaces.halves import join
from spos.spaces.nni_pieces import open_hub
from spos.spaces.options import OUTPUT_STRIDES, strides
from spos.spaces.shufflenet import ShuffleNetV2Space

pytestmark = pytest.mark.usefixtures("one_thread")

BLOCKS = ("k3", "k5", "k7", "xcep")
RELEASED = (2, 1, 0, 1, 2, 0, 2, 0, 2, 0, 2, 3, 0, 0, 0, 0, 3, 2, 3, 3)


@pytest.fixture(scope="module")
def hub_space():
    open_hub()
    return importlib.import_module("nni.nas.hub.pytorch.shufflenet").ShuffleNetSpace


def architecture(ids, image_size=224, num_classes=1000, **options):
    choices = {f"layer_{number}": BLOCKS[block] for number, block in enumerate(ids, start=1)}
    options = {"image_size": image_size, "num_classes": num_classes, **options}
    return Architecture("shufflenetv2", options, choices)


def randomize(network: nn.Module) -> None:
    """Weights and statistics with which no layer's part in the function is lost."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.1)
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)


def test_parameter_counts_are_exact():
    assert _count(ShuffleNetV2Space(affine=False)) == 8_388_176
    assert _count(ShuffleNetV2Space(affine=True)) == 8_489_648
    assert _count(build_subnet(architecture(RELEASED))) == 3_558_464
    assert _count(build_subnet(architecture(RELEASED), affine=False)) == 3_529_312


def test_final_architecture_is_the_released_one(request):
    arch = load_architecture(request.config.rootpath / "architecture_final.json")
    assert arch == architecture(RELEASED)
    assert arch.metrics == {"macs": 322_918_720, "params": 3_558_464}


def test_state_dict_keys_are_those_of_the_hub(hub_space):
    hub = hub_space(affine=True).state_dict()
    ours = ShuffleNetV2Space(affine=True).state_dict()
    assert [(key, value.shape) for key, value in ours.items()] == [
        (key, value.shape) for key, value in hub.items()
    ]
    # the hub forgets the stem when it is told to leave affine out
    forgotten = {"first_conv.1.weight", "first_conv.1.bias"}
    hub = hub_space(affine=False).state_dict().keys()
    assert ShuffleNetV2Space(affine=False).state_dict().keys() == hub - forgotten


@pytest.mark.parametrize(
    ("ids", "image_size", "options"),
    [
        (RELEASED, 224, {}),
        ((3,) * 20, 128, {}),
        (tuple(random.Random(7).choices(range(4), k=20)), 128, {}),
        (RELEASED, 64, {"output_stride": 32}),
    ],
    ids=["released", "all xcep", "random", "small images halved as often"],
)
def test_subnet_is_the_function_of_the_hub(hub_space, ids, image_size, options):
    arch = architecture(ids, image_size, **options)
    torch.manual_seed(0)
    ours = build_subnet(arch)
    randomize(ours)
    hub = hub_space.frozen_factory(dict(arch.choices))()
    hub.load_state_dict(ours.state_dict(), strict=True)
    images = torch.randn(2, 3, image_size, image_size)
    for network in (ours, hub):
        network.eval()
    with torch.no_grad():
        expected, logits = hub(images), ours(images)
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


def test_initialisation_is_the_published_one():
    torch.manual_seed(0)
    space = ShuffleNetV2Space(affine=True)
    stem, norm = space.first_conv[0], space.first_conv[1]
    assert stem.weight.std().item() == pytest.approx(0.01, rel=0.15)
    assert torch.equal(norm.weight, torch.ones(16))
    assert torch.equal(norm.bias, torch.full((16,), 1e-4))
    assert space.conv_last[0].weight.std().item() == pytest.approx(1 / 640, rel=0.01)
    assert space.classifier[0].weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert space.classifier[0].bias is None
    depthwise = [m.weight for m in space.features.modules() if getattr(m, "groups", 1) > 1]
    weights = torch.cat([weight.flatten() for weight in depthwise])
    assert weights.std().item() == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize(
    ("image_size", "last_map"),
    [(8, 2), (9, 3), (16, 2), (28, 4), (32, 4), (33, 5), (64, 4), (96, 6), (128, 4), (224, 7)],
)
def test_last_map_suits_the_image_size(image_size, last_map):
    maps = {}
    for block in ("k7", "xcep"):
        choices = {f"layer_{number}": block for number in range(1, 21)}
        arch = Architecture("shufflenetv2", {"image_size": image_size, "num_classes": 5}, choices)
        network = build_subnet(arch).eval()
        network.features.register_forward_hook(
            lambda _, inputs, output: maps.update(first=inputs[0].shape[-1], last=output.shape[-2:])
        )
        with torch.no_grad():
            logits = network(torch.zeros(1, 3, image_size, image_size))
        assert logits.shape == (1, 5)
        assert maps["last"] == (last_map, last_map)
        assert maps["first"] == (image_size if image_size < 128 else image_size // 2)


def test_earliest_layers_lose_their_stride_first():
    assert strides(224) == strides(128) == (2, 2, 2, 2, 2)
    assert strides(127) == strides(64) == (1, 2, 2, 2, 2)
    assert strides(32) == (1, 1, 2, 2, 2)
    assert strides(63) == strides(28) == strides(16) == (1, 1, 2, 2, 2)
    assert strides(15) == strides(8) == (1, 1, 1, 2, 2)


@pytest.mark.parametrize("space", ["shufflenetv2", "shufflenetv2plus", "proxyless_gpu"])
@pytest.mark.parametrize("output_stride", OUTPUT_STRIDES)
def test_output_stride_is_kept_at_every_image_size(space, output_stride):
    for image_size in (32, 128):
        options = {"image_size": image_size, "num_classes": 5, "output_stride": output_stride}
        spec = space_spec(space, options=options)
        first = {label: candidates[0] for label, candidates in spec.choices.items()}
        network = build_subnet(spec.architecture(first)).eval()
        maps = []
        network.features.register_forward_hook(
            lambda _, inputs, output, maps=maps: maps.append(output.shape[-1])
        )
        with torch.no_grad():
            network(torch.zeros(1, 3, image_size, image_size))
        assert maps == [image_size // output_stride]


def test_block_without_stride_keeps_its_projection():
    small, large = (ShuffleNetV2Space(image_size=size) for size in (16, 224))
    assert small.features[0]["k3"].branch_proj[0].stride == (1, 1)
    assert large.features[0]["k3"].branch_proj[0].stride == (2, 2)
    assert small.state_dict().keys() == large.state_dict().keys()


def test_split_by_parity_is_the_published_one():
    block = shuffle_block(8, 8, 4, kernel_size=3)
    block.branch_main = nn.Identity()
    x = torch.randn(2, 8, 3, 5)
    # Megvii's channel_shuffle: pairs of channels to the front, then one half each
    pairs = x.reshape(2 * 8 // 2, 2, 3 * 5).permute(1, 0, 2).reshape(2, -1, 8 // 2, 3, 5)
    assert torch.equal(join(block(x)), torch.cat((pairs[0], pairs[1]), 1))


@pytest.mark.parametrize("training", [False, True])
def test_channels_last_gives_the_same_result(training):
    torch.manual_seed(0)
    network = build_subnet(architecture(RELEASED, 32, 10)).train(training).double()
    randomize(network)
    network.dropout.p = 0.0
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        expected = network(images)
        network.to(memory_format=torch.channels_last)
        seen = []
        network.features.register_forward_hook(lambda _, __, output: seen.append(output))
        logits = network(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "options",
    [
        {"image_size": 7},
        {"image_size": 4097},
        {"image_size": 224.0},
        {"image_size": "224"},
        {"image_size": True},
        {"num_classes": 0},
        {"num_classes": 10**9},
        {"num_classes": None},
    ],
)
def test_options_out_of_range_are_refused(options):
    (name,) = options
    with pytest.raises(ConfigError, match=f"{name} is .*expected an integer from"):
        build_space("shufflenetv2", options=options, affine=False)


@pytest.mark.parametrize("space", ["shufflenetv2", "shufflenetv2plus"])
def test_stages_are_as_deep_as_asked(space):
    depths, options = [1, 2, 3, 1], {"image_size": 64, "num_classes": 5}
    spec = space_spec(space, options={**options, "stage_depths": depths})
    assert list(spec.choices) == [f"layer_{number}" for number in range(1, 8)]
    subnet = build_subnet(spec.architecture({label: "k5" for label in spec.choices}))
    projects = [block.branch_proj is not None for block in subnet.features]
    assert projects == [True, True, False, True, False, False, True]
    deep = build_space(space, options=options, affine=True).state_dict()
    for name, tensor in (
        build_space(space, options={**options, "stage_depths": [4, 4, 8, 4]}, affine=True)
        .state_dict()
        .items()
    ):
        assert deep.pop(name).shape == tensor.shape
    assert not deep


@pytest.mark.parametrize(
    "depths",
    [4, "4484", [], [4, 4, 8], [4, 4, 8, 4, 4], [4, 0, 8, 4], [4, 4, 8, 101], [1, 1, 1.0, 1]],
)
def test_depths_out_of_range_are_refused(depths):
    with pytest.raises(ConfigError, match="stage_depths is .*expected a(n integer| list)"):
        build_space("shufflenetv2", options={"stage_depths": depths}, affine=False)


@pytest.mark.parametrize("output_stride", [0, 1, 3, 64, "32", [32], True])
def test_output_stride_that_is_none_is_refused(output_stride):
    for space in ("shufflenetv2", "proxyless_gpu"):
        with pytest.raises(ConfigError, match="output_stride is .*expected one of null, 2, 4, 8"):
            build_space(space, options={"output_stride": output_stride}, affine=False)


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
