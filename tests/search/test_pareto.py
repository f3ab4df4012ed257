"""Multi-objective search and its front: pytest tests/search/test_pareto.py"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_trial import toy_spec, toy_table

from spos.cost.table import CostTable
from spos.errors import ConfigError, ConstraintError
from spos.search.arguments import ExperimentPaths, build_search
from spos.search.feasible import FeasibleSpace
from spos.search.local import run_search
from spos.search.pareto import ParetoEvolution, find_front, measure_crowding, select
from spos.search.random_search import RandomSearch
from spos.search.results import read_entries, read_front
from spos.search.searcher import Search


def table() -> CostTable:
    return toy_table(toy_spec(20))


def score(choices) -> float:
    """Costly candidates are good ones, but of some layers more than of others."""
    places = {"k3": 0, "k5": 1, "k7": 2, "xcep": 3}
    return sum(places[each] / (1 + number) for number, each in enumerate(choices.values()))


def losses(search) -> np.ndarray:
    costs = search.space.table
    found = [(-each.score, costs.cost(each.choices)) for each in search.ranking()]
    return np.array(found)


def volume(points: np.ndarray, corner: tuple[float, float]) -> float:
    """The area that points of two losses dominate up to ``corner``."""
    area, low = 0.0, corner[1]
    for first, second in sorted(points.tolist()):
        if second < low and first < corner[0]:
            area += (corner[0] - first) * (low - second)
            low = second
    return area


ROWS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=30
)


def beats(one, other) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


@given(ROWS)
def test_front_is_what_no_other_beats(rows):
    expected = [not any(beats(other, row) for other in rows) for row in rows]
    assert find_front(np.array(rows, float)).tolist() == expected


@given(ROWS)
def test_selection_is_front_after_front_and_ties_in_order(rows):
    losses = np.array(rows, float)
    chosen, left = select(losses, len(rows)), list(range(len(rows)))
    while left:
        front = [n for n in left if not any(beats(rows[other], rows[n]) for other in left)]
        crowding = dict(zip(front, measure_crowding(losses[front]), strict=True))
        assert chosen[: len(front)] == sorted(front, key=lambda n: -crowding[n])
        chosen, left = chosen[len(front) :], [n for n in left if n not in front]
    assert chosen == []


def test_fronts_are_selected_in_order_and_their_ends_first():
    rows = [[5, 5], [0, 4], [1, 2.9], [2, 2], [4, 0], [3, 6], [9, 9]]
    assert select(np.array(rows, float), 7)[4:] == [0, 5, 6]
    assert set(select(np.array(rows, float), 2)) == {1, 4}
    assert select(np.array(rows, float), 3)[2] == 3  # lonelier than [1, 2.9]


def test_crowding_is_the_distance_of_the_neighbours():
    crowding = measure_crowding(np.array([[0, 10], [2, 6], [10, 0.0]]))
    assert crowding.tolist() == [np.inf, 2.0, np.inf]
    assert measure_crowding(np.zeros((1, 2))).tolist() == [np.inf]


def test_front_grows_beyond_that_of_random_search():
    areas = []
    for method in (ParetoEvolution, RandomSearch):
        search = Search(FeasibleSpace(table()), method(rounds=10, population=20, seed=1))
        while (choices := search.ask()) is not None:
            search.tell(choices, score(choices))
        areas.append(volume(losses(search), (0.0, table().bounds("macs")[1])))
    assert areas[0] > 1.1 * areas[1]


def test_front_is_written_cheapest_first_and_holds_no_stale_file(tmp_path):
    search = Search(FeasibleSpace(table()), ParetoEvolution(rounds=4, population=10))
    fronts = []
    run_search(
        search, score, folder=tmp_path, progress=lambda: fronts.append(len(read_front(tmp_path)))
    )
    points = losses(search)
    expected = points[find_front(points)]
    found = read_front(tmp_path)
    assert sorted(-score(each.choices) for each in found) == pytest.approx(sorted(expected[:, 0]))
    costs = [each.metrics["macs"] for each in found]
    assert costs == sorted(costs) and len(found) > 3
    assert fronts[:9] == [0] * 9 and fronts[9] > 0  # after every round
    assert len(list((tmp_path / "checkpoints" / "front").iterdir())) == len(found)


def test_several_costs_are_objectives():
    method = ParetoEvolution(rounds=4, population=10, costs=["macs", "params"])
    search = Search(FeasibleSpace(table()), method)
    while (choices := search.ask()) is not None:
        search.tell(choices, score(choices))
    assert search.is_finished


def test_search_of_one_objective_has_no_front(tmp_path):
    search = Search(FeasibleSpace(table()), RandomSearch(rounds=2, population=5))
    run_search(search, score, folder=tmp_path)
    assert read_front(tmp_path) == [] and len(read_entries(tmp_path)) == 10
    assert not (tmp_path / "checkpoints" / "front").exists()


@pytest.mark.parametrize("costs", [[], "macs", [3]])
def test_costs_that_are_no_list_of_names_are_refused(costs):
    with pytest.raises(ConfigError, match="costs"):
        ParetoEvolution(costs=costs)


def test_unknown_costs_are_named_with_the_known_ones(tmp_path):
    table().save(tmp_path / "cost.json")
    with pytest.raises(ConstraintError, match=r"'latency_ms'.*macs, params"):
        build_search(ExperimentPaths(tmp_path), searcher="pareto", costs=["latency_ms"])
