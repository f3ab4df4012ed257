"""Layers built at their largest size that run at the size of the active path, by slicing.

Imports torch, `spos.architecture`, `spos.errors`, `spos.spaces.nni_pieces`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from spos.architecture import Candidate, Choices
from spos.errors import ConfigError
from spos.spaces.nni_pieces import NniValues, tabulate


@dataclass(frozen=True)
class Extent:
    """What a sliced layer is for one combination of the candidates that it depends on.

    Attributes:
        plain: the layer as a subnet has it, on the meta device: its shapes and settings.
        slices: name of a parameter or buffer -> the part of the largest one that is used.
    """

    plain: Any
    slices: Mapping[str, tuple[slice, ...]]


@dataclass
class Slicing:
    """How a layer follows the choices.

    Attributes:
        labels: the choices that its size depends on.
        extents: candidates of these labels -> what the layer is then.
        active: the extent on the active path.
    """

    labels: tuple[str, ...]
    extents: Mapping[tuple[Candidate, ...], Extent]
    active: Extent | None = None

    def select(self, choices: Choices) -> None:
        """Make the layer run at the size that ``choices`` give it."""
        self.active = self.extents[tuple([choices[label] for label in self.labels])]


class SlicedConv2d(nn.Conv2d):
    """A convolution of the leading channels; a smaller kernel is the centre of the largest."""

    slicing: Slicing

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, C_in, H, W) to (N, C_out, H', W'), widths of the active path."""
        tensors = active_tensors(self)
        return _active_plain(self)._conv_forward(x, tensors["weight"], tensors.get("bias"))


class SlicedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm of the leading channels, running statistics included."""

    slicing: Slicing

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, C, H, W) to the same shape, C of the active path."""
        tensors = active_tensors(self)
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # a cumulative average, as torch defines it
                momentum = 1.0 / float(self.num_batches_tracked)
        return F.batch_norm(
            x,
            tensors.get("running_mean"),
            tensors.get("running_var"),
            tensors.get("weight"),
            tensors.get("bias"),
            self.training or self.running_mean is None,
            momentum,
            self.eps,
        )


class SlicedLinear(nn.Linear):
    """A linear layer of the leading features."""

    slicing: Slicing

    def forward(self, x: Tensor) -> Tensor:
        """Features (..., C_in) to (..., C_out), widths of the active path."""
        tensors = active_tensors(self)
        return F.linear(x, tensors["weight"], tensors.get("bias"))


class SlicedLayerNorm(nn.LayerNorm):
    """LayerNorm of the leading features."""

    slicing: Slicing

    def forward(self, x: Tensor) -> Tensor:
        """Features (..., C) to the same shape, C of the active path."""
        tensors, shape = active_tensors(self), _active_plain(self).normalized_shape
        return F.layer_norm(x, shape, tensors.get("weight"), tensors.get("bias"), self.eps)


_SLICED = (SlicedConv2d, SlicedBatchNorm2d, SlicedLinear, SlicedLayerNorm)

# The plain layers, but never initialised: of an extent only shapes and settings are of interest,
# and initial values on the meta device are what takes the time where there are many widths.
_BARE: Mapping[type[nn.Module], Any] = {
    sliced: type(
        sliced.__bases__[0].__name__,
        (sliced.__bases__[0],),
        {"reset_parameters": lambda self: None},
    )
    for sliced in _SLICED
}


def slice_layer(layer: Any, values: NniValues, *, source: str) -> Slicing:
    """Turn one of NNI's mutable layers, built at its largest size, into a sliced layer.

    The layer stays the same object, with its tensors and with what the space's constructor did to
    it (initial values, BatchNorm's eps and momentum); only its class changes.

    Args:
        layer: a ``MutableConv2d``, ``MutableBatchNorm2d``, ``MutableLinear`` or
            ``MutableLayerNorm``.
        values: what `read_choices` says of the space.
        source: name of the layer, for error messages.

    Returns:
        What makes the layer follow the choices.

    Raises:
        ConfigError: if it is another kind of layer, or one whose weights cannot be shared.
    """
    sliced = next((each for each in _SLICED if isinstance(layer, each.__bases__[0])), None)
    if sliced is None or getattr(layer, "padding_mode", "zeros") != "zeros":
        raise ConfigError(
            f"{source}: a supernet cannot share the weights of {layer!r}; searched sizes are "
            "supported in MutableConv2d with zero padding, MutableBatchNorm2d, MutableLinear and "
            "MutableLayerNorm"
        )
    labels, table = tabulate(layer.args, values, source=source)
    extents: dict[str, Extent] = {}  # by arguments, of which many combinations share some
    for arguments in table.values():
        if repr(arguments) not in extents:
            plain = _BARE[sliced](**{**arguments, "device": "meta"})
            extents[repr(arguments)] = Extent(plain, _slices(layer, plain, source))
    by_key = {key: extents[repr(arguments)] for key, arguments in table.items()}
    layer.__class__ = sliced
    layer.__dict__["slicing"] = slicing = Slicing(labels, by_key)
    return slicing


def active_tensors(module: nn.Module) -> dict[str, Tensor]:
    """A module's own parameters and buffers, by name, as the active path uses them (views)."""
    if isinstance(module, _SLICED):
        assert module.slicing.active is not None, "no path is active"
        slices = module.slicing.active.slices
        return {name: getattr(module, name)[part] for name, part in slices.items()}
    return own_tensors(module)


def partial_parameters(module: nn.Module) -> list[tuple[nn.Parameter, tuple[slice, ...]]]:
    """A sliced layer's parameters that the active path uses in part, each with that part."""
    slicing = get_slicing(module)
    if slicing is None or slicing.active is None:
        return []
    return [
        (parameter, part)
        for name, part in slicing.active.slices.items()
        if (parameter := module._parameters.get(name)) is not None
        and any(each.stop - each.start < n for each, n in zip(part, parameter.shape, strict=True))
    ]


def get_slicing(module: nn.Module) -> Slicing | None:
    """How a sliced layer follows the choices; None of any other module."""
    return module.slicing if isinstance(module, _SLICED) else None


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """A module's own parameters and buffers, by name, without those of its children."""
    return {
        **dict(module.named_parameters(recurse=False, remove_duplicate=False)),
        **dict(module.named_buffers(recurse=False, remove_duplicate=False)),
    }


def _active_plain(layer: nn.Module) -> Any:
    assert isinstance(layer, _SLICED) and layer.slicing.active is not None, "no path is active"
    return layer.slicing.active.plain


def _slices(layer: nn.Module, plain: nn.Module, source: str) -> dict[str, tuple[slice, ...]]:
    largest, slices = own_tensors(layer), {}
    for name, tensor in own_tensors(plain).items():
        whole = largest[name].shape if name in largest else ()
        if len(whole) != tensor.dim() or any(
            size < part for size, part in zip(whole, tensor.shape, strict=True)
        ):
            raise ConfigError(
                f"{source}: its {name} of {tuple(tensor.shape)} is no part of {tuple(whole)}, "
                "which it has with the largest candidate of every choice; a supernet needs sizes "
                "that grow with the candidates"
            )
        is_kernel = isinstance(layer, nn.Conv2d) and name == "weight"
        starts = [
            (size - part) // 2 if is_kernel and axis >= 2 else 0
            for axis, (size, part) in enumerate(zip(whole, tensor.shape, strict=True))
        ]
        slices[name] = tuple(
            slice(start, start + part) for start, part in zip(starts, tensor.shape, strict=True)
        )
    return slices
