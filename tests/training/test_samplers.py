"""Paths: evenly spread, functions of (seed, step) alone, exact where NNI's and Megvii's are not."""

import inspect
import itertools
import json
import math
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from spos.architecture import SearchSpec
from spos.cost.axis import CostAxis, table_moments
from spos.cost.constraints import Constraint, write_constraint_flag
from spos.cost.counting import build_cost_table
from spos.cost.table import CostTable, Term
from spos.errors import ConfigError, ConstraintError
from spos.spaces.shufflenet import ShuffleNetV2Space
from spos.training.samplers import (
    BOXED,
    PUBLISHED_OPTIONS,
    PUBLISHED_RANGE,
    SAMPLERS,
    build_sampler,
    trained_ranges,
)
from spos.training.samplers.uniform import CostUniformSampler, FairSampler, UniformSampler

BOX_OF_MACS = (Constraint("macs", 40, 120),)
ROOT = Path(__file__).resolve().parents[2]
DRAWS = 10_000

# Quantiles of the chi-square distribution at 0.999, by degrees of freedom.
CHI_SQUARE = {2: 13.8, 3: 16.3, 6: 22.5, 7: 24.3}


def chi_square(counts, share: float) -> float:
    return sum((count - share) ** 2 / share for count in counts)


def make_table(columns, *, fixed=0) -> CostTable:
    """A table of one term a column, each label with as many candidates as its column has costs."""
    named = {f"layer_{number}": tuple(column) for number, column in enumerate(columns)}
    choices = {label: tuple(f"c{i}" for i in range(len(each))) for label, each in named.items()}
    terms = [Term((label,), {"macs": column}) for label, column in named.items()]
    return CostTable(SearchSpec("toy", {}, choices), {"macs": fixed}, terms)


def all_choices(spec: SearchSpec) -> list[dict]:
    combinations = itertools.product(*spec.choices.values())
    return [dict(zip(spec.choices, each, strict=True)) for each in combinations]


@pytest.fixture(scope="module")
def shufflenet() -> CostTable:
    return build_cost_table("shufflenetv2", options={"image_size": 224, "num_classes": 1000})


@pytest.fixture(scope="module")
def draws(shufflenet):
    sampler = build_sampler("macs-uniform", shufflenet, seed=3)
    return [sampler.sample(step) for step in range(DRAWS)]


# --- uniform ---------------------------------------------------------------------------------


def test_uniform_gives_every_candidate_its_share():
    spec = SearchSpec("toy", {}, {"layer_1": ("a", "b", "c", "d"), "width": (8, 16, 24)})
    sampler = UniformSampler(spec, seed=1)
    paths = [sampler.sample(step) for step in range(4_000)]
    for label, candidates in spec.choices.items():
        counts = Counter(path[label] for path in paths)
        share = len(paths) / len(candidates)
        assert set(counts) == set(candidates)
        found = chi_square(counts.values(), share)
        assert found < CHI_SQUARE[len(candidates) - 1]


def test_uniform_layers_are_independent():
    spec = SearchSpec("toy", {}, {"layer_1": ("a", "b"), "layer_2": (1, 2), "layer_3": ("x", "y")})
    sampler = UniformSampler(spec, seed=0)
    counts = Counter(tuple(sampler.sample(step).values()) for step in range(4_000))
    assert len(counts) == 8
    assert chi_square(counts.values(), 500) < CHI_SQUARE[7]


# --- fair -----------------------------------------------------------------------------------------


def test_fair_trains_every_candidate_once_in_each_group():
    spec = SearchSpec("toy", {}, {"layer_1": tuple("abcd"), "width": (8, 16, 24), "one": ("x",)})
    sampler = FairSampler(spec, seed=1)
    paths = [sampler.sample(step) for step in range(120)]
    for label, candidates in spec.choices.items():
        size = len(candidates)
        for first in range(0, len(paths), size):
            group = [path[label] for path in paths[first : first + size]]
            assert sorted(group) == sorted(candidates)


