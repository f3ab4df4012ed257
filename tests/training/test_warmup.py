"""Channel warm-up: the widest widths first, with any sampler, and no bound before its time."""

import pytest
from test_strolling import make_table, part_of

from spos.architecture import SearchSpec
from spos.cost.constraints import Constraint, parse_constraint_flags
from spos.cost.table import CostTable, Term
from spos.errors import CheckpointError, ConfigError, ConstraintError
from spos.training.samplers import BOXED, SAMPLERS, build_sampler
from spos.training.samplers.arguments import parse_warmup
from spos.training.samplers.warmup import WARMUPS, Phase, WarmedSampler

STEPS = 6  # of an epoch
SCALES = (2, 4, 6, 8, 10, 12, 14, 16, 18, 20)

# CanyonWind's tables: the epoch (from 0) in which each start scale is used for the last time.
ONESHOT = {18: 0, 16: 1, 14: 2, 12: 3, 10: 5, 8: 8, 6: 12, 4: 17}
PLUS = {18: 0, 16: 2, 14: 5, 12: 9, 10: 14, 8: 20, 6: 35, 4: 36}


def scaled_table() -> CostTable:
    """A layer of ten widths, in no order, and an operator; wide ones cost more."""
    spec = SearchSpec("toy", {}, {"layer": ("a", "b"), "channel": (*SCALES[5:], *SCALES[:5])})
    costs = tuple(10 * width for width in spec.choices["channel"])
    terms = [Term(("channel",), {"macs": costs}), Term(("layer",), {"macs": (0, 5)})]
    return CostTable(spec, {"macs": 0}, terms)


def warmed(text: str, *, name: str = "uniform", table: CostTable | None = None, ranges=()):
    sampler = build_sampler(
        name, table or scaled_table(), seed=0, steps_per_epoch=STEPS, ranges=ranges,
        warmup=parse_warmup(text),
    )  # fmt: skip
    assert isinstance(sampler, WarmedSampler)
    return sampler


@pytest.mark.parametrize(("name", "last"), [("oneshot", ONESHOT), ("shufflenetv2plus", PLUS)])
def test_published_tables_are_kept(name, last):
    epoch = 0
    for phase, (scale, end) in zip(WARMUPS[name], last.items(), strict=True):
        assert SCALES[-phase.widest] == scale
        epoch += phase.epochs
        assert epoch == end + 1


def test_each_epoch_trains_the_widths_of_its_phase():
    table = scaled_table()
    sampler = build_sampler(
        "uniform", table, seed=0, steps_per_epoch=200, warmup=parse_warmup("1:2,oneshot")
    )
    for epoch, count in {0: 1, 1: 1, 2: 2, 3: 3, 6: 6, 7: 6, 8: 7, 15: 9, 20: 10, 40: 10}.items():
        drawn = [sampler.sample(200 * epoch + step) for step in range(200)]
        assert {path["channel"] for path in drawn} == set(SCALES[-count:]), epoch
        assert {path["layer"] for path in drawn} == {"a", "b"}


def test_last_number_alone_stays():
    sampler = warmed("2:1,8")
    assert min(sampler.sample(step)["channel"] for step in range(STEPS, 600)) == SCALES[-8]
    assert list(sampler.describe())[-1] == "epoch 2 on: the 8 widest widths"


