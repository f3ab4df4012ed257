"""Drawing under constraints: pytest tests/search/test_feasible.py"""

import time

import numpy as np
import pytest
from toy_trial import toy_spec, toy_table

from spos.architecture import SearchSpec
from spos.cost.constraints import Constraint
from spos.cost.table import CostTable, Term
from spos.errors import ConstraintError
from spos.search.feasible import FeasibleSpace, check_search_space


def draws(space: FeasibleSpace, count: int) -> list:
    generator = np.random.default_rng(0)
    return [space.draw(generator, ()) for _ in range(count)]


@pytest.mark.parametrize("bounds", [(0, 24_000), (25_000, 25_100), (25_500, 25_500)])
def test_ten_thousand_draws_violate_nothing(bounds):
    table = toy_table(toy_spec(20))
    limit = Constraint("macs", *bounds)
    space = FeasibleSpace(table, [limit])
    assert all(limit.allows(table, space.choices(genes)) for genes in draws(space, 10_000))


def test_unconstrained_draws_are_uniform_per_layer():
    space = FeasibleSpace(toy_table(toy_spec(20)))
    counts = np.zeros((20, 4))
    for genes in draws(space, 4000):
        counts[np.arange(20), genes] += 1
    assert np.all(np.abs(counts - 1000) < 150)


def test_rare_architectures_are_drawn_at_once():
    table = toy_table(toy_spec(20))
    low, _ = table.bounds("macs")
    begun = time.perf_counter()
    space = FeasibleSpace(table, [Constraint("macs", high=low + 20)])  # 4 of 4**20
    assert len(set(draws(space, 200))) == 4
    assert time.perf_counter() - begun < 5


def test_two_constraints_hold_together():
    table = toy_table(toy_spec(20))
    limits = [Constraint("macs", 24_500, 25_000), Constraint("params", high=335)]
    space = FeasibleSpace(table, limits)
    for genes in draws(space, 500):
        assert all(each.allows(table, space.choices(genes)) for each in limits)


@pytest.mark.parametrize("num_layers", [6, 20])
@pytest.mark.parametrize(
    "limits",
    [
        [Constraint("macs", high=500)],
        [Constraint("macs", low=10**9)],
        [Constraint("macs", low=2101, high=2109)],  # inside the range, but all are multiples of ten
    ],
)
def test_impossible_constraints_are_refused_at_once(limits, num_layers):
    begun = time.perf_counter()
    with pytest.raises(ConstraintError, match="macs"):
        FeasibleSpace(toy_table(toy_spec(num_layers)), limits)
    assert time.perf_counter() - begun < 1


def test_constraints_that_exclude_each_other_are_refused():
    spec = toy_spec(20)
    terms = [Term((label,), {"a": (0, 1, 2, 3), "b": (3, 2, 1, 0)}) for label in spec.choices]
    table = CostTable(spec, {"a": 0, "b": 0}, terms)
    begun = time.perf_counter()
    with pytest.raises(ConstraintError, match="a from about 50 to 60, or b from"):
        FeasibleSpace(table, [Constraint("a", high=10), Constraint("b", high=10)])
    assert time.perf_counter() - begun < 5


def test_a_dozen_constraints_hold_together():
    spec = toy_spec(20)
    metrics = [f"cost_{number}" for number in range(12)]  # a grid over all has a cell or two each
    terms = [
        Term((label,), {each: (number, 1, 2, 3) for number, each in enumerate(metrics)})
        for label in spec.choices
    ]
    table = CostTable(spec, dict.fromkeys(metrics, 0), terms)
    limits = [Constraint(each, 0, 300) for each in metrics]
    limits[3] = Constraint("cost_3", 21, 22)
    space = FeasibleSpace(table, limits)
    assert all(limits[3].allows(table, space.choices(genes)) for genes in draws(space, 50))


def test_unknown_metric_is_refused():
    with pytest.raises(ConstraintError, match="latency"):
        FeasibleSpace(toy_table(), [Constraint("latency", high=1)])


def test_cost_of_layers_together_is_respected():
    """Terms that share labels cannot be summed one by one; draws are rejected instead."""
    labels = [f"layer_{number}" for number in range(12)]
    spec = SearchSpec("pairs", {}, dict.fromkeys(labels, ("a", "b", "c")))
    terms = [
        Term((left, right), {"macs": tuple(range(9))})
        for left, right in zip(labels, labels[1:], strict=False)
    ]
    table = CostTable(spec, {"macs": 0}, terms)
    assert not table.is_separable
    limit = Constraint("macs", high=40)
    space = FeasibleSpace(table, [limit])
    assert all(limit.allows(table, space.choices(genes)) for genes in draws(space, 500))


def test_draw_says_when_nothing_is_left():
    space = FeasibleSpace(toy_table(toy_spec(2)))
    seen = set()
    generator = np.random.default_rng(0)
    while (genes := space.draw(generator, seen)) is not None:
        assert genes not in seen
        seen.add(genes)
    assert len(seen) == 16


def test_genes_and_choices_are_each_others_inverse():
    space = FeasibleSpace(toy_table(toy_spec(5)))
    for genes in draws(space, 50):
        assert space.genes(space.choices(genes)) == genes


def test_search_space_of_the_table_is_accepted():
    check_search_space(toy_spec().search_space(), toy_spec(), source="space.json")


@pytest.mark.parametrize(
    "value",
    [
        toy_spec(7).search_space(),
        toy_spec(9).search_space(),
        {**toy_spec().search_space(), "layer_2": {"_type": "choice", "_value": ["k3", "k5"]}},
        {**toy_spec().search_space(), "layer_2": {"_type": "uniform", "_value": [0, 1]}},
        [],
        None,
    ],
)
def test_stale_search_space_is_refused(value):
    with pytest.raises(ConstraintError, match="space.json.*ss_gen"):
        check_search_space(value, toy_spec(), source="space.json")