def test_fair_orders_are_uniform_and_independent_of_other_layers():
    spec = SearchSpec("toy", {}, {"layer_1": ("a", "b", "c"), "layer_2": ("a", "b", "c")})
    sampler = FairSampler(spec, seed=0)
    paths = [sampler.sample(step) for step in range(3 * 3_000)]
    orders = Counter(
        tuple(path["layer_1"] for path in paths[first : first + 3])
        for first in range(0, len(paths), 3)
    )
    assert len(orders) == 6
    assert chi_square(orders.values(), 500) < CHI_SQUARE[6]
    pairs = Counter(tuple(path.values()) for path in paths)
    assert len(pairs) == 9
    assert chi_square(pairs.values(), 1_000) < CHI_SQUARE[7]


# --- macs-uniform, on the real table ------------------------------------------------------------


def test_macs_are_uniform_over_the_published_range(shufflenet, draws):
    low, high = PUBLISHED_RANGE.low, PUBLISHED_RANGE.high
    macs = [shufflenet.cost(path) for path in draws]
    assert low <= min(macs) and max(macs) <= high
    counts, _ = np.histogram(macs, bins=7, range=(low, high))
    assert max(abs(counts / DRAWS - 1 / 7)) < 0.15 / 7
    assert chi_square(counts, DRAWS / 7) < CHI_SQUARE[6]


def test_published_options_are_the_defaults_of_the_space():
    parameters = inspect.signature(vars(ShuffleNetV2Space)["_init_wrapped"]).parameters
    defaults = {name: each.default for name, each in parameters.items()}
    for name in ("stage_widths", "stage_depths"):
        defaults[name] = list(defaults[name])
    del defaults["self"], defaults["affine"]  # of the network, not of the space
    assert defaults == PUBLISHED_OPTIONS


@pytest.mark.parametrize(
    ("options", "is_published"),
    [
        ({}, True),
        ({"layout": "canonical", "stage_widths": [64, 160, 320, 640]}, True),
        ({"layout": "canyonwind"}, False),
        ({"stage_depths": [4, 4, 8, 3]}, False),
        ({"head": "mobilenetv3"}, False),
        ({"channel_scales": [0.5, 1.0]}, False),
        ({"image_size": 192}, False),
    ],
)
def test_published_range_is_of_the_published_space(shufflenet, options, is_published):
    spec = SearchSpec("shufflenetv2", {**shufflenet.spec.options, **options},
                      shufflenet.spec.choices)  # fmt: skip
    table = CostTable(spec, shufflenet.fixed, shufflenet.terms)
    bins = build_sampler("macs-uniform", table, seed=0).bins
    assert ((bins[0][0], bins[-1][1]) == (290e6, 360e6)) == is_published


