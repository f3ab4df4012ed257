"""`python -m spos cost SPACE --fit MEASURED`: a cost of every candidate, from whole networks' ones.

Imports `spos.commands.cost_latency`, `spos.flag_values`; `spos.cost` when it runs.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from spos.commands.cost_latency import open_table, save_measured, table_value
from spos.flag_values import to_path

if TYPE_CHECKING:
    from spos.cost.prediction import Prediction
    from spos.cost.table import CostTable

DEFAULT_METRIC = "latency_ms"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    group = parser.add_argument_group("cost of a search space, measured on any device")
    group.add_argument(
        "--fit", type=to_path, metavar="MEASURED",
        help="CSV or JSON of network and number, in the folder of `sample --onnx`; --table OUT "
        "adds the cost to the table that is there",
    )  # fmt: skip
    group.add_argument(
        "--metric", metavar="NAME",
        help=f"the cost of --fit, with its unit, such as energy_mj ({DEFAULT_METRIC})",
    )  # fmt: skip


def print_fit(args: argparse.Namespace, options: dict[str, Any]) -> int:
    """Fit, write the table if it was asked for, and print what came of it."""
    from spos.cost.fitting import fit_costs, read_measurements

    metric = args.metric or DEFAULT_METRIC
    measurements = read_measurements(args.fit)
    arch = measurements[0].arch
    if arch.space == args.target and not (args.table and args.table.exists()):
        options = {**arch.options, **options}
    given = open_table(args.target, options, args.table)
    table, prediction = fit_costs(given, measurements, metric=metric, source=str(args.fit))
    if args.table:
        save_measured(table, metric, args.table)
    if args.json:
        print(json.dumps(table_value(table, metric)))
    else:
        print(_text(table, metric, prediction))
    return 0


def _text(table: CostTable, metric: str, prediction: Prediction) -> str:
    how = table.measured[metric]
    lines = [
        f"{table.spec.space} {dict(table.spec.options)}",
        f"{how['numbers']} numbers fitted to {how['networks']} networks of {how['file']}",
        f"{metric:24s}     least      most",
    ]
    rows = [(" ".join(term.labels), term.costs[metric]) for term in table.terms]
    fixed = table.fixed[metric]
    for name, costs in [*rows, ("the rest", [fixed]), ("sum", table.bounds(metric))]:
        lines.append(f"{name:24s} {min(costs):9.4g} {max(costs):9.4g}")
    return "\n".join([*lines, str(prediction)])
