"""The weight-sharing network of any search space, with one active path.

Imports `spos.architecture`, `spos.errors`, `spos.spaces`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spos.architecture import Candidate, Choices, SearchSpec
from spos.errors import ArchitectureError, ConfigError
from spos.spaces.nni_pieces import (
    ModelSpace,
    ParametrizedModule,
    build_widest,
    list_mutables,
    model_context,
    nni_sample,
    read_choices,
)
from spos.spaces.sharing import Choice, Depth, share_weights
from spos.spaces.sliced import active_tensors, get_slicing, own_tensors, partial_parameters

_CANDIDATE_TYPES = (str, int)  # without bool, which equals 0 or 1


class Supernet(nn.Module):
    """All networks of a search space in one, sharing weights; one path of it is active at a time.

    Every ``LayerChoice`` runs one candidate, every ``Repeat`` its first blocks, and layers of
    searched width or kernel are as large as the largest candidate and run a slice of their weights
    and BatchNorm statistics: leading channels, centred kernels. Names of parameters and keys of the
    state dict are those of the space (``features.3.k5.branch_main.0.weight``).

    The space is taken over, not copied: use it no more by itself. A space with searched widths is
    built anew by its constructor, at the largest ones, so weights loaded into it before are lost.

    Args:
        space: any `ModelSpace`: ours, one of NNI's hub, or the user's own.

    Attributes:
        spec_choices: label -> candidates, in network order.
        active: the choices of the active path, or None.

    Raises:
        ConfigError: naming the module, if the space holds something whose weights cannot be shared.
    """

    def __init__(self, space: ModelSpace) -> None:
        super().__init__()
        self._values = read_choices(space)
        self.spec_choices: dict[str, tuple[Candidate, ...]] = {
            label: tuple(table) for label, table in self._values.items()
        }
        if any(isinstance(m, ParametrizedModule) and list_mutables(m) for m in space.modules()):
            space = build_widest(space, self._values)
        self._switches = share_weights(space, self._values)
        self._sliced = [module for module in space.modules() if get_slicing(module)]
        self._space: Any
        self.__dict__["_space"] = space  # no child: parameters would be named "space...." then
        self._modules, self._parameters = space._modules, space._parameters
        self._buffers = space._buffers
        self._non_persistent_buffers_set = space._non_persistent_buffers_set
        self.active: dict[str, Candidate] | None = None

    def activate(self, choices: Choices) -> None:
        """Make ``choices`` the active path.

        Raises:
            ArchitectureError: if they are not an architecture of this space; the path that was
                active before stays so.
        """
        checked = self._check(choices)
        for switch in self._switches:
            switch.select(checked)
        self.active = checked

    def forward(self, x: Tensor) -> Tensor:
        """What the active path makes of the images: (N, C, H, W) to logits (N, classes)."""
        if self.active is None:
            raise ArchitectureError("the supernet has no active path; call activate(choices) first")
        return self._space(x)

    def train(self, mode: bool = True) -> Supernet:
        """Set training mode (see `nn.Module.train`)."""
        self._space.training = mode
        return super().train(mode)

    def active_modules(self) -> Iterator[nn.Module]:
        """The modules on the active path, parents before children, in the order of the space."""
        seen: set[int] = set()
        stack: list[nn.Module] = [self]
        while stack:
            module = stack.pop()
            if id(module) in seen:
                continue
            seen.add(id(module))
            yield module
            if isinstance(module, (Choice, Depth)):
                children = module.active_children()
            else:
                children = [child for child in module._modules.values() if child is not None]
            stack.extend(reversed(children))

    def active_parameters(self) -> list[nn.Parameter]:
        """The parameters on the active path; a sliced layer's parameter whole."""
        found = {
            id(parameter): parameter
            for module in self.active_modules()
            for parameter in module._parameters.values()
            if parameter is not None
        }
        return list(found.values())

    def partial_parameters(self) -> Iterator[tuple[nn.Parameter, tuple[slice, ...]]]:
        """Parameters of sliced layers that run at less than their size, each with the part used.

        A layer of an idle candidate is at the size that the active path would give it.
        """
        for layer in self._sliced:
            yield from partial_parameters(layer)

    def extract(self, choices: Choices, affine: bool | None = None) -> nn.Module:
        """The plain subnet of an architecture: its own copy of the weights, the same function.

        Args:
            choices: the architecture; the active path stays as it is.
            affine: whether the subnet's BatchNorm has weight and bias, if the space has that
                option; by default as the supernet. Without them in the supernet they are 1 and 0.

        Returns:
            The network that the space's constructor makes of these choices, on the same device and
            in the same mode.

        Raises:
            ArchitectureError: if ``choices`` are not an architecture of this space.
            ConfigError: if the constructor makes another network of them than the path is.
        """
        before, checked = self.active, self._check(choices)
        arguments = dict(self._space.trace_kwargs)
        if affine is not None and "affine" in self._space.args:
            arguments["affine"] = affine
        with torch.random.fork_rng(devices=[]), model_context(nni_sample(checked, self._values)):
            subnet = type(self._space)(*self._space.trace_args, **arguments)
        self.activate(checked)
        try:
            _inherit(self, subnet)
        finally:
            if before is not None:
                self.activate(before)
            self.active = before
        return subnet.train(self.training)

    def _check(self, choices: Choices) -> dict[str, Candidate]:
        """The choices in this space's order; cheap, for it is called in every training step."""
        if isinstance(choices, Mapping) and len(choices) == len(self._values):
            checked = {}
            for label, table in self._values.items():
                chosen = choices.get(label)
                if type(chosen) not in _CANDIDATE_TYPES or chosen not in table:
                    break
                checked[label] = chosen
            else:
                return checked
        return SearchSpec(type(self._space).__name__, {}, self.spec_choices).check(choices)


