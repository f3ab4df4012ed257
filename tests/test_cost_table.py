"""Costs add up, bounds are exact, the table's file is stable, odd tables are refused."""

import itertools
import json
import math
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spos.architecture import SearchSpec
from spos.cost.constraints import Constraint
from spos.cost.table import CostTable, Term
from spos.errors import ConstraintError

SPEC = SearchSpec(
    "wide",
    {"image_size": 32},
    {"layer_1": ("k3", "k5"), "channel_1": (16, 24, 32), "layer_2": ("k3", "k5", "k7")},
)
# Operator and width of layer 1 cost something together, the last label fastest.
JOINT = Term(
    ("layer_1", "channel_1"),
    {"macs": (10, 20, 30, 11, 22, 33), "latency_ms": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)},
)
ALONE = Term(("layer_2",), {"macs": (1, 2, 4), "latency_ms": (0.25, 0.5, 1.0)})
TABLE = CostTable(SPEC, {"macs": 1000, "latency_ms": 2.0}, [JOINT, ALONE])

# Byte for byte what release 0.1.0 writes. It is read for ever: never edit it to mend a test.
GOLDEN = """\
{
  "version": 1,
  "space": "tiny",
  "options": {
    "image_size": 8
  },
  "choices": {
    "layer_1": [
      "k3",
      "k5"
    ],
    "channel_1": [
      16
    ]
  },
  "fixed": {
    "macs": 100,
    "params": 7
  },
  "terms": [
    {
      "labels": [
        "layer_1",
        "channel_1"
      ],
      "costs": {
        "macs": [
          1,
          2
        ],
        "params": [
          0,
          0.5
        ]
      }
    }
  ]
}
"""
TINY = CostTable(
    SearchSpec("tiny", {"image_size": 8}, {"layer_1": ("k3", "k5"), "channel_1": (16,)}),
    {"macs": 100, "params": 7},
    [Term(("layer_1", "channel_1"), {"macs": (1, 2), "params": (0, 0.5)})],
)


def all_choices(spec: SearchSpec) -> list[dict]:
    product = itertools.product(*spec.choices.values())
    return [dict(zip(spec.choices, each, strict=True)) for each in product]


# --- look-ups --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer_1", "channel_1", "layer_2", "macs", "latency_ms"),
    [
        ("k3", 16, "k3", 1011, 2.35),
        ("k3", 32, "k5", 1032, 2.8),
        ("k5", 16, "k7", 1015, 3.4),
        ("k5", 24, "k3", 1023, 2.75),
    ],
)
def test_cost_is_the_sum_of_its_terms(layer_1, channel_1, layer_2, macs, latency_ms):
    choices = {"layer_2": layer_2, "channel_1": channel_1, "layer_1": layer_1}
    assert TABLE.cost(choices) == macs
    assert TABLE.costs(choices) == {"macs": macs, "latency_ms": pytest.approx(latency_ms)}


def test_macs_are_whole_numbers():
    assert {type(TABLE.cost(choices)) for choices in all_choices(SPEC)} == {int}
    assert [type(bound) for bound in TABLE.bounds("macs")] == [int, int]


def test_bounds_are_reached_and_not_exceeded():
    for metric in TABLE.metrics:
        costs = [TABLE.cost(choices, metric) for choices in all_choices(SPEC)]
        assert TABLE.bounds(metric) == pytest.approx((min(costs), max(costs)))


@pytest.mark.parametrize("seed", range(30))
def test_bounds_of_measured_costs_are_those_of_an_architecture_to_the_bit(seed):
    generator = random.Random(seed)
    labels = [f"layer_{number}" for number in range(12)]
    spec = SearchSpec("measured", {}, dict.fromkeys(labels, ("k3", "k5")))
    columns = {label: (generator.random(), generator.random()) for label in labels}
    terms = [Term((label,), {"ms": columns[label]}) for label in labels]
    table = CostTable(spec, {"ms": generator.random()}, terms)
    for choose, bound in zip((min, max), table.bounds("ms"), strict=True):
        best = {label: spec.choices[label][each.index(choose(each))]
                for label, each in columns.items()}  # fmt: skip
        assert table.cost(best, "ms") == bound


