"""How well sums over a cost table tell what whole networks cost.

Imports nothing of the package.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass


@dataclass(frozen=True)
class Prediction:
    """How well sums over a table tell the cost of whole subnets that it was not fitted to.

    Attributes:
        predicted: of each subnet, in the unit of the cost.
        measured: the same, of the subnet as a whole; above 0.
    """

    predicted: tuple[float, ...]
    measured: tuple[float, ...]

    @property
    def spearman(self) -> float | None:
        """Spearman's rank correlation; None if there is nothing to rank."""
        ranks = _ranks(self.predicted), _ranks(self.measured)
        if any(len(set(each)) < 2 for each in ranks):
            return None
        return statistics.correlation(*ranks)

    @property
    def errors(self) -> list[float]:
        """Relative errors, without sign."""
        pairs = zip(self.predicted, self.measured, strict=True)
        return [abs(predicted / measured - 1) for predicted, measured in pairs]

    def summary(self) -> dict[str, float | None]:
        """What a table notes of it; there must be a subnet."""
        errors = self.errors
        return {
            "subnets": len(errors),
            "spearman": self.spearman,
            "median_error": statistics.median(errors),
            "max_error": max(errors),
        }

    def __str__(self) -> str:
        """A sentence for people."""
        errors = self.errors
        if not errors:
            return "the space has too few architectures to check the sum"
        rank = self.spearman
        shown = "undefined" if rank is None else f"{rank:.3f}"
        return (
            f"the sum predicts {len(errors)} other subnets: Spearman {shown}, relative error "
            f"{statistics.median(errors):.1%} (median), {max(errors):.1%} (largest)"
        )


def _ranks(values: tuple[float, ...]) -> list[float]:
    """Rank of each value; equal ones share the mean of theirs."""
    ordered = sorted(values)
    return [ordered.index(each) + (ordered.count(each) - 1) / 2 for each in values]
