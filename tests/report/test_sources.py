"""What a report reads, from whole, half-written and hostile folders."""

import json
import os

import pytest
from small_runs import (
    LIMIT,
    record,
    write_experiment,
    write_scratch,
    write_state,
    write_supernet,
)

from spos.cost.constraints import Constraint
from spos.errors import SearchError
from spos.files import write_json
from spos.report.sources import collect, read_run, read_search
from spos.report.training_sections import describe_state


def test_folder_of_stages_is_read_whole(demo):
    sources = collect([str(demo)])
    assert [run.stage for run in sources.runs] == ["scratch", "supernet"]
    assert [search.id for search in sources.searches] == ["Ab3dE6gH"]
    assert sources.problems == ()
    (supernet,) = sources.of_stage("supernet")
    assert (supernet.num_steps, supernet.num_planned, supernet.is_finished) == (40, 40, True)
    assert supernet.curves["val/top1"].steps == (10, 20, 30, 40)
    (search,) = sources.searches
    assert (len(search.entries), len(search.ranking)) == (18, 17)
    assert search.constraints == (Constraint("macs", high=LIMIT),)
    best = search.architecture(search.ranking[0])
    assert best and best.id == search.ranking[0].id


def test_every_way_to_name_a_source_leads_to_it(demo):
    experiment = demo / "search" / "Ab3dE6gH"
    for name in (experiment, experiment / "log", demo / "search"):
        (search,) = collect([str(name)]).searches
        assert search.folder == experiment / "log"
        assert (search.id, len(search.entries)) == ("Ab3dE6gH", 18)
    (search,) = collect(["Ab3dE6gH"], experiments_dir=demo / "search").searches
    assert search.folder == experiment / "log"
    sources = collect([str(demo), str(experiment), str(demo / "supernet")])
    assert (len(sources.runs), len(sources.searches)) == (2, 1)


@pytest.mark.parametrize("name", ["local", "log"])
def test_search_without_nni_is_read(tmp_path, name):
    experiment = write_experiment(tmp_path / "x")
    os.rename(experiment / "checkpoint" / "search.json", experiment / "log" / "search.json")
    os.rename(experiment / "log", tmp_path / name)
    search = read_search(tmp_path / name)
    assert (search.id, search.url, len(search.entries)) == (None, None, 18)
    assert search.progress and search.progress.num_planned == 18


def test_of_several_experiments_the_latest_is_taken(tmp_path):
    for name, age in (("newer", 1), ("older", 1000)):
        journal = write_experiment(tmp_path / name, rounds=1) / "log" / "search.jsonl"
        os.utime(journal, (1e9 - age, 1e9 - age))
    (search,) = collect([str(tmp_path)]).searches
    assert search.id == "newer"


def test_unknown_target_is_an_error(tmp_path):
    with pytest.raises(SearchError, match="nowhere: is no folder, and there is no experiment"):
        collect(["nowhere"], experiments_dir=tmp_path)


def test_target_that_cannot_be_looked_at_is_told(demo):
    sources = collect(["x" * 300, str(demo)])
    assert "cannot be read (File name too long)" in sources.problems[0]
    assert len(sources.runs) == 2


def test_empty_folder_is_told(tmp_path):
    sources = collect([str(tmp_path)])
    assert sources.runs == sources.searches == ()
    assert "holds no run yet" in sources.problems[0]


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_line_that_is_being_written_is_left_out(tmp_path, cut):
    run, search = write_supernet(tmp_path / "run"), write_experiment(tmp_path / "search")
    for path in (run / "metrics.jsonl", search / "log" / "search.jsonl"):
        path.write_bytes(path.read_bytes()[:-cut])
    assert read_run(run).problems == read_search(search).problems == ()
    assert read_run(run).curves["val/loss"].steps == (10, 20, 30)
    assert len(read_search(search).entries) == 17