def test_bounds_enclose_terms_that_share_a_label():
    shared = Term(("layer_2", "layer_1"), {"macs": (0, 9, 1, 8, 2, 7)})
    table = CostTable(SPEC, {"macs": 0}, [Term(("layer_2",), {"macs": (5, 0, 3)}), shared])
    low, high = table.bounds()
    assert all(low <= table.cost(choices) <= high for choices in all_choices(SPEC))
    assert not table.is_separable
    assert TABLE.is_separable


def test_space_without_choices_costs_its_fixed_part():
    table = CostTable(SearchSpec("fixed", {}, {}), {"macs": 5}, [])
    assert table.cost({}) == 5
    assert table.bounds() == (5, 5)


def test_choices_must_be_complete_and_known():
    for choices in ({}, {"layer_1": "k9", "channel_1": 16, "layer_2": "k3"}):
        with pytest.raises(KeyError):
            TABLE.cost(choices)


def test_unknown_metric_is_refused_with_the_known_ones():
    for look_up in (TABLE.bounds, lambda metric: TABLE.cost({}, metric)):
        with pytest.raises(ConstraintError, match="no metric 'joules'; it has macs, latency_ms"):
            look_up("joules")


def test_terms_must_have_a_cost_for_every_combination():
    with pytest.raises(ValueError):
        CostTable(SPEC, {"macs": 0}, [Term(("layer_2",), {"macs": (1, 2)})])


# --- its file --------------------------------------------------------------------------------


def test_file_of_version_1_is_byte_identical(tmp_path):
    path = tmp_path / "cost.json"
    TINY.save(path)
    assert path.read_text() == GOLDEN


def test_file_of_version_1_is_read(tmp_path):
    path = tmp_path / "cost.json"
    path.write_text(GOLDEN)
    table = CostTable.load(path)
    assert (table.spec, table.fixed, table.terms) == (TINY.spec, TINY.fixed, TINY.terms)


def test_save_and_load_keep_every_cost(tmp_path):
    TABLE.save(tmp_path / "cost.json")
    table = CostTable.load(str(tmp_path / "cost.json"))
    assert table.spec == SPEC
    assert list(table.spec.choices) == list(SPEC.choices)
    for choices in all_choices(SPEC):
        assert table.costs(choices) == TABLE.costs(choices)


def test_trained_ranges_survive_the_file_and_further_metrics(tmp_path):
    table = CostTable(TINY.spec, TINY.fixed, TINY.terms)
    table.trained = (Constraint("macs", 3), Constraint("params", high=2.5))
    table.save(tmp_path / "cost.json")
    read = CostTable.load(tmp_path / "cost.json")
    assert read.trained == table.trained
    assert read.with_sum("both", {"macs": 2}).trained == table.trained
    assert read.restrict({}).trained == table.trained


def test_missing_table_is_our_error(tmp_path):
    with pytest.raises(ConstraintError, match=r"cost\.json: cannot be read"):
        CostTable.load(tmp_path / "cost.json")


def changed(*place: str | int, to: object) -> str:
    """The golden file with the value at ``place`` replaced."""
    value = json.loads(GOLDEN)
    part = value
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = to
    return json.dumps(value)


def measured_table(path: Path) -> CostTable:
    """`TABLE` with a latency whose every number tells its place, as a file gives it back."""
    terms = [
        Term(
            term.labels,
            {**term.costs, "cpu_ms": tuple(0.5 + n for n in range(len(term.costs["macs"])))},
            {"cpu_ms": tuple(0.1 * n for n in range(len(term.costs["macs"])))},
        )
        for term in TABLE.terms
    ]
    how = {"cpu_ms": {"device": "a CPU", "threads": 1}}
    CostTable(SPEC, {**TABLE.fixed, "cpu_ms": 3.0}, terms, measured=how).save(path)
    return CostTable.load(path)


