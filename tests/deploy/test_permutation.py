"""Shuffles by convolution move the same channels to the same places."""

import pytest
import torch
from subnets import random_subnet
from tiny_space import TINY
from torch import nn

from spos.deploy.permutation import shuffle_by_convolution
from spos.errors import ConfigError
from spos.folding import fold_batchnorm
from spos.spaces.blocks import LAYOUTS

pytestmark = pytest.mark.usefixtures("one_thread", "tiny_spaces")
IMAGES = torch.linspace(-2, 2, 2 * 3 * 16 * 16).view(2, 3, 16, 16)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_keeps_its_function_to_the_bit(layout):
    space = "shufflenetv2plus" if layout == "canyonwind" else "shufflenetv2"
    network = random_subnet(space, 16, layout=layout)
    folded = fold_batchnorm(network, IMAGES).network
    for plain in (network, folded):
        permuted = shuffle_by_convolution(plain)
        with torch.no_grad():
            assert torch.equal(permuted(IMAGES), plain(IMAGES))
        assert not permuted.training


def test_permutations_are_fixed_and_as_wide_as_canyonwinds():
    # 16 blocks without projection; CanyonWind's shuffle adds 2,034,688 weights to all 20 blocks.
    network = shuffle_by_convolution(random_subnet("shufflenetv2", 16, layout="lliai"))
    added = [each for name, each in network.named_modules() if name.endswith("shuffle")]
    weights = [each.weight for each in added if isinstance(each, nn.Conv2d)]
    assert len(weights) == 20
    assert sum(each.numel() for each in weights) == 4 * (64**2 + 160**2 + 2 * 320**2 + 640**2)
    for weight in weights:
        assert not weight.requires_grad
        assert torch.equal(weight.sum(0), torch.ones_like(weight[0]))
        assert torch.equal(weight.sum(1), torch.ones_like(weight[:, 0]))


def test_network_without_shuffles_is_refused():
    for space in ("proxyless_gpu", TINY):
        with pytest.raises(ConfigError, match="has no channel shuffle that could become"):
            shuffle_by_convolution(random_subnet(space, 16))
