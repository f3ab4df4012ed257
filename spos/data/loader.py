"""One interface to both loaders: what a loader is, and how to build one.

Imports the other modules of this package; DALI only if it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch

from spos.data.augmentation import ViewRule
from spos.data.folder import ImageSet
from spos.data.schedule import Schedule
from spos.errors import ConfigError

BACKENDS = ("torchvision", "dali")


class Loader(Protocol):
    """Batches of images, an epoch at a time. Both loaders draw the same batches and the same views.

    An epoch is a pure function of its number: the same for any number of workers, resumed exactly
    by starting at a later batch, independent of epochs before it.
    """

    def __len__(self) -> int:
        """Batches in an epoch, on this rank."""
        ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Batches ``start``, ``start + 1``, ... of an epoch; the earlier ones are not decoded.

        Yields images, uint8 RGB (N, 3, H, W) in the channels-last memory format, and labels, int64
        (N,), both on the loader's device. Beginning another epoch ends this one.

        Raises:
            DataError: naming the file that cannot be decoded. No image is ever left out.
        """
        ...

    def close(self) -> None:
        """Stop processes and free memory; the loader cannot be used after it."""
        ...


def build_loader(
    images: ImageSet,
    *,
    backend: str = "torchvision",
    image_size: int,
    augmentation: str | None,
    preprocessing: str = "standard",
    batch_size: int,
    seed: int = 0,
    shuffle: bool,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
    cache_bytes: int = 0,
) -> Loader:
    """Build a loader.

    Args:
        images: what to load.
        backend: one of `BACKENDS`; "dali" decodes and augments on the GPU if ``device`` is one.
        image_size: width and height of the images that it yields.
        augmentation: one of `spos.data.augmentation.AUGMENTATIONS`; None is "none".
        preprocessing: whose rule resizes evaluation views, "standard" or "spos".
        batch_size: images per batch on each rank.
        seed: of the order and of the augmentation.
        shuffle: True to train, False to evaluate; see `spos.data.schedule.Schedule`.
        num_workers: processes that decode; for DALI threads, and a quarter as many processes that
            read files. 0: this process reads and decodes (DALI: with one thread).
        rank: of this process.
        world_size: number of processes that share each global batch.
        device: where batches are delivered.
        cache_bytes: memory in which decoded images are kept, whole. Pixels are the same with and
            without, but of photographs twice the size of their view, of which "paper" without a
            cache decodes a half or less. DALI, which decodes on the device, keeps none.

    Raises:
        ConfigError: if an argument is unknown or out of range, or DALI is not installed.
    """
    rule = ViewRule(augmentation or "none", preprocessing, image_size, seed)
    schedule = Schedule(len(images), batch_size, shuffle, seed, rank, world_size)
    if num_workers < 0:
        raise ConfigError(f"{num_workers} workers: expected 0 or more")
    if cache_bytes < 0:
        raise ConfigError(f"a cache of {cache_bytes} bytes: expected 0 or more")
    if backend not in BACKENDS:
        raise ConfigError(f"loader {backend!r} is unknown; choose one of {', '.join(BACKENDS)}")
    settings: Any = {
        "rule": rule,
        "schedule": schedule,
        "num_workers": num_workers,
        "device": torch.device(device),
    }
    if backend == "dali":
        from spos.data.dali_loader import DaliLoader

        return DaliLoader(images, **settings)
    from spos.data.torch_loader import TorchLoader

    return TorchLoader(images, **settings, cache_bytes=cache_bytes)
