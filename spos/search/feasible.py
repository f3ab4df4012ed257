"""Drawing architectures that meet all constraints, without an endless loop.

Imports `spos.architecture`, `spos.cost`, `spos.errors` and numpy; never torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from spos.architecture import Candidate, Choices, SearchSpec
from spos.cost.axis import CostAxis
from spos.cost.constraints import Constraint
from spos.cost.grid import CostGrid, FeasibleBox
from spos.cost.table import CostTable
from spos.errors import ConstraintError

MAX_DRAWS = 10_000  # of one architecture, before it is said that there is no further one
BOX_DOUBLINGS = 10  # of the draws from a box, where all are feasible: 1, 2, 4 ..., 1,023 in all
LISTED_DRAWS = 16  # from a list before what is left of it is listed; the result is as uniform
MAX_LISTED = 20_000  # spaces up to this size are listed, so that their exhaustion is certain

Genes = tuple[int, ...]  # the number of the chosen candidate for every label, in network order


class FeasibleSpace:
    """The architectures of a space that meet every constraint, to test and to draw from.

    Architectures are handled as `Genes`, numbered as in the whole space where some choices are
    fixed. Draws are uniform over the feasible part: small spaces are listed; in others all
    constraints are met at once by dynamic programming (`FeasibleBox`). Only where costs depend on
    too many choices together for that are architectures drawn until one meets them, within the
    constraint that fewest meet (`CostAxis`) if that can be.

    Args:
        table: costs of the space.
        constraints: bounds that every drawn architecture meets.
        fixed: label -> the candidate that every drawn architecture has; the rest is searched.

    Raises:
        ConstraintError: if a fixed label or candidate is not of the space, a bound cannot be met,
            or no architecture meets all of them.
    """

    def __init__(
        self,
        table: CostTable,
        constraints: Sequence[Constraint] = (),
        fixed: Choices | None = None,
    ) -> None:
        self.table, self.constraints, self.fixed = table, tuple(constraints), dict(fixed or {})
        self.spec: SearchSpec = table.spec
        part = table.restrict({label: (each,) for label, each in self.fixed.items()})
        for constraint in constraints:
            constraint.check_reachable(part)
        self._candidates = list(self.spec.choices.values())
        self._first = [  # of every label, the number of the first candidate that may be drawn ...
            each.index(self.fixed[label]) if label in self.fixed else 0
            for label, each in self.spec.choices.items()
        ]
        self._sizes = [len(each) for each in part.spec.choices.values()]  # ... and of how many
        self._fixed_genes = [
            (place, self._first[place])
            for place, label in enumerate(self.spec.choices)
            if label in self.fixed
        ]
        self._parts: dict[tuple[Any, ...], FeasibleSpace] = {}
        self._listed = self._list() if part.spec.num_architectures <= MAX_LISTED else None
        self._box = self._axis = None
        if self._listed is None and constraints:
            self._box = _open_box(part, constraints)
            if self._box is None and part.is_separable:
                self._axis = _tightest(part, constraints)
        if self._listed == [] or self.draw(np.random.default_rng(0), ()) is None:
            choices = " with the fixed choices" if self.fixed else ""
            raise ConstraintError(
                f"no architecture of {self.spec.space!r}{choices} was found that meets "
                f"{' and '.join(map(_describe, self.constraints))}; widen the bounds"
            )

    def fix(self, fixed: Choices) -> FeasibleSpace:
        """The part of this space with these choices as well; the same object when asked again.

        Raises:
            ConstraintError: if no architecture of it meets the constraints.
        """
        every = {**self.fixed, **fixed}
        key = tuple(sorted(every.items()))
        if key not in self._parts:
            self._parts[key] = FeasibleSpace(self.table, self.constraints, every)
        return self._parts[key]

    def choices(self, genes: Genes) -> dict[str, Candidate]:
        """Label -> chosen candidate."""
        return {
            label: candidates[gene]
            for (label, candidates), gene in zip(self.spec.choices.items(), genes, strict=True)
        }

    def genes(self, choices: Any) -> Genes:
        """The genes of ``choices``.

        Raises:
            ArchitectureError: if they are not of this space.
        """
        checked = self.spec.check(choices)
        return tuple(self.spec.choices[label].index(each) for label, each in checked.items())

    def allows(self, genes: Genes) -> bool:
        """Whether an architecture has the fixed choices and meets every constraint."""
        if not self.has_fixed(genes):
            return False
        choices = self.choices(genes) if self.constraints else {}
        return all(constraint.allows(self.table, choices) for constraint in self.constraints)

    def has_fixed(self, genes: Genes) -> bool:
        """Whether an architecture has the fixed choices."""
        return all(genes[place] == gene for place, gene in self._fixed_genes)

    def scale(self, draws: np.ndarray) -> np.ndarray:
        """Numbers from [0, 1), (..., labels), as genes; constraints are not looked at."""
        return (draws * self._sizes).astype(int) + self._first

    def draw(self, generator: np.random.Generator, seen: Collection[Genes]) -> Genes | None:
        """A feasible architecture that is not in ``seen``, or None if there seems to be none left.

        None is certain for a listed space; of another hardly any can be left then, for it was drawn
        from in vain very often.
        """
        if self._listed is not None:
            for _ in range(LISTED_DRAWS if self._listed else 0):
                genes = self._listed[int(generator.random() * len(self._listed))]
                if genes not in seen:
                    return genes
            unseen = [genes for genes in self._listed if genes not in seen]
            return unseen[int(generator.random() * len(unseen))] if unseen else None
        for genes in self._propose(generator):
            if genes not in seen and self.allows(genes):
                return genes
        return None

    def _propose(self, generator: np.random.Generator) -> Iterator[Genes]:
        """Architectures of which the feasible ones are equally likely; from a box all are."""
        if self._box is not None:
            for doublings in range(BOX_DOUBLINGS):  # many at once take little longer than one
                genes = self._box.draw(2**doublings, generator) + self._first
                yield from map(tuple, genes.tolist())
            return
        for _ in range(MAX_DRAWS):
            if self._axis is not None:
                axis, bounds = self._axis
                yield self.genes(axis.draw(*bounds, generator))
            else:
                yield tuple(self.scale(generator.random(len(self._candidates))).tolist())

    def _list(self) -> list[Genes]:
        spans = zip(self._first, self._sizes, strict=True)
        every = itertools.product(*(range(first, first + size) for first, size in spans))
        return [genes for genes in every if self.allows(genes)]


def _open_box(table: CostTable, constraints: Sequence[Constraint]) -> FeasibleBox | None:
    """What draws within all bounds; None if costs depend on too many choices together for that."""
    try:
        grid = CostGrid(table, [each.metric for each in constraints])
    except ConstraintError:
        return None
    return FeasibleBox(grid, constraints)


def _tightest(
    table: CostTable, constraints: Sequence[Constraint]
) -> tuple[CostAxis, tuple[float, float]]:
    """The axis and bounds of the constraint that the fewest architectures meet."""
    found: list[tuple[float, CostAxis, tuple[float, float]]] = []
    for constraint in constraints:
        axis, reached = CostAxis(table, constraint.metric), constraint.clip(table)
        bounds = reached.low, reached.high
        count = axis.count_between(*bounds)
        if count < 1:
            low, high = table.bounds(constraint.metric)
            raise ConstraintError(
                f"no architecture of {table.spec.space!r} meets {_describe(constraint)}: the space "
                f"reaches {low:,} to {high:,} but nothing in these bounds; widen them"
            )
        found.append((count, axis, bounds))
    _, axis, bounds = min(found, key=lambda each: each[0])
    return axis, bounds


def _describe(constraint: Constraint) -> str:
    return f"{constraint.low:,} <= {constraint.metric} <= {constraint.high:,}"


def check_search_space(value: Any, spec: SearchSpec, *, source: str) -> None:
    """Refuse an NNI search space that is not the one of ``spec``.

    Raises:
        ConstraintError: naming ``source``, what differs and the command that makes both files anew.
    """
    expected = spec.search_space()
    if value == expected:
        return
    if not isinstance(value, Mapping):
        difference = f"it holds {type(value).__name__}, expected an object of choices"
    else:
        labels = [label for label in expected if label not in value]
        labels += [label for label in value if label not in expected]
        labels += [
            label for label in expected if label in value and value[label] != expected[label]
        ]
        difference = f"they differ in {', '.join(map(str, labels[:3]))}"
        difference += f" and {len(labels) - 3} more" if len(labels) > 3 else ""
    raise ConstraintError(
        f"{source}: is not the search space that the cost table was made for ({difference}); one "
        'of the two is stale: generate both again with `nnictl ss_gen -t "python tester.py"`'
    )
