"""Paths that are spread evenly: over the candidates, or over a cost.

Imports `spos.architecture`, `spos.cost`, `spos.data.counter_random`, `spos.errors` and numpy;
never torch.
"""

from __future__ import annotations

import itertools

import numpy as np

from spos.architecture import Candidate, SearchSpec
from spos.cost.axis import CostAxis, table_moments
from spos.cost.constraints import Constraint
from spos.cost.table import CostTable
from spos.data.counter_random import counter_generator
from spos.errors import ConstraintError

METRIC = "macs"  # the cost to spread
MAX_DRAWS = 10_000
MAX_TRIALS = 100  # for a bin's first architecture: one that is harder to hit is left out


class UniformSampler:
    """Every candidate of every layer with the same probability (Guo et al. 2020, sec. 3.2)."""

    def __init__(self, spec: SearchSpec, *, seed: int = 0) -> None:
        self._choices = list(spec.choices.items())
        self._seed = seed

    def sample(self, step: int) -> dict[str, Candidate]:
        """The choices of training step ``step``."""
        draws = counter_generator(self._seed, step).random(len(self._choices)).tolist()
        return {
            label: candidates[int(draw * len(candidates))]
            for (label, candidates), draw in zip(self._choices, draws, strict=True)
        }


class FairSampler:
    """Every candidate of a layer once in each group of steps (Chu et al. 2021, FairNAS, sec. 3.3).

    The group of a layer with n candidates is n steps long; its order is drawn anew for each layer
    and group. Differs from FairNAS in updating the weights after every path, not once a group, and
    in that layers may have different numbers of candidates.
    """

    def __init__(self, spec: SearchSpec, *, seed: int = 0) -> None:
        self._choices = spec.choices
        self._lengths = sorted({len(candidates) for candidates in spec.choices.values()})
        self._seed = seed

    def sample(self, step: int) -> dict[str, Candidate]:
        """The choices of training step ``step``."""
        generators, places = {}, {}
        for length in self._lengths:
            group, places[length] = divmod(step, length)
            generators[length] = counter_generator(self._seed, group, stream=length)
        path = {}
        for label, candidates in self._choices.items():
            length = len(candidates)
            order = generators[length].random(length).argsort()
            path[label] = candidates[order[places[length]]]
        return path


def usual_range(table: CostTable) -> Constraint:
    """Three standard deviations on either side of the mean MACs, as far as the space reaches."""
    mean, deviation = table_moments(table, METRIC)
    return Constraint(METRIC, mean - 3 * deviation, mean + 3 * deviation).clip(table)


class CostUniformSampler:
    """Paths whose MACs are spread evenly over a range (Guo et al. 2020, official code).

    A bin of the range is drawn first, each with the same probability, then an architecture, each in
    the bin with the same probability. That second draw is made by dynamic programming over the
    additive cost table, not by rejection. A bin that holds no architecture is left out.

    Differs from the official code, which gives up after 500 rejected draws and then ignores the
    range, and from NNI 2.5, which draws the bin anew at every rejection and so does not spread
    the cost at all.

    Args:
        table: costs of the space; its terms must have disjoint labels.
        seed: of all draws.
        low: lower end of the range, inclusive; by default that of `usual_range`.
        high: upper end, inclusive; by default that of `usual_range`.
        num_bins: number of bins of equal width.

    Raises:
        ConstraintError: if the range holds no architecture or the table is not separable.
    """

    def __init__(
        self,
        table: CostTable,
        *,
        seed: int = 0,
        low: float | None = None,
        high: float | None = None,
        num_bins: int = 7,
    ) -> None:
        if low is None or high is None:
            usual = usual_range(table)
            low = usual.low if low is None else low
            high = usual.high if high is None else high
        Constraint(METRIC, low, high).check_reachable(table)
        self._table, self._seed = table, seed
        self._axis = CostAxis(table, METRIC)
        self._high = high
        edges = [low + (high - low) * number / num_bins for number in range(num_bins)] + [high]
        self.bins = tuple(
            (left, right)
            for left, right in itertools.pairwise(edges)
            if self._draw(left, right, counter_generator(0, 0), MAX_TRIALS)
        )
        if not self.bins:
            raise ConstraintError(
                f"no architecture of {table.spec.space!r} has {METRIC} between {low:,} and "
                f"{high:,}; widen the range"
            )

    def sample(self, step: int) -> dict[str, Candidate]:
        """The choices of training step ``step``."""
        generator = counter_generator(self._seed, step)
        left, right = self.bins[int(generator.random() * len(self.bins))]
        choices = self._draw(left, right, generator, MAX_DRAWS)
        if choices:
            return choices
        raise ConstraintError(
            f"no architecture of {self._table.spec.space!r} with {METRIC} between {left:,} "
            f"and {right:,} was found in {MAX_DRAWS} draws; use fewer bins or a wider range"
        )

    def _draw(
        self, left: float, right: float, generator: np.random.Generator, max_draws: int
    ) -> dict[str, Candidate] | None:
        """An architecture in a bin, which is half-open but for the last; None if it is empty."""
        is_last = right == self._high
        if not self._axis.count_between(left, right, closed=is_last):
            return None
        for _ in range(max_draws):
            choices = self._axis.draw(left, right, generator, closed=is_last)
            cost = self._table.cost(choices, METRIC)
            # On an exact axis the draw is inside; on a rounded one a few lie just outside.
            if left <= cost < right or (is_last and cost == right):
                return choices
        return None
