"""Watching a search: one status line until it ends, then a summary.

Imports the standard library and the rest of the search; never torch.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from spos.errors import SearchError
from spos.search.launch import RunningExperiment, is_alive
from spos.search.record import read_progress
from spos.search.results import JOURNAL, Entry, read_entries

ENDED = ("DONE", "ERROR", "STOPPING", "STOPPED")
POLL_SECONDS = 1.0
SECONDS_BETWEEN_LINES = 30.0
QUIET_POLLS = 15  # a tuner of NNI's own has nothing more to try and no trial runs


class StatusLine:
    """One line that is rewritten on a terminal; elsewhere a new one every thirty seconds."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._is_terminal = self._stream.isatty()
        self._last_line = -SECONDS_BETWEEN_LINES

    def show(self, text: str) -> None:
        """Show ``text``, if it is time to."""
        if self._is_terminal:
            self._stream.write(f"\r\x1b[K{text}")
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self._stream.write(f"{text}\n")
        self._stream.flush()

    def close(self, text: str) -> None:
        """Show ``text`` for good."""
        self._stream.write(f"\r\x1b[K{text}\n" if self._is_terminal else f"{text}\n")
        self._stream.flush()


def watch_experiment(experiment: RunningExperiment, *, num_planned: int | None) -> None:
    """Show progress until the experiment is DONE.

    Raises:
        SearchError: if it ends in another way, with the reason.
    """
    line = StatusLine()
    begun = time.monotonic()
    num_before = len(read_entries(experiment.log))
    entries: list[Entry] = []
    size = num_quiet = 0
    while True:
        status = _status(experiment)
        new_size = _size(experiment.log / JOURNAL)
        if new_size != size:
            entries, size = read_entries(experiment.log), new_size
        pace = (len(entries) - num_before) / (time.monotonic() - begun)
        line.show(describe_progress(entries, num_planned=num_planned, per_second=pace))
        if status in ENDED:
            break
        num_quiet = num_quiet + 1 if status == "TUNER_NO_MORE_TRIAL" else 0
        if num_planned is None and num_quiet >= QUIET_POLLS and not _is_busy(experiment):
            break
        time.sleep(POLL_SECONDS)
    line.close(describe_progress(entries, num_planned=num_planned, per_second=0))
    if status == "ERROR" or status.startswith("STOP"):
        raise SearchError(_describe_end(experiment, status))
    if num_planned is not None and len(entries) < num_planned:
        line.close(_describe_shortfall(experiment, len(entries), num_planned))


def describe_progress(
    entries: Sequence[Entry], *, num_planned: int | None, per_second: float
) -> str:
    """How far a search is: candidates done and failed, best and median score, pace, time left."""
    scores = [each.score for each in entries if each.score is not None]
    planned = f"/{num_planned}" if num_planned else ""
    parts = [f"{len(entries)}{planned} candidates"]
    if len(scores) < len(entries):
        parts.append(f"{len(entries) - len(scores)} failed")
    if scores:
        parts.append(f"best {max(scores):.4f}")
        parts.append(f"median {statistics.median_low(scores):.4f}")
    if per_second > 0:
        parts.append(f"{60 * per_second:.0f}/min")
        if num_planned and num_planned > len(entries):
            seconds = int((num_planned - len(entries)) / per_second)
            parts.append(f"ETA {seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}")
    return ", ".join(parts)


def _status(experiment: RunningExperiment) -> str:
    """NNI's status; ``STOPPED`` if its manager is gone."""
    try:
        return experiment.server.status()
    except SearchError:
        if not is_alive(experiment.pid):
            return "STOPPED"
        return "busy"  # under load it may not answer in time


def _describe_end(experiment: RunningExperiment, status: str) -> str:
    progress = read_progress(experiment.state_path) if status == "ERROR" else None
    if progress and progress.problem:
        return f"experiment {experiment.id} stopped: {progress.problem}"
    if status == "ERROR":
        return (
            f"experiment {experiment.id} stopped with an error of NNI or its tuner; see "
            f"{experiment.log}/dispatcher.log and {experiment.log}/nnimanager.log"
        )
    return (
        f"the manager of experiment {experiment.id} was stopped from elsewhere; continue with "
        f"`python -m spos search resume {experiment.id}`"
    )


def _describe_shortfall(experiment: RunningExperiment, num_done: int, num_planned: int) -> str:
    progress = read_progress(experiment.state_path)
    if progress and progress.is_exhausted:
        reason = "no further architecture that meets the constraints was found"
    else:
        reason = "maxTrialNumber or maxExperimentDuration of the configuration was reached"
    return f"the search ended after {num_done} of {num_planned} planned candidates: {reason}"


def _is_busy(experiment: RunningExperiment) -> bool:
    return any(each.is_active for each in experiment.server.trials())


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
