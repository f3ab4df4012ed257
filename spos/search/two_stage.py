"""Two-stage search: blocks first, then channels on the best blocks (CanyonWind).

Imports `spos.architecture`, `spos.errors`, the rest of the search and numpy; never torch.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from spos.architecture import Candidate, Choices, SearchSpec
from spos.errors import ConfigError, ConstraintError
from spos.search.evolution import Evolution
from spos.search.feasible import FeasibleSpace, Genes
from spos.search.history import History, Known, ranked
from spos.search.settings import check_plan, check_whole

CHANNELS = ("channel_*",)  # labels of widths in our spaces
NUM_DRAWS = 100  # of blocks, to see how many meet the constraints at a width


@dataclass(frozen=True)
class TwoStage:
    """Evolution of the blocks at fixed widths, then of the widths of the best blocks.

    In the first stage all widths have the same place in their lists: the one at which most blocks
    meet the constraints, the widest of these. A stage that has nothing more to try leaves its
    candidates to the other one, and both to the whole space.

    Attributes:
        rounds: of both stages together.
        population: candidates of a round.
        block_rounds: rounds of the first stage; half of all.
        num_best: how many of the best blocks get channels; they take turns, round by round.
        channels: labels of the widths, ``*`` for any text.
        width: place of the first stage's widths in their lists, from 0; None: as said above.
        evolution: settings of `Evolution` for both stages, without those that are here.
        seed: of every random draw.
        max_failures: evaluations failing in a row that stop the search.

    Raises:
        ConfigError: naming the setting, its value and what is expected.
    """

    rounds: int = 20
    population: int = 50
    block_rounds: int = None  # type: ignore[assignment]  # None: the share named above
    num_best: int = 1
    channels: Sequence[str] = CHANNELS
    width: int | None = None
    evolution: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    max_failures: int = 10

    def __post_init__(self) -> None:
        check_plan(self)
        check_whole("rounds", self.rounds, low=2)
        if self.block_rounds is None:
            object.__setattr__(self, "block_rounds", self.rounds // 2)
        check_whole("block_rounds", self.block_rounds, low=1)
        if self.block_rounds >= self.rounds:
            raise ConfigError(
                f"block_rounds is {self.block_rounds} of {self.rounds} rounds, which leaves none "
                "for the channels; lower it or raise rounds"
            )
        check_whole("num_best", self.num_best, low=1)
        if self.width is not None:
            check_whole("width", self.width, low=0)
        object.__setattr__(self, "channels", check_patterns("channels", self.channels))
        object.__setattr__(self, "evolution", asdict(self._evolution))

    @property
    def _evolution(self) -> Evolution:
        shared = {name: getattr(self, name) for name in _SHARED}
        if not isinstance(self.evolution, Mapping):
            raise ConfigError(f"evolution is {self.evolution!r}, expected settings and values")
        try:
            return Evolution(**{**self.evolution, **shared})
        except TypeError as problem:
            raise ConfigError(f"evolution: {problem}") from None

    @property
    def batch_size(self) -> int:
        """How many candidates are chosen at once: a whole generation."""
        return self.population

    def check_space(self, space: FeasibleSpace) -> None:
        """Refuse a space without blocks or without channels to choose, or bounds without blocks.

        Raises:
            ConfigError: with the labels that are searched.
            ConstraintError: if no blocks meet the constraints in the first stage.
        """
        self._blocks_part(space)

    def propose(
        self, space: FeasibleSpace, history: History, count: int, generator: np.random.Generator
    ) -> list[Genes]:
        """The next generation; see `spos.search.searcher.Method`."""
        number = 1 + max((each.round for each in history.values()), default=0)
        known = dict(history)
        chosen: list[Genes] = []
        for part in self._parts(space, history, number):
            own = {genes: each for genes, each in known.items() if part.has_fixed(genes)}
            new = self._evolution.propose(part, own, count - len(chosen), generator)
            known.update((genes, Known(number)) for genes in new)
            chosen += new
            if len(chosen) == count:
                break
        return chosen

    def _parts(
        self, space: FeasibleSpace, history: History, number: int
    ) -> Iterator[FeasibleSpace]:
        """The parts of the space that round ``number`` draws from, in turn until it is full."""
        blocks = self._blocks_part(space)
        if number <= self.block_rounds:
            yield blocks
        channels = match_labels(space.spec, self.channels)
        best = [genes for genes, _ in ranked(history) if blocks.has_fixed(genes)]
        turn = max(0, number - 1 - self.block_rounds) % min(self.num_best, len(best) or 1)
        for genes in [*best[turn : self.num_best], *best[:turn], *best[self.num_best :]]:
            choices = space.choices(genes).items()
            part = _part(space, {label: each for label, each in choices if label not in channels})
            if part is not None:
                yield part
        if number > self.block_rounds:
            yield blocks
        yield space

    def _blocks_part(self, space: FeasibleSpace) -> FeasibleSpace:
        """The part of the space with the first stage's widths."""
        labels = self._free_channels(space)
        lists = {label: space.spec.choices[label] for label in labels}
        length = max(map(len, lists.values()))
        if self.width is not None and self.width >= length:
            raise ConfigError(
                f"width is {self.width}, but {labels[0]} has the places 0 to {length - 1}"
            )
        places = range(length) if self.width is None else [self.width]
        widths = [_at(place, lists, length) for place in reversed(places)]
        # Of those with the same share the widest stays first.
        for each in sorted(widths, key=lambda each: -_count_feasible(space, each)):
            if (part := _part(space, each)) is not None:
                return part
        raise ConstraintError(
            f"two_stage: no blocks of {space.spec.space!r} meet the constraints while all widths "
            "have the same place in their lists; widen the bounds, or take another searcher"
        )

    def _free_channels(self, space: FeasibleSpace) -> list[str]:
        """The labels of the widths that are searched, if there are such and others."""
        free = [label for label in space.spec.choices if label not in space.fixed]
        channels = [each for each in match_labels(space.spec, self.channels) if each in free]
        if not channels or len(channels) == len(free):
            raise ConfigError(
                f"the two_stage searcher needs choices of blocks and of channels "
                f"({', '.join(self.channels)}); of {space.spec.space!r} these are searched: "
                f"{', '.join([*free[:3], '...'][: len(free)])}. Train the supernet with "
                "channel_scales, name the labels of your widths in `channels`, or take another "
                "searcher"
            )
        return channels


