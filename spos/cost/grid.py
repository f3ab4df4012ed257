"""How the architectures of a space spread over several costs at once, and draws from any box of it.

Imports `spos.architecture`, `spos.cost.constraints`, `spos.cost.table`, `spos.errors`
and numpy; never torch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spos.architecture import Candidate, Choices
from spos.cost.constraints import Constraint
from spos.cost.table import CostTable, Term
from spos.errors import ConstraintError

MAX_CELLS = 2**17  # 20 layers of them take 20 MB
MAX_COMBINATIONS = 4_096  # of the choices that terms with labels in common depend on together
MIN_FOUND = 20  # in a box, so that its acceptance is known well enough
MAX_PROPOSALS = 4_096  # to find as many
MAX_BATCH = 4_096
SWEEPS = 4  # over all choices, to bring an architecture into a box and move it about in there
MAX_MENDED = 512  # proposals that are brought into a box where too few lie inside as they are
MAX_BATCHES = 64  # of a draw, each expected to hold two hits or more: one is missed in e**128

Genes = np.ndarray  # (N, labels): numbers of the chosen candidates of N architectures


@dataclass(frozen=True)
class _Group:
    """Choices whose costs depend on each other, and what each of their combinations adds.

    Attributes:
        columns: of the choices in `Genes`.
        genes: (combinations, choices), the last choice fastest.
        costs: (combinations, metrics), above the cheapest.
        offsets: the same in cells, rounded.
    """

    columns: tuple[int, ...]
    genes: np.ndarray
    costs: np.ndarray
    offsets: np.ndarray


class CostGrid:
    """The number of architectures in each cell of a grid over several costs.

    Filled by dynamic programming over the groups of choices that share a term of the table, so an
    architecture is drawn from any part of the grid with the same probability as every other in it.
    An axis has cells of one exact cost where few enough of these can occur; elsewhere costs are
    rounded, and `FeasibleBox` looks a little further than its bounds and rejects what is outside.

    Args:
        table: costs of the space.
        metrics: the costs, one axis each.

    Raises:
        ConstraintError: if the table lacks a metric, or so many choices share terms that their
            combinations cannot be listed.
    """

    def __init__(self, table: CostTable, metrics: Sequence[str]) -> None:
        self.table, self.metrics = table, tuple(metrics)
        for metric in self.metrics:
            table.bounds(metric)  # refuses one that the table lacks
        self._names = list(table.spec.choices.items())
        self.sizes = np.array([len(candidates) for _, candidates in self._names])
        self._terms = [self._indexed(term) for term in table.terms]
        self._fixed = np.array([table.fixed[metric] for metric in self.metrics], dtype=np.float64)
        starts = np.cumsum([0, *(len(costs) for _, _, costs in self._terms)])
        self._starts = starts[:-1]
        self._summands = np.concatenate(
            [np.empty((0, len(self.metrics))), *(c for _, _, c in self._terms)]
        )
        self._strides = np.zeros((len(self.sizes), len(self._terms)), dtype=np.int64)
        for number, (columns, strides, _) in enumerate(self._terms):
            self._strides[columns, number] = strides
        groups = [self._list(labels) for labels in _group_labels(table)]
        above = [costs - costs.min(axis=0) for _, _, costs in groups]
        self.low = self._fixed + np.sum([costs.min(axis=0) for _, _, costs in groups], axis=0)
        span = np.sum([costs.max(axis=0) for costs in above], axis=0)
        most = int(MAX_CELLS ** (1 / len(self.metrics)))
        self.cell = np.array(
            [
                _cell_width([costs[:, axis] for costs in above], float(span[axis]), most)
                for axis in range(len(self.metrics))
            ]
        )
        offsets = [np.rint(costs / self.cell).astype(np.int64) for costs in above]
        rounding = [costs - each * self.cell for costs, each in zip(above, offsets, strict=True)]
        # The exact cost lies this far below and above that of the cell.
        self.slack = (
            -np.sum([each.min(axis=0) for each in rounding], axis=0),
            np.sum([each.max(axis=0) for each in rounding], axis=0),
        )
        self._groups = [
            _Group(columns, genes, *each)
            for (columns, genes, _), *each in zip(groups, above, offsets, strict=True)
        ]
        self.shape = tuple((1 + np.sum([each.max(axis=0) for each in offsets], axis=0)).tolist())
        self.ways = self._count_ways()

    def costs(self, genes: Genes) -> np.ndarray:
        """(N, metrics): the costs of N architectures, to the bit those of `CostTable.cost`."""
        summands = self._summands[genes @ self._strides + self._starts]  # (N, terms, metrics)
        fixed = np.broadcast_to(self._fixed, (len(genes), 1, len(self.metrics)))
        # Added one after the other, as the table does it; a plain sum might round otherwise.
        return np.concatenate([fixed, summands], axis=1).cumsum(axis=1)[:, -1]

    def choices(self, genes: np.ndarray) -> dict[str, Candidate]:
        """Label -> chosen candidate, of one architecture."""
        return {
            label: candidates[gene]
            for (label, candidates), gene in zip(self._names, genes.tolist(), strict=True)
        }

    def genes(self, choices: Choices) -> np.ndarray:
        """One architecture's numbers of chosen candidates."""
        return np.array([each.index(choices[label]) for label, each in self._names])

    def draw_cells(self, cells: np.ndarray, generator: np.random.Generator) -> Genes:
        """An architecture of each cell (N, metrics), all of a cell equally likely."""
        genes = np.empty((len(cells), len(self._names)), dtype=np.int64)
        strides = _strides(self.shape)
        left = cells
        for group, ways in zip(self._groups, self.ways[1:], strict=True):
            rest = left[:, None, :] - group.offsets  # (N, combinations, metrics)
            weights = np.where((rest >= 0).all(axis=2), ways[np.maximum(rest, 0) @ strides], 0.0)
            sums = weights.cumsum(axis=1)
            total = sums[:, -1:]
            picked = (sums <= generator.random((len(cells), 1)) * total).sum(axis=1)
            picked = np.minimum(picked, (sums < total).sum(axis=1))
            genes[:, group.columns] = group.genes[picked]
            left = left - group.offsets[picked]
        return genes

    def mend(
        self, genes: Genes, low: np.ndarray, high: np.ndarray, generator: np.random.Generator
    ) -> Genes:
        """Architectures made of ``genes`` that meet bounds on the costs, or come near them.

        Group after group is given the combination that is nearest to the bounds, any of several;
        which, once inside, is Gibbs sampling of what lies inside.
        """
        genes, costs = genes.copy(), self.costs(genes)
        rows = np.arange(len(genes))
        for group in itertools.chain(*(self._shuffled(generator) for _ in range(SWEEPS))):
            columns = list(group.columns)
            present = genes[:, columns] @ _strides(tuple(self.sizes[columns]))
            # (N, combinations, metrics)
            options = (costs - group.costs[present])[:, None] + group.costs
            excess = np.maximum(np.maximum(low - options, options - high), 0.0) / self.cell
            ties = 1e-9 * generator.random(excess.shape[:2])
            picked = (excess.sum(axis=2) + ties).argmin(axis=1)
            genes[:, columns], costs = group.genes[picked], options[rows, picked]
        return genes

    def _shuffled(self, generator: np.random.Generator) -> list[_Group]:
        return [self._groups[number] for number in generator.permutation(len(self._groups))]

    def _indexed(self, term: Term) -> tuple[list[int], np.ndarray, np.ndarray]:
        """Columns of a term's labels, their strides among its combinations, its costs."""
        columns = self._columns(term.labels)
        costs = np.array([term.costs[metric] for metric in self.metrics], dtype=np.float64).T
        return columns, _strides(tuple(self.sizes[columns])), costs

    def _columns(self, labels: Sequence[str]) -> list[int]:
        known = list(self.table.spec.choices)
        return [known.index(label) for label in labels]

    def _list(self, labels: tuple[str, ...]) -> tuple[tuple[int, ...], np.ndarray, np.ndarray]:
        """Columns of the labels, all combinations of them, what each adds to the costs."""
        columns = self._columns(labels)
        if math.prod(self.sizes[columns].tolist()) > MAX_COMBINATIONS:
            raise ConstraintError(
                f"the costs of {self.table.spec.space!r} are no sum over layers (they depend on "
                f"{', '.join(labels[:3])}... together), so paths of a given cost cannot be drawn; "
                "use the uniform sampler"
            )
        genes = np.array(list(itertools.product(*(range(size) for size in self.sizes[columns]))))
        costs = np.zeros((len(genes), len(self.metrics)))
        for others, strides, column in self._terms:
            if others[0] in columns:
                costs += column[genes[:, [columns.index(other) for other in others]] @ strides]
        return tuple(columns), genes, costs

    def _count_ways(self) -> list[np.ndarray]:
        """``ways[i][c]``: number of choices of the groups from i on that add up to cell c."""
        size, strides = math.prod(self.shape), _strides(self.shape)
        ways = [np.zeros(size) for _ in range(len(self._groups) + 1)]
        ways[-1][0] = 1.0
        for number in range(len(self._groups) - 1, -1, -1):
            offsets, counts = np.unique(self._groups[number].offsets @ strides, return_counts=True)
            for offset, count in zip(offsets.tolist(), counts.tolist(), strict=True):
                # No sum of offsets leaves the grid, so none wraps into the next row.
                ways[number][offset:] += count * ways[number + 1][: size - offset]
        return ways


