"""Several costs at once: exact counts, even draws from any box, and a refusal of the empty one."""

import itertools
import random
from collections import Counter

import numpy as np
import pytest

from spos.architecture import SearchSpec
from spos.cost.constraints import Constraint
from spos.cost.grid import CostGrid, FeasibleBox
from spos.cost.table import CostTable, Term
from spos.errors import ConstraintError

METRICS = ("macs", "params", "latency_ms")


def make_table(seed: int, *, layers: int = 4) -> CostTable:
    """Layers of operators and widths; one without costs and one whose terms share a label."""
    rng = random.Random(seed)
    choices: dict = {"free": ("a", "b", "c")}
    terms = []

    def add(*labels: str) -> None:
        count = int(np.prod([len(choices[label]) for label in labels]))
        costs = {
            "macs": tuple(rng.randrange(0, 900, 3) for _ in range(count)),
            "params": tuple(rng.randrange(100) for _ in range(count)),
            "latency_ms": tuple(rng.random() for _ in range(count)),
        }
        terms.append(Term(labels, costs))

    for number in range(layers):
        choices[f"layer_{number}"] = ("k3", "k5")
        choices[f"channel_{number}"] = (8, 16, 24)
        add(f"layer_{number}", f"channel_{number}")
    add("channel_0")
    add("channel_0", "channel_1")
    return CostTable(
        SearchSpec("toy", {}, choices), {"macs": 7, "params": 1, "latency_ms": 0.1}, terms
    )


def every(table: CostTable) -> list[dict]:
    combinations = itertools.product(*table.spec.choices.values())
    return [dict(zip(table.spec.choices, each, strict=True)) for each in combinations]


def middle(table: CostTable, metric: str, share: float) -> Constraint:
    """The bounds that about ``share`` of the space meets."""
    costs = sorted(table.cost(choices, metric) for choices in every(table))
    edge = int(len(costs) * (1 - share) / 2)
    return Constraint(metric, costs[edge], costs[-1 - edge])


@pytest.mark.parametrize("metrics", [METRICS[:1], METRICS[:2], METRICS])
def test_every_architecture_of_a_box_is_equally_likely(metrics):
    table = make_table(0, layers=2)
    box = [middle(table, metric, 0.7) for metric in metrics]
    inside = {
        tuple(choices.values())
        for choices in every(table)
        if all(each.allows(table, choices) for each in box)
    }
    grid = CostGrid(table, metrics)
    genes = FeasibleBox(grid, box).draw(100 * len(inside), np.random.default_rng(1))
    counts = Counter(tuple(grid.choices(each).values()) for each in genes)
    assert set(counts) == inside and len(inside) > 20
    # The 0.999 quantile of chi-square with n degrees of freedom is below n + 4.5 sqrt(n).
    found = sum((count - 100) ** 2 / 100 for count in counts.values())
    assert found < len(inside) + 4.5 * len(inside) ** 0.5


def test_costs_are_those_of_the_table_to_the_bit():
    table = make_table(1)
    grid = CostGrid(table, METRICS)
    for choices in random.Random(0).sample(every(table), 50):
        genes = grid.genes(choices)
        assert grid.choices(genes) == choices
        expected = [table.cost(choices, metric) for metric in METRICS]
        assert grid.costs(genes[None]).tolist() == [expected]


@pytest.mark.parametrize("seed", range(3))
def test_narrow_box_of_a_large_space_is_hit(seed):
    # Twelve layers, 10**11 architectures: one in a hundred thousand or so lies in the box.
    table = make_table(seed, layers=12)
    ends = [table.bounds(metric) for metric in METRICS[:2]]
    box = [
        Constraint(metric, low + 0.3 * (high - low), low + 0.32 * (high - low))
        for metric, (low, high) in zip(METRICS, ends, strict=False)
    ]
    grid = CostGrid(table, METRICS[:2])
    genes = FeasibleBox(grid, box).draw(100, np.random.default_rng(0))
    assert all(each.allows(table, grid.choices(row)) for row in genes for each in box)
    assert len(np.unique(genes, axis=0)) > 90


