"""`python -m spos report`: one HTML page and PNGs of a supernet, its search and its winner.

Imports `spos.errors`, `spos.flag_values`; `spos.report`, `spos.spaces` and torch when it runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from spos.errors import ConfigError
from spos.flag_values import to_path

if TYPE_CHECKING:
    from spos.report.sources import Sources


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_target_flags(parser)
    parser.add_argument(
        "--output-dir",
        type=to_path,
        default=Path("runs/report"),
        help="of index.html and the PNGs (%(default)s)",
    )
    parser.add_argument(
        "--space",
        metavar="MODULE:CLASS",
        help="your own space, if it is one; without it its networks are not drawn",
    )
    parser.set_defaults(run=run)


def add_target_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that say which runs and searches a command is about."""
    parser.add_argument(
        "targets",
        nargs="*",
        metavar="RUN_OR_EXPERIMENT",
        help="run folders, searches or ids of NNI experiments; a folder with several of them, such "
        "as runs/demo; by default runs/supernet, runs/scratch and the latest search",
    )
    parser.add_argument(
        "--experiments-dir",
        type=to_path,
        metavar="DIR",
        help="where ids and the latest search are looked up (default: all that NNI knows, and "
        "runs/search)",
    )


def read_targets(args: argparse.Namespace) -> Sources:
    """What the flags of `add_target_flags` name.

    Raises:
        ConfigError: if they name nothing and there is nothing where it would be by default.
    """
    from spos.report.sources import collect, default_targets

    targets = args.targets or default_targets(args.experiments_dir)
    if not targets:
        raise ConfigError(
            "there is nothing to report: neither runs/supernet nor runs/scratch nor a search in "
            f"runs/search or {args.experiments_dir or '~/nni-experiments'}; name a run folder or "
            "an experiment"
        )
    return collect(targets, experiments_dir=args.experiments_dir)


def run(args: argparse.Namespace) -> int:
    """Write the report and say where it is."""
    from spos.report.report import write_report
    from spos.spaces import load_space_class

    if args.space:
        load_space_class(args.space, allow_import=True)
    files = write_report(read_targets(args), folder=args.output_dir)
    print(f"report: {files[0]} ({len(files) - 1} figures beside it as PNG)")
    return 0
