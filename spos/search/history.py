"""What a search knows of the architectures it has chosen so far.

Imports `spos.search.feasible` and the standard library; never torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from spos.search.feasible import Genes

WAITING, RUNNING, SCORED, FAILED = STATUSES = ("waiting", "running", "scored", "failed")


@dataclass
class Known:
    """What is known of an architecture that was chosen for evaluation.

    ``status`` is ``waiting`` (to be handed out), ``running``, ``scored`` or ``failed`` (excluded).
    """

    round: int
    status: str = WAITING
    score: float | None = None
    num_attempts: int = 0


History = Mapping[Genes, Known]  # in the order in which the architectures were chosen


def ranked(history: History, *, last_round: int | None = None) -> list[tuple[Genes, float]]:
    """The scored architectures (of the rounds up to ``last_round``), best first, oldest first."""
    found = [
        (genes, each.score)
        for genes, each in history.items()
        if each.score is not None and (last_round is None or each.round <= last_round)
    ]
    return sorted(found, key=lambda pair: -pair[1])  # stable: of equals the oldest first
