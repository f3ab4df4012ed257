"""Mixup and cutout: drawn from (seed, step, rank) alone, the same in parts, as published."""

import math

import pytest
import torch
from torch import nn

from spos.data.preprocessing import Preprocessing
from spos.training import parallel
from spos.training.mixing import Changes, Target, cut_out, draw_changes, prepare_parts
from spos.training.recipe import Recipe

RECIPE = Recipe(epochs=4, batch_size=5, lr=0.1, mixup=0.4, mixup_off_epochs=1, cutout=3, seed=2)
SIDE, STEPS = 8, 6
IMAGES = torch.randint(0, 256, (5, 3, SIDE, SIDE), dtype=torch.uint8,
                       generator=torch.Generator().manual_seed(0))  # fmt: skip
LABELS = torch.tensor([0, 1, 2, 1, 0])


def draw(step: int = 0, images: torch.Tensor = IMAGES, **changes) -> Changes:
    return draw_changes(RECIPE.replace(changes), images, step=step, steps_per_epoch=STEPS)


def prepare(changes: Changes, *, number: int = 1, preprocessing: str = "standard"):
    """Input and targets of all parts together."""
    parts = list(prepare_parts(IMAGES, LABELS, changes, number=number,
                               preprocessing=Preprocessing(preprocessing)))  # fmt: skip
    assert len(parts) == number
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x, _ in parts)
    return torch.cat([x for x, _ in parts]), [target for _, target in parts]


# --- what is drawn -------------------------------------------------------------------------------


def as_lists(changes: Changes) -> list:
    assert changes.partners is not None and changes.centres is not None
    return [changes.partners.tolist(), changes.share, changes.centres.tolist()]


def test_changes_follow_from_seed_step_and_rank_alone(monkeypatch):
    first = as_lists(draw(7))
    torch.manual_seed(99)
    assert as_lists(draw(7)) == first
    others = [as_lists(draw(8)), as_lists(draw(7, seed=3))]
    monkeypatch.setattr(parallel, "rank", lambda: 1)
    others.append(as_lists(draw(7)))
    for other in others:
        assert all(one != another for one, another in zip(first, other, strict=True))


def test_nothing_is_drawn_where_nothing_is_wanted():
    assert draw(mixup_off_epochs=0, mixup=0.0, cutout=0) == Changes()
    last = draw(3 * STEPS)  # the last epoch goes without mixup
    assert last.partners is None and last.share == 1 and last.centres is not None
    assert draw(3 * STEPS - 1).partners is not None
    assert draw(cutout=0).centres is None


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_shares_are_of_the_beta_distribution(alpha):
    draws = [draw(step, mixup=alpha, epochs=400).share for step in range(2000)]
    shares = torch.tensor(draws, dtype=torch.float64)
    assert ((shares >= 0.5) & (shares <= 1)).all()
    variance = 1 / (4 * (2 * alpha + 1))  # of Beta(alpha, alpha), about a half
    assert (shares - 0.5).square().mean().item() == pytest.approx(variance, rel=0.08)


def test_partners_are_permutations_and_centres_anywhere():
    partners = torch.stack([draw(step).partners for step in range(18)])
    assert torch.equal(partners.sort(dim=1).values, torch.arange(5).expand(18, 5))
    assert len(set(map(tuple, partners.tolist()))) > 10
    wide = torch.zeros(400, 3, 4, 9, dtype=torch.uint8)
    rows, columns = draw(images=wide).centres.unbind(1)
    assert rows.unique().tolist() == list(range(4))
    assert columns.unique().tolist() == list(range(9))


# --- what becomes of the images ------------------------------------------------------------------


def change_one_by_one(changes: Changes, preprocessing: str) -> torch.Tensor:
    """The same, image by image and pixel by pixel."""
    images = Preprocessing(preprocessing).apply(IMAGES)
    grey = [0.0, 0.0, 0.0] if preprocessing == "standard" else [103.53, 116.28, 123.675]
    for image, centre in zip(images, changes.centres.tolist(), strict=True):
        first_row, first_column = (place - RECIPE.cutout // 2 for place in centre)
        for row in range(first_row, first_row + RECIPE.cutout):
            for column in range(first_column, first_column + RECIPE.cutout):
                if 0 <= row < SIDE and 0 <= column < SIDE:
                    image[:, row, column] = torch.tensor(grey)
    mixed = [
        changes.share * image + (1 - changes.share) * images[partner]
        for image, partner in zip(images, changes.partners.tolist(), strict=True)
    ]
    return torch.stack(mixed)


@pytest.mark.parametrize("preprocessing", ["standard", "spos"])
@pytest.mark.parametrize("number", [1, 2, 5])
def test_images_are_cut_and_mixed_the_same_in_parts(number, preprocessing):
    changes = draw(4)
    x, targets = prepare(changes, number=number, preprocessing=preprocessing)
    torch.testing.assert_close(x, change_one_by_one(changes, preprocessing), rtol=1e-5, atol=1e-5)
    assert torch.equal(x, prepare(changes, preprocessing=preprocessing)[0])
    assert torch.cat([each.labels for each in targets]).tolist() == LABELS.tolist()
    others = torch.cat([each.others for each in targets])
    assert torch.equal(others, LABELS[changes.partners])
    assert {each.share for each in targets} == {changes.share}


@pytest.mark.parametrize("number", [1, 3])
def test_no_changes_leave_the_images_as_they_are(number):
    x, targets = prepare(Changes(), number=number)
    assert torch.equal(x, Preprocessing("standard").apply(IMAGES))
    assert torch.cat([each.labels for each in targets]).tolist() == LABELS.tolist()
    assert all(each.others is None for each in targets)


@pytest.mark.parametrize("side, centre, area", [
    (1, (3, 4), 1), (4, (4, 4), 16), (4, (0, 0), 4), (3, (0, 7), 4), (8, (4, 4), 64),
    (8, (3, 4), 56),
])  # fmt: skip
def test_square_may_lie_partly_outside(side, centre, area):
    x = torch.ones(2, 3, SIDE, SIDE)
    cut = cut_out(x, torch.tensor([(3, 3), centre]), side=side, fill=torch.zeros(3, 1, 1))
    assert (cut[1] == 0).sum() == 3 * area
    assert (cut[0, :, 3, 3] == 0).all() and (x == 1).all()


# --- loss ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_cross_entropy_with_the_mixed_labels(smoothing):
    torch.manual_seed(1)
    logits = torch.randn(5, 3, dtype=torch.float64)
    others, share = torch.tensor([1, 1, 0, 2, 0]), 0.7
    loss = Target(LABELS, others, share).cross_entropy(logits, label_smoothing=smoothing)
    expected = 0.0
    for row, own, other in zip(logits.tolist(), LABELS.tolist(), others.tolist(), strict=True):
        total = sum(math.exp(value) for value in row)
        for label, value in enumerate(row):
            wanted = share * (label == own) + (1 - share) * (label == other)
            wanted = (1 - smoothing) * wanted + smoothing / 3
            expected -= wanted * math.log(math.exp(value) / total) / 5
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    alone = Target(LABELS).cross_entropy(logits, label_smoothing=smoothing)
    assert torch.equal(alone, nn.CrossEntropyLoss(label_smoothing=smoothing)(logits, LABELS))
