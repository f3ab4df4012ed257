"""A folder with its own HOME for one real NNI experiment whose trials are `toy_trial.py`."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import yaml

from spos.search.launch import list_experiments, wait_until_gone
from spos.search.nni_server import NniServer
from spos.search.results import read_entries

TOY = Path(__file__).with_name("toy_trial.py")
LIMIT = 5200  # of the toy space's macs


class Lab:
    """A folder with its own HOME, an experiment in it, and every process of it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = {**os.environ, "HOME": str(folder), "NNI_FRAMEWORK": "none"}
        self.environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.server = NniServer(self.port)
        self.begun: list[subprocess.Popen] = []
        shutil.copy(TOY, folder)

    def configure(self, *, trial="", concurrency=1, trial_seconds=None, service=None, **arguments):
        """Write config.yml: flags of the trial, ``maxTrialDuration``, arguments of the tuner."""
        num_planned = arguments["rounds"] * arguments["population"]
        config = {
            "searchSpaceFile": "space.json",
            "trialCommand": f"exec python toy_trial.py --folder {self.folder} {trial}",
            "trialCodeDirectory": ".",
            "trialConcurrency": concurrency,
            "maxTrialNumber": 2 * num_planned,
            "tuner": {
                "className": "spos.search.tuner.SearchTuner",
                "codeDirectory": ".",
                "classArgs": {"constraints": {"macs": [0, LIMIT]}, **arguments},
            },
            "trainingService": {"platform": "local", **(service or {})},
        }
        if trial_seconds:
            config["maxTrialDuration"] = f"{trial_seconds}s"
        (self.folder / "config.yml").write_text(yaml.safe_dump(config))

    def begin(self, *command) -> subprocess.Popen:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.begun.append(process)
        return process

    def run(self, *command) -> subprocess.CompletedProcess:
        process = self.begin(*command)
        out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def search(self, action, *flags) -> subprocess.Popen:
        command = [sys.executable, "-m", "spos", "search", action, *flags, "--port", self.port]
        return self.begin(*command)

    @property
    def log(self) -> Path:
        (known,) = self.experiments
        return known.folder / "log"

    @property
    def experiments(self):
        return list_experiments(self.folder / "nni-experiments")

    def entries(self):
        return read_entries(self.log) if self.experiments else []

    def evaluated(self) -> Counter:
        """How often each architecture's evaluation began."""
        return Counter((self.folder / "trials.log").read_text().splitlines())

    def running_trial(self) -> tuple[str, psutil.Process] | None:
        """The architecture whose evaluation began last, and the trial that is at it."""
        begun = (self.folder / "trials.log").read_text().split()
        finished = {each.id for each in self.entries()}
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                is_trial = "NNI_TRIAL_JOB_ID" in process.environ()
                if is_trial and TOY.name in process.cmdline()[1] and begun[-1] not in finished:
                    return begun[-1], process
        return None

    def processes(self) -> list[psutil.Process]:
        """Whatever runs with this HOME, or one below it."""
        found = []
        for process in psutil.process_iter():
            try:
                if is_below(process.environ().get("HOME"), self.folder):
                    found.append(process)
            except psutil.Error:  # it ended, or is not ours
                continue
        return found

    def end(self):
        """Kill whatever is left."""
        self.kill_everything()
        for process in self.begun:
            if process.stdout and not process.stdout.closed:
                process.communicate()

    def kill_everything(self):
        for process in self.processes():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
            wait_until_gone(process.pid, 10)


def is_below(home: str | None, folder: Path) -> bool:
    return home is not None and (Path(home) == folder or folder in Path(home).parents)


def wait_for(condition, *, seconds=60, what="it"):
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at, f"waited for {what} in vain"
        time.sleep(0.2)
