"""Accuracy of a network on images, every image counted once.

Imports `spos.errors`, `spos.training.parallel` and torch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from spos.errors import CheckpointError, DataError
from spos.training.parallel import reduce_sum

SECONDS_BETWEEN_PROGRESS = 1.0


@dataclass(frozen=True)
class Accuracy:
    """Fractions of images whose class was first, or among the first five, and the mean loss.

    Attributes:
        top1: between 0 and 1.
        top5: between 0 and 1; with fewer than five classes, 1.
        loss: mean cross-entropy without label smoothing, in nats.
        num_images: images measured, over all ranks.
    """

    top1: float
    top5: float
    loss: float
    num_images: int


def check_finite(accuracy: Accuracy) -> Accuracy:
    """Refuse the accuracy of a network that computes NaN or infinity: its classes mean nothing.

    Raises:
        CheckpointError: with the loss.
    """
    if not math.isfinite(accuracy.loss):
        raise CheckpointError(
            f"the network's loss on these images is {accuracy.loss}, so its accuracy means "
            "nothing: with these weights it overflows; train with a lower --lr, or go back to an "
            "earlier checkpoint"
        )
    return accuracy


@torch.no_grad()
def measure_accuracy(
    network: nn.Module,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    device: torch.device,
    *,
    progress: Callable[[float], None] | None = None,
    observe: Callable[[torch.Tensor, torch.Tensor], None] | None = None,
) -> Accuracy:
    """Measure ``network`` in evaluation mode.

    Args:
        network: from images to logits.
        batches: preprocessed images (N, 3, H, W) and labels (N,), on ``device``. With several
            processes each rank gives its own part.
        device: where the sums are kept.
        progress: called with the top-1 of this rank so far, after a batch every second and at the
            end; it costs a GPU a synchronisation.
        observe: called with the labels and the first classes (both (N,), on ``device``) of every
            batch of this rank.

    Raises:
        DataError: if there is no image.
    """
    network.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=device)  # top-1, top-5, loss, images
    told = time.monotonic()

    def tell() -> None:
        if progress and sums[3]:
            progress((sums[0] / sums[3]).item())

    for images, labels in batches:
        logits = network(images).float()
        order = logits.topk(min(5, logits.shape[1]), dim=1).indices
        hits = order == labels[:, None]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        count = torch.full((), len(labels), device=device)
        if observe:
            observe(labels, order[:, 0])
        sums += torch.stack([hits[:, 0].sum(), hits.sum(), loss, count]).double()
        if time.monotonic() - told >= SECONDS_BETWEEN_PROGRESS:
            tell()
            told = time.monotonic()
    tell()
    top1, top5, loss, count = reduce_sum(sums).tolist()
    if not count:
        raise DataError("accuracy was to be measured on no images")
    return Accuracy(top1 / count, top5 / count, loss / count, int(count))
