"""Which path each training step trains: the samplers by name.

Imports `spos.architecture`, `spos.cost.constraints`, `spos.cost.table`, `spos.errors` and the
samplers beside it; never torch.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from spos.architecture import SearchSpec
from spos.cost.constraints import Constraint, parse_constraint_flags
from spos.cost.table import CostTable
from spos.errors import ConfigError
from spos.training.samplers.arguments import parse_warmup
from spos.training.samplers.constrained import ConstrainedSampler
from spos.training.samplers.protocol import PathSampler
from spos.training.samplers.strolling import StrollingSampler
from spos.training.samplers.uniform import (
    CostUniformSampler,
    FairSampler,
    UniformSampler,
    usual_range,
)
from spos.training.samplers.warmup import Phase, WarmedSampler

SAMPLERS = ("uniform", "fair", "macs-uniform", "constrained", "strolling")
BOXED = ("constrained", "strolling")  # these need ranges

# The authors' space with all its options, and the range of MACs that they trained with.
PUBLISHED_SPACE = "shufflenetv2"
PUBLISHED_OPTIONS: Mapping[str, Any] = {
    "image_size": 224, "num_classes": 1000, "channel_scales": None, "layout": "canonical",
    "stem_width": 16, "stage_widths": [64, 160, 320, 640], "stage_depths": [4, 4, 8, 4],
    "last_width": 1024, "activation": "relu", "stem_activation": None, "squeeze_excitation": None,
    "head": "plain", "classifier_bias": False, "dropout": 0.1, "output_stride": None,
}  # fmt: skip
PUBLISHED_RANGE = Constraint("macs", 290_000_000, 360_000_000)


def build_sampler(
    name: str,
    table: CostTable,
    *,
    seed: int,
    steps_per_epoch: int = 1,
    ranges: Sequence[Constraint] = (),
    warmup: Sequence[Phase] = (),
) -> PathSampler:
    """The sampler called ``name``, one of `SAMPLERS`.

    Args:
        name: of the sampler.
        table: costs of the space.
        seed: of all draws.
        steps_per_epoch: the length of a stroll, and the unit of the warm-up.
        ranges: bounds on the paths' costs, for `BOXED` samplers; ``macs-uniform`` takes one of
            MACs (default: the paper's in its space, else three standard deviations on either side
            of the mean).
        warmup: phases in which only the widest widths are trained.

    Raises:
        ConfigError: if these do not go together.
        ConstraintError: if the ranges cannot be met.
    """
    _check_ranges(name, ranges, table)
    if name == "macs-uniform" and not ranges:
        ranges = [PUBLISHED_RANGE] if _is_published(table.spec) else []
    build = functools.partial(_build, name, steps_per_epoch)
    if not warmup:
        return build(table, ranges, seed)
    return WarmedSampler(build, table, ranges, warmup, seed=seed, steps_per_epoch=steps_per_epoch)


def build_recorded_sampler(
    config: Mapping[str, Any], table: CostTable, *, source: str
) -> tuple[PathSampler, int]:
    """The sampler of a supernet's run, and the steps of an epoch, from the run's settings.

    Raises:
        ConfigError: naming ``source`` if the settings do not say how paths were sampled.
        ConstraintError: if the ranges cannot be met with this table.
    """
    given = _recorded(config, source)
    if "shrink" in config:
        raise ConfigError(
            f"{source}: the space was shrunk in training, so its cost table no longer says how "
            "paths were sampled"
        )
    for metric, digest in (given["measured_costs"] or {}).items():
        if metric in table.metrics and table.digest(metric) != digest:
            raise ConfigError(
                f"{source}: {metric} was measured again since the training, so its cost table "
                "no longer says how paths were sampled"
            )
    images = given["num_train"] - given["held_out"]
    steps_per_epoch = max(1, images // given["batch_size"])
    sampler = build_sampler(
        given["sampler"],
        table,
        seed=given["seed"],
        steps_per_epoch=steps_per_epoch,
        ranges=parse_constraint_flags(given["path_range"] or (), flag="--path-range"),
        warmup=parse_warmup(given["channel_warmup"]),
    )
    return sampler, steps_per_epoch


def trained_ranges(
    config: Mapping[str, Any], table: CostTable, *, source: str
) -> tuple[Constraint, ...]:
    """Bounds on the costs of the paths that a supernet's run trains, from the run's settings.

    There are none for a sampler of the whole space, for weights that were taken as they are
    (``--epochs 0``), and for a cost that was measured again since.

    Args:
        config: of the run.
        table: costs of the run's space, of what is left of it if it was shrunk.
        source: for errors.

    Raises:
        ConfigError: naming ``source`` if the settings do not say how paths were sampled.
    """
    given = _recorded(config, source)
    if not config.get("epochs"):
        return ()
    ranges = parse_constraint_flags(given["path_range"] or (), flag="--path-range")
    if given["sampler"] == "macs-uniform" and not ranges:
        ranges = (PUBLISHED_RANGE if _is_published(table.spec) else usual_range(table),)
    known, digests = table.metrics, given["measured_costs"] or {}
    return tuple(
        each
        for each in ranges
        if each.metric in known and digests.get(each.metric) in (None, table.digest(each.metric))
    )


def _recorded(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """What a run's settings say of its paths, checked."""
    keys = ("sampler", "seed", "path_range", "channel_warmup", "num_train", "held_out",
            "batch_size", "measured_costs")  # fmt: skip
    given: dict[str, Any] = {key: config.get(key) for key in keys}
    numbers = [given[key] for key in ("seed", "num_train", "held_out", "batch_size")]
    texts = given["path_range"]
    if (
        given["sampler"] not in SAMPLERS
        or any(type(each) is not int or each < 0 for each in numbers)
        or not given["batch_size"]
        or not (texts is None or isinstance(texts, list))
        or not all(isinstance(each, str) for each in texts or ())
        or not (given["channel_warmup"] is None or isinstance(given["channel_warmup"], str))
        or not isinstance(given["measured_costs"] or {}, dict)
    ):
        found = ", ".join(f"{key} {value!r}" for key, value in given.items())
        raise ConfigError(f"{source}: does not say how paths were sampled ({found})")
    return given


