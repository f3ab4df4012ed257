import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import CenterCrop, RandomResizedCrop, Resize

from spos.data.augmentation import AUGMENTATIONS, View, ViewRule, draw_view
from spos.errors import ConfigError


def draw_many(rule: ViewRule, count: int, width: int, height: int) -> list[View]:
    return [
        draw_view(rule, epoch=index % 7, index=index, width=width, height=height)
        for index in range(count)
    ]


@given(
    augmentation=st.sampled_from(sorted(AUGMENTATIONS)),
    resize_rule=st.sampled_from(["standard", "spos"]),
    image_size=st.integers(1, 300),
    width=st.integers(1, 2000),
    height=st.integers(1, 2000),
    index=st.integers(0, 2**40),
)
def test_views_lie_within_their_image(
    augmentation: str, resize_rule: str, image_size: int, width: int, height: int, index: int
) -> None:
    rule = ViewRule(augmentation, resize_rule, image_size, 0)
    view = draw_view(rule, epoch=0, index=index, width=width, height=height)
    left, top, box_width, box_height = view.box
    assert 0 <= left < left + box_width <= width
    assert 0 <= top < top + box_height <= height
    reach = image_size // 8 if augmentation.startswith("crop") else 0
    for offset, length in zip(view.window, view.resized, strict=True):
        assert length >= image_size
        assert -reach <= offset <= length - image_size + reach


def test_views_depend_on_every_argument() -> None:
    views = {
        draw_view(ViewRule("paper", "standard", 224, seed), epoch=epoch, index=index, **size)
        for seed in (0, 1)
        for epoch in (0, 1)
        for index in (0, 1)
        for size in ({"width": 500, "height": 375},)
    }
    assert len(views) == 8


def test_views_are_the_same_for_ever() -> None:
    rule = ViewRule("paper", "standard", 224, 3)
    assert draw_view(rule, epoch=1, index=2, width=500, height=375) == View(
        box=(179, 44, 302, 229),
        resized=(224, 224),
        window=(0, 0),
        flip=False,
        jitter=(0.8182547520710588, 1.265579155084518, 1.348751479637031),
    )


@given(size=st.integers(1, 300), width=st.integers(1, 900), height=st.integers(1, 900))
def test_standard_evaluation_is_torchvisions(size: int, width: int, height: int) -> None:
    view = draw_view(
        ViewRule("none", "standard", size, 0), epoch=0, index=0, width=width, height=height
    )
    image = Image.new("L", (width, height))
    shorter = size if size <= 64 else round(size * 256 / 224)
    if max(width, height) < 40 * min(width, height):  # keep the images small
        resized = Resize(shorter)(image)
        assert view.resized == resized.size
        # Mark the pixel that the view says is its first: the crop must begin there.
        marked = Image.new("L", resized.size)
        marked.putpixel(view.window, 255)
        assert np.asarray(CenterCrop(size)(marked))[0, 0] == 255


@pytest.mark.parametrize(
    ("width", "height", "resized", "window"),
    [
        (500, 375, (341, 256), (58, 16)),  # int(256 / 375 * 500 + 0.5)
        (375, 500, (256, 341), (16, 58)),
        (500, 333, (384, 256), (80, 16)),  # torchvision truncates the same 384.38 to 384
        (500, 332, (386, 256), (81, 16)),  # 385.54: torchvision has 385
        (256, 256, (256, 256), (16, 16)),
    ],
)
def test_spos_evaluation_rounds_as_the_official_code(
    width: int, height: int, resized: tuple[int, int], window: tuple[int, int]
) -> None:
    rule = ViewRule("none", "spos", 224, 0)
    view = draw_view(rule, epoch=0, index=0, width=width, height=height)
    assert (view.resized, view.window) == (resized, window)
    assert not rule.antialias
    assert ViewRule("none", "standard", 224, 0).antialias
    assert ViewRule("paper", "spos", 224, 0).antialias


@pytest.mark.parametrize(("size", "shorter"), [(32, 32), (64, 64), (96, 110), (224, 256)])
def test_small_views_have_no_margin(size: int, shorter: int) -> None:
    view = draw_view(ViewRule("none", "standard", size, 0), epoch=0, index=0, width=99, height=99)
    assert view.resized == (shorter, shorter)


