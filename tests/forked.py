"""Fresh processes that start at once: forked from one server that has loaded torch and NNI.

A script needs three seconds to import them, and the tests start scripts many dozens of times.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 120.0  # seconds; the machine may be busy with other things

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(
    [
        "pytest",
        "no_network",
        "spos.commands.data",
        "spos.cost.counting",
        "spos.evaluation.build",
        "spos.subnet",
        "spos.training.loop",
        "torch.utils.tensorboard",
    ]
)


@dataclass(frozen=True)
class Finished:
    """How a script ended: its exit status (negative for a signal) and what it printed."""

    status: int
    stdout: str
    stderr: str


class Script:
    """One of our scripts, running in a process of its own, in ``folder``."""

    def __init__(
        self, name: str, *words: object, folder: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self._output = Path(tempfile.mkdtemp(dir=folder, prefix=".output-"))
        words_ = [str(word) for word in words]
        self.process = start(_run_script, name, words_, folder, dict(env or {}), self._output)

    def wait(self) -> Finished:
        """Wait for its end."""
        status = wait(self.process)
        files = [self._output / name for name in ("out", "err")]
        # One that was killed at once has not opened them yet.
        return Finished(status, *(path.read_text() if path.exists() else "" for path in files))

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.process.pid, number)


def run_script(name: str, *words: object, folder: Path, **arguments: Any) -> Finished:
    """Run a script of the repository's root to its end."""
    return Script(name, *words, folder=folder, **arguments).wait()


def run_ranks(function: Callable[..., Any], *arguments: object, world_size: int) -> list[Any]:
    """What ``function`` returns in each process of a gloo group (tensors and plain data)."""
    import torch

    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        files = [f"{folder}/{rank}" for rank in range(world_size)]
        processes = [
            start(_run_rank, function, arguments, environment, rank, world_size, files[rank])
            for rank in range(world_size)
        ]
        assert [wait(each) for each in processes] == [0] * world_size
        return [torch.load(file, weights_only=True) for file in files]


def start(function: Callable[..., object], *arguments: object) -> Any:
    """Call ``function``, importable by name, in a new process with one thread of torch."""
    process = _server.Process(target=_call, args=(function, arguments))
    process.start()
    return process


def wait(process: Any) -> int:
    """Exit status of a process that `start` returned; fails if it does not end."""
    process.join(PATIENCE)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"the process did not end within {PATIENCE:.0f} s")
    return process.exitcode


def wait_until(condition: Callable[[], object], *, running: Any) -> None:
    """Wait until ``condition`` holds; fails if the process ``running`` ends before."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert running.is_alive(), "the process ended before"
        assert time.monotonic() < deadline, "the process is stuck"
        time.sleep(0.005)


def _call(function: Callable[..., object], arguments: Sequence[object]) -> None:
    import torch

    torch.set_num_threads(1)
    function(*arguments)


def _run_script(
    name: str, words: Sequence[str], folder: Path, env: Mapping[str, str], output: Path
) -> None:
    for number, file in ((1, "out"), (2, "err")):
        os.dup2(os.open(output / file, os.O_WRONLY | os.O_CREAT), number)
    os.environ.update(env)
    os.chdir(folder)
    sys.argv = [name, *words]
    sys.path[:0] = [str(ROOT), *env.get("PYTHONPATH", "").split(os.pathsep)]
    status = 0
    try:
        runpy.run_path(str(ROOT / name), run_name="__main__")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()  # as at the end of a process that was not forked
    sys.stdout.flush()
    os._exit(status)


def _run_rank(
    function: Callable[..., Any],
    arguments: Sequence[object],
    environment: Mapping[str, str],
    rank: int,
    world_size: int,
    file: str,
) -> None:
    import torch

    from spos.training.parallel import process_group

    os.environ.update(environment, RANK=str(rank), WORLD_SIZE=str(world_size))
    with process_group(torch.device("cpu")):
        torch.save(function(*arguments), file)
