"""`python -m spos data`: make the embedded data set, split a data set, check its images.

Imports only `spos.data` and `spos.errors`; never torch, so that it starts at once.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from spos.errors import ConfigError


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the three actions; each sets ``run``."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="action")

    digits = actions.add_parser("digits", help="write the embedded data set as JPEG folders")
    digits.add_argument("dir", nargs="?", default="data/digits", type=Path, help="%(default)s")
    digits.set_defaults(run=_run_digits)

    split = actions.add_parser("split", help="choose the images that are held out of training")
    split.add_argument("dir", type=Path, help="the data set: train/<class>/*.jpg and val/ or test/")
    split.add_argument("--per-class", type=int, default=50, help="images of each (%(default)s)")
    split.add_argument("--seed", type=int, default=0, help="of the random choice (%(default)s)")
    split.add_argument("--output", type=Path, help="the file to write (DIR/split.json)")
    split.set_defaults(run=_run_split)

    check = actions.add_parser("check", help="find the files that cannot be decoded")
    check.add_argument("dir", type=Path, help="a folder of images, in any layout")
    check.add_argument("--workers", type=int, help="threads (one per processor)")
    check.add_argument("--json", action="store_true", help="print one JSON object")
    check.set_defaults(run=_run_check)


def _run_digits(arguments: argparse.Namespace) -> int:
    from spos.data.digits import prepare_digits

    print(f"the digits are in {prepare_digits(arguments.dir)}")
    return 0


def _run_split(arguments: argparse.Namespace) -> int:
    from spos.data.folder import open_data
    from spos.data.split import make_split, save_split

    train = open_data(arguments.dir).train
    split = make_split(train, per_class=arguments.per_class, seed=arguments.seed)
    output = arguments.output or arguments.dir / "split.json"
    try:
        save_split(output, split)
    except OSError as problem:
        raise ConfigError(
            f"{output}: cannot be written ({problem.strerror}); name another --output"
        ) from None
    print(
        f"{output}: {len(split.held_out):,} images held out, {len(train) - len(split.held_out):,} "
        f"left to train on, {len(train.classes):,} classes"
    )
    return 0


def _run_check(arguments: argparse.Namespace) -> int:
    """Print what was found; the exit status is 1 if anything was."""
    from tqdm import tqdm

    from spos.data.check import check_images, list_images

    if arguments.workers is not None and arguments.workers < 1:
        raise ConfigError(f"--workers {arguments.workers}: expected at least 1")
    paths = list_images(arguments.dir)
    results = check_images(arguments.dir, paths, num_workers=arguments.workers)
    shown = tqdm(results, total=len(paths), unit=" images", disable=None)  # only on a terminal
    bad = [result for result in shown if result is not None]
    if arguments.json:
        listed = [{"path": each.path, "reason": each.reason} for each in bad]
        print(json.dumps({"checked": len(paths), "undecodable": listed}))
    else:
        for each in bad:
            print(f"{arguments.dir / each.path}: {each.reason}")
        print(f"{len(paths):,} images checked, {len(bad):,} cannot be decoded")
    return 1 if bad else 0
