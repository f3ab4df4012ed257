"""`python -m spos search run`: an architecture search in one process, without NNI's server.

Imports the search side and `spos.evaluation.settings`; torch when it runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from spos.architecture import Choices
from spos.errors import ConfigError
from spos.evaluation.settings import add_evaluation_flags, read_evaluation_flags
from spos.files import read_bytes
from spos.search.arguments import (
    TUNERS,
    ExperimentPaths,
    build_search,
    change_arguments,
    complete_arguments,
)
from spos.search.local import run_search
from spos.search.record import SearchRecord
from spos.search.results import read_entries
from spos.search.watch import StatusLine, describe_progress

MAX_CONFIG_BYTES = 2**20
TUNERS_MODULE = "spos.search.tuner"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `search start` does not have."""
    add_evaluation_flags(parser)
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=Path("runs/search"),
        help="results and state; the same command continues a search there (%(default)s)",
    )


def run_locally(args: argparse.Namespace, class_args: dict[str, Any]) -> SearchRecord:
    """Search as the configuration's tuner would, one candidate at a time.

    Args:
        args: the parsed flags.
        class_args: arguments of the tuner that flags replace.

    Raises:
        SposError: if a setting is wrong, the supernet is not there or the search cannot go on.
    """
    arguments = {
        **change_arguments(read_arguments(args.config), class_args),
        "cost_table": str((args.run_dir / "cost.json").resolve()),
    }
    search = build_search(ExperimentPaths(Path.cwd()), **arguments)
    line = StatusLine()

    def progress() -> None:
        entries = read_entries(args.output_dir)
        line.show(describe_progress(entries, num_planned=search.num_planned, per_second=0))

    record = run_search(search, build_evaluation(args), folder=args.output_dir, progress=progress)
    entries = read_entries(args.output_dir)
    line.close(describe_progress(entries, num_planned=search.num_planned, per_second=0))
    return record


def read_arguments(path: Path) -> dict[str, Any]:
    """The arguments of `SearchTuner` in an experiment's configuration.

    Raises:
        ConfigError: if the file cannot be read or names another tuner than ours.
    """
    text = read_bytes(path, error=ConfigError, max_bytes=MAX_CONFIG_BYTES)
    try:
        tuner = yaml.safe_load(text)["tuner"]
        name, arguments = tuner["className"], tuner.get("classArgs") or {}
        module, _, short_name = name.rpartition(".")
        code = path.parent / tuner.get("codeDirectory", ".")
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as problem:
        raise ConfigError(
            f"{path}: has no tuner.className and classArgs ({type(problem).__name__}: "
            f"{' '.join(str(problem).split())})"
        ) from None
    is_object = isinstance(arguments, dict) and all(isinstance(key, str) for key in arguments)
    if module != TUNERS_MODULE or short_name not in TUNERS or not is_object:
        raise ConfigError(
            f"{path}: tuner.className is {name!r}; without NNI only {', '.join(TUNERS)} of "
            f"{TUNERS_MODULE} run, with an object of classArgs"
        )
    try:
        arguments = complete_arguments(short_name, arguments)
    except ConfigError as problem:
        raise ConfigError(f"{path}: tuner.classArgs: {problem}") from None
    if isinstance(arguments.get("fixed_arc"), str):  # relative to codeDirectory, as under NNI
        arguments["fixed_arc"] = str((code / arguments["fixed_arc"]).resolve())
    return arguments


def build_evaluation(args: argparse.Namespace) -> Callable[[Choices], dict[str, Any]]:
    """What a trial's evaluator does for one candidate, in this process."""
    from spos.evaluation.candidates import Candidates

    candidates = Candidates(read_evaluation_flags(args))

    def evaluate(choices: Choices) -> dict[str, Any]:
        result = candidates.score(choices)
        return {"default": result["top1"], **result}

    return evaluate
