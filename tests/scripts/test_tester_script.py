"""tester.py: the search space for NNI, and scores that are the same whoever asks."""

import argparse
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
import yaml
from commands import COMMON, OPTIONS
from forked import ROOT, run_script
from tiny_space import TINY

from spos.__main__ import main
from spos.architecture import Architecture, save_architecture
from spos.cost.table import CostTable
from spos.errors import ArchitectureError, CheckpointError, ConfigError, SearchError
from spos.evaluation.accuracy import Accuracy, check_finite
from spos.evaluation.build import open_supernet_run
from spos.evaluation.candidates import Candidates
from spos.evaluation.settings import EvaluationSettings
from spos.files import read_json, write_json
from spos.training.checkpoint import latest_checkpoint, save_checkpoint

OTHERS = (("k1", "k1", "k1"), ("k5", "k3", "k5"), ("k3", "k5", "k1"))


def write_archs(folder) -> list[str]:
    """Architecture files in our format and, the second, as a sample of NNI 3."""
    spec = open_supernet_run(folder / "supernet").spec
    names = []
    for number, sizes in enumerate(OTHERS):
        choices = dict(zip(spec.choices, sizes, strict=True))
        names.append(f"other_{number}.json")
        if number == 1:
            (folder / names[-1]).write_text(json.dumps(choices))
        else:
            save_architecture(folder / names[-1], Architecture(spec.space, spec.options, choices))
    return names


def results(finished) -> list[dict]:
    assert finished.status == 0, finished.stderr
    return [json.loads(line) for line in finished.stdout.splitlines()]


@pytest.fixture(scope="module")
def scores(trained):
    """Results of three architectures, evaluated by one process in this order."""
    names = write_archs(trained.folder)
    return dict(zip(names, results(trained.tester("--json", "--arch", *names)), strict=True))


