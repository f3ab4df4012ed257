"""How long, how fast and on what images to train: the recipe, and what suits which data.

Imports `spos.errors` and torch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from spos.errors import ConfigError

SCHEDULES = ("linear", "cosine")
AMP_MODES = ("off", "bf16", "fp16")
LARGEST_FLOAT = torch.finfo(torch.float32).max  # torch multiplies by no larger number
LEAST_STEPS = 40  # of an epoch, by default
LEAST_BATCH = 16  # to which few images may bring it


@dataclass(frozen=True)
class Recipe:
    """Everything that training does to the weights, but for the path and the images.

    Attributes:
        epochs: passes over the training images; 0 trains nothing.
        batch_size: images of a step over all processes together.
        accumulate: into how many parts each process divides its images of a step. They are computed
            one after the other, which takes the memory of one, and their gradients are added up;
            BatchNorm in training sees the images of one part, and dropout draws for each.
        lr: learning rate at the start; it falls to 0, at every step.
        schedule: ``linear`` or ``cosine``.
        warmup_epochs: epochs over which the learning rate rises from 0 first.
        momentum: of stochastic gradient descent.
        weight_decay: on the weights of convolutions and linear layers only.
        label_smoothing: share of the target spread over all classes.
        mixup: alpha of the Beta distribution that images are mixed by; 0 does not mix.
        mixup_off_epochs: the last epochs, in which images are not mixed.
        cutout: side of the square that is cut out of each training image, in pixels of the
            network's input; 0 cuts nothing.
        clip_norm: largest norm of the gradient; 0 does not clip.
        amp: ``off``, ``bf16`` or ``fp16`` autocast.
        seed: of initialisation, order, augmentation, mixup, cutout, dropout and paths.
    """

    epochs: int
    batch_size: int
    lr: float
    accumulate: int = 1
    schedule: str = "linear"
    warmup_epochs: float = 0.0
    momentum: float = 0.9
    weight_decay: float = 4e-5
    label_smoothing: float = 0.1
    mixup: float = 0.0
    mixup_off_epochs: int = 0
    cutout: int = 0
    clip_norm: float = 0.0
    amp: str = "off"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("epochs", 0, math.inf),
            ("batch_size", 1, math.inf),
            ("accumulate", 1, self.batch_size),
            ("lr", 0, LARGEST_FLOAT),
            ("warmup_epochs", 0, self.epochs),
            ("momentum", 0, 1),
            ("weight_decay", 0, LARGEST_FLOAT),
            ("label_smoothing", 0, 1),
            ("mixup", 0, 100),
            ("mixup_off_epochs", 0, self.epochs),
            ("cutout", 0, math.inf),
            ("clip_norm", 0, math.inf),
        ):
            if not (low <= getattr(self, name) <= high and math.isfinite(getattr(self, name))):
                raise ConfigError(
                    f"--{name.replace('_', '-')} {getattr(self, name)}: expected a number "
                    f"between {low} and {high:g}"
                )
        for name, known in (("schedule", SCHEDULES), ("amp", AMP_MODES)):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"--{name} {getattr(self, name)}: expected one of {', '.join(known)}"
                )
        if self.mixup_off_epochs and not self.mixup:
            raise ConfigError(
                f"--mixup-off-epochs {self.mixup_off_epochs}: expected --mixup ALPHA too, without "
                "which no epoch mixes images"
            )

    def config(self) -> dict[str, Any]:
        """The fields as ``args.json`` has them: newer ones where they are used, for older runs."""
        newer = {"accumulate": 1, "mixup": 0, "mixup_off_epochs": 0, "cutout": 0}
        return {name: value for name, value in vars(self).items() if newer.get(name) != value}

    def replace(self, changes: Mapping[str, Any]) -> Recipe:
        """This recipe with the fields of ``changes`` that are not None."""
        return dataclasses.replace(
            self, **{name: value for name, value in changes.items() if value is not None}
        )

    def for_images(self, number: int) -> Recipe:
        """This recipe for so many training images: a few are taken in smaller batches.

        A batch is halved until an epoch has `LEAST_STEPS` or a batch `LEAST_BATCH` images. With
        that of ImageNet a thousand images would be a step an epoch, and the weights would hardly
        have moved at the end.
        """
        batch_size = self.batch_size
        while batch_size >= 2 * LEAST_BATCH and number < LEAST_STEPS * batch_size:
            batch_size //= 2
        return self.with_batch_size(batch_size)

    def with_batch_size(self, batch_size: int) -> Recipe:
        """This recipe for another batch size, which the learning rate follows."""
        lr = self.lr * batch_size / self.batch_size
        return dataclasses.replace(self, batch_size=batch_size, lr=lr)

    def lr_at(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of step ``step``, the first being 0."""
        total = self.epochs * steps_per_epoch
        warmup = self.warmup_epochs * steps_per_epoch
        if step < warmup:
            return self.lr * (step + 1) / warmup
        progress = (step - warmup) / max(total - warmup, 1)
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * progress))
        return self.lr * (1 - progress)

    def mixup_at(self, step: int, steps_per_epoch: int) -> float:
        """Alpha of mixup at step ``step``, the first being 0; 0 does not mix."""
        return self.mixup if step < (self.epochs - self.mixup_off_epochs) * steps_per_epoch else 0.0


