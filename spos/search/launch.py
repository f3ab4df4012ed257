"""Starting, resuming and stopping NNI safely: `nnictl` with our preload, around one experiment.

Imports the standard library and the rest of the search; never torch.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spos.errors import ConfigError, SearchError
from spos.files import read_json
from spos.search.nni_server import NniServer
from spos.search.results import JOURNAL, RUN_FOLDER, STATE_FILE

PRELOAD = Path(__file__).with_name("nni_preload.js")
RETRY_VARIABLE = "SPOS_RETRY_FAILED"  # "1": the tuner lets what failed be evaluated again
START_SECONDS = 120.0
MANIFEST_SECONDS = 2.0
STOP_SECONDS = 75.0  # NNI gives itself sixty
_COLOR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class RunningExperiment:
    """An experiment whose manager runs on this machine.

    Attributes:
        id: NNI's id of it.
        server: its REST server.
        pid: the manager's process.
        folder: the experiment's folder; the tuner works in ``log`` below it.
    """

    id: str
    server: NniServer
    pid: int
    folder: Path

    @property
    def log(self) -> Path:
        """The tuner's working directory: `search.jsonl`, `checkpoints/`."""
        return self.folder / "log"

    @property
    def state_path(self) -> Path:
        """The tuner's saved state."""
        return _state_path(self.folder)


def start_experiment(config: Mapping[str, Any], *, port: int) -> RunningExperiment:
    """``nnictl create`` under protection.

    Args:
        config: a checked configuration (`spos.search.experiment`).
        port: of NNI's server.

    Raises:
        SearchError: if NNI does not start, or not protected.
    """
    with tempfile.TemporaryDirectory(prefix="spos-search-") as folder:
        path = Path(folder, "config.yml")
        path.write_text(json.dumps(config))  # JSON is YAML
        _run_nnictl(["create", "--config", str(path), "--port", str(port)])
    return _connect(port)


def resume_experiment(
    experiment_id: str,
    *,
    port: int,
    experiments_dir: Path | None = None,
    num_more_trials: int = 0,
) -> RunningExperiment:
    """``nnictl resume`` under protection, with the configuration that the experiment had.

    Args:
        experiment_id: NNI's id of it.
        port: of NNI's server.
        experiments_dir: folder of experiments, if not NNI's own.
        num_more_trials: added to ``maxTrialNumber``, for candidates that failed and are then
            evaluated again; 0: they are not.

    Raises:
        SearchError: if the experiment is not known, still runs, or does not start.
    """
    known = find_experiment(experiment_id, experiments_dir)
    if known.pid is not None and known.status != "STOPPED":
        if is_alive(known.pid):
            raise SearchError(
                f"experiment {experiment_id} still runs (process {known.pid}, port {known.port}); "
                f"stop it first with `nnictl stop {experiment_id}`"
            )
        _mark_stopped(experiment_id)
    command = ["resume", experiment_id, "--port", str(port)]
    if experiments_dir is not None:
        command += ["--experiment_dir", str(experiments_dir.resolve())]
    if num_more_trials:
        _raise_budget(known.folder / "db" / "nni.sqlite", num_more_trials)
    _run_nnictl(command, **{RETRY_VARIABLE: str(int(num_more_trials > 0))})
    return _connect(port)


def _raise_budget(database: Path, num_trials: int) -> None:
    """Add to ``maxTrialNumber`` of a stopped experiment, which a finished search has reached.

    Raises:
        SearchError: if NNI's database is missing or damaged.
    """
    find = "SELECT rowid, params FROM ExperimentProfile ORDER BY revision DESC LIMIT 1"
    try:
        connection = sqlite3.connect(f"{database.resolve().as_uri()}?mode=rw", uri=True)
        with contextlib.closing(connection), connection:
            ((row, text),) = connection.execute(find)
            config = json.loads(text)
            if "maxTrialNumber" in config:
                config["maxTrialNumber"] += num_trials
            change = "UPDATE ExperimentProfile SET params = ? WHERE rowid = ?"
            connection.execute(change, (json.dumps(config), row))
    except (sqlite3.Error, ValueError, KeyError, TypeError) as problem:
        raise SearchError(
            f"{database}: is not NNI's database of the experiment ({problem}); without it a search "
            "cannot be resumed"
        ) from None


