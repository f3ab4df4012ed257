"""Multiply-adds and parameters: of a network, layer by layer, and of a whole space as a table.

Imports `spos.architecture`, `spos.cost`, `spos.errors`, `spos.spaces`, `spos.supernet`.
"""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spos.architecture import Candidate, Choices, SearchSpec
from spos.cost.operations import run_on_meta
from spos.cost.table import CostTable, Term
from spos.errors import ConfigError
from spos.spaces import build_space, default_image_size
from spos.spaces.nni_pieces import MAX_COMBINATIONS
from spos.spaces.sharing import Choice, Depth
from spos.spaces.sliced import active_tensors, get_slicing, own_tensors
from spos.supernet import Supernet

METRICS = ("macs", "params")
NUM_CHECKED_PATHS = 3

_MULTIPLIERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)

Labels = tuple[str, ...]
Key = tuple[Candidate, ...]  # one candidate for each of some labels
Costs = tuple[int, int]  # macs and params


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
    return _count_layers(copy.deepcopy(module).to("meta").eval(), image_size)


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
    with torch.device("meta"):
        supernet = Supernet(build_space(name, options=options, affine=True)).eval()
    spec = SearchSpec(name, options, supernet.spec_choices)
    layers = list(_conditional_layers(supernet))
    positions = _observe_positions(supernet, spec, layers, image_size)
    sums = _sum_by_labels(spec, layers, positions)
    fixed = sums.pop((), {(): (0, 0)})[()]
    table = CostTable(spec, dict(zip(METRICS, fixed, strict=True)), _terms(spec, sums))
    _check_classes(supernet, spec, image_size)
    _check_table(table, supernet, image_size)
    return table


@dataclass(frozen=True)
class _Layer:
    """A layer of the supernet and what it takes for it to be active.

    Attributes:
        module: the layer.
        conditions: pairs of labels and of those combinations of their candidates that select it.
    """

    module: nn.Module
    conditions: tuple[tuple[Labels, frozenset[Key]], ...]

    def labels(self) -> set[str]:
        """The choices that its cost depends on."""
        slicing = get_slicing(self.module)
        own = slicing.labels if slicing else ()
        return set(own).union(*(labels for labels, _ in self.conditions))

    def cost(self, choices: Choices, positions: int) -> Costs:
        """Its cost in an architecture, of which only its `labels` are looked at."""
        for labels, keys in self.conditions:
            if tuple([choices[label] for label in labels]) not in keys:
                return 0, 0
        if slicing := get_slicing(self.module):
            slicing.select(choices)
        return _layer_cost(self.module, positions)


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


def _layer_cost(layer: nn.Module, positions: int, shared: Iterable[str] = ()) -> Costs:
    """Cost of a layer on the active path, without the parameters that others have counted."""
    tensors = active_tensors(layer)
    own = {name for name, _ in layer.named_parameters(recurse=False)}.difference(shared)
    macs = positions * tensors["weight"].numel() if positions else 0
    return macs, sum(tensors[name].numel() for name in own)


def _conditional_layers(supernet: Supernet) -> Iterator[_Layer]:
    stack: list[tuple[nn.Module, tuple]] = [(supernet, ())]
    seen: set[int] = set()
    while stack:
        module, conditions = stack.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        if own_tensors(module):
            yield _Layer(module, conditions)
        children = [(child, (*conditions, *more)) for child, more in _children(module)]
        stack.extend(reversed(children))


def _children(module: nn.Module) -> Iterator[tuple[nn.Module, tuple]]:
    """Children, with the conditions under which they are active while the parent is."""
    if isinstance(module, Choice):
        for candidate in module.candidates:
            yield module.candidate(candidate), (((module.label,), frozenset({(candidate,)})),)
    elif isinstance(module, Depth):
        for index, block in enumerate(module.blocks):
            keys = frozenset(key for key, depth in module.depths.items() if depth > index)
            yield block, () if len(keys) == len(module.depths) else ((module.labels, keys),)
    else:
        yield from ((child, ()) for child in module._modules.values() if child is not None)


def _count_positions(
    network: nn.Module, layers: Iterable[nn.Module], image_size: int
) -> dict[int, int]:
    """At how many positions each convolution or linear layer applies its weight, by layer id."""
    positions: dict[int, int] = {}

    def count(layer: nn.Module, _: Any, output: Tensor) -> None:
        width = output.shape[-1] if isinstance(layer, nn.Linear) else output.shape[1]
        positions[id(layer)] = positions.get(id(layer), 0) + output.numel() // width

    with ExitStack() as hooks, torch.no_grad():
        for layer in layers:
            if isinstance(layer, _MULTIPLIERS):
                hooks.callback(layer.register_forward_hook(count).remove)
        run_on_meta(network, image_size)
    return positions


