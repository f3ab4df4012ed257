"""`python -m spos search run`: an architecture search without NNI's server.

Imports the search side; `spos.evaluation` and torch when it evaluates, which is in a process of its
own where a candidate's time is limited.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from spos.architecture import Choices
from spos.errors import ConfigError
from spos.files import read_bytes
from spos.search.arguments import ExperimentPaths, build_search
from spos.search.limited import LimitedEvaluation, serve
from spos.search.local import run_search
from spos.search.record import SearchRecord
from spos.search.results import read_entries
from spos.search.watch import StatusLine, describe_progress

MAX_CONFIG_BYTES = 2**20
TIME_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
EVALUATION_FLAGS = ("run_dir", "data_dir", "device", "workers", "threads", "space")
TUNERS = ("spos.search.tuner.SearchTuner", "spos.search.tuner.EvolutionTuner")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `search start` does not have."""
    add_evaluation_flags(parser)
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=Path("runs/search"),
        help="results and state; the same command continues a search there (%(default)s)",
    )


def add_evaluation_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `build_evaluation`."""
    parser.add_argument(
        "--run-dir", type=Path, default=Path("runs/supernet"), help="of supernet.py (%(default)s)"
    )
    parser.add_argument("--data-dir", type=Path, help="where the images are now, if they moved")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--workers", type=int, default=2, help="of the image loader (2)")
    parser.add_argument(
        "--threads",
        type=int,
        default=max(1, (os.cpu_count() or 1) // 2),
        help="of a CPU, as tester.py's (%(default)s)",
    )
    parser.add_argument("--space", metavar="MODULE:CLASS", help="your own space, if it is one")


def run_locally(args: argparse.Namespace, class_args: dict[str, Any]) -> SearchRecord:
    """Search as the configuration's tuner would, one candidate at a time.

    Args:
        args: the parsed flags.
        class_args: arguments of the tuner that flags replace.

    Raises:
        SposError: if a setting is wrong, the supernet is not there or the search cannot go on.
    """
    arguments = {
        **read_arguments(args.config),
        **class_args,
        "cost_table": str((args.run_dir / "cost.json").resolve()),
    }
    search = build_search(ExperimentPaths(Path.cwd()), **arguments)
    line = StatusLine()

    def progress() -> None:
        entries = read_entries(args.output_dir)
        line.show(describe_progress(entries, num_planned=search.num_planned, per_second=0))

    with open_evaluation(args) as evaluate:
        record = run_search(search, evaluate, folder=args.output_dir, progress=progress)
    entries = read_entries(args.output_dir)
    line.close(describe_progress(entries, num_planned=search.num_planned, per_second=0))
    return record


def read_arguments(path: Path) -> dict[str, Any]:
    """The ``classArgs`` of an experiment's configuration.

    Raises:
        ConfigError: if the file cannot be read or names another tuner than ours.
    """
    text = read_bytes(path, error=ConfigError, max_bytes=MAX_CONFIG_BYTES)
    try:
        tuner = yaml.safe_load(text)["tuner"]
        name, arguments = tuner["className"], tuner.get("classArgs") or {}
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as problem:
        raise ConfigError(
            f"{path}: has no tuner.className and classArgs ({type(problem).__name__}: "
            f"{' '.join(str(problem).split())})"
        ) from None
    if name not in TUNERS or not isinstance(arguments, dict):
        raise ConfigError(
            f"{path}: tuner.className is {name!r}; without NNI only {TUNERS[0]} runs, with an "
            "object of classArgs"
        )
    return arguments


def read_limit(path: Path) -> float | None:
    """``maxTrialDuration`` of an experiment's configuration, in seconds; None if it has none.

    Raises:
        ConfigError: if it is no time as NNI takes it, such as ``30m``.
    """
    given = yaml.safe_load(read_bytes(path, error=ConfigError)).get("maxTrialDuration")
    if given is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*", str(given))
    seconds = float(found[1]) * TIME_UNITS[found[2]] if found else 0.0
    if seconds <= 0:
        raise ConfigError(
            f"{path}: maxTrialDuration is {given!r}, expected a time such as 90s, 30m or 2h"
        )
    return seconds


@contextlib.contextmanager
def open_evaluation(args: argparse.Namespace) -> Iterator[Callable[[Choices], Any]]:
    """The evaluation that the flags ask for; under the configuration's time limit, if it has one.

    Raises:
        SposError: if the supernet, its images or the limit are not as they should be.
    """
    seconds = read_limit(args.config)
    if seconds is None:
        yield build_evaluation(args)
        return
    given = {name: getattr(args, name) for name in EVALUATION_FLAGS}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()
             if value is not None]  # fmt: skip
    command = [sys.executable, "-m", "spos.commands.search_run", *flags]
    with LimitedEvaluation(command, seconds=seconds) as evaluate:
        evaluate.start()
        yield evaluate


def build_evaluation(args: argparse.Namespace) -> Callable[[Choices], dict[str, Any]]:
    """What tester.py does for one candidate, with everything loaded once."""
    import torch

    from spos.evaluation.accuracy import check_finite
    from spos.evaluation.build import open_supernet_run
    from spos.evaluation.results import load_result, save_result
    from spos.spaces import load_space_class
    from spos.training.parallel import select_device

    torch.set_num_threads(args.threads)
    if args.space:
        load_space_class(args.space, allow_import=True)
    run = open_supernet_run(args.run_dir)
    checkpoint = run.checkpoint()
    evaluator = run.evaluator(
        checkpoint,
        data_dir=args.data_dir,
        workers=args.workers,
        device=select_device(args.device),
    )

    def evaluate(choices: Choices) -> dict[str, Any]:
        arch = run.spec.architecture(choices)
        result = load_result(run.path, checkpoint, arch)
        if result is None:
            accuracy = check_finite(evaluator.evaluate(arch.choices))
            measured = {"top1": accuracy.top1, "top5": accuracy.top5, "loss": accuracy.loss}
            result = {**measured, **run.table.costs(arch.choices)}
            save_result(run.path, checkpoint, arch, result)
        return {"default": result["top1"], **result}

    return evaluate


def main() -> None:
    """Evaluate for the search that started this process."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    add_evaluation_flags(parser)
    args = parser.parse_args()
    serve(lambda: build_evaluation(args))


if __name__ == "__main__":
    main()
