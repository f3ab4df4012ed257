"""`python -m spos rank` on a trained tiny supernet."""

import itertools
import json
import shutil

import pytest
from commands import OPTIONS
from tiny_space import TINY

from spos.__main__ import main
from spos.errors import ArchitectureError, ConfigError
from spos.spaces import SPACES

NAMES = ("layer_1", "layer_2", "layer_3")


@pytest.fixture
def truth(workspace, monkeypatch):
    """Own "true" accuracies of all 27 architectures; the working directory is theirs."""
    monkeypatch.chdir(workspace.folder)
    entries = [
        {"choices": dict(zip(NAMES, sizes, strict=True)), "top1": number / 27}
        for number, sizes in enumerate(itertools.product(("k1", "k3", "k5"), repeat=3))
    ]
    path = workspace.folder / "truth.json"
    path.write_text(json.dumps(entries))
    return path


def rank(*words):
    return main(["rank", "--run-dir", "supernet", "--truth", "truth.json", "--space",
                 "tiny_space:TinySpace", "--device", "cpu", "--workers", "0", *words])  # fmt: skip


def test_scores_are_the_testers_and_a_second_run_evaluates_nothing(
    truth, workspace, capsys, one_thread
):
    assert rank("--count", "6", "--json", "--plot", "rank.png") == 0
    first = json.loads(capsys.readouterr().out)
    assert first["num_architectures"] == 6
    assert -1 <= first["kendall_tau"] <= 1
    assert (workspace.folder / "rank.png").read_bytes().startswith(b"\x89PNG")
    journal = workspace.folder / "supernet" / "evaluations.jsonl"
    lines = journal.read_text().splitlines()
    assert len(lines) == 6
    assert rank("--count", "6", "--json") == 0
    assert json.loads(capsys.readouterr().out) == first
    assert journal.read_text().splitlines() == lines

    entry = json.loads(lines[0])
    arch = workspace.folder / "one.json"
    arch.write_text(json.dumps(entry["choices"]))
    found = json.loads(workspace.tester("--arch", "one.json", "--json").stdout)
    assert found["top1"] == entry["result"]["top1"]


def test_bad_flags_are_refused(truth, workspace, capsys):
    with pytest.raises(SystemExit):
        rank("--count", "0")
    assert "--count: expected 1 or more, found 0" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="missing.json"):
        rank("--truth", "missing.json")
    with pytest.raises(ConfigError, match="rank.xyz"):
        rank("--count", "6", "--plot", "rank.xyz")


def write_training(workspace, name, sizes, *, top1, **config):
    """The finished run of scratch.py, as if it had trained another architecture; its folder."""
    folder = workspace.folder / "trained" / name
    folder.mkdir(parents=True)
    settings = json.loads((workspace.folder / "scratch" / "args.json").read_text())
    settings["config"] |= {"choices": dict(zip(NAMES, sizes, strict=True)), **config}
    (folder / "args.json").write_text(json.dumps(settings))
    end = {"step": 1, "val/top1": 0.5}
    if top1 is not None:
        kind = "held_out" if "held_out" in config else "test"
        end[f"{kind}/top1"] = top1
    (folder / "metrics.jsonl").write_text(json.dumps(end) + "\n")
    return folder


def test_trainings_from_scratch_are_a_truth(truth, workspace, capsys, one_thread):
    for name, sizes, top1 in (
        ("1", ("k1", "k3", "k5"), 0.5),
        ("2", ("k3", "k3", "k5"), 0.7),
        ("3", ("k5", "k1", "k1"), 0.6),
        ("3-again", ("k5", "k1", "k1"), 0.9),  # their mean is the best
        ("begun", ("k1", "k1", "k1"), None),
    ):
        write_training(workspace, name, sizes, top1=top1)
    with (workspace.folder / "trained" / "begun" / "metrics.jsonl").open("a") as file:
        file.write("damaged\n")
    dropout = {"options": {**OPTIONS, "dropout": 0.5}}  # which only training has
    write_training(workspace, "2-again", ("k3", "k3", "k5"), top1=0.7, **dropout)
    shutil.copytree(workspace.folder / "supernet", workspace.folder / "trained" / "supernet")
    assert rank("--truth", "trained", "--json") == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert (found["num_architectures"], found["best"]) == (3, pytest.approx(0.75))
    assert "trained/begun: is not finished and left out" in printed.err
    assert "trained/begun/metrics.jsonl, line 2: not valid JSON" in printed.err
    assert "trained/supernet" not in printed.err
    assert found["best_found"] in [pytest.approx(each) for each in (0.5, 0.7, 0.75)]


def test_trainings_of_an_own_space_are_a_truth_for_a_command_alone(
    truth, workspace, monkeypatch, one_thread
):
    for number, size in enumerate(("k1", "k3", "k5")):
        write_training(workspace, str(number), (size, "k3", "k5"), top1=number / 10)
    monkeypatch.delitem(SPACES, TINY, raising=False)  # as in a new process
    assert rank("--truth", "trained") == 0


def test_trainings_that_are_no_truth_are_refused(truth, workspace):
    folder = workspace.folder / "trained"
    folder.mkdir()
    with pytest.raises(ConfigError, match="trained: holds no finished run of scratch.py"):
        rank("--truth", "trained")
    write_training(workspace, "1", ("k1", "k3", "k5"), top1=0.5)
    write_training(workspace, "2", ("k3", "k3", "k5"), top1=0.5, held_out=9)
    with pytest.raises(ConfigError, match="trained/1 on test ones and trained/2 on held-out ones"):
        rank("--truth", "trained")
    shutil.rmtree(folder)
    for name, size, num_test in (("1", "k1", 15), ("2", "k3", 300)):
        write_training(workspace, name, (size, "k3", "k5"), top1=0.5, num_test=num_test)
    with pytest.raises(ConfigError, match="trained/1 on test ones and trained/2 on test ones"):
        rank("--truth", "trained")
    shutil.rmtree(folder)
    for name, size, split in (("1", "k1", "first"), ("2", "k3", "second")):
        write_training(workspace, name, (size, "k3", "k5"), top1=0.5, held_out=9, split=split)
    with pytest.raises(ConfigError, match="trained/1 on held-out ones and trained/2 on held-out"):
        rank("--truth", "trained")
    other = {"image_size": 16, "num_classes": 3}
    write_training(workspace, "0", ("k1", "k1", "k5"), top1=0.5, options=other)
    with pytest.raises(ConfigError, match=r"trained/0: is another network .*image_size"):
        rank("--truth", "trained")
    # Its labels and candidates are the same.
    write_training(workspace, "-1", ("k1", "k1", "k5"), top1=0.5, space="tiny_space:Other")
    with pytest.raises(ArchitectureError, match="trained/-1: .*tiny_space:Other', expected"):
        rank("--truth", "trained")
