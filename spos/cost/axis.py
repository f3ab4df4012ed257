"""How the architectures of a space spread over a cost, by dynamic programming over its table.

Imports `spos.architecture`, `spos.cost.table`, `spos.errors` and numpy; never torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from spos.architecture import Candidate
from spos.cost.table import CostTable
from spos.errors import ConstraintError

MAX_CELLS = 2**18  # 20 layers of them take 40 MB
MAX_RANGES = 32  # of which sums are kept; samplers have 7 bins


@dataclass(frozen=True)
class _AxisTerm:
    """One term of the table on the cost axis: its combinations and their whole-cell offsets."""

    labels: tuple[str, ...]
    combinations: tuple[tuple[Candidate, ...], ...]
    offsets: tuple[int, ...]


class CostAxis:
    """How many architectures there are at each cost, and a way to draw among them.

    Costs are laid on an axis of cells as wide as the greatest common divisor of all differences, so
    that a cell is one exact cost. Where that would need more than `MAX_CELLS` cells (measured
    latencies, say) cells are wider, offsets are rounded, and `draw` may return a cost that lies
    outside its bounds by up to `slack`; callers reject those few.
    """

    def __init__(self, table: CostTable, metric: str) -> None:
        if not table.is_separable:
            raise ConstraintError(
                f"the {metric} of {table.spec.space!r} are not a sum over separate layers, "
                "so they cannot be sampled evenly; use the uniform sampler"
            )
        columns = [term.costs[metric] for term in table.terms]
        self._low = table.bounds(metric)[0]
        span = table.bounds(metric)[1] - self._low
        differences = [cost - min(column) for column in columns for cost in column]
        whole = all(float(difference).is_integer() for difference in differences)
        divisor = math.gcd(*(int(difference) for difference in differences)) if whole else 0
        divisor = divisor or 1  # all costs the same, or not on a common grid
        exact = whole and span / divisor < MAX_CELLS
        self._cell = float(divisor) if exact else span / (MAX_CELLS - 1)
        self.slack = 0.0 if exact else self._cell * len(columns) / 2
        self._terms = [
            _AxisTerm(
                term.labels,
                tuple(table.spec.combinations(term.labels)),
                tuple(round((cost - min(column)) / self._cell) for cost in column),
            )
            for term, column in zip(table.terms, columns, strict=True)
        ]
        self._free = [
            (label, candidates)
            for label, candidates in table.spec.choices.items()
            if not any(label in term.labels for term in table.terms)
        ]
        self._order = list(table.spec.choices)
        self._ways = self._count_ways()
        self._sums: dict[tuple[int, int], np.ndarray] = {}

    def count_between(self, low: float, high: float, *, closed: bool = True) -> float:
        """About how many architectures cost between ``low`` and ``high`` (exact to rounding).

        Those that cost just ``high`` are counted if ``closed``.
        """
        sums = self._add_up(*self._cells(low, high, closed))
        return float(sums[-1]) if len(sums) else 0.0

    def draw(
        self, low: float, high: float, generator: np.random.Generator, *, closed: bool = True
    ) -> dict[str, Candidate]:
        """One of the architectures that `count_between` counts, all equally likely."""
        first, last = self._cells(low, high, closed)
        sums = self._add_up(first, last)
        draws = generator.random(1 + len(self._terms) + len(self._free))
        cell = first + int(np.searchsorted(sums, draws[0] * sums[-1], side="right"))
        cell = min(cell, last - 1)
        choices: dict[str, Candidate] = {}
        for draw, term, ways in zip(draws[1:], self._terms, self._ways[1:], strict=False):
            number = _pick(draw, [ways[cell - o] if o <= cell else 0.0 for o in term.offsets])
            choices.update(zip(term.labels, term.combinations[number], strict=True))
            cell -= term.offsets[number]
        for draw, (label, candidates) in zip(
            draws[1 + len(self._terms) :], self._free, strict=True
        ):
            choices[label] = candidates[int(draw * len(candidates))]
        return {label: choices[label] for label in self._order}

    def _add_up(self, first: int, last: int) -> np.ndarray:
        """Numbers of architectures up to each cell of a range.

        Not differences of sums over the whole axis: at 1e32 architectures those of its ends vanish.
        """
        if (first, last) not in self._sums:
            if len(self._sums) >= MAX_RANGES:
                self._sums.clear()
            self._sums[first, last] = self._ways[0][first:last].cumsum()
        return self._sums[first, last]

    def _cells(self, low: float, high: float, closed: bool) -> tuple[int, int]:
        first = math.ceil((low - self.slack - self._low) / self._cell - 1e-9)
        end = (high + self.slack - self._low) / self._cell
        last = math.floor(end + 1e-9) + 1 if closed else math.ceil(end - 1e-9)
        limit = len(self._ways[0])
        first = min(max(first, 0), limit)
        return first, min(max(last, first), limit)

    def _count_ways(self) -> list[np.ndarray]:
        """``ways[i][c]``: number of choices of the terms from i on that add up to c cells."""
        size = 1 + sum(max(term.offsets) for term in self._terms)
        ways = [np.zeros(size) for _ in range(len(self._terms) + 1)]
        ways[-1][0] = 1.0
        for number in range(len(self._terms) - 1, -1, -1):
            for offset in self._terms[number].offsets:
                ways[number][offset:] += ways[number + 1][: size - offset]
        return ways


def table_moments(table: CostTable, metric: str) -> tuple[float, float]:
    """Mean and standard deviation of a cost over uniformly drawn architectures.

    Exact for a separable table; the terms are taken as independent otherwise.
    """
    mean, variance = float(table.fixed[metric]), 0.0
    for term in table.terms:
        column = np.asarray(term.costs[metric], dtype=np.float64)
        mean += float(column.mean())
        variance += float(column.var())
    return mean, math.sqrt(variance)


def _pick(draw: float, weights: list[float]) -> int:
    target = draw * sum(weights)
    for number, weight in enumerate(weights):
        target -= weight
        if target < 0:
            return number
    return max(number for number, weight in enumerate(weights) if weight > 0)
