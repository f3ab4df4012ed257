"""Scores candidates of a trained supernet: recalibrate BatchNorm, measure held-out accuracy.

Imports `spos.architecture`, `spos.data`, `spos.evaluation`, `spos.supernet` and torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import psutil
import torch

from spos.architecture import Choices
from spos.data.loader import Loader
from spos.data.preprocessing import Preprocessing
from spos.evaluation.accuracy import Accuracy, measure_accuracy
from spos.evaluation.batchnorm import recalibrate, saved_statistics
from spos.evaluation.folded import find_pairs, folded
from spos.evaluation.prefix import PathMemory
from spos.supernet import Supernet


@dataclass(frozen=True)
class Room:
    """How much of the decoded images, and of what a network makes of them, may be kept.

    Attributes:
        on_device: bytes on a GPU; these come first.
        in_memory: bytes in the computer's memory.
        path: bytes of activations of one path, on the device.
    """

    on_device: int = 0
    in_memory: int = 2 * 2**30
    path: int = 0


def find_room(device: torch.device) -> Room:
    """The share of each of the two sets of images in a process that does nothing but evaluate."""
    available = psutil.virtual_memory().available
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        return Room(on_device=free // 5, in_memory=available // 4, path=free // 5)
    return Room(in_memory=available // 5, path=available // 3)


class ImageBatches:
    """The batches of an evaluation loader, kept as uint8 where there is room for all of them.

    The batches are the same at every pass, in number, order and content, whether kept or not: that
    is what makes a candidate's score the same whoever measures it.
    """

    def __init__(
        self,
        loader: Loader,
        *,
        preprocessing: Preprocessing,
        device: torch.device,
        room: Room = Room(),  # noqa: B008  (it is frozen)
    ) -> None:
        self._loader, self._preprocessing, self._device = loader, preprocessing, device
        self._room = room
        self._kept: list[tuple[torch.Tensor, torch.Tensor]] | None = None

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Preprocessed images (N, 3, H, W) and labels (N,), on the device."""
        for images, labels in self._kept if self._kept is not None else self._read():
            moved = images.to(self._device, non_blocking=True)
            yield self._preprocessing.apply(moved), labels.to(self._device, non_blocking=True)

    def _read(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        on_device, in_memory = self._room.on_device, self._room.in_memory
        for images, labels in self._loader.epoch(0):
            size = images.nbytes
            if size <= on_device:
                on_device -= size
                kept.append((images.to(self._device), labels.to(self._device)))
            else:
                in_memory -= size
                if in_memory >= 0:
                    kept.append((images.cpu(), labels.cpu()))
                else:
                    kept.clear()
            yield images, labels
        if in_memory >= 0:
            self._kept = kept
            self._loader.close()


class Evaluator:
    """Measures architectures of one supernet, leaving it as it was.

    Args:
        supernet: with trained weights, on ``device``.
        calibration: images of the training set, the same for every candidate.
        validation: images held out of training, the same for every candidate.
        device: of the supernet and the batches.
        path_bytes: of activations that may be kept between candidates (see `PathMemory`); only
            for a supernet whose weights stay as they are.
    """

    def __init__(
        self,
        supernet: Supernet,
        *,
        calibration: ImageBatches,
        validation: ImageBatches,
        device: torch.device,
        path_bytes: int = 0,
    ) -> None:
        self.supernet, self.device = supernet, device
        self._memory = PathMemory(supernet, max_bytes=path_bytes)
        self._pairs = find_pairs(supernet)
        self.calibration, self.validation = calibration, validation

    def evaluate(
        self, choices: Choices, *, progress: Callable[[float], None] | None = None
    ) -> Accuracy:
        """Accuracy of one architecture (Guo et al. 2020, sec. 3.4).

        ``progress`` is called with the running top-1 while images are measured.

        The same architecture scores the same, to the bit on a CPU, in whatever order candidates are
        evaluated; weights and statistics of the supernet are unchanged afterwards.
        """
        self.supernet.activate(choices)
        modules = list(self.supernet.active_modules())
        memory = self._memory
        try:
            # Not inference_mode, whose tensors do not tell when they are changed in place.
            with saved_statistics(modules), torch.no_grad():
                memory.begin(choices)
                with memory.calibrating():
                    recalibrate(self.supernet, modules, (images for images, _ in self.calibration))
                with memory.validating(), folded(self._pairs, set(modules)):
                    return measure_accuracy(
                        self.supernet, self.validation, self.device, progress=progress
                    )
        except BaseException:
            memory.forget()
            raise

    def rehearse(self, choices: Choices) -> None:
        """Run one batch of either set, so that what ails them shows at once; changes nothing."""
        self.supernet.activate(choices)
        modules = list(self.supernet.active_modules())
        with saved_statistics(modules):
            images = (images for images, _ in islice(self.calibration, 1))
            recalibrate(self.supernet, modules, images)
            measure_accuracy(self.supernet, islice(self.validation, 1), self.device)

    def evaluate_uncalibrated(self, choices: Choices) -> Accuracy:
        """Accuracy with the statistics that training left, which mix all paths: to compare with."""
        self.supernet.activate(choices)
        modules = list(self.supernet.active_modules())
        with saved_statistics(modules), torch.no_grad():  # for their modes
            return measure_accuracy(self.supernet, self.validation, self.device)
