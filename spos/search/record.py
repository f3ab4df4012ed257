"""A search and its files: what a result says, what becomes of it, what is kept on disk.

Imports `spos.architecture`, `spos.cost`, `spos.errors`, `spos.files` and the rest of the search;
never torch.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from spos.architecture import Architecture, Choices, SearchSpec, describe_differences
from spos.cost.constraints import Constraint, parse_constraints, write_constraints
from spos.errors import ArchitectureError, SearchError
from spos.files import read_json, write_text
from spos.search.objective import DEFAULT, Objective, is_number
from spos.search.pareto import ParetoEvolution, find_front, measure
from spos.search.results import (
    Entry,
    append_entry,
    read_entries,
    remove_rounds,
    save_best,
    save_front,
    save_round,
    write_entries,
)
from spos.search.searcher import Search
from spos.search.trial import SUPERNET

STATE_VERSION = 1
NUM_BEST = 10  # architectures kept after each round

_logger = logging.getLogger("nni.spos.search")  # below "nni", so that it reaches dispatcher.log


@dataclass(frozen=True)
class Result:
    """What a trial's final metric says.

    Attributes:
        choices: the architecture that was evaluated; None if that is not known.
        score: None for a failure.
        metrics: the other numbers.
        failure: why there is no score.
        is_foreign: whether another network was evaluated than the search goes by; no candidate can
            do better then.
    """

    choices: Choices | None
    score: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    failure: str | None = None
    is_foreign: bool = False


def read_result(value: Any, spec: SearchSpec, *, expected: Choices | None) -> Result:
    """The meaning of a final metric: a score, or a dict with ``default``, ``arch``, ``error``.

    One that says what it was evaluated with (`spos.search.trial.Trial`) counts if that is the
    network of ``spec``.

    Args:
        value: the metric.
        spec: the search space.
        expected: the architecture that the trial was to evaluate, for metrics without ``arch``.
    """
    value = value if isinstance(value, Mapping) else {"default": value}
    score, choices, failure = value.get("default"), None, None
    for given in (value.get("arch"), expected):
        if given is not None and choices is None:
            try:
                choices = spec.check(given, source="a trial's result")
            except ArchitectureError as problem:
                failure = str(problem)
    if difference := _describe_other_network(value.get(SUPERNET), spec):
        return Result(choices, failure=difference, is_foreign=True)
    if "error" in value:
        error = value["error"]
        failure = str(error.get("reason") if isinstance(error, Mapping) else error)
    elif failure is None and not is_number(score):
        failure = f"the trial reported the score {score!r}"
    if failure is not None:
        return Result(choices, failure=failure)
    metrics = {name: each for name, each in value.items() if name != "default" and is_number(each)}
    return Result(choices, score, metrics)


def _describe_other_network(supernet: Any, spec: SearchSpec) -> str:
    """What tells the supernet of a trial from that of the cost table; "" if it does not say."""
    options = supernet.get("options") if isinstance(supernet, Mapping) else None
    if not isinstance(options, Mapping):
        return ""
    differences = describe_differences(
        {"space": supernet.get("space"), **options}, {"space": spec.space, **spec.options}
    )
    return differences and (
        f"the cost table of this search is not that of the supernet ({differences}); write search "
        'space and cost table anew (`nnictl ss_gen -t "python tester.py"`) and start a new search, '
        "or do both with `python -m spos search start`"
    )


class SearchRecord:
    """Tells the searcher results and writes what is settled (see `spos.search.results`).

    Args:
        search: the searcher.
        folder: of `search.jsonl` and `checkpoints`.
        state_path: file of the state that a later process continues from.
    """

    def __init__(self, search: Search, *, folder: Path, state_path: Path) -> None:
        self.search = search
        self.spec = search.space.spec
        self._folder, self._state_path = folder, state_path
        self._metrics: dict[str, Mapping[str, float]] = {}  # by architecture id
        self._num_saved_rounds = 0
        self._best: Architecture | None = None  # as written
        self._is_readable = True  # what is on disk; if not, it is left as it is
        self.last_failure = "none"  # what was said of the candidate that failed last

    def settle(
        self, result: Result, *, trial: str | None = None, seconds: float | None = None
    ) -> None:
        """Tell the search, and keep the candidate if that settled it.

        Raises:
            SearchError: if another network was evaluated than the search goes by.
        """
        choices = result.choices
        if not self._is_readable:
            return
        if result.is_foreign:
            raise SearchError(str(result.failure))
        if choices is None:
            _logger.warning("a result without a known architecture is left out (trial %s)", trial)
            return
        result = self._judge(result, choices)
        if result.failure is not None:
            arch_id = self._architecture(choices).id
            self.last_failure = result.failure
            _logger.warning("%s failed (trial %s): %s", arch_id, trial, result.failure)
        if self.search.tell(choices, result.score):
            self._write(result, trial, seconds)

    def _judge(self, result: Result, choices: Choices) -> Result:
        """The result with the objective's value as its score."""
        objective = self.search.objective
        if result.score is None or objective == Objective():
            return result
        reported = {**result.metrics, DEFAULT: result.score}
        score = objective.value({**self.search.space.table.costs(choices), **reported})
        if not math.isfinite(score):
            return Result(choices, failure=f"the objective {objective} is {score}")
        return Result(choices, score, reported)

    def lose_running(self) -> None:
        """No candidate is being evaluated any more, whatever the search believes."""
        failure = "its trial ended without a result"
        for choices in self.search.running:
            _logger.warning(
                "nobody evaluates candidate %s any more", self._architecture(choices).id
            )
            if self.search.lose(choices):
                self._write(Result(choices, failure=failure), None, None)

    def save(self, problem: str | None) -> None:
        """Write the state, and the best architectures of the rounds completed since."""
        if not self._is_readable:
            return
        search = self.search
        while self._num_saved_rounds < search.num_completed_rounds:
            self._num_saved_rounds += 1
            ranking = search.ranking(last_round=self._num_saved_rounds)
            best = [self._architecture(each.choices) for each in ranking]
            save_round(self._folder, self._num_saved_rounds, best[:NUM_BEST])
            self._save_front()
        state = {
            "version": STATE_VERSION,
            "problem": problem,
            "constraints": write_constraints(search.space.constraints),  # for those who look
            "search": search.state(),
        }
        write_text(self._state_path, json.dumps(state, allow_nan=False))

    def load(self) -> None:
        """Continue from the files.

        Raises:
            SearchError: if they are damaged or of another search; they are then left untouched.
        """
        self._is_readable = False
        if self._state_path.exists():
            state = read_json(self._state_path, error=SearchError)
            is_state = isinstance(state, dict) and isinstance(state.get("search"), dict)
            if not is_state or state.get("version") != STATE_VERSION:
                raise SearchError(
                    f"{self._state_path}: is not the state of a search, version {STATE_VERSION}"
                )
            self.search.load_state(state["search"])
        else:
            _logger.warning("%s is not there: the search starts anew", self._state_path)
        # The journal is written first: a crash between the two leaves a candidate in it alone.
        for entry in read_entries(self._folder):
            self._metrics[entry.id] = entry.metrics
            if entry.score is not None:
                self.search.tell(entry.choices, entry.score)
            else:
                self.search.lose(entry.choices)
        self._is_readable = True
        self._save_best()
        self._take_back_failures()  # if `retry_failed` was killed before it did

    def retry_failed(self) -> None:
        """Let the candidates that failed for good be evaluated again, first of all; after `load`.

        Their lines in `search.jsonl` go, as do the best architectures of the rounds that are now
        incomplete, which are written again when those are complete.
        """
        self.search.retry_failed()
        self.save(None)
        self._take_back_failures()

    def _take_back_failures(self) -> None:
        entries, waiting = read_entries(self._folder), self.search.waiting
        rounds = {each.id: each.round for each in entries if each.choices in waiting}
        if rounds:  # they failed before, since what has a score does not wait
            remove_rounds(self._folder, min(rounds.values()))
            write_entries(self._folder, [each for each in entries if each.id not in rounds])

    def _write(self, result: Result, trial: str | None, seconds: float | None) -> None:
        arch = self.spec.architecture(result.choices)
        metrics = {**self.search.space.table.costs(arch.choices), **result.metrics}
        self._metrics[arch.id] = metrics
        entry = Entry(
            round=self.search.round_of(arch.choices),
            id=arch.id,
            choices=dict(arch.choices),
            score=result.score,
            metrics=metrics,
            failure=result.failure,
            objective=str(self.search.objective),
            trial=trial,
            seconds=seconds,
            time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        append_entry(self._folder, entry)
        self._save_best()

    def _save_best(self) -> None:
        ranking = self.search.ranking()
        best = self._architecture(ranking[0].choices) if ranking else None
        if best is not None and best != self._best:
            save_best(self._folder, best)
            self._best = best

    def _save_front(self) -> None:
        """Write the architectures that none beats in score and costs, cheapest first."""
        search, method = self.search, self.search.method
        if not isinstance(method, ParetoEvolution):
            return
        genes, losses = measure(search.space, search.history, method.costs)
        numbers = find_front(losses).nonzero()[0].tolist()
        numbers.sort(key=lambda number: losses[number, 1])
        front = [self._architecture(search.space.choices(genes[number])) for number in numbers]
        save_front(self._folder, front)

    def _architecture(self, choices: Choices) -> Architecture:
        arch = self.spec.architecture(choices)
        return self.spec.architecture(choices, metrics=self._metrics.get(arch.id))


@dataclass(frozen=True)
class Progress:
    """How far a search is, from its saved state.

    Attributes:
        num_planned: candidates of the whole search.
        is_exhausted: whether no further architecture was found before that.
        problem: why the search stopped before its end; None if it did not.
        space: name of the search space.
        options: of the search space.
        constraints: that every candidate meets; None if the state does not say, as older ones.
    """

    num_planned: int
    is_exhausted: bool
    problem: str | None
    space: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    constraints: tuple[Constraint, ...] | None = None


def read_progress(state_path: Path) -> Progress | None:
    """How far a search is; None if it has saved nothing (a tuner of another kind never does).

    Raises:
        SearchError: if the state is there but damaged.
    """
    if not state_path.exists():
        return None
    state = read_json(state_path, error=SearchError)
    try:
        search, settings = state["search"], state["search"]["settings"]
        limits = state.get("constraints")
        return Progress(
            int(settings["rounds"]) * int(settings["population"]),
            bool(search["is_exhausted"]),
            state["problem"],
            str(search["space"]),
            dict(search["options"]),
            None if limits is None else parse_constraints(limits, source=str(state_path)),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise SearchError(f"{state_path}: is not the state of a search") from None
