"""What every searcher promises: pytest tests/search/test_searchers.py"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from toy_trial import toy_score, toy_spec, toy_table

from spos.cost.constraints import Constraint
from spos.cost.counting import build_cost_table
from spos.cost.table import CostTable, Term
from spos.errors import ConfigError, ConstraintError, SearchError
from spos.search.arguments import METHODS, build_method
from spos.search.feasible import FeasibleSpace
from spos.search.searcher import Search

LIMIT = Constraint("macs", high=24_500)


def make_search(
    name, *, num_layers=20, constraints=(LIMIT,), table: CostTable | None = None, **changes
) -> Search:
    spec = toy_spec(num_layers, has_channels=name == "two_stage")
    space = FeasibleSpace(table or toy_table(spec), constraints)
    return Search(space, build_method(name, {"rounds": 4, "population": 12, **changes}))


def key(choices) -> tuple:
    return tuple(sorted(choices.items()))


def run(search: Search, score=toy_score) -> list[dict]:
    asked = []
    while (choices := search.ask()) is not None:
        asked.append(choices)
        search.tell(choices, score(choices))
    return asked


@pytest.fixture(params=METHODS)
def name(request) -> str:
    return request.param


def test_planned_candidates_are_asked_for_once_and_meet_the_limit(name):
    search = make_search(name)
    asked = run(search)
    assert len(asked) == len({key(each) for each in asked}) == search.num_planned == 48
    assert all(LIMIT.allows(search.space.table, each) for each in asked)
    assert search.is_finished and search.num_completed_rounds == 4
    assert [search.round_of(each) for each in asked] == sorted([1, 2, 3, 4] * 12)


def test_two_constraints_hold_at_once(name):
    limits = [Constraint("macs", 24_000, 24_300), Constraint("params", 335, 340)]
    search = make_search(name, constraints=limits)
    asked = run(search)
    table = search.space.table
    assert len(asked) == 48
    assert all(limit.allows(table, each) for limit in limits for each in asked)


@pytest.fixture(scope="module")
def canyonwind() -> CostTable:
    options = {"image_size": 224, "num_classes": 1000, "layout": "canyonwind",
               "head": "mobilenetv3", "squeeze_excitation": "canyonwind", "activation": "hswish",
               "classifier_bias": True,
               "channel_scales": [round(0.2 * number, 1) for number in range(1, 11)]}  # fmt: skip
    return build_cost_table("shufflenetv2", options=options)


def test_rare_corner_of_a_huge_space_is_searched_to_the_end(name, canyonwind):
    # Few MACs with many parameters: one architecture in millions of those of each bound alone.
    limits = [Constraint("macs", 190e6, 210e6), Constraint("params", 4.2e6, 5e6)]
    search = Search(
        FeasibleSpace(canyonwind, limits), build_method(name, {"rounds": 3, "population": 10})
    )
    if name == "two_stage":  # which begins with blocks at equal widths: none of these are there
        with pytest.raises(ConstraintError, match="two_stage: no blocks"):
            search.ask()
        return
    asked = run(search, score=lambda choices: canyonwind.cost(choices) / 1e9)
    assert len(asked) == len({key(each) for each in asked}) == 30
    assert all(limit.allows(canyonwind, each) for limit in limits for each in asked)


def test_rounds_complete_one_after_the_other(name):
    search = make_search(name)
    for number in range(48):
        assert search.num_completed_rounds == number // 12
        choices = search.ask()
        assert search.num_completed_rounds == number // 12
        search.tell(choices, toy_score(choices))
    assert search.num_completed_rounds == 4


def test_nobody_waits_for_the_score_of_another(name):
    search = make_search(name)
    asked = [search.ask() for _ in range(48)]
    assert all(asked) and len({key(each) for each in asked}) == 48
    assert search.ask() is None and not search.is_finished
    for each in reversed(asked):
        search.tell(each, toy_score(each))
    assert search.is_finished


def test_search_of_only_failures_stops(name):
    search = make_search(name)
    for _ in range(10):
        search.tell(search.ask(), None)
    assert search.is_stopped and search.ask() is None and not search.is_finished


def test_failed_candidates_are_retried_once(name):
    search = make_search(name, max_failures=1000)
    times: dict[tuple, int] = {}
    while (choices := search.ask()) is not None:
        times[key(choices)] = times.get(key(choices), 0) + 1
        is_bad = choices["layer_1"] == "k3"
        search.tell(choices, None if is_bad else toy_score(choices))
    assert search.is_finished and len(times) == 48
    assert all(
        count == (2 if dict(each)["layer_1"] == "k3" else 1) for each, count in times.items()
    )


@pytest.mark.parametrize("num_layers", [2, 3])
def test_exhausted_space_finishes_the_search(name, num_layers):
    search = make_search(name, num_layers=num_layers, constraints=(), population=50)
    assert len(run(search)) == 4**num_layers
    assert search.is_finished and search.num_completed_rounds == search.round


def test_constant_scores_are_searched_to_the_end(name):
    assert len(run(make_search(name), score=lambda _: 0.5)) == 48


def test_huge_and_tiny_scores_are_searched_to_the_end(name):
    scores = [1e300, -1e300, 1e-300, 0.0]
    search = make_search(name)
    assert len(run(search, score=lambda each: scores[len(each["layer_1"]) % 4])) == 48


@pytest.mark.parametrize("num_before", [0, 7, 25])
@pytest.mark.parametrize("num_running", [0, 3])
def test_reload_continues_with_the_same_candidates(name, num_before, num_running):
    whole, first, second = (make_search(name, seed=3) for _ in range(3))
    for search in (whole, first):
        for _ in range(num_before):
            choices = search.ask()
            search.tell(choices, toy_score(choices))
        running = [search.ask() for _ in range(num_running)]
    second.load_state(json.loads(json.dumps(first.state())))
    assert second.running == running
    for search in (whole, second):
        for choices in running:
            search.tell(choices, toy_score(choices))
    assert run(second) == run(whole)
    assert second.ranking() == whole.ranking()


def test_state_is_refused_once_the_cost_table_has_changed(name):
    search = make_search(name)
    state = json.loads(json.dumps(search.state()))
    make_search(name).load_state(state)
    table = search.space.table
    first, *rest = table.terms
    costs = {**first.costs, "macs": tuple(cost + 1 for cost in first.costs["macs"])}
    measured_again = CostTable(table.spec, table.fixed, [Term(first.labels, costs), *rest])
    label = next(iter(table.spec.choices))
    shrunk = table.restrict({label: table.spec.choices[label][1:]})
    for changed in (measured_again, shrunk):
        with pytest.raises(SearchError, match="the cost table has changed since the search began"):
            make_search(name, table=changed).load_state(state)
    del state["table"]  # as an older release wrote it
    make_search(name).load_state(state)


def test_state_of_another_searcher_is_refused(name):
    state = make_search(name).state()
    for other in METHODS:
        if other != name:
            with pytest.raises(SearchError, match="method"):
                make_search(other).load_state(state)


def test_unknown_settings_are_named(name):
    with pytest.raises(ConfigError, match=r"^popluation is no setting.*population"):
        build_method(name, {"popluation": 3})
    with pytest.raises(ConfigError, match="population"):
        build_method(name, {"population": 0})


def test_unknown_searcher_is_named():
    with pytest.raises(ConfigError, match=r"searcher is 'tpe'.*evolution"):
        build_method("tpe", {})


def test_same_seed_same_search_under_any_hash_seed():
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "from test_searchers import METHODS, make_search, run;"
        "import json; print(json.dumps([run(make_search(name, seed=7)) for name in METHODS]))"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", script, str(Path(__file__).parent)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
    for name, asked in zip(METHODS, json.loads(outputs[0]), strict=True):
        assert len(asked) == 48 and asked != run(make_search(name, seed=8))
