"""A run is a folder: its settings, log, metrics and checkpoints.

Imports `spos.errors` and `spos.files`; torch when a run is written, which its settings are read
without.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import platform
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from spos.errors import ConfigError
from spos.files import (
    append_journal,
    lock_file,
    read_journal,
    read_json,
    write_journal,
    write_json,
    writing,
)

FORMAT_VERSION = 1
PREPARED = ("cost.json",)  # may be there before the run: costs measured for its paths
PACKAGES = ("spos", "torch", "torchvision", "nni", "numpy", "nvidia-dali-cuda130")
MAKE_ROOM = "; make room and repeat the command"
# Settings that tell the names of its images, which older runs do not have.
NAMES = {"train_names": "training images", "test_names": "test images"}


@dataclass(frozen=True)
class RunSettings:
    """What ``args.json`` of a run folder says.

    Attributes:
        stage: ``supernet`` or ``scratch``.
        config: what the results depend on; a run is only ever continued with the same.
        runtime: what they do not depend on (device, workers, where the data lie).
    """

    stage: str
    config: Mapping[str, Any]
    runtime: Mapping[str, Any]


class RunFolder:
    """The folder of one run, open for writing.

    Args:
        path: made if missing. If it holds a run already, that run is continued.
        settings: of the run.
        is_writer: false on ranks other than 0, which write nothing.

    Raises:
        ConfigError: if the folder holds a run with another configuration (the fields that differ
            are listed), another command writes it now, or it cannot be written.
    """

    def __init__(self, path: Path | str, settings: RunSettings, *, is_writer: bool = True) -> None:
        self.path = Path(path)
        self.settings = settings
        self.is_writer = is_writer
        self.checkpoints = self.path / "checkpoints"
        self._board = None
        self._recorded: set[tuple] = set()
        self._handler: logging.Handler | None = None
        self._until_close = contextlib.ExitStack()
        with writing(f"--run-dir {self.path}"):
            self._check_ours()
            if is_writer:
                self._open()

    def start_metrics(self, step: int) -> None:
        """Begin to record from ``step`` on; what a killed run recorded beyond it is dropped.

        Raises:
            ConfigError: naming what cannot be written.
        """
        if not self.is_writer:
            return
        from torch.utils.tensorboard import SummaryWriter

        path = self.path / "metrics.jsonl"
        entries = read_journal(path, error=ConfigError)
        kept = [entry for entry in entries if entry["step"] <= step]
        if len(kept) != len(entries):
            with writing(path, advice=MAKE_ROOM):
                write_journal(path, kept)
        self._recorded = {_identity(entry) for entry in kept}
        show = threading.excepthook
        self._until_close.callback(setattr, threading, "excepthook", show)
        threading.excepthook = lambda arguments: _is_of_board(arguments) or show(arguments)
        with writing(self.path / "tb", advice=MAKE_ROOM):
            self._board = SummaryWriter(str(self.path / "tb"), purge_step=step + 1)

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append metrics, named like ``train/loss``, to ``metrics.jsonl`` and TensorBoard.

        What a repeated command measures again is not recorded twice. A number that is not finite
        becomes null.

        Raises:
            ConfigError: naming what cannot be written.
        """
        if not self.is_writer:
            return
        values = {k: value if math.isfinite(value) else None for k, value in metrics.items()}
        entry = {"step": step, "time": round(time.time(), 3), **values}
        if _identity(entry) in self._recorded:
            return
        path = self.path / "metrics.jsonl"
        with writing(path, advice=MAKE_ROOM):
            append_journal(path, entry)
        if self._board:
            with writing(self.path / "tb", advice=MAKE_ROOM):
                for name, value in metrics.items():
                    self._board.add_scalar(name, value, step)
                self._board.flush()  # a kill would lose up to two minutes

    def close(self) -> None:
        """Flush and close the log and the TensorBoard file; another command may then write."""
        with self._until_close:
            if self._handler:
                logging.getLogger("spos").removeHandler(self._handler)
                self._handler.close()
            if self._board:
                self._board.close()

    def _check_ours(self) -> None:
        if (self.path / "args.json").exists():
            old = read_settings(self.path)
            _check_same(old, self.settings, self.path)
            # As its checkpoints say it, too, though the folder of the images has another name now.
            self.settings = replace(self.settings, config=old.config)
        elif self.is_writer and self.path.is_dir() and _has_files(self.path):
            raise ConfigError(
                f"{self.path}: is not empty and not a run folder; give another --run-dir"
            )

    def _open(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(lock_file(self.path / ".lock", blocking=False))
            except BlockingIOError:
                raise ConfigError(
                    f"{self.path}: another command writes this run now; wait for its end, stop it, "
                    "or give another --run-dir"
                ) from None
            self._check_ours()  # again: nobody changes it any more
            if (self.path / "args.json").exists():
                _note_data_dir(self.path, self.settings.runtime.get("data_dir"))
            else:
                write_settings(self.path, self.settings)
            self._handler = _open_log(self.path / "log.txt")
            self._until_close = stack.pop_all()
        logging.getLogger("spos").addHandler(self._handler)


def _open_log(path: Path) -> logging.Handler:
    """A handler whose errors end the run; `logging` would print a traceback and go on."""
    # Names of files in it need not be UTF-8.
    handler = logging.FileHandler(path, encoding="utf-8", errors="surrogateescape")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def fail(record: logging.LogRecord) -> None:
        with writing(path, advice=MAKE_ROOM):
            raise  # what `emit` has caught

    handler.handleError = fail
    return handler


def _is_of_board(arguments: threading.ExceptHookArgs) -> bool:
    """Whether an error ended TensorBoard's thread, whose `flush` then raises it again."""
    return type(arguments.thread).__name__ == "_AsyncWriterThread"


def _has_files(path: Path) -> bool:
    """Whether a folder holds more than `PREPARED` and hidden files, such as a kill's leavings."""
    names = (each.name for each in path.iterdir())
    return any(not name.startswith(".") and name not in PREPARED for name in names)


def _identity(entry: Mapping[str, Any]) -> tuple:
    return entry["step"], *sorted(entry)


def write_settings(path: Path, settings: RunSettings) -> None:
    """Write ``args.json`` of a new run folder."""
    write_json(
        path / "args.json",
        {
            "version": FORMAT_VERSION,
            "stage": settings.stage,
            "config": dict(settings.config),
            "runtime": dict(settings.runtime),
            "environment": _environment(),
        },
    )


def _note_data_dir(path: Path, data_dir: str | None) -> None:
    """Note where the images lie now, which the stages after this one look up there."""
    value = read_json(path / "args.json", error=ConfigError)
    if value["runtime"].get("data_dir") != data_dir:
        runtime = {**value["runtime"], "data_dir": data_dir}
        write_json(path / "args.json", {**value, "runtime": runtime})


def read_settings(path: Path | str, *, stage: str | None = None) -> RunSettings:
    """Read ``args.json`` of a run folder.

    Raises:
        ConfigError: if there is none, it is malformed, or the run is of another stage.
    """
    file = Path(path) / "args.json"
    if not os.path.exists(file):  # pathlib's own raises where the folder may not be read
        hint = (
            f"; run `python {stage}.py --run-dir {shlex.quote(str(path))}` first" if stage else ""
        )
        raise ConfigError(f"{path}: is not a run folder (it has no args.json){hint}")
    value = read_json(file, error=ConfigError)
    if not isinstance(value, dict) or value.get("version") != FORMAT_VERSION:
        raise ConfigError(f"{file}: is not the settings of a run, version {FORMAT_VERSION}")
    found, config, runtime = value.get("stage"), value.get("config"), value.get("runtime")
    if not isinstance(config, dict) or not isinstance(runtime, dict):
        raise ConfigError(f'{file}: "config" and "runtime" must be objects')
    if stage and found != stage:
        raise ConfigError(f"{path}: is the run of {found}.py, expected one of {stage}.py")
    return RunSettings(str(found), config, runtime)


def open_supernet_settings(path: Path | str) -> tuple[RunSettings, Path]:
    """The settings of a supernet's run and its cost table, which is written before it trains.

    Raises:
        ConfigError: as `read_settings`, or if there is no cost table.
    """
    settings, costs = read_settings(path, stage="supernet"), Path(path) / "cost.json"
    if not os.path.exists(costs):
        raise ConfigError(
            f"{path}: has no cost.json, so that this run never began training, or it was removed; "
            f"repeat the run's command (`python supernet.py --run-dir {shlex.quote(str(path))}` "
            "with the flags that it had)"
        )
    return settings, costs


def show_log() -> None:
    """Print the package's log messages on standard error."""
    logger = logging.getLogger("spos")
    logger.setLevel(logging.INFO)
    if not any(type(handler) is logging.StreamHandler for handler in logger.handlers):
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)


