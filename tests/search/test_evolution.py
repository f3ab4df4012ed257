"""The evolutionary searcher: pytest tests/search/test_evolution.py"""

import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from toy_trial import toy_score, toy_spec, toy_table

from spos.cost.constraints import Constraint
from spos.errors import ArchitectureError, ConfigError, SearchError
from spos.search.evolution import Evolution
from spos.search.feasible import FeasibleSpace
from spos.search.searcher import Search


def make_search(*, num_layers=20, constraints=(), **changes) -> Search:
    space = FeasibleSpace(toy_table(toy_spec(num_layers)), constraints)
    return Search(space, Evolution(**changes))


def key(choices) -> tuple:
    return tuple(sorted(choices.items()))


def run(search: Search, score=toy_score) -> list[dict]:
    asked = []
    while (choices := search.ask()) is not None:
        asked.append(choices)
        search.tell(choices, score(choices))
    return asked


def test_defaults_are_those_of_the_official_code():
    defaults = Evolution()
    assert (defaults.rounds, defaults.population, defaults.num_parents) == (20, 50, 10)
    assert (defaults.num_mutations, defaults.num_crossovers) == (25, 25)
    assert (defaults.mutation_probability, defaults.rounds * defaults.population) == (0.1, 1000)
    assert (defaults.lucky_probability, defaults.mutates_crossed) == (0.0, False)


def test_half_of_the_first_round_is_spread_over_the_macs():
    def costs(num_spread) -> list[float]:
        search = make_search(rounds=1, population=40, num_spread=num_spread)
        return sorted(map(search.space.table.cost, run(search)))

    spread, half, drawn = costs(40), costs(None), costs(0)
    assert spread[-1] - spread[0] > 1.2 * (drawn[-1] - drawn[0])
    within = [sum(24_000 < each < 26_000 for each in some) for some in (spread, half, drawn)]
    assert within[0] < within[1] < within[2]


def test_spread_round_meets_the_limits_and_repeats_nothing():
    limits = [Constraint("macs", 24_000, 24_300), Constraint("params", 335, 340)]
    asked = run(make_search(constraints=limits, rounds=1, population=30, num_spread=30))
    assert len({key(each) for each in asked}) == 30
    table = toy_table(toy_spec(20))
    assert all(limit.allows(table, each) for limit in limits for each in asked)


def test_shares_follow_the_population():
    small = Evolution(population=3)
    assert (small.num_parents, small.num_mutations, small.num_crossovers) == (1, 1, 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rounds", 0),
        ("population", 2.5),
        ("population", True),
        ("num_parents", 0),
        ("num_spread", 51),
        ("num_spread", -1),
        ("num_mutations", -1),
        ("num_crossovers", 40),
        ("mutation_probability", 1.5),
        ("mutation_probability", "often"),
        ("seed", -1),
        ("max_failures", 0),
        ("lucky_probability", 2),
        ("mutates_crossed", 1),
        ("sorts_rounds", "yes"),
    ],
)
def test_wrong_settings_are_named(name, value):
    with pytest.raises(ConfigError, match=name):
        Evolution(**{name: value})


def test_full_search_meets_its_limit_without_duplicates():
    limit = Constraint("macs", high=24_500)
    search = make_search(constraints=[limit])
    asked = run(search)
    assert len(asked) == len({key(each) for each in asked}) == 1000
    assert all(limit.allows(search.space.table, each) for each in asked)
    assert search.is_finished and search.ask() is None
    assert search.num_completed_rounds == 20


def test_evolution_beats_random_search():
    evolved = make_search(rounds=8)
    run(evolved)
    random = make_search(rounds=8, num_mutations=0, num_crossovers=0)
    run(random)
    assert evolved.ranking()[9].score > random.ranking()[0].score


def test_crossover_takes_every_gene_from_a_parent():
    search = make_search(rounds=2, population=40, num_mutations=0, num_crossovers=40)
    asked = run(search)
    parents = [each.choices for each in search.ranking(last_round=1)[:8]]
    children = [each for each in asked if search.round_of(each) == 2]
    assert len(children) == 40
    for label in search.space.spec.choices:
        assert {each[label] for each in children} <= {each[label] for each in parents}


def test_mutation_changes_about_a_tenth_of_a_parent():
    search = make_search(rounds=2, population=40, num_mutations=40, num_crossovers=0)
    asked = run(search)
    parents = [each.choices for each in search.ranking(last_round=1)[:8]]
    distances = [
        min(sum(child[label] != each[label] for label in child) for each in parents)
        for child in asked[40:]
    ]
    # A gene is drawn anew with probability 0.1 and then differs in three of four cases.
    assert 1 <= sum(distances) / len(distances) <= 2.5


