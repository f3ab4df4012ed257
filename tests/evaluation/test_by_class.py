"""Figures by class are those that one counts by hand, and come from the same pass as the rest."""

import math

import pytest
import scipy.stats
import torch
from torch import nn

from spos.errors import CheckpointError, DataError
from spos.evaluation.by_class import (
    ClassAccuracy,
    Confusion,
    measure_by_class,
    wilson_interval,
)

CPU = torch.device("cpu")
NAMES = ("ant", "bee", "cat", "dog")
LABELS = [0, 0, 0, 0, 1, 1, 3, 3, 3]
FOUND = [0, 1, 1, 3, 1, 1, 0, 3, 0]


def batches(size: int):
    logits = torch.nn.functional.one_hot(torch.tensor(FOUND), len(NAMES)).float()
    return list(zip(logits.split(size), torch.tensor(LABELS).split(size), strict=True))


@pytest.mark.parametrize("size", [1, 4, 9])
def test_classes_and_confusions_are_counted(size):
    found = measure_by_class(nn.Identity(), batches(size), CPU, classes=NAMES)
    assert found.total.num_images == 9 and found.total.top1 == 4 / 9
    assert found.classes == (
        ClassAccuracy("ant", 4, 1), ClassAccuracy("bee", 2, 2), ClassAccuracy("dog", 3, 1),
    )  # fmt: skip
    assert found.confusions == (
        Confusion("ant", "bee", 2), Confusion("dog", "ant", 2), Confusion("ant", "dog", 1),
    )  # fmt: skip
    assert found.balanced == pytest.approx((1 / 4 + 1 + 1 / 3) / 3)
    assert [each.name for each in found.worst(5)] == ["ant", "dog"]
    assert [each.name for each in found.worst(1)] == ["ant"]
    assert found.interval == wilson_interval(4, 9)


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (1, 1), (4, 9), (298, 300), (0, 50_000)])
def test_interval_is_wilsons(successes, trials):
    expected = scipy.stats.binomtest(successes, trials).proportion_ci(method="wilson")
    found = wilson_interval(successes, trials)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-7)
    assert 0 <= found[0] <= successes / trials <= found[1] <= 1


def test_what_means_nothing_is_refused():
    with pytest.raises(DataError, match="no images"):
        measure_by_class(nn.Identity(), [], CPU, classes=NAMES)
    broken = [(torch.full((2, 4), math.nan), torch.tensor([0, 1]))]
    with pytest.raises(CheckpointError, match="loss on these images is nan"):
        measure_by_class(nn.Identity(), broken, CPU, classes=NAMES)
