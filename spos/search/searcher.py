"""A search as ask and tell: what is handed out, what came of it, its state; for every method.

Imports `spos.architecture`, `spos.cost.constraints`, `spos.errors`, the rest of the search and
numpy; never torch.
"""

from __future__ import annotations

import json
import math
import operator
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from spos.architecture import Candidate, Choices
from spos.cost.constraints import write_constraints
from spos.errors import ConfigError, SearchError
from spos.search.feasible import FeasibleSpace, Genes
from spos.search.history import FAILED, RUNNING, SCORED, STATUSES, WAITING, History, Known, ranked
from spos.search.objective import Objective, is_number

STATE_VERSION = 2
MAX_ATTEMPTS = 2  # a candidate whose evaluation fails is tried once more, then excluded


class Method(Protocol):
    """How candidates are proposed: a frozen dataclass of settings and one function."""

    @property
    def rounds(self) -> int:
        """How many rounds the search has; what was best is written after each."""
        ...

    @property
    def population(self) -> int:
        """Candidates of a round."""
        ...

    @property
    def seed(self) -> int:
        """Of every random draw."""
        ...

    @property
    def max_failures(self) -> int:
        """Evaluations failing in a row that stop the search."""
        ...

    @property
    def batch_size(self) -> int:
        """How many candidates are chosen at once, from the scores known by then."""
        ...

    def propose(
        self, space: FeasibleSpace, history: History, count: int, generator: np.random.Generator
    ) -> list[Genes]:
        """The candidates to evaluate next.

        Args:
            space: what may be proposed.
            history: everything that was chosen so far; nothing of it may be proposed again.
            count: how many are wanted; fewer are taken for all that there are.
            generator: of every random draw.
        """
        ...


@dataclass(frozen=True)
class Scored:
    """A candidate that has a score."""

    choices: Mapping[str, Candidate]
    score: float
    round: int