def test_damaged_files_are_named_and_the_rest_is_read(tmp_path):
    run, search = write_supernet(tmp_path / "run"), write_experiment(tmp_path / "search")
    (run / "args.json").write_text("{")
    (search / "checkpoint" / "search.json").write_text("[]")
    damaged = read_run(run)
    assert (damaged.stage, damaged.num_steps) == ("run", 40)
    assert "args.json" in damaged.problems[0]
    assert len(read_search(search).entries) == 18
    assert "search.json" in read_search(search).problems[0]
    (search / "log" / "search.jsonl").write_text("no JSON\n{}\n")
    assert read_search(search).entries == ()
    assert "search.jsonl, line 1" in read_search(search).problems[0]


@pytest.mark.parametrize("value", [None, True, "0.5", [1], 1e300, -1e300, 10**49])
def test_values_that_no_axis_holds_are_left_out(tmp_path, value):
    run = write_supernet(tmp_path / "run", steps=10)
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 20, "time": value, "val/top1": value}) + "\n")
    assert read_run(run).curves["val/top1"].steps == (10,)
    assert read_run(run).num_steps == 10


@pytest.mark.parametrize("line", ["7", "[]", '{"step": "1"}', '{"step": -1}', '{"loss": 1}'])
def test_lines_without_a_step_are_left_out_and_told(tmp_path, line):
    run = write_supernet(tmp_path / "run", steps=10)
    with open(run / "metrics.jsonl", "a") as file:
        file.write(f"{line}\n")
    assert read_run(run).num_steps == 10
    assert "without a step" in read_run(run).problems[0]


@pytest.mark.parametrize(
    "change",
    [
        {"round": "1"},
        {"round": -1},
        {"choices": {}},
        {"choices": {"layer_1": ["k3"]}},
        {"choices": dict.fromkeys(map(str, range(1000)), "k3")},
        {"metrics": [1]},
        {"score": 1e200},
    ],
)
def test_entries_that_no_search_wrote_are_left_out_and_told(tmp_path, change):
    search = write_experiment(tmp_path / "search")
    line = {"round": 1, "id": "x", "choices": {"layer_1": "k3"}, "score": 0.5, "metrics": {}}
    with open(search / "log" / "search.jsonl", "a") as file:
        file.write(json.dumps({**line, **change}) + "\n")
    found = read_search(search)
    assert len(found.entries) == 18
    assert "1 lines are not of a search" in found.problems[0]


@pytest.mark.parametrize(
    "config", [{"epochs": "4"}, {"epochs": True}, {"batch_size": 0}, {"num_train": 10**40}]
)
def test_length_of_a_run_is_unknown_where_settings_are_not_ours(tmp_path, config):
    assert read_run(write_supernet(tmp_path / "run", **config)).num_planned is None


@pytest.mark.parametrize(
    "config, planned", [({"batch_size": 100}, 4), ({"batch_size": 100, "epochs": 0}, 0)]
)
def test_run_of_less_than_a_batch_or_an_epoch_is_finished(tmp_path, config, planned):
    run = write_supernet(tmp_path / "run", steps=0, **config)
    assert not read_run(run).is_finished
    record(run, planned, {"val/top1": 0.5})
    found = read_run(run)
    assert (found.num_planned, found.is_finished) == (planned, True)
    assert describe_state(found)[1] == "done"


def test_run_in_the_middle_is_not_finished(tmp_path):
    run = read_run(write_scratch(tmp_path / "run", steps=22))
    assert (run.num_steps, run.num_planned, run.is_finished) == (22, 44, False)


def test_reason_of_a_stopped_search_is_kept(tmp_path):
    search = write_experiment(tmp_path / "search")
    write_state(search, planned=100, problem="ten failed in a row")
    assert read_search(search).problems == ("the search stopped: ten failed in a row",)


def test_state_of_an_older_search_has_no_limits(tmp_path):
    search = write_experiment(tmp_path / "search")
    write_state(search, planned=18, constraints=None)
    assert read_search(search).constraints is None


@pytest.mark.parametrize("status", ["RUNNING", "STOPPED"])
def test_nni_page_is_linked_while_its_server_runs(home, status):
    folder = write_experiment(home / "nni-experiments" / "Ab3dE6gH")
    entry = {"logDir": str(folder.parent), "status": status, "pid": os.getpid(), "port": 8123}
    write_json(folder.parent / ".experiment", {"Ab3dE6gH": entry})
    expected = "http://localhost:8123" if status == "RUNNING" else None
    assert read_search(folder).url == expected
