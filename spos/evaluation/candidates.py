"""Scores of candidates of a supernet run, everything loaded once: what every search calls.

Imports `spos.evaluation`, `spos.spaces`, `spos.training` and what is below them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from spos.architecture import Choices
from spos.evaluation.accuracy import check_finite
from spos.evaluation.build import TrainedSupernet, open_supernet_run
from spos.evaluation.results import Results
from spos.evaluation.settings import EvaluationSettings
from spos.spaces import load_space_class
from spos.training.checkpoint import newest_mark
from spos.training.parallel import select_device

log = logging.getLogger(__name__)

_State = list[tuple[str, int, int, int] | None]


class Candidates:
    """The candidates of a supernet run, with the weights of its newest checkpoint.

    The number of torch's threads in this process becomes that of ``settings``: it decides the last
    bits of a result.

    Args:
        settings: which run, which images, which device.

    Attributes:
        run: what the search can ask, and what is known of it.

    Raises:
        SposError: if the run, its checkpoint, its images or the device are not as they should be.
    """

    def __init__(self, settings: EvaluationSettings) -> None:
        torch.set_num_threads(settings.num_threads())
        if settings.space:
            load_space_class(settings.space, allow_import=True)
        self._state, self.run, checkpoint = _open(settings.run_dir)
        self._results = Results(self.run.path, checkpoint)
        self._evaluator = self.run.evaluator(
            checkpoint,
            data_dir=settings.data_dir,
            workers=settings.workers,
            device=select_device(settings.device),
        )

    def is_current(self) -> bool:
        """Whether the run folder still holds the settings, split and weights that are loaded."""
        return _state(self.run.path) == self._state

    def score(
        self, choices: Any, *, progress: Callable[[float], None] | None = None
    ) -> dict[str, float]:
        """Held-out accuracy (``top1``, ``top5``, ``loss``) and costs of one architecture.

        What was measured before, by any process, is not measured again: results are kept in the
        run folder's ``evaluations.jsonl``, as long as that can be written.

        Args:
            choices: label -> candidate, checked here.
            progress: called with the running top-1 while images are measured.

        Raises:
            ArchitectureError: if ``choices`` are not an architecture of this space.
        """
        arch = self.run.spec.architecture(choices, source="the parameters of this trial")
        result = self._results.find(arch)
        if result is None:
            result = self.measure(arch.choices, progress=progress)
            try:
                self._results.save(arch, result)
            except OSError as problem:  # it was measured all the same
                log.warning("%s: cannot be written (%s), so %s may be measured again",
                            problem.filename, problem.strerror, arch.id)  # fmt: skip
        return {**result, **self.run.table.costs(arch.choices)}  # a metric may have come since

    def measure(
        self, choices: Any, *, progress: Callable[[float], None] | None = None
    ) -> dict[str, float]:
        """As `score`, but measured now and kept nowhere."""
        accuracy = check_finite(self._evaluator.evaluate(choices, progress=progress))
        measured = {"top1": accuracy.top1, "top5": accuracy.top5, "loss": accuracy.loss}
        return {**measured, **self.run.table.costs(choices)}

    def top1_uncalibrated(self, choices: Choices) -> float:
        """Held-out accuracy without BatchNorm recalibration, which shows what that is worth."""
        return self._evaluator.evaluate_uncalibrated(choices).top1


def _open(run_dir: Path) -> tuple[_State, TrainedSupernet, Path]:
    """The run and its newest whole checkpoint, in a state that lasted while they were looked up."""
    while True:  # verifying a checkpoint takes a moment, in which training may save the next one
        state = _state(run_dir)
        run = open_supernet_run(run_dir)
        checkpoint = run.checkpoint()
        if _state(run_dir) == state:
            return state, run, checkpoint


def _state(run_dir: Path) -> _State:
    """What tells one state of a run's files from another, cheap enough for every candidate."""
    files = [run_dir / name for name in ("args.json", "cost.json", "split.json")]
    return [_file_state(path) for path in (*files, newest_mark(run_dir / "checkpoints"))]


def _file_state(path: Path | None) -> tuple[str, int, int, int] | None:
    try:
        status = os.stat(path) if path else None
    except OSError:
        return None
    return (str(path), status.st_ino, status.st_size, status.st_mtime_ns) if status else None
