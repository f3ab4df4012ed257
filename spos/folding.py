"""BatchNorm folded into the convolutions before it: the same function with fewer operations.

Imports `spos.errors` and torch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode

from spos.errors import ConfigError


@dataclass(frozen=True)
class Folding:
    """A network without the BatchNorms that could be folded.

    Attributes:
        network: a copy, in evaluation mode; a folded BatchNorm is an `nn.Identity` and its
            convolution has a bias.
        folded: name of each folded BatchNorm -> name of its convolution.
        kept: names of the BatchNorms that do not follow a convolution alone, and stay.
    """

    network: nn.Module
    folded: Mapping[str, str]
    kept: tuple[str, ...]


def fold_batchnorm(network: nn.Module, images: Tensor) -> Folding:
    """Fold each BatchNorm whose input is the output of a convolution that nothing else uses.

    Which these are is seen from one pass of ``images``, not from names or the order of modules, so
    it works for any network whose layers are modules, however its forward is written. The
    arithmetic is float64, rounded once: logits differ by the rounding of float32 only.

    Args:
        network: in any mode; it is left as it is.
        images: an input (N, 3, H, W) that the network takes, on its device; its values do not
            matter.

    Raises:
        ConfigError: if a BatchNorm has no running statistics, so that its output depends on the
            other images of a batch.
    """
    network = copy.deepcopy(network).eval()
    names = {module: name for name, module in network.named_modules()}
    norms = [module for module in names if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        if norm.running_mean is None:
            raise ConfigError(
                f"{names[norm]}: this BatchNorm keeps no running statistics, so what the network "
                "says of an image depends on the rest of the batch; it cannot be deployed"
            )
    pairs = _find_pairs(network, images)
    for norm, convolution in pairs.items():
        _replace(network, convolution, _fuse(convolution, norm))
        _replace(network, norm, nn.Identity())
    return Folding(
        network,
        {names[norm]: names[convolution] for norm, convolution in pairs.items()},
        tuple(names[norm] for norm in norms if norm not in pairs),
    )


def fold_weights(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[nn.Parameter, nn.Parameter]:
    """Weight and bias with which a convolution alone does what both do in evaluation mode.

    The arithmetic is float64, rounded once.
    """
    tensors = [
        None if each is None else each.detach().double()
        for each in (
            convolution.weight, convolution.bias, norm.running_mean, norm.running_var,
            norm.weight, norm.bias,
        )
    ]  # fmt: skip
    weight, bias, mean, variance, scale, shift = tensors
    assert weight is not None and mean is not None and variance is not None
    folded = fuse_conv_bn_weights(weight, bias, mean, variance, norm.eps, scale, shift)
    dtype = convolution.weight.dtype
    return nn.Parameter(folded[0].to(dtype)), nn.Parameter(folded[1].to(dtype))


def _fuse(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    fused = copy.deepcopy(convolution)
    fused.weight, fused.bias = fold_weights(convolution, norm)
    return fused


def _replace(network: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` in every place of ``old``."""
    places = [
        (parent, name)
        for parent in network.modules()
        for name, child in parent.named_children()
        if child is old
    ]
    for parent, name in places:
        setattr(parent, name, new)


def _find_pairs(network: nn.Module, images: Tensor) -> dict[nn.BatchNorm2d, nn.Conv2d]:
    """BatchNorm -> the convolution whose output it, and nothing else, is applied to."""
    calls: dict[nn.Module, list[tuple[Any, Any]]] = {}
    hooks = [
        module.register_forward_hook(
            lambda called, inputs, output: calls.setdefault(called, []).append((inputs[0], output))
        )
        for module in network.modules()
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d))
    ]
    watch = _UseCounter()
    try:
        with torch.no_grad(), watch:
            result = network(images)
    finally:
        for hook in hooks:
            hook.remove()
    returned = {id(tensor) for tensor in _tensors(result)}
    makers = {
        id(made[0][1]): module
        for module, made in calls.items()
        if isinstance(module, nn.Conv2d) and len(made) == 1
    }
    pairs = {}
    for module, used in calls.items():
        given = id(used[0][0])
        if not isinstance(module, nn.BatchNorm2d) or len(used) > 1 or given in returned:
            continue
        if given in makers and watch.uses.get(given) == 1:
            pairs[module] = makers[given]
    return pairs


class _UseCounter(TorchFunctionMode):
    """Counts, for every tensor, the torch functions that made other tensors of it."""

    def __init__(self) -> None:
        super().__init__()
        self.uses: dict[int, int] = {}
        self._kept: list[Any] = []  # no tensor dies, so no two have the same id

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(True for _ in _tensors(result)):  # not of its shape, for example
            given = list(_tensors((args, kwargs)))
            self._kept += [*given, result]
            for each in {id(tensor) for tensor in given}:
                self.uses[each] = self.uses.get(each, 0) + 1
        return result


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each)
