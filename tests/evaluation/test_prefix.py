"""Layers that two candidates share are run once, and no bit of a score tells."""

import itertools
import random

import pytest
import torch
from test_evaluator import CPU, make_batches
from tiny_space import TINY, WIDTHS
from torch import nn

from spos.evaluation import accuracy
from spos.evaluation.accuracy import Accuracy
from spos.evaluation.evaluator import Evaluator
from spos.evaluation.prefix import _bytes
from spos.spaces import build_space
from spos.supernet import Supernet

pytestmark = pytest.mark.usefixtures("one_thread", "tiny_spaces")

PLENTY = 2**30
SHUFFLENET = "shufflenetv2"
OPTIONS = {SHUFFLENET: {"image_size": 8, "num_classes": 3}}


def make_evaluator(images, name: str, path_bytes: int) -> Evaluator:
    torch.manual_seed(0)
    supernet = Supernet(build_space(name, options=OPTIONS.get(name, {}), affine=False))
    return Evaluator(
        supernet,
        calibration=make_batches(images, count=20),
        validation=make_batches(images),
        device=CPU,
        path_bytes=path_bytes,
    )


def draw_paths(evaluator: Evaluator, count: int) -> list[dict]:
    """Paths of which each begins like the one before."""
    draw, paths = random.Random(0), []
    choices = {label: each[0] for label, each in evaluator.supernet.spec_choices.items()}
    for _ in range(count):
        start = draw.randrange(len(choices))
        for label, each in itertools.islice(evaluator.supernet.spec_choices.items(), start, None):
            choices[label] = draw.choice(each)
        paths.append(dict(choices))
    return paths


def count_runs(evaluator: Evaluator) -> list[str]:
    """Names of the convolutions that run from now on, in order."""
    names: list[str] = []
    for name, module in evaluator.supernet.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *_, name=name: names.append(name))
    return names


@pytest.mark.parametrize(("name", "count"), [(TINY, 12), (WIDTHS, 6), (SHUFFLENET, 5)])
def test_scores_are_the_same_to_the_bit(images, name, count):
    plain = make_evaluator(images, name, 0)
    sharing = make_evaluator(images, name, PLENTY)
    paths = draw_paths(plain, count)
    before = {key: value.clone() for key, value in sharing.supernet.state_dict().items()}
    assert [sharing.evaluate(each) for each in paths] == [plain.evaluate(each) for each in paths]
    for key, value in sharing.supernet.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_only_the_layers_that_differ_are_run(images):
    evaluator = make_evaluator(images, TINY, PLENTY)
    first = {"layer_1": "k1", "layer_2": "k3", "layer_3": "k5"}
    evaluator.evaluate(first)
    names = count_runs(evaluator)
    evaluator.evaluate({**first, "layer_3": "k1"})
    assert set(names) == {"stem.0", "features.2.k1.0"}
    names.clear()
    evaluator.evaluate({**first, "layer_1": "k3"})
    assert set(names) == {"stem.0", "features.0.k3.0", "features.1.k3.0", "features.2.k5.0"}


def test_candidate_that_was_broken_off_leaves_nothing_behind(images, monkeypatch):
    monkeypatch.setattr(accuracy, "SECONDS_BETWEEN_PROGRESS", 0.0)
    plain, sharing = (make_evaluator(images, TINY, size) for size in (0, PLENTY))
    first, second, third = draw_paths(plain, 3)
    expected = [plain.evaluate(each) for each in (first, second, third)]

    def give_up(top1: float) -> None:
        raise KeyboardInterrupt

    assert sharing.evaluate(first) == expected[0]
    with pytest.raises(KeyboardInterrupt):
        sharing.evaluate(second, progress=give_up)
    assert [sharing.evaluate(each) for each in (second, third)] == expected[1:]


@pytest.mark.parametrize("room", [1, 3000, 30_000])
def test_what_finds_no_room_is_run_again(images, room):
    plain, sharing = (make_evaluator(images, TINY, size) for size in (0, room))
    for each in draw_paths(plain, 5):
        assert sharing.evaluate(each) == plain.evaluate(each)
        assert sum(_bytes(kept) for kept in sharing._memory._passes.values()) <= room


class Skipping(nn.Sequential):
    """Runs its children one after the other, and adds what came in to what comes out."""

    def forward(self, x):
        for child in self:
            x = x + child(x)
        return x


class Changing(nn.Module):
    """Changes its input in place, as an activation in front of a convolution may."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x.mul_(1.5))


@pytest.mark.parametrize("kind", ["skips", "changes in place"])
def test_networks_that_cannot_share_are_scored_all_the_same(images, kind):
    scores: list[list[Accuracy]] = []
    for size in (0, PLENTY):
        evaluator = make_evaluator(images, TINY, 0)
        space = evaluator.supernet._space
        if kind == "skips":
            space.features = Skipping(*space.features)
        else:
            space.features = nn.Sequential(*(Changing(each) for each in space.features))
        evaluator = Evaluator(
            evaluator.supernet, calibration=evaluator.calibration, validation=evaluator.validation,
            device=CPU, path_bytes=size,
        )  # fmt: skip
        paths = draw_paths(evaluator, 6)
        scores.append([evaluator.evaluate(each) for each in paths])
    assert scores[0] == scores[1]
