"""How new architectures are made: drawn at random, by mutation and by crossover.

Imports `spos.search.feasible` and numpy; never torch.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from spos.search.feasible import FeasibleSpace, Genes

TRIES_PER_CHILD = 10  # as in the official code: children that are not new or not feasible
DRAWS_PER_SPREAD = 20  # architectures that one is chosen from for its cost


class Batch:
    """Architectures that are about to be chosen: new, feasible and different from each other.

    Args:
        space: what may be chosen.
        seen: the architectures that were chosen before.
        size: how many are wanted.
    """

    def __init__(self, space: FeasibleSpace, seen: Mapping[Genes, Any], size: int) -> None:
        self.space, self.size = space, size
        self._new: dict[Genes, Any] = {}
        self._seen = ChainMap(self._new, seen)  # type: ignore[arg-type]  # it is only read

    @property
    def genes(self) -> list[Genes]:
        """What was added so far, in order."""
        return list(self._new)

    @property
    def num_missing(self) -> int:
        """How many are still wanted."""
        return self.size - len(self._new)

    def add(self, genes: Genes) -> bool:
        """Add an architecture, if it is new and feasible; whether it was."""
        if genes in self._seen or not self.space.allows(genes):
            return False
        self._new[genes] = None
        return True

    def add_children(self, count: int, make: Callable[[], Genes]) -> None:
        """Add up to ``count`` of what ``make`` makes; not every try succeeds."""
        count = min(count, self.num_missing)
        for _ in range(count * TRIES_PER_CHILD):
            if count == 0:
                return
            count -= self.add(make())

    def add_spread(self, count: int, generator: np.random.Generator) -> None:
        """Add up to ``count`` whose costs are spread evenly over those of many random ones.

        Costs of random architectures crowd together, and accuracy often goes with the cost.
        """
        count = min(count, self.num_missing)
        table = self.space.table
        metric = "macs" if "macs" in table.metrics else table.metrics[0]
        pool = Batch(self.space, self._seen, count * DRAWS_PER_SPREAD)
        pool.fill(generator)
        genes = pool.genes
        costs = np.array([table.cost(self.space.choices(each), metric) for each in genes], float)
        for target in np.linspace(costs.min(), costs.max(), count) if genes else ():
            nearest = int(np.argmin(np.abs(costs - target)))
            costs[nearest] = np.inf  # taken; if all are, the first is no longer new
            self.add(genes[nearest])

    def fill(self, generator: np.random.Generator) -> None:
        """Add architectures drawn at random until all are there, or there is no further one."""
        while self.num_missing > 0:
            genes = self.space.draw(generator, self._seen)
            if genes is None:
                return
            self._new[genes] = None


def pick(parents: Sequence[Genes], generator: np.random.Generator) -> Genes:
    """One of the parents, all equally likely."""
    return parents[int(generator.random() * len(parents))]


def mutate(
    genes: Genes, space: FeasibleSpace, *, probability: float, generator: np.random.Generator
) -> Genes:
    """``genes`` with each drawn anew with ``probability`` (it may be the same again)."""
    draws = generator.random((len(genes), 2))
    drawn_anew = space.scale(draws[:, 1])
    return tuple(np.where(draws[:, 0] < probability, drawn_anew, genes).tolist())


def cross(parents: Sequence[Genes], generator: np.random.Generator) -> Genes:
    """Every gene from one of two parents, which are drawn from ``parents``."""
    first, second = (parents[int(draw * len(parents))] for draw in generator.random(2).tolist())
    draws = generator.random(len(first)).tolist()
    return tuple(
        left if draw < 0.5 else right
        for left, right, draw in zip(first, second, draws, strict=True)
    )


def sample(
    population: Collection[Genes], count: int, generator: np.random.Generator
) -> list[Genes]:
    """``count`` different members of ``population``, or all of them if there are fewer."""
    left = list(population)
    chosen = []
    for draw in generator.random(min(count, len(left))).tolist():
        chosen.append(left.pop(int(draw * len(left))))
    return chosen
