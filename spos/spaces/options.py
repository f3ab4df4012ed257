"""What the options of our own spaces may be, and how often images of a size are halved.

Imports `spos.errors`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from spos.errors import ConfigError

IMAGE_SIZES = (8, 4096)
MAX_CLASSES = 1_000_000
MAX_WIDTH = 65_536
OUTPUT_STRIDES = (2, 4, 8, 16, 32)
NUM_HALVINGS = ((128, 5), (64, 4), (16, 3), (8, 2))  # from this image size on, this many


def strides(
    image_size: int, num_layers: int = 5, *, output_stride: int | None = None
) -> tuple[int, ...]:
    """Strides of the layers that may halve the map of a square image, the stem first.

    A small image is halved fewer times (`NUM_HALVINGS`), and the earliest layers lose their stride
    first: 64 is halved four times, 32 or 28 three times, to 4 x 4. An ``output_stride``, which all
    of them together come to, is kept at every size.

    >>> strides(224), strides(32), strides(32, output_stride=16)
    ((2, 2, 2, 2, 2), (1, 1, 2, 2, 2), (1, 2, 2, 2, 2))
    """
    if output_stride is None:
        num_halvings = max(number for size, number in NUM_HALVINGS if image_size >= size)
        num_halvings = min(num_halvings, num_layers)
    else:
        num_halvings = OUTPUT_STRIDES.index(output_stride) + 1
    return (1,) * (num_layers - num_halvings) + (2,) * num_halvings


def check_images(space: str, image_size: object, num_classes: object) -> None:
    """Refuse what no space of ours can be built for.

    Raises:
        ConfigError: naming the space, the option and its range.
    """
    check_integer(space, "image_size", image_size, *IMAGE_SIZES)
    check_integer(space, "num_classes", num_classes, 1, MAX_CLASSES)


def check_integer(space: str, name: str, value: object, low: int, high: int) -> None:
    """Refuse anything but an integer from ``low`` to ``high``."""
    if type(value) is not int or not low <= value <= high:
        raise ConfigError(f"{space}: {name} is {value!r}, expected an integer from {low} to {high}")


def check_choice(space: str, name: str, value: object, known: Collection[object]) -> None:
    """Refuse anything but one of ``known``."""
    if isinstance(value, (list, dict)) or value not in known:
        shown = ", ".join("null" if each is None else str(each) for each in known)
        raise ConfigError(f"{space}: {name} is {value!r}, expected one of {shown}")


def check_flag(space: str, name: str, value: object) -> None:
    """Refuse anything but true and false."""
    if type(value) is not bool:
        raise ConfigError(f"{space}: {name} is {value!r}, expected true or false")


def check_fraction(space: str, name: str, value: Any) -> None:
    """Refuse anything but a number from 0 to less than 1."""
    if type(value) not in (int, float) or not 0 <= value < 1:
        raise ConfigError(f"{space}: {name} is {value!r}, expected a number from 0 to less than 1")


def check_list(space: str, name: str, value: Any, *, length: int | None = None) -> None:
    """Refuse anything but a list that is not empty, of ``length`` entries if given."""
    is_list = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    if not is_list or not value or length not in (None, len(value)):
        expected = "a list" if length is None else f"a list of {length} numbers"
        raise ConfigError(f"{space}: {name} is {value!r}, expected {expected}")
