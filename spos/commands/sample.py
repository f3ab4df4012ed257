"""`python -m spos sample`: which paths a sampler draws, without training; also as files.

Imports `spos.commands` and the samplers; `spos.cost.counting` with torch for a search space,
matplotlib for a plot.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spos.architecture import Candidate
from spos.commands.sample_files import write_architectures, write_networks
from spos.cost.constraints import Constraint, parse_constraint_flags
from spos.cost.table import CostTable
from spos.errors import ConfigError
from spos.flag_values import parse_options, positive, to_path
from spos.training.samplers import BOXED, SAMPLERS, build_sampler
from spos.training.samplers.arguments import add_path_flags, parse_warmup
from spos.training.samplers.coverage import (
    AXES,
    CELLS,
    COARSE_CELLS,
    Coverage,
    find_box,
    measure_coverage,
)

COMPARED = ("uniform", *BOXED)
NUM_DRAWS = 5040
NUM_NETWORKS = 200
NUM_ARCHITECTURES = 20


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument(
        "target",
        metavar="SPACE|FILE|DIR",
        help="a search space, a cost table (cost.json), or the run folder of supernet.py",
    )
    parser.add_argument("--space-options", metavar="JSON", help="options of the search space")
    parser.add_argument(
        "--sampler",
        nargs="+",
        choices=SAMPLERS,
        metavar="NAME",
        help=f"any of {', '.join(SAMPLERS)} ({', '.join(COMPARED)} if there is a box)",
    )
    add_path_flags(parser)
    parser.add_argument(
        "--draws", type=positive,
        help=f"steps of an epoch ({NUM_DRAWS:,d}; with --onnx {NUM_NETWORKS}, with --output-dir "
        f"{NUM_ARCHITECTURES})",
    )  # fmt: skip
    parser.add_argument("--epoch", type=positive, default=1, help="that is drawn (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the samplers (%(default)s)")
    parser.add_argument("--plot", type=to_path, metavar="FILE", help="draw MACs against parameters")
    files = parser.add_mutually_exclusive_group()
    files.add_argument(
        "--output-dir", type=to_path, metavar="DIR",
        help="write the architectures of one sampler (uniform, or constrained if there is a box) "
        "as ID.json, to be trained for `rank --truth`",
    )  # fmt: skip
    files.add_argument(
        "--onnx", type=to_path, metavar="DIR",
        help="write the architectures of one sampler (fair, or constrained if there is a box) as "
        "ID.json and, with random weights, ID.onnx, to be measured for `cost SPACE --fit`",
    )  # fmt: skip
    parser.add_argument("--space", help="module:Class of your own, if --onnx is of a table of it")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draw from each sampler and print how the draws cover the box."""
    ranges = parse_constraint_flags(args.path_range or (), flag="--path-range")
    parse_warmup(args.channel_warmup)  # before a table is built for minutes
    names = _samplers(args, has_box=bool(ranges))
    args.draws = args.draws or (
        NUM_NETWORKS if args.onnx else NUM_ARCHITECTURES if args.output_dir else NUM_DRAWS
    )
    table = _open_table(args.target, args.space_options)
    box = find_box(table, ranges)
    paths = {name: _draw(name, table, ranges, args) for name in names}
    draws = {
        name: np.array([[table.cost(path, metric) for metric in AXES] for path in each], float)
        for name, each in paths.items()
    }
    covered = {name: measure_coverage(costs, box) for name, costs in draws.items()}
    if args.json:
        print(json.dumps(_as_json(table, box, draws, covered)))
    else:
        print(_describe(box, covered))
    if args.plot:
        _plot(draws, covered, box, args.plot)
    if args.output_dir:
        write_architectures(args.output_dir, table, paths[names[0]])
    if args.onnx:
        write_networks(args.onnx, table, paths[names[0]], space=args.space)
    return 0


def _samplers(args: argparse.Namespace, *, has_box: bool) -> Sequence[str]:
    """Those asked for, else those that suit; to write files, one."""
    flag = "--onnx" if args.onnx else "--output-dir" if args.output_dir else None
    if flag is None:
        return args.sampler or (COMPARED if has_box else COMPARED[:1])
    default = BOXED[0] if has_box else "fair" if args.onnx else "uniform"
    names = args.sampler or (default,)
    if len(names) > 1:
        raise ConfigError(
            f"{flag}: is for the paths of one sampler; give one of --sampler {' '.join(names)}"
        )
    return names