class FeasibleBox:
    """The architectures that meet bounds on several costs at once, to draw from without end.

    Draws are uniform over them, and always end. In a rare corner of the space nearly everything in
    the cells of the box lies outside of it: where fewer than `MIN_FOUND` of `MAX_PROPOSALS`
    proposals meet the bounds, proposals are mended until they do, and are uniform only nearly. If
    that does not help either, draws are made among those that were found.

    Args:
        grid: of the space; its metrics are those of the constraints.
        constraints: bounds, one for each metric of the grid, in its order.

    Raises:
        ConstraintError: if no architecture meets all of them, with the costs that can be reached.
    """

    def __init__(self, grid: CostGrid, constraints: Sequence[Constraint]) -> None:
        assert [each.metric for each in constraints] == list(grid.metrics)
        for constraint in constraints:
            constraint.check_reachable(grid.table)
        self._grid = grid
        self._low = np.array([each.low for each in constraints])
        self._high = np.array([each.high for each in constraints])
        self._first, self._last = self._find_cells()
        part = grid.ways[0].reshape(grid.shape)[self._slices()]
        self._part, self._cumulative = part.shape, part.cumsum()
        self._top = np.searchsorted(self._cumulative, self._cumulative[-1:], side="left")
        self._is_mended = False
        first, proposals = self._explore(MAX_PROPOSALS)
        hits = first
        if 0 < proposals and len(first) < MIN_FOUND:
            self._is_mended = True
            hits, proposals = self._explore(MAX_MENDED)
        self._found = np.unique(np.concatenate([first, hits]), axis=0)
        if not len(self._found):
            raise ConstraintError(self._describe(constraints))
        self._acceptance = max(len(hits), 1) / proposals
        self._is_listed = len(hits) < MIN_FOUND

    def allows(self, genes: Genes) -> np.ndarray:
        """(N,): which of N architectures meet the bounds."""
        costs = self._grid.costs(genes)
        return np.all((self._low <= costs) & (costs <= self._high), axis=1)

    def draw(self, count: int, generator: np.random.Generator) -> Genes:
        """``count`` architectures that meet the bounds, each equally likely."""
        parts, missing = [], count
        for _ in range(0 if self._is_listed else MAX_BATCHES):
            size = math.ceil((missing + 1) / self._acceptance)
            hits = self._propose(min(size, MAX_PROPOSALS), generator)[:missing]
            parts.append(hits)
            missing -= len(hits)
            if not missing:
                break
        picked = (generator.random(missing) * len(self._found)).astype(np.int64)
        return np.concatenate([*parts, self._found[picked]])

    def _explore(self, limit: int) -> tuple[Genes, int]:
        """Some architectures that meet the bounds, and of how many proposals, about ``limit``."""
        if not self._cumulative.size or not self._cumulative[-1]:
            return np.empty((0, len(self._grid.sizes)), dtype=np.int64), 0
        generator = np.random.Generator(np.random.Philox(key=0))
        parts, found, proposals, size = [], 0, 0, 2 * MIN_FOUND
        while found < MIN_FOUND and proposals < limit:
            parts.append(self._propose(size, generator))
            found, proposals = found + len(parts[-1]), proposals + size
            size = min(2 * size, MAX_BATCH)
        return np.concatenate(parts), proposals

    def _propose(self, count: int, generator: np.random.Generator) -> Genes:
        """Those of ``count`` architectures from the cells of the box that lie inside of it."""
        kept = []
        for start in range(0, count, MAX_BATCH):
            draws = generator.random(min(MAX_BATCH, count - start)) * self._cumulative[-1]
            flat = np.minimum(np.searchsorted(self._cumulative, draws, side="right"), self._top)
            cells = np.stack(np.unravel_index(flat, self._part), axis=1) + self._first
            genes = self._grid.draw_cells(cells, generator)
            if self._is_mended:
                genes = self._grid.mend(genes, self._low, self._high, generator)
            kept.append(genes[self.allows(genes)])
        return np.concatenate(kept)

    def _find_cells(self) -> tuple[np.ndarray, np.ndarray]:
        """The first and the last but one cell, on each axis, that may hold what is in the box."""
        grid = self._grid
        below, above = grid.slack
        tolerance = 1e-9
        first = np.ceil((self._low - grid.low - above) / grid.cell - tolerance)
        last = np.floor((self._high - grid.low + below) / grid.cell + tolerance) + 1
        shape = np.array(grid.shape)
        first = np.clip(first, 0, shape).astype(np.int64)
        return first, np.maximum(np.clip(last, 0, shape).astype(np.int64), first)

    def _slices(self) -> tuple[slice, ...]:
        return tuple(map(slice, self._first.tolist(), self._last.tolist()))

    def _describe(self, constraints: Sequence[Constraint]) -> str:
        """What cannot be met, and what each cost could be if the others are to be met."""
        grid, parts = self._grid, []
        for axis, metric in enumerate(grid.metrics):
            slices = list(self._slices())
            slices[axis] = slice(None)
            others = tuple(each for each in range(len(grid.metrics)) if each != axis)
            line = grid.ways[0].reshape(grid.shape)[tuple(slices)].any(axis=others)
            if line.any():
                ends = grid.low[axis] + np.flatnonzero(line)[[0, -1]] * grid.cell[axis]
                parts.append(f"{metric} from about {ends[0]:,.4g} to {ends[1]:,.4g}")
        wanted = " and ".join(f"{c.metric} between {c.low:,} and {c.high:,}" for c in constraints)
        hint = f"; with the other bounds it reaches {', or '.join(parts)}" if parts else ""
        return (
            f"no architecture of {grid.table.spec.space!r} was found with {wanted}{hint}; "
            "widen the bounds"
        )


def _group_labels(table: CostTable) -> list[tuple[str, ...]]:
    """The labels in network order, those that share a term together."""
    groups: list[set[str]] = [{label} for label in table.spec.choices]
    for term in table.terms:
        touched = [group for group in groups if group & set(term.labels)]
        groups = [group for group in groups if group not in touched]
        groups.append(set().union(*touched))
    order = list(table.spec.choices)
    ordered = [tuple(label for label in order if label in group) for group in groups]
    return sorted(ordered, key=lambda labels: order.index(labels[0]))


def _cell_width(columns: Sequence[np.ndarray], span: float, most: int) -> float:
    """The width of at most ``most`` cells: if it can be, one that divides every difference."""
    differences = np.concatenate(columns)
    if (differences == np.rint(differences)).all():
        divisor = math.gcd(*map(int, differences.tolist()))
        if span / max(divisor, 1) < most:
            return float(divisor or 1)
    return span / (most - 1)


def _strides(shape: tuple[int, ...]) -> np.ndarray:
    """What one step along each axis means in a flat array."""
    return np.cumprod([1, *shape[:0:-1]])[::-1].astype(np.int64)