def _build(
    name: str, steps_per_epoch: int, table: CostTable, ranges: Sequence[Constraint], seed: int
) -> PathSampler:
    """A sampler without warm-up; a boxed one whose ranges are all held back is uniform."""
    if name == "fair":
        return FairSampler(table.spec, seed=seed)
    if name == "macs-uniform":
        if not ranges:
            return CostUniformSampler(table, seed=seed)
        reached = ranges[0].clip(table)  # bins beyond it would be empty
        return CostUniformSampler(table, seed=seed, low=reached.low, high=reached.high)
    if name == "constrained" and ranges:
        return ConstrainedSampler(table, ranges, seed=seed)
    if name == "strolling" and ranges:
        return StrollingSampler(table, ranges, seed=seed, steps_per_epoch=steps_per_epoch)
    return UniformSampler(table.spec, seed=seed)


def _is_published(spec: SearchSpec) -> bool:
    """Whether it is the authors' space, or a part of it."""
    options = {**PUBLISHED_OPTIONS, **spec.options}
    return spec.space == PUBLISHED_SPACE and options == PUBLISHED_OPTIONS


def _check_ranges(name: str, ranges: Sequence[Constraint], table: CostTable) -> None:
    metrics = [each.metric for each in ranges]
    if unknown := [each for each in metrics if each not in table.metrics]:
        raise ConfigError(
            f"--path-range {unknown[0]}: is no cost of {table.spec.space!r}, which has "
            f"{', '.join(table.metrics)}; measured ones are those of cost.json in the run folder, "
            "if its space and options are the same "
            "(python -m spos cost SPACE --latency --table RUN_DIR/cost.json)"
        )
    if len(set(metrics)) < len(metrics):
        raise ConfigError(f"--path-range: {', '.join(metrics)}: give one range for each cost")
    if name in BOXED and not ranges:
        raise ConfigError(
            f"--sampler {name}: needs the box to draw from, such as --path-range macs=290M:360M"
        )
    if name == "macs-uniform" and metrics not in ([], ["macs"]):
        raise ConfigError(
            f"--path-range {metrics[-1]}: macs-uniform takes a range of macs only; "
            f"use --sampler {' or '.join(BOXED)}"
        )
    if name in ("uniform", "fair") and ranges:
        raise ConfigError(
            f"--path-range: the {name} sampler draws from the whole space; "
            f"use --sampler {', '.join(BOXED)} or macs-uniform"
        )