@dataclass(frozen=True)
class Preset:
    """What suits a kind of data: recipes for the two stages and how images are prepared.

    Of a search space it has the options that suit such data better than the space's own defaults.
    """

    supernet: Recipe
    scratch: Recipe
    augmentation: str
    image_size: int | None  # None: the size of the images themselves
    held_out_per_class: int
    calibration_images: int
    space_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def with_batch_size(self, batch_size: int) -> Preset:
        """The same with another batch size in both stages."""
        supernet, scratch = (
            each.with_batch_size(batch_size) for each in (self.supernet, self.scratch)
        )
        return dataclasses.replace(self, supernet=supernet, scratch=scratch)


# The paper's settings hold for ImageNet (Guo et al. 2020, sec. 4.1; the official code): batch 1024,
# learning rate 0.5 linear to 0, weight decay 4e-5, label smoothing 0.1; 120 epochs of supernet and
# 240 of the searched network.
PRESETS: dict[str, Preset] = {
    "imagenet": Preset(
        supernet=Recipe(epochs=120, batch_size=1024, lr=0.5),
        scratch=Recipe(epochs=240, batch_size=1024, lr=0.5),
        augmentation="paper",
        image_size=224,
        held_out_per_class=50,
        calibration_images=25_600,
    ),
    "small": Preset(
        supernet=Recipe(epochs=200, batch_size=128, lr=0.1, clip_norm=5.0, warmup_epochs=1.0),
        scratch=Recipe(epochs=200, batch_size=128, lr=0.1, schedule="cosine", warmup_epochs=5.0),
        augmentation="crop-flip",
        image_size=None,
        held_out_per_class=50,
        calibration_images=2_000,
    ),
    "digits": Preset(
        supernet=Recipe(epochs=24, batch_size=16, lr=0.04, clip_norm=5.0, warmup_epochs=1.0),
        scratch=Recipe(
            epochs=8, batch_size=32, lr=0.05, schedule="cosine", clip_norm=2.0, warmup_epochs=0.8
        ),
        augmentation="crop",
        image_size=8,  # of the digits before they were enlarged to JPEGs
        held_out_per_class=25,
        calibration_images=512,
        space_options={"shufflenetv2": {"stage_depths": [2, 2, 4, 2]}},
    ),
}

CPU_PHOTOGRAPHS = 64  # of a batch: each takes 55 MB in training, so that 1,024 would take 56 GB


def decay_groups(parameters: Iterable[torch.nn.Parameter], weight_decay: float) -> list[dict]:
    """Parameter groups with weight decay on matrices and kernels, none on vectors."""
    decayed, plain = [], []
    for parameter in parameters:
        (decayed if parameter.dim() > 1 else plain).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
