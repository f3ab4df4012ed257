"""Additive cost tables and constraints: an architecture's cost is a look-up, no network is built.

Imports `spos.architecture`, `spos.errors`, `spos.files`; never torch.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spos.architecture import Candidate, Choices, SearchSpec
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
    """

    labels: tuple[str, ...]
    costs: Mapping[str, tuple[float, ...]]


class CostTable:
    """Cost of every architecture of a space: a fixed part plus one number for each `Term`.

    The terms of our own spaces have disjoint labels, so that `bounds` is exact and costs can be
    summed by dynamic programming; `is_separable` says whether that holds.

    Args:
        spec: the search space.
        fixed: metric -> cost of the layers that every architecture has (an int for counts).
        terms: the rest.
    """

    def __init__(self, spec: SearchSpec, fixed: Mapping[str, float], terms: Sequence[Term]) -> None:
        self.spec = spec
        self.fixed = dict(fixed)
        self.terms = tuple(terms)
        self.metrics = tuple(self.fixed)
        self.sums: dict[str, dict[str, float]] = {}  # of metrics that `with_sum` added: weights
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
        columns = [term.costs[self._known(metric)] for term in self.terms]
        fixed = self.fixed[metric]
        return fixed + sum(map(min, columns)), fixed + sum(map(max, columns))

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
        return CostTable(SearchSpec(self.spec.space, self.spec.options, part), self.fixed, terms)

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
            terms.append(Term(term.labels, {**term.costs, metric: sums}))
        table = CostTable(self.spec, {**self.fixed, metric: fixed}, terms)
        table.sums = {**self.sums, metric: dict(weights)}
        return table

    def save(self, path: Path | str) -> None:
        """Write the table as JSON, atomically."""
        value = {
            "version": FORMAT_VERSION,
            "space": self.spec.space,
            "options": dict(self.spec.options),
            "choices": {label: list(each) for label, each in self.spec.choices.items()},
            "fixed": self.fixed,
            "terms": [
                {"labels": list(term.labels), "costs": {k: list(v) for k, v in term.costs.items()}}
                for term in self.terms
            ],
        }
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
        except (KeyError, TypeError, AttributeError, ValueError) as problem:
            if isinstance(problem, SposError):
                raise
            raise ConstraintError(
                f"{path}: is not a cost table ({type(problem).__name__}: {problem}); "
                'generate it again with `nnictl ss_gen -t "python tester.py"`'
            ) from None
        return cls(spec, fixed, terms)

    def _known(self, metric: str) -> str:
        if metric not in self.fixed:
            raise ConstraintError(
                f"the cost table of {self.spec.space!r} has no metric {metric!r}; "
                f"it has {', '.join(self.metrics)}"
            )
        return metric

    def _row(self, term: Term, metric: str) -> tuple[str, tuple[str, ...], dict[Any, float]]:
        candidates = [self.spec.choices[label] for label in term.labels]
        keys: Any = itertools.product(*candidates) if len(candidates) > 1 else candidates[0]
        costs = dict(zip(keys, term.costs[metric], strict=True))
        return term.labels[0], term.labels[1:], costs


@dataclass(frozen=True)
class Constraint:
    """Bounds on one cost, both inclusive; an absent bound is minus or plus infinity."""

    metric: str
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        if math.isnan(self.low) or math.isnan(self.high) or self.low > self.high:
            raise ConstraintError(
                f"constraint on {self.metric}: low {self.low} exceeds high {self.high}"
            )

    def allows(self, table: CostTable, choices: Choices) -> bool:
        """Whether an architecture's cost lies within the bounds."""
        return self.low <= table.cost(choices, self.metric) <= self.high

    def check_reachable(self, table: CostTable) -> None:
        """Refuse bounds that no architecture of the space can meet.

        Raises:
            ConstraintError: with the range that the space reaches.
        """
        low, high = table.bounds(self.metric)
        if self.high < low or self.low > high:
            raise ConstraintError(
                f"no architecture of {table.spec.space!r} has {self.metric} between "
                f"{self.low:,} and {self.high:,}: the space reaches {low:,} to {high:,} "
                f"(with options {dict(table.spec.options)}); choose bounds in that range"
            )


