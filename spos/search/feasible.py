"""Drawing architectures that meet all constraints, without an endless loop.

Imports `spos.architecture`, `spos.cost`, `spos.errors` and numpy; never torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from spos.architecture import Candidate, SearchSpec
from spos.cost.axis import CostAxis
from spos.cost.table import Constraint, CostTable
from spos.errors import ConstraintError

MAX_DRAWS = 10_000  # of one architecture, before it is said that there is no further one
LISTED_DRAWS = 16  # from a list before what is left of it is listed; the result is as uniform
MAX_LISTED = 20_000  # spaces up to this size are listed, so that their exhaustion is certain

Genes = tuple[int, ...]  # the number of the chosen candidate for every label, in network order


class FeasibleSpace:
    """The architectures of a space that meet every constraint, to test and to draw from.

    Architectures are handled as `Genes`. Draws are uniform over the feasible part: small spaces are
    listed; in others the constraint that fewest architectures meet is satisfied by dynamic
    programming (`CostAxis`) and the rest by rejection, at most `MAX_DRAWS` times.

    Args:
        table: costs of the space.
        constraints: bounds that every drawn architecture meets.

    Raises:
        ConstraintError: if a bound cannot be met, or no architecture meets all of them.
    """

    def __init__(self, table: CostTable, constraints: Sequence[Constraint] = ()) -> None:
        for constraint in constraints:
            constraint.check_reachable(table)
        self.table, self.constraints = table, tuple(constraints)
        self.spec: SearchSpec = table.spec
        self._candidates = list(self.spec.choices.values())
        self.sizes = [len(each) for each in self._candidates]  # candidates of every label
        self._listed = self._list() if self.spec.num_architectures <= MAX_LISTED else None
        self._axis = None
        if self._listed is None and constraints and table.is_separable:
            self._axis, self._bounds = _tightest(table, self.constraints)
        if self._listed == [] or self.draw(np.random.default_rng(0), ()) is None:
            raise ConstraintError(
                f"no architecture of {self.spec.space!r} was found that meets "
                f"{' and '.join(map(_describe, self.constraints))}; widen the bounds"
            )

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
        """Whether an architecture meets every constraint."""
        choices = self.choices(genes) if self.constraints else {}
        return all(constraint.allows(self.table, choices) for constraint in self.constraints)

    def draw(self, generator: np.random.Generator, seen: Collection[Genes]) -> Genes | None:
        """A feasible architecture that is not in ``seen``, or None if there seems to be none left.

        None is certain for a listed space and after `MAX_DRAWS` vain draws for a larger one.
        """
        if self._listed is not None:
            for _ in range(LISTED_DRAWS if self._listed else 0):
                genes = self._listed[int(generator.random() * len(self._listed))]
                if genes not in seen:
                    return genes
            unseen = [genes for genes in self._listed if genes not in seen]
            return unseen[int(generator.random() * len(unseen))] if unseen else None
        for _ in range(MAX_DRAWS):
            genes = self._draw_once(generator)
            if genes not in seen and self.allows(genes):
                return genes
        return None

    def _draw_once(self, generator: np.random.Generator) -> Genes:
        if self._axis is not None:
            return self.genes(self._axis.draw(*self._bounds, generator))
        draws = generator.random(len(self._candidates)).tolist()
        return tuple(
            int(draw * len(each)) for draw, each in zip(draws, self._candidates, strict=True)
        )

    def _list(self) -> list[Genes]:
        every = itertools.product(*(range(len(each)) for each in self._candidates))
        return [genes for genes in every if self.allows(genes)]


def _tightest(
    table: CostTable, constraints: Sequence[Constraint]
) -> tuple[CostAxis, tuple[float, float]]:
    """The axis and bounds of the constraint that the fewest architectures meet."""
    found: list[tuple[float, CostAxis, tuple[float, float]]] = []
    for constraint in constraints:
        axis = CostAxis(table, constraint.metric)
        low, high = table.bounds(constraint.metric)
        bounds = max(low, constraint.low), min(high, constraint.high)
        count = axis.count_between(*bounds)
        if count < 1:
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
