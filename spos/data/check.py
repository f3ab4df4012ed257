"""Finding image files that cannot be decoded, before a training run meets them.

Imports only `spos.errors` and the folder and decoding of this package.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from spos.data.decode import BadImage, load_rgb
from spos.data.folder import IMAGE_EXTENSIONS, find_images
from spos.errors import DataError

_CHUNK = 1024  # files handed to the threads at a time


def list_images(root: Path | str) -> list[str]:
    """All image files below ``root``, whatever its layout, relative to it and sorted.

    Raises:
        DataError: if it is not a folder or holds no images.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: is not a folder; expected one that holds images")
    paths = sorted(find_images(root))
    if not paths:
        raise DataError(f"{root}: holds no images (of {' '.join(IMAGE_EXTENSIONS)})")
    return paths


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
