"""The embedded data set: scikit-learn's handwritten digits, written once as JPEG class folders.

Imports only `spos.errors`, `spos.files` and the folder, split and random numbers of this package.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from spos.data.folder import DataFolder, open_data, scan_folder
from spos.data.split import make_split, save_split
from spos.errors import ConfigError, DataError
from spos.files import lock_file

IMAGE_SIZE = 32
NUM_IMAGES = 1797
TEST_PER_CLASS = 30
HELD_OUT_PER_CLASS = 25
SEED = 0
_JPEG_QUALITY = 95


def prepare_digits(folder: Path | str) -> Path:
    """Write the digits to ``folder`` unless they are there, and return it.

    1,797 real 8x8 images of handwritten digits (Alpaydin and Kaynak 1998), enlarged to 32x32 grey
    JPEGs: ``train/<digit>/``, ``test/<digit>/`` (30 of each digit) and ``split.json`` (25 of each
    digit held out of training). They are built in a folder beside it and renamed, under a lock, so
    that a kill leaves nothing half-written and several processes may ask at once.

    Raises:
        DataError: if something else is at ``folder``, images are missing, or it is not writable.
        ConfigError: if scikit-learn is not installed.
    """
    folder = Path(folder)
    if _is_complete(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with lock_file(folder.parent / f".{folder.name}.lock"):
            if not _is_complete(folder):  # else another process was faster
                _build(folder)
    except OSError as problem:
        raise DataError(
            f"{folder}: the digits cannot be written there ({problem.strerror or problem}); "
            "name a folder on a disk with space, where you may write"
        ) from None
    return folder


def is_digits(data: DataFolder) -> bool:
    """Whether a data set is the one that `prepare_digits` writes."""
    is_ten = data.train.classes == tuple(str(digit) for digit in range(10))
    return is_ten and len(data.train) + len(data.test) == NUM_IMAGES


def _is_complete(folder: Path) -> bool:
    if not os.path.lexists(folder):
        return False
    advice = "remove it, or name another folder"
    if not folder.is_dir():
        raise DataError(f"{folder}: is not a folder; {advice}")
    if not any(folder.iterdir()):
        return False
    try:
        data = open_data(folder)
    except DataError as problem:
        raise DataError(f"{folder}: does not hold the digits ({problem}); {advice}") from None
    found = len(data.train) + len(data.test)
    if found != NUM_IMAGES or not (folder / "split.json").is_file():
        raise DataError(
            f"{folder}: does not hold the digits: expected {NUM_IMAGES} images and split.json, "
            f"found {found} images; {advice}"
        )
    return True


def _build(folder: Path) -> None:
    partial = folder.parent / f".{folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed process
    try:
        _write_digits(partial)
        os.rename(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_digits(folder: Path) -> None:
    train, test = folder / "train", folder / "test"
    for part in (train, test):
        for digit in range(10):
            (part / str(digit)).mkdir(parents=True)
    for index, (image, digit) in enumerate(zip(*_load_digits(), strict=True)):
        image.save(train / str(digit) / f"{index:04d}.jpg", quality=_JPEG_QUALITY)
    for path in make_split(scan_folder(train), per_class=TEST_PER_CLASS, seed=SEED).held_out:
        os.rename(train / path, test / path)
    split = make_split(scan_folder(train), per_class=HELD_OUT_PER_CLASS, seed=SEED)
    save_split(folder / "split.json", split)


def _load_digits() -> tuple[list[Image.Image], list[int]]:
    try:
        from sklearn.datasets import load_digits  # a second to import
    except ImportError:
        raise ConfigError(
            "the embedded data set comes from scikit-learn, which is not installed; "
            "run `pip install scikit-learn`, or give a data set of your own"
        ) from None
    digits: Any = load_digits()
    images = [_enlarge(pixels) for pixels in digits.images]
    return images, [int(digit) for digit in digits.target]


def _enlarge(pixels: np.ndarray) -> Image.Image:
    small = Image.fromarray(np.round(pixels * (255 / 16)).astype(np.uint8))  # they are 0..16
    return small.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
