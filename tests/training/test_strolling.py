"""Strolling through a box: it reaches the corners, ends in every space, resumes to the bit."""

import math
import random

import pytest

from spos.architecture import SearchSpec
from spos.cost.constraints import Constraint
from spos.cost.table import CostTable, Term
from spos.errors import CheckpointError
from spos.training.samplers.strolling import NUM_LEVELS, StrollingSampler, _beyond


def make_table(*, layers: int = 12, seed: int = 0) -> CostTable:
    """Layers of four operators and three widths; MACs and parameters are loosely related."""
    rng = random.Random(seed)
    choices, terms = {}, []
    for number in range(layers):
        choices[f"layer_{number}"] = tuple("abcd")
        choices[f"channel_{number}"] = (8, 16, 24)
        macs = tuple(rng.randrange(1_000) for _ in range(12))
        params = tuple(rng.randrange(500) + each // 4 for each in macs)
        latency = tuple(rng.random() for _ in range(12))
        costs = {"macs": macs, "params": params, "latency_ms": latency}
        terms.append(Term((f"layer_{number}", f"channel_{number}"), costs))
    fixed = {"macs": 100, "params": 10, "latency_ms": 0.5}
    return CostTable(SearchSpec("toy", {}, choices), fixed, terms)


def part_of(table: CostTable, metric: str, low: float, high: float) -> Constraint:
    """From ``low`` to ``high``, as shares of what the space reaches."""
    least, most = table.bounds(metric)
    return Constraint(metric, least + low * (most - least), least + high * (most - least))


BOX = [part_of(make_table(), "macs", 0.3, 0.7), part_of(make_table(), "params", 0.3, 0.7)]


def stroll(table: CostTable, ranges=BOX, *, steps_per_epoch: int = 112, seed: int = 0):
    return StrollingSampler(table, ranges, seed=seed, steps_per_epoch=steps_per_epoch)


@pytest.mark.parametrize("num_metrics", [1, 2, 3])
def test_every_path_lies_in_the_box(num_metrics):
    table = make_table()
    ranges = [*BOX, part_of(table, "latency_ms", 0.35, 0.65)][:num_metrics]
    sampler = stroll(table, ranges)
    for step in range(120):
        path = sampler.sample(step)
        assert table.spec.check(path) == path
        assert all(each.allows(table, path) for each in ranges)


@pytest.mark.parametrize("end", [3714639, 0.1 + 0.2, 10.579771000000001])
def test_window_of_coinciding_bounds_is_that_bound(end):
    for level in range(NUM_LEVELS):
        for sign in (1, -1):
            (window,) = _beyond([Constraint("params", end, end)], level, sign)
            assert (window.low, window.high) == (end, end)


def test_walk_goes_down_and_up_the_first_cost():
    table = make_table()
    sampler = stroll(table, BOX[:1], steps_per_epoch=14)
    low, high = BOX[0].low, BOX[0].high
    bands = [
        math.ceil((high - table.cost(sampler.sample(step))) / ((high - low) / 7))
        for step in range(28)
    ]
    assert bands == [*range(1, 8), *reversed(range(1, 8))] * 2


def test_stored_state_changes_nothing_but_the_time_it_takes():
    table = make_table()
    whole = stroll(table)
    paths = [whole.sample(step) for step in range(123)]
    for stopped in (57, 112, 120):
        before = stroll(table)
        for step in range(stopped):
            before.sample(step)
        resumed, walked = stroll(table), stroll(table)
        resumed.restore(before.state())
        for step in range(stopped, stopped + 3):
            assert resumed.sample(step) == walked.sample(step) == paths[step]


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"step": -1, "parents": []},
        {"step": 3, "parents": [[99] * 24]},
        {"step": 3, "parents": 5},
    ],
)
def test_state_of_something_else_is_refused(state):
    with pytest.raises(CheckpointError, match="the sampler's state is"):
        stroll(make_table()).restore(state)


def test_stroll_ends_where_most_of_the_box_is_empty():
    # Two architectures only, in opposite corners of the box, and nothing that could be bred.
    spec = SearchSpec("toy", {}, {"layer": ("a", "b")})
    table = CostTable(
        spec, {"macs": 0, "params": 0}, [Term(("layer",), {"macs": (0, 70), "params": (0, 80)})]
    )
    sampler = stroll(table, [Constraint("macs", 0, 70), Constraint("params", 0, 80)])
    assert {sampler.sample(step)["layer"] for step in range(60)} == {"a", "b"}


def test_step_of_another_epoch_is_found_without_the_ones_before():
    table = make_table()
    jumped, walked = stroll(table, seed=3), stroll(table, seed=3)
    for step in range(225):
        path = walked.sample(step)
    assert jumped.sample(224) == path
    assert jumped.sample(10**12) == stroll(table, seed=3).sample(10**12)
