"""A data set as a folder of class folders: scanning it into an `ImageSet`.

Imports only `spos.errors`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from spos.errors import DataError

# torchvision's `IMG_EXTENSIONS`, so that the two agree on what an ImageFolder holds.
IMAGE_EXTENSIONS = (
    ".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp",
)  # fmt: skip
_SCAN_THREADS = 8  # listing folders waits for the disk or the network, not for the processor


@dataclass(frozen=True)
class ImageSet:
    """Labelled image files in a fixed order.

    Attributes:
        root: the folder that holds the class folders.
        paths: files relative to ``root``, with forward slashes.
        labels: for each path the index of its class in ``classes``.
        classes: names of the class folders, sorted.
    """

    root: Path
    paths: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class DataFolder:
    """A data set: training images, and the test images that a final result is measured on."""

    train: ImageSet
    test: ImageSet
    name: str


def open_data(data_dir: Path | str) -> DataFolder:
    """Scan ``data_dir/train`` and ``data_dir/val`` (or, without it, ``data_dir/test``).

    Raises:
        DataError: if a folder is missing, holds no classes, a class holds no images, or the test
            classes are not the training classes.
    """
    data_dir = Path(data_dir)
    if not data_dir.is_dir():
        raise DataError(f"{data_dir}: is not a folder; expected a data set with train/ and val/")
    train_dir = data_dir / "train"
    test_dir = next(
        (data_dir / name for name in ("val", "test") if (data_dir / name).is_dir()), None
    )
    if not train_dir.is_dir() or test_dir is None:
        missing = "train/<class>/" if not train_dir.is_dir() else "val/<class>/ (or test/<class>/)"
        raise DataError(
            f"{data_dir}: has no {missing}; a data set is a folder with train/<class>/*.jpg and "
            "val/<class>/*.jpg (or test/<class>/*.jpg)"
        )
    train, test = scan_folder(train_dir), scan_folder(test_dir)
    if train.classes != test.classes:
        raise DataError(
            f"{test_dir}: its classes are not those of {train_dir}: "
            f"{_describe('only in training', set(train.classes) - set(test.classes))}"
            f"{_describe('only in test', set(test.classes) - set(train.classes))}"
            "both must hold the same class folders"
        )
    return DataFolder(train=train, test=test, name=data_dir.resolve().name)


def scan_folder(root: Path | str) -> ImageSet:
    """All images below the class folders of ``root``; class ids follow the sorted folder names.

    Files are those with one of `IMAGE_EXTENSIONS`, at any depth of the class folder, sorted by
    their relative path. Names that begin with a dot are passed over.

    Raises:
        DataError: if the folder is missing, has no class folders, or one of them has no images.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: is not a folder; expected one with a folder for each class")
    with os.scandir(root) as entries:
        classes = sorted(
            entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()
        )
    if not classes:
        raise DataError(f"{root}: has no class folders; expected {root}/<class>/*.jpg")
    with ThreadPoolExecutor(_SCAN_THREADS) as pool:
        files = list(pool.map(lambda name: sorted(find_images(root, name)), classes))
    for name, found in zip(classes, files, strict=True):
        if not found:
            raise DataError(
                f"{root / name}: a class folder without images (of {' '.join(IMAGE_EXTENSIONS)}); "
                "add images or remove the folder"
            )
    return ImageSet(
        root=root,
        paths=tuple(path for found in files for path in found),
        labels=tuple(label for label, found in enumerate(files) for _ in found),
        classes=tuple(classes),
    )


def find_images(root: Path, folder: str = "") -> Iterator[str]:
    """Paths of the image files below ``root/folder``, relative to ``root``, in no order.

    Raises:
        DataError: if a folder cannot be listed.
    """
    prefix = f"{folder}/" if folder else ""
    try:
        with os.scandir(root / folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    yield from find_images(root, prefix + entry.name)
                elif entry.name.lower().endswith(IMAGE_EXTENSIONS):
                    yield prefix + entry.name
    except OSError as problem:
        raise DataError(
            f"{root / folder}: cannot be listed ({problem.strerror or problem})"
        ) from None


def select_images(images: ImageSet, indices: Iterable[int]) -> ImageSet:
    """The images at ``indices``, in that order; the classes stay."""
    chosen = [int(index) for index in indices]
    return replace(
        images,
        paths=tuple(images.paths[index] for index in chosen),
        labels=tuple(images.labels[index] for index in chosen),
    )


def _describe(what: str, names: set[str]) -> str:
    if not names:
        return ""
    shown = ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")
    return f"{what}: {shown}; "
