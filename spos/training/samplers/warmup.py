"""Warm-up of searched widths: the first epochs train the widest ones only.

Imports `spos.architecture`, `spos.cost.constraints`, `spos.cost.table`,
`spos.data.counter_random`, `spos.errors`, `spos.training.samplers.protocol`; never torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spos.architecture import Candidate
from spos.cost.constraints import Constraint
from spos.cost.table import CostTable
from spos.data.counter_random import counter_generator
from spos.errors import CheckpointError, ConfigError, ConstraintError
from spos.training.samplers.protocol import PathSampler, ResumableSampler

SEED_STREAM = 2**32  # of the phases' seeds; apart from what samplers draw

BuildSampler = Callable[[CostTable, Sequence[Constraint], int], PathSampler]


@dataclass(frozen=True)
class Phase:
    """Some epochs in which only the widest widths of each layer are trained.

    Attributes:
        widest: how many of a layer's widths; None for all.
        epochs: how many epochs; None for all that are left.
    """

    widest: int | None
    epochs: int | None


def _phases(*pairs: tuple[int, int]) -> tuple[Phase, ...]:
    return tuple(Phase(*pair) for pair in pairs)


# CanyonWind's two tables for ten widths, by the layout that they were made for. The second leaves
# out epoch 26 in the original, which then stops; here it is one of its neighbours'.
WARMUPS: Mapping[str, tuple[Phase, ...]] = {
    "oneshot": _phases((2, 1), (3, 1), (4, 1), (5, 1), (6, 2), (7, 3), (8, 4), (9, 5)),
    "shufflenetv2plus": _phases((2, 1), (3, 2), (4, 3), (5, 4), (6, 5), (7, 6), (8, 15), (9, 1)),
}


class WarmedSampler:
    """A sampler of a space that grows from its widest widths to the whole.

    In each phase the paths are those of a sampler of the space with the phase's widths. Ranges that
    no such path can meet (together with those before them) are held back in that phase.

    Args:
        build: makes the sampler from a cost table, ranges and a seed.
        table: costs of the whole space.
        ranges: bounds, which the whole space must be able to meet.
        phases: the schedule.
        seed: of all phases.
        steps_per_epoch: steps of an epoch.

    Raises:
        ConfigError: if the space has no widths to search.
        ConstraintError: if the ranges cannot be met in the whole space.
    """

    def __init__(
        self,
        build: BuildSampler,
        table: CostTable,
        ranges: Sequence[Constraint],
        phases: Sequence[Phase],
        *,
        seed: int,
        steps_per_epoch: int,
    ) -> None:
        if not any(map(_are_widths, table.spec.choices.values())):
            raise ConfigError(
                f"--channel-warmup: {table.spec.space!r} with options {dict(table.spec.options)} "
                "has no widths to search; leave it out, or search them (channel_scales)"
            )
        build(table, ranges, seed)  # refuses ranges that can never be met
        self._build, self._table, self._ranges = build, table, tuple(ranges)
        self._phases = (*phases, Phase(None, None))
        self._seed, self._steps_per_epoch = seed, steps_per_epoch
        self._number, self._sampler = -1, None

    def sample(self, step: int) -> dict[str, Candidate]:
        """The choices of training step ``step``."""
        number, first = self._locate(step)
        return self._enter(number).sample(step - first)

    def state(self) -> dict[str, Any]:
        """The phase, and the state of its sampler if that has one."""
        inner = self._sampler.state() if isinstance(self._sampler, ResumableSampler) else None
        return {"phase": self._number, "sampler": inner}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`.

        Raises:
            CheckpointError: if it is not one of this schedule and space.
        """
        number, inner = state.get("phase"), state.get("sampler")
        if type(number) is not int or not -1 <= number < len(self._phases):
            raise CheckpointError(f"the sampler's state is damaged (phase {number!r})")
        sampler = self._enter(number) if number >= 0 else None
        if inner is not None and isinstance(sampler, ResumableSampler):
            sampler.restore(inner)

    def describe(self) -> Iterator[str]:
        """A line for each phase: its epochs, its widths, the ranges that it holds back."""
        epoch = 0
        for number, phase in enumerate(self._phases):
            _, kept = self._open(number)
            held = [each.metric for each in self._ranges if each not in kept]
            last = "on" if phase.epochs is None else f"to {epoch + phase.epochs}"
            widths = "all" if phase.widest is None else f"the {phase.widest} widest"
            yield f"epoch {epoch + 1} {last}: {widths} widths" + (
                f"; {' and '.join(held)} cannot be met yet" if held else ""
            )
            if phase.epochs is None:
                return
            epoch += phase.epochs

    def _locate(self, step: int) -> tuple[int, int]:
        """The number of the phase of a step, and the phase's first step."""
        first = 0
        for number, phase in enumerate(self._phases):
            end = first + (phase.epochs or 0) * self._steps_per_epoch
            if phase.epochs is None or step < end:
                return number, first
            first = end
        raise AssertionError("the last phase has no end")

    def _enter(self, number: int) -> PathSampler:
        """The sampler of a phase; only one is kept, since a cost grid takes megabytes."""
        if self._sampler is None or number != self._number:
            self._sampler, _ = self._open(number)
            self._number = number
        return self._sampler

    def _open(self, number: int) -> tuple[PathSampler, list[Constraint]]:
        """The sampler of a phase and the ranges that it keeps to."""
        table = _keep_widest(self._table, self._phases[number].widest)
        raw = counter_generator(self._seed, number, stream=SEED_STREAM).bit_generator.random_raw()
        seed, kept = int(raw), []
        sampler = self._build(table, kept, seed)
        for each in self._ranges:
            try:
                sampler = self._build(table, [*kept, each], seed)
            except ConstraintError:
                continue
            kept.append(each)
        return sampler, kept


def _keep_widest(table: CostTable, widest: int | None) -> CostTable:
    if widest is None:
        return table
    return table.restrict(
        {
            label: sorted(candidates)[-widest:]
            for label, candidates in table.spec.choices.items()
            if _are_widths(candidates)
        }
    )


def _are_widths(candidates: Sequence[Candidate]) -> bool:
    """Whether these are numbers to choose from; operators have names, or numbers from 0 on."""
    return len(candidates) > 1 and all(type(each) is int and each > 0 for each in candidates)
