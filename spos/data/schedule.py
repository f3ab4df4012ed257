"""Which images make up each batch, on each rank, in each epoch: shared by both loaders.

Imports only `spos.errors` and the random numbers of this package; never torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spos.data.counter_random import Stream, check_seed, random_permutation
from spos.errors import ConfigError


@dataclass(frozen=True)
class Schedule:
    """How a set of images is cut into batches.

    A *global batch* is what all ranks process in one step: ``batch_size * world_size`` images. It
    is the same whatever the world size, if their product is.

    Training (``shuffle``): the order is drawn anew for each epoch, and only full global batches are
    used; a set smaller than one is a single global batch. Evaluation: the order of the set, every
    image exactly once over all ranks; the last global batch may be partial. A partial batch is cut
    into one stretch for each rank, as equal as they can be (at the end of an evaluation with fewer
    images left than ranks, the last ranks have one batch fewer).

    Raises:
        ConfigError: if a number is out of range, or there are fewer training images than ranks.
    """

    num_images: int
    batch_size: int
    shuffle: bool
    seed: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.batch_size < 1:
            raise ConfigError(f"batch size {self.batch_size}: expected at least 1")
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(
                f"rank {self.rank} of {self.world_size}: expected 0 to world size - 1"
            )
        fewest = self.world_size if self.shuffle else 1
        if self.num_images < fewest:
            raise ConfigError(
                f"{self.num_images} images for {self.world_size} ranks: expected at least {fewest}"
            )

    @property
    def global_batch_size(self) -> int:
        """Images in a full global batch."""
        return self.batch_size * self.world_size


def count_batches(schedule: Schedule) -> int:
    """Batches that this rank has in an epoch."""
    full, rest = divmod(schedule.num_images, schedule.global_batch_size)
    if schedule.shuffle:
        return max(full, 1)
    return full + (1 if rest > schedule.rank else 0)


def epoch_batches(schedule: Schedule, *, epoch: int, start: int = 0) -> list[np.ndarray]:
    """This rank's batches from number ``start`` to the end of ``epoch``, as indices of images.

    Raises:
        ConfigError: if ``start`` is negative or beyond the end of the epoch.
    """
    num_batches = count_batches(schedule)
    if not 0 <= start <= num_batches or epoch < 0:
        raise ConfigError(
            f"epoch {epoch} cannot start at batch {start}: epochs count from 0 and have "
            f"{num_batches} batches"
        )
    if schedule.shuffle:
        order = random_permutation(
            schedule.num_images, seed=schedule.seed, stream=Stream.ORDER, counter=(epoch, 0)
        )
    else:
        order = np.arange(schedule.num_images)
    size = schedule.global_batch_size
    stretches = (order[batch * size : (batch + 1) * size] for batch in range(start, num_batches))
    return [np.array_split(each, schedule.world_size)[schedule.rank] for each in stretches]
