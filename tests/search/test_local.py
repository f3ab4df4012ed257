"""Searches in one process: pytest tests/search/test_local.py"""

import json
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from toy_trial import toy_score, toy_spec, toy_table

from spos.__main__ import main
from spos.commands import search_run
from spos.cost.constraints import Constraint
from spos.errors import ConfigError, ConstraintError, SearchError, SposError
from spos.files import lock_file
from spos.search.arguments import METHODS, ExperimentPaths, build_method, build_search
from spos.search.feasible import FeasibleSpace
from spos.search.local import run_search
from spos.search.record import read_progress
from spos.search.results import read_entries
from spos.search.searcher import Search
from spos.search.tuner import SearchTuner

NUM_KILLS = 3


def make_search(name="evolution", **changes) -> Search:
    method = build_method(name, {"rounds": 3, "population": 6, "seed": 1, **changes})
    spec = toy_spec(has_channels=name == "two_stage")
    return Search(FeasibleSpace(toy_table(spec)), method)


def outcome(folder) -> list[tuple]:
    return [(each.id, each.score, each.round) for each in read_entries(folder)]


class QuietServer:
    """NNI's REST server, which ends the experiment when the tuner says so."""

    has_ended = threading.Event()

    @classmethod
    def of_tuner(cls, _channel):
        return cls()

    def trials(self):
        return []

    def end_after(self, _number):
        self.has_ended.set()


@pytest.mark.parametrize("searcher", METHODS)
def test_result_is_that_of_the_tuner(tmp_path, monkeypatch, searcher):
    """The same seed and one trial at a time: the same candidates, files and winner."""
    (tmp_path / "nni").mkdir()
    monkeypatch.setattr("spos.search.tuner.NniServer", QuietServer)
    monkeypatch.setattr("spos.search.tuner.POLL_SECONDS", 0.01)
    toy_table(toy_spec(has_channels=searcher == "two_stage")).save(tmp_path / "cost.json")
    monkeypatch.chdir(tmp_path / "nni")
    monkeypatch.setenv("NNI_CHECKPOINT_DIRECTORY", str(tmp_path))
    arguments = {"searcher": searcher, "rounds": 3, "population": 6, "seed": 1}
    arguments |= {"constraints": {"macs": [0, 5_500]}, "objective": {"default": 1, "macs": -1e-5}}
    driven = SearchTuner(cost_table=str(tmp_path / "cost.json"), **arguments)
    for number in range(18):
        (choices,) = driven.generate_multiple_parameters([number])
        value = {"default": toy_score(choices), "arch": choices}
        driven.receive_trial_result(number, choices, value)
    paths = ExperimentPaths(tmp_path)
    run_search(build_search(paths, **arguments), toy_score, folder=tmp_path / "local")
    assert outcome(tmp_path / "local") == outcome(tmp_path / "nni")
    files = [
        {path.relative_to(folder): path.read_bytes() for path in (folder).rglob("*_*.json")}
        for folder in (tmp_path / "local", tmp_path / "nni")
    ]
    assert files[0] == files[1] and len(files[0]) >= 3


SEARCH_SLOWLY = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from toy_trial import toy_score
from spos.search.arguments import ExperimentPaths, build_search
from spos.search.local import run_search

folder, searcher = Path(sys.argv[2]), sys.argv[3]
search = build_search(ExperimentPaths(folder), searcher=searcher, rounds=3, population=6, seed=1)

def evaluate(choices):
    with open(folder / "evaluated.log", "a") as file:
        file.write(search.space.spec.architecture(choices).id + "\\n")
    time.sleep(0.02)
    return toy_score(choices)

