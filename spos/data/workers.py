"""Batches prepared by worker processes, or in this one: the part both loaders share.

Imports torch, `spos.errors` and the folder, decoding and scheduling of this package.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from spos.data.decode import BadImage
from spos.data.folder import ImageSet
from spos.data.schedule import Schedule, epoch_batches
from spos.errors import DataError

T = TypeVar("T")


class PackedImages:
    """The files and labels of an `ImageSet` in two arrays, which forked workers share.

    Tuples would not do: counting references to a million strings copies their memory pages into
    every worker.
    """

    def __init__(self, images: ImageSet) -> None:
        self._paths = np.array([os.fsencode(f"{images.root}/{path}") for path in images.paths])
        self.labels = np.array(images.labels, np.int64)

    def path(self, index: int) -> str:
        """The file of image ``index``."""
        return os.fsdecode(self._paths.item(index))


class BatchWorkers(Generic[T]):
    """Calls ``make(epoch, indices)`` for every batch of an epoch, ahead of time and in order.

    With ``num_workers`` 0 in this process, else in that many processes, which live until `close`
    (or until this object is collected) and exit by themselves if this process dies. Nothing of
    torch's global random state is used.
    """

    def __init__(
        self,
        make: Callable[[int, np.ndarray], T | BadImage],
        *,
        schedule: Schedule,
        num_workers: int,
        pin_memory: bool,
    ) -> None:
        self._batches = _EpochBatches(schedule)
        self._turn = 0
        self._iterator: Iterator[Any] = iter(())
        self._loader: DataLoader[Any] | None = DataLoader(
            _Batches(make),
            sampler=self._batches,
            batch_size=None,  # the sampler's items are whole batches
            collate_fn=_as_it_is,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            # Forked workers share the list of files, and need no importable main module.
            multiprocessing_context="fork" if num_workers > 0 else None,
            pin_memory=pin_memory,
            worker_init_fn=partial(_begin_worker, os.getpid()),
            generator=torch.Generator(),  # or it would draw from the global one
        )
        _open.add(self)

    def epoch(self, epoch: int, start: int) -> Iterator[T]:
        """What ``make`` returns for batches ``start``, ``start + 1``, ... of ``epoch``.

        One epoch at a time: beginning another ends this one.

        Raises:
            DataError: where ``make`` returned a `BadImage`, or a worker died.
        """
        assert self._loader is not None, "the loader has been closed"
        self._turn += 1
        turn = self._turn
        self._batches.choose(epoch, start)
        with _nothing_to_collect() if turn == 1 else nullcontext():  # workers start at the first
            self._iterator = iter(self._loader)
        while (result := self._next()) is not None:
            if isinstance(result, BadImage):
                raise result.error()
            yield result
            assert turn == self._turn, "another epoch of this loader has begun"

    def _next(self) -> T | BadImage | None:
        try:
            return next(self._iterator, None)
        except RuntimeError as problem:
            if "DataLoader worker" not in str(problem):
                raise
            self.close()
            raise DataError(
                f"a process that loads images has died ({str(problem).splitlines()[0].strip()}); "
                "most often memory is short, in containers shared memory (/dev/shm): use fewer "
                "workers, a smaller batch, or give the container more"
            ) from None

    def close(self) -> None:
        """Stop the worker processes; calling it again does nothing."""
        self._turn += 1
        iterator, self._iterator, self._loader = self._iterator, iter(()), None
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            # torch does this when the iterator is collected, but a traceback may refer to it still.
            iterator._shutdown_workers()
            for process in iterator._workers:
                process.kill()  # one that waits for a dead disk does nothing else


@contextmanager
def _nothing_to_collect() -> Iterator[None]:
    """Processes forked here never collect garbage of this one.

    A DALI pipeline among it, ended in a forked process, would wait for threads that only this
    process has.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


_open: weakref.WeakSet[BatchWorkers[Any]] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Runs before `multiprocessing` ends its processes by SIGTERM, which workers ignore."""
    for workers in list(_open):
        workers.close()


class _Batches(Dataset[Any]):
    def __init__(self, make: Callable[[int, np.ndarray], Any]) -> None:
        self._make = make

    def __getitem__(self, index: Any) -> Any:
        epoch, indices = index
        return self._make(epoch, indices)


class _EpochBatches:
    """The sampler: (epoch, indices) for every batch of the epoch chosen last."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._epoch, self._start = 0, 0

    def choose(self, epoch: int, start: int) -> None:
        self._epoch, self._start = epoch, start

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        batches = epoch_batches(self._schedule, epoch=self._epoch, start=self._start)
        return ((self._epoch, indices) for indices in batches)


def _begin_worker(parent: int, worker: int) -> None:
    # Schedulers and terminals signal the whole process group, but the trainer decides when to stop.
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if os.getppid() != parent:  # killed already; torch's watchdog starts too late to notice
        os._exit(1)


def _as_it_is(batch: T) -> T:
    return batch