def test_measured_metric_survives_the_file_with_its_spread(tmp_path):
    table = measured_table(tmp_path / "cost.json")
    assert table.measured == {"cpu_ms": {"device": "a CPU", "threads": 1}}
    assert table.terms[1].spreads == {"cpu_ms": (0.0, 0.1, 0.2)}
    assert table.bounds("cpu_ms") == (4.0, 3.0 + 5.5 + 2.5)
    value = json.loads((tmp_path / "cost.json").read_text())
    for damage in (
        {"measured": []},
        {"measured": {"cpu_ms": 1}},
        {"measured": {"joules": {}}},
        {"terms": [{**value["terms"][0], "spreads": {"cpu_ms": [1]}}, value["terms"][1]]},
        {"terms": [{**value["terms"][0], "spreads": [1]}, value["terms"][1]]},
    ):
        (tmp_path / "cost.json").write_text(json.dumps({**value, **damage}))
        with pytest.raises(ConstraintError, match=r"cost\.json: is not a cost table"):
            CostTable.load(tmp_path / "cost.json")


def test_part_of_a_table_costs_the_same(tmp_path):
    table = measured_table(tmp_path / "cost.json")
    kept = {"channel_1": list(SPEC.choices["channel_1"][1:]), "layer_2": ["k5"]}
    part = table.restrict(kept)
    assert part.spec.choices == {**SPEC.choices, **{k: tuple(v) for k, v in kept.items()}}
    assert part.measured == table.measured
    assert len(part.terms[0].spreads["cpu_ms"]) == len(part.terms[0].costs["macs"])
    for choices in all_choices(part.spec):
        assert part.costs(choices) == table.costs(choices)
    for wrong in ({"layer_9": ["k3"]}, {"layer_2": []}, {"layer_2": ["k9"]}):
        with pytest.raises(ConstraintError, match="is no part of the candidates of 'wide'"):
            table.restrict(wrong)


def test_measurements_are_taken_over_where_they_fit(tmp_path):
    measured = measured_table(tmp_path / "cost.json")
    both = TABLE.with_measured(measured)
    assert both.measured == measured.measured and both.terms == measured.terms
    part = {"layer_2": ["k5"]}
    for choices in all_choices(TABLE.restrict(part).spec):
        kept = TABLE.restrict(part).with_measured(measured)
        assert kept.costs(choices) == measured.costs(choices)
    assert measured.with_measured(measured).measured == measured.measured  # measured again
    other = SearchSpec("other", SPEC.options, SPEC.choices)
    for mismatch in (
        measured.restrict(part),  # lacks candidates
        CostTable(other, measured.fixed, measured.terms, measured=measured.measured),
        CostTable(SPEC, {**measured.fixed, "macs": 1}, measured.terms, measured=measured.measured),
    ):
        assert TABLE.with_measured(mismatch) is TABLE