def _inherit(supernet: Supernet, subnet: nn.Module) -> None:
    """Copy the weights on the supernet's active path into its plain counterpart.

    Layers correspond by their order, not by their names: a constructor may leave out an identity
    or number its layers anew when it knows what is chosen, as NNI's MobileNetV3 does.
    """
    sources = [each for each in supernet.active_modules() if own_tensors(each)]
    targets = [each for each in subnet.modules() if own_tensors(each)]
    if len(sources) != len(targets):
        raise _another_network(subnet, f"{len(targets)} layers in place of {len(sources)}")
    first = next(supernet.parameters())
    subnet.to(device=first.device, dtype=first.dtype)
    for source, target in zip(sources, targets, strict=True):
        _copy_tensors(source, target, subnet)


@torch.no_grad()
def _copy_tensors(source: nn.Module, target: nn.Module, subnet: nn.Module) -> None:
    tensors = active_tensors(source)
    copies = own_tensors(target)
    kind = type(target).__name__
    if not isinstance(source, (type(target), Supernet)):
        raise _another_network(subnet, f"a {kind} in place of a {type(source).__name__}")
    if unexpected := tensors.keys() - copies.keys():
        raise _another_network(subnet, f"a {kind} without {', '.join(sorted(unexpected))}")
    for name, copy in copies.items():
        if name in tensors and tensors[name].shape == copy.shape:
            copy.copy_(tensors[name])
        elif name not in tensors and isinstance(target, _BatchNorm) and target.affine:
            copy.fill_(1.0 if name == "weight" else 0.0)  # what BatchNorm without affine does
        else:
            raise _another_network(subnet, f"a {kind} whose {name} is of {tuple(copy.shape)}")


def _another_network(subnet: nn.Module, reason: str) -> ConfigError:
    return ConfigError(
        f"{type(subnet).__name__}: the network that its constructor makes of a fixed architecture "
        f"is not the path of the supernet; it has {reason}"
    )