def _check_same(old: RunSettings, new: RunSettings, path: Path) -> None:
    if old.stage != new.stage:
        raise ConfigError(
            f"{path}: holds a run of {old.stage}.py; give {new.stage}.py another --run-dir"
        )
    names = {*old.config, *new.config}
    if old.config.keys() >= NAMES.keys():
        names.discard("data")  # the folder may have been moved or renamed
    else:
        names -= NAMES.keys()
    changed = sorted(name for name in names if old.config.get(name) != new.config.get(name))
    renamed = [name for name in changed if name in NAMES]
    if renamed and {*changed} <= {*NAMES, "split"}:  # which follows the names
        which = " and ".join(NAMES[name] for name in renamed)
        raise ConfigError(
            f"{path}: holds a run on other files: as many {which}, but files in "
            f"{new.runtime.get('data_dir')} were renamed, swapped or moved to another class since; "
            "bring them back and repeat the command to continue it, or give another --run-dir"
        )
    if changed:
        said = "; ".join(
            f"{name} was {old.config.get(name)!r}, now {new.config.get(name)!r}" for name in changed
        )
        raise ConfigError(
            f"{path}: holds a run with other settings ({said}); repeat the command "
            "with the old ones to continue it, or give another --run-dir"
        )


def _environment() -> dict[str, Any]:
    import torch

    # Without a driver that fits, the number alone is known.
    num_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "versions": versions,
        "commit": code_version(),
        "devices": [torch.cuda.get_device_name(number) for number in range(num_devices)],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def code_version() -> str | None:
    """The commit of this code, as ``git describe`` names it; None outside of its repository."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None  # installed: a repository around it is somebody else's
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
