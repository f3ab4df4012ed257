"""BatchNorm recalibration: the statistics of one path, exact, over a fixed set of images.

Imports `spos.training.parallel` and torch.

The statistics that a supernet's BatchNorm layers gather in training mix all paths, so a candidate
is measured with its own (Guo et al. 2020, sec. 3.4). Differs from the official code, whose running
average with momentum 0.1 remembers about nineteen batches: here every image counts the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

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
    layers = [
        module
        for module in modules
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]
    sums = [_Sums(layer) for layer in layers]
    momenta = [layer.momentum for layer in layers]
    network.eval()
    num_images = 0
    try:
        for layer in layers:
            layer.train()
            layer.momentum = 1.0  # the running statistics become those of the last batch
        handles = [
            layer.register_forward_hook(each.add) for layer, each in zip(layers, sums, strict=True)
        ]
        for images in batches:
            network(images)
            num_images += len(images)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
            layer.eval()
        for handle in handles:
            handle.remove()
    if not num_images:
        raise DataError("BatchNorm recalibration was given no images")
    _reduce(sums)
    for each in sums:
        each.finish()
    return num_images


class _Sums:
    """Sums over batches from which one layer's overall mean and variance follow."""

    def __init__(self, layer: _BatchNorm) -> None:
        assert layer.running_mean is not None and layer.running_var is not None
        self.mean, self.variance = layer.running_mean, layer.running_var
        self.count = 0.0
        self.channels = 0
        self.sums = torch.zeros(2, layer.num_features, dtype=torch.float64, device=self.mean.device)

    def add(self, layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        """Forward hook: the layer's running statistics are now those of this batch."""
        self.channels = channels = inputs[0].shape[1]
        count = inputs[0].numel() // channels
        mean = self.mean[:channels].double()
        variance = self.variance[:channels].double() * ((count - 1) / count)
        self.count += count
        self.sums[0, :channels] += count * mean
        self.sums[1, :channels] += count * (variance + mean * mean)

    def finish(self) -> None:
        """Set the layer's running statistics."""
        if not self.count:
            return  # not on the path
        mean, square = self.sums[:, : self.channels] / self.count
        variance = (square - mean * mean).clamp_(min=0) * (self.count / max(self.count - 1, 1))
        self.mean[: self.channels].copy_(mean)
        self.variance[: self.channels].copy_(variance)


def _reduce(sums: list[_Sums]) -> None:
    """Add up over the ranks, in one message."""
    if world_size() == 1 or not sums:
        return
    device = sums[0].sums.device
    counts = torch.tensor([each.count for each in sums], dtype=torch.float64, device=device)
    flat = reduce_sum(torch.cat([counts, *(each.sums.flatten() for each in sums)]))
    position = len(sums)
    for each, count in zip(sums, flat[:position].tolist(), strict=True):
        size = each.sums.numel()
        each.count = count
        each.sums.copy_(flat[position : position + size].view_as(each.sums))
        position += size


def _statistics(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(module, _BatchNorm):
        yield from module.named_buffers(recurse=False)