def test_optimizers_of_other_libraries_get_the_testers_scores(
    workspace, scores, monkeypatch, tiny_spaces, one_thread
):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```python\n([^`]*def make_objective[^`]*)```", text)
    names: dict = {}
    exec(shown, names)
    monkeypatch.chdir(workspace.folder)
    objective = names["make_objective"]("supernet")
    for sizes, name in zip(OTHERS, scores, strict=True):
        given = dict(zip(("layer_1", "layer_2", "layer_3"), sizes, strict=True))

        def suggest(label, each, given=given):
            assert given[label] in each
            return given[label]

        found = objective(argparse.Namespace(suggest_categorical=suggest))
        assert found == scores[name]["top1"]


# --- the search space for NNI --------------------------------------------------------------------


def test_search_space_is_written_as_nni_wants_it(trained, tmp_path):
    target = tmp_path / "nni_auto_gen_search_space.json"
    done = subprocess.run(
        [sys.executable, str(ROOT / "tester.py"), "--run-dir", "supernet"],
        cwd=trained.folder,
        env={**os.environ, "NNI_GEN_SEARCH_SPACE": str(target)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    layer = {"_type": "choice", "_value": ["k1", "k3", "k5"]}
    assert read_json(target) == {f"layer_{number}": layer for number in (1, 2, 3)}
    written, known = read_json(tmp_path / "cost.json"), trained.folder / "supernet" / "cost.json"
    (paths,) = written.pop("trained").items()  # as the search asks
    low, high = CostTable.load(known).bounds()
    assert paths[0] == "macs" and low <= paths[1][0] < paths[1][1] <= high
    assert written == read_json(known)
    assert "27 architectures" in done.stderr and done.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cost.json", target.name]


def test_search_space_needs_neither_the_images_nor_the_space(workspace, tmp_path):
    shutil.rmtree(workspace.folder / "data")
    target = tmp_path / "space.json"
    words = ("--run-dir", "supernet")
    environment = {"NNI_GEN_SEARCH_SPACE": str(target)}
    finished = run_script("tester.py", *words, folder=workspace.folder, env=environment)
    assert finished.status == 0, finished.stderr
    assert len(read_json(target)) == 3


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("data", ("data", "is not there", "args.json", "--data-dir")),
        ("supernet/checkpoints", ("has no checkpoint yet", "train the supernet first")),
        ("supernet/split.json", ("split.json",)),
    ],
)
def test_a_search_that_would_run_here_is_refused_where_its_trials_would_fail(
    workspace, tmp_path, lost, message
):
    path, target = workspace.folder / lost, tmp_path / "space.json"
    environment = {"NNI_GEN_SEARCH_SPACE": str(target), "SPOS_CHECK_TRIALS": "1"}
    words = ("tester.py", "--run-dir", "supernet")
    settings = read_json(workspace.folder / "supernet" / "args.json")
    settings["runtime"]["data_dir"] = str(workspace.folder / "data")
    write_json(workspace.folder / "supernet" / "args.json", settings)
    assert run_script(*words, folder=workspace.folder, env=environment).status == 0
    target.unlink()
    path.rename(tmp_path / "elsewhere")
    finished = run_script(*words, folder=workspace.folder, env=environment)
    assert finished.status == 2 and "Traceback" not in finished.stderr, finished.stderr
    assert all(each in finished.stderr for each in message), finished.stderr
    assert not target.exists()


# --- scores ------------------------------------------------------------------------------------


def test_result_holds_accuracy_cost_and_architecture(trained, scores):
    table = CostTable.load(trained.folder / "supernet" / "cost.json")
    for (_, result), sizes in zip(scores.items(), OTHERS, strict=True):
        assert list(result["arch"].values()) == list(sizes)
        assert result["macs"] == table.cost(result["arch"], "macs")
        assert result["params"] == table.cost(result["arch"], "params")
        assert 0 <= result["top1"] <= result["top5"] == 1
        assert result["loss"] > 0
        assert 0 <= result["top1_uncalibrated"] <= 1
    assert len({result["loss"] for result in scores.values()}) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_second_evaluation_is_the_same_to_the_bit(trained, scores, workers):
    for name, result in list(scores.items())[1:]:
        again = trained.tester("--json", "--arch", name, "--workers", workers)
        assert results(again) == [result]


def test_order_of_the_candidates_does_not_matter(trained, scores):
    names = list(scores)[::-1]
    again = results(trained.tester("--json", "--arch", *names, names[0]))
    assert again == [scores[name] for name in (*names, names[0])]


def test_figures_are_printed_for_people(trained, scores):
    name = next(iter(scores))
    finished = trained.tester("--arch", name)
    assert finished.status == 0, finished.stderr
    lines = finished.stdout.splitlines()
    assert lines[0] == name
    assert f"top1              {scores[name]['top1']:.4f}" in lines[1]
    assert f"macs              {scores[name]['macs']:,}" in finished.stdout


def test_evaluation_leaves_the_run_as_it_was(workspace):
    run = workspace.folder / "supernet"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert workspace.tester("--arch", "arch.json").status == 0
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_images_may_have_moved(workspace, scores):
    os.rename(workspace.folder / "data", workspace.folder / "moved")
    name = next(iter(scores))
    shutil.copy(workspace.folder / "other_0.json", workspace.folder / "copy.json")
    again = workspace.tester("--json", "--data-dir", "moved", "--arch", "copy.json")
    assert results(again) == [scores[name]]


@pytest.mark.parametrize(
    "options", [{}, {"image_size": 8}, {"image_size": 8, "num_classes": 3, "dropout": 0.5}]
)
def test_options_that_make_the_same_network_do_not_matter(workspace, scores, options):
    arch = read_json(workspace.folder / "other_0.json")
    (workspace.folder / "same.json").write_text(json.dumps({**arch, "options": options}))
    again = workspace.tester("--json", "--arch", "same.json")
    assert results(again) == [scores["other_0.json"]]


def test_result_that_cannot_be_kept_counts_all_the_same(workspace, monkeypatch, caplog):
    def refuse(path, _):
        raise OSError(28, "No space left on device", str(path))

    run_dir = workspace.folder / "supernet"
    candidates = Candidates(EvaluationSettings(run_dir, space=TINY, device="cpu", workers=0))
    choices = {"layer_1": "k5", "layer_2": "k5", "layer_3": "k5"}
    monkeypatch.setattr("spos.evaluation.results.append_journal", refuse)
    result = candidates.score(choices)
    assert "evaluations.jsonl: cannot be written (No space left on device)" in caplog.text
    assert not (run_dir / "evaluations.jsonl").exists()
    monkeypatch.undo()
    assert candidates.score(choices) == result
    assert len((run_dir / "evaluations.jsonl").read_text().splitlines()) == 1


@dataclass
class ReportedTrial:
    """Stands for NNI's: keeps what is reported, with what the trial says of its supernet."""

    parameters: dict
    supernet: dict | None = None
    reports: list = field(default_factory=list)

    def report_intermediate(self, _):
        pass

    def report_final(self, value):
        self.reports.append((value["top1"], self.supernet))

    def report_failure(self, reason):
        self.reports.append((reason, self.supernet))


def test_trial_says_which_supernet_it_evaluates_with(workspace, monkeypatch):
    choices = {"layer_1": "k1", "layer_2": "k1", "layer_3": "k1"}
    trials = [ReportedTrial(choices), ReportedTrial({**choices, "layer_3": "k9"})]
    waiting = iter(trials)
    monkeypatch.setattr("spos.search.trial.start_trial", lambda: next(waiting))
    monkeypatch.chdir(workspace.folder)
    words = ["--run-dir", "supernet", *COMMON, "--idle-seconds", "0"]
    monkeypatch.setattr(sys, "argv", ["tester.py", *words])
    tester = runpy.run_path(str(ROOT / "tester.py"))
    tester["main"]()
    with pytest.raises(ArchitectureError):
        tester["main"]()
    expected = {"space": TINY, "options": OPTIONS}
    ((top1, supernet),), ((reason, same),) = (each.reports for each in trials)
    assert 0 <= top1 <= 1 and "layer_3 is 'k9'" in reason and supernet == same == expected


def test_search_by_the_costs_of_another_supernet_stops(workspace, monkeypatch):
    monkeypatch.chdir(workspace.folder)
    stale = read_json("supernet/cost.json")
    stale["options"]["image_size"] = 16
    write_json("stale.json", stale)
    tuner = {
        "className": "spos.search.tuner.RandomTuner",
        "classArgs": {"cost_table": "stale.json"},
    }
    Path("config.yml").write_text(yaml.safe_dump({"tuner": tuner}))
    words = ["--config", "config.yml", "--run-dir", "supernet", "--output-dir", "out", *COMMON]
    with pytest.raises(SearchError, match="image_size is 8, expected 16.*nnictl ss_gen"):
        main(["search", "run", *words])
    assert not Path("out/search.jsonl").exists()


# --- what is not evaluated -----------------------------------------------------------------------


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_network_that_overflows_has_no_accuracy(loss):
    accuracy = Accuracy(top1=0.5, top5=1.0, loss=loss, num_images=10)
    with pytest.raises(CheckpointError, match=f"loss on these images is {loss}"):
        check_finite(accuracy)
    assert check_finite(replace(accuracy, loss=0.5)).top1 == 0.5


def test_overflowing_weights_are_a_clear_error(workspace):
    spoil_weights(workspace.folder / "supernet" / "checkpoints")
    finished = workspace.tester("--json", "--arch", "arch.json")
    assert finished.status == 2 and finished.stdout == ""
    assert "loss on these images is nan" in finished.stderr.splitlines()[-1]


def spoil_weights(folder):
    """Make the newest checkpoint's classifier NaN, as training that diverged does."""
    _, path = latest_checkpoint(folder)
    state = torch.load(path, weights_only=True)
    state["network"]["classifier.weight"].fill_(float("nan"))
    for each in (path, path.with_suffix(".json")):
        each.unlink()
    save_checkpoint(folder, int(path.stem.split("_")[1]), state)


def test_constraint_is_for_trials(trained):
    finished = trained.tester("--constraint", "macs=0:330M", "--arch", "arch.json")
    assert finished.status == 2 and "--constraint is for trials" in finished.stderr


def test_constraint_that_leaves_nothing_trained_is_refused(workspace, tmp_path):
    args = workspace.folder / "supernet" / "args.json"
    low, high = CostTable.load(args.with_name("cost.json")).bounds()
    settings = read_json(args)
    settings["config"]["path_range"] = [f"macs={low}:{(low + high) // 2 - 1}"]
    args.write_text(json.dumps(settings))
    environment = {"NNI_GEN_SEARCH_SPACE": str(tmp_path / "space.json")}
    finished = workspace.tester("--constraint", f"macs={(low + high) // 2}:", env=environment)
    assert finished.status == 2 and "the search is limited to macs=" in finished.stderr
    assert not list(tmp_path.glob("*.json"))
    finished = workspace.tester("--constraint", f"macs=:{high}", env=environment)
    assert finished.status == 0 and "excludes nothing" in finished.stderr


@pytest.mark.parametrize("given", ["macs", "=3", "macs=9:1", "macs=much", "macs=1:2"])
def test_wrong_constraint_is_found_with_the_search_space(trained, tmp_path, given):
    environment = {"NNI_GEN_SEARCH_SPACE": str(tmp_path / "space.json")}
    finished = trained.tester("--constraint", given, env=environment)
    assert finished.status == 2 and finished.stderr.startswith("error: ")
    assert "macs" in finished.stderr or "METRIC" in finished.stderr
    assert not list(tmp_path.iterdir())


def test_trial_with_limits_says_what_makes_the_missing_run(tmp_path):
    tester = runpy.run_path(str(ROOT / "tester.py"))
    args = argparse.Namespace(constraint=["macs=:330M"], run_dir=tmp_path / "gone")
    with pytest.raises(
        ConfigError, match="gone: is not a run folder .*python supernet.py --run-dir"
    ):
        tester["refuse"](args, None)
