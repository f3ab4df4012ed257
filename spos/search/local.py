"""A search without NNI: the same searchers in one process, with the same files.

Imports `spos.architecture`, `spos.errors`, `spos.files` and the rest of the search; never torch.

A local search's folder holds `search.jsonl` and `checkpoints/` as an experiment's does, and its
state beside them in `search.json`.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from spos.architecture import Choices
from spos.errors import SearchError
from spos.files import lock_file
from spos.search.record import Result, SearchRecord, read_result
from spos.search.results import JOURNAL, STATE_FILE
from spos.search.searcher import Search

# Choices -> what a trial reports: a score, or a dict with ``default`` and other metrics.
Evaluate = Callable[[Choices], float | Mapping[str, Any]]


def check_folder(folder: Path) -> None:
    """Refuse a folder that a search would mix its files with others in.

    Raises:
        SearchError: unless it is not there, is empty or holds a search.
    """
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise SearchError(f"{folder}: is not a folder; name another one (--output-dir)")
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    if names and not names & {STATE_FILE, JOURNAL}:
        raise SearchError(
            f"{folder}: is not empty and holds no search ({JOURNAL}), but {min(names)}; name "
            "another folder (--output-dir)"
        )


def run_search(
    search: Search,
    evaluate: Evaluate,
    *,
    folder: Path,
    retries_failed: bool = False,
    progress: Callable[[], None] = lambda: None,
) -> SearchRecord:
    """Evaluate one candidate after the other until the search has finished.

    Called again with the same folder it continues, and ends as the undisturbed search would: the
    candidate that was being evaluated is evaluated first.

    Args:
        search: new.
        evaluate: an exception that it raises is a failure of that candidate.
        folder: where everything is kept.
        retries_failed: whether candidates that failed for good are evaluated again.
        progress: called after every candidate.

    Raises:
        SearchError: if the folder cannot be made, holds another search or one that still runs, or
            if too many evaluations failed in a row.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise SearchError(
            f"{folder}: cannot be made ({problem.strerror}); choose another folder"
        ) from None
    record = SearchRecord(search, folder=folder, state_path=folder / STATE_FILE)
    with _alone_in(folder):
        if (folder / STATE_FILE).exists() or (folder / JOURNAL).exists():
            record.load()
        if retries_failed:
            record.retry_failed()
        unfinished = search.running
        while choices := unfinished.pop(0) if unfinished else search.ask():
            record.save(None)  # before it runs, so that a kill does not change what comes next
            began = time.monotonic()
            result = _evaluate(search, choices, evaluate)
            record.settle(result, seconds=round(time.monotonic() - began, 3))
            record.save(None)
            progress()
            if search.is_stopped:
                problem = (
                    f"{search.failures_in_a_row} evaluations failed in a row, the last one: "
                    f"{record.last_failure}; mend the cause, then repeat the command to continue "
                    "(with --retry-failed also where evaluations have failed twice)"
                )
                record.save(problem)
                raise SearchError(problem)
        record.save(None)
    return record


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock_file(folder / ".lock", blocking=False))
        except BlockingIOError:
            raise SearchError(
                f"{folder}: another search runs there; wait for it, or choose another folder"
            ) from None
        yield


def _evaluate(search: Search, choices: Choices, evaluate: Evaluate) -> Result:
    try:
        value = evaluate(choices)
    except Exception as problem:  # whatever it is, the next candidate may do better
        return Result(choices, failure=f"{type(problem).__name__}: {problem}")
    return read_result(value, search.space.spec, expected=choices)
