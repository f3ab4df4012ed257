"""The evaluator: the same score to the bit in any order, and a supernet left as it was."""

from dataclasses import dataclass, field

import pytest
import torch
from tiny_space import TINY, WIDTHS

from spos.data.folder import ImageSet
from spos.data.loader import build_loader
from spos.data.preprocessing import Preprocessing
from spos.data.split import balanced_subset
from spos.evaluation.accuracy import measure_accuracy
from spos.evaluation.batchnorm import recalibrate
from spos.evaluation.evaluator import Evaluator, ImageBatches, Room
from spos.spaces import build_space
from spos.supernet import Supernet

pytestmark = pytest.mark.usefixtures("one_thread", "tiny_spaces")

CPU = torch.device("cpu")


def make_batches(images: ImageSet, *, count: int = 33, size: int = 8, workers: int = 0):
    loader = build_loader(
        balanced_subset(images, count=count, seed=0), image_size=8, augmentation="none",
        batch_size=size, shuffle=False, num_workers=workers,
    )  # fmt: skip
    return ImageBatches(loader, preprocessing=Preprocessing("standard"), device=CPU)


def make_evaluator(images: ImageSet, name: str = TINY) -> Evaluator:
    torch.manual_seed(0)
    supernet = Supernet(build_space(name, options={}, affine=False))
    return Evaluator(
        supernet,
        calibration=make_batches(images, count=20),
        validation=make_batches(images),
        device=CPU,
    )


def choices_of(evaluator: Evaluator, number: int) -> dict:
    return {
        label: candidates[(number + place) % len(candidates)]
        for place, (label, candidates) in enumerate(evaluator.supernet.spec_choices.items())
    }


def bits(supernet: Supernet) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in supernet.state_dict().items()}


@pytest.mark.parametrize("name", [TINY, WIDTHS])
def test_scores_are_the_same_in_any_order_and_leave_no_trace(images, name):
    evaluator = make_evaluator(images, name)
    first, second = choices_of(evaluator, 0), choices_of(evaluator, 1)
    before = bits(evaluator.supernet)
    scores = [evaluator.evaluate(each) for each in (first, second, first)]
    assert scores[0] == scores[2] != scores[1]
    assert bits(evaluator.supernet) == before
    fresh = make_evaluator(images, name)
    assert [fresh.evaluate(second), fresh.evaluate(first)] == [scores[1], scores[0]]
    assert scores[0].num_images == 33


@pytest.mark.parametrize("workers", [0, 1])
def test_rehearsal_leaves_no_trace(images, workers):
    evaluator, untouched = make_evaluator(images), make_evaluator(images)
    for name in ("calibration", "validation"):
        setattr(evaluator, name, make_batches(images, workers=workers))
        setattr(untouched, name, make_batches(images, workers=workers))
    evaluator.supernet.train()
    before = bits(evaluator.supernet)
    evaluator.rehearse(choices_of(evaluator, 1))
    assert bits(evaluator.supernet) == before
    assert all(module.training for module in evaluator.supernet.active_modules())
    choices = choices_of(evaluator, 2)
    assert evaluator.evaluate(choices) == untouched.evaluate(choices)


def test_score_is_that_of_the_recalibrated_subnet(images):
    evaluator = make_evaluator(images)
    choices = choices_of(evaluator, 2)
    subnet = evaluator.supernet.extract(choices)
    recalibrate(subnet, subnet.modules(), (each for each, _ in make_batches(images, count=20)))
    found, wanted = (
        evaluator.evaluate(choices),
        measure_accuracy(subnet, make_batches(images), CPU),
    )
    assert (found.top1, found.num_images) == (wanted.top1, 33)
    assert found.loss == pytest.approx(wanted.loss, rel=1e-5)
    stale = measure_accuracy(evaluator.supernet.extract(choices), make_batches(images), CPU)
    assert found.loss != pytest.approx(stale.loss, rel=1e-2), "recalibration made no difference"


