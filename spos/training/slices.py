"""Let an optimizer move only the part of a sliced parameter that the active path uses.

Imports `spos.supernet` and torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spos.supernet import Supernet

Part = tuple[slice, ...]


@contextmanager
def only_active_slices(network: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Show the optimizer each partly used parameter as if it were the used part alone.

    A parameter of which the path uses a slice has a gradient of zero elsewhere, and with that
    momentum and weight decay would go on moving what is not in use. Inside of this context its
    data, gradient and optimizer state are views of the slice, so ``optimizer.step()`` can reach
    nothing else, and nothing is copied. That is exact for SGD, whose update is made entry by entry;
    state that an optimizer keeps per parameter, such as Adam's number of steps, is shared by all
    slices.

    Args:
        network: a supernet with an active path and gradients; of other networks nothing is changed.
        optimizer: to be stepped inside of the context. State that it creates there is kept at the
            parameter's size, with zeros outside of the slice.
    """
    if not isinstance(network, Supernet):
        yield
        return
    narrowed = [
        _narrow(parameter, part, optimizer)
        for parameter, part in network.partial_parameters()
        if parameter.grad is not None
    ]
    try:
        yield
    finally:
        for each in narrowed:
            _restore(each, optimizer)


@dataclass(frozen=True)
class _Narrowed:
    """A parameter and what belongs to it, at full size."""

    parameter: nn.Parameter
    part: Part
    data: Tensor
    gradient: Tensor
    state: dict[str, Tensor]


def _narrow(parameter: nn.Parameter, part: Part, optimizer: torch.optim.Optimizer) -> _Narrowed:
    data, gradient = parameter.data, parameter.grad
    assert gradient is not None
    state = _entries(parameter, optimizer)
    _replace(parameter, data[part], gradient[part])
    optimizer.state[parameter].update({name: tensor[part] for name, tensor in state.items()})
    return _Narrowed(parameter, part, data, gradient, state)


def _restore(narrowed: _Narrowed, optimizer: torch.optim.Optimizer) -> None:
    parameter = narrowed.parameter
    state = _entries(parameter, optimizer)
    _replace(parameter, narrowed.data, narrowed.gradient)
    for name, tensor in state.items():
        if name not in narrowed.state:
            narrowed.state[name] = torch.zeros_like(narrowed.data)
            narrowed.state[name][narrowed.part] = tensor
    optimizer.state[parameter].update(narrowed.state)


def _entries(parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state of the parameter, as far as it has a number for each entry."""
    return {
        name: value
        for name, value in optimizer.state[parameter].items()
        if isinstance(value, Tensor) and value.shape == parameter.shape
    }


def _replace(parameter: nn.Parameter, data: Tensor, gradient: Tensor) -> None:
    parameter.grad = None  # a gradient must have the shape of its parameter at any time
    parameter.data = data
    parameter.grad = gradient
