"""`python -m spos search best`, progress and signals: pytest tests/search/test_search_command.py"""

import contextlib
import io
import json
import os
import shlex
import signal
import sqlite3
import subprocess
import threading
from pathlib import Path

import pytest
from forked import ROOT
from toy_trial import toy_spec

from spos.__main__ import main
from spos.architecture import load_architecture
from spos.commands import search as search_command
from spos.errors import ConfigError, SearchError
from spos.report.sources import read_search
from spos.search import launch
from spos.search.launch import (
    KnownExperiment,
    RunningExperiment,
    find_experiment,
    is_alive,
    list_experiments,
    resume_experiment,
)
from spos.search.nni_server import NniServer
from spos.search.record import Progress, read_progress
from spos.search.results import Entry, append_entry, read_entries, save_best, save_front
from spos.search.watch import StatusLine, describe_progress, watch_experiment


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def add_experiment(parent, name, scores, *, age=0):
    folder = parent / name
    (folder / "log").mkdir(parents=True)
    best = None
    for number, score in enumerate(scores):
        choices = dict.fromkeys(toy_spec().choices, ("k3", "k5", "k7", "xcep")[number])
        arch = toy_spec().architecture(choices, metrics={"macs": 322_918_720, "params": 3_500_000})
        metrics = dict(arch.metrics)
        append_entry(folder / "log", Entry(1, arch.id, choices, score, metrics))
        if score is not None and (best is None or score > best[0]):
            best = (score, arch)
    if best:
        save_best(folder / "log", best[1])
    if scores:
        os.utime(folder / "log" / "search.jsonl", (1e9 - age, 1e9 - age))
    return best[1] if best else None


def test_best_of_the_latest_search_is_shown_and_copied(home, capsys):
    add_experiment(home / "nni-experiments", "older", [0.9, 0.8], age=100)
    best = add_experiment(home / "nni-experiments", "newer", [0.2, 0.7, None, 0.3])
    add_experiment(home / "nni-experiments", "empty", [])
    output = home / "arch.json"
    assert main(["search", "best", "--output", str(output)]) == 0
    assert load_architecture(output, toy_spec()) == best
    said = capsys.readouterr().out
    assert "experiment newer: 3 candidates evaluated, 1 failed" in said
    lines = [line for line in said.splitlines() if best.id in line]
    assert "0.7000" in lines[0] and "322.9 M" in lines[0] and "3.5 M" in lines[0]
    assert "median" in said and "scratch.py --fixed-arc" in said


@pytest.mark.parametrize("age, latest", [(0, True), (200, False)])
def test_search_without_nni_may_be_the_latest_too(home, capsys, age, latest):
    theirs = add_experiment(home / "nni-experiments", "theirs", [0.9, 0.8], age=100)
    ours = add_experiment(home, "made", [0.2, 0.7], age=age)
    (home / "runs").mkdir()
    (home / "made" / "log").rename(home / "runs" / "search")
    for words, best in (((), ours if latest else theirs), (("--experiments-dir",), theirs)):
        where = [str(home / "nni-experiments")] if words else []
        assert main(["search", "best", *words, *where, "--output", "arch.json"]) == 0
        assert load_architecture(home / "arch.json", toy_spec()) == best
    assert ("search in runs/search" in capsys.readouterr().out) == latest


def test_best_of_a_named_search_in_a_folder(home, capsys):
    best = add_experiment(home / "elsewhere", "one", [0.9, 0.8])
    add_experiment(home / "elsewhere", "two", [0.1])
    assert main(["search", "best", "one", "--experiments-dir", str(home / "elsewhere")]) == 0
    assert best.id in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["best"], "no search"),
        (["best", "nothere"], "nothere.*older"),
        (["best", "failed"], "no result yet"),
        (["resume", "nothere", "--port", "0"], "nothere"),
    ],
)
def test_missing_experiments_are_named(home, arguments, message):
    if arguments != ["best"]:
        add_experiment(home / "nni-experiments", "older", [0.9])
        add_experiment(home / "nni-experiments", "failed", [None])
    with pytest.raises(SearchError, match=message):
        main(["search", *arguments])


def test_experiments_elsewhere_are_found_in_nnis_list(home):
    add_experiment(home / "elsewhere", "far", [0.5])
    (home / "nni-experiments").mkdir()
    entry = {"logDir": str(home / "elsewhere"), "pid": 1, "port": 8080, "status": "RUNNING"}
    (home / "nni-experiments" / ".experiment").write_text(json.dumps({"far": entry}))
    known = find_experiment("far")
    expected = KnownExperiment("far", home / "elsewhere" / "far", "RUNNING", 1, 8080)
    assert known == expected and list_experiments() == [expected]


