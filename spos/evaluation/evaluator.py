"""Scores candidates of a trained supernet: recalibrate BatchNorm, measure held-out accuracy.

Imports `spos.data`, `spos.supernet`, `spos.evaluation`, `spos.training.parallel` and torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psutil
import torch

from spos.architecture import Choices
from spos.data.loader import Loader
from spos.data.preprocessing import Preprocessing
from spos.evaluation.accuracy import Accuracy, measure_accuracy
from spos.evaluation.batchnorm import recalibrate, saved_statistics
from spos.supernet import Supernet


@dataclass(frozen=True)
class Room:
    """How much of the decoded images may be kept.

    Attributes:
        on_device: bytes on a GPU; these come first.
        in_memory: bytes in the computer's memory.
    """

    on_device: int = 0
    in_memory: int = 2 * 2**30


def find_room(device: torch.device) -> Room:
    """Room for one of the two sets of images of a process that does nothing but evaluate."""
    on_device = torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else 0
    return Room(on_device, psutil.virtual_memory().available // 4)


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
    """

    def __init__(
        self,
        supernet: Supernet,
        *,
        calibration: ImageBatches,
        validation: ImageBatches,
        device: torch.device,
    ) -> None:
        self.supernet, self.device = supernet, device
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
        with saved_statistics(modules), torch.inference_mode():
            recalibrate(self.supernet, modules, (images for images, _ in self.calibration))
            return measure_accuracy(self.supernet, self.validation, self.device, progress=progress)
