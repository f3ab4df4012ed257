"""Runs one search through a real NNI experiment and notes when each candidate's result came in.

Imports `spos.files`; the search itself is `python -m spos search start` in a process of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spos.files import read_journal, write_json

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Finished:
    """What a search came to.

    Attributes:
        times: of each result's arrival, monotonic seconds.
        entries: the lines of its ``search.jsonl``.
        num_trials: that NNI ran; more than candidates if a result was lost and tried again.
    """

    times: list[float]
    entries: list[dict]
    num_trials: int

    def per_minute(self) -> float:
        """Candidates a minute from the first result on, so that what starts once is left out."""
        return 60 * (len(self.times) - 1) / (self.times[-1] - self.times[0])


def run_search(
    folder: Path, trial_command: Sequence[str], *, candidates: int, concurrency: int, seed: int,
    searcher: str = "evolution", rounds: int = 1,
) -> Finished:  # fmt: skip
    """Search in ``folder``, which is emptied, until ``candidates`` have a result.

    Raises:
        SystemExit: with the search's output, if it fails.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = {
        "searchSpaceFile": "space.json",
        "trialCommand": "exec " + " ".join(trial_command),
        "trialCodeDirectory": str(ROOT),
        "trialConcurrency": concurrency,
        "maxTrialNumber": 2 * candidates,
        "tuner": {
            "className": "spos.search.tuner.SearchTuner",
            "codeDirectory": ".",
            "classArgs": {
                "searcher": searcher, "rounds": rounds, "population": candidates // rounds,
                "seed": seed, **({"sorts_rounds": True} if searcher == "evolution" else {}),
            },
        },
        "trainingService": {"platform": "local"},
    }  # fmt: skip
    write_json(folder / "config.yml", config)  # JSON is YAML
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "spos", "search", "start", "--config", folder / "config.yml",
        "--experiments-dir", folder / "experiments", "--port", port,
    ]  # fmt: skip
    environment = {**os.environ, "HOME": str(folder), "PYTHONPATH": _python_path()}
    with open(folder / "output.txt", "wb") as output:
        process = subprocess.Popen([str(word) for word in command], env=environment, cwd=ROOT,
                                   stdout=output, stderr=output)  # fmt: skip
        times: list[float] = []
        while process.poll() is None:
            for journal in folder.glob("experiments/[!_]*/log/search.jsonl"):
                times += [time.monotonic()] * (journal.read_bytes().count(b"\n") - len(times))
            time.sleep(0.02)
    if process.returncode:
        sys.exit((folder / "output.txt").read_text())
    (journal,) = folder.glob("experiments/[!_]*/log/search.jsonl")
    trials = folder.glob("experiments/[!_]*/environments/local-env/trials/*")
    return Finished(times, read_journal(journal), len(list(trials)))


def make_run(
    work_dir: Path, data_dir: Path, *, image_size: int, calibration: int, validation: int,
    device: str = "cpu", output_stride: int = 32,
) -> Path:  # fmt: skip
    """A supernet's run folder with untrained weights, which take as long as trained ones."""
    folder = work_dir / f"supernet_{image_size}_{output_stride}_{calibration}_{validation}"
    if (folder / "args.json").exists():
        return folder
    num_classes = len([each for each in (data_dir / "train").iterdir() if each.is_dir()])
    command = [
        sys.executable, ROOT / "supernet.py", "--run-dir", folder, "--data-dir", data_dir,
        "--image-size", image_size, "--held-out-per-class", validation // num_classes,
        "--calibration-images", calibration, "--epochs", 0, "--val-paths", 0, "--device", device,
        "--space-options", json.dumps({"output_stride": output_stride}),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": _python_path()}
    subprocess.run([str(word) for word in command], env=environment, check=True)
    return folder


def read_evaluation_seconds(run_dir: Path) -> list[float]:
    """Seconds of each evaluation, as the evaluators of a run folder have logged them."""
    return [
        float(line.split()[-2])
        for path in sorted(run_dir.glob("evaluator/*.log"))
        for line in path.read_text().splitlines()
        if line.startswith("top-1 ")
    ]


def count_choices(entries: Sequence[dict]) -> int:
    """How many different candidates a search has scored."""
    return len({json.dumps(each["choices"]) for each in entries if each["score"] is not None})


def _python_path() -> str:
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