def test_list_that_nni_is_writing_is_read_when_it_is_whole(home):
    (home / "nni-experiments").mkdir()
    manifest = home / "nni-experiments" / ".experiment"
    manifest.write_text("")
    entry = {"logDir": str(home), "status": "RUNNING", "pid": 1, "port": 2}
    writer = threading.Timer(0.2, lambda: manifest.write_text(json.dumps({"late": entry})))
    writer.start()
    (known,) = list_experiments()
    writer.join()
    assert known.id == "late" and known.pid == 1


def test_damaged_list_of_nni_is_named(home, monkeypatch):
    (home / "nni-experiments").mkdir()
    (home / "nni-experiments" / ".experiment").write_text("{")
    monkeypatch.setattr(launch, "MANIFEST_SECONDS", 0.1)
    with pytest.raises(SearchError, match=r"\.experiment.*NNI was killed while"):
        list_experiments()


def test_experiment_that_still_runs_is_not_resumed(home):
    (home / "nni-experiments").mkdir()
    entry = {
        "logDir": str(home / "nni-experiments"),
        "pid": os.getpid(),
        "port": 1,
        "status": "DONE",
    }
    (home / "nni-experiments" / ".experiment").write_text(json.dumps({"live": entry}))
    with pytest.raises(SearchError, match=r"still runs.*nnictl stop live"):
        resume_experiment("live", port=0)


def add_database(folder, params):
    """NNI's, with two revisions of the experiment's configuration."""
    (folder / "db").mkdir()
    with contextlib.closing(sqlite3.connect(folder / "db" / "nni.sqlite")) as database, database:
        database.execute("CREATE TABLE ExperimentProfile (params text, id text, revision integer)")
        for revision, each in ((2, params), (1, {"maxTrialNumber": 3})):
            row = json.dumps(each), folder.name, revision
            database.execute("INSERT INTO ExperimentProfile VALUES (?, ?, ?)", row)


@pytest.mark.parametrize("budget", [{"maxTrialNumber": 14}, {}])
def test_what_failed_is_tried_again_by_more_trials(home, monkeypatch, budget):
    add_experiment(home / "nni-experiments", "one", [0.9, None])
    folder = home / "nni-experiments" / "one"
    write_state(folder)  # of 12 candidates
    add_database(folder, {"trialConcurrency": 1, **budget})
    begun = []
    monkeypatch.setattr(search_command, "check_port", lambda _: None)
    monkeypatch.setattr(search_command, "_guarded", lambda begin, planned: begin() or planned)
    monkeypatch.setattr(launch, "_connect", lambda _: None)
    monkeypatch.setattr(launch, "_run_nnictl", lambda words, **given: begun.append((words, given)))
    for flags, number in (((), 14), (("--retry-failed",), 14 + 2 * 12)):
        assert main(["search", "resume", "one", *flags]) == 12
        assert begun.pop() == (
            ["resume", "one", "--port", "8080"], {launch.RETRY_VARIABLE: str(len(flags))}
        )  # fmt: skip
        with contextlib.closing(sqlite3.connect(folder / "db" / "nni.sqlite")) as database:
            (text,) = database.execute("SELECT params FROM ExperimentProfile WHERE revision = 2")
        expected = {"maxTrialNumber": number} if budget else {}
        assert json.loads(*text) == {"trialConcurrency": 1, **expected}
    (folder / "db" / "nni.sqlite").write_text("spoilt")
    with pytest.raises(SearchError, match=r"nni\.sqlite: is not NNI's database"):
        main(["search", "resume", "one", "--retry-failed"])


def test_search_without_a_state_has_nothing_to_try_again(home, monkeypatch):
    monkeypatch.setattr(search_command, "check_port", lambda _: None)
    add_experiment(home / "nni-experiments", "theirs", [])
    with pytest.raises(SearchError, match=r"--retry-failed: .*search\.json is not there"):
        main(["search", "resume", "theirs", "--retry-failed"])


def test_damaged_journal_is_named(home):
    folder = home / "log"
    folder.mkdir()
    (folder / "search.jsonl").write_text('{"round": 1}\n')
    with pytest.raises(SearchError, match=r"search\.jsonl, line 1"):
        read_entries(folder)


