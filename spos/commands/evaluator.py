"""`python -m spos evaluator`: keep a supernet and its images loaded for the trials of a search.

Imports the torch-free part of `spos.evaluation`; the rest and torch when it runs.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys

from spos.errors import ConfigError
from spos.evaluation.address import Address, find_address, take_lock
from spos.evaluation.settings import add_evaluation_flags, read_evaluation_flags
from spos.training.run_folder import read_settings


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_evaluation_flags(parser)
    parser.add_argument(
        "--idle-seconds", type=float, default=600.0, metavar="S",
        help="end when nobody has asked for so long (default: %(default)g)",
    )  # fmt: skip
    # From the trial that starts it: the descriptor of the file that it has locked for us.
    parser.add_argument("--lock", type=int, help=argparse.SUPPRESS)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate what trials with the same flags ask for, until they ask no more."""
    settings = read_evaluation_flags(args)
    if not 0 < args.idle_seconds < 1e9:
        raise ConfigError(f"--idle-seconds {args.idle_seconds:g}: expected more than 0")
    read_settings(args.run_dir, stage="supernet")  # else it says what makes the run
    address = find_address(settings)
    lock = _lock(address, args.lock)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # tidy up
    from spos.evaluation.candidates import Candidates
    from spos.evaluation.server import serve
    from spos.training.run_folder import show_log

    show_log()
    try:
        serve(Candidates(settings), address, idle_seconds=args.idle_seconds)
    finally:
        os.close(lock)
    return 0


def _lock(address: Address, inherited: int | None) -> int:
    """The locked file, open in this process."""
    try:
        lock = take_lock(address) if inherited is None else inherited
        if lock is not None and os.path.samestat(os.fstat(lock), os.stat(address.lock)):
            return lock
    except OSError as problem:
        raise ConfigError(
            f"{address.lock}: cannot be locked ({problem.strerror or problem})"
        ) from None
    raise ConfigError(
        f"{address.folder.parent}: an evaluator with these flags runs already ({address.record})"
    )
