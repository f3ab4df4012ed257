"""supernet.py: what it leaves for the search, and that nothing can stop it from getting there."""

import argparse
import json
import os
import random
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from forked import PATIENCE, ROOT, Script, run_script, wait_until
from run_contents import assert_identical, read_run
from tiny_space import TINY

from spos.architecture import SearchSpec
from spos.cost.constraints import Constraint, parse_constraints
from spos.cost.table import CostTable, Term
from spos.data.folder import scan_folder
from spos.data.split import apply_split, load_split
from spos.evaluation.build import open_supernet_run
from spos.files import read_json
from spos.training.checkpoint import latest_checkpoint
from spos.training.recipe import PRESETS

LONG = ("--epochs", 24, "--val-every", 6, "--val-paths", 1, "--warmup-epochs", 1, "--lr", 0.05)
KILLS = 5


def newest_step(run: Path) -> int:
    marks = [int(path.stem[5:]) for path in (run / "checkpoints").glob("step_*.json")]
    return max(marks, default=0)


@pytest.fixture(scope="module")
def uninterrupted(trained):
    finished = trained.supernet(*LONG, run="long")
    assert finished.status == 0, finished.stderr
    return read_run(trained.folder / "long")


# --- what it leaves ------------------------------------------------------------------------------


def test_run_folder_holds_what_the_search_needs(trained):
    run = trained.folder / "supernet"
    assert sorted(path.name for path in run.iterdir()) == [
        ".lock", "args.json", "checkpoints", "cost.json", "log.txt", "metrics.jsonl", "split.json",
        "tb",
    ]  # fmt: skip
    opened = open_supernet_run(run)
    assert opened.spec.options == {"image_size": 8, "num_classes": 3}
    assert list(opened.spec.choices) == ["layer_1", "layer_2", "layer_3"]
    assert opened.table.bounds("macs") == CostTable.load(run / "cost.json").bounds("macs")
    assert opened.checkpoint() == run / "checkpoints" / "step_00000018.pt"
    config = opened.settings.config
    assert (config["epochs"], config["batch_size"], config["num_train"]) == (3, 6, 48)
    assert config["classes"] == ["class_0", "class_1", "class_2"]
    images = scan_folder(trained.folder / "data" / "train")
    training, held_out = apply_split(images, load_split(run / "split.json"))
    assert (len(training), len(held_out)) == (36, 12)
    assert [held_out.labels.count(label) for label in range(3)] == [4, 4, 4]


def test_metrics_tell_the_spread_of_the_sampled_paths(trained, uninterrupted):
    run = read_run(trained.folder / "supernet")
    assert run.steps() == [(step, kind) for step in (6, 12, 18) for kind in ("train", "val")]
    for line in run.measured():
        assert 0 <= line["val/top1_worst"] <= line["val/top1"] <= line["val/top1_best"] <= 1
        assert line["val/loss"] > 0
    assert uninterrupted.measured()[-1]["val/top1"] > 0.6  # of three colours


def test_repeated_command_of_a_finished_run_changes_nothing(workspace):
    run = workspace.folder / "supernet"
    kept = ("split.json", "cost.json", "metrics.jsonl", "checkpoints/step_00000018.pt")
    before = {name: (run / name).read_bytes() for name in kept}
    settings = read_json(run / "args.json")
    finished = workspace.supernet()
    assert finished.status == 0, finished.stderr
    assert "continuing supernet after step 18 of 18" in finished.stderr
    search = f"python -m spos search start --run-dir supernet --space {TINY}"
    assert finished.stderr.endswith(f"done: supernet; next: {search}\n")
    assert {name: (run / name).read_bytes() for name in kept} == before
    settings["runtime"]["data_dir"] = str((workspace.folder / "data").resolve())  # this copy's
    assert read_json(run / "args.json") == settings


@pytest.mark.parametrize(
    ("sampler", "limit"), [("uniform", "macs=400M:1G"), ("constrained", "macs=400M:500M")]
)
def test_search_of_a_space_beyond_the_usual_limit_is_given_another(tmp_path, sampler, limit):
    spec = SearchSpec("large", {}, {"layer_1": ("k3", "k5", "k7")})
    costs = {"macs": (0, 10**8, 6 * 10**8)}
    CostTable(spec, {"macs": 4 * 10**8}, [Term(("layer_1",), costs)]).save(tmp_path / "cost.json")
    args = argparse.Namespace(run_dir=tmp_path, space="large")
    numbers = {"seed": 0, "num_train": 9, "held_out": 0, "batch_size": 1, "epochs": 1}
    config = {"sampler": sampler, **numbers}
    if sampler == "constrained":
        config["path_range"] = ["macs=300M:500M"]
    script = runpy.run_path(str(ROOT / "supernet.py"))
    command = script["search_command"](args, config)
    assert command == f"python -m spos search start --run-dir {tmp_path} --constraint {limit}"
    config = yaml.safe_load((ROOT / "config_search.yml").read_text())
    usual = parse_constraints(config["tuner"]["classArgs"]["constraints"])
    assert usual == (Constraint("macs", 0, script["SEARCH_LIMIT"]),)


