"""Running figures of an epoch, summed on the device and read without making it wait.

Imports torch.
"""

from __future__ import annotations

import time

import psutil
import torch


class Readout:
    """A tensor of the device as the host knows it, a moment ago.

    The host never waits for a GPU unless it says so: copies go to pinned memory, and an event says
    when one is there. On the CPU each is there at once.
    """

    def __init__(self, device: torch.device) -> None:
        self._event = torch.cuda.Event() if device.type == "cuda" else None
        self._sent: torch.Tensor | None = None
        self._values: list[float] | None = None

    def send(self, tensor: torch.Tensor) -> None:
        """Begin to copy ``tensor``, unless an earlier copy is still on its way."""
        if self._sent is not None and not self._is_there():
            return
        self._sent = tensor.detach().to("cpu", non_blocking=True, copy=True)
        if self._event is not None:
            self._event.record(torch.cuda.current_stream(tensor.device))

    def values(self, *, wait: bool = False) -> list[float] | None:
        """What has been copied last; None before the first copy is there.

        Args:
            wait: for the copy that is on its way.
        """
        if self._sent is not None and (wait or self._is_there()):
            if self._event is not None:
                self._event.synchronize()
            self._values, self._sent = self._sent.tolist(), None
        return self._values

    def _is_there(self) -> bool:
        return self._event is None or self._event.query()


class Meter:
    """Loss, hits, rate and data wait of an epoch; sums stay on the device until they are shown."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._readout = Readout(device)
        self.text = ""
        self.begin_epoch()

    def add(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Add a step's loss and hits."""
        hits = (logits.argmax(dim=1) == labels).sum()
        count = torch.full((), len(labels), device=self._device)
        self._sums += torch.stack([loss.float() * len(labels), hits, count]).double()
        self._readout.send(self._sums)

    def count(self, num_images: int, waited: float) -> None:
        """Count images and the seconds that the step waited for them."""
        self._images += num_images
        self._waited += waited

    def loss_sum(self, *, wait: bool = False) -> float:
        """Sum of the epoch's losses, of a GPU without the last few steps unless ``wait`` is given.

        Not finite from the first loss on that was not.
        """
        return self._read(wait=wait)[0]

    def refresh(self, *, lr: float) -> None:
        """Bring the status text up to date, of a GPU but for the last few steps."""
        values = self._figures(wait=False)
        self.text = (
            f"loss {values['train/loss']:.3f}  top-1 {values['train/top1']:.3f}  "
            f"{values['train/images_per_second']:.0f} images/s  "
            f"data wait {values['train/data_wait']:.0%}  lr {lr:.3g}  "
            f"memory {_used_memory(self._device) / 2**30:.1f} GiB"
        )

    def finish_epoch(self) -> dict[str, float]:
        """Metrics of the epoch: this rank's loss and top-1, the rate of all."""
        return self._figures(wait=True)

    def begin_epoch(self) -> None:
        """Forget the epoch before, and begin to count time."""
        self._sums = torch.zeros(3, dtype=torch.float64, device=self._device)
        self._readout = Readout(self._device)
        self._begun = time.perf_counter()
        self._images, self._waited = 0, 0.0

    def _read(self, *, wait: bool) -> list[float]:
        if wait:
            self._readout.values(wait=True)  # one that was sent before the last step
            self._readout.send(self._sums)
        return self._readout.values(wait=wait) or [0.0, 0.0, 0.0]

    def _figures(self, *, wait: bool) -> dict[str, float]:
        loss, hits, count = self._read(wait=wait)
        elapsed = max(time.perf_counter() - self._begun, 1e-9)
        return {
            "train/loss": loss / max(count, 1),
            "train/top1": hits / max(count, 1),
            "train/images_per_second": self._images / elapsed,
            "train/data_wait": self._waited / elapsed,
        }


def _used_memory(device: torch.device) -> int:
    """Bytes: of a GPU the most that were in use so far, else what this process takes now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss
