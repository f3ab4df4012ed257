"""`python -m spos search run`: an architecture search without NNI's server.

Imports the search side, `spos.evaluation.settings` and what reads a run's settings; torch when it
evaluates, which is in a process of its own where a candidate's time is limited.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from spos.architecture import Choices
from spos.errors import ConfigError
from spos.evaluation.settings import add_evaluation_flags, read_evaluation_flags
from spos.files import read_bytes
from spos.flag_values import to_path
from spos.search.arguments import (
    DEFAULT_SEARCHER,
    TUNERS,
    ExperimentPaths,
    build_search,
    change_arguments,
    complete_arguments,
    load_method,
)
from spos.search.limited import LimitedEvaluation, serve
from spos.search.local import check_folder, run_search
from spos.search.record import SearchRecord
from spos.search.results import RUN_FOLDER, STATE_FILE, read_entries
from spos.search.trained import describe_limits
from spos.search.trial import SUPERNET
from spos.search.watch import StatusLine, describe_progress
from spos.training.run_folder import open_supernet_settings
from spos.training.samplers import trained_ranges

MAX_CONFIG_BYTES = 2**20
TUNERS_MODULE = "spos.search.tuner"
TIME_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `search start` does not have."""
    add_evaluation_flags(parser)
    parser.add_argument(
        "--output-dir",
        type=to_path,
        default=RUN_FOLDER,
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
    check_folder(args.output_dir)
    arguments = read_arguments(args.config, class_args)
    settings, costs = open_supernet_settings(args.run_dir)
    arguments.setdefault("cost_table", str(costs.resolve()))
    search = build_search(ExperimentPaths(Path.cwd()), **arguments)
    if not (args.output_dir / STATE_FILE).exists():  # else it goes on as it began
        source = f"{args.run_dir}/args.json"
        trained = trained_ranges(settings.config, search.space.table, source=source)
        if remark := describe_limits(search.space, trained):
            print(remark, flush=True)
    line = StatusLine()

    def progress() -> None:
        entries = read_entries(args.output_dir)
        line.show(describe_progress(entries, num_planned=search.num_planned, per_second=0))

    with open_evaluation(args) as evaluate:
        record = run_search(
            search,
            evaluate,
            folder=args.output_dir,
            retries_failed=args.retry_failed,
            progress=progress,
        )
    entries = read_entries(args.output_dir)
    line.close(describe_progress(entries, num_planned=search.num_planned, per_second=0))
    return record


def read_arguments(path: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `SearchTuner` in an experiment's configuration, with what flags replace.

    Raises:
        ConfigError: if the file cannot be read or names another tuner than ours, or the searcher of
            ``changes`` cannot be imported.
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
    load_method(changes.get("searcher", DEFAULT_SEARCHER), folder=code)
    try:
        arguments = complete_arguments(short_name, change_arguments(arguments, changes))
    except ConfigError as problem:
        raise ConfigError(f"{path}: tuner.classArgs: {problem}") from None
    for name in ("fixed_arc", "cost_table"):
        if isinstance(arguments.get(name), str):  # relative to codeDirectory, as under NNI
            arguments[name] = str((code / arguments[name]).resolve())
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
    flags = read_evaluation_flags(args).flags()
    command = [sys.executable, "-m", "spos.commands.search_run", *flags]
    with LimitedEvaluation(command, seconds=seconds) as evaluate:
        evaluate.start()
        yield evaluate


def build_evaluation(args: argparse.Namespace) -> Callable[[Choices], dict[str, Any]]:
    """What a trial's evaluator does for one candidate, in this process."""
    from spos.evaluation.candidates import Candidates

    candidates = Candidates(read_evaluation_flags(args))
    spec = candidates.run.spec
    supernet = {"space": spec.space, "options": dict(spec.options)}

    def evaluate(choices: Choices) -> dict[str, Any]:
        result = candidates.score(choices)
        return {"default": result["top1"], **result, SUPERNET: supernet}

    return evaluate


def main() -> None:
    """Evaluate for the search that started this process."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    add_evaluation_flags(parser)
    args = parser.parse_args()
    serve(lambda: build_evaluation(args))


if __name__ == "__main__":
    main()
