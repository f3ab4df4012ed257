"""BatchNorm recalibration: the statistics of one path, exact, over a fixed set of images.

Imports `spos.errors`, `spos.training.parallel` and torch.

The statistics that a supernet's BatchNorm layers gather in training mix all paths, so a candidate
is measured with its own (Guo et al. 2020, sec. 3.4). Differs from the official code, whose running
average with momentum 0.1 remembers about nineteen batches: here every image counts the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from spos.errors import DataError
from spos.training.parallel import reduce_sum, world_size


@contextmanager
def saved_statistics(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Restore running statistics and training modes of ``modules`` when the block ends."""
    kept = [
        (module, module.training, {name: buffer.clone() for name, buffer in _statistics(module)})
        for module in modules
    ]
    try:
        yield
    finally:
        for module, training, buffers in kept:
            module.training = training
            for name, buffer in _statistics(module):
                buffer.copy_(buffers[name])


@torch.no_grad()
def recalibrate(
    network: nn.Module, modules: Iterable[nn.Module], batches: Iterable[torch.Tensor]
) -> int:
    """Give the BatchNorm layers among ``modules`` the mean and variance over all of ``batches``.

    Batches run in training mode, one forward pass each, with dropout off. Mean and (unbiased)
    variance of a layer are those of all its inputs together: batch statistics are added up in
    double precision by the law of total variance, over all ranks. Width-sliced layers are served
    as well: only the channels that the path uses are set.

    Args:
        network: called with each batch.
        modules: the modules on the active path.
        batches: preprocessed images (N, 3, H, W), on the network's device. With several processes
            each rank gives its own part.

    Returns:
        The number of images on this rank.

    Raises:
        DataError: if ``batches`` is empty.
    """
    gathered = [
        _Gathered(module)
        for module in modules
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]
    network.eval()
    num_images = 0
    try:
        for each in gathered:
            each.begin()
        for images in batches:
            network(images)
            num_images += len(images)
    finally:
        for each in gathered:
            each.end()
    if not num_images:
        raise DataError("BatchNorm recalibration was given no images")
    totals = [each.total() for each in gathered]
    _reduce(totals)
    for each, total in zip(gathered, totals, strict=True):
        each.set_statistics(total)
    return num_images


@dataclass
class _Total:
    """What a layer's overall mean and variance follow from.

    Attributes:
        count: of the values of a channel.
        sums: of a channel's values and their squares, (2, C), in double precision.
    """

    count: float
    sums: torch.Tensor


class _Gathered:
    """The statistics of one layer's batches, each in a tensor of its own.

    Nothing is computed between the batches: on a GPU the sums, of a few numbers each, would take
    longer than the network.
    """

    def __init__(self, layer: _BatchNorm) -> None:
        assert layer.running_mean is not None and layer.running_var is not None
        self._layer = layer
        self._own = layer.running_mean, layer.running_var
        self._momentum = layer.momentum
        self._handle: RemovableHandle | None = None
        self._channels = 0
        self._counts: list[int] = []
        self._statistics: list[torch.Tensor] = []

    def begin(self) -> None:
        """From now on the layer normalises by its batch and leaves its statistics here."""
        self._layer.train()
        self._layer.momentum = 1.0  # the running statistics become those of the last batch
        self._handle = self._layer.register_forward_hook(self._gather)
        self._take_up()

    def end(self) -> None:
        """Make the layer what it was, in evaluation mode."""
        if self._handle:
            self._handle.remove()
        self._layer.running_mean, self._layer.running_var = self._own
        self._layer.momentum = self._momentum
        self._layer.eval()

    def total(self) -> _Total:
        """Of all batches so far."""
        mean, _ = self._own
        total = _Total(0.0, torch.zeros(2, len(mean), dtype=torch.float64, device=mean.device))
        if self._counts:
            counts = torch.tensor(self._counts, dtype=torch.float64, device=mean.device)[:, None]
            means, variances = (
                torch.stack(self._statistics)[..., : self._channels].double().unbind(1)
            )
            squares = (counts - 1) * variances + counts * means * means
            total.count = float(sum(self._counts))
            total.sums[:, : self._channels] = torch.stack([(counts * means).sum(0), squares.sum(0)])
        return total

    def set_statistics(self, total: _Total) -> None:
        """Set the layer's running statistics to those of ``total``."""
        if not total.count:
            return  # not on the path
        mean, square = total.sums[:, : self._channels] / total.count
        variance = (square - mean * mean).clamp_(min=0) * (total.count / max(total.count - 1, 1))
        for buffer, value in zip(self._own, (mean, variance), strict=True):
            buffer[: self._channels].copy_(value)

    def _gather(
        self, layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> None:
        """Forward hook: the layer's running statistics are now those of this batch."""
        self._channels = inputs[0].shape[1]
        self._counts.append(inputs[0].numel() // self._channels)
        self._statistics.append(self._current)
        self._take_up()

    def _take_up(self) -> None:
        """Give the layer tensors that the next batch's statistics go to."""
        # Zeros: what they hold is multiplied by 0, which of infinity would be NaN.
        mean, _ = self._own
        self._current = torch.zeros(2, len(mean), dtype=mean.dtype, device=mean.device)
        self._layer.running_mean, self._layer.running_var = self._current.unbind()


def _reduce(totals: list[_Total]) -> None:
    """Add up over the ranks, in one message."""
    if world_size() == 1 or not totals:
        return
    counts = torch.tensor(
        [each.count for each in totals], dtype=torch.float64, device=totals[0].sums.device
    )
    flat = reduce_sum(torch.cat([counts, *(each.sums.flatten() for each in totals)]))
    counts, *sums = flat.split([len(totals), *(each.sums.numel() for each in totals)])
    for each, count, part in zip(totals, counts.tolist(), sums, strict=True):
        each.count, each.sums = count, part.view_as(each.sums)


def _statistics(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(module, _BatchNorm):
        yield from module.named_buffers(recurse=False)
