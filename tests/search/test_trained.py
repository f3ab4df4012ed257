"""Limits beside what was trained: pytest tests/search/test_trained.py"""

import pytest
from toy_trial import toy_table

from spos.cost.constraints import Constraint, parse_constraint_flags
from spos.errors import ConstraintError
from spos.search.feasible import FeasibleSpace
from spos.search.trained import describe_limits

# The toy space has macs from 4,600 to 5,680 and params from about 180 to 200.


def describe(limits, trained, *, fixed=None) -> str:
    """Of limits and ranges as flags: ``macs=:5K params=:190``."""
    constraints, ranges = (
        parse_constraint_flags(each.split(), flag="--flag") for each in (limits, trained)
    )
    return describe_limits(FeasibleSpace(toy_table(), constraints, fixed), ranges)


@pytest.mark.parametrize(
    ("limits", "trained"),
    [
        ("", ""),
        ("macs=:5K", ""),
        ("macs=5K:5.2K", "macs=5K:5.3K"),
        ("macs=5K:5.2K", "macs=:5.3K"),
        ("", "macs=0:1M"),
    ],
)
def test_limits_within_what_was_trained_need_no_word(limits, trained):
    assert describe(limits, trained) == ""


@pytest.mark.parametrize(
    ("limits", "trained", "searched", "both"),
    [
        ("macs=:5.2K", "macs=5K:5.4K", "macs=4.6K:5.2K", "macs=5K:5.2K"),
        ("", "macs=5K:5.4K", "macs=4.6K:5.68K", "macs=5K:5.4K"),
        ("macs=5.5K:", "macs=:5.6K", "macs=5.5K:5.68K", "macs=5.5K:5.6K"),
    ],
)
def test_part_that_was_not_trained_is_said(limits, trained, searched, both):
    assert describe(limits, trained) == (
        f"of {searched}, which is searched, the supernet was trained on {both} only "
        f"(--constraint {both} leaves out the rest)"
    )


def test_limit_that_excludes_nothing_is_said():
    said = describe("macs=0:330M params=:190", "macs=:1G")
    assert said == ("the limit macs=0:330M excludes nothing, since the space has macs=4.6K:5.68K")


@pytest.mark.parametrize("trained", ["macs=5.3K:", "macs=5.3K:5.4K", "macs=:1G params=1:2"])
def test_limits_that_leave_nothing_trained_are_refused(trained):
    with pytest.raises(ConstraintError, match="the search is limited to") as caught:
        describe("macs=:5.2K", trained)
    assert f"supernet was trained on paths of {trained.split()[-1].split(':')[0]}:" in str(
        caught.value
    )
    assert "--constraint" in str(caught.value) and "--path-range" in str(caught.value)


def test_limits_on_another_cost_are_met_together_with_what_was_trained():
    table = toy_table().with_sum("both", {"macs": 1, "params": 1})
    space = FeasibleSpace(table, [Constraint("both", high=5000)])
    assert describe_limits(space, [Constraint("macs", 0, 4900)]).startswith("of macs=4.6K:")
    with pytest.raises(ConstraintError, match=r"trained on paths of macs=5.5K:.*none.*both"):
        describe_limits(space, [Constraint("macs", low=5500)])


def test_fixed_choices_are_the_space():
    fixed = {"layer_8": "xcep"}  # 8 * 30 macs more than the least
    assert describe("macs=4840:", "", fixed=fixed).startswith("the limit macs=4.84K: excludes")
    with pytest.raises(ConstraintError, match="limited to macs=4.84K"):
        describe("", "macs=:4.8K", fixed=fixed)
