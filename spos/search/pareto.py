"""Multi-objective search: selection as in NSGA-II (Deb et al. 2002), ending in a Pareto front.

Imports `spos.errors`, the rest of the search and numpy; never torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spos.errors import ConfigError, ConstraintError
from spos.search.breeding import Batch, cross, mutate
from spos.search.feasible import FeasibleSpace, Genes
from spos.search.history import History, ranked
from spos.search.settings import check_plan, check_probability


@dataclass(frozen=True)
class ParetoEvolution:
    """Evolution towards the best score at every cost.

    The survivors of all candidates so far are those of the first fronts, and of the front that does
    not fit the ones in its emptiest parts. Of two survivors drawn at random the better one becomes
    a parent; children are crossed and then mutated.

    Attributes:
        rounds: number of generations, the random one included.
        population: candidates of a round, and survivors.
        costs: metrics of the cost table that are to be low, while the score is to be high.
        mutation_probability: of drawing a gene anew (it may be the same again).
        seed: of every random draw.
        max_failures: evaluations failing in a row that stop the search.

    Raises:
        ConfigError: naming the setting, its value and what is expected.
    """

    rounds: int = 20
    population: int = 50
    costs: Sequence[str] = ("macs",)
    mutation_probability: float = 0.1
    seed: int = 0
    max_failures: int = 10

    def __post_init__(self) -> None:
        check_plan(self)
        check_probability("mutation_probability", self.mutation_probability)
        names = list(self.costs) if isinstance(self.costs, (list, tuple)) else []
        if not names or any(not isinstance(each, str) for each in names):
            raise ConfigError(
                f"costs is {self.costs!r}, expected a list of the cost table's metrics, as [macs]"
            )
        object.__setattr__(self, "costs", names)

    def check_space(self, space: FeasibleSpace) -> None:
        """Refuse costs that the space's table does not have.

        Raises:
            ConstraintError: with those that it has.
        """
        for metric in self.costs:
            if metric not in space.table.metrics:
                raise ConstraintError(
                    f"costs: the cost table of {space.spec.space!r} has no metric {metric!r}; it "
                    f"has {', '.join(space.table.metrics)}"
                )

    @property
    def batch_size(self) -> int:
        """How many candidates are chosen at once: a whole generation."""
        return self.population

    def propose(
        self, space: FeasibleSpace, history: History, count: int, generator: np.random.Generator
    ) -> list[Genes]:
        """The next generation; see `spos.search.searcher.Method`."""
        batch = Batch(space, history, count)
        genes, losses = measure(space, history, self.costs)
        if genes:
            survivors = [genes[number] for number in select(losses, self.population)]

            def make() -> Genes:
                draws = (generator.random((2, 2)) * len(survivors)).astype(int)
                parents = [survivors[number] for number in draws.min(axis=1).tolist()]
                child = cross(parents, generator)
                probability = self.mutation_probability
                return mutate(child, space, probability=probability, generator=generator)

            batch.add_children(count, make)
        batch.fill(generator)
        return batch.genes


def measure(
    space: FeasibleSpace, history: History, costs: Sequence[str]
) -> tuple[list[Genes], np.ndarray]:
    """The scored candidates, best score first, and (candidates, 1 + costs) numbers to be low."""
    ranking = ranked(history)
    losses = [
        [-score, *(space.table.cost(space.choices(genes), metric) for metric in costs)]
        for genes, score in ranking
    ]
    return [genes for genes, _ in ranking], np.array(losses, float).reshape(-1, 1 + len(costs))


def find_front(losses: np.ndarray) -> np.ndarray:
    """Which rows of ``losses`` no other row beats: at most as high everywhere, lower somewhere."""
    is_front = np.zeros(len(losses), bool)
    left = np.lexsort(losses.T[::-1])  # the first is beaten by no other
    while len(left):
        best, left = left[0], left[1:]
        is_front[best] = True
        rows = losses[left]
        is_beaten = (losses[best] <= rows).all(axis=1) & (losses[best] < rows).any(axis=1)
        left = left[~is_beaten]
    return is_front


def select(losses: np.ndarray, count: int) -> list[int]:
    """The numbers of the best ``count`` rows: front after front, emptiest parts of a front first.

    Args:
        losses: (candidates, objectives) numbers to be low.
        count: how many to select.
    """
    chosen: list[int] = []
    left = np.arange(len(losses))
    while len(left) and len(chosen) < count:
        is_front = find_front(losses[left])
        front = left[is_front]
        crowding = measure_crowding(losses[front])
        chosen += front[np.argsort(-crowding, kind="stable")].tolist()
        left = left[~is_front]
    return chosen[:count]


def measure_crowding(losses: np.ndarray) -> np.ndarray:
    """How far the neighbours of each row of a front are apart; infinity at the ends."""
    distance = np.zeros(len(losses))
    for column in losses.T:
        order = np.argsort(column, kind="stable")
        span = column[order[-1]] - column[order[0]]
        distance[order[[0, -1]]] = np.inf
        if span > 0 and len(order) > 2:
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
    return distance
