"""What the leading layers made of the images, for the next candidate that begins with them.

Imports `spos.architecture`, `spos.spaces`, `spos.supernet` and torch.

The activations and the BatchNorm statistics of a layer depend only on the layers before it. So a
candidate that shares its first layers with the one before it starts where they part, from the very
tensors that would be computed again: the score is the same to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from spos.architecture import Candidate, Choices
from spos.spaces.sharing import ActiveInput, Choice, Depth
from spos.spaces.sliced import get_slicing
from spos.supernet import Supernet

Key = tuple[tuple[str, Candidate], ...]


@dataclass
class _Pass:
    """What is kept of one pass over the images.

    Attributes:
        outputs: depth -> output of that child of the trunk for each call, in order.
        versions: the same of their tensors' versions: one that was changed in place is of no use.
        num_calls: of the trunk; 0 until a pass has come to its end.
    """

    outputs: dict[int, list[Any]] = field(default_factory=dict)
    versions: dict[int, list[list[int]]] = field(default_factory=dict)
    num_calls: int = 0

    def drop(self, depth: int) -> None:
        self.outputs.pop(depth, None)
        self.versions.pop(depth, None)

    def is_whole(self, depth: int) -> bool:
        outputs = self.outputs.get(depth, [])
        return 0 < self.num_calls == len(outputs) and self.versions[depth] == [
            [tensor._version for tensor in _tensors(each)] for each in outputs
        ]


class PathMemory:
    """Keeps what the layers of the last path made of the images, and lets the next one begin there.

    The layers are the children of the supernet's `nn.Sequential` that holds most of the choices. A
    space without one, or that does not run its children one after the other, is left alone.

    Args:
        supernet: whose weights stay as they are.
        max_bytes: of activations, half for each of the two passes over images; a layer that finds
            no room is not kept.
    """

    def __init__(self, supernet: Supernet, *, max_bytes: int) -> None:
        self._trunk = _find_trunk(supernet) if max_bytes else None
        self._room = max_bytes
        self.forget()
        if self._trunk is not None:
            labels = [_labels(child) for child in self._trunk.children()]
            inner = {label for each in labels for label in each}
            self._rest = [label for label in supernet.spec_choices if label not in inner]
            self._labels = labels

    def forget(self) -> None:
        """Keep nothing of the paths so far."""
        self._keys: list[Key] = []
        self._statistics: list[list[tuple[torch.Tensor, torch.Tensor]]] = []
        self._passes = {"calibration": _Pass(), "validation": _Pass()}
        self._shared = 0  # leading children that the current path need not run

    def begin(self, choices: Choices) -> None:
        """Find out what the path now active has in common with the one before, drop the rest."""
        if self._trunk is None:
            return
        rest = tuple((label, choices[label]) for label in self._rest)
        keys = [(*rest, *((label, choices[label]) for label in labels)) for labels in self._labels]
        common = 0
        while common < len(self._keys) and self._keys[common] == keys[common]:
            common += 1
        usable = [
            depth + 1
            for depth in range(common)
            if all(each.is_whole(depth) for each in self._passes.values())
        ]
        self._shared = max(usable, default=0)
        for each in self._passes.values():
            for depth in [depth for depth in each.outputs if depth >= self._shared]:
                each.drop(depth)
        self._keys = keys

    @contextmanager
    def calibrating(self) -> Iterator[None]:
        """While the block recalibrates BatchNorm; then the statistics are those of all layers."""
        with self._passing("calibration"):
            yield
        if self._trunk is None:
            return
        children = list(self._trunk.children())
        for child, kept in zip(children[: self._shared], self._statistics, strict=False):
            for layer, (mean, variance) in zip(_normalizations(child), kept, strict=True):
                layer.running_mean.copy_(mean)
                layer.running_var.copy_(variance)
        self._statistics = [
            [(each.running_mean.clone(), each.running_var.clone()) for each in _normalizations(one)]
            for one in children
        ]

    @contextmanager
    def validating(self) -> Iterator[None]:
        """While the block measures."""
        with self._passing("validation"):
            yield

    @contextmanager
    def _passing(self, name: str) -> Iterator[None]:
        if self._trunk is None:
            yield
            return
        kept = self._passes[name]
        kept.num_calls = 0
        children = dict(self._trunk._modules)
        recorder = _Recorder(kept, self._shared, self._room // 2 - _bytes(kept))
        for depth, (key, child) in enumerate(children.items()):
            self._trunk._modules[key] = _Recorded(child, depth, recorder)
        try:
            yield
            kept.num_calls = recorder.num_calls
        finally:
            self._trunk._modules.update(children)
        if not recorder.is_chain:
            self._trunk = None
            self.forget()


class _Recorder:
    """The state of one pass that the recorded children share."""

    def __init__(self, kept: _Pass, shared: int, room: int) -> None:
        self.kept, self.shared, self.room = kept, shared, room
        self.num_calls = 0
        self.is_chain = True
        self.last: Any = None
        self.full: set[int] = set()

    def keep(self, depth: int, output: Any) -> None:
        """Keep the output of a child, if there is room."""
        tensors = _tensors(output)
        self.room -= sum(tensor.untyped_storage().nbytes() for tensor in tensors)
        if depth in self.full or self.room < 0 or not tensors:
            self.room += sum(
                tensor.untyped_storage().nbytes()
                for each in [*self.kept.outputs.get(depth, []), output]
                for tensor in _tensors(each)
            )
            self.full.add(depth)
            self.kept.drop(depth)
            return
        self.kept.outputs.setdefault(depth, []).append(output)
        self.kept.versions.setdefault(depth, []).append([each._version for each in tensors])


class _Recorded(nn.Module):
    """A child of the trunk while it is recorded."""

    def __init__(self, child: nn.Module, depth: int, recorder: _Recorder) -> None:
        super().__init__()
        self.child = child
        self._depth, self._recorder = depth, recorder

    def forward(self, *inputs: Any) -> Any:
        recorder, depth = self._recorder, self._depth
        if depth == 0:
            recorder.num_calls += 1
        elif len(inputs) != 1 or inputs[0] is not recorder.last:
            recorder.is_chain = False
        if depth + 1 < recorder.shared:
            output = inputs[0]  # stands for what the last shared child will give
        elif depth + 1 == recorder.shared:
            output = recorder.kept.outputs[depth][recorder.num_calls - 1]
        else:
            output = self.child(*inputs)
            recorder.keep(depth, output)
        recorder.last = output
        return output


def _find_trunk(supernet: Supernet) -> nn.Sequential | None:
    """The sequence with most children that depend on choices, at least two."""
    best, most = None, 1
    for module in supernet.modules():
        if isinstance(module, nn.Sequential):
            children = list(module.children())
            count = sum(bool(_labels(child)) for child in children)
            if count > most and len(children) == len(module._modules):
                best, most = module, count
    return best


def _labels(module: nn.Module) -> list[str]:
    """The choices that a module's function depends on."""
    labels: dict[str, None] = {}
    for each in module.modules():
        slicing = get_slicing(each)
        if isinstance(each, (Choice, ActiveInput)):
            labels[each.label] = None
        elif isinstance(each, Depth):
            labels.update(dict.fromkeys(each.labels))
        elif slicing:
            labels.update(dict.fromkeys(slicing.labels))
    return list(labels)


def _normalizations(module: nn.Module) -> list[Any]:
    """The BatchNorm layers with statistics, idle ones as well, always in the same order."""
    return [
        each
        for each in module.modules()
        if isinstance(each, _BatchNorm) and each.running_mean is not None
    ]


def _bytes(kept: _Pass) -> int:
    """Memory of all that is kept of a pass; a tensor that several views share counts once."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for outputs in kept.outputs.values()
        for output in outputs
        for tensor in _tensors(output)
    }
    return sum(storages.values())


def _tensors(output: Any) -> list[torch.Tensor]:
    """The tensors that an output consists of; none if it is of another kind."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, (tuple, list)) and all(isinstance(x, torch.Tensor) for x in output):
        return list(output)
    return []
