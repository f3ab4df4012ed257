"""`python -m spos cost`: what a network costs, in any system's convention, or a whole search space.

Imports `spos.commands`, `spos.cost.table`, `spos.errors`, `spos.files`, `spos.flag_values`;
`spos.convert`, `spos.cost`, `spos.spaces` when it runs.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spos.commands import cost_fit, cost_latency
from spos.cost.table import CostTable
from spos.errors import ConfigError
from spos.files import writing
from spos.flag_values import parse_options, to_path

if TYPE_CHECKING:
    from spos.architecture import Architecture
    from spos.cost.operations import Operation

CONVENTIONS = (
    "macs",
    "canyonwind",
    "canyonwind-bn-relu",
    "micronet",
    "mmrazor",
    "nni",
    "thop2019",
    "anglenas",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument(
        "target",
        metavar="FILE|NAME",
        help="an architecture file, a published network zoo:NAME, or a search space",
    )
    parser.add_argument(
        "--convention",
        choices=CONVENTIONS,
        default="macs",
        metavar="NAME",
        help=f"whose way of counting: {', '.join(CONVENTIONS)} (macs)",
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="operation by operation: input, kernel, channels, params, mults, adds",
    )
    parser.add_argument("--table", metavar="OUT", type=to_path, help="write the space's cost table")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--space", help="search space of FILE, if it does not say")
    parser.add_argument("--image-size", type=int, help="side of the images (the file's, or 224)")
    parser.add_argument("--num-classes", type=int, help="classes (the file's, or 1000)")
    parser.add_argument("--space-options", metavar="JSON", help="further options of the space")
    cost_latency.configure(parser)
    cost_fit.configure(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Count what is asked for and print it."""
    from spos.spaces import load_space_class

    options = _options(args)
    if args.latency and args.fit:
        raise ConfigError("--latency measures here, --fit what was measured; give one of them")
    if args.metric and not args.fit:
        raise ConfigError(
            f"--metric {args.metric}: names the cost of --fit MEASURED; give that too"
        )
    if args.space:
        load_space_class(args.space, allow_import=True)
    if _names_a_space(args.target):
        return _print_space(args, options)
    if args.latency or args.fit:
        use = "--latency measures" if args.latency else "--fit is about"
        raise ConfigError(f"{args.target} is not a search space, and {use} one: give its name")
    arch = _read(args, options)
    if args.table:
        from spos.cost.counting import build_cost_table

        _save(build_cost_table(arch.space, options=arch.options), args.table)
    operations = _operations(arch)
    if args.profile:
        value, text = _profile(operations)
    elif args.convention == "micronet":
        value, text = _micronet(operations)
    else:
        value, text = _count(operations, args.convention)
    if args.json:
        header = {"space": arch.space, "options": dict(arch.options), "choices": dict(arch.choices)}
        print(json.dumps({**header, **value}))
    else:
        print(text)
    return 0


def _options(args: argparse.Namespace) -> dict[str, Any]:
    options = parse_options(args.space_options)
    for name in ("image_size", "num_classes"):
        if getattr(args, name) is not None:
            options[name] = getattr(args, name)
    return options


def _names_a_space(target: str) -> bool:
    """Whether it is a space of ours, or of the user's own as module:Class, and not a file."""
    from spos.convert.zoo import ZOO_PREFIX
    from spos.spaces import SPACES, load_space_class

    if target.startswith(ZOO_PREFIX) or os.path.exists(target):  # unlike pathlib's, of any length
        return False
    if ":" in target:
        load_space_class(target, allow_import=True)  # which adds it to SPACES
    return target in SPACES


def _read(args: argparse.Namespace, options: dict[str, Any]) -> Architecture:
    from spos.architecture import Architecture
    from spos.convert.architectures import default_spec, read_architecture

    spec = default_spec(args.space, **options) if args.space else None
    arch = read_architecture(args.target, spec)
    return Architecture(arch.space, {**arch.options, **options}, arch.choices, arch.metrics)


def _operations(arch: Architecture) -> list[Operation]:
    from spos.cost.operations import list_operations
    from spos.spaces import build_subnet, default_image_size

    return list_operations(build_subnet(arch), default_image_size(arch.space, options=arch.options))


def _print_space(args: argparse.Namespace, options: dict[str, Any]) -> int:
    """Print the range of a space's costs."""
    from spos.convert.architectures import default_spec
    from spos.cost.counting import METRICS, build_cost_table

    if args.profile or args.convention != "macs":
        raise ConfigError(
            f"{args.target} is a search space; --profile and --convention count one network, so "
            "give an architecture file or zoo:NAME"
        )
    if args.latency:
        return cost_latency.print_latency(args, options)
    if args.fit:
        return cost_fit.print_fit(args, options)
    table = build_cost_table(args.target, options=default_spec(args.target, **options).options)
    if args.table:
        _save(table, args.table)
    spec = table.spec
    bounds = {metric: list(table.bounds(metric)) for metric in METRICS}
    if args.json:
        value = {"space": spec.space, "options": dict(spec.options), "bounds": bounds}
        print(json.dumps({**value, "num_architectures": spec.num_architectures}))
        return 0
    print(f"{spec.space} {dict(spec.options)}")
    print(f"{len(spec.choices)} choices, {spec.num_architectures:,} architectures")
    for metric, (low, high) in bounds.items():
        print(f"{metric:6s} {low:>15,d} to {high:,d}")
    return 0