def test_evaluation_views_never_vary() -> None:
    assert len(set(draw_many(ViewRule("none", "standard", 32, 0), 50, 40, 60))) == 1


def test_random_boxes_are_distributed_as_torchvisions() -> None:
    """Two-sample Kolmogorov-Smirnov on the boxes' areas, ratios and places, for a wide image."""
    count, width, height = 4000, 640, 400
    rule = ViewRule("paper", "standard", 224, 0)
    ours = np.array([view.box for view in draw_many(rule, count, width, height)])
    torch_state = torch.get_rng_state()
    torch.manual_seed(0)
    image = torch.empty(1, height, width)
    rows = [
        RandomResizedCrop.get_params(image, scale=[0.08, 1.0], ratio=[3 / 4, 4 / 3])
        for _ in range(count)
    ]
    torch.set_rng_state(torch_state)
    theirs = np.array(rows)[:, [1, 0, 3, 2]]  # top, left, height, width to our order
    for statistic in (
        lambda box: box[:, 2] * box[:, 3],
        lambda box: box[:, 2] / box[:, 3],
        lambda box: box[:, 0],
        lambda box: box[:, 1],
    ):
        assert largest_gap(statistic(ours), statistic(theirs)) < 0.044  # p = 0.001
    areas = ours[:, 2] * ours[:, 3] / (width * height)
    assert 0.078 < areas.min() < 0.09  # sides are whole pixels
    assert areas.max() <= 1


def largest_gap(ours: np.ndarray, theirs: np.ndarray) -> float:
    grid = np.sort(np.concatenate([ours, theirs]))
    shares = (
        np.searchsorted(np.sort(each), grid, side="right") / len(each) for each in (ours, theirs)
    )
    first, second = shares
    return float(np.abs(first - second).max())


def test_very_long_images_give_their_centre() -> None:
    """No random box fits into a strip; then the box has the nearest ratio, as in torchvision."""
    rule = ViewRule("paper", "standard", 32, 0)
    assert draw_view(rule, epoch=0, index=0, width=1000, height=10).box == (493, 0, 13, 10)
    assert draw_view(rule, epoch=0, index=0, width=10, height=1000).box == (0, 493, 10, 13)
    assert draw_view(rule, epoch=0, index=0, width=1, height=1).box == (0, 0, 1, 1)


@pytest.mark.parametrize(("name", "rate"), [("paper", 0.5), ("crop-flip", 0.5), ("crop", 0.0)])
def test_half_of_the_views_are_mirrored(name: str, rate: float) -> None:
    views = draw_many(ViewRule(name, "standard", 32, 1), 4000, 40, 40)
    assert sum(view.flip for view in views) / 4000 == pytest.approx(rate, abs=0.03 * (rate > 0))


def test_colours_vary_by_two_fifths() -> None:
    views = draw_many(ViewRule("paper", "standard", 224, 0), 4000, 300, 200)
    factors = np.array([view.jitter for view in views])
    assert factors.min() >= 0.6
    assert factors.max() <= 1.4
    assert np.abs(factors.mean(0) - 1).max() < 0.015  # four standard deviations
    assert np.abs(np.corrcoef(factors.T) - np.eye(3)).max() < 0.06


def test_small_images_move_by_an_eighth() -> None:
    views = draw_many(ViewRule("crop", "standard", 32, 0), 4000, 32, 32)
    shifts = np.array([view.window for view in views])
    counts = [np.unique(column, return_counts=True) for column in shifts.T]
    for values, times in counts:
        assert values.tolist() == list(range(-4, 5))
        assert np.abs(times / 4000 - 1 / 9).max() < 0.025
    assert {view.jitter for view in views} == {(1.0, 1.0, 1.0)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mirror", "standard", 32, 0), "augmentation 'mirror' is unknown; .*crop-flip"),
        (("none", "bgr", 32, 0), "preprocessing 'bgr' is unknown"),
        (("none", "spos", 0, 0), "image size 0"),
        (("none", "spos", 32.5, 0), "image size 32.5"),
        (("none", "spos", 32, -1), "seed -1"),
    ],
)
def test_unknown_rules_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ViewRule(*arguments)


def test_drawing_views_needs_no_torch() -> None:
    modules = "folder split digits check augmentation schedule decode counter_random".split()
    imports = ", ".join(f"spos.data.{name}" for name in modules)
    code = f"import sys, {imports}, spos.commands.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
