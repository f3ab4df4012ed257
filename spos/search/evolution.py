"""Evolutionary search (Guo et al. 2020, sec. 3.3 and the official code), as ask and tell.

Imports `spos.architecture`, `spos.errors`, `spos.search.feasible` and numpy; never torch.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np

from spos.architecture import Candidate, Choices
from spos.errors import SearchError
from spos.search.feasible import FeasibleSpace, Genes
from spos.search.settings import EvolutionSettings

STATE_VERSION = 1
MAX_ATTEMPTS = 2  # a candidate whose evaluation fails is tried once more, then excluded
TRIES_PER_CHILD = 10  # as in the official code: children that are not new or not feasible


class Searcher(Protocol):
    """Says which architecture to try next. Every method may be called in any order, repeatedly."""

    def ask(self) -> dict[str, Candidate] | None:
        """The choices to evaluate next; None if there is nothing to hand out now."""
        ...

    def tell(self, choices: Choices, score: float | None) -> bool:
        """What came of it: a score (more is better), or None for a failure."""
        ...

    def state(self) -> dict[str, Any]:
        """All of it as JSON."""
        ...

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state`."""
        ...


@dataclass(frozen=True)
class Scored:
    """A candidate that has a score."""

    choices: Mapping[str, Candidate]
    score: float
    round: int


@dataclass
class _Candidate:
    """What is known of an architecture that was chosen for evaluation.

    ``status`` is ``waiting`` (to be handed out), ``running``, ``scored`` or ``failed`` (excluded).
    """

    round: int
    status: str = "waiting"
    score: float | None = None
    num_attempts: int = 0


