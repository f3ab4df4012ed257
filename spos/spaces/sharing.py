"""Modules with one active candidate that stand for NNI's choices, and the walk that puts them in.

Imports torch, `spos.architecture`, `spos.errors`, `spos.spaces.nni_pieces`, `spos.spaces.sliced`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from spos.architecture import Candidate, Choices
from spos.errors import ConfigError
from spos.spaces.nni_pieces import (
    Cell,
    InputChoice,
    LayerChoice,
    ModelSpace,
    Mutable,
    MutableModule,
    NniValues,
    ParametrizedModule,
    Repeat,
    list_mutables,
    tabulate,
)
from spos.spaces.sliced import Slicing, slice_layer


class Choice(nn.Module):
    """A layer with several candidates of which one is active; stands for a ``LayerChoice``."""

    def __init__(self, label: str, candidates: Mapping[Candidate, nn.Module]) -> None:
        super().__init__()
        self.label = label
        self.candidates = tuple(candidates)
        self.active = ""
        for candidate, module in candidates.items():
            # add_module() would refuse names such as "label" that are attributes too
            self._modules[str(candidate)] = module

    def select(self, choices: Choices) -> None:
        """Make the candidate that ``choices`` name the active one."""
        # nn.Module's own attribute setter would take most of the time of activate()
        self.__dict__["active"] = str(choices[self.label])

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """What the active candidate makes of the inputs."""
        return self.candidate(self.active)(*inputs, **named)

    def candidate(self, name: Candidate) -> nn.Module:
        """The candidate of this name."""
        module = self._modules[str(name)]
        assert module is not None
        return module

    def active_children(self) -> list[nn.Module]:
        """The active candidate."""
        return [self.candidate(self.active)]


class Depth(nn.Module):
    """Blocks of which the first few are active; stands for a ``Repeat`` of searched depth."""

    def __init__(
        self,
        labels: tuple[str, ...],
        depths: Mapping[tuple[Candidate, ...], int],
        blocks: nn.ModuleList,
    ) -> None:
        super().__init__()
        self.labels, self.depths = labels, depths
        self.blocks = blocks
        self.active = len(blocks)

    def select(self, choices: Choices) -> None:
        """Make as many blocks active as ``choices`` say."""
        key = tuple([choices[label] for label in self.labels])
        self.__dict__["active"] = self.depths[key]

    def forward(self, x: Any) -> Any:
        """What the active blocks, one after the other, make of the input."""
        for block in self.active_children():
            x = block(x)
        return x

    def active_children(self) -> list[nn.Module]:
        """The active blocks."""
        return list(self.blocks)[: self.active]


class ActiveInput(nn.Module):
    """One of several inputs; stands for an ``InputChoice``."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self.label = label
        self.active = 0

    def select(self, choices: Choices) -> None:
        """Make the input that ``choices`` number the active one."""
        self.__dict__["active"] = int(choices[self.label])

    def forward(self, inputs: list[Tensor]) -> Tensor:
        """The active input."""
        return inputs[self.active]


Switch = Choice | Depth | ActiveInput | Slicing


def share_weights(space: ModelSpace, values: NniValues) -> list[Switch]:
    """Put modules with one active candidate in place of everything in a space that can be chosen.

    Args:
        space: the space, built at its largest sizes; it is changed in place.
        values: what `read_choices` says of it.

    Returns:
        What has to follow the choices.

    Raises:
        ConfigError: naming the module that cannot share its weights.
    """
    switches: list[Switch] = []
    done: dict[int, tuple[nn.Module, nn.Module]] = {}  # holds the originals, or ids would recur

    def convert(module: nn.Module, source: str) -> nn.Module:
        if id(module) not in done:
            for name, child in module._modules.items():
                if child is not None:
                    module._modules[name] = convert(child, f"{source}.{name}")
            replacement, switch = _replace(module, values, source)
            if switch is not None:
                switches.append(switch)
            done[id(module)] = module, replacement
        return done[id(module)][1]

    convert(space, type(space).__name__)
    used = {label for switch in switches for label in _labels(switch)}
    if unused := [label for label in values if label not in used]:
        raise ConfigError(
            f"{type(space).__name__}: the choices {', '.join(unused)} are not those of a layer "
            "that a supernet can switch (LayerChoice, Repeat, InputChoice, MutableConv2d, ...)"
        )
    return switches


def _replace(module: Any, values: NniValues, source: str) -> tuple[nn.Module, Switch | None]:
    """The module that stands for ``module``, and what has to follow the choices, if anything."""
    if isinstance(module, LayerChoice):
        choice = Choice(module.choice.label, {name: module[name] for name in module.names})
        return choice, choice
    if isinstance(module, Repeat) and isinstance(module.depth_choice, Mutable):
        return (depth := _depth(module, values, source)), depth
    if isinstance(module, InputChoice):
        if module.n_chosen != 1 or module.reduction == "none":
            raise ConfigError(f"{source}: {module} must choose one input and return it")
        chosen = ActiveInput(module.choice.label)
        return chosen, chosen
    if isinstance(module, Cell) and (module.op_candidates_factory or module.merge_op != "all"):
        raise ConfigError(
            f"{source}: a supernet cannot share the weights of a Cell whose operators are built "
            "for the chosen input, or whose output is made of its loose ends; give it modules as "
            "candidates and merge_op='all'"
        )
    if isinstance(module, MutableModule) and (mutables := list_mutables(module)):
        if not isinstance(module, ParametrizedModule):
            raise ConfigError(
                f"{source}: a supernet cannot share the weights of {type(module).__name__}, which "
                f"depends on {', '.join(map(str, mutables))}; use LayerChoice, "
                "Repeat, InputChoice, or nni.choice in MutableConv2d, MutableBatchNorm2d, "
                "MutableLinear and MutableLayerNorm"
            )
        return module, slice_layer(module, values, source=source)
    return module, None


def _depth(repeat: Any, values: NniValues, source: str) -> Depth:
    if type(repeat) is not Repeat:
        raise ConfigError(
            f"{source}: a supernet cannot share the weights of a {type(repeat).__name__} of "
            "searched depth, only those of a Repeat"
        )
    labels, table = tabulate({"depth": repeat.depth_choice}, values, source=source)
    depths = {key: arguments["depth"] for key, arguments in table.items()}
    return Depth(labels, depths, repeat.blocks)


def _labels(switch: Switch) -> tuple[str, ...]:
    return (switch.label,) if isinstance(switch, (Choice, ActiveInput)) else switch.labels
