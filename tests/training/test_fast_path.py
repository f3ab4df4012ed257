"""The fast training step is the published one: same losses, with the same updates."""

import argparse
import copy
import importlib
import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from spos.spaces import build_space
from spos.supernet import Supernet

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 3


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("training_step")


def train(network: Supernet, images: torch.Tensor) -> list[float]:
    generator = random.Random(0)
    labels = torch.arange(len(images)) % 5
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    losses = []
    for _ in range(STEPS):
        network.activate({k: generator.choice(v) for k, v in network.spec_choices.items()})
        loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("options", [{}, {"channel_scales": [0.6, 1.0]}], ids=["plain", "widths"])
def test_halves_apart_train_as_the_published_network_does(benchmark, options):
    """In double precision: an untrained network amplifies rounding some fiftyfold in every step."""
    torch.manual_seed(0)
    options = {"image_size": 16, "num_classes": 5, "dropout": 0.0, **options}
    plain = Supernet(build_space("shufflenetv2", options=options, affine=True)).double().train()
    fast = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    benchmark.with_published_blocks(plain)
    keys = list(fast.state_dict())
    assert keys == list(plain.state_dict())
    images = torch.randn(16, 3, 16, 16, dtype=torch.float64)
    losses = train(plain, images)
    found = train(fast, images.contiguous(memory_format=torch.channels_last))
    assert found == pytest.approx(losses, rel=1e-8)
    assert found[0] == pytest.approx(losses[0], rel=1e-13)
    assert len(set(losses)) == STEPS


def test_benchmark_finds_the_same_losses_in_single_precision(benchmark):
    args = argparse.Namespace(
        image_size=16, output_stride=8, num_classes=5, batch_size=16, device="cpu"
    )
    assert benchmark.compare_losses(args) < benchmark.TOLERANCE
