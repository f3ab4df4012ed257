"""Regularized evolution, in which the oldest die and not the worst (Real et al. 2019).

Imports the rest of the search and numpy; never torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spos.search.breeding import Batch, mutate, sample
from spos.search.feasible import FeasibleSpace, Genes
from spos.search.history import History
from spos.search.settings import check_plan, check_probability, check_whole


@dataclass(frozen=True)
class AgingEvolution:
    """One child at a time: of a few of the youngest, the best is mutated.

    Attributes:
        rounds: how often the best so far are written down.
        population: how many of the youngest candidates live, and candidates of a round; the first
            ones are random.
        sample_size: how many of them compete for being the parent; a quarter of the population.
        mutation_probability: of drawing a gene anew (it may be the same again).
        seed: of every random draw.
        max_failures: evaluations failing in a row that stop the search.

    Raises:
        ConfigError: naming the setting, its value and what is expected.
    """

    rounds: int = 20
    population: int = 50
    sample_size: int = None  # type: ignore[assignment]  # None: the share named above
    mutation_probability: float = 0.1
    seed: int = 0
    max_failures: int = 10

    def __post_init__(self) -> None:
        check_plan(self)
        if self.sample_size is None:
            object.__setattr__(self, "sample_size", max(1, self.population // 4))
        check_whole("sample_size", self.sample_size, low=1)
        check_probability("mutation_probability", self.mutation_probability)

    @property
    def batch_size(self) -> int:
        """How many candidates are chosen at once."""
        return 1

    def propose(
        self, space: FeasibleSpace, history: History, count: int, generator: np.random.Generator
    ) -> list[Genes]:
        """The next child; see `spos.search.searcher.Method`."""
        batch = Batch(space, history, count)
        scores = {genes: each.score for genes, each in history.items() if each.score is not None}
        if len(history) >= self.population and scores:
            living = list(scores)[-self.population :]

            def make() -> Genes:
                rivals = sample(living, self.sample_size, generator)
                parent = max(rivals, key=lambda genes: scores[genes])
                probability = self.mutation_probability
                return mutate(parent, space, probability=probability, generator=generator)

            batch.add_children(count, make)
        batch.fill(generator)
        return batch.genes
