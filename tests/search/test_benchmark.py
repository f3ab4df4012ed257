"""NAS-Bench-Macro and other landscapes: pytest tests/search/test_benchmark.py"""

import json
import math

import numpy as np
import pytest
from toy_trial import toy_spec, toy_table

from spos.__main__ import main
from spos.commands.bench import SEARCHERS
from spos.cost.constraints import Constraint
from spos.errors import ConfigError
from spos.search.arguments import build_method
from spos.search.benchmark import (
    MODES,
    NUM_LAYERS,
    MacroTable,
    Outcome,
    load_macro_table,
    run_once,
    summarize,
)
from spos.search.feasible import FeasibleSpace
from spos.search.searcher import Search

NAME = "nas-bench-macro_cifar10.json"


@pytest.fixture(scope="module")
def table(shared_data) -> MacroTable:
    return load_macro_table(shared_data / NAME)


def median_to_target(table, name, *, seeds, mode, num_queries, **changes) -> float:
    methods = [build_method(name, {"seed": seed, **changes}) for seed in range(seeds)]
    outcomes = [run_once(table, each, mode=mode, num_queries=num_queries) for each in methods]
    return summarize(outcomes).to_target[1]


def test_table_is_the_published_one(table):
    assert len(table.means) == 3**NUM_LAYERS == 6561
    best = sorted(table.means, key=lambda genes: -table.means[genes])[:2]
    assert {"".join(map(str, genes)) for genes in best} == {"22212220", "22212202"}
    values = sorted(table.means.values())
    assert values[-1] == pytest.approx(93.127, abs=5e-4)
    assert values[0] == pytest.approx(45.36, abs=5e-3)
    assert np.median(values) == pytest.approx(90.99, abs=5e-3)


def test_costs_are_a_sum_over_layers(table, shared_data):
    published = json.loads((shared_data / NAME).read_text())
    space = FeasibleSpace(table.costs)
    for genes in table.means:
        row = published["".join(map(str, genes))]
        costs = table.costs.costs(space.choices(genes))
        assert costs == {"macs": row["flops"], "params": row["params"]}


@pytest.mark.parametrize("mode", MODES)
def test_predictor_needs_a_fraction_of_the_queries_of_random_search(table, mode):
    needed = median_to_target(table, "predictor", seeds=41, mode=mode, num_queries=60)
    assert needed <= {"mean": 45, "one-run": 60}[mode]
    assert needed < median_to_target(table, "random", seeds=41, mode=mode, num_queries=300)


@pytest.mark.parametrize("mode", MODES)
def test_default_evolution_is_at_least_as_good_as_the_official_settings(table, mode):
    """Those are the defaults, but for the random half of the first generation."""
    method = build_method("evolution", {})
    assert (method.rounds, method.population, method.mutation_probability) == (20, 50, 0.1)
    assert (method.num_parents, method.num_mutations, method.num_crossovers) == (10, 25, 25)
    needed, official = (
        median_to_target(table, "evolution", seeds=41, mode=mode, num_queries=300, **changes)
        for changes in ({}, {"num_spread": 0})
    )
    assert needed <= official
    assert needed <= {"mean": 104, "one-run": 124}[mode]


def test_early_end_of_a_search_changes_no_figure(table):
    found = run_once(table, build_method("aging", {"seed": 3}), mode="mean", num_queries=300)
    search = Search(FeasibleSpace(table.costs), build_method("aging", {"seed": 3}))
    scores = []
    for _ in range(300):
        choices = search.ask()
        scores.append(table.means[search.space.genes(choices)])
        search.tell(choices, scores[-1])
    assert found.best.tolist() == np.maximum.accumulate(scores).tolist()
    assert max(table.means.values()) in scores[:-1]  # so it did end early


def test_one_run_answers_with_one_of_three_trainings(table):
    found = run_once(table, build_method("random", {}), mode="one-run", num_queries=50)
    assert set(found.best) <= set(table.means.values())
    others = run_once(table, build_method("random", {}), mode="mean", num_queries=50)
    assert found.best.tolist() != others.best.tolist()


