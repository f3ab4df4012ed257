"""What a search maximizes: pytest tests/search/test_objective.py"""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from toy_trial import toy_score, toy_spec, toy_table

from spos.architecture import load_architecture
from spos.cost.table import CostTable
from spos.errors import ConfigError, ConstraintError, SearchError
from spos.search.arguments import METHODS, ExperimentPaths, build_search
from spos.search.local import run_search
from spos.search.objective import Objective, parse_objective
from spos.search.record import Result, SearchRecord, read_result
from spos.search.results import BEST, read_entries

WEIGHTS = {"top1": 1.0, "macs": "-1e-4"}


@pytest.fixture
def folder(tmp_path) -> Path:
    toy_table().save(tmp_path / "cost.json")
    return tmp_path


def make_search(folder, **arguments):
    arguments = {"rounds": 3, "population": 6, "seed": 1, "objective": WEIGHTS, **arguments}
    return build_search(ExperimentPaths(folder), **arguments)


def report(choices) -> dict:
    top1 = toy_score(choices)
    return {"default": top1, "top1": top1, "loss": 1 - top1}


@pytest.mark.parametrize(
    ("value", "weights", "text"),
    [
        (None, {"default": 1}, "default"),
        ("top1", {"top1": 1}, "top1"),
        ({"top1": 1.0, "macs": -1.0e-10}, {"top1": 1, "macs": -1e-10}, "top1 - 1e-10 macs"),
        ({"top1": 1, "macs": "-1e-10"}, {"top1": 1, "macs": -1e-10}, "top1 - 1e-10 macs"),
        ({"loss": -1, "top5": "0.5"}, {"loss": -1, "top5": 0.5}, "-loss + 0.5 top5"),
    ],
)
def test_objective_is_read_from_the_configuration(value, weights, text):
    objective = parse_objective(value)
    assert objective.weights == weights and str(objective) == text


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "objective is 3"),
        ([], "objective"),
        ({}, "objective"),
        (["top1"], "top1"),
        ({"top1": "much"}, "objective: top1.*much"),
        ({"top1": None}, "objective: top1"),
        ({"macs": float("nan")}, "objective: macs"),
    ],
)
def test_other_values_are_refused_by_name(value, message):
    with pytest.raises(ConfigError, match=message):
        parse_objective(value)


def test_score_is_the_objective_of_what_was_reported_and_the_costs(folder):
    record = run_search(make_search(folder), report, folder=folder / "out")
    entries = read_entries(folder / "out")
    table = toy_table()
    for each in entries:
        assert each.metrics["top1"] == toy_score(each.choices) == each.metrics["default"]
        assert each.score == toy_score(each.choices) - 1e-4 * table.cost(each.choices)
        assert each.objective == "top1 - 0.0001 macs"
    best = max(entries, key=lambda each: each.score or 0)
    assert record.search.ranking()[0].choices == best.choices
    assert load_architecture(folder / "out" / BEST).choices == best.choices


def test_cheaper_architecture_wins_if_its_cost_weighs_more(folder):
    costs = []
    for weight in (0, -1e-1):
        search = make_search(folder, objective={"top1": 1, "macs": weight})
        run_search(search, report, folder=folder / str(weight))
        costs.append(load_architecture(folder / str(weight) / BEST).metrics["macs"])
    assert costs[0] > costs[1]


def test_any_metric_of_the_table_counts_also_latency_and_the_score_of_size(folder):
    table = toy_table()
    slow = table.with_sum("latency_ms", {"macs": 1e-3})
    slow.save(folder / "cost.json")
    search = make_search(
        folder,
        objective={"top1": 1, "latency_ms": -0.01, "search_score": -1},
        score_reference={"latency_ms": 4, "params": "0.2K"},
        constraints={"latency_ms": [4, 5.5], "search_score": [0, 1.1]},
    )
    run_search(search, report, folder=folder / "out")
    for each in read_entries(folder / "out"):
        latency, params = slow.cost(each.choices, "latency_ms"), slow.cost(each.choices, "params")
        score = (latency / 4 + params / 200) / 2
        assert 4 <= latency <= 5.5 and score <= 1.1
        assert each.metrics["search_score"] == pytest.approx(score)
        assert each.score == pytest.approx(each.metrics["top1"] - 0.01 * latency - score)


def test_report_counts_where_the_table_has_the_metric_too(folder):
    search = make_search(folder, objective="params")
    run_search(search, lambda _: {"default": 0.5, "params": 7}, folder=folder / "out")
    assert {each.score for each in read_entries(folder / "out")} == {7}


def test_unknown_metric_stops_the_search_at_once_with_the_known_ones(folder):
    seen = []

    def evaluate(choices):
        seen.append(choices)
        return report(choices)

    search = make_search(folder, objective={"top1": 1, "latency_ms": -1})
    with pytest.raises(SearchError, match=r"'latency_ms' is neither.*macs, params, top1, loss"):
        run_search(search, evaluate, folder=folder / "out")
    assert len(seen) == 1 and read_entries(folder / "out") == []


def test_infinite_objective_is_a_failure_with_its_reason(folder):
    search = make_search(folder, objective={"top1": "1e299"}, max_failures=100)
    run_search(search, lambda _: {"default": 1, "top1": 1e300}, folder=folder / "out")
    entries = read_entries(folder / "out")
    assert len(entries) == 18 and all(each.score is None for each in entries)
    assert entries[0].failure == "the objective 1e+299 top1 is inf"