class Search:
    """The search. Not thread-safe; every method may be called in any order, repeatedly.

    A batch is chosen when the candidates of the batch before have all been handed out, from the
    scores known by then: nobody ever waits. With one evaluation at a time the batches of
    `Evolution` are exactly the generations of the official code; with several, the last few scores
    of a batch come too late for the next one and count for the one after.

    A candidate is handed out once, and once more if its evaluation fails. Telling again, late or in
    another order changes nothing; a score always wins over a failure.

    Every draw is a function of (seed, batch), so the sequence of candidates depends only on the
    settings and the scores, and a search that continues from its `state` is the same search.

    Args:
        space: what may be drawn.
        method: how candidates are proposed, with the settings of the search.
        objective: what the scores are; by default those that trials report.

    Raises:
        ConfigError: if a setting of the method is nothing that JSON holds.
    """

    def __init__(
        self, space: FeasibleSpace, method: Method, objective: Objective | None = None
    ) -> None:
        self.space, self.method, self.objective = space, method, objective or Objective()
        self.failures_in_a_row = 0
        # The method is frozen, as Method says, and a state is taken after every event.
        self._settings = _settings(method)
        self._num_batches = 0
        self._is_exhausted = False
        self._history: dict[Genes, Known] = {}
        self._waiting: deque[Genes] = deque()

    # -- ask and tell --------------------------------------------------------------------------

    def ask(self) -> dict[str, Candidate] | None:
        """The choices to evaluate next.

        None if there is nothing to hand out: for good if `is_finished` or `is_stopped`, else
        until one of the `running` candidates fails, which is then handed out again.
        """
        if self.is_stopped:
            return None
        if not self._waiting and not self._is_chosen:
            self._choose_batch()
        if not self._waiting:
            return None
        genes = self._waiting.popleft()
        self._history[genes].status = RUNNING
        return self.space.choices(genes)

    def tell(self, choices: Choices, score: float | None) -> bool:
        """What came of an evaluation.

        Args:
            choices: the architecture. One that was never asked for counts as evaluated, and as a
                possible parent, if it meets the constraints.
            score: more is better; None, NaN or infinity is a failure.

        Returns:
            Whether this settled the candidate: it now has its score, or has failed for good.

        Raises:
            ArchitectureError: if the choices are not of the space.
        """
        genes = self.space.genes(choices)
        candidate = self._history.get(genes)
        if score is None or not is_number(score):
            if candidate is None or candidate.status != RUNNING:
                return False
            self.failures_in_a_row += 1
            return self._put_back(genes)
        if candidate is None and self.space.allows(genes):
            candidate = self._history[genes] = Known(round=0)
        if candidate is None or candidate.status == SCORED:
            return False
        if candidate.status == WAITING and genes in self._waiting:
            self._waiting.remove(genes)
        candidate.status, candidate.score = SCORED, float(score)
        self.failures_in_a_row = 0
        return True

    def lose(self, choices: Choices) -> bool:
        """The evaluation of a running candidate vanished: as a failure, but not one in a row.

        Returns:
            Whether this settled the candidate.
        """
        genes = self.space.genes(choices)
        candidate = self._history.get(genes)
        if candidate is None or candidate.status != RUNNING:
            return False
        return self._put_back(genes)

    def take_back(self, choices: Choices) -> None:
        """A candidate that was handed out never reached anybody: it is the next one again."""
        genes = self.space.genes(choices)
        candidate = self._history.get(genes)
        if candidate is not None and candidate.status == RUNNING:
            candidate.status = WAITING
            self._waiting.appendleft(genes)

    def retry_failed(self) -> None:
        """Candidates that failed for good wait again, before all others; no failure counts."""
        for genes, candidate in reversed(self._history.items()):
            candidate.num_attempts = 0
            if candidate.status == FAILED:
                candidate.status = WAITING
                self._waiting.appendleft(genes)

    def count_failure(self) -> None:
        """An evaluation failed, but whose is not known (yet)."""
        self.failures_in_a_row += 1

    def _put_back(self, genes: Genes) -> bool:
        """Hand a candidate out again, after the waiting ones, or exclude it."""
        candidate = self._history[genes]
        candidate.num_attempts += 1
        is_excluded = candidate.num_attempts >= MAX_ATTEMPTS
        candidate.status = FAILED if is_excluded else WAITING
        if not is_excluded:
            self._waiting.append(genes)
        return is_excluded

    def _choose_batch(self) -> None:
        generator = np.random.Generator(
            # The second word of the key keeps these draws apart from those that train the paths.
            np.random.Philox(
                key=[self.method.seed % 2**64, 1], counter=[0, 0, 0, self._num_batches + 1]
            )
        )
        count = min(self.method.batch_size, self.num_planned - self._num_chosen)
        proposed = self.method.propose(self.space, self._history, count, generator)
        chosen = self._check_proposed(proposed, count)
        self._is_exhausted = not chosen
        self._num_batches += bool(chosen)  # a batch without candidates is none
        for genes in chosen:
            self._history[genes] = Known(self.round)
            self._waiting.append(genes)

    def _check_proposed(self, proposed: Sequence[Genes], count: int) -> list[Genes]:
        """The candidates as tuples of Python's integers, as a state keeps them.

        Raises:
            SearchError: if the searcher may not propose them.
        """
        try:
            chosen = [tuple(map(operator.index, genes)) for genes in proposed]
        except TypeError as problem:
            shown = " ".join(repr(proposed).split())[:99]
            raise SearchError(
                f"{type(self.method).__name__} proposed {shown}, expected a list of genes: of each "
                f"choice the number of its candidate ({problem})"
            ) from None
        sizes = [len(each) for each in self.space.spec.choices.values()]
        advice = "; see spos.search.breeding.Batch, whose `add` refuses such candidates"
        for number, genes in enumerate(chosen):
            in_space = len(genes) == len(sizes) and all(
                0 <= gene < size for gene, size in zip(genes, sizes, strict=True)
            )
            if not in_space:
                fault, advice = f"is not of the space, which has {sizes} candidates", ""
            elif genes in self._history or genes in chosen[:number]:
                fault = "was proposed before"
            elif not self.space.allows(genes):
                fault = "does not meet the constraints or the fixed choices"
            else:
                continue
            raise SearchError(
                f"{type(self.method).__name__} proposed {list(genes)}, which {fault}{advice}"
            )
        if len(chosen) > count:
            raise SearchError(
                f"{type(self.method).__name__} proposed {len(chosen)} candidates, expected "
                f"{count} at most"
            )
        return chosen

    # -- what is known -------------------------------------------------------------------------

    @property
    def num_planned(self) -> int:
        """How many candidates the whole search evaluates."""
        return self.method.rounds * self.method.population

    @property
    def round(self) -> int:
        """The round of the last candidates that were chosen; 0 before the first."""
        return math.ceil(self._num_chosen / self.method.population)

    @property
    def is_stopped(self) -> bool:
        """Whether too many evaluations failed in a row."""
        return self.failures_in_a_row >= self.method.max_failures

    @property
    def is_finished(self) -> bool:
        """Whether every planned candidate is settled, or no further architecture was found."""
        return self._is_chosen and not self._waiting and not self.running

    @property
    def _num_chosen(self) -> int:
        """How many candidates were chosen, if every batch was full."""
        return min(self._num_batches * self.method.batch_size, self.num_planned)

    @property
    def _is_chosen(self) -> bool:
        return self._is_exhausted or self._num_chosen >= self.num_planned

    @property
    def running(self) -> list[dict[str, Candidate]]:
        """The candidates that were handed out and not settled."""
        every = self._history.items()
        return [self.space.choices(genes) for genes, each in every if each.status == RUNNING]

    @property
    def waiting(self) -> list[dict[str, Candidate]]:
        """The candidates that will be handed out next."""
        return [self.space.choices(genes) for genes in self._waiting]

    @property
    def history(self) -> History:
        """What is known of every candidate, in the order in which they were chosen."""
        return self._history

    def round_of(self, choices: Choices) -> int:
        """The round a candidate was chosen in; 0 for one that was never asked for."""
        candidate = self._history.get(self.space.genes(choices))
        return candidate.round if candidate else 0

    def ranking(self, *, last_round: int | None = None) -> list[Scored]:
        """The scored candidates (of the rounds up to ``last_round``), best first, oldest first."""
        return [
            Scored(self.space.choices(genes), score, self._history[genes].round)
            for genes, score in ranked(self._history, last_round=last_round)
        ]

    @property
    def num_completed_rounds(self) -> int:
        """How many rounds from the first on are chosen and have all their candidates settled."""
        whole = self.round if self._is_chosen else self._num_chosen // self.method.population
        unsettled = [
            each.round for each in self._history.values() if each.status in (WAITING, RUNNING)
        ]
        return min([whole, *(number - 1 for number in unsettled)])

    # -- state ---------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """All of the search as JSON: settings, candidates in order, and who waits."""
        numbers = {genes: number for number, genes in enumerate(self._history)}
        return {
            "version": STATE_VERSION,
            "space": self.space.spec.space,
            "options": dict(self.space.spec.options),
            "method": _name(self.method),
            "settings": self._settings,
            "task": self._task(),
            "table": self._table(),
            "num_batches": self._num_batches,
            "is_exhausted": self._is_exhausted,
            "failures_in_a_row": self.failures_in_a_row,
            "waiting": [numbers[genes] for genes in self._waiting],
            "candidates": [
                [list(genes), each.round, each.status, each.score, each.num_attempts]
                for genes, each in self._history.items()
            ],
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state`.

        The count of failures in a row begins anew: whoever continues a stopped search has mended
        what stopped it. `running` candidates stay so; say `lose` where nobody evaluates them.

        Raises:
            SearchError: if the state is not one of this search.
        """
        try:
            self._check_state(state)
            history = dict(map(self._restored, state["candidates"]))
            order = list(history)
            waiting = deque(order[number] for number in state["waiting"])
            is_exhausted, num_batches = bool(state["is_exhausted"]), int(state["num_batches"])
        except (KeyError, TypeError, ValueError, IndexError) as problem:
            if isinstance(problem, SearchError):
                raise
            raise SearchError(
                f"the saved state of the search is malformed ({type(problem).__name__}: {problem})"
            ) from None
        self._history, self._waiting = history, waiting
        self._is_exhausted, self._num_batches, self.failures_in_a_row = is_exhausted, num_batches, 0

    def _task(self) -> dict[str, Any]:
        """What is searched for."""
        return {
            "objective": dict(self.objective.weights),
            "constraints": write_constraints(self.space.constraints),
            "fixed choices": dict(self.space.fixed),
            "sums of costs": self.space.table.sums,
        }

    def _table(self) -> dict[str, Any]:
        """What of the cost table the candidates, limits and scores hang on."""
        table = self.space.table
        used = {each.metric for each in self.space.constraints} | {*self.objective.weights}
        used.update(getattr(self.method, "costs", ()))
        return {
            "choices": {label: list(each) for label, each in table.spec.choices.items()},
            "costs": {name: table.digest(name) for name in table.metrics if name in used},
        }

    def _check_state(self, state: Mapping[str, Any]) -> None:
        spec = self.space.spec
        expected = STATE_VERSION, spec.space, dict(spec.options)
        found = state["version"], state["space"], state["options"]
        if found != expected:
            raise SearchError(
                f"the saved search has version, space and options {found}, expected {expected}; "
                "its cost table was replaced: put it back, or start a new search"
            )
        given = {"method": _name(self.method), **self._settings, **self._task()}
        saved = {"method": state["method"], **state["settings"], **state.get("task", {})}
        for name, value in given.items():
            if saved.get(name, value) != value:  # a setting that the saved search did not know
                raise SearchError(
                    f"the saved search has {name} {saved[name]!r}, this one {value!r}; continue "
                    "it with the settings it began with, or start a new one"
                )
        if state.get("table", self._table()) != self._table():  # older states do not have it
            raise SearchError(
                "the cost table has changed since the search began: other candidates, or costs "
                "that were measured again; put it back, or start a new search"
            )

    def _restored(self, row: list[Any]) -> tuple[Genes, Known]:
        genes, number, status, score, num_attempts = row
        if status not in STATUSES or (score is not None) != (status == SCORED):
            raise ValueError(f"a candidate is {status!r} with score {score!r}")
        self.space.choices(tuple(genes))  # raises if they do not fit
        return tuple(genes), Known(number, status, score, num_attempts)


def _name(method: Method) -> str:
    """That of a searcher in a state: one of the user's own has its module, as names may be ours."""
    kind = type(method)
    is_ours = kind.__module__.startswith("spos.")
    return kind.__name__ if is_ours else f"{kind.__module__}:{kind.__name__}"


def _settings(method: Method) -> dict[str, Any]:
    """Those of a method as a state gives them back, in which a tuple is a list."""
    try:
        found = asdict(method)  # type: ignore[call-overload]  # a dataclass, as Method says
        return json.loads(json.dumps(found, allow_nan=False))
    except (TypeError, ValueError) as problem:
        raise ConfigError(
            f"the settings of {type(method).__name__} cannot be kept for a resume ({problem}); "
            "expected numbers, words, lists and objects of them"
        ) from None
