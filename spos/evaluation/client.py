"""Asks the evaluator of a run folder for a candidate's score, and starts it if there is none.

Imports `spos.errors`, `spos.evaluation.address` and `.settings`, `spos.files`; never torch, numpy
or NNI: a trial is to have its answer before it could have imported them.

Request and answers are lines of JSON: ``{"choices": {...}}``, then any number of ``{"progress":
0.5}``, then one of ``{"result": {...}}``, ``{"error": "..."}`` (this candidate has no score) and
``{"outdated": true}`` (the run folder has changed, so that this evaluator ends).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from spos.errors import SearchError
from spos.evaluation.address import Address, find_address, read_socket_path, take_lock
from spos.evaluation.settings import EvaluationSettings
from spos.files import parse_json

START_SECONDS = 300.0  # until one that starts listens; torch on a busy network disk is slow
ATTEMPTS = 4  # evaluators that may die or be outdated under one candidate
MAX_LINE = 2**20
_POLL_SECONDS = 0.02


def ask_evaluator(
    settings: EvaluationSettings,
    choices: Mapping[str, Any],
    *,
    idle_seconds: float,
    progress: Callable[[float], None],
) -> dict[str, float] | None:
    """What `spos.evaluation.candidates.Candidates.score` says, in the process that is kept alive.

    The evaluator is started if there is none, and another one if it dies. It takes several askers
    in their order, so the answer may be long in coming.

    Args:
        settings: which evaluator.
        choices: the candidate.
        idle_seconds: after which an evaluator that is started here ends.
        progress: called with the running top-1.

    Returns:
        The result; None if no evaluator can be had: then evaluate in this process.

    Raises:
        SearchError: if the evaluator could not score this candidate, with its reason.
    """
    if not (settings.run_dir / "args.json").exists():
        return None  # no run folder: nothing is to be written there
    address = find_address(settings)
    for _ in range(ATTEMPTS):
        try:
            connection = _connect_or_start(settings, address, idle_seconds)
        except OSError:  # a run folder that cannot be written, no processes left
            return None
        if connection is None:
            return None
        with connection:
            answer = _converse(connection, choices, progress)
        if "result" in answer:
            return answer["result"]
        if "error" in answer:
            raise SearchError(f"the evaluator of {settings.run_dir}: {answer['error']}")
    return None


def _converse(
    connection: socket.socket, choices: Mapping[str, Any], progress: Callable[[float], None]
) -> dict[str, Any]:
    """The last answer; empty if the evaluator died or ends."""
    with contextlib.suppress(ConnectionError):
        connection.sendall(json.dumps({"choices": dict(choices)}).encode() + b"\n")
        for answer in _read_answers(connection):
            if type(answer.get("progress")) is float:
                progress(answer["progress"])
            elif isinstance(answer.get("result"), dict) or isinstance(answer.get("error"), str):
                return answer
            else:
                break
    return {}


def _read_answers(connection: socket.socket) -> Iterator[dict[str, Any]]:
    with connection.makefile("rb") as lines:
        while (line := lines.readline(MAX_LINE)).endswith(b"\n"):
            answer = parse_json(line, source="the evaluator's answer", error=SearchError)
            if not isinstance(answer, dict):
                return
            yield answer


def _connect_or_start(
    settings: EvaluationSettings, address: Address, idle_seconds: float
) -> socket.socket | None:
    """A connection to the evaluator; None if it does not start."""
    give_up_at = time.monotonic() + START_SECONDS
    has_started = False
    while time.monotonic() < give_up_at:
        if connection := connect(address):
            return connection
        lock = take_lock(address)
        if lock is None:  # it starts, or ends
            time.sleep(_POLL_SECONDS)
            continue
        try:
            if has_started:  # it ended before it listened: whatever the reason, it stays
                return None
            _start(settings, address, idle_seconds, lock)
            has_started = True
        finally:
            os.close(lock)  # the evaluator has it open as well, so that it stays locked
    return None


def connect(address: Address) -> socket.socket | None:
    """A connection to the evaluator if it listens."""
    path = read_socket_path(address)
    if path is None:
        return None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(path)
    except OSError:
        connection.close()
        return None
    return connection


def _start(settings: EvaluationSettings, address: Address, idle_seconds: float, lock: int) -> None:
    """Start an evaluator that inherits the lock, as nobody's child and in a session of its own.

    So a trial that is killed with all of its children leaves it to the others.
    """
    command = [
        sys.executable, "-m", "spos", "evaluator", *settings.flags(),
        f"--idle-seconds={idle_seconds}", f"--lock={lock}",
    ]  # fmt: skip
    environment = {
        name: value
        for name, value in os.environ.items()
        if name == "NNI_FRAMEWORK" or not name.startswith("NNI_")  # it is no trial
    }
    root = str(Path(__file__).resolve().parent.parent.parent)
    places = [root, *filter(None, [os.path.abspath(sys.path[0]), environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(places)
    output = os.open(address.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        child = os.fork()
        if not child:
            _become_evaluator(command, environment, output, lock)
        os.waitpid(child, 0)
    finally:
        os.close(output)


def _become_evaluator(
    command: list[str], environment: dict[str, str], output: int, lock: int
) -> None:
    """In a forked child: leave the parent, then run ``command``. Never returns."""
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.set_inheritable(lock, True)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.execve(command[0], command, environment)
    finally:
        os._exit(127)
