"""How long networks take on this machine, measured in turns so that what slows one slows all.

Imports torch.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

WARMUP = 5


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one batch.

    Attributes:
        median_ms: of all repeats.
        p95_ms: 95 of 100 repeats took no longer.
        repeats: how many there were.
    """

    median_ms: float
    p95_ms: float
    repeats: int


@torch.inference_mode()
def measure_latency(
    networks: Mapping[str, nn.Module], images: Tensor, *, repeats: int
) -> dict[str, Latency]:
    """Run every network ``repeats`` times, in turns: A B A B.

    Args:
        networks: by name, in evaluation mode, on the CPU.
        images: one batch.
        repeats: at least 1, after `WARMUP` that are not counted.
    """
    times: dict[str, list[float]] = {name: [] for name in networks}
    for turn in range(-WARMUP, repeats):
        for name, network in networks.items():
            began = time.perf_counter()
            network(images)
            if turn >= 0:
                times[name].append(1000 * (time.perf_counter() - began))
    return {name: _summarize(each) for name, each in times.items()}


def _summarize(times: list[float]) -> Latency:
    ordered = sorted(times)
    rank = -(-95 * len(ordered) // 100)  # the smallest time that 95 % do not exceed
    return Latency(statistics.median(ordered), ordered[rank - 1], len(ordered))
