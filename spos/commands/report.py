"""`python -m spos report`: one HTML page and PNGs of a supernet, its search and its winner.

Imports `spos.errors`; `spos.report` and torch when it runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from spos.errors import ConfigError

DEFAULT_RUNS = (Path("runs/supernet"), Path("runs/scratch"))


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument(
        "targets",
        nargs="*",
        metavar="RUN_OR_EXPERIMENT",
        help="run folders, searches or ids of NNI experiments, all on one page; a folder with "
        "several of them; by default runs/supernet, the latest search and runs/scratch",
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=Path("runs/report"),
        help="of index.html and the PNGs (%(default)s)",
    )
    parser.add_argument("--experiments-dir", type=Path, help="default: ~/nni-experiments")
    parser.add_argument(
        "--space",
        metavar="MODULE:CLASS",
        help="your own space, if it is one; without it its networks are not drawn",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the report and say where it is."""
    from spos.report.report import write_report
    from spos.report.sources import collect, list_searches
    from spos.spaces import load_space_class

    if args.space:
        load_space_class(args.space, allow_import=True)
    targets = list(args.targets)
    if not targets:
        targets = [str(path) for path in DEFAULT_RUNS if path.is_dir()]
        if searches := list_searches(args.experiments_dir):
            targets.append(str(searches[-1].folder))
    if not targets:
        raise ConfigError(
            "there is nothing to report: neither runs/supernet nor runs/scratch nor a search in "
            f"{args.experiments_dir or '~/nni-experiments'}; name a run folder or an experiment"
        )
    files = write_report(
        collect(targets, experiments_dir=args.experiments_dir), folder=args.output_dir
    )
    print(f"report: {files[0]} ({len(files) - 1} figures beside it as PNG)")
    return 0
