"""Multiply-adds and parameters: of a network, layer by layer, and of a whole space as a table.

Imports `spos.architecture`, `spos.cost`, `spos.errors`, `spos.spaces`, `spos.supernet`.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spos.architecture import Candidate, SearchSpec
from spos.cost.additive import ConditionalLayer, conditional_layers, sum_layers
from spos.cost.operations import run_on_image
from spos.cost.table import CostTable
from spos.errors import ConfigError
from spos.spaces import build_space, default_image_size
from spos.spaces.sliced import active_tensors, own_tensors
from spos.supernet import Supernet

METRICS = ("macs", "params")
NUM_CHECKED_PATHS = 3

_MULTIPLIERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@dataclass(frozen=True)
class LayerCost:
    """Cost of one layer of a network.

    Attributes:
        name: the module's name in the network.
        macs: multiply-adds of a convolution or linear layer for one image; bias, BatchNorm,
            activations and pooling count nothing.
        params: entries of its own parameters.
    """

    name: str
    macs: int
    params: int


def count_layers(module: nn.Module, image_size: int) -> list[LayerCost]:
    """Cost of every layer that has any, in the network's order.

    Args:
        module: a network of images (N, 3, image_size, image_size); of a supernet its active path
            is counted. It is left as it is.
        image_size: side of the square input image.

    Raises:
        ConfigError: if the network cannot run on such images.
    """
    return _count_layers(copy.deepcopy(module).eval(), image_size)


def count_macs(module: nn.Module, image_size: int) -> int:
    """Multiply-adds of a network's convolutions and linear layers for one image.

    Half of what `torch.utils.flop_counter` counts in a network without other matrix products.
    """
    return sum(layer.macs for layer in count_layers(module, image_size))


def count_params(module: nn.Module) -> int:
    """Number of a network's parameters (entries, BatchNorm's weight and bias included)."""
    return sum(parameter.numel() for parameter in module.parameters())


def build_cost_table(name: str, *, options: Mapping[str, Any]) -> CostTable:
    """Multiply-adds and parameters of every architecture of a search space.

    The cost of a layer depends only on the choices that select it (the candidates and the depths
    that it lies in) and on those that its size depends on. The size of the maps that it runs on is
    observed on one path. The table is then compared with direct counts of a few other paths.

    Args:
        name: a search space (see `spos.spaces.load_space_class`).
        options: its options; ``image_size`` is the space's own default if they do not say.

    Returns:
        A table of ``macs`` and ``params``, both of the subnet with affine BatchNorm.

    Raises:
        ConfigError: if the space or an option is unknown, its networks do not run on such images or
            have another number of classes, or costs are not additive in it.
    """
    image_size = default_image_size(name, options=options)
    with torch.random.fork_rng(devices=[]):  # its weights are of no interest
        supernet = Supernet(build_space(name, options=options, affine=True)).eval()
    spec = SearchSpec(name, options, supernet.spec_choices)
    layers = list(conditional_layers(supernet))
    positions = _observe_positions(supernet, spec, layers, image_size)
    table = sum_layers(
        spec,
        layers,
        lambda layer: _layer_cost(layer, positions.get(id(layer), 0)),
        metrics=METRICS,
    )
    _check_classes(supernet, spec, image_size)
    _check_table(table, supernet, image_size)
    return table


def _count_layers(module: nn.Module, image_size: int) -> list[LayerCost]:
    names = {id(each): name for name, each in module.named_modules()}
    active = module.active_modules() if isinstance(module, Supernet) else module.modules()
    layers = [each for each in active if own_tensors(each)]
    positions = _count_positions(module, layers, image_size)
    costs, counted = [], set()
    for layer in layers:
        parameters = dict(layer.named_parameters(recurse=False))
        shared = {name for name, each in parameters.items() if id(each) in counted}
        counted.update(map(id, parameters.values()))
        macs, params = _layer_cost(layer, positions.get(id(layer), 0), shared)
        costs.append(LayerCost(names[id(layer)], macs, params))
    return [cost for cost in costs if cost.macs or cost.params]


def _layer_cost(layer: nn.Module, positions: int, shared: Iterable[str] = ()) -> tuple[int, int]:
    """Cost of a layer on the active path, without the parameters that others have counted."""
    tensors = active_tensors(layer)
    own = {name for name, _ in layer.named_parameters(recurse=False)}.difference(shared)
    macs = positions * tensors["weight"].numel() if positions else 0
    return macs, sum(tensors[name].numel() for name in own)


def _count_positions(
    network: nn.Module, layers: Iterable[nn.Module], image_size: int
) -> dict[int, int]:
    """At how many positions each convolution or linear layer applies its weight, by layer id."""
    positions: dict[int, int] = {}

    def count(layer: nn.Module, _: Any, output: Tensor) -> None:
        width = output.shape[-1] if isinstance(layer, nn.Linear) else output.shape[1]
        positions[id(layer)] = positions.get(id(layer), 0) + output.numel() // width

    with ExitStack() as hooks:
        for layer in layers:
            if isinstance(layer, _MULTIPLIERS):
                hooks.callback(layer.register_forward_hook(count).remove)
        run_on_image(network, image_size)
    return positions


def _observe_positions(
    supernet: Supernet, spec: SearchSpec, layers: Sequence[ConditionalLayer], image_size: int
) -> dict[int, int]:
    """Positions (see `_count_positions`) of every layer, on as few paths as cover them all."""
    positions: dict[int, int] = {}
    unseen = list(layers)
    while unseen:
        partial: dict[str, Candidate] = {}
        covered = {id(layer.module) for layer in unseen if _make_active(layer, partial)}
        if not covered:
            break  # what is left is active on no path
        supernet.activate(
            {label: partial.get(label, spec.choices[label][0]) for label in spec.choices}
        )
        modules = [layer.module for layer in unseen if id(layer.module) in covered]
        positions.update(_count_positions(supernet, modules, image_size))
        unseen = [layer for layer in unseen if id(layer.module) not in covered]
    return positions


def _make_active(layer: ConditionalLayer, partial: dict[str, Candidate]) -> bool:
    """Add to ``partial`` the choices that make the layer active, if they agree with it."""
    added = dict(partial)
    for labels, keys in layer.conditions:
        for key in sorted(keys, key=repr):
            pairs = dict(zip(labels, key, strict=True))
            if all(added.get(label, chosen) == chosen for label, chosen in pairs.items()):
                added.update(pairs)
                break
        else:
            return False
    partial.update(added)
    return True


def _check_classes(supernet: Supernet, spec: SearchSpec, image_size: int) -> None:
    """A constructor that takes no number of classes may have settled on another."""
    shape = tuple(run_on_image(supernet, image_size).shape)
    if "num_classes" in spec.options and shape != (1, spec.options["num_classes"]):
        raise ConfigError(
            f"{spec.space}: makes outputs of the shape {shape} of one image, expected "
            f"{(1, spec.options['num_classes'])}; let the constructor take num_classes"
        )


def _check_table(table: CostTable, supernet: Supernet, image_size: int) -> None:
    """Compare the table with direct counts of a few paths, which hold every candidate."""
    generator, known = random.Random(0), table.spec.choices
    orders = {label: generator.sample(each, k=len(each)) for label, each in known.items()}
    longest = max(map(len, orders.values()), default=0)
    for number in range(max(longest, NUM_CHECKED_PATHS)):
        choices = {label: each[number % len(each)] for label, each in orders.items()}
        supernet.activate(choices)
        layers = _count_layers(supernet, image_size)
        counted = sum(each.macs for each in layers), sum(each.params for each in layers)
        if counted != tuple(table.cost(choices, metric) for metric in METRICS):
            raise ConfigError(
                f"{table.spec.space}: costs are not additive in this space: the size of the maps "
                "that a layer runs on must not depend on choices elsewhere, nor may layers of "
                "different candidates share parameters"
            )
