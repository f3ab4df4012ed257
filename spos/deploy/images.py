"""The real images that a network is checked and calibrated on, prepared as for its evaluation.

Imports `spos.data`, `spos.errors`, `spos.evaluation` and torch.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spos.data.folder import DataFolder, ImageSet, open_data, open_test_images
from spos.data.loader import Loader, build_loader
from spos.data.split import balanced_subset
from spos.errors import CheckpointError, DataError
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


def match_test_images(network: Any, data_dir: Path | str, *, source: Path | str) -> ImageSet:
    """The test images in ``data_dir``, labelled by the number that the network gives their class.

    Classes go by their names; some may have no images. Those of a network that knows no names are
    all of the folder's in sorted order.

    Args:
        network: of `spos.deploy.networks.open_network`, on the CPU.
        data_dir: see `spos.data.folder.open_test_images`.
        source: of the network, for messages.

    Raises:
        DataError: if there is no such folder, or it has classes that are not the network's.
        CheckpointError: if the network's names are not as many as its classes.
    """
    images = open_test_images(data_dir)
    known, number = network.classes, _count_outputs(network)
    if known is None:
        if len(images.classes) != number:
            raise DataError(
                f"{images.root}: has {len(images.classes)} classes ({_shown(images.classes)}), but "
                f"{source} tells {number} apart and knows no names; give images of all of its "
                "classes (--data-dir)"
            )
        return images
    if len(known) != number:
        raise CheckpointError(f"{source}: tells {number} classes apart, but names {len(known)}")
    places = {name: place for place, name in enumerate(known)}
    strangers = tuple(name for name in images.classes if name not in places)
    if strangers:
        raise DataError(
            f"{images.root}: {source} does not know the classes {_shown(strangers)}; it knows "
            f"{_shown(known)}. Give a folder with val/CLASS/*, test/CLASS/* or CLASS/* (--data-dir)"
        )
    labels = [places[name] for name in images.classes]
    return replace(images, labels=tuple(labels[each] for each in images.labels), classes=known)


@torch.inference_mode()
def _count_outputs(network: Any) -> int:
    return network(torch.zeros(1, 3, network.image_size, network.image_size)).shape[1]


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


def _choose(images: ImageSet, count: int, flag: str) -> ImageSet:
    if count > len(images):
        raise DataError(
            f"{images.root}: has {len(images)} images; ask for fewer ({flag} {count}) or give "
            "another data set (--data-dir)"
        )
    return balanced_subset(images, count=count, seed=SEED)


def evaluation_loader(
    network: Any,
    images: ImageSet,
    batch_size: int = TEST_BATCH,
    *,
    num_workers: int = 0,
    device: torch.device | str = "cpu",
) -> Loader:
    """Every image once, in order, to be prepared by the network's preprocessing."""
    return build_loader(
        images,
        image_size=network.image_size,
        augmentation="none",
        preprocessing=network.preprocessing.name,
        batch_size=batch_size,
        shuffle=False,
        num_workers=num_workers,
        device=device,
    )


def _batches(network: Any, images: ImageSet, batch_size: int) -> ImageBatches:
    loader, device = evaluation_loader(network, images, batch_size), torch.device("cpu")
    return ImageBatches(loader, preprocessing=network.preprocessing, device=device)


def _shown(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (f", ... ({len(names)})" if len(names) > 5 else "")