def _open_table(target: str, space_options: str | None) -> CostTable:
    path = Path(target)
    if path.exists():
        if space_options:
            raise ConfigError(f"--space-options: {target} has options of its own; leave them out")
        return CostTable.load(path / "cost.json" if path.is_dir() else path)
    options = parse_options(space_options)
    from spos.spaces import SPACES, load_space_class

    if target not in SPACES and ":" not in target:
        raise ConfigError(
            f"{target}: is neither a file nor a folder nor a search space; there are "
            f"{', '.join(SPACES)}, and your own as package.module:Class"
        )
    load_space_class(target, allow_import=True)
    from spos.convert.architectures import default_spec
    from spos.cost.counting import build_cost_table

    return build_cost_table(target, options=default_spec(target, **options).options)


def _draw(
    name: str, table: CostTable, ranges: Sequence[Constraint], args: argparse.Namespace
) -> list[dict[str, Candidate]]:
    """The paths of one epoch."""
    if name == "macs-uniform":
        ranges = [each for each in ranges if each.metric == "macs"]
    elif name not in BOXED:
        ranges = ()
    sampler = build_sampler(
        name,
        table,
        seed=args.seed,
        steps_per_epoch=args.draws,
        ranges=ranges,
        warmup=parse_warmup(args.channel_warmup),
    )
    paths = []
    first = (args.epoch - 1) * args.draws
    for number in range(args.draws):
        paths.append(sampler.sample(first + number))
        if sys.stderr.isatty() and number % 100 == 99:
            sys.stderr.write(f"\r{name}: {number + 1} of {args.draws} paths")
    if sys.stderr.isatty():
        sys.stderr.write("\n")
    return paths


def _describe(box: Sequence[Constraint], covered: Mapping[str, Coverage]) -> str:
    shape, coarse = (f"{cells[0]} x {cells[1]}" for cells in (CELLS, COARSE_CELLS))
    bounds = " and ".join(f"{each.metric} {each.low:,.0f} to {each.high:,.0f}" for each in box)
    lines = [
        f"coverage of {bounds} by a grid of {shape}, normalised entropy over it and over {coarse}",
        f"{'sampler':12s}  {'inside':>8s}  {'cells':>8s}  {shape:>8s}  {coarse:>8s}",
    ]
    for name, each in covered.items():
        cells = f"{each.occupied}/{CELLS[0] * CELLS[1]}"
        lines.append(
            f"{name:12s}  {each.inside:8.1%}  {cells:>8s}  {each.entropy:8.3f}  "
            f"{each.coarse_entropy:8.3f}"
        )
    return "\n".join(lines)


def _as_json(
    table: CostTable,
    box: Sequence[Constraint],
    draws: Mapping[str, np.ndarray],
    covered: Mapping[str, Coverage],
) -> dict[str, Any]:
    samplers = {
        name: {
            **dataclasses.asdict(each),
            "mean": dict(zip(AXES, draws[name].mean(axis=0).tolist(), strict=True)),
        }
        for name, each in covered.items()
    }
    return {
        "space": table.spec.space,
        "options": dict(table.spec.options),
        "box": {each.metric: [each.low, each.high] for each in box},
        "cells": CELLS[0] * CELLS[1],
        "samplers": samplers,
    }


def _plot(
    draws: Mapping[str, np.ndarray],
    covered: Mapping[str, Coverage],
    box: Sequence[Constraint],
    path: Path,
) -> None:
    import matplotlib.figure
    from matplotlib.patches import Rectangle

    from spos.report.style import save_plot

    figure = matplotlib.figure.Figure(figsize=(4.5 * len(draws), 4.5), layout="constrained")
    axes = figure.subplots(1, len(draws), squeeze=False, sharex=True, sharey=True)[0]
    (low, high), (least, most) = ((each.low / 1e6, each.high / 1e6) for each in box)
    for axis, (name, costs) in zip(axes, draws.items(), strict=True):
        axis.scatter(*(costs / 1e6).T, s=3, alpha=0.4, linewidths=0)
        axis.add_patch(
            Rectangle((low, least), high - low, most - least, fill=False, linestyle="--")
        )
        axis.set(
            title=f"{name}: {covered[name].occupied} of {CELLS[0] * CELLS[1]} cells",
            xlabel="MACs, millions",
        )
    axes[0].set_ylabel("parameters, millions")
    save_plot(figure, path)
