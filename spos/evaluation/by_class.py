"""Accuracy class by class: how sure the whole is, which classes are bad, what they are taken for.

Imports `spos.evaluation.accuracy` and torch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spos.evaluation.accuracy import Accuracy, check_finite, measure_accuracy

NORMAL_QUANTILE = 1.959964  # 95 % of a normal distribution lie within as many deviations


@dataclass(frozen=True)
class ClassAccuracy:
    """The images of one class.

    Attributes:
        name: of the class.
        num_images: its images, at least one.
        num_correct: those whose first class it was.
    """

    name: str
    num_images: int
    num_correct: int

    @property
    def top1(self) -> float:
        """Between 0 and 1."""
        return self.num_correct / self.num_images


@dataclass(frozen=True)
class Confusion:
    """Images of the class ``name`` whose first class was ``predicted``, another one."""

    name: str
    predicted: str
    num_images: int


@dataclass(frozen=True)
class AccuracyByClass:
    """Accuracy on a data set, of the whole and of its classes.

    Attributes:
        total: of all images.
        classes: those that have images, in the order of the network's classes.
        confusions: most frequent first.
    """

    total: Accuracy
    classes: tuple[ClassAccuracy, ...]
    confusions: tuple[Confusion, ...]

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the top-1 that such images have without end."""
        num_correct = sum(each.num_correct for each in self.classes)
        return wilson_interval(num_correct, self.total.num_images)

    @property
    def balanced(self) -> float:
        """Mean of the classes' top-1, however many images each has."""
        return sum(each.top1 for each in self.classes) / len(self.classes)

    def worst(self, count: int) -> list[ClassAccuracy]:
        """Up to ``count`` classes with errors, the worst first."""
        wrong = [each for each in self.classes if each.num_correct < each.num_images]
        return sorted(wrong, key=lambda each: each.top1)[:count]


def measure_by_class(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    *,
    classes: Sequence[str],
) -> AccuracyByClass:
    """Measure ``network`` in evaluation mode, in this process alone.

    Args:
        network: from images to logits, one for each class.
        batches: preprocessed images (N, 3, H, W) and labels (N,), on ``device``.
        device: of both.
        classes: their names.

    Raises:
        DataError: if there is no image.
        CheckpointError: if the network's outputs are not finite.
    """
    pairs: list[Tensor] = []
    total = measure_accuracy(
        network,
        batches,
        device,
        observe=lambda labels, found: pairs.append(torch.stack([labels, found], dim=1)),
    )
    check_finite(total)
    counts = Counter[tuple[int, int]](map(tuple, torch.cat(pairs).tolist()))
    sizes = Counter[int]()
    for (label, _), count in counts.items():
        sizes[label] += count
    mistakes = [(pair, count) for pair, count in counts.items() if pair[0] != pair[1]]
    mistakes.sort(key=lambda each: (-each[1], each[0]))
    return AccuracyByClass(
        total,
        tuple(ClassAccuracy(classes[n], sizes[n], counts[n, n]) for n in sorted(sizes)),
        tuple(Confusion(classes[n], classes[other], count) for (n, other), count in mistakes),
    )


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % score interval of a probability (Wilson 1927): within 0 and 1, also for few trials."""
    share, square = successes / trials, NORMAL_QUANTILE**2 / trials
    centre = share + square / 2
    half = math.sqrt(square * share * (1 - share) + square**2 / 4)
    return max(0.0, (centre - half) / (1 + square)), min(1.0, (centre + half) / (1 + square))
