"""Evaluators as trials start them: shared, killed, outdated, and as exact as an own process."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from forked import PATIENCE, ROOT, run_script
from held_space import HOLD, NAME
from tiny_space import write_data

from spos.evaluation.address import find_address, take_lock
from spos.evaluation.client import ask_evaluator
from spos.evaluation.settings import EvaluationSettings
from spos.files import read_json
from spos.search.launch import wait_until_gone

pytestmark = pytest.mark.slow

CHOICES = [
    {"layer_1": first, "layer_2": "k5", "layer_3": second}
    for first, second in (("k1", "k3"), ("k3", "k1"), ("k5", "k5"))
]
WORDS = ("--space", NAME, "--device", "cpu", "--workers", "0")
IDLE = 30.0


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with tiny images and a supernet trained on them; not to be changed."""
    folder = tmp_path_factory.mktemp("evaluator")
    write_data(folder / "data")
    words = (*WORDS, "--data-dir", "data", "--run-dir", "run", "--epochs", 1, "--image-size", 8,
             "--held-out-per-class", 4, "--batch-size", 6, "--calibration-images", 20,
             "--val-paths", 0)  # fmt: skip
    finished = run_script("supernet.py", *words, folder=folder, env={"PYTHONPATH": paths()})
    assert finished.status == 0, finished.stderr
    return folder


@pytest.fixture(scope="module")
def expected(trained) -> list[dict]:
    """The results of `CHOICES`, measured by a process of their own."""
    names = []
    for number, choices in enumerate(CHOICES):
        names.append(f"{number}.json")
        (trained / names[-1]).write_text(json.dumps(choices))
    words = ("--run-dir", "run", *WORDS, "--threads", 1, "--json", "--arch", *names)
    finished = run_script("tester.py", *words, folder=trained, env={"PYTHONPATH": paths()})
    assert finished.status == 0, finished.stderr
    lines = [json.loads(line) for line in finished.stdout.splitlines()]
    assert [line.pop("arch") for line in lines] == CHOICES
    assert all(0 <= line.pop("top1_uncalibrated") <= 1 for line in lines)  # by hand only
    return lines


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """Settings for a copy of the run; its evaluators are ended."""
    shutil.copytree(trained / "run", tmp_path / "run")
    monkeypatch.setenv("PYTHONPATH", paths())
    monkeypatch.setenv(HOLD, str(tmp_path / "hold"))
    settings = EvaluationSettings(
        tmp_path / "run", trained / "data", NAME, device="cpu", threads=1, workers=0
    )
    yield settings
    (tmp_path / "hold").unlink(missing_ok=True)
    with contextlib.suppress(Exception):
        kill(settings, signal.SIGTERM)


def paths() -> str:
    return os.pathsep.join(str(ROOT / each) for each in ("tests/evaluation", "tests", "."))


def ask(settings, choices) -> dict | None:
    return ask_evaluator(settings, choices, idle_seconds=IDLE, progress=lambda top1: None)


def process_of(settings) -> int:
    return read_json(find_address(settings).record)["pid"]


def kill(settings, number: signal.Signals) -> None:
    pid = process_of(settings)
    os.kill(pid, number)
    assert wait_until_gone(pid, 20)


def log_of(settings) -> str:
    return find_address(settings).log.read_text()


class Asker(threading.Thread):
    """A trial that waits for its answer."""

    def __init__(self, settings, choices):
        super().__init__(daemon=True)
        self.question, self.answer = (settings, choices), None
        self.start()

    def run(self):
        self.answer = ask(*self.question)

    def result(self):
        self.join(PATIENCE)
        assert not self.is_alive(), "no answer came"
        return self.answer


def test_evaluator_is_as_exact_as_a_process_of_its_own(run, expected):
    assert [ask(run, choices) for choices in CHOICES[::-1]] == expected[::-1]
    os.unlink(run.run_dir / "evaluations.jsonl")
    assert [ask(run, choices) for choices in CHOICES] == expected
    kept = (run.run_dir / "evaluations.jsonl").read_text().splitlines()
    assert [json.loads(line)["choices"] for line in kept] == CHOICES
    assert log_of(run).count("ready") == 1, log_of(run)
    (run.run_dir / "args.json").touch()  # the same bytes, but somebody wrote them
    before = process_of(run)
    assert ask(run, CHOICES[0]) == expected[0]
    assert process_of(run) != before and wait_until_gone(before, 20)


def test_trials_that_begin_at_once_share_one_evaluator(run, expected):
    askers = [Asker(run, choices) for choices in (*CHOICES, *CHOICES)]
    assert [each.result() for each in askers] == [*expected, *expected]
    assert log_of(run).count("ready") == 1, log_of(run)
    assert "error" not in log_of(run).lower()


def test_another_evaluator_takes_over_from_one_that_is_killed(run, expected):
    hold = Path(os.environ[HOLD])
    hold.touch()
    askers = [Asker(run, choices) for choices in CHOICES]
    deadline = time.monotonic() + PATIENCE
    while not hold.with_name("hold.reached").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    kill(run, signal.SIGKILL)  # in the middle of an evaluation, two more waiting
    hold.unlink()
    assert [each.result() for each in askers] == expected
    assert log_of(run).count("ready") == 2, log_of(run)


def test_new_checkpoint_is_never_answered_with_old_weights(run, trained, expected):
    assert ask(run, CHOICES[0]) == expected[0]
    before = process_of(run)
    os.unlink(run.run_dir / "evaluations.jsonl")
    for path in (run.run_dir / "checkpoints").iterdir():
        path.unlink()
    words = (*WORDS, "--data-dir", "data", "--run-dir", run.run_dir, "--epochs", 1, "--image-size",
             8, "--held-out-per-class", 4, "--batch-size", 6, "--calibration-images", 20,
             "--val-paths", 0)  # fmt: skip
    args = json.loads((run.run_dir / "args.json").read_text())
    assert run_script(
        "supernet.py", *words, "--seed", 5, "--run-dir", "other",
        folder=trained, env={"PYTHONPATH": paths()},
    ).status == 0  # fmt: skip
    shutil.copytree(trained / "other", run.run_dir, dirs_exist_ok=True)
    assert json.loads((run.run_dir / "args.json").read_text()) != args
    answer = ask(run, CHOICES[0])
    assert answer is not None and answer["loss"] != expected[0]["loss"]
    assert answer["macs"] == expected[0]["macs"]
    assert process_of(run) != before


def test_without_an_evaluator_none_is_had(run):
    (run.run_dir / "cost.json").write_text("{}")  # it cannot start
    assert ask(run, CHOICES[0]) is None
    assert "error: " in log_of(run)
    lock = take_lock(find_address(run))
    assert lock is not None, "a lock was left"
    os.close(lock)


def test_second_evaluator_by_hand_is_refused(run):
    lock = take_lock(find_address(run))
    assert lock is not None
    done = subprocess.run(
        [sys.executable, "-m", "spos", "evaluator", *run.flags()],
        capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    os.close(lock)
    assert done.returncode == 2 and "runs already" in done.stderr
