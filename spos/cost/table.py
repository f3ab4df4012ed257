"""Additive cost tables: an architecture's cost is a look-up, no network is built.

Imports `spos.architecture`, `spos.cost.constraints`, `spos.errors`, `spos.files`; never torch.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spos.architecture import Candidate, Choices, SearchSpec
from spos.cost.constraints import Constraint, parse_constraints, write_constraints
from spos.errors import ConstraintError, SposError
from spos.files import read_json, write_json

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Term:
    """Costs that depend on a few choices together.

    Attributes:
        labels: the choices it depends on (one for a layer's operator; operator and width together
            where widths are searched too).
        costs: metric -> one number for every combination of candidates, the last label fastest.
        spreads: measured metric -> how far apart the middle half of its measurements lie, in the
            same order; counted ones have none.
    """

    labels: tuple[str, ...]
    costs: Mapping[str, tuple[float, ...]]
    spreads: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


class CostTable:
    """Cost of every architecture of a space: a fixed part plus one number for each `Term`.

    The terms of our own spaces have disjoint labels, so that `bounds` is exact and costs can be
    summed by dynamic programming; `is_separable` says whether that holds.

    Args:
        spec: the search space.
        fixed: metric -> cost of the layers that every architecture has (an int for counts).
        terms: the rest.
        measured: metric -> how it was measured (device, batch size, date, ...); a metric that is
            not in here was counted.
    """

    def __init__(
        self,
        spec: SearchSpec,
        fixed: Mapping[str, float],
        terms: Sequence[Term],
        *,
        measured: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.spec = spec
        self.measured = {metric: dict(how) for metric, how in (measured or {}).items()}
        self.fixed = dict(fixed)
        self.terms = tuple(terms)
        self.metrics = tuple(self.fixed)
        self.sums: dict[str, dict[str, float]] = {}  # of metrics that `with_sum` added: weights
        self.trained: tuple[Constraint, ...] = ()  # of a supernet's paths, beside a search space
        labels = [label for term in self.terms for label in term.labels]
        self.is_separable = len(labels) == len(set(labels))
        self._rows = {metric: [self._row(term, metric) for term in terms] for metric in fixed}

    def cost(self, choices: Choices, metric: str = "macs") -> float:
        """Cost of an architecture's choices; an int for ``macs`` and ``params``.

        Raises:
            ConstraintError: if the table has no such metric.
            KeyError: if ``choices`` lacks a label or names an unknown candidate.
        """
        total = self.fixed[self._known(metric)]
        for label, others, costs in self._rows[metric]:
            if others:
                total += costs[(choices[label], *(choices[other] for other in others))]
            else:
                total += costs[choices[label]]
        return total

    def costs(self, choices: Choices) -> dict[str, float]:
        """Every metric of an architecture's choices."""
        return {metric: self.cost(choices, metric) for metric in self.metrics}

    def bounds(self, metric: str = "macs") -> tuple[float, float]:
        """Least and greatest cost in the space (of the terms one by one if not separable)."""
        low = high = self.fixed[self._known(metric)]
        for term in self.terms:  # in the order of `cost`, so that both round alike
            low += min(term.costs[metric])
            high += max(term.costs[metric])
        return low, high

    def digest(self, metric: str) -> str:
        """SHA-256 of a metric's numbers: another one once it has been measured again.

        Raises:
            ConstraintError: if the table has no such metric.
        """
        rows = [self.fixed[self._known(metric)], *([t.labels, t.costs[metric]] for t in self.terms)]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def restrict(self, choices: Mapping[str, Sequence[Candidate]]) -> CostTable:
        """The table of a part of the space.

        Args:
            choices: label -> the candidates that are left, at least one; a label that is not named
                keeps all.

        Raises:
            ConstraintError: if a label or a candidate is not of this table, or a label has none.
        """
        for label, left in choices.items():
            if (
                label not in self.spec.choices
                or not left
                or set(left) - set(self.spec.choices[label])
            ):
                raise ConstraintError(
                    f"{label}: {list(left)} is no part of the candidates of {self.spec.space!r}"
                )
        part = {
            label: tuple(each for each in known if each in choices.get(label, known))
            for label, known in self.spec.choices.items()
        }
        terms = [_restrict(term, self.spec, part) for term in self.terms]
        spec = SearchSpec(self.spec.space, self.spec.options, part)
        table = CostTable(spec, self.fixed, terms, measured=self.measured)
        table.trained = self.trained
        return table

    def with_measured(self, other: CostTable) -> CostTable:
        """This table with what was measured for ``other``, the table of the same space or a part.

        Returned as it is where that does not fit: another space, fewer candidates, other counts.
        """
        spec = self.spec
        same = spec.space == other.spec.space and spec.options == other.spec.options
        if not same or list(spec.choices) != list(other.spec.choices):
            return self
        if any(set(left) - set(other.spec.choices[k]) for k, left in spec.choices.items()):
            return self
        part = other.restrict(spec.choices)
        part.trained = self.trained
        counted = [metric for metric in self.metrics if metric not in self.measured]
        return part if _counted(part, counted) == _counted(self, counted) else self

    def with_terms(self, labels: Iterable[str]) -> CostTable:
        """The table with a term, of no cost, for each of these choices that none depends on."""
        missing = set(labels).difference(*(term.labels for term in self.terms))
        terms = [
            Term((label,), dict.fromkeys(self.fixed, (0,) * len(candidates)))
            for label, candidates in self.spec.choices.items()
            if label in missing
        ]
        table = CostTable(self.spec, self.fixed, [*self.terms, *terms], measured=self.measured)
        table.sums, table.trained = self.sums, self.trained
        return table

    def with_sum(self, metric: str, weights: Mapping[str, float]) -> CostTable:
        """The table with a further metric: the weighted sum of some that it has.

        Raises:
            ConstraintError: if it has the new metric, or lacks one of the others.
        """
        if metric in self.fixed:
            raise ConstraintError(f"the cost table of {self.spec.space!r} has {metric!r} already")
        fixed = sum(weight * self.fixed[self._known(name)] for name, weight in weights.items())
        terms = []
        for term in self.terms:
            columns = [[weight * cost for cost in term.costs[n]] for n, weight in weights.items()]
            sums = tuple(map(sum, zip(*columns, strict=True)))
            terms.append(Term(term.labels, {**term.costs, metric: sums}, term.spreads))
        table = CostTable(self.spec, {**self.fixed, metric: fixed}, terms, measured=self.measured)
        table.sums, table.trained = {**self.sums, metric: dict(weights)}, self.trained
        return table

    def save(self, path: Path | str) -> None:
        """Write the table as JSON, atomically; its folder is made if missing."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        value: dict[str, Any] = {
            "version": FORMAT_VERSION,
            "space": self.spec.space,
            "options": dict(self.spec.options),
            "choices": {label: list(each) for label, each in self.spec.choices.items()},
            "fixed": self.fixed,
            "terms": [_term_value(term) for term in self.terms],
        }
        if self.measured:
            value["measured"] = self.measured
        if self.trained:
            value["trained"] = write_constraints(self.trained)
        write_json(path, value)

    @classmethod
    def load(cls, path: Path | str) -> CostTable:
        """Read a table.

        Raises:
            ConstraintError: if the file is missing or not a cost table.
        """
        value = read_json(path, error=ConstraintError)
        version = value.get("version") if isinstance(value, dict) else None
        if type(version) is not int or version != FORMAT_VERSION:
            raise ConstraintError(f"{path}: is not a cost table of version {FORMAT_VERSION}")
        try:
            spec = _spec(value["space"], value["options"], value["choices"])
            fixed = {str(metric): _number(cost) for metric, cost in value["fixed"].items()}
            terms = [_term(entry, spec, fixed) for entry in value["terms"]]
            measured = _measured(value.get("measured", {}), fixed)
            trained = parse_constraints(value.get("trained", {}), source=f"{path}: trained")
        except (KeyError, TypeError, AttributeError, ValueError) as problem:
            if isinstance(problem, SposError):
                raise
            raise ConstraintError(
                f"{path}: is not a cost table ({type(problem).__name__}: {problem}); "
                'generate it again with `nnictl ss_gen -t "python tester.py"`'
            ) from None
        table = cls(spec, fixed, terms, measured=measured)
        table.trained = trained
        return table

    def _known(self, metric: str) -> str:
        if metric not in self.fixed:
            raise ConstraintError(
                f"the cost table of {self.spec.space!r} has no metric {metric!r}; "
                f"it has {', '.join(self.metrics)}"
            )
        return metric

    def _row(self, term: Term, metric: str) -> tuple[str, tuple[str, ...], dict[Any, float]]:
        first, *others = term.labels
        keys: Any = self.spec.combinations(term.labels) if others else self.spec.choices[first]
        return first, tuple(others), dict(zip(keys, term.costs[metric], strict=True))


def _spec(space: Any, options: Any, choices: Mapping[str, Any]) -> SearchSpec:
    if not isinstance(space, str) or not isinstance(options, dict):
        raise TypeError(f"the space is {space!r} and its options are {options!r}")
    for label, candidates in choices.items():
        names = candidates if isinstance(candidates, list) else []
        if not names or any(type(each) not in (str, int) for each in names):
            raise TypeError(f"the candidates of {label!r} are {candidates!r}")
        if len(set(names)) != len(names):
            raise ValueError(f"a candidate of {label!r} is given twice")
    return SearchSpec(space, options, choices)


def _number(value: Any) -> float:
    if type(value) not in (int, float):
        raise TypeError(f"{value!r} is not a number")
    return value


def _term(entry: Mapping[str, Any], spec: SearchSpec, fixed: Mapping[str, float]) -> Term:
    labels = tuple(dict.fromkeys(entry["labels"]))
    if not labels or list(labels) != entry["labels"]:
        raise ValueError(f"{entry['labels']!r} is not a list of labels")
    size = math.prod(len(spec.choices[label]) for label in labels)
    costs = {metric: tuple(_number(cost) for cost in entry["costs"][metric]) for metric in fixed}
    spreads = {
        str(metric): tuple(_number(spread) for spread in column)
        for metric, column in entry.get("spreads", {}).items()
    }
    if any(len(column) != size for column in (*costs.values(), *spreads.values())):
        raise ValueError(f"the term of {labels} does not have {size} costs")
    return Term(labels, costs, spreads)


def _measured(value: Any, fixed: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    if not isinstance(value, dict) or any(not isinstance(how, dict) for how in value.values()):
        raise TypeError(f"how costs were measured is {value!r}")
    if unknown := sorted(set(value) - set(fixed)):
        raise ValueError(f"{unknown} were measured, but there are no such costs")
    return value


def _term_value(term: Term) -> dict[str, Any]:
    value: dict[str, Any] = {
        "labels": list(term.labels),
        "costs": {metric: list(column) for metric, column in term.costs.items()},
    }
    if term.spreads:
        value["spreads"] = {metric: list(column) for metric, column in term.spreads.items()}
    return value


def _restrict(term: Term, spec: SearchSpec, part: Mapping[str, Sequence[Candidate]]) -> Term:
    """The term's numbers for the combinations of the candidates that are left."""
    kept = [
        all(each in part[label] for label, each in zip(term.labels, key, strict=True))
        for key in spec.combinations(term.labels)
    ]
    columns = [
        {metric: tuple(itertools.compress(column, kept)) for metric, column in each.items()}
        for each in (term.costs, term.spreads)
    ]
    return Term(term.labels, *columns)


def _counted(table: CostTable, metrics: Sequence[str]) -> Any:
    """The table's numbers of these metrics, to compare; None if it lacks one."""
    if any(metric not in table.fixed for metric in metrics):
        return None
    rows = [[term.labels, *(term.costs[metric] for metric in metrics)] for term in table.terms]
    return [table.fixed[metric] for metric in metrics], [
        row for row in rows if any(map(any, row[1:]))
    ]
