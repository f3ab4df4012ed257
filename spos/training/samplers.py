"""Which path each training step trains: samplers that are functions of (seed, step) alone.

Imports `spos.architecture`, `spos.cost` and numpy; never torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from spos.architecture import Candidate, SearchSpec
from spos.cost.axis import CostAxis, table_moments
from spos.cost.table import Constraint, CostTable
from spos.errors import ConstraintError

MAX_DRAWS = 10_000
MAX_TRIALS = 100  # for a bin's first architecture: one that is harder to hit is left out


class PathSampler(Protocol):
    """Chooses the path of a training step.

    The path depends on the step and on what the sampler was built with, so that all ranks train the
    same path without talking about it and a resumed run continues with the path it would have had.
    """

    def sample(self, step: int) -> dict[str, Candidate]:
        """The choices of training step ``step``."""
        ...


class UniformSampler:
    """Every candidate of every layer with the same probability (Guo et al. 2020, sec. 3.2)."""

    def __init__(self, spec: SearchSpec, *, seed: int = 0) -> None:
        self._choices = list(spec.choices.items())
        self._seed = seed

    def sample(self, step: int) -> dict[str, Candidate]:
        """The choices of training step ``step``."""
        draws = counter_draws(self._seed, step, len(self._choices))
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


class CostUniformSampler:
    """Paths whose cost is spread evenly over a range (Guo et al. 2020, official code).

    A bin of the range is drawn first, each with the same probability, then an architecture, each in
    the bin with the same probability. That second draw is made by dynamic programming over the
    additive cost table, not by rejection. A bin that holds no architecture is left out.

    Differs from the official code, which gives up after 500 rejected draws and then ignores the
    range, and from NNI 2.5, which draws the bin anew at every rejection and so does not spread
    the cost at all.

    Args:
        table: costs of the space; its terms must have disjoint labels.
        metric: the cost to spread.
        low: lower end of the range, inclusive; by default the mean minus three standard deviations.
        high: upper end, inclusive; by default the mean plus three standard deviations.
        num_bins: number of bins of equal width.

    Raises:
        ConstraintError: if the range holds no architecture or the table is not separable.
    """

    def __init__(
        self,
        table: CostTable,
        *,
        seed: int = 0,
        metric: str = "macs",
        low: float | None = None,
        high: float | None = None,
        num_bins: int = 7,
    ) -> None:
        mean, deviation = table_moments(table, metric)
        reach = table.bounds(metric)
        low = max(reach[0], mean - 3 * deviation) if low is None else low
        high = min(reach[1], mean + 3 * deviation) if high is None else high
        Constraint(metric, low, high).check_reachable(table)
        self._table, self._metric, self._seed = table, metric, seed
        self._axis = CostAxis(table, metric)
        self._high = high
        edges = [low + (high - low) * number / num_bins for number in range(num_bins)] + [high]
        self.bins = tuple(
            (left, right)
            for left, right in itertools.pairwise(edges)
            if self._draw(left, right, counter_generator(0, 0), MAX_TRIALS)
        )
        if not self.bins:
            raise ConstraintError(
                f"no architecture of {table.spec.space!r} has {metric} between {low:,} and "
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
            f"no architecture of {self._table.spec.space!r} with {self._metric} between {left:,} "
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
            cost = self._table.cost(choices, self._metric)
            # On an exact axis the draw is inside; on a rounded one a few lie just outside.
            if left <= cost < right or (is_last and cost == right):
                return choices
        return None


def counter_generator(seed: int, step: int, *, stream: int = 0) -> np.random.Generator:
    """A random generator that is a function of its arguments alone."""
    key = [seed % 2**64, stream]
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, step]))


def counter_draws(seed: int, step: int, count: int) -> Sequence[float]:
    """``count`` uniform numbers in [0, 1) that are a function of (seed, step) alone."""
    return counter_generator(seed, step).random(count).tolist()


def build_sampler(
    name: str, table: CostTable, *, seed: int, macs_range: tuple[float, float] | None = None
) -> PathSampler:
    """The sampler called ``name``, one of `SAMPLERS`."""
    if name == "uniform":
        return UniformSampler(table.spec, seed=seed)
    if name == "fair":
        return FairSampler(table.spec, seed=seed)
    low, high = macs_range or PUBLISHED_RANGES.get(_setting(table), (None, None))
    return CostUniformSampler(table, seed=seed, low=low, high=high)


SAMPLERS = ("uniform", "macs-uniform", "fair")

# (space, image size, classes) -> the range of MACs that the authors trained with.
PUBLISHED_RANGES: Mapping[tuple, tuple[float, float]] = {
    ("shufflenetv2", 224, 1000): (290_000_000, 360_000_000)
}


def _setting(table: CostTable) -> tuple:
    options = table.spec.options
    return table.spec.space, options.get("image_size"), options.get("num_classes")
