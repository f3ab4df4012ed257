"""What depends on the path layer by layer, summed into a table with a number for each choice.

Imports `spos.architecture`, `spos.cost.table`, `spos.errors`, `spos.spaces`, `spos.supernet`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from spos.architecture import Candidate, Choices, SearchSpec
from spos.cost.table import CostTable, Term
from spos.errors import ConfigError
from spos.spaces.nni_pieces import MAX_COMBINATIONS
from spos.spaces.sharing import Choice, Depth
from spos.spaces.sliced import get_slicing, own_tensors
from spos.supernet import Supernet

Labels = tuple[str, ...]
Key = tuple[Candidate, ...]  # one candidate for each of some labels
Costs = tuple[float, ...]  # one number for each metric


@dataclass(frozen=True)
class ConditionalLayer:
    """A layer of a supernet with tensors of its own, and what it takes for it to be active.

    Attributes:
        module: the layer.
        conditions: pairs of labels and of those combinations of their candidates that select it.
    """

    module: nn.Module
    conditions: tuple[tuple[Labels, frozenset[Key]], ...]

    def labels(self) -> set[str]:
        """The choices that it depends on: whether it runs, and its size."""
        slicing = get_slicing(self.module)
        own = slicing.labels if slicing else ()
        return set(own).union(*(labels for labels, _ in self.conditions))

    def select(self, choices: Choices) -> bool:
        """Whether it runs in an architecture, of which only its `labels` are looked at.

        If so, it is given the size that it has there.
        """
        for labels, keys in self.conditions:
            if tuple([choices[label] for label in labels]) not in keys:
                return False
        if slicing := get_slicing(self.module):
            slicing.select(choices)
        return True


def conditional_layers(supernet: Supernet) -> Iterator[ConditionalLayer]:
    """The layers of a supernet that have tensors of their own, in the order of the space."""
    stack: list[tuple[nn.Module, tuple]] = [(supernet, ())]
    seen: set[int] = set()
    while stack:
        module, conditions = stack.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        if own_tensors(module):
            yield ConditionalLayer(module, conditions)
        children = [(child, (*conditions, *more)) for child, more in _children(module)]
        stack.extend(reversed(children))


def sum_layers(
    spec: SearchSpec,
    layers: Iterable[ConditionalLayer],
    costs: Callable[[nn.Module], Costs],
    *,
    metrics: Sequence[str],
) -> CostTable:
    """The table of what the layers on a path add up to.

    Args:
        spec: the search space; of its candidates alone, so it may be a part of the supernet's.
        layers: see `conditional_layers`.
        costs: what an active layer adds to each metric, at the size that it has been given.
        metrics: their names.

    Raises:
        ConfigError: if a layer depends on more choices than can be tabulated.
    """
    groups: dict[Labels, list[ConditionalLayer]] = {}
    for layer in layers:
        wanted = layer.labels()
        groups.setdefault(tuple(each for each in spec.choices if each in wanted), []).append(layer)
    nothing = (0,) * len(metrics)
    sums: dict[Labels, dict[Key, Costs]] = {}
    for labels, group in groups.items():
        if _num_combinations(spec, labels) > MAX_COMBINATIONS:
            raise ConfigError(
                f"{spec.space}: the cost of a layer depends on more than {MAX_COMBINATIONS} "
                f"combinations of {', '.join(labels)}, too many for a table"
            )
        sums[labels] = {}
        for key in spec.combinations(labels):
            choices = dict(zip(labels, key, strict=True))
            active = (costs(layer.module) for layer in group if layer.select(choices))
            sums[labels][key] = _add([nothing, *active])
    fixed = sums.pop((), {(): nothing})[()]
    terms = [_term(spec, labels, parts, metrics) for labels, parts in _components(spec, sums)]
    return CostTable(spec, dict(zip(metrics, fixed, strict=True)), terms)


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


def _components(
    spec: SearchSpec, sums: Mapping[Labels, Mapping[Key, Costs]]
) -> list[tuple[Labels, dict[Labels, Mapping[Key, Costs]]]]:
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
        (tuple(label for label in order if label in union), {k: sums[k] for k in parts})
        for union, parts in components
    ]


def _term(
    spec: SearchSpec,
    labels: Labels,
    parts: Mapping[Labels, Mapping[Key, Costs]],
    metrics: Sequence[str],
) -> Term:
    indices = {part: [labels.index(label) for label in part] for part in parts}
    rows = [
        _add(parts[part][tuple(key[index] for index in indices[part])] for part in parts)
        for key in spec.combinations(labels)
    ]
    return Term(labels, dict(zip(metrics, zip(*rows, strict=True), strict=True)))


def _num_combinations(spec: SearchSpec, labels: Iterable[str]) -> int:
    return math.prod(len(spec.choices[label]) for label in labels)


def _add(costs: Iterable[Costs]) -> Costs:
    return tuple(map(sum, zip(*costs, strict=True)))
