"""Random paths inside of bounds on any costs.

Imports `spos.architecture`, `spos.cost`, `spos.data.counter_random`; never torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from spos.architecture import Candidate
from spos.cost.constraints import Constraint
from spos.cost.grid import CostGrid, FeasibleBox
from spos.cost.table import CostTable
from spos.data.counter_random import counter_generator


class ConstrainedSampler:
    """Every architecture that meets all bounds with the same probability.

    Differs from CanyonWind, which draws until an architecture happens to meet them, for ever if
    none does: here they are drawn by dynamic programming over all costs at once.

    Args:
        table: costs of the space.
        ranges: bounds on some of them.

    Raises:
        ConstraintError: if no architecture meets all of them, with the costs that can be reached.
    """

    def __init__(self, table: CostTable, ranges: Sequence[Constraint], *, seed: int = 0) -> None:
        self._grid = CostGrid(table, [each.metric for each in ranges])
        self._box = FeasibleBox(self._grid, ranges)
        self._seed = seed

    def sample(self, step: int) -> dict[str, Candidate]:
        """The choices of training step ``step``."""
        (genes,) = self._box.draw(1, counter_generator(self._seed, step))
        return self._grid.choices(genes)