run_search(search, evaluate, folder=folder)
"""


@pytest.mark.parametrize("searcher", METHODS)
def test_search_killed_at_random_moments_ends_as_if_it_was_not(tmp_path, searcher):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    search = make_search(searcher)
    run_search(search, toy_score, folder=whole)
    killed.mkdir()
    search.space.table.save(killed / "cost.json")
    evaluated = killed / "evaluated.log"
    evaluated.touch()
    command = [sys.executable, "-c", SEARCH_SLOWLY, Path(__file__).parent, killed, searcher]
    generator = random.Random(searcher)
    for _ in range(NUM_KILLS):
        until = len(evaluated.read_text().splitlines()) + generator.randint(1, 4)
        with subprocess.Popen(command) as process:
            while len(evaluated.read_text().splitlines()) < until and process.poll() is None:
                time.sleep(0.001)
            time.sleep(generator.uniform(0, 0.04))  # in an evaluation, or between two
            process.kill()
        assert process.returncode == -signal.SIGKILL
    subprocess.run(command, check=True)
    assert outcome(killed) == outcome(whole)
    begun = evaluated.read_text().splitlines()
    assert len(begun) <= 18 + NUM_KILLS and len(set(begun)) == 18


def test_failures_are_tried_once_more_and_kept_with_their_reason(tmp_path):
    seen = []

    def evaluate(choices):
        seen.append(choices)
        if choices["layer_1"] == "k3":
            raise RuntimeError("out of memory")
        return {"default": toy_score(choices), "top1": 0.5}

    run_search(make_search(max_failures=100), evaluate, folder=tmp_path)
    entries = read_entries(tmp_path)
    failed = [each for each in entries if each.score is None]
    assert failed and all(each.failure == "RuntimeError: out of memory" for each in failed)
    assert len(seen) == 18 + len(failed) and len(entries) == 18
    assert all(each.metrics["top1"] == 0.5 for each in entries if each.score is not None)


@pytest.mark.parametrize("rounds", [1, 3])
def test_failed_candidates_are_tried_again_if_asked(tmp_path, rounds):
    """Where nothing was bred without them, the search is the one that never failed."""
    seen, is_mended = [], False

    def evaluate(choices):
        seen.append(choices)
        if choices["layer_1"] == "k3" and not is_mended:
            raise OSError("No space left on device")
        return toy_score(choices)

    def search(**arguments):
        run_search(make_search(max_failures=100, rounds=rounds), evaluate,
                   folder=tmp_path / "out", **arguments)  # fmt: skip

    search()
    failed = [each.choices for each in read_entries(tmp_path / "out") if each.score is None]
    assert 0 < len(failed) < 6 * rounds
    seen.clear()
    search(retries_failed=True)  # nothing was mended
    assert seen == failed * 2
    is_mended = True
    seen.clear()
    search()
    assert seen == []
    search(retries_failed=True)
    assert seen == failed
    entries = read_entries(tmp_path / "out")
    assert [each.score for each in entries] == [toy_score(each.choices) for each in entries]
    assert len((tmp_path / "out" / "search.jsonl").read_text().splitlines()) == 6 * rounds
    for number in range(1, rounds + 1):
        known = [each for each in entries if each.round <= number]
        best = [each.id for each in sorted(known, key=lambda each: -each.score)][:10]
        files = sorted((tmp_path / "out" / "checkpoints" / f"round_{number:03d}").iterdir())
        assert [file.stem[3:] for file in files] == best
    if rounds == 1:
        run_search(make_search(rounds=1), toy_score, folder=tmp_path / "whole")
        assert sorted(outcome(tmp_path / "out")) == sorted(outcome(tmp_path / "whole"))


def test_retry_that_was_killed_goes_on(tmp_path, monkeypatch):
    """Between the state, which knows that they wait, and the journal, where they failed."""
    is_mended = False

    def evaluate(choices):
        if choices["layer_1"] == "k3" and not is_mended:
            raise OSError("No space left on device")
        return toy_score(choices)

    def die(*_):
        raise KeyboardInterrupt

    run_search(make_search(max_failures=100, rounds=1), evaluate, folder=tmp_path)
    assert None in [each.score for each in read_entries(tmp_path)]
    is_mended = True
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("spos.search.record.write_entries", die)
        run_search(make_search(max_failures=100, rounds=1), evaluate, folder=tmp_path,
                   retries_failed=True)  # fmt: skip
    run_search(make_search(max_failures=100, rounds=1), evaluate, folder=tmp_path)
    entries = read_entries(tmp_path)
    assert [each.score for each in entries] == [toy_score(each.choices) for each in entries]
    assert len((tmp_path / "search.jsonl").read_text().splitlines()) == 6
    assert len(list((tmp_path / "checkpoints" / "round_001").iterdir())) == 6


def test_search_of_only_failures_stops_and_can_be_continued(tmp_path):
    def fail(_):
        raise RuntimeError("no GPU")

    with pytest.raises(SearchError, match=r"10 evaluations failed in a row.*no GPU.*repeat"):
        run_search(make_search(population=12), fail, folder=tmp_path)
    assert read_entries(tmp_path) == []
    run_search(make_search(population=12), toy_score, folder=tmp_path)
    assert len(read_entries(tmp_path)) == 36


def test_folder_of_another_search_is_refused_and_kept(tmp_path):
    run_search(make_search(), toy_score, folder=tmp_path)
    before = (tmp_path / "search.json").read_bytes()
    with pytest.raises(SearchError, match="seed"):
        run_search(make_search(seed=2), toy_score, folder=tmp_path)
    assert (tmp_path / "search.json").read_bytes() == before


def test_folder_in_use_is_refused(tmp_path):
    with lock_file(tmp_path / ".lock"):
        with pytest.raises(SearchError, match="another search runs there"):
            run_search(make_search(), toy_score, folder=tmp_path)


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_folder_that_cannot_be_made_is_named(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(SearchError, match=f"{name}: cannot be made .*another folder"):
        run_search(make_search(), toy_score, folder=tmp_path / name)


# --- the command -------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A configuration and a supernet run that scores as the toy does."""
    (tmp_path / "supernet").mkdir()
    toy_table().save(tmp_path / "supernet" / "cost.json")
    write_settings(tmp_path, sampler="uniform")
    tuner = {"className": "spos.search.tuner.SearchTuner", "classArgs": {"searcher": "pareto"}}
    (tmp_path / "config.yml").write_text(yaml.safe_dump({"tuner": tuner}))
    monkeypatch.setattr(search_run, "build_evaluation", lambda _: toy_score)
    monkeypatch.chdir(tmp_path)
    return tmp_path


