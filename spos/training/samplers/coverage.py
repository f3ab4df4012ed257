"""How well drawn paths cover a box of MACs and parameters.

Imports `spos.cost.constraints`, `spos.cost.table` and numpy; never torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spos.cost.constraints import Constraint
from spos.cost.table import CostTable

AXES = ("macs", "params")
CELLS = (14, 11)  # 10M MACs by 0.2M parameters in CanyonWind's box
COARSE_CELLS = (7, 7)


@dataclass(frozen=True)
class Coverage:
    """How draws spread over a box.

    Attributes:
        inside: share of the draws that lie in the box.
        occupied: cells of `CELLS` with a draw.
        entropy: of the draws in the box over `CELLS`: 0 all in one cell, 1 as many in each.
        coarse_entropy: the same over `COARSE_CELLS`.
    """

    inside: float
    occupied: int
    entropy: float
    coarse_entropy: float


def find_box(table: CostTable, ranges: Sequence[Constraint]) -> tuple[Constraint, Constraint]:
    """The box of the two `AXES`: the given ranges, an open end where the space ends.

    Raises:
        ConstraintError: if the space does not reach one of them.
    """
    reached = {each.metric: each.clip(table) for each in ranges}
    macs, params = (reached.get(each) or Constraint(each, *table.bounds(each)) for each in AXES)
    return macs, params


def measure_coverage(costs: np.ndarray, box: Sequence[Constraint]) -> Coverage:
    """How the costs (N, 2) of N draws cover a box, both of its ends included."""
    low, high = (np.array([getattr(each, end) for each in box]) for end in ("low", "high"))
    inside = costs[((low <= costs) & (costs <= high)).all(axis=1)]
    fine, coarse = (_count(inside, low, high, cells) for cells in (CELLS, COARSE_CELLS))
    return Coverage(
        inside=len(inside) / len(costs),
        occupied=int((fine > 0).sum()),
        entropy=_entropy(fine),
        coarse_entropy=_entropy(coarse),
    )


def _count(
    costs: np.ndarray, low: np.ndarray, high: np.ndarray, cells: tuple[int, int]
) -> np.ndarray:
    counts, _, _ = np.histogram2d(
        costs[:, 0], costs[:, 1], bins=cells, range=[(low[0], high[0]), (low[1], high[1])]
    )
    return counts.ravel()


def _entropy(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(shares * np.log(shares)).sum() / math.log(len(counts))) + 0.0
