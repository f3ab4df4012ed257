"""A folded network is the same function, in every space, however its forward is written."""

import pytest
import torch
from subnets import random_subnet, trained_like
from tiny_space import TINY, WIDTHS
from torch import nn

from spos.errors import ConfigError
from spos.folding import fold_batchnorm

pytestmark = pytest.mark.usefixtures("one_thread", "tiny_spaces")

SPACES = {
    "canonical": ("shufflenetv2", {}),
    "canyonwind": ("shufflenetv2", {"layout": "canyonwind"}),
    "lliai": ("shufflenetv2", {"layout": "lliai"}),
    "classic": ("shufflenetv2", {"layout": "classic"}),
    "widths": ("shufflenetv2", {"channel_scales": [0.4, 1.0], "head": "mobilenetv3"}),
    "plus": ("shufflenetv2plus", {}),
    "plus of CanyonWind": (
        "shufflenetv2plus",
        {"squeeze_excitation": "canyonwind", "layout": "canyonwind", "classifier_bias": True},
    ),
    "proxyless": ("proxyless_gpu", {"skips": "mmrazor"}),
    "macro": ("nasbench_macro", {}),
    "one's own": (TINY, {}),
    "one's own widths": (WIDTHS, {}),
}


def logits(network: nn.Module, size: int = 32) -> torch.Tensor:
    torch.manual_seed(1)
    with torch.no_grad():
        return network(torch.randn(4, 3, size, size))


@pytest.mark.parametrize("name", SPACES)
def test_every_space_folds_whole_and_exactly(name):
    space, options = SPACES[name]
    network = random_subnet(space, **options)
    num_norms = sum(isinstance(each, nn.BatchNorm2d) for each in network.modules())
    folding = fold_batchnorm(network, torch.zeros(1, 3, 32, 32))
    assert num_norms == len(folding.folded) > 0 and folding.kept == ()
    assert not any(isinstance(each, nn.BatchNorm2d) for each in folding.network.modules())
    before = logits(network)
    assert before.abs().max() > 1
    assert (logits(folding.network) - before).abs().max() <= 1e-5


def test_given_network_is_left_as_it_is():
    network = random_subnet(TINY)
    network.train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fold_batchnorm(network, torch.zeros(1, 3, 8, 8))
    assert network.training
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


class Crossed(nn.Module):
    """Convolutions and BatchNorms that stand in another order than they are applied in."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_b, self.norm_a = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.conv_a, self.conv_b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, bias=False)
        self.classifier = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm_a(self.conv_a(x)).relu()
        return self.classifier(self.norm_b(self.conv_b(x)).mean((2, 3)))


class Unfoldable(nn.Module):
    """A convolution used twice, one used by more than its BatchNorm, a BatchNorm behind a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_1, self.norm_1 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.conv_2, self.norm_2 = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.conv_3, self.norm_3 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.classifier = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_1(self.norm_1(self.conv_1(x)))
        x = self.conv_2(x)
        x = x + self.norm_2(x)
        x = self.norm_3(self.conv_3(x).relu_())
        return self.classifier(x.mean((2, 3)))


def test_pairs_follow_the_computation_not_the_order_of_modules():
    network = trained_like(Crossed(), 16)
    folding = fold_batchnorm(network, torch.zeros(1, 3, 16, 16))
    assert folding.folded == {"norm_a": "conv_a", "norm_b": "conv_b"}
    assert (logits(folding.network) - logits(network)).abs().max() <= 1e-5


def test_what_cannot_be_folded_stays():
    network = trained_like(Unfoldable(), 16)
    folding = fold_batchnorm(network, torch.zeros(1, 3, 16, 16))
    assert folding.folded == {} and folding.kept == ("norm_1", "norm_2", "norm_3")
    assert torch.equal(logits(folding.network), logits(network))


def test_batchnorm_without_statistics_is_refused():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    with pytest.raises(ConfigError, match="1: this BatchNorm keeps no running statistics"):
        fold_batchnorm(network, torch.zeros(1, 3, 8, 8))
