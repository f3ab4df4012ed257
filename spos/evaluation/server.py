"""The evaluator that is kept alive: answers one candidate after the other on a Unix socket.

Imports `spos.errors`, `spos.evaluation`, `spos.files`.

`spos.evaluation.client` describes the messages. One connection is one candidate; the kernel keeps
the others waiting in their order.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from spos.errors import SearchError, SposError
from spos.evaluation.address import Address, close_socket, open_socket
from spos.evaluation.candidates import Candidates
from spos.files import parse_json

REQUEST_SECONDS = 10.0  # for a request to arrive; the others wait for it
MAX_REQUEST_BYTES = 2**20
GRACE_SECONDS = 60.0  # for an evaluation to end whose asker is gone
_WATCH_SECONDS = 1.0

log = logging.getLogger(__name__)


def serve(candidates: Candidates, address: Address, *, idle_seconds: float) -> None:
    """Answer until nobody has asked for ``idle_seconds``, or the run folder has changed.

    The caller holds the lock of ``address`` (`spos.evaluation.address.take_lock`).

    Raises:
        Exception: whatever an evaluation raised that is no `SposError`, after it was answered: the
            device may be in no state to go on.
    """
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(open_socket(address))
        stack.callback(close_socket, address)
        log.info("evaluator of %s: ready", candidates.run.path)
        while True:
            listener.settimeout(idle_seconds)
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                log.info("nobody asked for %g s: the end", idle_seconds)
                return
            with connection:
                if not _answer(connection, candidates):
                    log.info("%s has changed: the end", candidates.run.path)
                    return


def _answer(connection: socket.socket, candidates: Candidates) -> bool:
    """Read a request and send what is made of it; the asker may be gone at any time.

    Returns:
        False if the run folder has changed, so that the request could not be answered.
    """
    began = time.monotonic()
    try:
        choices = _read_request(connection)
        if not candidates.is_current():
            _send(connection, {"outdated": True})
            return False
        with _watched(connection):
            result = candidates.score(
                choices,
                progress=lambda top1: _send(connection, {"progress": top1}, must_reach=True),
            )
    except _AskerGoneError:
        log.info("the trial that asked is gone: not evaluated to the end")
    except SposError as problem:
        log.warning("%s: %s", type(problem).__name__, problem)
        _send(connection, {"error": f"{type(problem).__name__}: {problem}"})
    except Exception as problem:
        _send(connection, {"error": f"{type(problem).__name__}: {problem}"})
        raise
    else:
        log.info("top-1 %.4f in %.3f s", result["top1"], time.monotonic() - began)
        _send(connection, {"result": result})
    return True


class _AskerGoneError(Exception):
    """Nobody waits for the result any more."""


@contextlib.contextmanager
def _watched(connection: socket.socket) -> Iterator[None]:
    """End this process if the asker is gone for long and its evaluation still is not at an end.

    A trial that took longer than NNI allows is killed; an evaluation that hangs must not keep the
    next ones waiting, whose askers start another evaluator.
    """
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(_WATCH_SECONDS):
            if _is_gone(connection):
                if not is_over.wait(GRACE_SECONDS):
                    log.error("an evaluation that nobody waits for does not end: the end")
                    _leave()
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _is_gone(connection: socket.socket) -> bool:
    """Whether the other end of a connection was closed; nothing more is sent after a request."""
    poll = select.poll()
    poll.register(connection, select.POLLHUP | select.POLLERR)
    return bool(poll.poll(0))


def _leave() -> None:
    os._exit(1)


def _read_request(connection: socket.socket) -> Any:
    """The choices that a connection asks for.

    Raises:
        SearchError: if it sends something else, or nothing in time.
        _AskerGoneError: if it was closed.
    """
    data = b""
    give_up_at = time.monotonic() + REQUEST_SECONDS
    while not data.endswith(b"\n"):
        connection.settimeout(max(give_up_at - time.monotonic(), 0.001))
        try:
            block = connection.recv(2**16)
        except TimeoutError:
            raise SearchError(f"no request came within {REQUEST_SECONDS:g} s") from None
        except ConnectionError:
            block = b""
        if not block:
            raise _AskerGoneError
        data += block
        if len(data) > MAX_REQUEST_BYTES:
            raise SearchError(f"a request of more than {MAX_REQUEST_BYTES} bytes")
    request = parse_json(data, source="the request", error=SearchError)
    if not isinstance(request, dict) or not isinstance(request.get("choices"), dict):
        raise SearchError('the request is not an object with "choices"')
    return request["choices"]


def _send(
    connection: socket.socket, message: Mapping[str, Any], *, must_reach: bool = False
) -> None:
    connection.settimeout(REQUEST_SECONDS)
    try:
        connection.sendall(json.dumps(message, allow_nan=False).encode() + b"\n")
    except (ConnectionError, TimeoutError):
        if must_reach:
            raise _AskerGoneError from None