def parse_quantity(value: Any, *, source: str) -> float:
    """A number, or text such as ``"330M"``, ``"330e6"`` or ``"1.2G"``, as a number.

    Raises:
        ConstraintError: if it is none of these.
    """
    number = math.nan
    if type(value) in (int, float):
        number = value
    elif isinstance(value, str):
        text = value.strip()
        exponent = {"K": "e3", "M": "e6", "G": "e9"}.get(text[-1:].upper(), "")
        with contextlib.suppress(ValueError):  # a factor instead of an exponent would round
            number = float(text[:-1].rstrip() + exponent if exponent else text)
    if -1e300 < number < 1e300:  # neither NaN nor infinity nor an int that overflows
        return int(number) if number == int(number) else number
    raise ConstraintError(f"{source}: expected a number such as 330e6 or 330M, found {value!r}")


def parse_constraints(value: Any, *, source: str = "constraints") -> tuple[Constraint, ...]:
    """Constraints from a mapping of metric to ``[low, high]`` or to an upper bound.

    Raises:
        ConstraintError: naming ``source`` and the key that is wrong.
    """
    if not isinstance(value, Mapping):
        raise ConstraintError(
            f"{source}: expected a mapping such as {{macs: [0, 330M]}}, found {value!r}"
        )
    constraints = []
    for metric, bounds in value.items():
        where = f"{source}: {metric}"
        pair = bounds if isinstance(bounds, (list, tuple)) else [None, bounds]
        if len(pair) != 2 or (pair[0] is None and pair[1] is None):
            raise ConstraintError(f"{where}: expected [low, high] or a bound, found {bounds!r}")
        low = -math.inf if pair[0] is None else parse_quantity(pair[0], source=where)
        high = math.inf if pair[1] is None else parse_quantity(pair[1], source=where)
        if low > high:
            raise ConstraintError(f"{where}: the low bound {low:,} exceeds the high one {high:,}")
        constraints.append(Constraint(str(metric), low, high))
    return tuple(constraints)


def parse_constraint_flags(flags: Sequence[str]) -> tuple[Constraint, ...]:
    """Constraints from flags: ``macs=0:330M``, ``macs=330M``, ``params=1M:``.

    They mean what ``macs: [0, 330M]``, ``macs: 330M`` and ``params: [1M, null]`` mean in a
    configuration.

    Raises:
        ConstraintError: naming the flag that is wrong.
    """
    bounds: dict[str, Any] = {}
    for flag in flags:
        metric, equals, text = flag.partition("=")
        if not equals or not metric or metric in bounds:
            expected = "each metric once" if metric in bounds else "METRIC=LOW:HIGH or METRIC=HIGH"
            raise ConstraintError(f"--constraint {flag}: expected {expected}, as in macs=0:330M")
        low, colon, high = text.partition(":")
        bounds[metric] = [low or None, high or None] if colon else text
    return parse_constraints(bounds, source="--constraint")


def find_violation(
    constraints: Sequence[Constraint], table: CostTable, choices: Choices
) -> str | None:
    """What an architecture violates, in words; None if it meets all constraints."""
    for each in constraints:
        if not each.allows(table, choices):
            cost = table.cost(choices, each.metric)
            return f"{each.metric} is {cost:,}, outside {each.low:,} to {each.high:,}"
    return None


def write_constraints(constraints: Sequence[Constraint]) -> dict[str, list[float | None]]:
    """Constraints as JSON that `parse_constraints` reads; an absent bound is null."""
    return {
        each.metric: [
            each.low if each.low > -math.inf else None,
            each.high if each.high < math.inf else None,
        ]
        for each in constraints
    }


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
    if any(len(column) != size for column in costs.values()):
        raise ValueError(f"the term of {labels} does not have {size} costs")
    return Term(labels, costs)


def _restrict(term: Term, spec: SearchSpec, part: Mapping[str, Sequence[Candidate]]) -> Term:
    """The term's numbers for the combinations of the candidates that are left."""
    kept = [
        all(each in part[label] for label, each in zip(term.labels, key, strict=True))
        for key in itertools.product(*(spec.choices[label] for label in term.labels))
    ]
    columns = {m: tuple(itertools.compress(column, kept)) for m, column in term.costs.items()}
    return Term(term.labels, columns)