def test_macs_of_searched_widths_are_uniform_over_their_own_range():
    options = {"image_size": 224, "num_classes": 1000, "channel_scales": [0.2, 0.6, 1.0, 1.4, 2.0]}
    table = build_cost_table("shufflenetv2", options=options)
    mean, deviation = table_moments(table, "macs")
    sampler = build_sampler("macs-uniform", table, seed=3)
    macs = [table.cost(sampler.sample(step)) for step in range(DRAWS // 2)]
    ends = mean - 3 * deviation, mean + 3 * deviation
    assert ends[0] <= min(macs) and max(macs) <= ends[1]
    counts, _ = np.histogram(macs, bins=7, range=ends)
    assert chi_square(counts, len(macs) / 7) < CHI_SQUARE[6]


def test_drawn_paths_are_architectures_in_network_order(shufflenet, draws):
    for path in draws[:50]:
        assert list(path) == list(shufflenet.spec.choices)
        assert shufflenet.spec.check(path) == path


def test_every_candidate_of_every_layer_is_trained(shufflenet, draws):
    for label, candidates in shufflenet.spec.choices.items():
        counts = Counter(path[label] for path in draws)
        assert min(counts[candidate] for candidate in candidates) > 0.1 * DRAWS


def test_range_without_a_published_one_is_three_deviations_wide():
    table = build_cost_table("shufflenetv2", options={"image_size": 32, "num_classes": 10})
    mean, deviation = table_moments(table, "macs")
    bins = CostUniformSampler(table).bins
    assert bins[0][0] == pytest.approx(mean - 3 * deviation)
    assert bins[-1][1] == pytest.approx(mean + 3 * deviation)
    rng = random.Random(0)
    costs = [
        table.cost({k: rng.choice(v) for k, v in table.spec.choices.items()}) for _ in range(4_000)
    ]
    assert np.mean(costs) == pytest.approx(mean, rel=0.01)
    assert np.std(costs) == pytest.approx(deviation, rel=0.05)


def test_macs_are_uniform_where_widths_are_searched_too():
    table = width_table()
    costs = sorted(table.cost(choices) for choices in all_choices(table.spec))
    sampler = CostUniformSampler(table, low=costs[2], high=costs[-3], num_bins=3)
    drawn = Counter(tuple(sampler.sample(step).values()) for step in range(6_000))
    assert len(sampler.bins) == 3
    for low, high in sampler.bins:
        inside = [
            tuple(choices.values())
            for choices in all_choices(table.spec)
            if low <= table.cost(choices) < high or table.cost(choices) == high == costs[-3]
        ]
        counts = [drawn[each] for each in inside]
        assert sum(counts) == pytest.approx(2_000, rel=0.08)
        assert (
            chi_square(counts, sum(counts) / len(counts)) < len(counts) + 4.5 * len(counts) ** 0.5
        )


@pytest.mark.parametrize(
    ("name", "ranges", "message"),
    [
        ("uniform", BOX_OF_MACS, "draws from the whole space"),
        ("fair", BOX_OF_MACS, "draws from the whole space"),
        ("constrained", (), "needs the box"),
        ("strolling", (), "needs the box"),
        ("macs-uniform", (Constraint("params", 0, 9),), "macs only"),
        ("constrained", 2 * BOX_OF_MACS, "one range for each cost"),
    ],
)
def test_ranges_that_the_sampler_cannot_use_are_refused(name, ranges, message):
    with pytest.raises(ConfigError, match=message):
        build_sampler(name, width_table(), seed=0, ranges=ranges)


@pytest.mark.parametrize("low, high", [(0, 10**9), (-math.inf, 10**9), (0, math.inf)])
def test_range_beyond_the_space_is_the_space(shufflenet, low, high):
    least, greatest = shufflenet.bounds()
    usual = build_sampler(
        "macs-uniform", shufflenet, seed=0, ranges=[Constraint("macs", least, greatest)]
    )
    wider = build_sampler(
        "macs-uniform", shufflenet, seed=0, ranges=[Constraint("macs", low, high)]
    )
    assert wider.bins == usual.bins and len(usual.bins) == 7


def test_no_architecture_of_a_huge_space_vanishes_from_its_count():
    labels = [f"layer_{number}" for number in range(40)]
    spec = SearchSpec("huge", {}, {label: tuple(range(1, 9)) for label in labels})
    costs = {"macs": tuple(range(8))}
    table = CostTable(spec, {"macs": 0}, [Term((label,), costs) for label in labels])
    axis = CostAxis(table, "macs")
    assert axis.count_between(0, 280) == pytest.approx(8.0**40)
    assert [axis.count_between(end, end) for end in (0, 1, 279, 280)] == [1, 40, 40, 1]
    drawn = axis.draw(280, 281, np.random.default_rng(0))
    assert table.cost(drawn) == 280


def test_open_end_of_a_range_is_where_the_space_ends():
    table = width_table()
    low, high = table.bounds("macs")
    sampler = build_sampler("macs-uniform", table, seed=0, ranges=[Constraint("macs", high=60)])
    assert sampler.bins[0][0] == low and sampler.bins[-1][1] == 60 < high


# --- functions of (seed, step) -------------------------------------------------------------------


BOX = (Constraint("macs", 310e6, 330e6), Constraint("params", 3.2e6, 3.5e6))
RANGES = {"constrained": BOX, "strolling": BOX}
WIDTHS = {"layer_1": ("a", "b", "c"), "channel_1": (8, 16, 24), "channel_2": (4, 2, 6)}


def width_table() -> CostTable:
    """A space of searched widths whose costs depend on operator and width together."""
    rng = random.Random(0)
    columns = [[rng.randrange(100) for _ in range(9)] for _ in range(2)]
    terms = [
        Term(("layer_1", "channel_1"), {"macs": tuple(columns[0]), "params": tuple(columns[1])}),
        Term(("channel_2",), {"macs": (20, 3, 41), "params": (2, 1, 3)}),
    ]
    return CostTable(SearchSpec("toy", {}, WIDTHS), {"macs": 10, "params": 5}, terms)


@pytest.mark.slow
@pytest.mark.parametrize("name", RANGES)
def test_no_path_of_ten_thousand_leaves_the_box(shufflenet, name):
    sampler = build_sampler(name, shufflenet, seed=7, ranges=BOX, steps_per_epoch=112)
    for step in range(10_000):
        path = sampler.sample(step)
        assert all(each.allows(shufflenet, path) for each in BOX)


@pytest.mark.parametrize("name", SAMPLERS)
def test_path_depends_on_seed_and_step_alone(shufflenet, name):
    def build(seed: int):
        ranges = RANGES.get(name, ())
        return build_sampler(name, shufflenet, seed=seed, ranges=ranges, steps_per_epoch=112)

    sampler, again = build(5), build(5)
    forward = [sampler.sample(step) for step in range(20)]
    assert [again.sample(step) for step in reversed(range(20))] == forward[::-1]
    assert build(6).sample(0) != forward[0]
    # A child of a stroll may be one of its parents again.
    assert len({tuple(path.values()) for path in forward}) >= (15 if name == "strolling" else 20)


def test_paths_are_equal_in_another_process_with_another_hash_seed(tmp_path):
    width_table().save(tmp_path / "cost.json")
    code = f"""
import json
from spos.cost.constraints import Constraint
from spos.cost.table import CostTable
from spos.training.samplers import BOXED, SAMPLERS, build_sampler
from spos.training.samplers.arguments import parse_warmup
table = CostTable.load({str(tmp_path / "cost.json")!r})
box = [Constraint("macs", 40, 120), Constraint("params", 30, 80)]
samplers = [
    build_sampler(name, table, seed=-1, steps_per_epoch=20, warmup=parse_warmup(warmup),
                  ranges=box if name in BOXED else ())
    for name in SAMPLERS
    for warmup in (None, "1:2,2:1")
]
print(json.dumps([[each.sample(step) for step in range(100)] for each in samplers]))
import sys
assert "torch" not in sys.modules
"""
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=ROOT,
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("0", "12345")
    }
    assert len(outputs) == 1
    assert len(json.loads(outputs.pop())) == 2 * len(SAMPLERS)


# --- bins ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bounds", [(0, 100), (500e6, 600e6)])
def test_unreachable_range_is_refused_with_the_reachable_one(shufflenet, bounds):
    with pytest.raises(ConstraintError, match=r"the space reaches 270,359,360 to 398,609,216"):
        ranges = [Constraint("macs", *bounds)]
        build_sampler("macs-uniform", shufflenet, seed=0, ranges=ranges)


def test_range_between_two_costs_is_refused():
    with pytest.raises(ConstraintError, match="no architecture of 'toy' has macs between 2 and 9"):
        CostUniformSampler(make_table([[0, 100]]), low=2, high=9)


def test_bins_without_an_architecture_are_left_out():
    table = make_table([[0, 60], [0, 1, 2]])
    sampler = CostUniformSampler(table, low=0, high=70)
    assert sampler.bins == ((0, 10), (60, 70))
    costs = Counter(table.cost(sampler.sample(step)) >= 60 for step in range(2_000))
    assert 900 < costs[True] < 1_100


def test_architecture_on_the_edge_of_two_bins_is_in_the_upper_one():
    # 20 lies at the end of the bin [10, 20), which is empty, and at the beginning of [20, 30).
    table = make_table([[0, 20, 70]])
    sampler = CostUniformSampler(table, low=0, high=70)
    assert sampler.bins == ((0, 10), (20, 30), (60, 70))
    counts = Counter(table.cost(sampler.sample(step)) for step in range(3_000))
    assert chi_square([counts[0], counts[20], counts[70]], 1_000) < CHI_SQUARE[2]


def test_architectures_of_a_bin_are_equally_likely():
    table = make_table([[0, 3, 9], [1, 4, 7], [2, 2, 5]])
    sampler = CostUniformSampler(table, low=3, high=21, num_bins=2)
    counts = Counter(tuple(sampler.sample(step).values()) for step in range(5_400))
    for low, high in ((3, 12), (12, 22)):
        inside = [
            counts[tuple(choices.values())]
            for choices in all_choices(table.spec)
            if low <= table.cost(choices) < high
        ]
        share = 2_700 / len(inside)
        assert sum(inside) == pytest.approx(2_700, rel=0.06)
        # The 0.999 quantile of chi-square with n degrees of freedom is below n + 4.5 sqrt(n).
        assert chi_square(inside, share) < len(inside) + 4.5 * len(inside) ** 0.5


def test_measured_costs_are_spread_as_well():
    rng = random.Random(1)
    table = make_table([[rng.random() for _ in range(4)] for _ in range(6)], fixed=0.5)
    sampler = CostUniformSampler(table)
    costs = [table.cost(sampler.sample(step)) for step in range(DRAWS // 2)]
    low, high = sampler.bins[0][0], sampler.bins[-1][1]
    assert low <= min(costs) and max(costs) <= high
    counts, _ = np.histogram(costs, bins=[low, *(right for _, right in sampler.bins)])
    assert chi_square(counts, len(costs) / 7) < CHI_SQUARE[6]


def test_rounded_axis_leaves_out_a_bin_whose_only_cost_lies_beside_it():
    # Not on a common grid, so the axis is rounded; 20.00001 is within its slack of [10, 20).
    table = make_table([[0.0, 20.00001, 70.0], [0.0, 1e-7]])
    sampler = CostUniformSampler(table, low=0, high=71, num_bins=71)
    assert (19, 20) not in sampler.bins and (20, 21) in sampler.bins
    for step in range(200):
        assert sampler.sample(step)["layer_0"] in ("c0", "c1", "c2")


# --- the cost axis -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_counts_equal_brute_force(seed):
    rng = random.Random(seed)
    columns = [
        [rng.randrange(0, 600, 3) for _ in range(rng.randint(1, 4))]
        for _ in range(rng.randint(1, 5))
    ]
    table = make_table(columns, fixed=rng.randrange(1_000))
    axis = CostAxis(table, "macs")
    costs = [table.cost(choices) for choices in all_choices(table.spec)]
    assert axis.slack == 0
    for _ in range(60):
        low, high = sorted(rng.choice(costs) + rng.choice([-2, -0.5, 0, 0, 1.5]) for _ in range(2))
        assert axis.count_between(low, high) == sum(low <= cost <= high for cost in costs)
    assert axis.count_between(-1e9, 1e9) == len(costs)
    assert axis.count_between(max(costs) + 1, 1e9) == 0


def test_rounded_counts_are_within_their_slack():
    rng = random.Random(2)
    table = make_table([[rng.random() * 9 for _ in range(4)] for _ in range(5)], fixed=1.5)
    axis = CostAxis(table, "macs")
    costs = sorted(table.cost(choices) for choices in all_choices(table.spec))
    assert 0 < axis.slack < 1e-3 * (costs[-1] - costs[0])
    for _ in range(60):
        low, high = sorted(rng.uniform(costs[0], costs[-1]) for _ in range(2))
        fewest = sum(low <= cost <= high for cost in costs)
        most = sum(low - 2 * axis.slack <= cost <= high + 2 * axis.slack for cost in costs)
        assert fewest <= axis.count_between(low, high) <= most


def test_choices_without_a_cost_are_drawn_evenly_too():
    spec = SearchSpec("toy", {}, {"free": ("a", "b", "c"), "layer": ("x", "y")})
    table = CostTable(spec, {"macs": 5}, [Term(("layer",), {"macs": (1, 2)})])
    sampler = CostUniformSampler(table, low=6, high=7, num_bins=1)
    counts = Counter(tuple(sampler.sample(step).items()) for step in range(3_000))
    assert len(counts) == 6
    assert min(counts.values()) > 400
    assert all(list(dict(path)) == ["free", "layer"] for path in counts)


def test_term_of_two_labels_is_drawn_as_one():
    spec = SearchSpec("toy", {}, {"width": (8, 16), "layer": ("x", "y"), "last": ("p", "q")})
    terms = [
        Term(("width", "layer"), {"macs": (1, 20, 300, 4_000)}),
        Term(("last",), {"macs": (0, 50_000)}),
    ]
    table = CostTable(spec, {"macs": 0}, terms)
    axis = CostAxis(table, "macs")
    rng = np.random.default_rng(0)
    for choices in all_choices(spec):
        cost = table.cost(choices)
        assert axis.count_between(cost, cost) == 1
        assert axis.draw(cost, cost, rng) == choices


def test_table_that_is_no_sum_over_layers_is_refused():
    spec = SearchSpec("toy", {}, {"a": (1, 2), "b": (1, 2)})
    terms = [Term(("a", "b"), {"macs": (1, 2, 3, 4)}), Term(("b",), {"macs": (1, 2)})]
    table = CostTable(spec, {"macs": 0}, terms)
    with pytest.raises(ConstraintError, match="use the uniform sampler"):
        CostUniformSampler(table)


def test_space_of_one_cost_has_one_bin():
    table = make_table([[7, 7], [1, 1, 1]], fixed=2)
    sampler = CostUniformSampler(table)
    assert math.prod(len(each) for each in table.spec.choices.values()) == 6
    assert len({tuple(sampler.sample(step).values()) for step in range(200)}) == 6


def test_constraint_of_a_draw_holds_at_both_ends():
    table = make_table([[0, 1, 2, 3, 4, 5, 6, 7]], fixed=10)
    sampler = CostUniformSampler(table, low=11, high=16)
    allowed = Constraint("macs", 11, 16)
    drawn = {table.cost(sampler.sample(step)) for step in range(500)}
    assert drawn == {11, 12, 13, 14, 15, 16}
    assert all(allowed.allows(table, sampler.sample(step)) for step in range(500))


# --- what a run trained --------------------------------------------------------------------------


def settings(sampler, *path_range, **changes) -> dict:
    numbers = {"seed": 0, "num_train": 9, "held_out": 0, "batch_size": 1, "epochs": 1}
    return {"sampler": sampler, "path_range": [*path_range] or None, **numbers, **changes}


@pytest.mark.parametrize("name", SAMPLERS)
def test_trained_ranges_hold_for_the_paths(name):
    table = make_table([(0, 5, 9), (0, 20), (1, 30)] * 4, fixed=10)
    given = ("macs=100:180",) if name in BOXED else ()
    sampler = build_sampler(
        name, table, seed=0, ranges=[Constraint("macs", 100, 180)] if given else ()
    )
    ranges = trained_ranges(settings(name, *given), table, source="x")
    assert len(ranges) == (name not in ("uniform", "fair"))
    macs = [table.cost(sampler.sample(step)) for step in range(300)]
    for each in ranges:
        assert each.low <= min(macs) and max(macs) <= each.high
        span = each.high - each.low
        assert min(macs) < each.low + 0.15 * span and max(macs) > each.high - 0.15 * span


def test_trained_ranges_are_the_papers_or_those_that_were_given(shufflenet):
    assert trained_ranges(settings("macs-uniform"), shufflenet, source="x") == (PUBLISHED_RANGE,)
    config = settings("macs-uniform", "macs=:300M")
    assert trained_ranges(config, shufflenet, source="x") == (Constraint("macs", high=3e8),)


def test_trained_ranges_of_the_readme():
    options = {"image_size": 224, "num_classes": 1000}
    table = build_cost_table("proxyless_gpu", options=options)
    (paths,) = trained_ranges(settings("macs-uniform"), table, source="x")
    flag = write_constraint_flag(paths)
    assert f"--run-dir runs/proxyless --constraint {flag}" in (ROOT / "README.md").read_text()


def test_what_is_not_known_to_be_trained_has_no_range():
    table = make_table([(0, 5), (0, 20)])
    for config in (
        settings("macs-uniform", epochs=0),
        settings("constrained", "latency_ms=:3"),  # which is no longer in the table
        settings("constrained", "macs=:9", measured_costs={"macs": "of another measurement"}),
    ):
        assert trained_ranges(config, table, source="x") == ()
    config = settings("constrained", "macs=:9", measured_costs={"macs": table.digest("macs")})
    assert trained_ranges(config, table, source="x") == (Constraint("macs", high=9),)
    with pytest.raises(ConfigError, match=r"a/args\.json: does not say how paths were sampled"):
        trained_ranges(settings("fast"), table, source="a/args.json")
