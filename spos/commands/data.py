"""`python -m spos data`: make data sets of own images, CIFAR and the digits, split and check them.

Imports `spos.errors`, `spos.files`, `spos.flag_values`, and `spos.data` when it runs; never torch,
so that it starts at once.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from spos.errors import ConfigError
from spos.files import writing
from spos.flag_values import to_path

if TYPE_CHECKING:
    from spos.data.folder import DataFolder


SHOWN = 5  # files of an extension that is not read
SPLIT_FILE = "split.json"  # beside the images


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the actions; each sets ``run``."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="action")

    summary = "make a data set of a folder of class folders, by links"
    arrange = actions.add_parser("arrange", help=summary, description=summary)
    arrange.add_argument("source", type=to_path, help="<class>/*.jpg, or train/<class>/*.jpg alone")
    arrange.add_argument("dir", type=to_path, help="what to make: train/<class>/ and test/<class>/")
    arrange.add_argument(
        "--test", type=float, default=0.15, metavar="SHARE", help="of each class (%(default)s)"
    )
    arrange.add_argument("--seed", type=int, default=0, help="of the random choice (%(default)s)")
    arrange.add_argument("--copy", action="store_true", help="copy the files instead of linking")
    arrange.set_defaults(run=_run_arrange)

    summary = "write CIFAR-10 or CIFAR-100 as folders of PNG"
    cifar = actions.add_parser("cifar", help=summary, description=summary)
    cifar.add_argument(
        "archive", type=to_path, help="cifar-10-binary.tar.gz or cifar-100-binary.tar.gz"
    )
    cifar.add_argument("dir", type=to_path, help="what to make, such as data/cifar10")
    cifar.set_defaults(run=_run_cifar)

    digits = actions.add_parser("digits", help="write the embedded data set as JPEG folders")
    digits.add_argument("dir", nargs="?", default="data/digits", type=to_path, help="%(default)s")
    digits.set_defaults(run=_run_digits)

    split = actions.add_parser("split", help="choose the images that are held out of training")
    split.add_argument(
        "dir", type=to_path, help="the data set: train/<class>/*.jpg and val/ or test/"
    )
    split.add_argument(
        "--per-class", type=int, metavar="N",
        help="images of each (50, or a fifth of the smallest class if that is too small)",
    )  # fmt: skip
    split.add_argument("--seed", type=int, default=0, help="of the random choice (%(default)s)")
    split.add_argument("--output", type=to_path, help="the file to write (DIR/split.json)")
    split.set_defaults(run=_run_split)

    check = actions.add_parser(
        "check",
        help="find files that cannot be decoded or are not read, and classes without images",
    )
    check.add_argument("dir", type=to_path, help="a folder of images, in any layout")
    check.add_argument("--workers", type=int, help="threads (one per processor)")
    check.add_argument("--json", action="store_true", help="print one JSON object")
    check.set_defaults(run=_run_check)


def _run_arrange(arguments: argparse.Namespace) -> int:
    from spos.data.arrange import arrange_images

    data = arrange_images(
        arguments.source,
        arguments.dir,
        test_share=arguments.test,
        seed=arguments.seed,
        copy=arguments.copy,
    )
    print(_describe(arguments.dir, data))
    return 0


def _run_cifar(arguments: argparse.Namespace) -> int:
    from spos.data.cifar import unpack_cifar

    print(_describe(arguments.dir, unpack_cifar(arguments.archive, arguments.dir)))
    return 0


def _describe(folder: Path, data: DataFolder) -> str:
    return (
        f"{folder}: {len(data.train):,} images to train on and {len(data.test):,} to test, "
        f"{len(data.train.classes):,} classes"
    )


def _run_digits(arguments: argparse.Namespace) -> int:
    from spos.data.digits import prepare_digits

    print(f"the digits are in {prepare_digits(arguments.dir)}")
    return 0


def _run_split(arguments: argparse.Namespace) -> int:
    from spos.data.folder import open_data
    from spos.data.split import DEFAULT_PER_CLASS, default_per_class, make_split, save_split

    train = open_data(arguments.dir).train
    per_class = arguments.per_class
    if per_class is None:
        per_class = default_per_class(train)
    split = make_split(train, per_class=per_class, seed=arguments.seed)
    output = arguments.output or arguments.dir / SPLIT_FILE
    with writing(output, advice="; name another --output"):
        save_split(output, split)
    left, note = len(train) - len(split.held_out), ""
    if arguments.per_class is None and per_class < DEFAULT_PER_CLASS:
        note = f" ({per_class} of each class, a fifth of the smallest)"
    print(
        f"{output}: {len(split.held_out):,} images held out{note}, {left:,} left to train on, "
        f"{len(train.classes):,} classes"
    )
    return 0


def _run_check(arguments: argparse.Namespace) -> int:
    """Print what was found; the exit status is 1 if anything of it would end a training run."""
    from tqdm import tqdm

    from spos.data.check import check_images, find_gaps, list_images

    if arguments.workers is not None and arguments.workers < 1:
        raise ConfigError(f"--workers {arguments.workers}: expected at least 1")
    root, others = arguments.dir, []
    paths = list_images(root, passed_over=others)
    passed_over = _by_extension(others)
    gaps = find_gaps(root, paths)
    results = check_images(root, paths, num_workers=arguments.workers)
    shown = tqdm(results, total=len(paths), unit=" images", disable=None)  # only on a terminal
    bad = [result for result in shown if result is not None]
    if arguments.json:
        listed = [{"path": each.path, "reason": each.reason} for each in bad]
        found = {"checked": len(paths), "undecodable": listed, "passed_over": passed_over}
        print(json.dumps({**found, "gaps": gaps}))
        return 1 if bad or gaps else 0
    for extension, files in passed_over.items():
        some = ", ".join(files[:SHOWN]) + (", ..." if len(files) > SHOWN else "")
        print(f"{root}: {extension} is not read, {len(files):,} passed over: {some}")
    for line in gaps:
        print(line)
    for each in bad:
        print(f"{root / each.path}: {each.reason}")
    print(f"{len(paths):,} images checked, {len(bad):,} cannot be decoded")
    return 1 if bad or gaps else 0


def _by_extension(files: list[str]) -> dict[str, list[str]]:
    """Files that no training reads, but for a split, by their extension."""
    found: dict[str, list[str]] = {}
    for file in sorted(files):
        if file != SPLIT_FILE:
            extension = PurePosixPath(file).suffix.lower() or "a name without extension"
            found.setdefault(extension, []).append(file)
    return found