class Evolution:
    """The search. Satisfies `Searcher`; not thread-safe.

    A round's children are bred when the candidates of the round before have all been handed out,
    from the scores known by then: nobody ever waits. With one evaluation at a time these are
    exactly the generations of the official code; with several, the last few scores of a round come
    too late for the next one and are parents of the one after.

    A candidate is handed out once, and once more if its evaluation fails. Telling again, late or in
    another order changes nothing; a score always wins over a failure.

    Every draw is a function of (seed, round), so the sequence of candidates depends only on the
    settings and the scores, and a search that continues from its `state` is the same search.

    Args:
        space: what may be drawn.
        settings: how the search runs.
    """

    def __init__(self, space: FeasibleSpace, settings: EvolutionSettings | None = None) -> None:
        self.space = space
        self.settings = settings or EvolutionSettings()
        self.round = 0  # the last round that was bred
        self.failures_in_a_row = 0
        self._is_exhausted = False
        self._candidates: dict[Genes, _Candidate] = {}  # in the order in which they were chosen
        self._waiting: deque[Genes] = deque()

    # -- ask and tell --------------------------------------------------------------------------

    def ask(self) -> dict[str, Candidate] | None:
        """The choices to evaluate next.

        None if there is nothing to hand out: for good if `is_finished` or `is_stopped`, else
        until one of the `running` candidates fails, which is then handed out again.
        """
        if self.is_stopped:
            return None
        if not self._waiting and self.round < self.settings.rounds and not self._is_exhausted:
            self._breed()
        if not self._waiting:
            return None
        genes = self._waiting.popleft()
        self._candidates[genes].status = "running"
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
        candidate = self._candidates.get(genes)
        if score is None or not _is_score(score):
            if candidate is None or candidate.status != "running":
                return False
            self.failures_in_a_row += 1
            return self._put_back(genes)
        if candidate is None and self.space.allows(genes):
            candidate = self._candidates[genes] = _Candidate(round=0)
        if candidate is None or candidate.status == "scored":
            return False
        if candidate.status == "waiting" and genes in self._waiting:
            self._waiting.remove(genes)
        candidate.status, candidate.score = "scored", float(score)
        self.failures_in_a_row = 0
        return True

    def lose(self, choices: Choices) -> bool:
        """The evaluation of a running candidate vanished: as a failure, but not one in a row.

        Returns:
            Whether this settled the candidate.
        """
        genes = self.space.genes(choices)
        candidate = self._candidates.get(genes)
        if candidate is None or candidate.status != "running":
            return False
        return self._put_back(genes)

    def count_failure(self) -> None:
        """An evaluation failed, but whose is not known (yet)."""
        self.failures_in_a_row += 1

    def _put_back(self, genes: Genes) -> bool:
        """Hand a candidate out again, after the waiting ones, or exclude it."""
        candidate = self._candidates[genes]
        candidate.num_attempts += 1
        is_excluded = candidate.num_attempts >= MAX_ATTEMPTS
        candidate.status = "failed" if is_excluded else "waiting"
        if not is_excluded:
            self._waiting.append(genes)
        return is_excluded

    # -- what is known -------------------------------------------------------------------------

    @property
    def is_stopped(self) -> bool:
        """Whether too many evaluations failed in a row."""
        return self.failures_in_a_row >= self.settings.max_failures

    @property
    def is_finished(self) -> bool:
        """Whether every planned candidate is settled, or no further architecture was found."""
        is_bred = self._is_exhausted or self.round >= self.settings.rounds
        return is_bred and not self._waiting and not self.running

    @property
    def running(self) -> list[dict[str, Candidate]]:
        """The candidates that were handed out and not settled."""
        every = self._candidates.items()
        return [self.space.choices(genes) for genes, each in every if each.status == "running"]

    def round_of(self, choices: Choices) -> int:
        """The round a candidate was bred in; 0 for one that was never asked for."""
        candidate = self._candidates.get(self.space.genes(choices))
        return candidate.round if candidate else 0

    def ranking(self, *, last_round: int | None = None) -> list[Scored]:
        """The scored candidates (of the rounds up to ``last_round``), best first, oldest first."""
        return [
            Scored(self.space.choices(genes), score, self._candidates[genes].round)
            for genes, score in self._ranked(last_round)
        ]

    def _ranked(self, last_round: int | None = None) -> list[tuple[Genes, float]]:
        scored = [
            (genes, each.score)
            for genes, each in self._candidates.items()
            if each.score is not None and (last_round is None or each.round <= last_round)
        ]
        return sorted(scored, key=lambda pair: -pair[1])  # stable: of equals the oldest first

    @property
    def num_completed_rounds(self) -> int:
        """How many rounds from the first on have all their candidates settled."""
        open_rounds = [
            each.round
            for each in self._candidates.values()
            if each.status in ("waiting", "running")
        ]
        return min(open_rounds) - 1 if open_rounds else self.round

    # -- state ---------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """All of the search as JSON: settings, candidates in order, and who waits."""
        numbers = {genes: number for number, genes in enumerate(self._candidates)}
        return {
            "version": STATE_VERSION,
            "space": self.space.spec.space,
            "options": dict(self.space.spec.options),
            "settings": {each.name: getattr(self.settings, each.name) for each in _FIELDS},
            "round": self.round,
            "is_exhausted": self._is_exhausted,
            "failures_in_a_row": self.failures_in_a_row,
            "waiting": [numbers[genes] for genes in self._waiting],
            "candidates": [
                [list(genes), each.round, each.status, each.score, each.num_attempts]
                for genes, each in self._candidates.items()
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
            candidates = dict(map(self._restored, state["candidates"]))
            order = list(candidates)
            waiting = deque(order[number] for number in state["waiting"])
            is_exhausted, last_round = bool(state["is_exhausted"]), int(state["round"])
        except (KeyError, TypeError, ValueError, IndexError) as problem:
            if isinstance(problem, SearchError):
                raise
            raise SearchError(
                f"the saved state of the search is malformed ({type(problem).__name__}: {problem})"
            ) from None
        self._candidates, self._waiting = candidates, waiting
        self._is_exhausted, self.round, self.failures_in_a_row = is_exhausted, last_round, 0

    def _check_state(self, state: Mapping[str, Any]) -> None:
        spec = self.space.spec
        expected = STATE_VERSION, spec.space, dict(spec.options)
        found = state["version"], state["space"], state["options"]
        if found != expected:
            raise SearchError(
                f"the saved search has version, space and options {found}, expected {expected}; "
                "its cost table was replaced: put it back, or start a new search"
            )
        for each in _FIELDS:
            saved, given = state["settings"][each.name], getattr(self.settings, each.name)
            if saved != given:
                raise SearchError(
                    f"the saved search has {each.name} {saved!r}, this one {given!r}; continue it "
                    "with the settings it began with, or start a new one"
                )

    def _restored(self, row: list[Any]) -> tuple[Genes, _Candidate]:
        genes, number, status, score, num_attempts = row
        if status not in _STATUSES or (score is not None) != (status == "scored"):
            raise ValueError(f"a candidate is {status!r} with score {score!r}")
        self.space.choices(tuple(genes))  # raises if they do not fit
        return tuple(genes), _Candidate(number, status, score, num_attempts)

    # -- breeding ------------------------------------------------------------------------------

    def _breed(self) -> None:
        """Choose the candidates of the next round."""
        self.round += 1
        settings = self.settings
        generator = np.random.Generator(
            # The second word of the key keeps these draws apart from those that train the paths.
            np.random.Philox(key=[settings.seed % 2**64, 1], counter=[0, 0, 0, self.round])
        )
        before = len(self._candidates)
        parents = [genes for genes, _ in self._ranked()[: settings.num_parents]]
        if parents:
            self._add_children(settings.num_mutations, self._mutate, parents, generator)
            self._add_children(settings.num_crossovers, self._cross, parents, generator)
        while len(self._candidates) - before < settings.population:
            genes = self.space.draw(generator, self._candidates)
            if genes is None:
                break
            self._add(genes)
        self._is_exhausted = len(self._candidates) == before
        self.round -= self._is_exhausted  # a round without candidates is none

    def _add_children(self, count: int, make: Any, parents: list[Genes], generator: Any) -> None:
        """Add up to ``count`` new, feasible children; not every try succeeds."""
        for _ in range(count * TRIES_PER_CHILD):
            if count == 0:
                return
            child = make(parents, generator)
            if child not in self._candidates and self.space.allows(child):
                self._add(child)
                count -= 1

    def _add(self, genes: Genes) -> None:
        self._candidates[genes] = _Candidate(self.round)
        self._waiting.append(genes)

    def _mutate(self, parents: list[Genes], generator: np.random.Generator) -> Genes:
        parent = parents[int(generator.random() * len(parents))]
        draws = generator.random((len(parent), 2)).tolist()
        sizes = [len(each) for each in self.space.spec.choices.values()]
        return tuple(
            int(draw * size) if chance < self.settings.mutation_probability else gene
            for gene, size, (chance, draw) in zip(parent, sizes, draws, strict=True)
        )

    def _cross(self, parents: list[Genes], generator: np.random.Generator) -> Genes:
        first, second = (parents[int(draw * len(parents))] for draw in generator.random(2).tolist())
        draws = generator.random(len(first)).tolist()
        return tuple(
            left if draw < 0.5 else right
            for left, right, draw in zip(first, second, draws, strict=True)
        )


_FIELDS = fields(EvolutionSettings)
_STATUSES = ("waiting", "running", "scored", "failed")


def _is_score(score: Any) -> bool:
    is_number = isinstance(score, (int, float)) and not isinstance(score, bool)
    return is_number and math.isfinite(score)
