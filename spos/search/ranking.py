"""How well a supernet ranks architectures whose true accuracies are known.

Imports `spos.architecture`, `spos.errors`, `spos.search.benchmark` and numpy; when it compares
scores, scipy, which takes half a second to load.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spos.architecture import Architecture, SearchSpec
from spos.errors import ConfigError
from spos.search.benchmark import CANDIDATES, load_macro_table, read_table

NUM_RESAMPLES = 1_000  # of the bootstrap
MIN_ARCHITECTURES = 3


@dataclass(frozen=True)
class Agreement:
    """How two lists of accuracies of the same architectures agree.

    Attributes:
        num_architectures: how many there are.
        kendall_tau: Kendall's tau-b, which allows for ties: 1 is the same order, 0 is chance.
        kendall_interval: 95 % bootstrap interval of it over the architectures.
        spearman: correlation of the ranks.
        best_found: true accuracy of the architecture with the highest score.
        best: true accuracy of the best architecture.
    """

    num_architectures: int
    kendall_tau: float
    kendall_interval: tuple[float, float]
    spearman: float
    best_found: float
    best: float


def measure_agreement(
    scores: Sequence[float], accuracies: Sequence[float], *, seed: int = 0
) -> Agreement:
    """Compare a supernet's scores with true accuracies, architecture by architecture.

    Raises:
        ConfigError: with fewer than three architectures, or if all scores or all accuracies are
            equal, so that there is no order to compare.
    """
    found, true = np.asarray(scores, float), np.asarray(accuracies, float)
    if len(found) < MIN_ARCHITECTURES:
        raise ConfigError(
            f"a ranking of {len(found)} architectures means nothing; at least "
            f"{MIN_ARCHITECTURES} are needed, 200 are a good number"
        )
    for name, values in (("scores", found), ("true accuracies", true)):
        if len(set(values.tolist())) == 1:
            raise ConfigError(f"all {len(values)} {name} are {values[0]:g}: there is no ranking")
    from scipy.stats import rankdata

    generator = np.random.default_rng(seed)
    resampled = []
    for _ in range(NUM_RESAMPLES):
        rows = generator.integers(len(found), size=len(found))
        resampled.append(_kendall_tau(found[rows], true[rows]))
    low, high = np.nanquantile(resampled, (0.025, 0.975)).tolist()
    return Agreement(
        len(found),
        _kendall_tau(found, true),
        (low, high),
        float(np.corrcoef(rankdata(found), rankdata(true))[0, 1]),
        float(true[found.argmax()]),
        float(true.max()),
    )


def _kendall_tau(first: np.ndarray, second: np.ndarray) -> float:
    from scipy.stats import kendalltau

    tau, _ = kendalltau(first, second)
    return float(tau)  # type: ignore[arg-type]


def read_truth(path: Path, spec: SearchSpec) -> dict[Architecture, float]:
    """True accuracies of architectures of the space ``spec``.

    Args:
        path: the table of NAS-Bench-Macro, whose means over three trainings are taken, or own
            results: a JSON list of ``{"choices": {"layer_1": "k3", ...}, "top1": 0.71}``.
        spec: the search space.

    Raises:
        ConfigError: if the file is neither, or has an architecture twice.
        ArchitectureError: if an architecture is not one of the space.
    """
    value = read_table(path)
    if not isinstance(value, list):
        return _macro_truth(path, spec)
    truth: dict[Architecture, float] = {}
    for number, entry in enumerate(value):
        source = f"{path}, entry {number}"
        accuracy = entry.get("top1") if isinstance(entry, dict) else None
        if isinstance(accuracy, bool) or not isinstance(accuracy, (int, float)):
            raise ConfigError(
                f'{source}: expected {{"choices": {{label: candidate}}, "top1": number}}'
            )
        arch = spec.architecture(entry.get("choices"), source=source)
        if arch in truth:
            raise ConfigError(f"{source}: this architecture came before; keep one of them")
        truth[arch] = float(accuracy)
    return truth


def _macro_truth(path: Path, spec: SearchSpec) -> dict[Architecture, float]:
    table = load_macro_table(path)
    known = table.costs.spec
    if dict(spec.choices) != dict(known.choices):
        raise ConfigError(
            f"{path}: holds accuracies of {known.space!r}, but the supernet is of {spec.space!r}; "
            "train one with --space nasbench_macro, or give a JSON list of your own results"
        )
    return {
        spec.architecture(_choices(known.choices, genes)): accuracy / 100
        for genes, accuracy in table.means.items()
    }


def _choices(labels: Mapping[str, Any], genes: Sequence[int]) -> dict[str, str]:
    return {label: CANDIDATES[gene] for label, gene in zip(labels, genes, strict=True)}


def draw_architectures(
    truth: Mapping[Architecture, float], *, count: int, seed: int
) -> list[Architecture]:
    """``count`` of the architectures, all with the same chance; all of them if there are fewer.

    Those that begin with the same choices follow each other: they are evaluated faster so.
    """
    known = list(truth)
    order = np.random.default_rng(seed).permutation(len(known))[:count]
    return sorted((known[index] for index in order), key=lambda each: list(each.choices.values()))
