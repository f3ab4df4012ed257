"""Constraints are read exactly and written to mean no more; odd ones are refused."""

import math
import random

import pytest

from spos.architecture import SearchSpec
from spos.cost.constraints import (
    Constraint,
    parse_constraint_flags,
    parse_constraints,
    parse_quantity,
    write_constraint_flag,
)
from spos.cost.table import CostTable, Term
from spos.errors import ConstraintError

SPEC = SearchSpec("small", {"image_size": 32}, {"layer_1": ("k3", "k5", "k7")})
TABLE = CostTable(SPEC, {"macs": 1000}, [Term(("layer_1",), {"macs": (11, 20, 37)})])


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (330, 330),
        (0.5, 0.5),
        (330e6, 330_000_000),
        ("330M", 330_000_000),
        (" 330 M ", 330_000_000),
        ("330e6", 330_000_000),
        ("330_000_000", 330_000_000),
        ("322.918720M", 322_918_720),
        ("0.322918720G", 322_918_720),
        ("1.2G", 1_200_000_000),
        ("12k", 12_000),
        ("-1.5", -1.5),
    ],
)
def test_quantity_is_read_exactly(value, number):
    parsed = parse_quantity(value, source="flag")
    assert parsed == number
    assert type(parsed) is type(number)


def test_quantity_with_all_its_digits_is_exact():
    # Scaled by a factor, 4 % of these would come out a little above or below the whole number.
    draw = random.Random(0)
    for macs in (draw.randrange(10**6, 10**10) for _ in range(2000)):
        assert parse_quantity(f"{macs / 10**6:.6f}M", source="flag") == macs
        assert parse_quantity(f"{macs / 10**9:.9f}G", source="flag") == macs


@pytest.mark.parametrize(
    "value",
    ["", " ", "M", "330MB", "330 MACs", "1,5M", "290M:360M", "290M-360M", "1e400", "nanM", "inf"]
    + [None, True, [330], {}, math.nan, math.inf, -math.inf, 10**400],
    ids=lambda value: repr(value)[:20],
)
def test_quantity_that_is_none_is_refused(value):
    with pytest.raises(ConstraintError, match=r"^limits: macs: expected a number such as"):
        parse_quantity(value, source="limits: macs")


def test_constraints_are_bounds_or_an_upper_bound():
    parsed = parse_constraints(
        {"macs": ["290M", 360e6], "params": "4M", "latency_ms": [None, 3.5], "top1": [0.7, None]}
    )
    assert parsed == (
        Constraint("macs", 290_000_000, 360_000_000),
        Constraint("params", -math.inf, 4_000_000),
        Constraint("latency_ms", high=3.5),
        Constraint("top1", low=0.7),
    )
    assert parse_constraints({}) == ()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, r"^limits\.yml: expected a mapping such as"),
        (["macs", 1], r"^limits\.yml: expected a mapping such as"),
        ({"macs": "290M:360M"}, r"^limits\.yml: macs: expected a number such as"),
        ({"macs": []}, r"^limits\.yml: macs: expected \[low, high\] or a bound, found \[\]"),
        ({"macs": [1]}, r"^limits\.yml: macs: expected \[low, high\]"),
        ({"macs": [1, 2, 3]}, r"^limits\.yml: macs: expected \[low, high\]"),
        ({"macs": None}, r"^limits\.yml: macs: expected \[low, high\]"),
        ({"macs": [None, None]}, r"^limits\.yml: macs: expected \[low, high\]"),
        ({"macs": {"low": 1}}, r"^limits\.yml: macs: expected a number"),
        ({"macs": True}, r"^limits\.yml: macs: expected a number"),
        ({"macs": ["360M", "290M"]}, r"^limits\.yml: macs: .*360,000,000 exceeds .*290,000,000"),
    ],
)
def test_malformed_constraints_are_refused_by_source_and_key(value, message):
    with pytest.raises(ConstraintError, match=message):
        parse_constraints(value, source="limits.yml")


@pytest.mark.parametrize(("low", "high"), [(2, 1), (math.nan, 1), (0, math.nan)])
def test_constraint_that_allows_nothing_is_refused(low, high):
    with pytest.raises(ConstraintError, match="constraint on macs"):
        Constraint("macs", low, high)


def test_bounds_of_a_constraint_are_inclusive():
    choices = {"layer_1": "k3"}  # 1,011 MACs
    assert Constraint("macs", 1011, 1011).allows(TABLE, choices)
    assert Constraint("macs").allows(TABLE, choices)
    assert not Constraint("macs", low=1012).allows(TABLE, choices)
    assert not Constraint("macs", high=1010).allows(TABLE, choices)


@pytest.mark.parametrize(("low", "high"), [(0, 1010), (1038, 5000), (-5, -1)])
def test_unreachable_bounds_are_refused_with_the_range(low, high):
    with pytest.raises(ConstraintError, match=r"'small' has macs .*reaches 1,011 to 1,037 \(with"):
        Constraint("macs", low, high).check_reachable(TABLE)


@pytest.mark.parametrize(("low", "high"), [(0, 1011), (1037, 5000), (1020, 1030), (0, math.inf)])
def test_reachable_bounds_pass(low, high):
    Constraint("macs", low, high).check_reachable(TABLE)


def test_constraint_on_an_unknown_metric_is_refused():
    with pytest.raises(ConstraintError, match="no metric 'joules'"):
        Constraint("joules", high=1).check_reachable(TABLE)


@pytest.mark.parametrize(
    ("constraint", "flag"),
    [
        (Constraint("macs", 290_000_000, 360_000_000), "macs=290M:360M"),
        (Constraint("macs", 458_275_521.6, 850_323_422.4), "macs=458.3M:850.3M"),
        (Constraint("params", high=3_500_000), "params=:3.5M"),
        (Constraint("params", 0, 999), "params=0:999"),
        (Constraint("macs", 1_000, 1_234_567_890), "macs=1K:1.234G"),
        (Constraint("latency_ms", 12.3456), "latency_ms=12.35:"),
        (Constraint("search_score", -0.000123456, 1.0), "search_score=-0.0001234:1"),
        (Constraint("macs", 123_456, 123_459), "macs=123456:123459"),
    ],
)
def test_constraint_is_written_as_a_flag_that_means_no_more(constraint, flag):
    assert write_constraint_flag(constraint) == flag
    (read,) = parse_constraint_flags([flag], flag="--constraint")
    assert read.intersect(constraint) == read