COSTS = ("terms", 0, "costs", "macs")
DAMAGED = {
    "empty": "",
    "cut": GOLDEN[:-20],
    "a list": "[]",
    "a search space": json.dumps(SPEC.search_space()),
    "version of the future": changed("version", to=2),
    "version True": changed("version", to=True),
    "space a list": changed("space", to=[]),
    "options a list": changed("options", to=[["image_size", 8]]),
    "choices a list": changed("choices", to=[]),
    "candidates as text": changed("choices", "layer_1", to="ab"),
    "candidates an object": changed("choices", "layer_1", to={"k3": 1, "k5": 2}),
    "no candidates": changed("choices", "layer_1", to=[]),
    "candidate True": changed("choices", "channel_1", to=[True]),
    "candidate twice": changed("choices", "layer_1", to=["k3", "k3"]),
    "candidate too many": changed("choices", "layer_1", to=["k3", "k5", "k7"]),
    "fixed a list": changed("fixed", to=[100]),
    "fixed as text": changed("fixed", "macs", to="100"),
    "fixed True": changed("fixed", "macs", to=True),
    "fixed metric without costs": changed("fixed", "latency_ms", to=1),
    "terms a number": changed("terms", to=1),
    "term a list": changed("terms", to=[[]]),
    "labels as text": changed("terms", 0, "labels", to="layer_1"),
    "no labels": changed("terms", 0, to={"labels": [], "costs": {"macs": [1], "params": [1]}}),
    "unknown label": changed("terms", 0, "labels", 0, to="layer_9"),
    "label twice": changed("terms", 0, "labels", to=["channel_1", "channel_1"]),
    "label a list": changed("terms", 0, "labels", 0, to=["layer_1"]),
    "cost missing": changed(*COSTS, to=[1]),
    "cost too many": changed(*COSTS, to=[1, 2, 3]),
    "cost as text": changed(*COSTS, to="12"),
    "cost null": changed(*COSTS, to=[1, None]),
    "cost True": changed(*COSTS, to=[1, True]),
    "cost NaN": changed(*COSTS, to=[1, math.nan]),
    "cost infinite": changed(*COSTS, to=[1, 2]).replace("[1, 2]", "[1, 1e999]"),
    "cost of 400 digits": changed(*COSTS, to=[1, 10**400]),
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_table_is_refused_by_name(tmp_path, text):
    path = tmp_path / "cost.json"
    path.write_text(text)
    with pytest.raises(ConstraintError) as caught:
        CostTable.load(path)
    assert str(caught.value).startswith(f"{path}: ")


def paths_into(value: object, place: tuple = ()) -> list[tuple]:
    """Every place in a JSON value that something else could be put in."""
    if not isinstance(value, (dict, list)):
        return [place]
    items = value.items() if isinstance(value, dict) else enumerate(value)
    inner = [deeper for key, part in items for deeper in paths_into(part, (*place, key))]
    return [place, *inner] if place else inner


NUMBERS = st.booleans() | st.integers(-3, 3) | st.integers() | st.floats()
TEXT = st.sampled_from(["", "k3", "layer_1", "channel_1", "macs"])
ANYTHING = st.recursive(
    st.none() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(paths_into(json.loads(GOLDEN))), ANYTHING)
def test_any_table_file_gives_a_table_or_our_error(tmp_path_factory, place, value):
    path = tmp_path_factory.getbasetemp() / "cost.json"
    path.write_text(changed(*place, to=value))
    try:
        table = CostTable.load(path)
    except ConstraintError as error:
        assert str(error).startswith(f"{path}: ")
        return
    for metric in table.metrics:
        low, high = table.bounds(metric)
        for choices in all_choices(table.spec):
            assert low <= table.cost(choices, metric) <= high
    table.save(path)
    assert CostTable.load(path).terms == table.terms


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(GOLDEN)), st.integers(0, 30), st.binary(max_size=3))
def test_any_damaged_bytes_give_a_table_or_our_error(tmp_path_factory, begin, length, data):
    path = tmp_path_factory.getbasetemp() / "cost.json"
    path.write_bytes(GOLDEN[:begin].encode() + data + GOLDEN[begin + length :].encode())
    try:
        CostTable.load(path)
    except ConstraintError as error:
        assert str(error).startswith(f"{path}: ")


# --- parts and sums --------------------------------------------------------------------------


def every_choices(table):
    for candidates in itertools.product(*table.spec.choices.values()):
        yield dict(zip(table.spec.choices, candidates, strict=True))


@pytest.mark.parametrize(
    "fixed", [{}, {"channel_1": 24}, {"layer_1": "k5", "layer_2": "k7"}, {"layer_1": "k3"}]
)
def test_part_of_a_table_holds_the_costs_of_its_architectures(fixed):
    part = TABLE.restrict({label: (each,) for label, each in fixed.items()})
    kept = [each for each in every_choices(TABLE) if fixed.items() <= each.items()]
    assert list(every_choices(part)) == kept
    assert [part.costs(each) for each in kept] == [TABLE.costs(each) for each in kept]
    macs = [TABLE.cost(each) for each in kept]
    assert part.bounds("macs") == (min(macs), max(macs))


@pytest.mark.parametrize("fixed", [{"layer_9": "k3"}, {"layer_1": "k9"}, {"channel_1": True}])
def test_part_of_unknown_choices_is_refused(fixed):
    with pytest.raises(ConstraintError, match="is no part of the candidates"):
        TABLE.restrict({label: (each,) for label, each in fixed.items()})


def test_sum_of_metrics_is_a_metric():
    table = TABLE.with_sum("both", {"macs": 0.5, "latency_ms": 100})
    for choices in every_choices(table):
        expected = 0.5 * table.cost(choices) + 100 * table.cost(choices, "latency_ms")
        assert table.cost(choices, "both") == pytest.approx(expected, rel=1e-12)
    assert table.metrics == ("macs", "latency_ms", "both")
    assert TABLE.metrics == ("macs", "latency_ms")
    with pytest.raises(ConstraintError, match="watts"):
        TABLE.with_sum("both", {"watts": 1})
    with pytest.raises(ConstraintError, match="macs"):
        TABLE.with_sum("macs", {"macs": 1})
