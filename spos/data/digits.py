"""The embedded data set: scikit-learn's handwritten digits, written once as JPEG class folders.

Imports only `spos.errors` and the folder, split and making of folders of this package.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from spos.data.folder import DataFolder, open_data, scan_folder
from spos.data.split import make_split, save_split
from spos.data.whole_folder import make_folder
from spos.errors import ConfigError, DataError

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
    digit held out of training). A kill leaves nothing half-written, and several processes may ask
    at once (see `make_folder`).

    Raises:
        DataError: if something else is at ``folder``, images are missing, or it is not writable.
        ConfigError: if scikit-learn is not installed.
    """
    return make_folder(folder, holds="the digits", check=_check_digits, write=_write_digits)


def is_digits(data: DataFolder) -> bool:
    """Whether a data set is the one that `prepare_digits` writes."""
    is_ten = data.train.classes == tuple(str(digit) for digit in range(10))
    return is_ten and len(data.train) + len(data.test) == NUM_IMAGES


def _check_digits(folder: Path) -> None:
    data = open_data(folder)
    found = len(data.train) + len(data.test)
    if found != NUM_IMAGES or not (folder / "split.json").is_file():
        raise DataError(f"expected {NUM_IMAGES} images and split.json, found {found} images")


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
