"""Own images as a data set: class folders divided into training and test images, by links.

Imports only `spos.errors` and the folder, split and making of folders of this package.
"""

from __future__ import annotations

import functools
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from tqdm import tqdm

from spos.data.folder import DataFolder, ImageSet, find_images, open_data, scan_folder
from spos.data.split import divide_classes
from spos.data.whole_folder import make_folder
from spos.errors import DataError


def arrange_images(
    source: Path | str,
    folder: Path | str,
    *,
    test_share: float = 0.15,
    seed: int = 0,
    copy: bool = False,
) -> DataFolder:
    """Make the data set ``folder`` of the images of ``source``, and open it.

    ``folder`` gets ``train/<class>/`` and ``test/<class>/``; below a class, files keep their names
    and folders. It appears whole or not at all, and is left alone if it is there already. No image
    is read but to copy it.

    Args:
        source: a folder of class folders, or one whose ``train/`` is that and which has no test
            images.
        folder: what to make; outside ``source``.
        test_share: of the images of each class (see `divide_classes`).
        seed: what the test images are drawn from; the order of the file system does not matter.
        copy: copy the files. Otherwise they are links, relative to their place, so that they hold
            for as long as ``source`` and ``folder`` are moved, or mounted elsewhere, together.

    Raises:
        DataError: if ``source`` is no such folder, has a single class or a class with one image,
            if ``folder`` holds something else or lies in ``source``, or a file cannot be written.
        ConfigError: if ``test_share`` or ``seed`` is out of range.
    """
    source, folder = Path(source), Path(folder)
    if folder.resolve().is_relative_to(source.resolve()):
        raise DataError(
            f"{folder}: lies in {source}, whose folders are the classes; name one outside it"
        )
    images = scan_folder(_find_classes(source))
    if len(images.classes) < 2:
        raise DataError(
            f"{source}: has a single class folder, {''.join(images.classes)!r}; expected several, "
            "<class>/*.jpg or train/<class>/*.jpg"
        )
    train, test = divide_classes(images, share=test_share, seed=seed)
    parts = {"train": train, "test": test}
    make_folder(
        folder,
        holds=f"the images of {source}, divided by --test {test_share:g} --seed {seed}",
        check=functools.partial(_check_folder, parts, copy=copy),
        write=functools.partial(_write_folder, parts, copy=copy),
    )
    return open_data(folder)


def _find_classes(source: Path) -> Path:
    """Where the class folders are; a ``train/`` with no images in folders is a class itself."""
    train = source / "train"
    if not train.is_dir() or not any("/" in path for path in find_images(train)):
        return source
    for name in ("val", "test"):
        if (source / name).is_dir():
            raise DataError(
                f"{source}: has train/ and {name}/ already; use it as it is "
                f"(--data-dir {shlex.quote(str(source))})"
            )
    return train


def _check_folder(parts: Mapping[str, ImageSet], place: Path, *, copy: bool) -> None:
    for name, part in parts.items():
        if scan_folder(place / name).paths != part.paths:
            raise DataError(f"{place / name} holds other files")
    for file, target in _list_files(parts, place):
        found = os.readlink(target) if target.is_symlink() else None
        if found != (None if copy else _link(file, target)):
            raise DataError(f"{target} is not a {'copy' if copy else 'link'} of {file}")


def _write_folder(parts: Mapping[str, ImageSet], place: Path, *, copy: bool) -> None:
    files, total = _list_files(parts, place), sum(map(len, parts.values()))
    for file, target in tqdm(files, total=total, unit=" images", disable=None):
        target.parent.mkdir(parents=True, exist_ok=True)
        _place(file, target, copy=copy)


def _list_files(parts: Mapping[str, ImageSet], place: Path) -> Iterator[tuple[Path, Path]]:
    """Each file, and where it belongs in the data set ``place``."""
    for name, images in parts.items():
        root = images.root.resolve()
        for path in images.paths:
            yield root / path, place / name / path


def _link(file: Path, target: Path) -> str:
    return os.path.relpath(file, target.parent)


def _place(file: Path, target: Path, *, copy: bool) -> None:
    try:
        if copy:
            shutil.copyfile(file, target)
        else:
            os.symlink(_link(file, target), target)
    except OSError as problem:
        raise DataError(
            f"{file}: cannot be {'copied' if copy else 'linked'} to {target.parent} "
            f"({problem.strerror or problem})"
            + ("" if copy else "; where the disk has no links, use --copy")
        ) from None
