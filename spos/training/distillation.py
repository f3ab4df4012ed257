"""Knowledge distillation: a trained network whose answers another one learns.

Imports `spos.errors` and torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spos.errors import ConfigError

WEIGHT, TEMPERATURE = 0.5, 4.0  # unless they are given


@dataclass(frozen=True)
class Teacher:
    """A trained network whose answers another one learns (Hinton et al. 2015).

    Attributes:
        network: from images to logits, in evaluation mode, on the device of the training.
        digest: SHA-256 of its weights' file.
        weight: of its part of the loss, 0 to 1.
        temperature: above 0; divides the logits of both.
    """

    network: nn.Module
    digest: str
    weight: float = WEIGHT
    temperature: float = TEMPERATURE

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ConfigError(f"--teacher-weight {self.weight}: expected a number between 0 and 1")
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"--temperature {self.temperature}: expected a number above 0")

    def config(self) -> dict[str, Any]:
        """What a run's configuration says of it."""
        return {
            "teacher": self.digest,
            "teacher_weight": self.weight,
            "temperature": self.temperature,
        }

    def teach(self, loss: Tensor, logits: Tensor, x: Tensor) -> Tensor:
        """``loss`` and the divergence from the teacher, each by its weight.

        Gradients of soft targets fall with the square of the temperature, which is made up for.

        Args:
            loss: of the labels, a mean over the images.
            logits: of the network that learns (N, classes).
            x: what it was shown (N, 3, H, W).
        """
        with torch.no_grad():
            taught = self.network(x)
        learned, taught = (
            F.log_softmax(each.float() / self.temperature, dim=1) for each in (logits, taught)
        )
        divergence = F.kl_div(learned, taught, reduction="batchmean", log_target=True)
        return (1 - self.weight) * loss + self.weight * self.temperature**2 * divergence
