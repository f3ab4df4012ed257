"""From uint8 batches to what a network is fed, on the device where the batch is.

Imports only torch, `spos.errors` and the rules of evaluation views.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from spos.data.augmentation import RESIZE_RULES, ViewRule, draw_view
from spos.errors import ConfigError

MEAN = (0.485, 0.456, 0.406)  # of ImageNet, RGB, 0..1
STD = (0.229, 0.224, 0.225)
UNSAID_PREPROCESSING = (  # of a file of weights, for messages
    "does not say how its images are to be prepared; write it once more with "
    "`python -m spos convert FILE OUT.safetensors --preprocessing standard` (or spos)"
)


@dataclass(frozen=True)
class Preprocessing:
    """How pixels are presented to a network.

    Attributes:
        name: ``"standard"`` (RGB, ImageNet's mean and standard deviation) or ``"spos"`` (BGR, 0 to
            255, as the official code and its weights have it). It decides the resizing of
            evaluation views too (`spos.data.augmentation`).

    Raises:
        ConfigError: if the name is unknown.
    """

    name: str = "standard"

    def __post_init__(self) -> None:
        if self.name not in RESIZE_RULES:
            raise ConfigError(
                f"preprocessing {self.name!r} is unknown; choose one of {', '.join(RESIZE_RULES)}"
            )

    def apply(
        self,
        images: torch.Tensor,
        *,
        channels_last: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> torch.Tensor:
        """Turn uint8 RGB images (N, 3, H, W) into the network's input, same shape and device.

        Args:
            images: as a loader yields them.
            channels_last: memory format of the result.
            dtype: of the result; the arithmetic is float32.
        """
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        if self.name == "spos":
            return images.flip(1).to(dtype=dtype, memory_format=memory_format)
        scale, offset = _normalisation(images.device)
        pixels = images.to(dtype=torch.float32, memory_format=memory_format)
        return pixels.mul_(scale).add_(offset).to(dtype)

    def mean_colour(self, device: torch.device) -> torch.Tensor:
        """ImageNet's mean colour as the network is fed it, (3, 1, 1); zeros if standard."""
        return _mean_colour(self.name, device)

    def describe(self, image_size: int) -> dict[str, Any]:
        """All of it as JSON, from a decoded image to the network's input, for other programs.

        Only ``name`` is ever read back; the rest says what the name stands for.
        """
        rule = ViewRule("none", self.name, image_size, 0)
        shorter_side, _ = draw_view(rule, epoch=0, index=0, width=1, height=1).resized
        is_standard = self.name == "standard"
        return {
            "name": self.name,
            "image_size": image_size,
            "resize_shorter_side": shorter_side,
            "interpolation": "bilinear, antialiased" if rule.antialias else "bilinear",
            "crop": "centre",
            "layout": "NCHW, float32",
            "channels": "RGB" if is_standard else "BGR",
            "scale": 1 / 255 if is_standard else 1.0,
            "mean": list(MEAN) if is_standard else [0.0, 0.0, 0.0],
            "std": list(STD) if is_standard else [1.0, 1.0, 1.0],
        }


@cache  # a copy to a GPU makes the host wait
@torch.inference_mode(False)
def _normalisation(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and offset, each (3, 1, 1), equal to dividing by 255 and standardising."""
    mean = torch.tensor(MEAN, dtype=torch.float64).view(3, 1, 1)
    std = torch.tensor(STD, dtype=torch.float64).view(3, 1, 1)
    return (1 / (255 * std)).float().to(device), (-mean / std).float().to(device)


@cache
@torch.inference_mode(False)
def _mean_colour(name: str, device: torch.device) -> torch.Tensor:
    if name == "standard":
        return torch.zeros(3, 1, 1, device=device)
    return torch.tensor([255 * value for value in reversed(MEAN)]).view(3, 1, 1).to(device)
