"""Random search: every candidate is drawn uniformly among those that meet the constraints.

Imports the rest of the search and numpy; never torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spos.search.breeding import Batch
from spos.search.feasible import FeasibleSpace, Genes
from spos.search.history import History
from spos.search.settings import check_plan


@dataclass(frozen=True)
class RandomSearch:
    """The measure of every other searcher.

    Attributes:
        rounds: how often the best so far are written down.
        population: candidates between two such times.
        seed: of every random draw.
        max_failures: evaluations failing in a row that stop the search.

    Raises:
        ConfigError: naming the setting, its value and what is expected.
    """

    rounds: int = 20
    population: int = 50
    seed: int = 0
    max_failures: int = 10

    def __post_init__(self) -> None:
        check_plan(self)

    @property
    def batch_size(self) -> int:
        """How many candidates are chosen at once."""
        return self.population

    def propose(
        self, space: FeasibleSpace, history: History, count: int, generator: np.random.Generator
    ) -> list[Genes]:
        """The next candidates; see `spos.search.searcher.Method`."""
        batch = Batch(space, history, count)
        batch.fill(generator)
        return batch.genes