def stop_experiment(experiment: RunningExperiment) -> None:
    """Stop the manager, its tuner and its trials; kill the manager if it does not stop."""
    with contextlib.suppress(SearchError):
        experiment.server.stop()
    if wait_until_gone(experiment.pid, STOP_SECONDS):
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(experiment.pid, signal.SIGKILL)
    wait_until_gone(experiment.pid, 5)


# -- what NNI knows of experiments -----------------------------------------------------------------


@dataclass(frozen=True)
class KnownExperiment:
    """An experiment's entry in NNI's list (``~/nni-experiments/.experiment``), or its folder."""

    id: str
    folder: Path
    status: str = "STOPPED"
    pid: int | None = None
    port: int | None = None

    @property
    def log(self) -> Path:
        """The tuner's working directory."""
        return self.folder / "log"

    @property
    def state_path(self) -> Path:
        """The tuner's saved state."""
        return _state_path(self.folder)


def list_experiments(experiments_dir: Path | None = None) -> list[KnownExperiment]:
    """The experiments of a folder, by default of all that NNI lists; the latest search last."""
    home = Path.home() / "nni-experiments"
    found: dict[Path, KnownExperiment] = {}
    for folder in sorted((experiments_dir or home).glob("*/log")):
        if not folder.parent.is_symlink():  # `_latest`
            found[folder.parent.resolve()] = KnownExperiment(folder.parent.name, folder.parent)
    manifest = home / ".experiment"
    for name, entry in _read_manifest(manifest).items():
        folder = Path(entry["logDir"], name)
        if folder.resolve() in found or experiments_dir is None:
            found[folder.resolve()] = KnownExperiment(
                name, folder, entry.get("status", ""), entry.get("pid"), entry.get("port")
            )
    return sorted(found.values(), key=_last_change)


def _read_manifest(path: Path) -> Any:
    """NNI's list, which it writes in place: somebody else may see it empty or half-written.

    Raises:
        SearchError: if it stays so, after NNI was killed in that moment.
    """
    give_up_at = time.monotonic() + MANIFEST_SECONDS
    while path.exists():
        try:
            return read_json(path, error=SearchError)
        except SearchError as problem:
            if time.monotonic() > give_up_at:
                raise SearchError(
                    f"{problem}; NNI was killed while it wrote its list of experiments: restore "
                    "the file or delete it (the experiments' folders stay)"
                ) from None
        time.sleep(0.05)
    return {}


def find_experiment(experiment_id: str, experiments_dir: Path | None = None) -> KnownExperiment:
    """The experiment with this id.

    Raises:
        SearchError: listing those that there are.
    """
    known = list_experiments(experiments_dir)
    for each in known:
        if each.id == experiment_id:
            return each
    ids = ", ".join(each.id for each in known[-5:]) or "none"
    raise SearchError(
        f"there is no experiment {experiment_id!r} in {experiments_dir or '~/nni-experiments'} "
        f"(the latest there: {ids}); `nnictl experiment list --all` shows all"
    )


def list_searches(experiments_dir: Path | None) -> list[KnownExperiment]:
    """The experiments with a journal of ours, the latest last."""
    known = list_experiments(experiments_dir)
    return [each for each in known if (each.log / JOURNAL).exists()]


def find_latest(experiments_dir: Path | None) -> tuple[str | None, Path] | None:
    """The search that scored last: NNI's id of it and the folder of its journal; None without any.

    One of `search run` counts where that writes by default; it has no id.

    Args:
        experiments_dir: looks only there, at NNI's experiments; None: everywhere.
    """
    logs = [(each.id, each.log) for each in list_searches(experiments_dir)]
    if experiments_dir is None and (RUN_FOLDER / JOURNAL).exists():
        logs = [*logs, (None, RUN_FOLDER)]
    return max(logs, key=lambda each: (each[1] / JOURNAL).stat().st_mtime, default=None)


