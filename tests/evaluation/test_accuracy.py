"""Accuracy: fractions of images, each counted once over any number of processes."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from forked import run_ranks
from torch import nn

from spos.data.folder import scan_folder
from spos.data.loader import build_loader
from spos.data.preprocessing import Preprocessing
from spos.errors import DataError
from spos.evaluation import accuracy
from spos.evaluation.accuracy import measure_accuracy
from spos.evaluation.evaluator import ImageBatches
from spos.training import parallel

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
IMAGES = 33


class Given(nn.Module):
    """Its inputs are the logits."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)


def as_batches(logits: torch.Tensor, labels: torch.Tensor, size: int):
    return list(zip(logits.split(size), labels.split(size), strict=True))


def make_logits(classes: int, count: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(count, classes, generator=generator)
    return logits, torch.randint(classes, (count,), generator=generator)


@pytest.mark.parametrize("size", [1, 7, 50])
def test_figures_are_those_of_all_images_together(size):
    logits, labels = make_logits(classes=12)
    ranks = (logits > logits[torch.arange(50), labels][:, None]).sum(1)
    found = measure_accuracy(Given(), as_batches(logits, labels, size), CPU)
    assert found.num_images == 50
    assert found.top1 == (ranks < 1).sum().item() / 50
    assert found.top5 == (ranks < 5).sum().item() / 50
    assert 0 < found.top1 < found.top5 < 1
    assert found.loss == pytest.approx(F.cross_entropy(logits.double(), labels).item(), rel=1e-6)


@pytest.mark.parametrize("classes", [1, 2, 4, 5])
def test_five_classes_or_fewer_are_all_among_the_first_five(classes):
    logits, labels = make_logits(classes)
    assert measure_accuracy(Given(), as_batches(logits, labels, 20), CPU).top5 == 1


def test_network_is_measured_in_evaluation_mode():
    network = nn.Sequential(nn.Dropout(0.99), Given()).train()
    labels = torch.arange(40) % 4
    logits = F.one_hot(labels, 4).float()
    assert measure_accuracy(network, as_batches(logits, labels, 8), CPU).top1 == 1
    assert not network.training


def test_progress_is_the_running_top1(monkeypatch):
    monkeypatch.setattr(accuracy, "SECONDS_BETWEEN_PROGRESS", 0.0)
    labels = torch.zeros(40, dtype=torch.int64)
    logits = torch.zeros(40, 2)
    logits[:10, 0], logits[10:, 1] = 1, 1
    seen: list[float] = []
    found = measure_accuracy(Given(), as_batches(logits, labels, 10), CPU, progress=seen.append)
    assert seen == [1.0, 0.5, pytest.approx(1 / 3), 0.25, 0.25]
    assert found.top1 == 0.25


def test_progress_is_told_once_a_second_and_at_the_end():
    clock = iter(range(100))
    labels = torch.zeros(40, dtype=torch.int64)
    logits = torch.zeros(40, 2)
    logits[:10, 0], logits[10:, 1] = 1, 1
    seen: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accuracy.time, "monotonic", lambda: next(clock) / 3)
        measure_accuracy(Given(), as_batches(logits, labels, 8), CPU, progress=seen.append)
    assert seen == [pytest.approx(10 / 24), 0.25]


def test_no_images_are_refused():
    with pytest.raises(DataError, match="no images"):
        measure_accuracy(Given(), [], CPU)


def test_outputs_that_are_not_numbers_give_no_finite_loss():
    logits, labels = make_logits(3)
    logits[4, 1] = math.nan
    assert math.isnan(measure_accuracy(Given(), as_batches(logits, labels, 50), CPU).loss)


# --- several processes ---------------------------------------------------------------------------


class ByColour(nn.Module):
    """The class of our images is the brightest channel; it is wrong on some by its weights."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) * torch.tensor([1.0, 1.4, 0.9])


def measure_rank(root: Path, batch_size: int) -> list[float]:
    loader = build_loader(
        scan_folder(root), image_size=8, augmentation="none", batch_size=batch_size, shuffle=False,
        rank=parallel.rank(), world_size=parallel.world_size(),
    )  # fmt: skip
    batches = ImageBatches(loader, preprocessing=Preprocessing("spos"), device=CPU)
    found = measure_accuracy(ByColour(), batches, CPU)
    return [found.top1, found.top5, found.loss, found.num_images]


@pytest.mark.parametrize("batch_size", [4, 16, 64])
def test_ranks_count_every_image_once(images, batch_size):
    alone = measure_rank(images.root, 10)
    assert alone[3] == IMAGES and 0.3 < alone[0] < 1
    for world_size in (1, 2, 3):
        for found in run_ranks(measure_rank, images.root, batch_size, world_size=world_size):
            assert found[:2] == alone[:2]
            assert found[2] == pytest.approx(alone[2], rel=1e-6)
            assert found[3] == IMAGES
