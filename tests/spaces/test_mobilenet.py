"""The MobileNet spaces: published sizes and costs, skips in both senses, all of NAS-Bench-Macro."""

import json

import pytest
import torch
from torch import nn

from spos.cost.counting import build_cost_table, count_macs, count_params
from spos.errors import ConfigError
from spos.spaces import build_space, build_subnet, space_spec
from spos.spaces.inverted_residual import InvertedResidual
from spos.supernet import Supernet

pytestmark = pytest.mark.usefixtures("one_thread")

PAPER = {"image_size": 224, "num_classes": 1000}
OPERATORS = ("k3e3", "k3e6", "k5e3", "k5e6", "k7e3", "k7e6", "skip")  # AngleNAS 0 to 5 and -1
ABS_SPOS = (2, 2, -1, 0, 0, -1, -1, 0, 5, -1, 4, 4, 0, 0, 4, 2, 3, 4, 4, 4, 3)
MACRO = ("identity", "mb3_k3", "mb6_k5")


def choices_of(ids) -> dict:
    return {f"layer_{number}": OPERATORS[each] for number, each in enumerate(ids, start=1)}


@pytest.mark.parametrize(
    ("skips", "params", "tensors", "architectures"),
    [("anglenas", 27_684_320, 2_294, 6**6 * 7**15), ("mmrazor", 27_852_880, 2_330, 7**21)],
)
def test_proxyless_supernet_is_as_large_as_published(skips, params, tensors, architectures):
    options = {**PAPER, "skips": skips}
    with torch.device("meta"):
        space = build_space("proxyless_gpu", options=options, affine=True)
    assert count_params(space) == params
    assert len(space.state_dict()) == tensors
    assert space_spec("proxyless_gpu", options=options).num_architectures == architectures


@pytest.mark.parametrize("skips", ["anglenas", "mmrazor"])
def test_searched_proxyless_network_is_counted_to_the_integer(skips):
    table = build_cost_table("proxyless_gpu", options={**PAPER, "skips": skips})
    choices = choices_of(ABS_SPOS)
    assert table.costs(choices) == {"macs": 470_792_064, "params": 5_936_776}
    with torch.device("meta"):
        subnet = build_subnet(table.spec.architecture(choices))
    assert (count_macs(subnet, 224), count_params(subnet)) == (470_792_064, 5_936_776)
    assert len(table.terms) == 21 and table.is_separable


def test_names_are_those_that_weights_are_converted_to():
    spec = space_spec("proxyless_gpu", options=PAPER)
    with torch.device("meta"):
        keys = build_space("proxyless_gpu", options=PAPER, affine=True).state_dict().keys()
        arch = spec.architecture(choices_of(ABS_SPOS))
        subnet = build_subnet(arch).state_dict().keys()
        wide = build_space("proxyless_gpu", options={"skips": "mmrazor"}, affine=True).state_dict()
    positions = {key.split(".")[4] for key in keys if key.startswith("features.1.k5e6.conv.")}
    assert positions == {"0", "1", "3", "4", "6", "7"}
    assert {"first_block.conv.0.weight", "first_block.conv.3.weight", "conv_last.1.bias"} <= keys
    assert {"classifier.weight", "classifier.bias", "first_conv.0.weight"} <= keys
    assert "features.3.conv.0.weight" in subnet  # layer 4, behind a skip that keeps its number
    assert not any(key.startswith("features.2.") for key in subnet)
    assert wide["features.20.skip.0.weight"].shape == (432, 256, 1, 1)


def test_skip_passes_the_features_where_the_shape_stays():
    spec = space_spec("proxyless_gpu", options={"image_size": 32, "num_classes": 5})
    network = build_subnet(spec.architecture(choices_of(ABS_SPOS)))
    assert type(network.features[2]) is nn.Identity


