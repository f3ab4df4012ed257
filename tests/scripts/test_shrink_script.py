"""supernet.py --shrink, and a latency in its run folder: what the search finds there afterwards."""

import json
import shutil
import signal

import pytest
from commands import COMMON
from forked import Script, wait_until
from run_contents import assert_identical, read_run

from spos.__main__ import main
from spos.architecture import save_architecture
from spos.cost.table import CostTable
from spos.evaluation.build import open_supernet_run
from spos.files import read_journal, read_json

SHRINK = ("--epochs", 6, "--shrink", 4, "--shrink-epochs", "2:1", "--shrink-drop", 2)


@pytest.fixture(scope="module")
def shrunk(trained):
    """A workspace with a run that was shrunk to four architectures or fewer."""
    finished = trained.supernet(*SHRINK, run="shrunk")
    assert finished.status == 0, finished.stderr
    return trained


def measure(run) -> None:
    from tiny_space import TINY

    words = (TINY, "--latency", "--rounds", "1", "--json", "--table", str(run / "cost.json"))
    assert main(["cost", *words]) == 0


@pytest.mark.slow
def test_killed_run_shrinks_to_the_same_space(shrunk):
    run = shrunk.folder / "shrunk-killed"
    words = shrunk.supernet_words("shrunk-killed", *SHRINK)
    for stages in (0, 1, 2):
        script = Script("supernet.py", *words, folder=shrunk.folder)
        marks = stages + 1
        wait_until(
            lambda: len(list(run.glob("checkpoints/*.json"))) >= marks,  # noqa: B023
            running=script.process,
        )
        script.send(signal.SIGKILL)
        assert script.wait().status == -signal.SIGKILL
    finished = shrunk.supernet(*SHRINK, run="shrunk-killed")
    assert finished.status == 0, finished.stderr
    whole = shrunk.folder / "shrunk"
    assert_identical(read_run(run).state, read_run(whole).state)
    assert read_run(run).measured() == read_run(whole).measured()
    assert (run / "cost.json").read_bytes() == (whole / "cost.json").read_bytes()


def search(run, output) -> list[dict]:
    """What `search run` finds with the supernet of a run."""
    config = output.with_suffix(".yml")
    config.write_text("tuner: {className: spos.search.tuner.SearchTuner}")
    words = ("search", "run", "--config", config, "--run-dir", run, "--rounds", 2,
             "--population", 3, "--output-dir", output, *COMMON)  # fmt: skip
    assert main([str(word) for word in words]) == 0
    return read_journal(output / "search.jsonl")


def test_search_and_tester_see_what_is_left(shrunk, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(shrunk.folder / "shrunk", run)
    spec = open_supernet_run(run).spec
    assert spec.num_architectures <= 4
    space = tmp_path / "space.json"
    done = shrunk.tester(run=str(run), env={"NNI_GEN_SEARCH_SPACE": str(space)})
    assert done.status == 0, done.stderr
    left = {label: each["_value"] for label, each in read_json(space).items()}
    assert left == {label: list(each) for label, each in spec.choices.items()}
    assert CostTable.load(tmp_path / "cost.json").spec == spec
    first = search(run, tmp_path / "first")
    assert 0 < len(first) <= spec.num_architectures
    evaluated = (run / "evaluations.jsonl").read_bytes()
    measure(run)
    again = search(run, tmp_path / "again")  # nothing is evaluated again for the new metric
    assert (run / "evaluations.jsonl").read_bytes() == evaluated
    table = CostTable.load(run / "cost.json")
    for before, after in zip(first, again, strict=True):
        assert "latency_ms" not in before["metrics"]
        assert after["metrics"]["latency_ms"] == table.cost(after["choices"], "latency_ms")


def test_latency_in_the_run_folder_reaches_the_tester_and_stays(workspace):
    run = workspace.folder / "supernet"
    measure(run)
    table = CostTable.load(run / "cost.json")
    spec = open_supernet_run(run).spec
    choices = {label: each[0] for label, each in spec.choices.items()}
    save_architecture(workspace.folder / "first.json", spec.architecture(choices))
    done = workspace.tester("--json", "--arch", "first.json")
    assert done.status == 0, done.stderr
    assert json.loads(done.stdout)["latency_ms"] == table.cost(choices, "latency_ms")
    before = (run / "cost.json").read_bytes()
    finished = workspace.supernet()  # the same command again
    assert finished.status == 0, finished.stderr
    assert (run / "cost.json").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--shrink", 27), "--shrink 27: "),
        (("--shrink-drop", 2), "--shrink-drop: needs --shrink"),
        (("--shrink", 4, "--shrink-epochs", "9:1"), "--shrink-epochs 9:1: the first stage"),
    ],
)
def test_wrong_flags_end_before_training(workspace, words, message):
    finished = workspace.supernet(*words, run="wrong")
    assert finished.status == 2 and message in finished.stderr
    assert not (workspace.folder / "wrong" / "checkpoints").exists()