def test_lucky_candidates_are_parents_too():
    changes = {"rounds": 2, "population": 40, "num_mutations": 0, "num_crossovers": 32}
    best = make_search(**changes)
    run(best)
    lucky = make_search(lucky_probability=1.0, **changes)
    run(lucky)
    parents = [each.choices for each in lucky.ranking(last_round=1)]
    kept = {label: {each[label] for each in parents[:8]} for label in parents[0]}
    children = [each.choices for each in lucky.ranking() if each.round == 2]
    foreign = [child for child in children if any(child[k] not in kept[k] for k in child)]
    assert len(foreign) > 20
    assert best.ranking(last_round=1) == lucky.ranking(last_round=1)


def test_crossed_children_are_mutated_if_wanted():
    """The genetic search of CanyonWind: joint crossover and mutation of the best and a few."""
    search = make_search(
        rounds=2, population=40, num_mutations=0, num_crossovers=32, mutates_crossed=True
    )
    asked = run(search)
    parents = [each.choices for each in search.ranking(last_round=1)[:8]]
    drawn = [label for child in asked[40:72] for label in child]
    strange = [
        label
        for child in asked[40:72]
        for label in child
        if child[label] not in {each[label] for each in parents}
    ]
    assert 0 < len(strange) < 0.1 * len(drawn)


def test_concurrent_workers_never_wait():
    search = make_search(rounds=3, population=10)
    asked = [search.ask() for _ in range(30)]
    assert all(asked) and search.round == 3
    assert search.ask() is None and not search.is_finished
    for each in reversed(asked):
        search.tell(each, toy_score(each))
    assert search.is_finished


def test_later_rounds_use_scores_that_came_late():
    search = make_search(rounds=3, population=10, num_mutations=0, num_crossovers=10)
    first = [search.ask() for _ in range(10)]
    running = search.ask()  # round 2 is bred without any score: at random
    assert search.round_of(running) == 2
    for each in first:
        search.tell(each, toy_score(each))
    rest = [search.ask() for _ in range(9)]
    third = search.ask()
    assert search.round_of(third) == 3
    parents = [each.choices for each in search.ranking()[:2]]
    assert all(third[label] in {each[label] for each in parents} for label in third)
    assert len({key(each) for each in [*first, running, *rest, third]}) == 21


@pytest.mark.parametrize(
    "score", [None, math.nan, math.inf, -math.inf, pytest.param(10**400, id="huge"), True, "0.9"]
)
def test_failure_is_retried_once_then_excluded(score):
    search = make_search(rounds=1, population=3, max_failures=100)
    bad = search.ask()
    assert search.tell(bad, score) is False
    others = [search.ask(), search.ask()]
    again = search.ask()
    assert again == bad
    assert search.tell(again, score) is True
    for each in others:
        search.tell(each, 0.5)
    assert search.is_finished
    assert bad not in [each.choices for each in search.ranking()]


def test_failed_candidates_are_never_parents():
    search = make_search(
        rounds=2, population=20, num_mutations=0, num_crossovers=20, max_failures=100
    )
    good, bad = [], []
    for number in range(20):
        choices = search.ask()
        (bad if number % 2 else good).append(choices)
        search.tell(choices, None if number % 2 else float(number))
    for again in bad:
        assert search.ask() == again
        search.tell(again, math.nan)
    child = search.ask()
    assert search.round_of(child) == 2
    assert all(child[label] in {each[label] for each in good[-4:]} for label in child)


def test_ten_failures_in_a_row_stop_the_search():
    search = make_search()
    for _ in range(9):
        search.tell(search.ask(), None)
    search.tell(search.ask(), 0.1)
    for _ in range(9):
        search.tell(search.ask(), None)
    assert not search.is_stopped
    search.count_failure()
    assert search.is_stopped and search.ask() is None and not search.is_finished


def test_stopped_search_continues_after_reload():
    search = make_search(rounds=2, population=12)
    failed = [search.ask() for _ in range(10)]
    for each in failed:
        search.tell(each, None)
    assert search.is_stopped
    again = make_search(rounds=2, population=12)
    again.load_state(json.loads(json.dumps(search.state())))
    asked = run(again)
    assert all(each in asked for each in failed)  # nothing was excluded by the common cause
    assert again.is_finished


@pytest.mark.parametrize("num_layers", [1, 3])
def test_exhausted_space_finishes_the_search(num_layers):
    search = make_search(num_layers=num_layers)
    assert len(run(search)) == 4**num_layers
    assert search.is_finished and search.num_completed_rounds == search.round


def test_exhausted_constraint_finishes_the_search():
    table = toy_table(toy_spec(20))
    low, _ = table.bounds("macs")
    limit = Constraint("macs", high=low + 30)  # layer_1 +10 .. +30, layer_2 +20, layer_3 +30: 7
    search = Search(FeasibleSpace(table, [limit]), Evolution())
    asked = run(search)
    assert len(asked) == 7 and search.is_finished
    assert all(limit.allows(table, each) for each in asked)