# settings that both stages take from the whole search
_SHARED = ("rounds", "population", "seed", "max_failures")


def check_patterns(name: str, value: Any) -> list[str]:
    """A list of labels, in which ``*`` stands for any text.

    Raises:
        ConfigError: naming the setting, if it is none.
    """
    patterns = [value] if isinstance(value, str) else value
    is_list = isinstance(patterns, (list, tuple)) and len(patterns) > 0
    if not is_list or any(not isinstance(each, str) for each in patterns):
        raise ConfigError(f"{name} is {value!r}, expected labels such as [channel_*]")
    return list(patterns)


def match_labels(spec: SearchSpec, patterns: Sequence[str]) -> list[str]:
    """The labels of a space that any of the patterns matches."""
    return [
        label
        for label in spec.choices
        if any(fnmatch.fnmatchcase(label, each) for each in patterns)
    ]


def _part(space: FeasibleSpace, fixed: Choices) -> FeasibleSpace | None:
    """The part of a space with these choices; None if nothing of it meets the constraints."""
    try:
        return space.fix(fixed)
    except ConstraintError:
        return None


def _at(
    place: int, lists: Mapping[str, tuple[Candidate, ...]], length: int
) -> dict[str, Candidate]:
    """The candidates at a place; in shorter lists at the same share of their length."""
    return {label: each[place * len(each) // length] for label, each in lists.items()}


def _count_feasible(space: FeasibleSpace, widths: Mapping[str, Candidate]) -> int:
    """How many of some random architectures meet the constraints at these widths."""
    if not space.constraints:
        return NUM_DRAWS
    draws = np.random.default_rng(0).random((NUM_DRAWS, len(space.spec.choices)))
    count = 0
    for genes in space.scale(draws).tolist():
        choices = {**space.choices(tuple(genes)), **widths}
        count += all(each.allows(space.table, choices) for each in space.constraints)
    return count
