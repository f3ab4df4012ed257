"""Searchers on NAS-Bench-Macro, whose 6,561 architectures were all trained: a query is a look-up.

Imports `spos.architecture`, `spos.cost`, `spos.errors`, `spos.files`, the search and numpy.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spos.architecture import SearchSpec
from spos.cost.table import CostTable, Term
from spos.errors import ConfigError
from spos.files import read_json
from spos.search.feasible import FeasibleSpace, Genes
from spos.search.searcher import Method, Search

PUBLISHED_TABLE = (
    "data/nas-bench-macro_cifar10.json in the repository github.com/xiusu/NAS-Bench-Macro"
)
CANDIDATES = ("identity", "mb3_k3", "mb6_k5")  # digits 0, 1 and 2 of the benchmark's names
NUM_LAYERS = 8
NUM_RUNS = 3
MODES = ("mean", "one-run")
CHECKPOINTS = (50, 100, 200, 500, 1000)
TARGET = 93.0


@dataclass(frozen=True)
class MacroTable:
    """The benchmark.

    Attributes:
        runs: genes -> CIFAR-10 test accuracy, in per cent, of three trainings.
        means: genes -> their mean, the true accuracy.
        costs: parameters and MACs of every architecture.
    """

    runs: Mapping[Genes, tuple[float, ...]]
    means: Mapping[Genes, float]
    costs: CostTable


def read_table(path: Path) -> Any:
    """The JSON of a table of accuracies.

    Raises:
        ConfigError: if it is missing, which says where NAS-Bench-Macro's is published, or no JSON.
    """
    if not path.exists():
        raise ConfigError(
            f"{path}: is not there; the table of NAS-Bench-Macro is {PUBLISHED_TABLE}"
        )
    return read_json(path, error=ConfigError)


def load_macro_table(path: Path) -> MacroTable:
    """Read the published file: a name such as ``"02012100"`` -> ``test_acc``, ``mean_acc``, ....

    Raises:
        ConfigError: if the file is missing or not that table.
    """
    value = read_table(path)
    try:
        every = {
            genes: value["".join(map(str, genes))]
            for genes in itertools.product(range(len(CANDIDATES)), repeat=NUM_LAYERS)
        }
        runs = {genes: tuple(map(float, row["test_acc"])) for genes, row in every.items()}
        means = {genes: float(row["mean_acc"]) for genes, row in every.items()}
        costs = _cost_table(
            {g: (int(row["flops"]), int(row["params"])) for g, row in every.items()}
        )
        if any(len(row) != NUM_RUNS for row in runs.values()):
            raise ValueError(f"an architecture does not have {NUM_RUNS} runs")
    except (KeyError, TypeError, ValueError) as problem:
        raise ConfigError(
            f"{path}: is not the table of NAS-Bench-Macro ({type(problem).__name__}: {problem}); "
            f"expected {PUBLISHED_TABLE}"
        ) from None
    return MacroTable(runs, means, costs)


def _cost_table(costs: Mapping[Genes, tuple[int, int]]) -> CostTable:
    """The costs as a sum over layers, which they are."""
    labels = [f"layer_{number}" for number in range(1, NUM_LAYERS + 1)]
    spec = SearchSpec(
        "nasbench_macro", {"image_size": 32, "num_classes": 10}, dict.fromkeys(labels, CANDIDATES)
    )
    least = (0,) * NUM_LAYERS
    fixed: dict[str, float] = dict(zip(("macs", "params"), costs[least], strict=True))
    terms = []
    for layer, label in enumerate(labels):
        others = [
            costs[(*least[:layer], number, *least[layer + 1 :])]
            for number in range(len(CANDIDATES))
        ]
        columns = {
            metric: tuple(cost[place] - fixed[metric] for cost in others)
            for place, metric in enumerate(fixed)
        }
        terms.append(Term((label,), columns))
    return CostTable(spec, fixed, terms)


@dataclass(frozen=True)
class Outcome:
    """What one seed came to.

    Attributes:
        best: after every query, the true accuracy of the architecture with the best answer.
        num_to_target: queries until that was `TARGET`; infinity if it never was.
    """

    best: np.ndarray
    num_to_target: float


def run_once(table: MacroTable, method: Method, *, mode: str, num_queries: int) -> Outcome:
    """One search of at most ``num_queries`` queries.

    Args:
        table: the benchmark.
        method: the searcher, with its seed and at least as many planned candidates.
        mode: ``mean``, or ``one-run``: a query returns one of the three runs, drawn by the seed.
        num_queries: after which the search ends.
    """
    search = Search(FeasibleSpace(table.costs), method)
    answers = _answers(table, mode, method.seed)
    most = max(answers.values())
    best: list[float] = []
    record, accuracy = -math.inf, 0.0
    # When no answer can be better than the best one, its accuracy stays what it is.
    while len(best) < num_queries and record < most and (choices := search.ask()) is not None:
        genes = search.space.genes(choices)
        search.tell(choices, answers[genes])
        if answers[genes] > record:
            record, accuracy = answers[genes], table.means[genes]
        best.append(accuracy)
    best += [accuracy] * (num_queries - len(best))
    reached = next((number for number, each in enumerate(best, start=1) if each >= TARGET), None)
    return Outcome(np.array(best), math.inf if reached is None else reached)


def _answers(table: MacroTable, mode: str, seed: int) -> Mapping[Genes, float]:
    """What a query of each architecture returns, always the same in one search."""
    if mode == "mean":
        return table.means
    drawn = np.random.default_rng([seed, 1]).integers(NUM_RUNS, size=len(table.runs)).tolist()
    return {genes: runs[run] for (genes, runs), run in zip(table.runs.items(), drawn, strict=True)}


@dataclass(frozen=True)
class Summary:
    """What many seeds came to.

    Attributes:
        quartiles: number of queries -> first quartile, median and third quartile of the true
            accuracy of the best found.
        to_target: the quartiles of the number of queries to `TARGET`.
        curve: (queries, 3) the same quartiles after every query.
    """

    quartiles: Mapping[int, tuple[float, float, float]]
    to_target: tuple[float, float, float]
    curve: np.ndarray


def summarize(outcomes: Sequence[Outcome]) -> Summary:
    """Median and quartiles over the seeds."""
    curves = np.stack([each.best for each in outcomes])
    curve = np.quantile(curves, (0.25, 0.5, 0.75), axis=0).T
    points = [number for number in CHECKPOINTS if number <= len(curve)]
    quartiles = {number: _three(curve[number - 1]) for number in points}
    counts = np.array([each.num_to_target for each in outcomes])
    # Without interpolation: between a number and "never" there is nothing.
    to_target = np.quantile(counts, (0.25, 0.5, 0.75), method="inverted_cdf")
    return Summary(quartiles, _three(to_target), curve)


def _three(values: np.ndarray) -> tuple[float, float, float]:
    first, median, third = values.tolist()
    return first, median, third