def test_failed_trials_have_no_objective(folder):
    search = make_search(folder, max_failures=100)
    run_search(search, lambda _: {"error": "out of memory", "top1": 1}, folder=folder / "out")
    assert {each.failure for each in read_entries(folder / "out")} == {"out of memory"}


def test_pareto_search_takes_the_objective_as_its_score(folder):
    search = make_search(folder, searcher="pareto", costs=["params"], objective="loss")
    run_search(search, report, folder=folder / "out")
    for each in read_entries(folder / "out"):
        assert each.score == each.metrics["loss"]


def test_costs_that_the_table_lacks_are_named(folder):
    with pytest.raises(ConstraintError, match=r"no metric 'latency_ms'.*macs, params"):
        make_search(folder, constraints={"latency_ms": [0, 10]})
    with pytest.raises(ConstraintError, match=r"no metric 'latency_ms'.*macs, params"):
        make_search(folder, searcher="pareto", costs=["latency_ms"])
    with pytest.raises(ConstraintError, match="watts"):
        make_search(folder, objective="search_score", score_reference={"watts": 3})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("objective", "loss"),
        ("objective", None),
        ("constraints", {"macs": "5.5K"}),
        ("fixed_arc", "arch.json"),
        ("objective", {"search_score": 1}),
    ],
)
def test_search_of_another_objective_or_space_is_not_continued(folder, name, value):
    arch = toy_spec().architecture(dict.fromkeys(toy_spec().choices, "k3"))
    (folder / "arch.json").write_text(arch.to_json())
    more = {"search_only": ["layer_1"]} if name == "fixed_arc" else {}
    state = json.loads(json.dumps(make_search(folder).state(), allow_nan=False))
    with pytest.raises(SearchError, match=r"saved search has (objective|constraints|fixed)"):
        make_search(folder, **{name: value}, **more).load_state(state)
    make_search(folder).load_state(state)
    del state["task"]  # as an older release wrote it
    make_search(folder).load_state(state)


# --- any history ---------------------------------------------------------------------------------


class RecordMachine(RuleBasedStateMachine):
    """Any history of reports, failures, late results and processes that end at any moment."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=self.home))
        self.table.save(self.folder / "cost.json")
        self.record = self.make()
        self.running: list[dict] = []
        self.reports: dict[str, dict] = {}  # by id, those that count

    home: Path
    table: CostTable
    arguments: dict

    def make(self) -> SearchRecord:
        search = build_search(ExperimentPaths(self.folder), **self.arguments)
        return SearchRecord(search, folder=self.folder, state_path=self.folder / "state.json")

    def id_of(self, choices) -> str:
        return self.table.spec.architecture(choices).id

    @rule()
    def ask(self):
        choices = self.record.search.ask()
        if choices is not None:
            assert choices not in self.running and self.id_of(choices) not in self.reports
            self.running.append(choices)
        self.record.save(None)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), top1=st.floats(0, 1), is_saved=st.booleans())
    def succeed(self, data, top1, is_saved):
        choices = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        value = {"default": 0.5, "top1": top1, "arch": choices}
        self.record.settle(read_result(value, self.table.spec, expected=None))
        self.reports[self.id_of(choices)] = value
        if is_saved:  # else a process that ends now leaves it in the journal alone
            self.record.save(None)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def fail(self, data):
        choices = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.record.settle(Result(choices, failure="it was meant to fail"))
        self.record.save(None)

    @precondition(lambda self: self.reports)
    @rule(data=st.data())
    def repeat(self, data):
        value = self.reports[data.draw(st.sampled_from(sorted(self.reports)))]
        size = (self.folder / "search.jsonl").stat().st_size
        late = {**value, "top1": 2.0}
        self.record.settle(read_result(late, self.table.spec, expected=None))
        assert (self.folder / "search.jsonl").stat().st_size == size

    @rule()
    def restart(self):
        if not (self.folder / "state.json").exists():
            return
        self.record = self.make()
        self.record.load()
        known = self.record.search.running
        assert all(each in known for each in self.running)

    @invariant()
    def scores_are_the_objective(self):
        entries = read_entries(self.folder) if self.reports else []
        scored = {each.id: each for each in entries if each.score is not None}
        assert scored.keys() == self.reports.keys()
        for identifier, entry in scored.items():
            top1 = self.reports[identifier]["top1"]
            assert entry.score == top1 - 1e-4 * self.table.cost(entry.choices)
        ranking = [each.score for each in self.record.search.ranking()]
        assert ranking == sorted((each.score for each in scored.values()), reverse=True)


@pytest.mark.parametrize("name", METHODS)
def test_objective_holds_in_any_history(memory_folder, monkeypatch, name):
    monkeypatch.setattr("os.fsync", lambda _: None)  # what a power cut loses is not the matter
    plan = {"searcher": name, "rounds": 3, "population": 4, "max_failures": 1000}
    if name == "predictor":
        plan.update(num_random=3, pool_size=20)

    class Machine(RecordMachine):
        home = memory_folder
        table = toy_table(toy_spec(4, has_channels=True))
        arguments = {**plan, "objective": WEIGHTS, "constraints": {"macs": "2.4K"}}

    run_state_machine_as_test(
        Machine, settings=settings(max_examples=300, stateful_step_count=15, deadline=None)
    )


def test_objective_of_nothing_is_the_score():
    assert Objective().value({"default": 0.25, "top1": 1}) == 0.25