def test_summary_counts_searches_that_never_arrive():
    outcomes = [Outcome(np.full(60, 92.0 + n), n if n < 2 else math.inf) for n in range(5)]
    summary = summarize(outcomes)
    assert summary.to_target == (1, math.inf, math.inf)
    assert summary.quartiles == {50: (93.0, 94.0, 95.0)}
    assert summary.curve.shape == (60, 3)


# --- the same searchers elsewhere --------------------------------------------------------------


def search_landscape(
    name: str, seed: int, *, num_queries: int, interaction: float, noise: float
) -> float:
    """The true value of the winner among 4^20 architectures, half of which are allowed."""
    generator = np.random.default_rng([seed, 1])
    single = generator.normal(size=(20, 4))
    pairs = interaction * generator.normal(size=(20, 4, 4))

    def value(genes) -> float:
        alone = sum(single[place, gene] for place, gene in enumerate(genes))
        return alone + sum(pairs[n, genes[n], genes[n - 1]] for n in range(20))

    costs = toy_table(toy_spec(20))
    limit = Constraint("macs", high=sum(costs.bounds("macs")) / 2)
    space = FeasibleSpace(costs, [limit])
    search = Search(space, build_method(name, {"seed": seed}))
    for _ in range(num_queries):
        choices = search.ask()
        assert choices is not None and limit.allows(costs, choices)
        genes = space.genes(choices)
        blur = noise * np.random.default_rng([seed, *genes]).normal()
        search.tell(choices, value(genes) + blur)
    return value(space.genes(search.ranking()[0].choices))


@pytest.mark.parametrize(("interaction", "noise"), [(0.0, 0.0), (0.5, 1.0)])
def test_order_holds_on_spaces_of_twenty_layers(interaction, noise):
    landscape = {"interaction": interaction, "noise": noise}
    random, evolution, predictor = (
        np.mean([search_landscape(name, n, num_queries=num_queries, **landscape) for n in range(4)])
        for name, num_queries in (("random", 250), ("evolution", 250), ("predictor", 100))
    )
    assert random < evolution < predictor


# --- the command -------------------------------------------------------------------------------


def test_command_prints_a_table_and_draws_it(table, shared_data, tmp_path, capsys):
    plot = tmp_path / "plot.png"
    arguments = ["--table", str(shared_data / NAME), "--seeds", "3", "--queries", "100"]
    assert main(["bench", "nasbench-macro", *arguments, "--plot", str(plot)]) == 0
    said = capsys.readouterr().out
    assert "after 50" in said and "after 100" in said and "after 200" not in said
    for name in SEARCHERS:
        assert sum(line.startswith(f"{name} ") for line in said.splitlines()) == len(MODES)
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_command_prints_json(table, shared_data, capsys):
    arguments = ["--table", str(shared_data / NAME), "--seeds", "3", "--queries", "100", "--json"]
    arguments += ["--searcher", "aging", "--mode", "mean", "--set", "population=20"]
    assert main(["bench", "nasbench-macro", *arguments]) == 0
    value = json.loads(capsys.readouterr().out)
    (row,) = value["results"]
    assert (row["searcher"], row["mode"], value["seeds"]) == ("aging", "mean", 3)
    first, median, third = row["accuracy_quartiles"]["100"]
    assert 90 < first <= median <= third < 93.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--table", "nothere.json"],
            "nothere.json: is not there.*data/nas-bench-macro_cifar10.json "
            "in the repository github.com/xiusu/NAS-Bench-Macro",
        ),
        (["--set", "population"], "--set population"),
        (["--set", "populatoin=3"], "populatoin is no setting"),
    ],
)
def test_wrong_flags_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        main(["bench", "nasbench-macro", *arguments])


@pytest.mark.parametrize("flag", ["--seeds", "--queries"])
def test_counts_are_of_one_or_more(capsys, flag):
    with pytest.raises(SystemExit):
        main(["bench", "nasbench-macro", flag, "0"])
    assert f"{flag}: expected 1 or more, found 0" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"00000000": {"test_acc": 3}}'])
def test_file_that_is_not_the_table_is_named(tmp_path, content):
    path = tmp_path / "table.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"table\.json"):
        load_macro_table(path)
