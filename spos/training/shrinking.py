"""Shrinking a search space while its supernet trains: the operators that turned least are dropped.

Imports `spos.architecture`, `spos.cost`, `spos.data.counter_random`, `spos.errors`, `spos.spaces`,
`spos.supernet`, `spos.training` and torch.

The angle-based shrinking of AngleNAS (Hu et al. 2020): an operator is scored by the mean angle
between the initial and the present weights of subnets that contain it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spos.architecture import Candidate, SearchSpec
from spos.cost.additive import conditional_layers, sum_layers
from spos.cost.table import CostTable
from spos.data.counter_random import counter_generator
from spos.errors import CheckpointError, ConfigError, ConstraintError
from spos.spaces.sharing import Choice
from spos.spaces.sliced import active_tensors, get_slicing, own_tensors
from spos.supernet import Supernet
from spos.training import parallel
from spos.training.checkpoint import load_checkpoint, save_checkpoint
from spos.training.samplers.protocol import PathSampler

NUM_CHILDREN = 1000  # subnets that score an operator
MAX_MISSES = 1000  # draws in a row without a new subnet, after which there are no more
MAX_STAGES = 20
REBASED = 50 / 141  # of all operators dropped: angles are measured anew from there, once
PUBLISHED_EPOCHS = 195, 100, 5  # in all, before the first stage, between stages

_STREAM = 2**32  # of random numbers; apart from those of the samplers

Operator = tuple[str, Candidate]
Left = Mapping[str, Sequence[Candidate]]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShrinkPlan:
    """When how many operators are dropped.

    Attributes:
        target: stop at so many architectures, not counting widths and depths.
        first: epochs before the first stage.
        every: epochs between stages, of which there are at most `MAX_STAGES`.
        drop: operators of a stage; below 1 the share of those that can be dropped. None: as many as
            AngleNAS, one more than a layer has with weights (7 of `proxyless_gpu`).
        max_macs: subnets with more score nothing, and one within it always remains.
    """

    target: int
    first: int
    every: int
    drop: float | None = None
    max_macs: float | None = None

    def __post_init__(self) -> None:
        for name, low in (("target", 1), ("first", 1), ("every", 1)):
            if getattr(self, name) < low:
                raise ConfigError(f"shrinking: {name} is {getattr(self, name)}, expected 1 or more")
        drop = 1 if self.drop is None else self.drop
        if drop <= 0 or (drop > 1 and drop != int(drop)):
            raise ConfigError(
                f"--shrink-drop {drop:g}: expected a number of operators or a share below 1"
            )

    def is_due(self, epoch: int) -> bool:
        """Whether a stage follows ``epoch`` epochs."""
        stage, rest = divmod(epoch - self.first, self.every)
        return rest == 0 and 0 <= stage < MAX_STAGES


class Shrinking:
    """A search space that shrinks, and the paths of what is left of it.

    What was dropped when is its whole state, which is kept in the checkpoints beside the weights;
    the weights that angles are measured from are in checkpoints of their own, in ``folder``.

    Args:
        supernet: of the space.
        table: costs of the whole space.
        plan: when to drop how many.
        build_sampler: makes the sampler of a part of the space from its costs.
        publish: called with the costs of what is left whenever that is safely on disk.
        folder: for the weights that angles are measured from.
        seed: of the subnets that are drawn.

    Attributes:
        table: costs of what is left.
        drop: see `ShrinkPlan`.
        stages: what was dropped: epoch, step, and for each operator its label, name and angle.

    Raises:
        ConfigError: if there is nothing to drop.
    """

    def __init__(
        self,
        supernet: Supernet,
        table: CostTable,
        plan: ShrinkPlan,
        *,
        build_sampler: Callable[[CostTable], PathSampler],
        publish: Callable[[CostTable], object],
        folder: Path,
        seed: int,
    ) -> None:
        self._whole, self._plan, self._seed, self._folder = table, plan, seed, folder
        self._build_sampler, self._publish = build_sampler, publish
        self._bare = _find_bare(supernet)
        self.drop = plan.drop if plan.drop is not None else 1 + _most_weighted(table, self._bare)
        self.table, self._sampler = table, build_sampler(table)
        self.stages: list[dict[str, Any]] = []
        size = self._num_architectures(table.spec.choices)
        if size <= plan.target:
            raise ConfigError(
                f"--shrink {plan.target}: {table.spec.space!r} has only {size:,} architectures; "
                "give a smaller number"
            )
        if not _fits(table, plan):
            raise ConfigError(
                f"--shrink-max-macs {plan.max_macs:,}: the least of {table.spec.space!r} is "
                f"{table.bounds()[0]:,}"
            )

    def sample(self, step: int) -> dict[str, Candidate]:
        """The path of training step ``step``."""
        return self._sampler.sample(step)

    def begin(self, network: nn.Module) -> None:
        """Keep the initial weights."""
        self._save_weights(network, 0)

    def after_epoch(self, network: nn.Module, *, epoch: int, step: int) -> None:
        """Drop operators if a stage is due; all ranks call it and drop the same."""
        left = self.table.spec.choices
        if not self._plan.is_due(epoch) or self._num_architectures(left) <= self._plan.target:
            return
        operators = [(label, each) for label in self._bare for each in left[label]]
        operators = [each for each in operators if len(left[each[0]]) > 1]
        scores = torch.full((len(operators),), math.nan, dtype=torch.float64)
        if parallel.rank() == 0:
            scores = torch.tensor(self._score(network, operators, step), dtype=torch.float64)
        scores = parallel.broadcast(scores.to(next(network.parameters()).device)).tolist()
        dropped = self._choose(dict(zip(operators, scores, strict=True)))
        if not dropped:
            return
        base = self._base_step()
        self.stages.append(
            {"epoch": epoch, "step": step, "dropped": [[*op, scores[operators.index(op)]]
                                                       for op in dropped]}
        )  # fmt: skip
        self._apply()
        if self._base_step() != base:
            self._save_weights(network, step)
        log.info(
            "shrunk after epoch %d: without %s; %.3g architectures are left", epoch,
            ", ".join(f"{label} {name}" for label, name in dropped),
            self._num_architectures(self.table.spec.choices),
        )  # fmt: skip

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to hold."""
        return {"stages": self.stages}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned.

        Raises:
            CheckpointError: if it is of another space.
        """
        self.stages = list(state["stages"])
        try:
            self._apply()
        except (ConstraintError, KeyError):
            raise CheckpointError(
                f"{self._folder.parent}: its checkpoint dropped operators that "
                f"{self._whole.spec.space!r} does not have"
            ) from None

    def publish(self) -> None:
        """Say what is left; to be called once a checkpoint holds it."""
        self._publish(self.table)

    def _apply(self) -> None:
        left = {label: list(each) for label, each in self._whole.spec.choices.items()}
        for label, name, _ in (each for stage in self.stages for each in stage["dropped"]):
            left[label] = [each for each in left[label] if each != name]
        self.table = self._whole.restrict(left)
        self._sampler = self._build_sampler(self.table)

    def _base_step(self) -> int:
        """The step whose weights angles are measured from."""
        total = sum(len(self._whole.spec.choices[label]) for label in self._bare)
        count = 0
        for stage in self.stages:
            count += len(stage["dropped"])
            if count > REBASED * total:
                return stage["step"]
        return 0

    def _save_weights(self, network: nn.Module, step: int) -> None:
        if parallel.rank() == 0:
            names = {f"{name}.weight" for name, _ in _weighted(network)}
            weights = {k: v for k, v in network.state_dict().items() if k in names}
            save_checkpoint(self._folder, step, {"network": weights}, keep=2)

    def _score(self, network: nn.Module, operators: list[Operator], step: int) -> list[float]:
        assert isinstance(network, Supernet)
        base = load_checkpoint(self._folder / f"step_{self._base_step():08d}.pt")["network"]
        active = network.active
        angles = tabulate_angles(network, self.table.spec, base)
        if active is not None:
            network.activate(active)  # the layers follow other sizes now
        generator = counter_generator(self._seed, step, stream=_STREAM)
        scores = score_operators(
            operators, angles, self.table, bare=self._bare, generator=generator,
            max_macs=self._plan.max_macs,
        )  # fmt: skip
        return [scores[each] for each in operators]

    def _choose(self, scores: Mapping[Operator, float]) -> list[Operator]:
        """Those with the least angles, without which there is still a space to train and search."""
        number = int(self.drop) if self.drop >= 1 else max(1, round(self.drop * len(scores)))
        left = {label: list(each) for label, each in self.table.spec.choices.items()}
        dropped: list[Operator] = []
        for label, name in sorted(scores, key=lambda each: scores[each]):
            if len(dropped) == number or self._num_architectures(left) <= self._plan.target:
                break
            rest = [each for each in left[label] if each != name]
            if rest and self._is_usable({**left, label: rest}):
                left[label] = rest
                dropped.append((label, name))
        return dropped

    def _is_usable(self, left: Left) -> bool:
        table = self._whole.restrict(left)
        if not _fits(table, self._plan):
            return False
        try:
            self._build_sampler(table)
        except ConstraintError:  # its range could not be met any more
            return False
        return True

    def _num_architectures(self, left: Left) -> int:
        return math.prod(len(left[label]) for label in self._bare)


def tabulate_angles(supernet: Supernet, spec: SearchSpec, base: Mapping[str, Tensor]) -> CostTable:
    """What the angle of a subnet is made of, summed over its layers.

    Args:
        supernet: with the present weights.
        spec: its space, or what is left of it.
        base: the weights to measure from, by their names in the state dict.

    Returns:
        A table of ``dot``, ``base`` and ``now``: the scalar product of the two weight vectors and
        the square of the length of each. The vectors hold the weights of convolutions and linear
        layers, neither biases nor BatchNorm's; an operator without any adds nothing.
    """
    names = {id(module): name for name, module in _weighted(supernet)}

    def products(layer: nn.Module) -> tuple[float, float, float]:
        if id(layer) not in names:
            return 0.0, 0.0, 0.0
        now = active_tensors(layer)["weight"].detach()
        before = base[f"{names[id(layer)]}.weight"].to(now.device)
        if (slicing := get_slicing(layer)) and slicing.active:
            before = before[slicing.active.slices["weight"]]
        now, before = now.double(), before.double()
        sums = torch.stack([(now * before).sum(), before.square().sum(), now.square().sum()])
        dot, length, other = sums.tolist()
        return dot, length, other

    layers = conditional_layers(supernet)
    return sum_layers(spec, layers, products, metrics=("dot", "base", "now"))


def score_operators(
    operators: Sequence[Operator],
    angles: CostTable,
    costs: CostTable,
    *,
    bare: Mapping[str, frozenset[Candidate]],
    generator: np.random.Generator,
    max_macs: float | None = None,
) -> dict[Operator, float]:
    """Mean angle, in radians, of up to `NUM_CHILDREN` different subnets with each operator.

    A subnet counts for all its operators. One that no subnet within ``max_macs`` was found for
    scores -1, less than any angle: it is of no use.

    Args:
        operators: label and candidate of those to be scored.
        angles: see `tabulate_angles`.
        costs: costs of what is left of the space.
        bare: see `draw_child`.
        generator: of the subnets.
        max_macs: of a subnet.
    """
    sums, counts = dict.fromkeys(operators, 0.0), dict.fromkeys(operators, 0)
    seen: set[tuple[Candidate, ...]] = set()
    limit = math.inf if max_macs is None else max_macs
    for operator in operators:
        misses = 0
        while counts[operator] < NUM_CHILDREN and misses < MAX_MISSES:
            child = draw_child(costs.spec, operator, bare=bare, generator=generator)
            key = tuple(child.values())
            misses += 1
            if key in seen or costs.cost(child) > limit:
                continue
            misses = 0
            seen.add(key)
            angle = _angle(**angles.costs(child))
            for each in child.items():
                if each in sums:
                    sums[each] += angle
                    counts[each] += 1
    return {each: sums[each] / counts[each] if counts[each] else -1.0 for each in operators}


def draw_child(
    spec: SearchSpec,
    operator: Operator,
    *,
    bare: Mapping[str, frozenset[Candidate]],
    generator: np.random.Generator,
) -> dict[str, Candidate]:
    """A random architecture with an operator, in which every depth has the same probability.

    Args:
        spec: what is left of the space.
        operator: label and candidate that it has.
        bare: label -> its candidates without weights, such as a skip. How many layers have one is
            drawn first, then which; all else is uniform.
        generator: of random numbers.
    """
    fixed, name = operator
    child = {}
    optional = []  # layers that may have an operator with weights or one without, but the fixed
    for label, candidates in spec.choices.items():
        without = bare.get(label, frozenset())
        weighted = [each for each in candidates if each not in without]
        if weighted and len(weighted) < len(candidates) and label != fixed:
            optional.append(label)
        child[label] = _pick(weighted or candidates, generator)
    for index in generator.permutation(len(optional))[: generator.integers(len(optional) + 1)]:
        label = optional[index]
        child[label] = _pick([e for e in spec.choices[label] if e in bare[label]], generator)
    child[fixed] = name
    return child


def _pick(candidates: Sequence[Candidate], generator: np.random.Generator) -> Candidate:
    return candidates[int(generator.random() * len(candidates))]


def _fits(table: CostTable, plan: ShrinkPlan) -> bool:
    return plan.max_macs is None or table.bounds()[0] <= plan.max_macs


def _angle(*, dot: float, base: float, now: float) -> float:
    if not base or not now:
        return 0.0
    return math.acos(max(-1.0, min(1.0, dot / math.sqrt(base * now))))


def _weighted(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers with kernels or matrices, by name."""
    return [
        (name, module)
        for name, module in network.named_modules()
        if (weight := own_tensors(module).get("weight")) is not None and weight.dim() > 1
    ]


def _most_weighted(table: CostTable, bare: Mapping[str, frozenset[Candidate]]) -> int:
    """How many operators with weights the layer with most of them has."""
    layers = (set(table.spec.choices[label]) - without for label, without in bare.items())
    return max(map(len, layers), default=0)


def _find_bare(supernet: Supernet) -> dict[str, frozenset[Candidate]]:
    """Labels that choose operators -> those candidates that have no weights."""
    bare: dict[str, frozenset[Candidate]] = {}
    for choice in supernet.modules():
        if isinstance(choice, Choice):
            without = {each for each in choice.candidates if not _weighted(choice.candidate(each))}
            bare[choice.label] = bare.get(choice.label, frozenset(without)) & without
    return {label: bare[label] for label in supernet.spec_choices if label in bare}
