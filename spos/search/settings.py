"""How an evolutionary search runs: its sizes, probabilities and seed.

Imports only `spos.errors`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spos.errors import ConfigError


@dataclass(frozen=True)
class EvolutionSettings:
    """How the search runs; the defaults are those of the official code.

    Attributes:
        rounds: number of generations, the random one included.
        population: candidates of a round.
        num_parents: best candidates so far that children are bred from; a fifth of the population.
        num_mutations: children by mutation in each round; half of the population.
        num_crossovers: children by crossover in each round; half of the population. With neither
            mutations nor crossovers the search is a random one.
        mutation_probability: of drawing a gene anew (it may be the same again).
        seed: of every random draw.
        max_failures: evaluations failing in a row that stop the search.

    Raises:
        ConfigError: naming the setting, its value and what is expected.
    """

    rounds: int = 20
    population: int = 50
    num_parents: int = None  # type: ignore[assignment]  # None: the share named above
    num_mutations: int = None  # type: ignore[assignment]
    num_crossovers: int = None  # type: ignore[assignment]
    mutation_probability: float = 0.1
    seed: int = 0
    max_failures: int = 10

    def __post_init__(self) -> None:
        for name in ("rounds", "population", "max_failures"):
            _check_whole(name, getattr(self, name), low=1)
        _check_whole("seed", self.seed, low=0)
        for name, part, low in _SHARES:
            if getattr(self, name) is None:
                object.__setattr__(self, name, max(low, self.population // part))
            _check_whole(name, getattr(self, name), low=low)
        probability = self.mutation_probability
        if type(probability) not in (int, float) or not 0 <= probability <= 1:
            raise ConfigError(f"mutation_probability is {probability!r}, expected 0 to 1")
        if self.num_mutations + self.num_crossovers > self.population:
            raise ConfigError(
                f"num_mutations ({self.num_mutations}) and num_crossovers ({self.num_crossovers}) "
                f"exceed the population ({self.population}); lower them"
            )

    @property
    def num_planned(self) -> int:
        """How many candidates the whole search evaluates."""
        return self.rounds * self.population


# setting -> the share of the population that it is by default, and its least value
_SHARES = (("num_parents", 5, 1), ("num_mutations", 2, 0), ("num_crossovers", 2, 0))


def _check_whole(name: str, value: Any, *, low: int) -> None:
    if type(value) is not int or value < low:
        raise ConfigError(f"{name} is {value!r}, expected a whole number of at least {low}")