FLAGS = ("search", "run", "--config", "config.yml", "--run-dir", "supernet", "--output-dir", "out",
         "--rounds", "1", "--population", "4")  # fmt: skip


def write_settings(folder, *path_range, sampler="constrained"):
    """Settings of the supernet's run, as far as they say what was trained."""
    config = {"sampler": sampler, "path_range": [*path_range], "seed": 0, "num_train": 9,
              "held_out": 0, "batch_size": 1, "epochs": 1}  # fmt: skip
    settings = {"version": 1, "stage": "supernet", "config": config, "runtime": {}}
    (folder / "supernet" / "args.json").write_text(json.dumps(settings))


def test_command_searches_and_shows_the_front(folder, capsys):
    flags = ["--config", "config.yml", "--run-dir", "supernet", "--output-dir", "out"]
    flags += ["--rounds", "3", "--population", "8", "--constraint", "macs=:5.5K"]
    assert main(["search", "run", *flags]) == 0
    said = capsys.readouterr().out
    assert "search in out: 24 candidates evaluated, 0 failed" in said
    assert "best score at every cost" in said
    assert all(each.metrics["macs"] <= 5_500 for each in read_entries(folder / "out"))
    assert main(["search", "run", *flags]) == 0  # has finished already
    assert main(["search", "best", "out", "--output", "best.json", "--top", "2"]) == 0
    assert "best score at every cost" in capsys.readouterr().out
    best = max(read_entries(folder / "out"), key=lambda each: each.score)
    assert json.loads((folder / "best.json").read_text())["choices"] == best.choices


def test_command_runs_a_named_tuner_with_an_objective(folder, capsys):
    toy_table(toy_spec(has_channels=True)).save(folder / "supernet" / "cost.json")
    arguments = {"objective": {"default": 1, "macs": "-1e-5"}, "rounds": 2, "population": 6}
    tuner = {"className": "spos.search.tuner.TwoStageTuner", "classArgs": arguments}
    (folder / "config.yml").write_text(yaml.safe_dump({"tuner": tuner}))
    flags = ["--config", "config.yml", "--run-dir", "supernet", "--output-dir", "out"]
    assert main(["search", "run", *flags]) == 0
    assert "score: default - 1e-05 macs" in capsys.readouterr().out
    entries = read_entries(folder / "out")
    assert len(entries) == 12
    assert all(
        each.score == toy_score(each.choices) - 1e-5 * each.metrics["macs"] for each in entries
    )


