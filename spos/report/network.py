"""An architecture block by block: which candidate, how wide, what it costs.

Imports `spos.architecture`, `spos.cost.operations`, `spos.spaces`, `spos.supernet` and torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spos.architecture import Architecture, Candidate
from spos.cost.operations import Operation, list_operations, run_on_image
from spos.spaces import build_space, default_image_size
from spos.spaces.sharing import Choice
from spos.supernet import Supernet


@dataclass(frozen=True)
class Block:
    """A part of a network that is chosen as a whole, or that every network of the space has.

    Attributes:
        name: the module's name in the space.
        label: of the choice; None for a part that is always the same.
        candidate: the one chosen; None as well.
        kernel: side of its largest convolution kernel; 0 without a convolution.
        channels: width of its output.
        widest: largest width of a layer inside.
        size: side of the map that it puts out; 1 behind the last pooling.
        macs: multiply-adds for one image.
        params: entries of its parameters, BatchNorm's with weight and bias.
    """

    name: str
    label: str | None
    candidate: Candidate | None
    kernel: int
    channels: int
    widest: int
    size: int
    macs: int
    params: int


def list_blocks(arch: Architecture) -> list[Block]:
    """The blocks of an architecture in the order in which they run; no image is looked at.

    Raises:
        ConfigError: if its space is unknown here or its network does not run.
        ArchitectureError: if its choices are not of that space.
    """
    image_size = default_image_size(arch.space, options=arch.options)
    with torch.random.fork_rng(devices=[]):  # its weights are of no interest
        supernet = Supernet(build_space(arch.space, options=arch.options, affine=True)).eval()
    supernet.activate(arch.choices)
    units = dict(_find_units(supernet, ""))
    shapes = _observe_outputs(supernet, units, image_size)
    operations: dict[str, list[Operation]] = {name: [] for name in shapes}
    for each in list_operations(supernet, image_size):
        owner = next((n for n in shapes if each.name == n or each.name.startswith(f"{n}.")), None)
        if owner is not None:
            operations[owner].append(each)
    return [
        _block(name, units[name], shapes[name], operations[name])
        for name in shapes
        if isinstance(units[name], Choice) or any(each.macs for each in operations[name])
    ]


def _find_units(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """Outermost choices, and the largest parts that hold none, by name."""
    for key, child in module.named_children():
        path = f"{name}.{key}" if name else key
        holds_choice = any(isinstance(each, Choice) for each in child.modules())
        is_list = isinstance(child, (nn.ModuleList, nn.ModuleDict))  # which itself never runs
        if isinstance(child, Choice) or not (holds_choice or is_list):
            yield path, child
        else:
            yield from _find_units(child, path)


def _observe_outputs(
    supernet: Supernet, units: dict[str, nn.Module], image_size: int
) -> dict[str, tuple[int, ...]]:
    """Shape of what each unit makes of one image, in the order in which they run."""
    shapes: dict[str, tuple[int, ...]] = {}

    def watch(name: str) -> Any:
        def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
            halves = output if isinstance(output, tuple) else (output,)  # of a ShuffleNet block
            if all(isinstance(each, Tensor) for each in halves):
                channels = sum(each.shape[1] for each in halves)
                shapes.setdefault(name, (channels, *halves[0].shape[2:]))

        return record

    with ExitStack() as hooks:
        for name, unit in units.items():
            hooks.callback(unit.register_forward_hook(watch(name)).remove)
        run_on_image(supernet, image_size)
    return shapes


def _block(
    name: str, unit: nn.Module, shape: tuple[int, ...], operations: list[Operation]
) -> Block:
    label = candidate = None
    if isinstance(unit, Choice):
        label = unit.label
        candidate = next(each for each in unit.candidates if str(each) == unit.active)
    return Block(
        name,
        label,
        candidate,
        kernel=max((each.kernel for each in operations if each.kind == "conv"), default=0),
        channels=shape[0] if shape else 0,
        widest=max((each.channels for each in operations if each.macs), default=0),
        size=shape[-1] if len(shape) == 3 else 1,
        macs=sum(each.macs for each in operations),
        params=sum(each.params for each in operations),
    )
