"""The limits of a search beside its space and the paths that its supernet was trained on.

Imports `spos.cost.constraints`, `spos.errors` and `spos.search.feasible`; never torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from spos.cost.constraints import Constraint, write_constraint_flag
from spos.errors import ConstraintError
from spos.search.feasible import FeasibleSpace


def describe_limits(space: FeasibleSpace, trained: Sequence[Constraint]) -> str:
    """One line on limits that exclude nothing, or allow what was not trained; "" without any.

    Args:
        space: what is searched.
        trained: bounds on the costs of the paths that the supernet was trained on.

    Raises:
        ConstraintError: if nothing that is searched was trained, with what to do.
    """
    part = space.table.restrict({label: (each,) for label, each in space.fixed.items()})
    limits = {each.metric: each for each in space.constraints}
    metrics = [*limits, *(each.metric for each in trained)]
    reach = {metric: Constraint(metric, *part.bounds(metric)) for metric in metrics}
    said = [
        f"the limit {write_constraint_flag(limit)} excludes nothing, since the space has "
        f"{write_constraint_flag(reach[metric])}"
        for metric, limit in limits.items()
        if limit.intersect(reach[metric]) == reach[metric]
    ]
    for each in trained:
        whole = reach[each.metric]
        searched = limits.get(each.metric, whole).intersect(whole) or whole
        both = searched.intersect(each)
        if both is None:
            raise ConstraintError(_describe_gap(searched, each.intersect(whole) or each))
        if both != searched:
            flag = write_constraint_flag(both)
            said.append(
                f"of {write_constraint_flag(searched)}, which is searched, the supernet was "
                f"trained on {flag} only (--constraint {flag} leaves out the rest)"
            )
        limits[each.metric] = both
    if trained:
        _check_common(space, trained, [*limits.values()])
    return "; ".join(said)


def _describe_gap(searched: Constraint, trained: Constraint) -> str:
    theirs, ours = write_constraint_flag(trained), write_constraint_flag(searched)
    return (
        f"the search is limited to {ours}, but the supernet was trained on paths of {theirs}, so "
        "that nothing it would look at was trained: search what was trained (--constraint "
        f"{theirs}), or what is searched must be trained (supernet.py --path-range {ours})"
    )


def _check_common(
    space: FeasibleSpace, trained: Sequence[Constraint], both: Sequence[Constraint]
) -> None:
    """Refuse limits on several costs that together leave nothing of what was trained."""
    try:
        FeasibleSpace(space.table, both, space.fixed)
    except ConstraintError as problem:
        paths = " and ".join(map(write_constraint_flag, trained))
        raise ConstraintError(
            f"the supernet was trained on paths of {paths}, and none of them is within the limits "
            f"of the search: {problem}"
        ) from None
