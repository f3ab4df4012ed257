"""Predictor-guided search: a model of the scores so far proposes what to evaluate next.

Imports the rest of the search and numpy; never torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spos.search.breeding import Batch
from spos.search.feasible import FeasibleSpace, Genes
from spos.search.gaussian_process import GaussianProcess, fit
from spos.search.history import History, ranked
from spos.search.settings import check_plan, check_probability, check_whole

MAX_FITTED = 300  # scores that the model is fitted to: the best and the latest


@dataclass(frozen=True)
class PredictorSearch:
    """One candidate at a time: the one whose expected improvement on the best score is greatest.

    A Gaussian process is fitted to all scores; it judges ``pool_size`` architectures bred from the
    best by mutation and crossover, and the most promising one is then truly evaluated.

    Attributes:
        rounds: how often the best so far are written down.
        population: candidates of a round.
        num_random: candidates drawn at random before the first prediction.
        num_parents: best candidates so far that the pool is bred from.
        pool_size: architectures that the model judges for each candidate.
        mutation_probability: of drawing a gene of the pool anew.
        seed: of every random draw.
        max_failures: evaluations failing in a row that stop the search.

    Raises:
        ConfigError: naming the setting, its value and what is expected.
    """

    rounds: int = 20
    population: int = 50
    num_random: int = 10
    num_parents: int = 10
    pool_size: int = 500
    mutation_probability: float = 0.1
    seed: int = 0
    max_failures: int = 10

    def __post_init__(self) -> None:
        check_plan(self)
        for name in ("num_random", "num_parents", "pool_size"):
            check_whole(name, getattr(self, name), low=1)
        check_probability("mutation_probability", self.mutation_probability)

    @property
    def batch_size(self) -> int:
        """How many candidates are chosen at once."""
        return 1

    def propose(
        self, space: FeasibleSpace, history: History, count: int, generator: np.random.Generator
    ) -> list[Genes]:
        """The next candidate; see `spos.search.searcher.Method`."""
        batch = Batch(space, history, count)
        ranking = ranked(history)
        if len(history) >= self.num_random and len(ranking) > 1:
            model = _fit(history, ranking)
            parents = np.array([genes for genes, _ in ranking[: self.num_parents]])
            bred = dict.fromkeys(map(tuple, self._breed(parents, space, generator).tolist()))
            pool = [genes for genes in bred if genes not in history]
            gain = model.expected_improvement(np.array(pool)) if pool else np.array([])
            for number in np.argsort(-gain, kind="stable").tolist():
                batch.add(pool[number])
                if batch.num_missing == 0:
                    break
        batch.fill(generator)
        return batch.genes

    def _breed(
        self, parents: np.ndarray, space: FeasibleSpace, generator: np.random.Generator
    ) -> np.ndarray:
        """The pool, (pool_size, labels): a half mutated, a quarter crossed, the rest at random."""
        size, num_labels = self.pool_size, parents.shape[1]
        draws = generator.random((4, size, num_labels))
        drawn_anew = space.scale(draws[0])
        who = (generator.random((2, size)) * len(parents)).astype(int)
        first, second = parents[who[0]], parents[who[1]]
        # At least one gene changes, so that most mutants are new.
        probability = np.maximum(self.mutation_probability, 1 / num_labels)
        mutated = np.where(draws[1] < probability, drawn_anew, first)
        crossed = np.where(draws[2] < 0.5, first, second)
        part = np.arange(size)[:, None] * 4 // size
        return np.where(part < 2, mutated, np.where(part < 3, crossed, drawn_anew))


def _fit(history: History, ranking: list[tuple[Genes, float]]) -> GaussianProcess:
    """The model of the scores; of many scores the best half and the latest."""
    scores = dict(ranking)
    if len(scores) > MAX_FITTED:
        kept = set(list(scores)[: MAX_FITTED // 2])
        latest = [genes for genes in history if genes in scores and genes not in kept]
        kept.update(latest[-(MAX_FITTED - len(kept)) :])
        scores = {genes: score for genes, score in scores.items() if genes in kept}
    return fit(np.array(list(scores)), _spread(np.array(list(scores.values()))))


def _spread(scores: np.ndarray) -> np.ndarray:
    """Scores as standard deviations, those below the median drawn towards it.

    A few hopeless architectures would otherwise take up the whole scale.
    """
    scores = scores / (np.abs(scores).max() or 1.0)  # so that no square overflows
    median = float(np.median(scores))
    above = scores[scores >= median] - median
    scale = float(np.sqrt(np.mean(above**2))) or 1.0
    values = (scores - median) / scale
    return np.where(values < 0, -np.log1p(np.maximum(-values, 0)), values)
