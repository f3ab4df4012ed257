import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spos.data.schedule import Schedule, count_batches, epoch_batches
from spos.errors import ConfigError


def all_ranks(num_images: int, batch_size: int, world_size: int, *, shuffle: bool) -> list:
    return [
        epoch_batches(
            Schedule(num_images, batch_size, shuffle, 5, rank=rank, world_size=world_size), epoch=3
        )
        for rank in range(world_size)
    ]


@given(st.integers(1, 200), st.integers(1, 30), st.integers(1, 5))
def test_evaluation_counts_every_image_once(images: int, batch_size: int, ranks: int) -> None:
    shards = all_ranks(images, batch_size, ranks, shuffle=False)
    seen = [index for batches in shards for batch in batches for index in batch.tolist()]
    assert sorted(seen) == list(range(images))
    lengths = [len(batches) for batches in shards]
    assert max(lengths) - min(lengths) <= 1
    assert all(0 < len(batch) <= batch_size for batches in shards for batch in batches)


@given(st.integers(5, 200), st.integers(1, 30), st.integers(1, 5))
def test_training_batches_are_full_and_disjoint(images: int, size: int, ranks: int) -> None:
    shards = all_ranks(images, size, ranks, shuffle=True)
    seen = [index for batches in shards for batch in batches for index in batch.tolist()]
    assert len(seen) == len(set(seen))
    assert set(seen) <= set(range(images))
    if images >= size * ranks:
        assert len(seen) == images // (size * ranks) * size * ranks
        assert all(len(batch) == size for batches in shards for batch in batches)
    else:
        assert [len(batches) for batches in shards] == [1] * ranks
        assert len(seen) == images


@given(st.integers(3, 100), st.integers(1, 9), st.integers(1, 3), st.booleans(), st.integers(0, 40))
def test_starting_later_skips_batches(
    images: int, size: int, ranks: int, shuffle: bool, start: int
) -> None:
    schedule = Schedule(images, size, shuffle, 0, rank=ranks - 1, world_size=ranks)
    whole = epoch_batches(schedule, epoch=1)
    assert len(whole) == count_batches(schedule)
    start = min(start, len(whole))
    rest = epoch_batches(schedule, epoch=1, start=start)
    assert [batch.tolist() for batch in rest] == [batch.tolist() for batch in whole[start:]]


def test_global_batches_do_not_depend_on_ranks() -> None:
    alone = epoch_batches(Schedule(100, 12, True, 0), epoch=2)
    for world_size in (2, 3):
        shards = [
            epoch_batches(
                Schedule(100, 12 // world_size, True, 0, rank=rank, world_size=world_size), epoch=2
            )
            for rank in range(world_size)
        ]
        together = [np.concatenate(parts) for parts in zip(*shards, strict=True)]
        assert [batch.tolist() for batch in together] == [batch.tolist() for batch in alone]


def test_training_order_varies_by_epoch_and_seed() -> None:
    orders = {
        tuple(np.concatenate(epoch_batches(Schedule(50, 10, True, seed), epoch=epoch)).tolist())
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


def test_evaluation_keeps_the_order_of_the_set() -> None:
    batches = epoch_batches(Schedule(10, 4, False, 0), epoch=7)
    assert [batch.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_images": 0}, "0 images for 1 ranks"),
        ({"num_images": 2, "world_size": 3, "shuffle": True}, "2 images for 3 ranks"),
        ({"batch_size": 0}, "batch size 0"),
        ({"rank": 1}, "rank 1 of 1"),
        ({"rank": -1}, "rank -1 of 1"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_impossible_schedules_are_refused(arguments: dict, message: str) -> None:
    usual = {"num_images": 10, "batch_size": 2, "shuffle": False, "seed": 0}
    with pytest.raises(ConfigError, match=message):
        Schedule(**{**usual, **arguments})


@pytest.mark.parametrize(("epoch", "start"), [(0, 4), (0, -1), (-1, 0)])
def test_epochs_cannot_start_outside(epoch: int, start: int) -> None:
    with pytest.raises(ConfigError, match="cannot start"):
        epoch_batches(Schedule(10, 4, False, 0), epoch=epoch, start=start)
