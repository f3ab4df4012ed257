"""BatchNorm as part of the convolution before it, for as long as a candidate is measured.

Imports torch only.

In evaluation mode a BatchNorm is a scale and a shift of each channel, which the weights of the
convolution can do: a third of the passes over activations is gone. `spos.deploy.folding` does it to
a copy that is to stay; here the supernet is itself again afterwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

Pair = tuple[nn.Conv2d, nn.BatchNorm2d]


def find_pairs(network: nn.Module) -> list[Pair]:
    """Convolutions and the BatchNorms that each is followed by in an `nn.Sequential`.

    Nothing else can use the output of such a convolution. Layers that are in two places, that have
    a forward of their own (those of searched widths, for example) or no running statistics are left
    out, and so are those of a sequence that has.
    """
    modules = list(network.modules())
    places = Counter(child for module in modules for child in module.children())
    return [
        (first, second)
        for module in modules
        if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
        for first, second in pairwise(module.children())
        if isinstance(first, nn.Conv2d)
        and isinstance(second, nn.BatchNorm2d)
        and type(first).forward is nn.Conv2d.forward
        and type(second).forward is _BatchNorm.forward
        and places[first] == places[second] == 1
        and second.running_mean is not None
    ]


@contextmanager
def folded(pairs: Sequence[Pair], active: Collection[nn.Module]) -> Iterator[None]:
    """While the block runs, the BatchNorms of the pairs in ``active`` pass on what they are given.

    Their convolutions do what they did, to the rounding of float32: new weights are computed in
    double precision. Only for networks in evaluation mode.
    """
    pairs = [pair for pair in pairs if pair[1] in active]
    own = [(layer.weight, layer.bias) for layer, _ in pairs]
    try:
        for layer, norm in pairs:
            layer.weight, layer.bias = _fuse(layer, norm)
            norm.__dict__["forward"] = _pass_on
        yield
    finally:
        for (layer, norm), (weight, bias) in zip(pairs, own, strict=True):
            layer.weight, layer.bias = weight, bias
            norm.__dict__.pop("forward", None)


def _fuse(layer: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[nn.Parameter, nn.Parameter]:
    assert norm.running_mean is not None and norm.running_var is not None
    weight, bias = fuse_conv_bn_weights(
        layer.weight.double(),
        None if layer.bias is None else layer.bias.double(),
        norm.running_mean.double(),
        norm.running_var.double(),
        norm.eps,
        None if norm.weight is None else norm.weight.double(),
        None if norm.bias is None else norm.bias.double(),
    )
    dtype = layer.weight.dtype
    return (
        nn.Parameter(weight.to(dtype), requires_grad=False),
        nn.Parameter(bias.to(dtype), requires_grad=False),
    )


def _pass_on(x: torch.Tensor) -> torch.Tensor:
    return x
