"""The real images that a network is checked and calibrated on, prepared as for its evaluation.

Imports `spos.data`, `spos.errors`, `spos.evaluation` and torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spos.data.augmentation import ViewRule, draw_view
from spos.data.decode import BadImage, load_rgb
from spos.data.folder import DataFolder, ImageSet, open_data
from spos.data.loader import build_loader
from spos.data.split import balanced_subset
from spos.data.torch_loader import render_view
from spos.errors import DataError
from spos.evaluation.evaluator import ImageBatches

TEST_BATCH = 64
CALIBRATION_BATCH = 16
SEED = 0


def open_images(network: Any, data_dir: Path | str) -> DataFolder:
    """The data set in ``data_dir``, if it is of the network's classes.

    Args:
        network: of `spos.deploy.networks.open_network`.
        data_dir: a folder with ``train`` and ``val`` or ``test``.

    Raises:
        DataError: if the folder is no data set, or one of other classes.
    """
    data = open_data(data_dir)
    classes, expected = data.train.classes, network.arch.options.get("num_classes")
    is_same = classes == network.classes if network.classes else len(classes) == expected
    if not is_same:
        known = network.classes or (f"{expected} classes",)
        raise DataError(
            f"{data_dir}: has the classes {_shown(classes)}, but the network was trained on "
            f"{_shown(known)}; give the data set that it was trained on (--data-dir)"
        )
    return data


def load_test_images(network: Any, images: ImageSet, *, count: int | None) -> ImageBatches:
    """Batches of test images, all (None) or ``count``, evenly over the classes.

    Raises:
        DataError: if there are fewer.
    """
    chosen = images if count is None else _choose(images, count, "--test-images")
    return _batches(network, chosen, TEST_BATCH)


def load_calibration_images(network: Any, images: ImageSet, *, count: int) -> list[Tensor]:
    """``count`` preprocessed training images, evenly over the classes, in batches.

    Raises:
        DataError: if there are fewer.
    """
    chosen = _choose(images, count, "--calibration-images")
    return [batch for batch, _ in _batches(network, chosen, CALIBRATION_BATCH)]


def load_images(network: Any, paths: Iterable[Path | str]) -> Iterator[Tensor]:
    """Each image file as the network is fed in its evaluation: (1, 3, H, W).

    Raises:
        DataError: naming a file that cannot be decoded.
    """
    size, preprocessing = network.image_size, network.preprocessing
    rule = ViewRule("none", preprocessing.name, size, SEED)
    for path in paths:
        image = load_rgb(path)
        if isinstance(image, BadImage):
            raise image.error()
        width, height = image.size
        view = draw_view(rule, epoch=0, index=0, width=width, height=height)
        pixels = render_view(image, view, image_size=size, antialias=rule.antialias)
        yield preprocessing.apply(torch.tensor(pixels).permute(2, 0, 1)[None])


def _choose(images: ImageSet, count: int, flag: str) -> ImageSet:
    if count > len(images):
        raise DataError(
            f"{images.root}: has {len(images)} images; ask for fewer ({flag} {count}) or give "
            "another data set (--data-dir)"
        )
    return balanced_subset(images, count=count, seed=SEED)


def _batches(network: Any, images: ImageSet, batch_size: int) -> ImageBatches:
    loader = build_loader(
        images,
        image_size=network.image_size,
        augmentation="none",
        preprocessing=network.preprocessing.name,
        batch_size=batch_size,
        shuffle=False,
    )
    device = torch.device("cpu")
    return ImageBatches(loader, preprocessing=network.preprocessing, device=device)


def _shown(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (f", ... ({len(names)})" if len(names) > 5 else "")