def is_alive(pid: int) -> bool:
    """Whether a process runs (one that ended but was not waited for does not)."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False if Path("/proc/self").exists() else _answers(pid)
    return status.rpartition(")")[2].split()[0] not in "ZX"


def wait_until_gone(pid: int, seconds: float) -> bool:
    """Wait for the end of a process; whether it came in time."""
    give_up_at = time.monotonic() + seconds
    while is_alive(pid):
        if time.monotonic() > give_up_at:
            return False
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        time.sleep(0.1)
    return True


def _mark_stopped(experiment_id: str) -> None:
    """Tell NNI that a manager was killed; it takes one that nobody waited for as running."""
    from nni.tools.nnictl.config_utils import Experiments

    Experiments().update_experiment(experiment_id, "status", "STOPPED")


def _state_path(folder: Path) -> Path:
    return folder / "checkpoint" / STATE_FILE


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _last_change(experiment: KnownExperiment) -> float:
    for name in (JOURNAL, ""):
        with contextlib.suppress(OSError):
            return (experiment.log / name).stat().st_mtime
    return 0.0


# -- nnictl ----------------------------------------------------------------------------------------


def build_environment() -> dict[str, str]:
    """The environment that NNI's manager, and so the tuner and the trials, are started in."""
    environment = dict(os.environ)
    scripts = str(Path(sys.executable).parent)
    environment["PATH"] = os.pathsep.join([scripts, environment.get("PATH", os.defpath)])
    for name in ("NO_PROXY", "no_proxy"):  # nnictl would ask a proxy for localhost
        given = environment.get(name)
        environment[name] = ",".join(filter(None, [given, "localhost", "127.0.0.1"]))
    require = f'--require "{PRELOAD}"'  # Node takes quotes here
    environment["NODE_OPTIONS"] = " ".join(filter(None, [environment.get("NODE_OPTIONS"), require]))
    environment["PYTHONWARNINGS"] = "ignore::UserWarning"  # nnictl imports pkg_resources
    return environment


def _run_nnictl(arguments: Sequence[str], **variables: str) -> None:
    nnictl = Path(sys.executable).with_name("nnictl")
    if not nnictl.exists():
        raise ConfigError(
            f"{nnictl} is not there; install NNI beside this Python: pip install spos"
        )
    try:
        process = subprocess.run(
            [sys.executable, "-m", "spos.search.patient_nnictl", *arguments],
            env={**build_environment(), **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=START_SECONDS,
            start_new_session=True,  # Ctrl-C is for us: we stop the experiment in order
        )
    except subprocess.TimeoutExpired:
        raise SearchError(
            f"`nnictl {arguments[0]}` did not come back within {START_SECONDS:.0f} s; see the "
            "newest folder in ~/nni-experiments"
        ) from None
    if process.returncode != 0 or "ERROR" in process.stdout:
        lines = _COLOR.sub("", process.stdout + process.stderr).strip().splitlines()
        raise SearchError(
            f"`nnictl {arguments[0]}` failed (exit status {process.returncode}): "
            f"{lines[-1] if lines else 'it said nothing'}"
        )


def _connect(port: int) -> RunningExperiment:
    server = NniServer(port)
    known = find_experiment(server.experiment_id())
    if known.pid is None:
        raise SearchError(f"NNI does not know the process of experiment {known.id}; see nnictl")
    experiment = RunningExperiment(known.id, server, known.pid, known.folder)
    if not _refuses_strangers(port):
        stop_experiment(experiment)
        raise SearchError(
            f"NNI's server at port {port} runs without our protection ({PRELOAD} was not loaded), "
            "so the experiment was stopped; is NODE_OPTIONS overridden?"
        )
    return experiment


def _refuses_strangers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        try:
            path = "/api/v1/nni/check-status"
            connection.request("GET", path, headers={"Host": "stranger.invalid"})
            return connection.getresponse().status == http.client.FORBIDDEN
        except (OSError, http.client.HTTPException):
            return False
