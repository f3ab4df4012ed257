"""Evaluation in a process of its own, which is ended when a candidate takes too long.

Imports `spos.architecture` and `spos.errors`; never torch itself.

A network that hangs, in a driver or an image loader, cannot be interrupted from within its process.
So here the search and the evaluation are two: the evaluation has everything loaded once, is told
choices and answers results (JSON lines through two pipes; no port is opened). When it takes longer
than the limit, or dies, that candidate has failed, and the next one starts another.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from spos.architecture import Choices
from spos.errors import SearchError, SposError

Evaluate = Callable[[Choices], Mapping[str, Any]]
PARENT_SECONDS = 1.0  # how often the evaluation looks whether the search still runs


class LimitedEvaluation:
    """Evaluates candidates in another process; called with choices, it returns their result.

    Args:
        command: starts a process that calls `serve`.
        seconds: limit for one candidate, with the start of the process where one is needed.
    """

    def __init__(self, command: Sequence[str], *, seconds: float) -> None:
        self._command, self._seconds = list(command), seconds
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> LimitedEvaluation:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def __call__(self, choices: Choices) -> Mapping[str, Any]:
        """The result of one candidate.

        Raises:
            SearchError: if it failed, took too long, or the process died.
        """
        give_up_at = time.monotonic() + self._seconds
        self.start()
        process = self._process
        assert process is not None and process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then the answer says how it ended
            process.stdin.write(json.dumps(dict(choices)).encode() + b"\n")
            process.stdin.flush()
        answer = self._read(give_up_at)
        if "failure" in answer:
            if not answer.get("is_known"):
                self._end()  # its device may be in no state to go on
            raise SearchError(answer["failure"])
        return answer["result"]

    def start(self) -> None:
        """Start the process, unless it runs; it loads everything.

        Raises:
            SearchError: as it says, if it cannot load.
        """
        if self._process is not None:
            return
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        answer = self._read(time.monotonic() + self._seconds)
        if "failure" in answer:
            self._end()
            raise SearchError(answer["failure"])

    def _read(self, give_up_at: float) -> dict[str, Any]:
        """The next line of the process; if there is none in time, its end."""
        process, line = self._process, b""
        assert process is not None and process.stdout is not None
        descriptor = process.stdout.fileno()
        while not line.endswith(b"\n"):
            left = give_up_at - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                self._end()
                return {"failure": f"took longer than {self._seconds:g} s (maxTrialDuration)"}
            block = os.read(descriptor, 2**16)
            if not block:
                status = process.wait()
                self._end()
                return {"failure": f"the evaluating process died (exit status {status})"}
            line += block
        return json.loads(line)

    def _end(self) -> None:
        """End the process and those that it started, such as image loaders."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def serve(build: Callable[[], Evaluate]) -> None:
    """The other side: load, then answer each line of choices until the search ends.

    Args:
        build: loads everything and returns the evaluation.
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what anything prints is no answer
    threading.Thread(target=_end_with_search, args=(os.getppid(),), daemon=True).start()

    def answer(action: Callable[[], Any]) -> None:
        try:
            text = json.dumps({"result": action()}, allow_nan=False)
        except Exception as problem:  # whatever it is, the next candidate may do better
            is_known = isinstance(problem, SposError)
            kind = "" if is_known else f"{type(problem).__name__}: "
            text = json.dumps({"failure": f"{kind}{problem}", "is_known": is_known})
        answers.write(text + "\n")
        answers.flush()

    loaded: list[Evaluate] = []
    answer(lambda: loaded.append(build()))
    for line in sys.stdin if loaded else ():
        choices = json.loads(line)
        answer(lambda choices=choices: loaded[0](choices))


def _end_with_search(search: int) -> NoReturn:
    """Nobody waits for the answer of an evaluation whose search was killed."""
    while os.getppid() == search:
        time.sleep(PARENT_SECONDS)
    os.killpg(os.getpgid(0), signal.SIGKILL)
    os._exit(1)
