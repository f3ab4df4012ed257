"""How an image becomes a training or evaluation view: drawn here once, carried out by both loaders.

Imports only `spos.errors` and the random numbers of this package; never torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from spos.data.counter_random import Stream, check_seed, random_uniforms
from spos.errors import ConfigError

AUGMENTATIONS = {
    "paper": "random resized crop, colour jitter 0.4, flip (Guo et al. 2020; photographs)",
    "crop-flip": "shift by up to 1/8, flip (small photographs)",
    "crop": "shift by up to 1/8 (digits, text: whatever a mirror would make wrong)",
    "none": "the evaluation view: resize, centre crop",
}
RESIZE_RULES = ("standard", "spos")
SMALL_IMAGE = 64
_JITTER = 0.4
_AREA = (0.08, 1.0)
_RATIO = (3 / 4, 4 / 3)
_TRIES = 10
_NUM_UNIFORMS = 2 * _TRIES + 6


@dataclass(frozen=True)
class View:
    """What to do with one decoded image; all in whole pixels.

    Attributes:
        box: left, top, width and height of the part of the image that is used.
        resized: width and height to which that part is resized.
        window: left and top of the view within the resized part; what lies outside is black.
        flip: whether to mirror the view, left to right.
        jitter: factors of brightness, contrast and saturation, applied in this order.
    """

    box: tuple[int, int, int, int]
    resized: tuple[int, int]
    window: tuple[int, int]
    flip: bool = False
    jitter: tuple[float, float, float] = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class ViewRule:
    """How views are drawn.

    Attributes:
        augmentation: one of `AUGMENTATIONS`.
        resize_rule: one of `RESIZE_RULES`; decides the resizing of the evaluation view.
        image_size: width and height of a view.
        seed: of the random numbers.

    Raises:
        ConfigError: if one of them is unknown or out of range.
    """

    augmentation: str
    resize_rule: str
    image_size: int
    seed: int

    def __post_init__(self) -> None:
        for what, value, known in (
            ("augmentation", self.augmentation, tuple(AUGMENTATIONS)),
            ("preprocessing", self.resize_rule, RESIZE_RULES),
        ):
            if value not in known:
                raise ConfigError(f"{what} {value!r} is unknown; choose one of {', '.join(known)}")
        if type(self.image_size) is not int or not 1 <= self.image_size <= 4096:
            raise ConfigError(f"image size {self.image_size!r}: expected an integer, 1 to 4096")
        check_seed(self.seed)

    @property
    def antialias(self) -> bool:
        """Whether resizing averages all the pixels it covers; OpenCV's, alone, does not."""
        return not (self.augmentation == "none" and self.resize_rule == "spos")

    @property
    def has_flip(self) -> bool:
        """Whether views may be mirrored."""
        return self.augmentation in ("paper", "crop-flip")

    @property
    def has_jitter(self) -> bool:
        """Whether the colours of views vary."""
        return self.augmentation == "paper"


def draw_view(rule: ViewRule, *, epoch: int, index: int, width: int, height: int) -> View:
    """The view of image ``index`` in ``epoch``: a pure function of its arguments.

    So an epoch is the same for any number of worker processes and for either loader, and training
    resumes exactly with no random state stored.

    Args:
        rule: how to draw.
        epoch: 0 upwards; without effect on evaluation views.
        index: the image's place in its data set.
        width: of the image, in pixels.
        height: of the image, in pixels.
    """
    if rule.augmentation == "none":
        return _evaluation_view(rule, width, height)
    uniforms = random_uniforms(
        _NUM_UNIFORMS, seed=rule.seed, stream=Stream.AUGMENTATION, counter=(epoch, index)
    ).tolist()
    crop, (left, top, flip, *jitter) = uniforms[: 2 * _TRIES], uniforms[2 * _TRIES :]
    flipped = rule.has_flip and flip < 0.5
    if rule.augmentation != "paper":
        return _shifted_view(rule, width, height, (left, top), flipped)
    return View(
        box=_random_box(width, height, crop, (left, top)),
        resized=(rule.image_size, rule.image_size),
        window=(0, 0),
        flip=flipped,
        jitter=(_factor(jitter[0]), _factor(jitter[1]), _factor(jitter[2])),
    )


def _evaluation_view(rule: ViewRule, width: int, height: int) -> View:
    """Resize so that the shorter side is 256/224 of the view, crop the centre.

    A view of at most `SMALL_IMAGE` pixels has no such margin: small data sets come in the size that
    they are used in, and a margin would blur them and cut off their edges.
    """
    size = rule.image_size
    shorter = size if size <= SMALL_IMAGE else round(size * 256 / 224)
    resized = _resized(rule.resize_rule, shorter, width, height)
    return View(
        box=(0, 0, width, height),
        resized=resized,
        window=(_centre(resized[0], size), _centre(resized[1], size)),
    )


def _resized(resize_rule: str, shorter: int, width: int, height: int) -> tuple[int, int]:
    """Width and height, the shorter side as given, the longer rounded as the rule's origin does.

    "standard" is torchvision's `Resize`; "spos" is the official code's resizing by OpenCV.
    """
    if resize_rule == "standard":
        longer = int(shorter * max(width, height) / min(width, height))
    else:
        longer = int(shorter / min(width, height) * max(width, height) + 0.5)
    return (shorter, longer) if width <= height else (longer, shorter)


def _centre(length: int, size: int) -> int:
    return round((length - size) / 2)  # half to even, as torchvision's CenterCrop


def _shifted_view(
    rule: ViewRule, width: int, height: int, shift: tuple[float, float], flip: bool
) -> View:
    """The whole image at the size of the view, moved by up to an eighth of it."""
    size = rule.image_size
    resized = _resized("standard", size, width, height)
    reach = size // 8
    dx, dy = (int(uniform * (2 * reach + 1)) - reach for uniform in shift)
    return View(
        box=(0, 0, width, height),
        resized=resized,
        window=(_centre(resized[0], size) + dx, _centre(resized[1], size) + dy),
        flip=flip,
    )


def _random_box(
    width: int, height: int, crop: list[float], place: tuple[float, float]
) -> tuple[int, int, int, int]:
    """A box of random area and aspect ratio, distributed as torchvision's RandomResizedCrop."""
    for area, ratio in zip(crop[::2], crop[1::2], strict=True):
        target = width * height * (_AREA[0] + area * (_AREA[1] - _AREA[0]))
        aspect = _RATIO[0] * (_RATIO[1] / _RATIO[0]) ** ratio
        box_width = round(math.sqrt(target * aspect))
        box_height = round(math.sqrt(target / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            left = int(place[0] * (width - box_width + 1))
            top = int(place[1] * (height - box_height + 1))
            return left, top, box_width, box_height
    # An image too elongated for any try: its centre, with the nearest allowed ratio.
    box_width = max(1, min(width, round(height * _RATIO[1])))
    box_height = max(1, min(height, round(width / _RATIO[0])))
    return (width - box_width) // 2, (height - box_height) // 2, box_width, box_height


def _factor(uniform: float) -> float:
    return 1 - _JITTER + 2 * _JITTER * uniform