def test_split_beside_the_data_is_used(workspace):
    done = run_script("supernet.py", "--help", folder=workspace.folder)
    assert done.status == 0 and "--held-out-per-class" in done.stdout
    split = (workspace.folder / "supernet" / "split.json").read_bytes()
    (workspace.folder / "data" / "split.json").write_bytes(split)
    finished = workspace.supernet("--held-out-per-class", 1, "--epochs", 1, run="other")
    assert finished.status == 0, finished.stderr
    assert (workspace.folder / "other" / "split.json").read_bytes() == split


def test_classes_too_small_for_the_default_hold_out_a_fifth(workspace):
    words = ("--space", TINY, "--device", "cpu", "--workers", 0, "--epochs", 0, "--val-paths", 0)
    for _ in ("made", "continued"):
        done = run_script("supernet.py", "--data-dir", "data", "--run-dir", "small", *words,
                          folder=workspace.folder)  # fmt: skip
        assert done.status == 0, done.stderr
        assert "held out of each class: 3 images, a fifth of the smallest" in done.stderr
    assert len(load_split(workspace.folder / "small" / "split.json").held_out) == 9


@pytest.mark.parametrize("depths", [None, [1, 1, 1, 1]])
def test_space_has_what_suits_the_images_but_for_what_is_asked(tmp_path, depths):
    given = ("--space-options", json.dumps({"stage_depths": depths})) if depths else ()
    done = run_script("supernet.py", "--run-dir", "run", "--device", "cpu",
                      "--epochs", 0, "--val-paths", 0, *given, folder=tmp_path)  # fmt: skip
    assert done.status == 0, done.stderr
    usual = PRESETS["digits"].space_options["shufflenetv2"]["stage_depths"]
    spec = CostTable.load(tmp_path / "run" / "cost.json").spec
    assert spec.options["stage_depths"] == (depths or usual)
    assert len(spec.choices) == sum(depths or usual) < 20
    if depths:  # weights keep the depths that they are of
        done = run_script("supernet.py", "--run-dir", "on", "--device", "cpu", "--weights", "run",
                          "--epochs", 0, "--val-paths", 0, folder=tmp_path)  # fmt: skip
        assert done.status == 0, done.stderr
        assert CostTable.load(tmp_path / "on" / "cost.json").spec == spec


# --- stopped, killed -----------------------------------------------------------------------------


@pytest.mark.slow
def test_terminated_run_continues_to_the_same_weights(trained, uninterrupted):
    run = trained.folder / "terminated"
    words = trained.supernet_words("terminated", *LONG, "--workers", 2)
    script = Script("supernet.py", *words, folder=trained.folder)
    wait_until(lambda: newest_step(run) >= 12, running=script.process)
    sent = time.monotonic()
    script.send(signal.SIGTERM)
    finished = script.wait()
    assert finished.status == 143, finished.stderr
    assert time.monotonic() - sent < 15
    assert "stopped by a signal after step" in finished.stderr
    stopped_at, _ = latest_checkpoint(run / "checkpoints")
    assert stopped_at < 144
    finished = run_script("supernet.py", *words, folder=trained.folder)
    assert finished.status == 0, finished.stderr
    assert f"after step {stopped_at} of 144" in finished.stderr
    resumed = read_run(run)
    assert_identical(resumed.state, uninterrupted.state)
    assert resumed.steps() == uninterrupted.steps()
    assert resumed.measured() == uninterrupted.measured()


