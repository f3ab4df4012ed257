"""`python -m spos rank` on a trained tiny supernet."""

import itertools
import json

import pytest

from spos.__main__ import main
from spos.errors import ConfigError

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