@pytest.mark.parametrize("name", SAMPLERS)
def test_any_sampler_is_warmed_and_a_function_of_the_step(name):
    table = make_table(layers=6)
    ranges = [part_of(table, "macs", 0.4, 0.6)] if name in BOXED else ()
    sampler = warmed("1:1,2:2", name=name, table=table, ranges=ranges)
    paths = [sampler.sample(step) for step in range(5 * STEPS)]
    for step, path in enumerate(paths):
        least = (24, 16, 16, 8, 8)[step // STEPS]
        assert all(path[f"channel_{n}"] >= least for n in range(6))
        if step >= 3 * STEPS:
            assert all(each.allows(table, path) for each in ranges)
    again = warmed("1:1,2:2", name=name, table=table, ranges=ranges)
    assert [again.sample(step) for step in reversed(range(5 * STEPS))] == paths[::-1]
    resumed = warmed("1:1,2:2", name=name, table=table, ranges=ranges)
    for step in range(2 * STEPS + 3):
        again.sample(step)
    resumed.restore(again.state())
    assert [resumed.sample(step) for step in range(15, 30)] == paths[15:]


@pytest.mark.parametrize("name", ["macs-uniform", *BOXED])
def test_bound_is_held_back_until_it_can_be_met(name):
    ranges = [Constraint("macs", 0, 165)]
    sampler = warmed("2:1,5:1", name=name, ranges=ranges)
    table = scaled_table()
    costs = [table.cost(sampler.sample(step)) for step in range(4 * STEPS)]
    assert min(costs[:STEPS]) >= 180
    assert max(costs[STEPS:]) <= 165
    assert list(sampler.describe()) == [
        "epoch 1 to 1: the 2 widest widths; macs cannot be met yet",
        "epoch 2 to 2: the 5 widest widths",
        "epoch 3 on: all widths",
    ]


def test_bounds_are_held_back_one_by_one():
    # The widest have the most MACs, but any number of parameters.
    spec = SearchSpec("toy", {}, {"layer": ("a", "b"), "channel": (1, 2)})
    terms = [
        Term(("channel",), {"macs": (10, 20), "params": (0, 0)}),
        Term(("layer",), {"macs": (0, 0), "params": (1, 2)}),
    ]
    table = CostTable(spec, {"macs": 0, "params": 0}, terms)
    ranges = [Constraint("macs", high=15), Constraint("params", high=1)]
    sampler = warmed("1:1", name="constrained", table=table, ranges=ranges)
    paths = [tuple(sampler.sample(step).values()) for step in range(2 * STEPS)]
    assert paths == [("a", 2)] * STEPS + [("a", 1)] * STEPS


def test_bound_that_can_never_be_met_is_refused_at_once():
    with pytest.raises(ConstraintError, match="reaches 20 to 205"):
        warmed("2:1", name="constrained", ranges=[Constraint("macs", 300, 400)])


@pytest.mark.parametrize("candidates", [("a", "b"), (0, 1)], ids=["names", "a list's numbers"])
def test_space_without_widths_is_refused(candidates):
    spec = SearchSpec("toy", {}, {"layer": candidates})
    table = CostTable(spec, {"macs": 1}, [Term(("layer",), {"macs": (1, 2)})])
    with pytest.raises(ConfigError, match="--channel-warmup: 'toy' .* has no widths to search"):
        warmed("oneshot", table=table)


@pytest.mark.parametrize("state", [{}, {"phase": 9}, {"phase": "1"}])
def test_state_of_another_schedule_is_refused(state):
    with pytest.raises(CheckpointError, match="the sampler's state is damaged"):
        warmed("2:1").restore(state)


# --- the flags -----------------------------------------------------------------------------------


def test_schedules_are_read():
    assert parse_warmup(None) == ()
    assert parse_warmup("oneshot") == WARMUPS["oneshot"]
    assert parse_warmup("1:60,2:1,8") == (Phase(1, 60), Phase(2, 1), Phase(8, None))


@pytest.mark.parametrize("text", ["", "2:", "0:1", "2:0", "-1:3", "2:1,", "x", "8,2:1", "1.5:2"])
def test_schedule_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match="--channel-warmup"):
        parse_warmup(text)


def test_ranges_are_read():
    assert parse_constraint_flags([], flag="--path-range") == ()
    assert parse_constraint_flags(["macs=290M:0.36G", "latency_ms=:2.5"], flag="--path-range") == (
        Constraint("macs", 290_000_000, 360_000_000),
        Constraint("latency_ms", high=2.5),
    )


@pytest.mark.parametrize(
    "text",
    ["macs", "=1:2", "290M:360M", "macs=:", "macs=a:b", "macs=2:1", "macs=1:nan"],
)
def test_range_that_is_none_is_refused(text):
    with pytest.raises(ConstraintError, match="--path-range"):
        parse_constraint_flags([text], flag="--path-range")
