"""`python -m spos cost SPACE --latency`: how long every candidate of a search space takes.

Imports `spos.cost`, `spos.errors`, `spos.files`; `spos.convert`, `spos.training` and torch when it
runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spos.cost.table import CostTable
from spos.errors import ConfigError
from spos.files import writing

if TYPE_CHECKING:
    from spos.cost.prediction import Prediction


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    group = parser.add_argument_group("latency of a search space")
    group.add_argument(
        "--latency",
        action="store_true",
        help="measure every candidate; --table OUT adds latency_ms to the table that is there",
    )
    group.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (%(default)s)")
    for name, default, text in (
        ("--batch-size", 1, "images at once"),
        ("--threads", 1, "of a CPU"),
        ("--rounds", 8, "visits of every candidate"),
    ):
        group.add_argument(name, type=int, default=default, metavar="N",
                           help=f"{text} (%(default)s)")  # fmt: skip


def print_latency(args: argparse.Namespace, options: dict[str, Any]) -> int:
    """Measure, write the table if it was asked for, and print what came of it."""
    from spos.cost.latency import METRIC, measure_latency
    from spos.training.parallel import select_device

    for name in ("batch_size", "threads", "rounds"):
        if getattr(args, name) < 1:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} {getattr(args, name)}: expected 1 or more")
    device = select_device(args.device)
    given = open_table(args.target, options, args.table)
    table, prediction = measure_latency(
        given, device=device, batch_size=args.batch_size, threads=args.threads,
        rounds=args.rounds, progress=_show_progress,
    )  # fmt: skip
    if args.table:
        save_measured(table, METRIC, args.table)
    if args.json:
        print(json.dumps(table_value(table, METRIC)))
    else:
        print(_text(table, table.measured[METRIC], prediction))
    return 0


def open_table(space: str, options: dict[str, Any], path: Path | None) -> CostTable:
    """The cost table in a file, if it is there and of this space; else a new one.

    Raises:
        ConfigError: if the file is of another space or of other options than those given.
    """
    from spos.convert.architectures import default_spec
    from spos.cost.counting import build_cost_table

    if path is None or not path.exists():
        return build_cost_table(space, options=default_spec(space, **options).options)
    table = CostTable.load(path)
    if table.spec.space != space:
        raise ConfigError(f"{path}: is the cost table of {table.spec.space!r}, not of {space!r}")
    for name, value in options.items():
        if table.spec.options.get(name) != value:
            raise ConfigError(
                f"{path}: has the {name} {table.spec.options.get(name)!r}, not {value!r}; leave "
                "the option out to measure what the table is of, or name another --table"
            )
    return table


def save_measured(table: CostTable, metric: str, path: Path) -> None:
    """Add what was measured to the table in the file, which may have been shrunk meanwhile.

    Raises:
        ConfigError: if the file has become another table, or cannot be written.
    """
    if path.exists():
        table = CostTable.load(path).with_measured(table)
    if metric not in table.metrics:
        raise ConfigError(f"{path}: has become another table meanwhile; repeat the command")
    with writing(path, advice="; name another --table"):
        table.save(path)


def table_value(table: CostTable, metric: str) -> dict[str, Any]:
    """What a table holds of a measured metric, as JSON."""
    return {
        "space": table.spec.space,
        "options": dict(table.spec.options),
        **table.measured[metric],
        "bounds": list(table.bounds(metric)),
        "fixed": table.fixed[metric],
        "terms": [
            {
                "labels": list(term.labels),
                metric: list(term.costs[metric]),
                **({"spread": list(term.spreads[metric])} if metric in term.spreads else {}),
            }
            for term in table.terms
        ],
    }


def _text(table: CostTable, how: dict[str, Any], prediction: Prediction) -> str:
    from spos.cost.latency import METRIC

    low, high = table.bounds(METRIC)
    lines = [
        f"{table.spec.space} {dict(table.spec.options)}",
        f"{how['device']}, batch {how['batch_size']}, {how['threads']} threads, "
        f"torch {how['torch']}, {how['date']}",
        f"{'milliseconds':24s}  fastest   slowest   spread",
    ]
    for term in table.terms:
        costs, spread = term.costs[METRIC], statistics.median(term.spreads[METRIC])
        lines.append(
            f"{' '.join(term.labels):24s} {min(costs):8.3f}  {max(costs):8.3f} {spread:8.3f}"
        )
    lines += [
        f"{'the rest':24s} {table.fixed[METRIC]:8.3f}",
        f"{'sum':24s} {low:8.3f}  {high:8.3f}",
        str(prediction),
    ]
    return "\n".join(lines)


def _show_progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\rsubnet {done}/{total}", end="\n" if done == total else "", file=sys.stderr)