@pytest.mark.parametrize("num_metrics", [2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_rare_corner_of_a_large_space_is_hit(seed, num_metrics):
    # The first cost as small and the others as large as they are together in a greedy choice.
    table, rng = make_table(seed, layers=14), random.Random(seed)
    metrics = METRICS[:num_metrics]
    choices: dict = {label: rng.choice(each) for label, each in table.spec.choices.items()}
    for label, each in table.spec.choices.items():
        costs = [table.costs({**choices, label: one}) for one in each]
        worth = [cost["params"] - cost["macs"] / 9 + 100 * cost["latency_ms"] for cost in costs]
        choices[label] = each[int(np.argmax(worth))]
    spans = {metric: np.ptp(table.bounds(metric)) for metric in metrics}
    box = [
        Constraint(each, table.cost(choices, each) - 0.01 * span, table.cost(choices, each))
        for each, span in spans.items()
    ]
    genes = FeasibleBox(CostGrid(table, metrics), box).draw(50, np.random.default_rng(0))
    grid = CostGrid(table, metrics)
    assert all(each.allows(table, grid.choices(row)) for row in genes for each in box)


def test_mended_architectures_are_about_equally_likely():
    table = make_table(0, layers=2)
    box = [middle(table, metric, 0.7) for metric in METRICS]
    low, high = (np.array([getattr(each, end) for each in box]) for end in ("low", "high"))
    grid, generator = CostGrid(table, METRICS), np.random.default_rng(0)
    inside = [
        choices for choices in every(table) if all(each.allows(table, choices) for each in box)
    ]
    begin = (generator.random((200 * len(inside), len(grid.sizes))) * grid.sizes).astype(int)
    mended = grid.mend(begin, low, high, generator)
    counts = Counter(map(tuple, mended.tolist()))
    assert set(counts) == {tuple(grid.genes(choices).tolist()) for choices in inside}
    assert 100 < min(counts.values()) and max(counts.values()) < 300


def test_box_of_one_architecture_gives_that_one():
    table = make_table(2)
    choices = random.Random(3).choice(every(table))
    costs = [table.cost(choices, metric) for metric in METRICS]
    box = [Constraint(name, cost, cost) for name, cost in zip(METRICS, costs, strict=True)]
    grid = CostGrid(table, METRICS)
    for genes in FeasibleBox(grid, box).draw(20, np.random.default_rng(0)):
        assert grid.choices(genes) == choices | {"free": grid.choices(genes)["free"]}


def test_box_beyond_the_space_is_refused_with_what_it_reaches():
    table = make_table(0)
    low, high = table.bounds("macs")
    with pytest.raises(ConstraintError, match=f"the space reaches {low:,} to {high:,}"):
        FeasibleBox(CostGrid(table, ["macs"]), [Constraint("macs", high + 1, high + 2)])


def test_bounds_that_exclude_each_other_are_refused_with_what_is_left():
    # What costs more MACs has fewer parameters.
    terms = [Term((f"l{n}",), {"macs": (0, 10), "params": (10, 0)}) for n in range(20)]
    spec = SearchSpec("toy", {}, {f"l{n}": ("a", "b") for n in range(20)})
    table = CostTable(spec, {"macs": 0, "params": 0}, terms)
    box = [Constraint("macs", 150), Constraint("params", 100)]
    message = "macs from about 0 to 100, or params from about 0 to 50; widen"
    with pytest.raises(ConstraintError, match=message):
        FeasibleBox(CostGrid(table, ["macs", "params"]), box)
    assert FeasibleBox(CostGrid(table, ["macs", "params"]), [box[0], Constraint("params", 50)])


def test_costs_that_hang_together_across_the_network_are_refused():
    spec = SearchSpec("toy", {}, {f"l{n}": tuple(range(8)) for n in range(5)})
    terms = [Term((f"l{n}", f"l{n + 1}"), {"macs": tuple(range(64))}) for n in range(4)]
    with pytest.raises(ConstraintError, match="depend on l0, l1, l2... together"):
        CostGrid(CostTable(spec, {"macs": 0}, terms), ["macs"])


def test_space_of_one_cost_is_one_cell():
    terms = [Term(("l",), {"macs": (5, 5)})]
    table = CostTable(SearchSpec("toy", {}, {"l": ("a", "b")}), {"macs": 1}, terms)
    box = FeasibleBox(CostGrid(table, ["macs"]), [Constraint("macs", 6, 6)])
    assert set(box.draw(50, np.random.default_rng(0))[:, 0].tolist()) == {0, 1}
    assert len(box.draw(0, np.random.default_rng(0))) == 0


# --- a part of a table ---------------------------------------------------------------------------


def test_restricted_table_costs_the_same():
    table = make_table(4)
    part = table.restrict({"channel_0": (24, 8), "layer_1": ("k5",)})
    assert part.spec.choices["channel_0"] == (8, 24) and part.spec.choices["free"] == (
        "a",
        "b",
        "c",
    )
    for choices in random.Random(0).sample(every(part), 30):
        assert part.costs(choices) == table.costs(choices)


@pytest.mark.parametrize("choices", [{"x": ("k3",)}, {"layer_0": ()}, {"layer_0": ("k7",)}])
def test_part_that_is_none_is_refused(choices):
    with pytest.raises(ConstraintError, match=f"{next(iter(choices))}: "):
        make_table(0).restrict(choices)