@pytest.mark.slow
def test_run_killed_again_and_again_continues_to_the_same_weights(trained, uninterrupted):
    run = trained.folder / "killed"
    words = trained.supernet_words("killed", *LONG)
    rng = random.Random(0)
    for _ in range(KILLS):
        before = newest_step(run)
        script = Script("supernet.py", *words, folder=trained.folder)
        wait_until(lambda: newest_step(run) > before, running=script.process)  # noqa: B023
        time.sleep(rng.uniform(0, 0.03))
        script.send(signal.SIGKILL)
        assert script.wait().status == -signal.SIGKILL
    assert newest_step(run) < 144, "the run was over before the last kill"
    finished = run_script("supernet.py", *words, folder=trained.folder)
    assert finished.status == 0, finished.stderr
    resumed = read_run(run)
    assert_identical(resumed.state, uninterrupted.state)
    assert resumed.steps() == uninterrupted.steps()
    assert resumed.measured() == uninterrupted.measured()
    assert not list(run.rglob("*.tmp")) and not list(run.rglob("*.damaged"))


def test_damaged_newest_checkpoint_costs_one_interval(workspace, trained):
    run = workspace.folder / "supernet"
    os.truncate(run / "checkpoints" / "step_00000018.pt", 1_000)
    finished = workspace.supernet()
    assert finished.status == 0, finished.stderr
    assert finished.stderr.count("is damaged") == 1
    assert "continuing supernet after step 12 of 18" in finished.stderr
    original = read_run(trained.folder / "supernet")
    assert_identical(read_run(run).state, original.state)
    assert read_run(run).steps() == original.steps()


# --- torchrun ------------------------------------------------------------------------------------


def launch_two(trained, run, *words, flags=()) -> subprocess.Popen:
    """``torchrun`` with two processes of supernet.py."""
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone",
         *flags, str(ROOT / "supernet.py"), *map(str, trained.supernet_words(run, *words))],
        cwd=trained.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def find_rank(launched: subprocess.Popen, rank: int) -> psutil.Process:
    """The process of a rank that ``torchrun`` started."""
    children = psutil.Process(launched.pid).children()
    (found,) = (each for each in children if each.environ().get("RANK") == str(rank))
    return found


@pytest.mark.slow
def test_two_processes_train_the_weights_of_one(trained):
    plain = ("--space-options", '{"normalize": false, "dropout": 0}', "--epochs", 2)
    finished = trained.supernet(*plain, run="one")
    assert finished.status == 0, finished.stderr
    launched = launch_two(trained, "two", *plain)
    _, errors = launched.communicate()
    assert launched.returncode == 0, errors
    one, two = (read_run(trained.folder / name) for name in ("one", "two"))
    assert list(one.state["network"]) == list(two.state["network"])
    for name, tensor in one.state["network"].items():
        torch.testing.assert_close(two.state["network"][name], tensor, atol=1e-5, rtol=0)
    assert two.steps() == one.steps()
    assert two.measured()[-1]["val/top1"] == pytest.approx(one.measured()[-1]["val/top1"], abs=0.1)
    same = read_json(trained.folder / "one" / "args.json")["config"]
    assert read_json(trained.folder / "two" / "args.json")["config"] == same
    assert (trained.folder / "two" / "log.txt").read_text().count("training images") == 1


@pytest.mark.slow
def test_killed_rank_is_restarted_and_costs_no_exactness(trained):
    undisturbed = launch_two(trained, "undisturbed", *LONG)
    _, errors = undisturbed.communicate()
    assert undisturbed.returncode == 0, errors
    run = trained.folder / "rank-killed"
    launched = launch_two(trained, run, *LONG, flags=("--max-restarts", "1"))
    while newest_step(run) < 12:
        assert launched.poll() is None, launched.communicate()
        time.sleep(0.005)
    find_rank(launched, 1).kill()
    _, errors = launched.communicate(timeout=PATIENCE)
    assert launched.returncode == 0, errors
    assert "continuing" in (run / "log.txt").read_text()
    resumed, reference = read_run(run), read_run(trained.folder / "undisturbed")
    assert_identical(resumed.state, reference.state)
    assert resumed.steps() == reference.steps()


@pytest.mark.parametrize("command", ["supernet", "scratch"])
def test_run_is_continued_in_a_renamed_folder_of_images(workspace, command):
    folder = workspace.folder
    (folder / "data").rename(folder / "renamed")
    config = read_json(folder / command / "args.json")["config"]
    finished = getattr(workspace, command)("--data-dir", "renamed")
    assert finished.status == 0, finished.stderr
    settings = read_json(folder / command / "args.json")
    assert settings["config"] == config and config["data"] == "data"
    assert settings["runtime"]["data_dir"] == str((folder / "renamed").resolve())
    if command == "supernet":
        assert workspace.tester("--arch", "arch.json").status == 0
