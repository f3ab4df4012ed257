"""Finding what is wrong with a folder of images, before a training run meets it.

Imports only `spos.errors` and the folder and decoding of this package.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from spos.data.decode import BadImage, load_rgb
from spos.data.folder import IMAGE_EXTENSIONS, find_images, find_test, list_folders
from spos.errors import DataError

_CHUNK = 1024  # files handed to the threads at a time


def list_images(root: Path | str, *, passed_over: list[str] | None = None) -> list[str]:
    """All image files below ``root``, whatever its layout, relative to it and sorted.

    Args:
        root: the folder.
        passed_over: is given the files of other extensions.

    Raises:
        DataError: if it is not a folder or holds no images.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: is not a folder; expected one that holds images")
    paths = sorted(find_images(root, passed_over=passed_over))
    if not paths:
        raise DataError(f"{root}: holds no images (of {' '.join(IMAGE_EXTENSIONS)})")
    return paths


def find_gaps(root: Path | str, paths: Sequence[str]) -> list[str]:
    """Class folders without images, and those of training or of test alone: a line for each.

    Args:
        root: a data set with ``train/``, a folder of class folders, or one of images, which has no
            classes.
        paths: its images, as from `list_images`.
    """
    root = Path(root)
    test = find_test(root)
    if not (root / "train").is_dir():
        is_flat = any("/" not in path for path in paths)
        return [] if is_flat else _find_empty(root, "", paths)
    parts = ["train", *([test.name] if test else [])]
    gaps = [line for part in parts for line in _find_empty(root, part, paths)]
    for part, other in zip(parts, reversed(parts), strict=True):
        gaps += [
            f"{root / part / name}: a class that {root / other} does not have"
            for name in sorted({*list_folders(root / part)} - {*list_folders(root / other)})
        ]
    return gaps


def _find_empty(root: Path, part: str, paths: Sequence[str]) -> list[str]:
    start = f"{part}/" if part else ""
    full = {path[len(start) :].split("/")[0] for path in paths if path.startswith(start)}
    return [
        f"{root / part / name}: a class folder without images"
        for name in list_folders(root / part)
        if name not in full
    ]


def check_images(
    root: Path | str, paths: list[str], *, num_workers: int | None = None
) -> Iterator[BadImage | None]:
    """Decode every file completely; yields, in the order of ``paths``, what is wrong or None.

    Empty and cut files, files that are no images and images of formats that a loader cannot decode
    are found. Grey and CMYK images, and files named after another format, are fine: they decode.

    Args:
        root: the folder that ``paths`` are relative to.
        paths: files, as from `list_images`.
        num_workers: threads (Pillow decodes without Python's lock); None for one per processor.
    """
    waiting = iter(paths)
    with ThreadPoolExecutor(num_workers or os.cpu_count()) as pool:
        while chunk := list(islice(waiting, _CHUNK)):
            yield from pool.map(lambda path: _check(Path(root), path), chunk)


def _check(root: Path, path: str) -> BadImage | None:
    result = load_rgb(root / path)
    return BadImage(path, result.reason) if isinstance(result, BadImage) else None
