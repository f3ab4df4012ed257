"""Which training images are held out of training, the file that says so, and balanced subsets.

Imports only `spos.errors`, `spos.files` and the folder and random numbers of this package.
"""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from spos.data.counter_random import Stream, check_seed, random_words
from spos.data.folder import ImageSet, select_images
from spos.errors import ConfigError, DataError
from spos.files import read_json, write_json

FORMAT_VERSION = 1
DEFAULT_PER_CLASS = 50  # held out of training
_KEYS = {"version", "seed", "per_class", "classes", "held_out"}


@dataclass(frozen=True)
class Split:
    """Images held out of training, on which candidates are compared.

    Attributes:
        held_out: paths relative to the training folder, sorted.
        classes: the data set's classes, sorted.
        per_class: how many images of each class are held out.
        seed: what the choice was drawn from.
    """

    held_out: tuple[str, ...]
    classes: tuple[str, ...]
    per_class: int
    seed: int


def default_per_class(train: ImageSet, *, wanted: int = DEFAULT_PER_CLASS) -> int:
    """How many images of each class to hold out where nobody says: ``wanted``, if that can be.

    Otherwise a fifth of the smallest class, at least one: most of it is left to train on. Where
    ``wanted`` is possible it stays, though it may be up to half of a class, because runs that were
    begun with it are only continued with the same images.
    """
    smallest = min(Counter(train.labels).values())
    return wanted if wanted <= _most_held_out(smallest) else max(1, smallest // 5)


def make_split(train: ImageSet, *, per_class: int = DEFAULT_PER_CLASS, seed: int = 0) -> Split:
    """Hold out ``per_class`` random images of each class.

    Differs from lliai's tool, which takes the first by name: names often follow the origin of the
    images, so that the first are not a fair sample.

    Raises:
        DataError: if ``per_class`` is not positive, or half of a class or more.
    """
    labels = np.array(train.labels)
    sizes = np.bincount(labels, minlength=len(train.classes))
    largest = _most_held_out(int(sizes.min()))
    if not 1 <= per_class <= largest:
        smallest = f"{train.classes[int(sizes.argmin())]!r} has {sizes.min()}"
        if largest < 1:
            raise DataError(
                f"{train.root}: cannot hold out images of each class: {smallest}, and it takes 3, "
                "of which one is held out; add images or remove the class folder"
            )
        raise DataError(
            f"{train.root}: cannot hold out {per_class} images of each class: it must be at least "
            f"1 and less than half of the smallest class ({smallest}), so at most {largest}"
        )
    grouped, ranks = _shuffled_within_class(labels, seed=seed, stream=Stream.SPLIT)
    held_out = sorted(train.paths[index] for index in grouped[ranks < per_class])
    return Split(tuple(held_out), classes=train.classes, per_class=per_class, seed=seed)


def apply_split(train: ImageSet, split: Split) -> tuple[ImageSet, ImageSet]:
    """The images to train on, and the held-out ones, each in the order of ``train``.

    Raises:
        DataError: if the split was made for other classes or names images that are not there.
    """
    if split.classes != train.classes:
        raise DataError(
            f"the split is of a data set with {len(split.classes)} classes "
            f"({', '.join(split.classes[:3])}, ...), but {train.root} has {len(train.classes)} "
            f"({', '.join(train.classes[:3])}, ...); make a new one with "
            f"`python -m spos data split {shlex.quote(str(train.root.parent))}`"
        )
    held_out = set(split.held_out)
    absent = held_out.difference(train.paths)
    if absent:
        raise DataError(
            f"the split holds out {len(absent)} images that are not in {train.root}, such as "
            f"{min(absent)!r}; restore them, or make a new split with "
            f"`python -m spos data split {shlex.quote(str(train.root.parent))}`"
        )
    return _divide(train, np.array([path in held_out for path in train.paths]))


def divide_classes(images: ImageSet, *, share: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """The images to train on and random test images, each class divided in the same proportion.

    Args:
        images: all of them; both parts keep their order.
        share: of test images in each class, to the nearest number, at least one and not all.
        seed: of the random choice.

    Raises:
        ConfigError: if the share is not between 0 and 1, or the seed out of range.
        DataError: if a class has fewer than two images.
    """
    if not 0 < share < 1:
        raise ConfigError(f"--test {share}: expected a share of the images, between 0 and 1")
    labels = np.array(images.labels)
    sizes = np.bincount(labels, minlength=len(images.classes))
    if small := [images.classes[label] for label in np.flatnonzero(sizes < 2)]:
        raise DataError(
            f"{images.root / small[0]}: has one image, but a class takes two, to train on and to "
            f"test ({len(small)} such classes); add images or remove the class folder"
        )
    counts = np.clip(np.rint(sizes * share).astype(int), 1, sizes - 1)
    grouped, ranks = _shuffled_within_class(labels, seed=seed, stream=Stream.TEST)
    is_test = np.zeros(len(images), bool)
    is_test[grouped[ranks < counts[labels[grouped]]]] = True
    return _divide(images, is_test)


def balanced_subset(images: ImageSet, *, count: int, seed: int) -> ImageSet:
    """``count`` random images, as evenly over the classes as the data set allows.

    The order deals one image of each class at a time, the classes in random order, so that every
    stretch of the subset is balanced too (a class-sorted calibration set sees a few classes only).

    Raises:
        DataError: if ``count`` is not between 1 and the number of images.
    """
    if not 1 <= count <= len(images):
        raise DataError(
            f"{images.root}: a subset of {count} images was asked for; it must have 1 to "
            f"{len(images)}, the number of images there"
        )
    grouped, ranks = _shuffled_within_class(
        np.array(images.labels), seed=seed, stream=Stream.SUBSET
    )
    ties = random_words(len(images), seed=seed, stream=Stream.SUBSET, counter=(1, 0))
    return select_images(images, grouped[np.lexsort((ties, ranks))][:count])


def save_split(path: Path | str, split: Split) -> None:
    """Write a split as JSON, atomically."""
    value = {
        "version": FORMAT_VERSION,
        "seed": split.seed,
        "per_class": split.per_class,
        "classes": list(split.classes),
        "held_out": list(split.held_out),
    }
    write_json(path, value)


def load_split(path: Path | str) -> Split:
    """Read a split.

    Raises:
        DataError: if the file is missing, is not a split, or names files outside the data set.
    """
    value = read_json(path, error=DataError, max_bytes=2**30)
    if not isinstance(value, dict) or set(value) != _KEYS or value["version"] != FORMAT_VERSION:
        raise DataError(
            f"{path}: is not a split of version {FORMAT_VERSION}, which has the keys "
            f"{', '.join(sorted(_KEYS))}; make one with `python -m spos data split`"
        )
    if type(value["per_class"]) is not int or type(value["seed"]) is not int:
        raise DataError(f"{path}: seed and per_class must be integers")
    check_seed(value["seed"])
    classes, held_out = (
        _sorted_texts(value[key], f"{path}: {key}") for key in ("classes", "held_out")
    )
    known = set(classes)
    for name in held_out:
        folder, _, file = name.partition("/")
        if folder not in known or not file or not _is_inside(name):
            raise DataError(
                f"{path}: held_out: {name!r} is not a relative path <class>/<file> inside the "
                "training folder"
            )
    return Split(held_out, classes=classes, per_class=value["per_class"], seed=value["seed"])


def _divide(images: ImageSet, is_second: np.ndarray) -> tuple[ImageSet, ImageSet]:
    """The images of which that is false, and those of which it is true, in their order."""
    first, second = (np.flatnonzero(each) for each in (~is_second, is_second))
    return select_images(images, first), select_images(images, second)


def _most_held_out(smallest: int) -> int:
    """Less than half of a class."""
    return (smallest - 1) // 2


def _shuffled_within_class(
    labels: np.ndarray, *, seed: int, stream: Stream
) -> tuple[np.ndarray, np.ndarray]:
    """Indices grouped by class, each class in random order, and each one's rank in its class."""
    check_seed(seed)
    grouped = np.lexsort((random_words(len(labels), seed=seed, stream=stream), labels))
    starts = np.searchsorted(labels[grouped], labels[grouped])
    return grouped, np.arange(len(labels)) - starts


def _sorted_texts(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or any(type(each) is not str for each in value):
        raise DataError(f"{where}: expected a list of texts that is not empty")
    if sorted(set(value)) != value:
        raise DataError(f"{where}: expected sorted texts without repetition")
    return tuple(value)


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return (
        not path.is_absolute() and ".." not in path.parts and str(path) == name and "\0" not in name
    )