def test_cost_table_of_the_file_is_taken_as_under_nni(folder):
    table = toy_table()
    (folder / "code").mkdir()
    weights = {"macs": 0.001}
    table.with_sum("latency_ms", weights).save(folder / "code" / "latency.json")
    arguments = {"cost_table": "latency.json", "constraints": {"latency_ms": 5.2}}
    tuner = {"className": "spos.search.tuner.SearchTuner", "codeDirectory": "code"}
    tuner["classArgs"] = arguments
    (folder / "config.yml").write_text(yaml.safe_dump({"tuner": tuner}))
    assert main(list(FLAGS)) == 0
    entries = read_entries(folder / "out")
    assert len(entries) == 4 and all(each.metrics["latency_ms"] <= 5.2 for each in entries)


def test_flags_replace_what_the_file_says(folder):
    arguments = {"num_mutations": 2, "objective": "params", "seed": 5}
    arguments["constraints"] = {"macs": [0, "5K"], "params": [0, 190]}
    tuner = {"className": "spos.search.tuner.SearchTuner", "classArgs": arguments}
    (folder / "config.yml").write_text(yaml.safe_dump({"tuner": tuner}))
    flags = [*FLAGS, "--constraint", "macs=5.2K:", "--searcher", "random"]
    flags += ["--objective", "default", "--objective", "macs=-1e-5"]
    assert main(flags) == 0
    before = (folder / "out" / "search.json").read_bytes()
    search = json.loads(before)["search"]
    assert search["method"] == "RandomSearch" and search["settings"]["seed"] == 5
    assert search["task"]["objective"] == {"default": 1, "macs": -1e-5}
    assert search["task"]["constraints"] == {"macs": [5200, None], "params": [0, 190]}
    assert all(each.metrics["macs"] >= 5200 for each in read_entries(folder / "out"))
    for changed in (flags[:-2], FLAGS):
        with pytest.raises(SearchError, match="continue it with the settings it began with"):
            main(list(changed))
    assert (folder / "out" / "search.json").read_bytes() == before
    assert main(flags) == 0


def test_flag_evaluates_again_what_failed(folder, capsys, monkeypatch):
    monkeypatch.setattr(search_run, "build_evaluation", lambda _: {}.__getitem__)  # fails
    assert main(list(FLAGS)) == 0
    said = capsys.readouterr().out
    assert "4 failed\nagain, once the cause is mended: " in said
    assert "python -m spos search run ... --retry-failed" in said
    monkeypatch.setattr(search_run, "build_evaluation", lambda _: toy_score)
    assert main([*FLAGS, "--retry-failed"]) == 0
    said = capsys.readouterr().out
    assert "4 candidates evaluated, 0 failed" in said and "again, once" not in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--constraint", "macs"), "--constraint macs: expected METRIC=LOW:HIGH"),
        (("--constraint", "watts=3"), "has no metric 'watts'; it has macs, params"),
        (("--constraint", "macs=1", "--constraint", "macs=2"), "macs=2: expected each metric once"),
        (("--objective", "=1"), "--objective =1: expected METRIC=WEIGHT or METRIC"),
        (("--objective", "macs=much"), "--objective: macs: expected a number"),
        (("--objective", "top1", "--objective", "top1=2"), "top1=2: expected each metric once"),
    ],
)
def test_wrong_flags_are_named(folder, flags, message):
    with pytest.raises(SposError, match=message):
        main([*FLAGS, *flags])
    assert not (folder / "out").exists()


def test_search_where_nothing_was_trained_is_refused(folder, capsys):
    write_settings(folder, "macs=5.3K:5.6K")
    with pytest.raises(ConstraintError, match="limited to macs=4.6K:5K.*paths of macs") as caught:
        main([*FLAGS, "--constraint", "macs=:5K"])
    assert not (folder / "out").exists()
    flag = re.search(r"\((--constraint) (\S+)\)", str(caught.value))
    assert flag and main([*FLAGS, *flag.groups()]) == 0
    assert "trained" not in capsys.readouterr().out
    macs = [each.metrics["macs"] for each in read_entries(folder / "out")]
    assert len(macs) == 4 and 5300 <= min(macs) and max(macs) <= 5600


