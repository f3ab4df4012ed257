"""CanyonWind's scores of size: costs divided by those of a reference network.

Imports only `spos.errors`; never torch, because a search may be bound by them.
"""

from __future__ import annotations

from collections.abc import Mapping

from spos.errors import ConfigError

# The single-path network that CanyonWind's own tables and search compare with.
REFERENCE_FLOPS = 328e6
REFERENCE_PARAMS = 3.4e6
# The same for a cost table. Its multiply-adds are up to 0.35M below CanyonWind's FLOPs, so scores
# are up to 0.0005 lower.
REFERENCE = {"macs": REFERENCE_FLOPS, "params": REFERENCE_PARAMS}


def readme_score(flops: float, params: float) -> float:
    """CanyonWind's tables: size against the paper's network, 2 for that; less is better.

    Args:
        flops: in the convention ``canyonwind``.
        params: parameters.
    """
    return flops / REFERENCE_FLOPS + params / REFERENCE_PARAMS


def search_score(
    flops: float,
    params: float,
    *,
    reference_flops: float = REFERENCE_FLOPS,
    reference_params: float = REFERENCE_PARAMS,
) -> float:
    """CanyonWind's search: the mean of both ratios, at most 1 for a candidate it accepts."""
    return 0.5 * (flops / reference_flops + params / reference_params)


def search_score_weights(reference: Mapping[str, float] = REFERENCE) -> dict[str, float]:
    """`search_score` as a weighted sum of the metrics of ``reference``.

    Raises:
        ConfigError: if a number of the reference is not positive.
    """
    for metric, cost in reference.items():
        if cost <= 0:
            raise ConfigError(f"score_reference: {metric} is {cost}, expected more than 0")
    return {metric: 1 / (len(reference) * cost) for metric, cost in reference.items()}
