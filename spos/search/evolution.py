"""Evolutionary search in generations (Guo et al. 2020, sec. 3.3), and its genetic variant.

Imports `spos.errors`, the rest of the search and numpy; never torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spos.errors import ConfigError
from spos.search.breeding import Batch, cross, mutate, pick
from spos.search.feasible import FeasibleSpace, Genes
from spos.search.history import History, ranked
from spos.search.settings import check_plan, check_probability, check_whole


@dataclass(frozen=True)
class Evolution:
    """Generations bred from the best so far; the defaults are those of the official code.

    Differs from the official code in the first generation, half of which is spread over the MACs;
    ``num_spread=0`` is as there. The genetic search of CanyonWind's MXNet system is
    ``Evolution(num_spread=0, num_mutations=0, num_crossovers=50, lucky_probability=0.1,
    mutates_crossed=True)``.

    Attributes:
        rounds: number of generations, the first one included.
        population: candidates of a round.
        num_spread: candidates of the first round whose MACs (or the cost table's first metric) are
            spread evenly over those that the constraints allow, the others being random; half of
            the population.
        num_parents: best candidates so far that children are bred from; a fifth of the population.
        num_mutations: children by mutation in each round; half of the population.
        num_crossovers: children by crossover in each round; half of the population. With neither
            mutations nor crossovers the search is a random one.
        mutation_probability: of drawing a gene anew (it may be the same again).
        lucky_probability: of every other candidate of the last two rounds to be a parent as well.
        mutates_crossed: whether children by crossover are mutated too.
        sorts_rounds: whether neighbours in a round are alike from the first layer on, so that an
            evaluator runs the layers that they share once; otherwise mutations come first.
        seed: of every random draw.
        max_failures: evaluations failing in a row that stop the search.

    Raises:
        ConfigError: naming the setting, its value and what is expected.
    """

    rounds: int = 20
    population: int = 50
    num_spread: int = None  # type: ignore[assignment]  # None: the share named above
    num_parents: int = None  # type: ignore[assignment]
    num_mutations: int = None  # type: ignore[assignment]
    num_crossovers: int = None  # type: ignore[assignment]
    mutation_probability: float = 0.1
    lucky_probability: float = 0.0
    mutates_crossed: bool = False
    sorts_rounds: bool = False
    seed: int = 0
    max_failures: int = 10

    def __post_init__(self) -> None:
        check_plan(self)
        for name, part, low in _SHARES:
            if getattr(self, name) is None:
                object.__setattr__(self, name, max(low, self.population // part))
            check_whole(name, getattr(self, name), low=low)
        check_probability("mutation_probability", self.mutation_probability)
        check_probability("lucky_probability", self.lucky_probability)
        for name in ("mutates_crossed", "sorts_rounds"):
            if type(getattr(self, name)) is not bool:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, expected true or false")
        if self.num_spread > self.population:
            raise ConfigError(
                f"num_spread ({self.num_spread}) exceeds the population ({self.population}); "
                "lower it"
            )
        if self.num_mutations + self.num_crossovers > self.population:
            raise ConfigError(
                f"num_mutations ({self.num_mutations}) and num_crossovers ({self.num_crossovers}) "
                f"exceed the population ({self.population}); lower them"
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
        parents = self._parents(history, generator)
        if not history:
            batch.add_spread(self.num_spread, generator)
        if parents:
            batch.add_children(
                self.num_mutations, lambda: self._mutate(pick(parents, generator), space, generator)
            )
            batch.add_children(self.num_crossovers, lambda: self._cross(parents, space, generator))
        batch.fill(generator)
        return sorted(batch.genes) if self.sorts_rounds else batch.genes

    def _parents(self, history: History, generator: np.random.Generator) -> list[Genes]:
        ranking = [genes for genes, _ in ranked(history)]
        best, others = ranking[: self.num_parents], ranking[self.num_parents :]
        if self.lucky_probability:
            last = max(each.round for each in history.values()) if history else 0
            young = [genes for genes in others if history[genes].round >= last - 1]
            draws = generator.random(len(young)).tolist()
            best += [
                genes
                for genes, draw in zip(young, draws, strict=True)
                if draw < self.lucky_probability
            ]
        return best

    def _mutate(self, genes: Genes, space: FeasibleSpace, generator: np.random.Generator) -> Genes:
        return mutate(genes, space, probability=self.mutation_probability, generator=generator)

    def _cross(
        self, parents: list[Genes], space: FeasibleSpace, generator: np.random.Generator
    ) -> Genes:
        child = cross(parents, generator)
        return self._mutate(child, space, generator) if self.mutates_crossed else child


# setting -> the share of the population that it is by default, and its least value
_SHARES = (
    ("num_spread", 2, 0),
    ("num_parents", 5, 1),
    ("num_mutations", 2, 0),
    ("num_crossovers", 2, 0),
)