def _save(table: CostTable, path: Path) -> None:
    """Write the table; what was measured for it before is kept.

    Raises:
        ConfigError: if something was measured there for another space, or the file cannot be
            written.
    """
    if path.exists():
        known = CostTable.load(path)
        table = table.with_measured(known)
        if lost := sorted(set(known.measured) - set(table.measured)):
            raise ConfigError(
                f"{path}: holds the measured {', '.join(lost)} of another space or other options, "
                "which would be lost; name another --table"
            )
    with writing(path, advice="; name another --table"):
        table.save(path)


def _count(operations: list[Operation], convention: str) -> tuple[dict[str, Any], str]:
    """Per layer and total, as JSON and as text."""
    from spos.cost.conventions import CONVENTIONS, count
    from spos.cost.scores import readme_score, search_score

    counted = count(operations, convention)
    unit = "macs" if convention == "macs" else "flops"
    layers = [{"name": name, unit: flops, "params": n} for name, flops, n in counted.layers]
    total = {unit: counted.flops, "params": counted.params}
    value: dict[str, Any] = {"convention": convention, "layers": layers, "total": total}
    rows = [(name, f"{flops:,d}", f"{n:,d}") for name, flops, n in counted.layers]
    rows.append(("total", f"{counted.flops:,d}", f"{counted.params:,d}"))
    text = _table(("layer", unit, "params"), rows)
    text += f"\n{unit}: {CONVENTIONS[convention].summary}"
    if convention == "canyonwind":
        costs = counted.flops, counted.params
        scores = {"readme_score": readme_score(*costs), "search_score": search_score(*costs)}
        value["scores"] = scores
        text += "".join(f"\n{name} {score:.4f}" for name, score in scores.items())
    return value, text


def _micronet(operations: list[Operation]) -> tuple[dict[str, Any], str]:
    from spos.cost.micronet import BITS, count_micronet

    counted = count_micronet(operations)
    sums = {"quantized": counted.quantized, "rest": counted.rest, "total": counted.total}
    rows = [(each.name, cost, is_q) for each, cost, is_q in counted.rows]
    value = {
        "convention": "micronet",
        "layers": [{"name": name, **vars(cost), "quantized": is_q} for name, cost, is_q in rows],
        **{name: vars(cost) for name, cost in sums.items()},
        "bits": {
            str(bits): {
                "params": counted.at(bits)[0],
                "operations": counted.at(bits)[1],
                "micronet_score": counted.score(bits),
            }
            for bits in BITS
        },
    }
    lines = [
        (name, f"{cost.params:,.0f}", f"{cost.mults:,d}", f"{cost.adds:,d}")
        for name, cost in [*((name, cost) for name, cost, _ in rows), *sums.items()]
    ]
    text = _table(("layer", "params", "mults", "adds"), lines)
    for bits in BITS:
        params, total = counted.at(bits)
        text += (
            f"\n{bits:2d} bit: {params:,.0f} words, {total:,.0f} operations, "
            f"micronet_score {counted.score(bits):.4f}"
        )
    return value, text


def _profile(operations: list[Operation]) -> tuple[dict[str, Any], str]:
    """Every operation with its shapes; multiplications and additions as MicroNet counts them."""
    from spos.cost.micronet import count_micronet

    counted = count_micronet(operations)
    layers = [
        {
            "name": each.name,
            "kind": each.kind,
            "input_size": each.input_shape[1] if len(each.input_shape) == 3 else 1,
            "kernel": each.kernel,
            "in_channels": each.input_shape[0],
            "out_channels": each.channels,
            "groups": each.groups,
            "params": cost.params,
            "mults": cost.mults,
            "adds": cost.adds,
            "quantized": is_quantized,
        }
        for each, cost, is_quantized in counted.rows
    ]
    total = vars(counted.total)
    header = ("name", "kind", "input", "kernel", "in", "out", "groups", "params", "mults", "adds")
    rows = [tuple(_cell(entry) for entry in list(layer.values())[:-1]) for layer in layers]
    rows.append(("total", *("",) * 6, *(_cell(entry) for entry in total.values())))
    return {"profile": layers, "total": total}, _table(header, rows)


def _cell(entry: Any) -> str:
    if isinstance(entry, float):
        return f"{entry:,.0f}"
    return f"{entry:,d}" if isinstance(entry, int) else str(entry)


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Columns, the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = []
    for first, *others in (header, *rows):
        cells = [f"{cell:>{width}s}" for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([f"{first:{widths[0]}s}", *cells]).rstrip())
    return "\n".join(lines)
