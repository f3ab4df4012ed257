"""BatchNorm as part of the convolution before it, for as long as a candidate is measured.

Imports `spos.folding` and torch.

In evaluation mode a BatchNorm is a scale and a shift of each channel, which the weights of the
convolution can do: one pass less over the activations. `spos.folding` makes a copy that stays so;
here the supernet is itself again afterwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from spos.folding import fold_weights

Pair = tuple[nn.Conv2d, nn.BatchNorm2d]


def find_pairs(network: nn.Module) -> list[Pair]:
    """Convolutions and the BatchNorms that each is followed by in an `nn.Sequential`.

    Nothing else can use the output of such a convolution. Layers that are in two places, that have
    a forward of their own (those of searched widths, for example) or no running statistics are left
    out, and so are those of a sequence that has.
    """
    modules = list(network.modules())
    # Not `children()`, which names a layer that a sequence runs twice only once.
    places = Counter(child for module in modules for child in module._modules.values())
    return [
        (first, second)
        for module in modules
        if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
        for first, second in pairwise(module._modules.values())
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
            layer.weight, layer.bias = fold_weights(layer, norm)
            norm.__dict__["forward"] = _pass_on
        yield
    finally:
        for (layer, norm), (weight, bias) in zip(pairs, own, strict=True):
            layer.weight, layer.bias = weight, bias
            norm.__dict__.pop("forward", None)


def _pass_on(x: torch.Tensor) -> torch.Tensor:
    return x
