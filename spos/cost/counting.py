"""Multiply-adds and parameters: of a network, and of a whole space as a table.

Imports `spos.architecture`, `spos.cost`, `spos.errors`, `spos.spaces`, `spos.supernet`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from spos.architecture import Candidate, SearchSpec
from spos.cost.additive import ConditionalLayer, conditional_layers, sum_layers
from spos.cost.operations import (
    MULTIPLIERS,
    Operation,
    list_operations,
    record_operations,
    run_on_image,
)
from spos.cost.table import CostTable
from spos.errors import ConfigError
from spos.spaces import build_space, default_image_size
from spos.spaces.sliced import active_tensors
from spos.supernet import Supernet

METRICS = ("macs", "params")
NUM_CHECKED_PATHS = 3


def count_macs(module: nn.Module, image_size: int) -> int:
    """Multiply-adds of a network's convolutions and linear layers for one image.

    Half of what `torch.utils.flop_counter` counts in a network without other matrix products.

    Args:
        module: see `list_operations`.
        image_size: side of the square input image.

    Raises:
        ConfigError: if the network cannot run on such images.
    """
    return sum(each.macs for each in list_operations(module, image_size))


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
        lambda layer: _layer_cost(layer, positions[id(layer)]),
        metrics=METRICS,
    )
    _check_classes(supernet, spec, image_size)
    _check_table(table, supernet, image_size)
    return table


def _layer_cost(layer: nn.Module, positions: int) -> tuple[int, int]:
    tensors = active_tensors(layer)
    macs = positions * tensors["weight"].numel() if positions else 0
    return macs, sum(tensors[name].numel() for name, _ in layer.named_parameters(recurse=False))


def _observe_positions(
    supernet: Supernet, spec: SearchSpec, layers: Sequence[ConditionalLayer], image_size: int
) -> Counter[int]:
    """At how many positions each layer applies its weight, seen on as few paths as cover them all.

    Returns:
        A number for the id of each layer's module.
    """
    ids = {name: id(module) for name, module in supernet.named_modules()}
    positions: Counter[int] = Counter()
    unseen = list(layers)
    while unseen:
        partial: dict[str, Candidate] = {}
        covered = {id(layer.module) for layer in unseen if _make_active(layer, partial)}
        if not covered:
            break  # what is left is active on no path
        supernet.activate(
            {label: partial.get(label, spec.choices[label][0]) for label in spec.choices}
        )
        for each in _multiplications(supernet, image_size):
            if ids[each.name] in covered:
                positions[ids[each.name]] += each.positions
        unseen = [layer for layer in unseen if id(layer.module) not in covered]
    return positions


def _multiplications(supernet: Supernet, image_size: int) -> list[Operation]:
    """The operations of the active path that have multiply-adds."""
    layers = [each for each in supernet.active_modules() if isinstance(each, MULTIPLIERS)]
    return record_operations(supernet, layers, image_size)


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


def _count_active_params(supernet: Supernet) -> int:
    """Entries of the active path's parameters, those of layers that never run included."""
    sizes: dict[int, int] = {}  # by the parameter's id: layers may share one
    for module in supernet.active_modules():
        tensors = active_tensors(module)
        for name, parameter in module.named_parameters(recurse=False):
            sizes.setdefault(id(parameter), tensors[name].numel())
    return sum(sizes.values())


def _check_table(table: CostTable, supernet: Supernet, image_size: int) -> None:
    """Compare the table with direct counts of a few paths, which hold every candidate."""
    generator, known = random.Random(0), table.spec.choices
    orders = {label: generator.sample(each, k=len(each)) for label, each in known.items()}
    longest = max(map(len, orders.values()), default=0)
    for number in range(max(longest, NUM_CHECKED_PATHS)):
        choices = {label: each[number % len(each)] for label, each in orders.items()}
        supernet.activate(choices)
        macs = sum(each.macs for each in _multiplications(supernet, image_size))
        counted = macs, _count_active_params(supernet)
        if counted != tuple(table.cost(choices, metric) for metric in METRICS):
            raise ConfigError(
                f"{table.spec.space}: costs are not additive in this space: the size of the maps "
                "that a layer runs on must not depend on choices elsewhere, nor may layers of "
                "different candidates share parameters"
            )
