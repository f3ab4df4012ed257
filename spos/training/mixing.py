"""Mixup and cutout: what chance does to the images of a training step, on the device.

Imports `spos.data`, `spos.training.parallel`, `spos.training.recipe` and torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spos.data.counter_random import counter_generator
from spos.data.preprocessing import Preprocessing
from spos.training import parallel
from spos.training.recipe import Recipe

_STREAM = 2**33  # of random numbers, and one more for each rank; apart from those of the paths


@dataclass(frozen=True)
class Changes:
    """What is done to the images of one step in this process.

    Attributes:
        partners: which image each is mixed with (N,); None mixes none.
        share: of an image in its mixture, 0.5 to 1; the rest is its partner's.
        centres: row and column of the middle of the square that is cut out of each (N, 2); None
            cuts nothing.
        side: of the square, in pixels.
    """

    partners: Tensor | None = None
    share: float = 1.0
    centres: Tensor | None = None
    side: int = 0


@dataclass(frozen=True)
class Target:
    """What the images of a part show.

    Attributes:
        labels: (N,) of the larger share.
        others: (N,) of the rest; None if there is none.
        share: the larger one.
    """

    labels: Tensor
    others: Tensor | None = None
    share: float = 1.0

    def cross_entropy(self, logits: Tensor, *, label_smoothing: float) -> Tensor:
        """Mean over the part; it is linear in the target, so that shares of losses add up to it."""
        loss = F.cross_entropy(logits, self.labels, label_smoothing=label_smoothing)
        if self.others is None:
            return loss
        other = F.cross_entropy(logits, self.others, label_smoothing=label_smoothing)
        return self.share * loss + (1 - self.share) * other


def draw_changes(recipe: Recipe, images: Tensor, *, step: int, steps_per_epoch: int) -> Changes:
    """Draw the changes of a step, a function of seed, step, rank and the images' shape alone.

    One share for all images, from Beta(alpha, alpha), and a permutation of them (Zhang et al. 2018,
    mixup). Where the share is less than a half the two are exchanged, which leaves the distribution
    as it is, so that an image's own label is always the larger share's. A square's middle may be
    any pixel, so that a part of it may lie outside (DeVries & Taylor 2017).

    Args:
        recipe: says how much of both.
        images: (N, 3, H, W), of all of this process's images of the step.
        step: from 0.
        steps_per_epoch: of which the last may be without mixup.
    """
    alpha = recipe.mixup_at(step, steps_per_epoch)
    if not alpha and not recipe.cutout:
        return Changes()
    count, _, height, width = images.shape
    generator = counter_generator(recipe.seed, step, stream=_STREAM + parallel.rank())
    partners, share, centres = None, 1.0, None
    if alpha:
        share = generator.beta(alpha, alpha)
        share = max(share, 1 - share)
        partners = _send(generator.permutation(count), images.device)
    if recipe.cutout:
        centres = _send(generator.integers((height, width), size=(count, 2)), images.device)
    return Changes(partners, share, centres, recipe.cutout)


def prepare_parts(
    images: Tensor, labels: Tensor, changes: Changes, *, preprocessing: Preprocessing, number: int
) -> Iterator[tuple[Tensor, Target]]:
    """The network's input and what it shows, part by part, as even as they can be.

    Partners may be of other parts, and squares are cut out of images before they are mixed, so
    that the parts together are the batch whatever their number.

    Args:
        images: uint8 (N, 3, H, W).
        labels: (N,), on the same device.
        changes: of `draw_changes`.
        preprocessing: from uint8 images to the network's input.
        number: of parts, at most N.
    """

    def prepare(chosen: slice | Tensor) -> Tensor:
        x = preprocessing.apply(images[chosen])
        if changes.centres is None:
            return x
        fill = preprocessing.mean_colour(x.device)
        return cut_out(x, changes.centres[chosen], side=changes.side, fill=fill)

    end = 0
    for wanted in labels.tensor_split(number):
        part = slice(end, end + len(wanted))
        end = part.stop
        if changes.partners is None:
            yield prepare(part), Target(wanted)
            continue
        others = changes.partners[part]
        mixed = torch.lerp(prepare(others), prepare(part), changes.share)
        yield mixed, Target(wanted, labels[others], changes.share)


def cut_out(x: Tensor, centres: Tensor, *, side: int, fill: Tensor) -> Tensor:
    """Fill a square of each image.

    Args:
        x: (N, 3, H, W).
        centres: row and column of each square's middle (N, 2).
        side: in pixels; what would lie outside of the image is left out.
        fill: (3, 1, 1).
    """
    rows, columns = (
        _is_within(size, middle, side)
        for size, middle in zip(x.shape[2:], centres.unbind(1), strict=True)
    )
    return torch.where(rows[:, None, :, None] & columns[:, None, None, :], fill, x)


def _is_within(size: int, middle: Tensor, side: int) -> Tensor:
    """Which of ``size`` places are within ``side`` around each middle: (N, size)."""
    place = torch.arange(size, device=middle.device) - middle[:, None] + side // 2
    return (place >= 0) & (place < side)


def _send(numbers: np.ndarray, device: torch.device) -> Tensor:
    """On a GPU from pinned memory, since the host would wait otherwise."""
    tensor = torch.from_numpy(numbers)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
