"""What a search maximizes: the score that trials report, or a weighted sum of metrics.

Imports `spos.cost.constraints` and `spos.errors`; never torch.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from spos.cost.constraints import parse_quantity
from spos.errors import ConfigError, ConstraintError, SearchError

DEFAULT = "default"  # the metric that a trial reports as its score, and NNI shows


@dataclass(frozen=True)
class Objective:
    """A weighted sum of metrics, to be high; by default the score itself.

    Attributes:
        weights: metric -> its weight. Metrics are those that a trial reports (``top1``, ``loss``,
            ...) and those of the cost table; where both have one, the trial's counts.
    """

    weights: Mapping[str, float] = field(default_factory=lambda: {DEFAULT: 1})

    def __str__(self) -> str:
        """Such as ``top1 - 1e-10 macs``."""
        text = ""
        for metric, weight in self.weights.items():
            sign = "-" if weight < 0 else "+" if text else ""
            factor = "" if abs(weight) == 1 else f"{abs(weight):g} "
            text += f" {sign} {factor}{metric}" if text else f"{sign}{factor}{metric}"
        return text

    def value(self, metrics: Mapping[str, float]) -> float:
        """The sum, of the metrics of one candidate.

        Raises:
            SearchError: naming a metric that is not there.
        """
        for name in self.weights:
            if name not in metrics:
                raise SearchError(
                    f"objective: {name!r} is neither reported by the trials nor in the cost table; "
                    f"there are {', '.join(metrics)}; correct classArgs and start a new search"
                )
        return sum(weight * metrics[name] for name, weight in self.weights.items())


def is_number(value: Any) -> bool:
    """Whether a value out of a result can be a score or a metric: a finite number."""
    is_plain = isinstance(value, (int, float)) and type(value) is not bool
    return is_plain and abs(value) <= sys.float_info.max  # an int may be more, NaN is not less


def parse_objective(value: Any, *, source: str = "objective") -> Objective:
    """An objective from a metric's name, or a mapping of metric to weight; None: the score.

    Raises:
        ConfigError: naming ``source`` if it is none of these.
    """
    if value is None:
        return Objective()
    weights = {value: 1} if isinstance(value, str) else value
    if not isinstance(weights, Mapping) or not weights:
        raise ConfigError(
            f"{source} is {value!r}, expected a metric's name such as top1, or weights such as "
            "{top1: 1, macs: -1e-10}"
        )
    try:
        return Objective(
            {
                str(metric): parse_quantity(weight, source=f"{source}: {metric}")
                for metric, weight in weights.items()
            }
        )
    except ConstraintError as problem:
        raise ConfigError(str(problem)) from None


def parse_objective_flags(texts: Sequence[str], *, flag: str) -> Objective:
    """An objective from a repeated flag: ``top1`` and ``macs=-1e-10``; without a weight it is 1.

    Raises:
        ConfigError: naming the flag and what is wrong.
    """
    weights: dict[str, Any] = {}
    for text in texts:
        metric, equals, weight = text.partition("=")
        if not metric or metric in weights:
            expected = "each metric once" if metric else "METRIC=WEIGHT or METRIC"
            raise ConfigError(f"{flag} {text}: expected {expected}, as in macs=-1e-10")
        weights[metric] = weight if equals else 1
    return parse_objective(weights, source=flag)
