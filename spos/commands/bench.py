"""`python -m spos bench`: queries that each searcher needs on a known table; latency of networks.

Imports the search side, `spos.commands.bench_model`, and matplotlib for a plot; never torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spos.commands import bench_model
from spos.errors import ConfigError
from spos.flag_values import positive, to_path
from spos.search.arguments import METHODS, build_method, load_method
from spos.search.benchmark import (
    CHECKPOINTS,
    MODES,
    TARGET,
    MacroTable,
    Summary,
    load_macro_table,
    run_once,
    summarize,
)

SEARCHERS = [name for name in METHODS if name != "two_stage"]  # it has no channels
DEFAULT_TABLE = Path("data/nas-bench-macro_cifar10.json")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    benchmarks = parser.add_subparsers(dest="benchmark", required=True, metavar="benchmark")
    summary = "6,561 architectures of 8 layers, all trained on CIFAR-10: a query is a look-up"
    macro = benchmarks.add_parser("nasbench-macro", help=summary, description=summary)
    macro.add_argument(
        "--table",
        type=to_path,
        default=DEFAULT_TABLE,
        metavar="PATH",
        help="the benchmark's nas-bench-macro_cifar10.json (%(default)s)",
    )
    macro.add_argument(
        "--searcher",
        nargs="+",
        type=_searcher,
        default=SEARCHERS,
        metavar="NAME",
        help=f"any of {', '.join(SEARCHERS)} (all), or your own as module:Class",
    )
    macro.add_argument("--seeds", type=positive, default=200, help="searches of each (200)")
    macro.add_argument("--queries", type=positive, default=1000, help="of each search (1000)")
    macro.add_argument(
        "--mode",
        choices=MODES,
        help="whether a query returns the mean of three trainings or one of them (both)",
    )
    macro.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of the searchers, as in classArgs; may be repeated",
    )
    macro.add_argument("--json", action="store_true", help="print one JSON object")
    macro.add_argument("--plot", type=to_path, metavar="FILE", help="draw medians and quartiles")
    macro.set_defaults(run=run)
    summary = "median and 95th percentile of a batch: PyTorch, ONNX Runtime, int8, side by side"
    bench_model.configure(benchmarks.add_parser("model", help=summary, description=summary))


def run(args: argparse.Namespace) -> int:
    """Run the searches and print what they came to."""
    settings = dict(map(_parse_setting, args.set))
    for name in args.searcher:
        load_method(name)
        build_method(name, settings)  # before hours are spent on the others
    table = load_macro_table(args.table)
    summaries: dict[tuple[str, str], Summary] = {}
    if not args.json:
        print(_header(args.queries))
    for mode in [args.mode] if args.mode else MODES:
        for name in args.searcher:
            began = time.monotonic()
            summaries[name, mode] = _search(table, name, settings, mode, args)
            if not args.json:
                print(_row(name, mode, summaries[name, mode]), flush=True)
            seconds = time.monotonic() - began
            sys.stderr.write(f"{name}, {mode}: {args.seeds} seeds in {seconds:.0f} s\n")
    if args.json:
        print(json.dumps(_as_json(summaries, args)))
    if args.plot:
        _plot(summaries, args.plot)
    return 0


def _search(
    table: MacroTable, name: str, settings: dict[str, Any], mode: str, args: argparse.Namespace
) -> Summary:
    outcomes = []
    for seed in range(args.seeds):
        method = build_method(name, {**settings, "seed": seed})
        # So many rounds that only the number of queries ends the search.
        rounds = max(method.rounds, math.ceil(args.queries / method.population))
        method = dataclasses.replace(method, rounds=rounds)  # type: ignore[type-var]
        outcomes.append(run_once(table, method, mode=mode, num_queries=args.queries))
    return summarize(outcomes)


def _searcher(text: str) -> str:
    if text not in SEARCHERS and ":" not in text:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(SEARCHERS)}")
    return text


def _parse_setting(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise ConfigError(f"--set {text}: expected NAME=VALUE, such as population=20")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _header(num_queries: int) -> str:
    points = [number for number in CHECKPOINTS if number <= num_queries]
    titles = "".join(f"  {f'after {number}':>24s}" for number in points)
    return (
        "true accuracy of the best found, median (first to third quartile) over the seeds\n"
        f"{'searcher':10s}  {'mode':7s}{titles}  {f'queries to {TARGET}':>18s}"
    )


def _row(name: str, mode: str, summary: Summary) -> str:
    cells = [
        f"  {f'{median:.3f} ({first:.3f}-{third:.3f})':>24s}"
        for first, median, third in summary.quartiles.values()
    ]
    first, median, third = (f"{each:.0f}" for each in summary.to_target)
    return f"{name:10s}  {mode:7s}{''.join(cells)}  {f'{median} ({first}-{third})':>18s}"


def _as_json(summaries: dict[tuple[str, str], Summary], args: argparse.Namespace) -> dict[str, Any]:
    rows = [
        {
            "searcher": name,
            "mode": mode,
            "accuracy_quartiles": {str(n): list(each) for n, each in summary.quartiles.items()},
            "queries_to_target_quartiles": [
                each if math.isfinite(each) else None for each in summary.to_target
            ],
        }
        for (name, mode), summary in summaries.items()
    ]
    return {"seeds": args.seeds, "queries": args.queries, "target": TARGET, "results": rows}


def _plot(summaries: dict[tuple[str, str], Summary], path: Path) -> None:
    import matplotlib.figure

    from spos.report.style import save_plot

    modes: Sequence[str] = list(dict.fromkeys(mode for _, mode in summaries))
    figure = matplotlib.figure.Figure(figsize=(6 * len(modes), 4.5), layout="constrained")
    axes = figure.subplots(1, len(modes), squeeze=False)[0]
    for axis, mode in zip(axes, modes, strict=True):
        for (name, other), summary in summaries.items():
            if other != mode:
                continue
            steps = range(1, len(summary.curve) + 1)
            (line,) = axis.plot(steps, summary.curve[:, 1], label=name)
            low, high = summary.curve[:, 0], summary.curve[:, 2]
            axis.fill_between(steps, low, high, color=line.get_color(), alpha=0.15)
        axis.axhline(TARGET, color="gray", linewidth=0.5)
        axis.set(
            title=f"NAS-Bench-Macro, {mode}", xlabel="queries", ylabel="true accuracy of the best"
        )
        axis.set_xscale("log")
        axis.set_ylim(92, 93.2)
        axis.legend()
    save_plot(figure, path)
