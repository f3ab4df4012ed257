"""Paths that stroll through a box of costs, so that its rare corners are trained as well.

Imports `spos.architecture`, `spos.cost`, `spos.data.counter_random`, `spos.errors` and numpy;
never torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spos.architecture import Candidate
from spos.cost.constraints import Constraint
from spos.cost.grid import CostGrid, FeasibleBox, Genes
from spos.cost.table import CostTable
from spos.data.counter_random import counter_generator
from spos.errors import CheckpointError, ConstraintError

NUM_BANDS = 7  # of the first cost, walked down and up again
NUM_LEVELS = 8  # of the second one
NUM_PARENTS = 5
NUM_CHILDREN = 10
MUTATION = 0.1  # of each gene
BATCH = 64  # children bred at once
MAX_BATCHES = 16  # before what is missing is drawn from the window instead


@dataclass(frozen=True)
class _Station:
    """A place on the walk.

    Attributes:
        box: where children must lie.
        sign: 1 to look for a large second cost, -1 for a small one.
    """

    box: FeasibleBox
    sign: int


class StrollingSampler:
    """CanyonWind's strolling evolution, in any box of costs of any space.

    A walk leads down and up through 7 bands of the first cost and, in each, through 8 levels of the
    second, to and fro. At every station children are bred that lie in the band and beyond the
    level, the 5 most extreme of 10 become the next parents, and any of the 10 is trained.
    Further costs stay within their bounds throughout. The walk takes about one epoch; then it
    begins again with new parents.

    Differs from CanyonWind, whose box is fixed and whose loop may never end: stations without
    an architecture are left out, the first parents lie in the first window, and children that were
    not bred after 1,024 trials are drawn from the window (`FeasibleBox`), which always succeeds.
    CanyonWind trains the seventh or the tenth child, which leaves gaps between the levels.

    Args:
        table: costs of the space.
        ranges: the box; an open end is where the space ends.
        seed: of all draws.
        steps_per_epoch: as many steps as the walk should take.

    Raises:
        ConstraintError: if the box holds no architecture.
    """

    def __init__(
        self, table: CostTable, ranges: Sequence[Constraint], *, seed: int, steps_per_epoch: int
    ) -> None:
        self._grid = CostGrid(table, [each.metric for each in ranges])
        self._seed = seed
        FeasibleBox(self._grid, ranges)
        self._stations = list(_plan_walk(self._grid, [each.clip(table) for each in ranges]))
        self._stay = max(1, steps_per_epoch // len(self._stations))
        self._next = 0  # step
        self._parents = self._no_parents()

    def sample(self, step: int) -> dict[str, Candidate]:
        """The choices of training step ``step``; quick if it follows the one asked for last."""
        lap = self._stay * len(self._stations)
        first = step - step % lap
        if not first <= self._next <= step:
            self._next = first
        while True:
            genes = self._walk(self._next % lap)
            self._next += 1
            if self._next > step:
                return self._grid.choices(genes)

    def state(self) -> dict[str, Any]:
        """The next step and the parents of its children."""
        return {"step": self._next, "parents": self._parents.tolist()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`.

        Raises:
            CheckpointError: if it is not one of this space.
        """
        try:
            parents = np.array(state["parents"], dtype=np.int64).reshape(-1, len(self._grid.sizes))
            step = int(state["step"])
        except (KeyError, TypeError, ValueError, OverflowError) as problem:
            raise CheckpointError(f"the sampler's state is damaged ({problem})") from None
        if step < 0 or (parents < 0).any() or (parents >= self._grid.sizes).any():
            raise CheckpointError("the sampler's state is of another search space")
        self._next, self._parents = step, parents

    def _walk(self, place: int) -> np.ndarray:
        """The genes trained at a place of the walk; their siblings are the next parents."""
        station = self._stations[place // self._stay]
        generator = counter_generator(self._seed, self._next)
        if place == 0:
            self._parents = self._no_parents()
        missing = NUM_PARENTS - len(self._parents)
        if missing > 0:
            drawn = station.box.draw(missing, generator)
            self._parents = np.concatenate([self._parents, drawn])
        children = self._breed(station.box, generator)
        if len(self._grid.metrics) > 1:
            worth = station.sign * self._grid.costs(children)[:, 1]
            children = children[np.argsort(-worth, kind="stable")]
        self._parents = children[:NUM_PARENTS]
        return children[int(generator.random() * NUM_CHILDREN)]

    def _breed(self, box: FeasibleBox, generator: np.random.Generator) -> Genes:
        """Children inside of the box: uniform crossover of two parents, then mutation."""
        parts, missing = [], NUM_CHILDREN
        for _ in range(MAX_BATCHES):
            draws = generator.random((BATCH, 2 + 3 * len(self._grid.sizes)))
            pairs, (mix, change, fresh) = draws[:, :2], np.split(draws[:, 2:], 3, axis=1)
            mothers = (pairs[:, 0] * NUM_PARENTS).astype(np.int64)
            fathers = (mothers + 1 + (pairs[:, 1] * (NUM_PARENTS - 1)).astype(np.int64)) % (
                NUM_PARENTS
            )
            children = np.where(mix < 0.5, self._parents[mothers], self._parents[fathers])
            fresh_genes = (fresh * self._grid.sizes).astype(np.int64)
            children = np.where(change < MUTATION, fresh_genes, children)
            parts.append(children[box.allows(children)][:missing])
            missing -= len(parts[-1])
            if not missing:
                break
        return np.concatenate([*parts, box.draw(missing, generator)])

    def _no_parents(self) -> Genes:
        return np.empty((0, len(self._grid.sizes)), dtype=np.int64)


def _plan_walk(grid: CostGrid, ranges: Sequence[Constraint]) -> Iterator[_Station]:
    """The stations of the walk in their order, without those that hold no architecture."""
    boxes: dict[tuple[Constraint, ...], FeasibleBox | None] = {}
    bands = [*range(NUM_BANDS), *reversed(range(NUM_BANDS))]  # 0: the dearest
    levels = range(NUM_LEVELS if len(ranges) > 1 else 1)
    for number, band in enumerate(bands):
        for step in levels:
            is_down = number % 2 == 0
            level = step if is_down else levels[-1] - step
            sign = 1 if is_down == (step < NUM_LEVELS // 2) else -1
            window = (_cut_band(ranges[0], band), *_beyond(ranges[1:2], level, sign), *ranges[2:])
            if window not in boxes:
                boxes[window] = _open(grid, window)
            if (box := boxes[window]) is not None:
                yield _Station(box, sign)


def _cut_band(whole: Constraint, band: int) -> Constraint:
    width = (whole.high - whole.low) / NUM_BANDS
    low = whole.low if band == NUM_BANDS - 1 else whole.high - (band + 1) * width
    return Constraint(whole.metric, low, whole.high - band * width)


def _beyond(second: Sequence[Constraint], level: int, sign: int) -> list[Constraint]:
    """Up to the level where a large cost is looked for, from it on where a small one is."""
    cut = []
    for each in second:
        share = level / (NUM_LEVELS - 1)
        edge = each.high * (1 - share) + each.low * share
        edge = min(max(edge, each.low), each.high)  # rounding may carry it beyond
        ends = (each.low, edge) if sign > 0 else (edge, each.high)
        cut.append(Constraint(each.metric, *ends))
    return cut


def _open(grid: CostGrid, window: Sequence[Constraint]) -> FeasibleBox | None:
    try:
        return FeasibleBox(grid, window)
    except ConstraintError:
        return None