def test_block_adds_its_input_only_where_the_shape_stays():
    for in_channels, out_channels, stride, adds in ((4, 4, 1, 1), (4, 4, 2, 0), (4, 8, 1, 0)):
        block = InvertedResidual(
            in_channels, out_channels, kernel_size=5, expansion=3, stride=stride
        ).eval()
        nn.init.zeros_(block.conv[-1].weight)  # the branch yields nothing
        x = torch.randn(2, in_channels, 6, 6)
        y = block(x)
        assert torch.equal(y, x) if adds else not y.any()
        assert y.shape == (2, out_channels, 6 // stride, 6 // stride)


def test_published_function_of_the_block():
    """Written anew from the description: expand, depthwise, project, ReLU6 after the first two."""
    torch.manual_seed(0)
    block = InvertedResidual(6, 6, kernel_size=7, expansion=3).double().eval()
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    x = torch.randn(2, 6, 9, 9, dtype=torch.float64)

    def norm(y, at):
        scale = block.conv[at].weight / torch.sqrt(block.conv[at].running_var + 1e-5)
        shift = block.conv[at].bias - block.conv[at].running_mean * scale
        return y * scale[:, None, None] + shift[:, None, None]

    y = torch.einsum("nchw,oc->nohw", x, block.conv[0].weight[:, :, 0, 0])
    y = norm(y, 1).clamp(0, 6)
    y = norm(nn.functional.conv2d(y, block.conv[3].weight, padding=3, groups=18), 4).clamp(0, 6)
    y = norm(torch.einsum("nchw,oc->nohw", y, block.conv[6].weight[:, :, 0, 0]), 7)
    torch.testing.assert_close(block(x), x + y, rtol=0, atol=1e-12)


def test_macro_benchmark_is_counted_to_the_integer(shared_data):
    published = json.loads((shared_data / "nas-bench-macro_cifar10.json").read_text())
    table = build_cost_table("nasbench_macro", options={"image_size": 32, "num_classes": 10})
    assert len(published) == table.spec.num_architectures == 6_561
    for digits, row in published.items():
        choices = {f"layer_{n}": MACRO[int(digit)] for n, digit in enumerate(digits, start=1)}
        assert table.costs(choices) == {"macs": row["flops"], "params": row["params"]}, digits


@pytest.mark.parametrize("space", ["proxyless_gpu", "nasbench_macro"])
@pytest.mark.parametrize("image_size", [8, 28, 64, 96])
def test_any_image_size_and_number_of_classes_fits(space, image_size):
    options = {"image_size": image_size, "num_classes": 7}
    supernet = Supernet(build_space(space, options=options, affine=False)).eval()
    choices = {label: each[-1] for label, each in supernet.spec_choices.items()}
    supernet.activate(choices)
    maps = []
    supernet.get_submodule("globalpool").register_forward_hook(
        lambda _, inputs, __: maps.append(inputs[0].shape[-1])
    )
    images = torch.randn(2, 3, image_size, image_size)
    with torch.no_grad():
        logits = supernet(images)
        assert torch.equal(supernet.extract(choices)(images), logits)
    assert logits.shape == (2, 7)
    halvings = {8: 2, 28: 3, 64: 4, 96: 4}[image_size]
    assert maps == [-(-image_size // 2**halvings)]


@pytest.mark.parametrize(
    ("space", "options", "message"),
    [
        ("proxyless_gpu", {"skips": "all"}, "skips is 'all', expected one of anglenas, mmrazor"),
        ("proxyless_gpu", {"skips": ["anglenas"]}, "skips is"),
        ("proxyless_gpu", {"dropout": 1}, "dropout is 1, expected a number from 0"),
        ("proxyless_gpu", {"image_size": 7}, "image_size is 7"),
        ("nasbench_macro", {"num_classes": 0}, "num_classes is 0"),
        ("nasbench_macro", {"skips": "mmrazor"}, "no option 'skips'"),
    ],
)
def test_options_out_of_range_are_refused(space, options, message):
    with pytest.raises(ConfigError, match=message):
        build_space(space, options=options, affine=True)
