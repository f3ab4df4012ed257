"""A data set as a folder of class folders: scanning it into an `ImageSet`.

Imports only `spos.errors` and the index of this package.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from spos.data.index import ClassListing, Listing, change_time, find_current, keep_index
from spos.errors import DataError

# torchvision's `IMG_EXTENSIONS`, so that the two agree on what an ImageFolder holds.
IMAGE_EXTENSIONS = (
    ".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp",
)  # fmt: skip
_SCAN_THREADS = 8  # listing folders waits for the disk or the network, not for the processor
INDEXED_IMAGES = 100_000  # from so many on a list is kept; fewer are listed in half a second
_HASHED = 10_000  # names that are joined at a time


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


def open_data(data_dir: Path | str, *, index_dir: Path | None = None) -> DataFolder:
    """Scan ``data_dir/train`` and ``data_dir/val`` (or, without it, ``data_dir/test``).

    The list of a large set is kept as ``data_dir/.spos-train.json`` (``.spos-val.json``, ...), and
    read instead for as long as none of its folders has changed.

    Args:
        data_dir: the data set.
        index_dir: a folder for such a list if ``data_dir`` cannot be written.

    Raises:
        DataError: if a folder is missing, holds no classes, a class holds no images, or the test
            classes are not the training classes.
    """
    data_dir = Path(data_dir)
    if not data_dir.is_dir():
        raise DataError(f"{data_dir}: is not a folder; expected a data set with train/ and val/")
    train_dir, test_dir = data_dir / "train", find_test(data_dir)
    if not train_dir.is_dir() or test_dir is None:
        missing = "train/<class>/" if not train_dir.is_dir() else "val/<class>/ (or test/<class>/)"
        raise DataError(
            f"{data_dir}: has no {missing}; a data set is a folder with train/<class>/*.jpg and "
            "val/<class>/*.jpg (or test/<class>/*.jpg); `python -m spos data arrange "
            f"{shlex.quote(str(data_dir))} NEW` makes one of <class>/*.jpg or train/<class>/*.jpg"
        )
    places = [data_dir, index_dir] if index_dir else [data_dir]
    train, test = (
        scan_folder(root, indexes=[place / f".spos-{root.name}.json" for place in places])
        for root in (train_dir, test_dir)
    )
    if train.classes != test.classes:
        raise DataError(
            f"{test_dir}: its classes are not those of {train_dir}: "
            f"{_describe('only in training', set(train.classes) - set(test.classes))}"
            f"{_describe('only in test', set(test.classes) - set(train.classes))}"
            "both must hold the same class folders"
        )
    return DataFolder(train=train, test=test, name=data_dir.resolve().name)


def open_test_images(data_dir: Path | str) -> ImageSet:
    """Scan ``data_dir/val``, without it ``data_dir/test``, without either ``data_dir`` itself.

    Raises:
        DataError: if there is no such folder, it holds no classes, or a class holds no images.
    """
    data_dir = Path(data_dir)
    test_dir = find_test(data_dir)
    if test_dir is None:
        return scan_folder(data_dir)
    return scan_folder(test_dir, indexes=[data_dir / f".spos-{test_dir.name}.json"])


def find_test(data_dir: Path) -> Path | None:
    """Where a data set has its test images: ``val``, without it ``test``; None without either."""
    folders = (data_dir / name for name in ("val", "test"))
    return next((folder for folder in folders if folder.is_dir()), None)


def scan_folder(root: Path | str, *, indexes: Sequence[Path] = ()) -> ImageSet:
    """All images below the class folders of ``root``; class ids follow the sorted folder names.

    Files are those with one of `IMAGE_EXTENSIONS`, at any depth of the class folder, sorted by
    their relative path. Names that begin with a dot are passed over.

    Args:
        root: the folder that holds the class folders.
        indexes: where a list of them may be kept (see `spos.data.index`), the best place first.

    Raises:
        DataError: if the folder is missing, has no class folders, or one of them has no images.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: is not a folder; expected one with a folder for each class")
    listing = find_current(root, indexes)
    if listing is None:
        listing = _list_classes(root)
        if sum(len(found.files) for found in listing.classes.values()) >= INDEXED_IMAGES:
            keep_index(indexes, listing)
    return ImageSet(
        root=root,
        paths=tuple(
            f"{name}/{file}" for name, found in listing.classes.items() for file in found.files
        ),
        labels=tuple(
            label for label, found in enumerate(listing.classes.values()) for _ in found.files
        ),
        classes=tuple(listing.classes),
    )


def _list_classes(root: Path) -> Listing:
    changed_ns = change_time(root)  # before it is listed: a later change must be noticed
    classes = list_folders(root)
    if not classes:
        raise DataError(f"{root}: has no class folders; expected {root}/<class>/*.jpg")
    with ThreadPoolExecutor(_SCAN_THREADS) as pool:
        found = list(pool.map(lambda name: _list_class(root / name), classes))
    for name, each in zip(classes, found, strict=True):
        if not each.files:
            raise DataError(
                f"{root / name}: a class folder without images (of {' '.join(IMAGE_EXTENSIONS)}); "
                "add images or remove the folder"
            )
    return Listing(changed_ns, dict(zip(classes, found, strict=True)))


def _list_class(folder: Path) -> ClassListing:
    folders: dict[str, int] = {}
    files = tuple(sorted(find_images(folder, listed=folders)))
    return ClassListing(folders, files)


def list_folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted, without those that begin with a dot.

    Raises:
        DataError: naming a link that leads nowhere, such as to itself.
    """
    with os.scandir(folder) as entries:
        return sorted(
            entry.name for entry in entries if not entry.name.startswith(".") and _is_folder(entry)
        )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError as problem:
        raise DataError(
            f"{entry.path}: cannot be followed ({problem.strerror or problem}); mend or remove the "
            "link"
        ) from None


def find_images(
    root: Path,
    folder: str = "",
    *,
    listed: dict[str, int] | None = None,
    passed_over: list[str] | None = None,
) -> Iterator[str]:
    """Paths of the image files below ``root/folder``, relative to ``root``, in no order.

    Args:
        root: what the paths are relative to.
        folder: where to look.
        listed: is given every folder that was listed, with the time of its last change before.
        passed_over: is given the other files, but for those whose names begin with a dot.

    Raises:
        DataError: if a folder cannot be listed, or a link leads nowhere.
    """
    prefix = f"{folder}/" if folder else ""
    try:
        if listed is not None:
            listed[folder] = change_time(root / folder)
        with os.scandir(root / folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    yield from find_images(
                        root, prefix + entry.name, listed=listed, passed_over=passed_over
                    )
                elif entry.name.lower().endswith(IMAGE_EXTENSIONS):
                    yield prefix + entry.name
                elif passed_over is not None:
                    passed_over.append(prefix + entry.name)
    except OSError as problem:
        raise DataError(
            f"{root / folder}: cannot be listed ({problem.strerror or problem})"
        ) from None


def names_id(images: ImageSet) -> str:
    """Twelve hexadecimal digits that tell which files these are, by their names, and their order.

    Takes about a second for ten million files.
    """
    sha256 = hashlib.sha256()
    for start in range(0, len(images), _HASHED):
        names = "".join(f"{path}\0" for path in images.paths[start : start + _HASHED])
        sha256.update(os.fsencode(names))
    return sha256.hexdigest()[:12]


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