def test_limits_worth_a_remark_are_said_once(folder, capsys):
    write_settings(folder, "macs=5.3K:5.6K")
    flags = [*FLAGS, "--constraint", "macs=:5.4K", "--constraint", "params=:1M"]
    for times in (1, 0):  # the second time the search goes on
        assert main(flags) == 0
        said = capsys.readouterr().out
        assert said.count("the limit params=:1M excludes nothing") == times
        assert said.count("trained on macs=5.3K:5.4K only") == times


def test_search_that_has_begun_is_not_refused(folder):
    flags = [*FLAGS, "--constraint", "macs=:5K"]
    assert main(flags) == 0
    write_settings(folder, "macs=5.3K:5.6K")
    assert main([*flags]) == 0


@pytest.mark.parametrize(
    "content",
    [
        "- 1",
        "{",
        "tuner: {}",
        "tuner: {className: 3}",
        "tuner: {className: TPE}",
        "tuner: {className: spos.search.tuner.Path}",
        "tuner: {className: spos.search.tuner.EvolutionTuner, classArgs: [1]}",
    ],
)
def test_configuration_without_one_of_our_tuners_is_refused(folder, content):
    (folder / "config.yml").write_text(content)
    with pytest.raises(ConfigError, match=r"config\.yml.*className"):
        main(["search", "run", "--config", "config.yml", "--run-dir", "supernet"])


def test_state_says_what_the_limits_were(tmp_path):
    limits = (Constraint("macs", high=1e9), Constraint("params", 0, 5_000_000))
    method = build_method("random", {"rounds": 1, "population": 2})
    run_search(Search(FeasibleSpace(toy_table(), limits), method), toy_score, folder=tmp_path)
    progress = read_progress(tmp_path / "search.json")
    assert progress and progress.constraints == limits
    assert progress.space == toy_table().spec.space
    state = json.loads((tmp_path / "search.json").read_text())
    (tmp_path / "old.json").write_text(
        json.dumps({name: each for name, each in state.items() if name != "constraints"})
    )
    older = read_progress(tmp_path / "old.json")
    assert older and older.constraints is None
    (tmp_path / "old.json").write_text(json.dumps({**state, "constraints": {"macs": "many"}}))
    with pytest.raises(SearchError, match="old.json: is not the state of a search"):
        read_progress(tmp_path / "old.json")


def test_folder_of_something_else_is_refused(folder):
    (folder / "thesis").mkdir()
    (folder / "thesis" / ".hidden").touch()
    flags = [*FLAGS, "--output-dir", "thesis"]
    (folder / "thesis" / "thesis.tex").touch()
    with pytest.raises(SearchError, match="thesis: is not empty and holds no search"):
        main(flags)
    with pytest.raises(SearchError, match="config.yml: is not a folder"):
        main([*FLAGS, "--output-dir", "config.yml"])
    assert len(list((folder / "thesis").iterdir())) == 2
    (folder / "thesis" / "thesis.tex").unlink()
    assert main(flags) == 0


def test_missing_supernet_is_named_with_what_makes_one(folder):
    hint = "gone: is not a run folder .*run `python supernet.py --run-dir gone` first"
    with pytest.raises(ConfigError, match=hint):
        main([*FLAGS, "--run-dir", "gone"])
    assert not (folder / "out").exists()


def test_supernet_that_never_began_training_is_named(folder):
    (folder / "supernet" / "cost.json").unlink()
    with pytest.raises(ConfigError, match="supernet: has no cost.json.*never began.*repeat"):
        main(list(FLAGS))
    assert not (folder / "out").exists()


@pytest.mark.parametrize("action", ["run", "start"])
def test_missing_configuration_is_looked_for_here(tmp_path, monkeypatch, action):
    monkeypatch.chdir(tmp_path)
    port = ["--port", "0"] if action == "start" else []
    here = f"--config config_search.yml: there is no such file in {tmp_path}; give .*--config FILE"
    with pytest.raises(ConfigError, match=here):
        main(["search", action, *port])