def test_later_line_of_a_candidate_counts(home):
    add_experiment(home, "x", [None])
    log = home / "x" / "log"
    (failed,) = read_entries(log)
    append_entry(log, Entry(1, failed.id, failed.choices, 0.4))
    (entry,) = read_entries(log)
    assert entry.score == 0.4


def test_output_that_cannot_be_written_is_named(home):
    add_experiment(home / "nni-experiments", "x", [0.4])
    with pytest.raises(SearchError, match="where.json: cannot be written .*no folder .*no"):
        main(["search", "best", "--output", str(home / "no" / "where.json")])


SEARCHED = ROOT / "tests" / "assets" / "0.1.0" / "search"


def test_best_few_are_written_as_the_search_wrote_them(home, capsys):
    (home / "top").mkdir()  # an empty folder gives way
    (home / ".top.tmp" / "01_half.json").mkdir(parents=True)  # of a command that was killed
    words = ["search", "best", str(SEARCHED), "--top", "3", "--output-dir"]
    assert main([*words, "top"]) == 0
    kept = sorted((SEARCHED / "checkpoints" / "round_002").iterdir())[:3]
    written = sorted(Path("top").iterdir())
    assert [each.name for each in written] == [each.name for each in kept]
    assert [each.read_bytes() for each in written] == [each.read_bytes() for each in kept]
    assert capsys.readouterr().out.splitlines()[-3:] == [f"wrote {each}" for each in written]
    for folder in ("top", ".", "top/" + written[0].name, "top/" + written[0].name + "/x"):
        with pytest.raises(ConfigError, match=r"--output-dir .*: .*name a new folder"):
            main([*words, folder])
    assert sorted(Path("top").iterdir()) == written and sorted(home.iterdir()) == [home / "top"]
    assert main([*words, "new/top", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["best"]) == len(os.listdir("new/top")) == 3


def test_the_searchs_best_comes_before_its_equals(home, capsys):
    """With several trials at once, the score of one that was chosen later may come first."""
    add_experiment(home, "made", [0.5, 0.7, 0.7, 0.6])
    folder = home / "made" / "log"
    _, older, newer, _ = read_entries(folder)
    for best, other in ((older, newer), (newer, older)):
        save_best(folder, toy_spec().architecture(best.choices))
        assert main(["search", "best", str(folder), "--top", "2", "--json"]) == 0
        listed = json.loads(capsys.readouterr().out)["best"]
        assert [each["id"] for each in listed] == [best.id, other.id]
        assert main(["search", "best", str(folder)]) == 0
        assert f"   1  {best.id}" in capsys.readouterr().out
        assert [each.id for each in read_search(folder).ranking[:2]] == [best.id, other.id]


def test_more_than_were_evaluated_are_not_written(home):
    add_experiment(home, "made", [0.2, 0.7, None, 0.3])
    words = ["search", "best", "made/log", "--output-dir", "top", "--output", "best.json", "--top"]
    with pytest.raises(SearchError, match=r"--top 4: search in made/log has only 3 candidates"):
        main([*words, "4"])
    assert not Path("top").exists() and not Path("best.json").exists()
    assert main([*words, "3"]) == 0
    assert len(os.listdir("top")) == 3 and Path("best.json").exists()
    with pytest.raises(SystemExit):
        main([*words, "0"])


def test_front_has_no_best_few(home):
    best = add_experiment(home, "made", [0.2, 0.7])
    save_front(home / "made" / "log", [best])
    with pytest.raises(SearchError, match=r"best score at every cost.*made/log/checkpoints/front"):
        main(["search", "best", "made/log", "--top", "2", "--output-dir", "top"])
    assert not Path("top").exists()


def test_progress_says_how_far_and_how_long():
    entries = [Entry(1, str(n), {}, score) for n, score in enumerate([0.2, 0.4, None, 0.9])]
    said = describe_progress(entries, num_planned=64, per_second=0.5)
    assert said == "4/64 candidates, 1 failed, best 0.9000, median 0.4000, 30/min, ETA 0:02:00"
    # Of an even number the candidate that the end of the search names, not a mean of two.
    assert "median 0.2000" in describe_progress(entries[:3], num_planned=64, per_second=0.5)
    assert describe_progress([], num_planned=None, per_second=0.0) == "0 candidates"


def test_status_line_is_rare_in_a_log_file(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("spos.search.watch.time.monotonic", lambda: now[0])
    stream = io.StringIO()
    line = StatusLine(stream)
    for second in range(65):
        now[0] = 100.0 + second
        line.show(f"at {second}")
    line.close("end")
    assert stream.getvalue() == "at 0\nat 30\nat 60\nend\n"


class FakeServer:
    port = 1

    def __init__(self, statuses):
        self.statuses = list(statuses)

    def status(self):
        status = self.statuses.pop(0)
        if status is None:
            raise SearchError("no answer")
        return status

    def trials(self):
        return []


def watch(tmp_path, statuses, *, pid=1, num_planned=3):
    (tmp_path / "log").mkdir(exist_ok=True)
    server: NniServer = FakeServer(statuses)  # type: ignore[assignment]
    watch_experiment(RunningExperiment("abc", server, pid, tmp_path), num_planned=num_planned)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("spos.search.watch.POLL_SECONDS", 0.0)


def test_watching_ends_when_done(tmp_path, quick):
    watch(tmp_path, ["INITIALIZED", "RUNNING", None, "TUNER_NO_MORE_TRIAL", "DONE"])


def write_state(folder, *, problem=None, is_exhausted=False):
    search = {
        "space": "toy",
        "options": {},
        "settings": {"rounds": 3, "population": 4},
        "is_exhausted": is_exhausted,
    }
    (folder / "checkpoint").mkdir()
    path = folder / "checkpoint" / "search.json"
    path.write_text(json.dumps({"version": 1, "problem": problem, "search": search}))
    return path


@pytest.mark.parametrize(
    ("is_exhausted", "reason"), [(True, "no further architecture"), (False, "maxTrialNumber")]
)
def test_search_that_ends_early_says_why(tmp_path, quick, capsys, is_exhausted, reason):
    write_state(tmp_path, is_exhausted=is_exhausted)
    watch(tmp_path, ["DONE"], num_planned=12)
    assert f"after 0 of 12 planned candidates: {reason}" in capsys.readouterr().out


def test_progress_is_read_from_the_state(tmp_path):
    path = write_state(tmp_path)
    assert read_progress(path) == Progress(12, False, None, "toy")
    assert read_progress(tmp_path / "nothing.json") is None
    path.write_text("{}")
    with pytest.raises(SearchError, match="search.json"):
        read_progress(path)


def test_reason_of_a_stopped_search_is_told(tmp_path, quick):
    write_state(tmp_path, problem="10 evaluations failed in a row")
    with pytest.raises(SearchError, match="abc stopped: 10 evaluations failed"):
        watch(tmp_path, ["RUNNING", "ERROR"])


def test_error_of_nni_names_its_logs(tmp_path, quick):
    with pytest.raises(SearchError, match=r"dispatcher\.log"):
        watch(tmp_path, ["ERROR"])


def test_manager_that_is_gone_is_told_with_the_way_back(tmp_path, quick):
    process = subprocess.Popen(["true"])
    process.wait()
    gone = process.pid
    assert not is_alive(gone) and is_alive(os.getpid())
    with pytest.raises(SearchError, match="search resume abc"):
        watch(tmp_path, ["RUNNING", None], pid=gone)


def test_tuner_of_nni_without_further_trials_ends_the_watch(tmp_path, quick):
    watch(tmp_path, ["TUNER_NO_MORE_TRIAL"] * 100, num_planned=None)


def test_signals_interrupt_only_while_they_may():
    with search_command._Signals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(search_command._Interrupted) as caught:
            signals.let_interrupt(True)
        assert caught.value.number == signal.SIGTERM
    with search_command._Signals() as signals:
        signals.let_interrupt(True)
        with pytest.raises(search_command._Interrupted):
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # once is enough
        signals.let_interrupt(False)


def test_environment_protects_and_finds_this_python(monkeypatch):
    monkeypatch.setenv("NODE_OPTIONS", "--trace-warnings")
    monkeypatch.setenv("NO_PROXY", "example.org")
    environment = launch.build_environment()
    assert environment["NODE_OPTIONS"] == f'--trace-warnings --require "{launch.PRELOAD}"'
    assert environment["NO_PROXY"] == "example.org,localhost,127.0.0.1"
    assert environment["no_proxy"].endswith("localhost,127.0.0.1")
    scripts = environment["PATH"].split(os.pathsep)[0]
    assert os.path.exists(os.path.join(scripts, "nnictl"))


def test_command_to_copy_is_quoted(home, capsys):
    add_experiment(home / "my runs", "one", [0.4])
    assert main(["search", "best", str(home / "my runs" / "one" / "log")]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert shlex.split(line)[-1] == str(home / "my runs" / "one" / "log" / "checkpoints/best.json")