def test_evaluation_does_not_depend_on_the_training_mode_or_global_randomness(images):
    evaluator = make_evaluator(images)
    choices = choices_of(evaluator, 0)
    score = evaluator.evaluate(choices)
    evaluator.supernet.train()
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert evaluator.evaluate(choices) == score
    assert torch.equal(torch.get_rng_state(), state)
    assert evaluator.supernet.features[0].training


def test_supernet_can_be_trained_after_an_evaluation(images):
    evaluator = make_evaluator(images)
    evaluator.evaluate(choices_of(evaluator, 0))
    supernet = evaluator.supernet.train()
    supernet(torch.ones(4, 3, 8, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in supernet.active_parameters())


def test_progress_ends_at_the_score(images, monkeypatch):
    # A busy machine would tell of it before the end as well.
    monkeypatch.setattr("spos.evaluation.accuracy.SECONDS_BETWEEN_PROGRESS", float("inf"))
    evaluator = make_evaluator(images)
    seen: list[float] = []
    score = evaluator.evaluate(choices_of(evaluator, 0), progress=seen.append)
    assert seen == [score.top1]


# --- the images ----------------------------------------------------------------------------------


@dataclass
class CountingLoader:
    """A loader that counts its passes."""

    batches: list[tuple[torch.Tensor, torch.Tensor]]
    passes: int = 0
    closed: int = 0
    epochs: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, start: int = 0):
        assert not self.closed
        self.passes += 1
        self.epochs.append(epoch)
        yield from self.batches[start:]

    def close(self) -> None:
        self.closed += 1


def make_loader() -> CountingLoader:
    generator = torch.Generator().manual_seed(0)
    sizes = (4, 4, 1)
    return CountingLoader(
        [
            (
                torch.randint(256, (n, 3, 8, 8), generator=generator).to(torch.uint8),
                torch.arange(n) % 3,
            )
            for n in sizes
        ]
    )


def as_lists(batches: ImageBatches) -> list[tuple]:
    return [(images.tolist(), labels.tolist()) for images, labels in batches]


def test_batches_are_the_same_whether_kept_or_not():
    kept, read = make_loader(), make_loader()
    standard = Preprocessing("standard")
    in_memory = ImageBatches(kept, preprocessing=standard, device=CPU)
    passes = [as_lists(in_memory) for _ in range(3)]
    room = Room(in_memory=4 * 3 * 8 * 8)  # for the first batch
    from_disk = ImageBatches(read, preprocessing=standard, device=CPU, room=room)
    assert passes == [as_lists(from_disk) for _ in range(3)]
    assert [len(labels) for _, labels in passes[0]] == [4, 4, 1]
    assert (kept.passes, kept.closed) == (1, 1)
    assert (read.passes, read.closed) == (3, 0)
    assert kept.epochs + read.epochs == [0] * 4


def test_room_on_the_device_is_used_before_that_in_memory():
    batch = 4 * 3 * 8 * 8
    for on_device, in_memory, passes in (
        (2 * batch, batch, 1),
        (batch, batch, 3),
        (3 * batch, 0, 1),
    ):
        loader = make_loader()
        batches = ImageBatches(
            loader, preprocessing=Preprocessing("standard"), device=CPU,
            room=Room(on_device, in_memory),
        )  # fmt: skip
        assert as_lists(batches) == as_lists(batches) == as_lists(batches)
        assert loader.passes == passes


def test_pass_that_was_broken_off_is_not_kept():
    loader = make_loader()
    batches = ImageBatches(loader, preprocessing=Preprocessing("standard"), device=CPU)
    next(iter(batches))
    assert [len(labels) for _, labels in batches] == [4, 4, 1]
    assert [len(labels) for _, labels in batches] == [4, 4, 1]
    assert loader.passes == 2


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_batches_do_not_depend_on_workers(images):
    wanted = as_lists(make_batches(images))
    for workers in (1, 2):
        assert as_lists(make_batches(images, workers=workers)) == wanted