def test_late_and_repeated_tells_change_nothing():
    search = make_search(rounds=1, population=4)
    first, second = search.ask(), search.ask()
    assert search.tell(first, 0.5) is True
    before = search.state()
    assert search.tell(first, 0.7) is False
    assert search.tell(first, None) is False
    assert search.state() == before
    search.tell(second, None)
    before = search.state()
    assert search.tell(second, None) is False  # it waits for its second chance
    assert search.state() == before


def test_score_that_comes_late_wins_over_a_failure():
    search = make_search(rounds=1, population=3)
    late = search.ask()
    search.tell(late, None)
    assert search.tell(late, 0.9) is True
    assert late not in run(search)
    assert search.ranking()[0].choices == late


def test_lost_candidate_is_retried_without_counting_in_a_row():
    search = make_search(rounds=1, population=30)
    lost = [search.ask() for _ in range(20)]
    assert not any(search.lose(each) for each in lost)
    assert not search.is_stopped
    assert search.lose(lost[0]) is False  # waits already
    asked = run(search)
    assert len(asked) == 30


def test_results_from_elsewhere_are_parents_but_not_planned():
    search = make_search(rounds=1, population=5)
    given = dict.fromkeys(search.space.spec.choices, "k5")
    assert search.tell(given, 99.0) is True
    asked = run(search)
    assert len(asked) == 5 and given not in asked
    assert search.ranking()[0].choices == given and search.round_of(given) == 0


def test_result_from_elsewhere_must_meet_the_constraints():
    table = toy_table(toy_spec(20))
    low, _ = table.bounds("macs")
    search = Search(FeasibleSpace(table, [Constraint("macs", high=low + 500)]), Evolution())
    assert search.tell(dict.fromkeys(search.space.spec.choices, "xcep"), 99.0) is False
    assert search.ranking() == []


def test_choices_of_another_space_are_refused():
    with pytest.raises(ArchitectureError, match="layer_1"):
        make_search().tell({"layer_1": "k9"}, 0.5)


def test_same_seed_same_search_under_any_hash_seed():
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "from test_evolution import make_search, run;"
        "import json; print(json.dumps(run(make_search(rounds=10, seed=7))))"
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
    assert len(json.loads(outputs[0])) == 500
    assert json.loads(outputs[0]) != run(make_search(rounds=10, seed=8))


def test_sequence_is_pinned():
    """Files of a running search must mean the same in the next release."""
    for changes, expected in (({}, "0140484ef2f4845f"), ({"num_spread": 0}, "0ae1e5d222c85a90")):
        asked = run(make_search(rounds=3, population=10, seed=1, **changes))
        text = json.dumps([list(each.values()) for each in asked])
        assert hashlib.sha256(text.encode()).hexdigest()[:16] == expected


def test_sorted_rounds_hold_the_same_candidates():
    # Parents are chosen when a round is complete, so with one trial at a time order is all.
    plain = run(make_search(rounds=4, population=10, seed=1))
    in_order = run(make_search(rounds=4, population=10, seed=1, sorts_rounds=True))
    for start in range(0, 40, 10):
        expected = sorted(plain[start : start + 10], key=lambda each: list(each.values()))
        assert in_order[start : start + 10] == expected


@pytest.mark.parametrize("num_before", [0, 7, 20, 33])
def test_reload_continues_with_the_same_candidates(num_before):
    changes = {"rounds": 4, "population": 10, "seed": 3}
    expected = run(make_search(**changes))
    first = make_search(**changes)
    for choices in expected[:num_before]:
        assert first.ask() == choices
        first.tell(choices, toy_score(choices))
    second = make_search(**changes)
    second.load_state(json.loads(json.dumps(first.state())))
    assert run(second) == expected[num_before:]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda state: state.update(version=99), "version"),
        (lambda state: state.update(options={"image_size": 224}), "options"),
        (lambda state: state["settings"].update(seed=5), "seed"),
        (lambda state: state.pop("waiting"), "malformed"),
        (lambda state: state.update(waiting=[10**9]), "malformed"),
        (lambda state: state["candidates"][0].pop(), "malformed"),
        (lambda state: state["candidates"][0].__setitem__(0, [9] * 20), "malformed"),
        (lambda state: state["candidates"][0].__setitem__(2, "odd"), "malformed"),
        (lambda state: state["candidates"][0].__setitem__(3, None), "malformed"),
    ],
)
def test_state_of_another_search_is_refused(edit, message):
    search = make_search(population=5, rounds=1)
    run(search)
    state = search.state()
    edit(state)
    fresh = make_search(population=5, rounds=1)
    before = fresh.state()
    with pytest.raises(SearchError, match=message):
        fresh.load_state(state)
    assert fresh.state() == before
