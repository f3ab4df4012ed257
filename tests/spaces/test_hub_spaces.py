"""Spaces of NNI's hub work as ours do: the supernet, its subnets and the cost table."""

import importlib
import random

import pytest
import torch
from torch import nn

from spos.cost.counting import build_cost_table, count_macs, count_params
from spos.errors import ConfigError
from spos.spaces import SPACES
from spos.spaces.nni_pieces import open_hub, read_choices
from spos.supernet import Supernet

pytestmark = pytest.mark.usefixtures("one_thread")

# name: module, class, arguments, number of choices
HUB = {
    "shufflenet": ("shufflenet", "ShuffleNetSpace", {}, 20),
    "shufflenet with channels": (
        "shufflenet",
        "ShuffleNetSpace",
        {"channel_search": True, "affine": False},
        40,
    ),
    "proxylessnas": ("proxylessnas", "ProxylessNAS", {}, 26),
    "mobilenetv3": (
        "mobilenetv3",
        "MobileNetV3Space",
        {"width_multipliers": (0.5, 1.0), "expand_ratios": (1.0, 3.0), "depth_range": (1, 2)},
        41,
    ),
    "nasbench201": (
        "nasbench201",
        "NasBench201",
        {"stem_out_channels": 4, "num_modules_per_stack": 1},
        6,
    ),
}


def hub_class(module: str, name: str):
    open_hub()
    return getattr(importlib.import_module(f"nni.nas.hub.pytorch.{module}"), name)


@pytest.mark.parametrize("case", HUB)
def test_hub_space_shares_weights_and_counts(case, monkeypatch):
    module, name, arguments, num_choices = HUB[case]
    space_class = hub_class(module, name)
    monkeypatch.setitem(SPACES, "hub", space_class)
    torch.manual_seed(0)
    supernet = Supernet(space_class(num_labels=10, **arguments))
    assert len(supernet.spec_choices) == num_choices
    options = {"image_size": 32, "num_classes": 10, **arguments}
    options.pop("affine", None)
    table = build_cost_table("hub", options=options)
    assert table.spec.choices == supernet.spec_choices
    generator = random.Random(0)
    for _ in range(2):
        choices = {label: generator.choice(each) for label, each in supernet.spec_choices.items()}
        supernet.activate(choices)
        for training in (True, False):
            supernet.train(training)
            subnet = supernet.extract(choices, affine=True)
            images = torch.randn(4, 3, 32, 32)
            torch.manual_seed(1)  # of dropout
            expected = supernet(images)
            torch.manual_seed(1)
            torch.testing.assert_close(subnet(images), expected, rtol=1e-4, atol=1e-5)
        assert expected.std() > 0
        assert table.costs(choices) == {
            "macs": count_macs(subnet, 32),
            "params": count_params(subnet),
        }


def test_channel_search_keeps_the_hubs_parameters():
    supernet = Supernet(hub_class("shufflenet", "ShuffleNetSpace")(channel_search=True))
    assert supernet.spec_choices["channel_1"] == (6, 12, 19, 25, 32, 38, 44, 51)
    conv = supernet.get_submodule("features.0.k3.branch_main.0")
    assert isinstance(conv, nn.Conv2d)
    assert conv.weight.shape == (51, 16, 1, 1)
    assert conv.weight.std().item() == pytest.approx(1 / 16, rel=0.15)  # the hub's initialisation


def test_fractions_are_named_by_their_text():
    space = hub_class("mobilenetv3", "MobileNetV3Space")(expand_ratios=(1.0, 2.5))
    assert read_choices(space)["s1_i0_exp"] == {"1.0": 1.0, "2.5": 2.5}


def test_hub_space_that_cannot_share_weights_is_refused():
    with pytest.raises(ConfigError, match="'cell/input1' is a CategoricalMultiple"):
        Supernet(hub_class("nasbench101", "NasBench101")())