def _observe_positions(
    supernet: Supernet, spec: SearchSpec, layers: Sequence[_Layer], image_size: int
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


def _make_active(layer: _Layer, partial: dict[str, Candidate]) -> bool:
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


def _sum_by_labels(
    spec: SearchSpec, layers: Sequence[_Layer], positions: Mapping[int, int]
) -> dict[Labels, dict[Key, Costs]]:
    """Costs of all layers that depend on the same labels, for each combination of candidates."""
    groups: dict[Labels, list[_Layer]] = {}
    for layer in layers:
        wanted = layer.labels()
        groups.setdefault(tuple(each for each in spec.choices if each in wanted), []).append(layer)
    sums = {}
    for labels, group in groups.items():
        if _num_combinations(spec, labels) > MAX_COMBINATIONS:
            raise ConfigError(
                f"{spec.space}: the cost of a layer depends on more than {MAX_COMBINATIONS} "
                f"combinations of {', '.join(labels)}, too many for a table"
            )
        sums[labels] = {}
        for key in itertools.product(*(spec.choices[label] for label in labels)):
            choices = dict(zip(labels, key, strict=True))
            costs = [layer.cost(choices, positions.get(id(layer.module), 0)) for layer in group]
            sums[labels][key] = _add(costs)
    return sums


def _terms(spec: SearchSpec, sums: Mapping[Labels, Mapping[Key, Costs]]) -> list[Term]:
    """Terms in network order; sums that share labels become one where that stays small."""
    components: list[tuple[set[str], list[Labels]]] = []  # labels, the sums in it
    for labels in sorted(sums, key=len, reverse=True):
        touched = [each for each in components if each[0].intersection(labels)]
        union = set(labels).union(*(each[0] for each in touched))
        if _num_combinations(spec, union) > MAX_COMBINATIONS:
            touched = [each for each in touched if each[0].issuperset(labels)][:1]
            union = set(labels).union(*(each[0] for each in touched))
        components = [each for each in components if each not in touched]
        components.append((union, [labels, *itertools.chain(*(each[1] for each in touched))]))
    order = {label: index for index, label in enumerate(spec.choices)}
    components.sort(key=lambda each: sorted(map(order.__getitem__, each[0])))
    return [
        _term(spec, tuple(label for label in order if label in union), {k: sums[k] for k in parts})
        for union, parts in components
    ]


def _term(spec: SearchSpec, labels: Labels, parts: Mapping[Labels, Mapping[Key, Costs]]) -> Term:
    indices = {part: [labels.index(label) for label in part] for part in parts}
    rows = [
        _add(parts[part][tuple(key[index] for index in indices[part])] for part in parts)
        for key in itertools.product(*(spec.choices[label] for label in labels))
    ]
    return Term(labels, dict(zip(METRICS, zip(*rows, strict=True), strict=True)))


def _check_classes(supernet: Supernet, spec: SearchSpec, image_size: int) -> None:
    """A constructor that takes no number of classes may have settled on another."""
    shape = tuple(run_on_meta(supernet, image_size).shape)
    if "num_classes" in spec.options and shape != (1, spec.options["num_classes"]):
        raise ConfigError(
            f"{spec.space}: makes outputs of the shape {shape} of one image, expected "
            f"{(1, spec.options['num_classes'])}; let the constructor take num_classes"
        )


def _check_table(table: CostTable, supernet: Supernet, image_size: int) -> None:
    """Compare the table with direct counts of a few paths."""
    generator = random.Random(0)
    for _ in range(NUM_CHECKED_PATHS):
        choices = {k: generator.choice(v) for k, v in table.spec.choices.items()}
        supernet.activate(choices)
        layers = _count_layers(supernet, image_size)
        counted = _add((layer.macs, layer.params) for layer in layers)
        if counted != tuple(table.cost(choices, metric) for metric in METRICS):
            raise ConfigError(
                f"{table.spec.space}: costs are not additive in this space: the size of the maps "
                "that a layer runs on must not depend on choices elsewhere, nor may layers of "
                "different candidates share parameters"
            )


def _num_combinations(spec: SearchSpec, labels: Iterable[str]) -> int:
    return math.prod(len(spec.choices[label]) for label in labels)


def _add(costs: Iterable[Costs]) -> Costs:
    macs = params = 0
    for each in costs:
        macs += each[0]
        params += each[1]
    return macs, params
