"""Each system's way of counting: what it calls FLOPs and parameters, by name.

Imports `spos.cost.operations`, `spos.errors` and numpy.

Published figures follow their authors' conventions, which differ by several per cent for the same
network. ``macs`` is this package's unit; the others are here so that published tables can be
reproduced, to the integer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from spos.cost.operations import Operation
from spos.errors import ConfigError

Flops = Callable[[Operation], int]


@dataclass(frozen=True)
class Convention:
    """A way of counting.

    Attributes:
        summary: what it counts and who counts so.
        flops: what an operation costs.
        params: how many parameters it has.
        single_precision: whether costs are added up in 32-bit floating point, in the order of the
            operations, which rounds sums above 2^24.
    """

    summary: str
    flops: Flops
    params: Callable[[Operation], int] = lambda each: each.params
    single_precision: bool = False


@dataclass(frozen=True)
class Count:
    """Costs of a network in one convention.

    Attributes:
        convention: its name.
        layers: (module's name, FLOPs, parameters) of every operation that has any.
        flops: of the whole network.
        params: of the whole network.
    """

    convention: str
    layers: tuple[tuple[str, int, int], ...]
    flops: int
    params: int


def count(operations: Sequence[Operation], convention: str = "macs") -> Count:
    """Count a network.

    Args:
        operations: see `spos.cost.operations.list_operations`.
        convention: a key of `CONVENTIONS`.

    Raises:
        ConfigError: if there is no such convention, or it has no rule for a layer.
    """
    rules = CONVENTIONS.get(convention)
    if rules is None:
        raise ConfigError(
            f"there is no convention {convention!r} for counting; there are "
            f"{', '.join(CONVENTIONS)}"
        )
    for each in operations:
        if each.kind == "other" and convention != "macs":
            raise ConfigError(
                f"the convention {convention!r} has no rule for the layer {each.name}; count with "
                "'macs'"
            )
    rows = [(each.name, rules.flops(each), rules.params(each)) for each in operations]
    flops = [row[1] for row in rows]
    return Count(
        convention,
        tuple(row for row in rows if row[1] or row[2]),
        _sum_in_single_precision(flops) if rules.single_precision else sum(flops),
        sum(row[2] for row in rows),
    )


def _canyonwind(each: Operation) -> int:
    """Multiply-adds, 1 for each output that gets a bias and each input of a pooling."""
    biased = each.outputs if each.has_bias else 0
    return each.macs + biased + (each.inputs if "pool" in each.kind else 0)


def _canyonwind_bn_relu(each: Operation) -> int:
    """As well 3 for each output of a BatchNorm and 1 for each of a ReLU."""
    return _canyonwind(each) + {"batchnorm": 3, "relu": 1}.get(each.kind, 0) * each.outputs


def _mmrazor(each: Operation) -> int:
    """Biases of convolutions only; BatchNorm 2 an entry or 1 without affine; ReLU 1; pooling 1."""
    if each.kind == "batchnorm":
        return each.inputs * (2 if each.is_affine else 1)
    if each.kind in ("relu", "relu6", "pool", "adaptive pool"):
        return each.inputs
    return each.macs + (each.outputs if each.kind == "conv" and each.has_bias else 0)


def _nni(each: Operation) -> int:
    """Biases; BatchNorm 4 an entry or 2 without affine; ReLU and ReLU6 1; pooling nothing."""
    if each.kind == "batchnorm":
        return each.inputs * (4 if each.is_affine else 2)
    if each.kind in ("relu", "relu6"):
        return each.inputs
    return each.macs + (each.outputs if each.has_bias else 0)


def _anglenas(each: Operation) -> int:
    """Biases of convolutions; a linear layer of n inputs is n products and n - 1 sums an output."""
    if each.kind == "linear":
        return 2 * each.macs - each.outputs
    return each.macs + (each.outputs if each.kind == "conv" and each.has_bias else 0)


def _thop2019(each: Operation) -> int:
    """As well, for each output of a pooling, one sum an input and one division."""
    if each.kind == "adaptive pool":
        return (each.kernel**2 + 1) * each.outputs
    if each.kind == "pool":
        return (each.kernel + 1) * each.outputs  # it took an integer kernel for an area
    return _anglenas(each)


def _without_batchnorm(each: Operation) -> int:
    return 0 if each.kind == "batchnorm" else each.params


def _sum_in_single_precision(costs: Sequence[int]) -> int:
    total = np.float32(0)
    for cost in costs:
        total = np.float32(total + np.float32(cost))
    return int(total)


CONVENTIONS: Mapping[str, Convention] = {
    "macs": Convention("multiply-adds of convolutions and linear layers", lambda each: each.macs),
    "canyonwind": Convention(
        "CanyonWind: multiply-adds, bias outputs, pooling's inputs (its tables)", _canyonwind
    ),
    "canyonwind-bn-relu": Convention(
        "CanyonWind with BatchNorm (3 an output) and ReLU (1)", _canyonwind_bn_relu
    ),
    "mmrazor": Convention("MMRazor's ResourceEstimator", _mmrazor),
    "nni": Convention("NNI 3.0's FlopsProfiler with its defaults", _nni),
    "thop2019": Convention(
        "thop of autumn 2019 with BatchNorm set to 0, as lliai counts",
        _thop2019,
        single_precision=True,
    ),
    "anglenas": Convention(
        "AngleNAS's copy of thop: no pooling, no parameters of BatchNorm",
        _anglenas,
        params=_without_batchnorm,
        single_precision=True,
    ),
}
