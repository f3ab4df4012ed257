"""Bounds on costs, as files and flags write them.

Imports `spos.architecture` and `spos.errors`; never torch.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import Any, Protocol

from spos.architecture import Choices, SearchSpec
from spos.errors import ConstraintError


class Costs(Protocol):
    """What constraints ask of a `spos.cost.table.CostTable`, whose file may hold some."""

    spec: SearchSpec

    def cost(self, choices: Choices, metric: str) -> float:
        """Cost of an architecture's choices."""
        ...

    def bounds(self, metric: str) -> tuple[float, float]:
        """Least and greatest cost in the space."""
        ...


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

    def allows(self, table: Costs, choices: Choices) -> bool:
        """Whether an architecture's cost lies within the bounds."""
        return self.low <= table.cost(choices, self.metric) <= self.high

    def intersect(self, other: Constraint) -> Constraint | None:
        """The bounds that both have of the same cost; None if no cost is within both."""
        low, high = max(self.low, other.low), min(self.high, other.high)
        return Constraint(self.metric, low, high) if low <= high else None

    def clip(self, table: Costs) -> Constraint:
        """The part of the bounds that the space reaches, which has two ends.

        Raises:
            ConstraintError: as `check_reachable`.
        """
        self.check_reachable(table)
        low, high = table.bounds(self.metric)
        return Constraint(self.metric, max(low, self.low), min(high, self.high))

    def check_reachable(self, table: Costs) -> None:
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


def write_constraints(constraints: Sequence[Constraint]) -> dict[str, list[float | None]]:
    """Constraints as JSON that `parse_constraints` reads; an absent bound is null."""
    return {
        each.metric: [
            each.low if each.low > -math.inf else None,
            each.high if each.high < math.inf else None,
        ]
        for each in constraints
    }


def parse_constraint_flags(texts: Sequence[str], *, flag: str) -> tuple[Constraint, ...]:
    """Constraints from a repeated flag: ``macs=0:330M``, ``macs=330M``, ``params=1M:``.

    They mean what ``macs: [0, 330M]``, ``macs: 330M`` and ``params: [1M, null]`` mean in a
    configuration.

    Raises:
        ConstraintError: naming the flag and what is wrong.
    """
    bounds: dict[str, Any] = {}
    for text in texts:
        metric, equals, value = text.partition("=")
        if not equals or not metric or metric in bounds:
            expected = "each metric once" if metric in bounds else "METRIC=LOW:HIGH or METRIC=HIGH"
            raise ConstraintError(f"{flag} {text}: expected {expected}, as in macs=0:330M")
        low, colon, high = value.partition(":")
        bounds[metric] = [low or None, high or None] if colon else value
    return parse_constraints(bounds, source=flag)


def write_constraint_flag(constraint: Constraint) -> str:
    """A constraint as `parse_constraint_flags` reads it, such as ``macs=290M:360M``.

    Bounds are rounded inwards to four digits, but where nothing would be left between them.
    """
    low = Context(prec=4, rounding=ROUND_CEILING).create_decimal(constraint.low)
    high = Context(prec=4, rounding=ROUND_FLOOR).create_decimal(constraint.high)
    if low > high:
        return f"{constraint.metric}={constraint.low}:{constraint.high}"
    return f"{constraint.metric}={_quantity(low)}:{_quantity(high)}"


def _quantity(number: Decimal) -> str:
    """The inverse of `parse_quantity`; nothing for an infinite bound."""
    if not number.is_finite():
        return ""
    for exponent, letter in ((9, "G"), (6, "M"), (3, "K")):
        if abs(number) >= 10**exponent:
            return f"{number.scaleb(-exponent).normalize():f}{letter}"
    return f"{number.normalize():f}"


def find_violation(constraints: Sequence[Constraint], table: Costs, choices: Choices) -> str | None:
    """What an architecture violates, in words; None if it meets all constraints."""
    for each in constraints:
        if not each.allows(table, choices):
            cost = table.cost(choices, each.metric)
            return f"{each.metric} is {cost:,}, outside {each.low:,} to {each.high:,}"
    return None
