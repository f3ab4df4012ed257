"""`python -m spos search start | resume | run | best`: an architecture search, on NNI or without.

Imports the search side only; never torch.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spos.architecture import Architecture, save_architecture
from spos.commands import search_run
from spos.cost.constraints import parse_constraint_flags, write_constraints
from spos.errors import ConfigError, SearchError
from spos.files import writing
from spos.flag_values import positive, to_path
from spos.search.arguments import METHODS
from spos.search.experiment import Changes, check_port, prepare_experiment
from spos.search.launch import (
    RunningExperiment,
    find_experiment,
    find_latest,
    resume_experiment,
    start_experiment,
    stop_experiment,
)
from spos.search.objective import parse_objective_flags
from spos.search.record import read_progress
from spos.search.results import (
    BEST,
    FRONT,
    JOURNAL,
    RUN_FOLDER,
    Entry,
    rank_entries,
    read_best,
    read_entries,
    read_front,
    save_ranking,
)
from spos.search.watch import watch_experiment


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the actions and their flags; each sets ``run``."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="action")
    start = actions.add_parser("start", help="start a search and show its progress to the end")
    start.add_argument("--concurrency", type=int, help="trials at once (trialConcurrency)")
    start.add_argument("--trial-command", help="in place of the file's trialCommand")
    start.add_argument(
        "--run-dir", type=to_path, metavar="DIR",
        help="run folder of supernet.py (default: runs/supernet, as trialCommand says)",
    )  # fmt: skip
    start.add_argument("--space", metavar="MODULE:CLASS",
                       help="your own space, if the supernet was trained with one")  # fmt: skip
    start.add_argument("--data-dir", type=to_path, metavar="DIR",
                       help="where the images are now, if they have moved")  # fmt: skip
    start.set_defaults(run=_start)
    run = actions.add_parser("run", help="the same search in one process, without NNI's server")
    for action in (start, run):
        action.add_argument(
            "--config", type=to_path, default=Path("config_search.yml"), metavar="FILE",
            help="the NNI experiment, with the tuner's settings (default: %(default)s)",
        )  # fmt: skip
        action.add_argument("--rounds", type=int, help="number of rounds (tuner.classArgs.rounds)")
        action.add_argument("--population", type=int, help="candidates of a round")
        action.add_argument("--seed", type=int, help="of the search")
        action.add_argument(
            "--constraint", action="append", metavar="METRIC=LOW:HIGH",
            help="limits of macs, params or another cost of cost.json, such as macs=290M:330M or "
            "latency_ms=:12, in place of the file's on that cost; may be repeated",
        )  # fmt: skip
        action.add_argument(
            "--searcher", metavar="NAME",
            help=f"{', '.join(METHODS)}, or your own as module:Class, in place of the file's, "
            "whose settings count as far as it has them",
        )  # fmt: skip
        action.add_argument(
            "--objective", action="append", metavar="METRIC[=WEIGHT]",
            help="a metric to maximize, such as top1; repeated, such as macs=-1e-10, their sum",
        )  # fmt: skip
    search_run.configure(run)
    run.set_defaults(run=_run)
    resume = actions.add_parser("resume", help="continue a search that was stopped or killed")
    resume.add_argument("id", help="the experiment, as `search start` printed it")
    resume.set_defaults(run=_resume)
    for action in (run, resume):
        action.add_argument(
            "--retry-failed", action="store_true",
            help="evaluate candidates again that failed twice, now that the cause is mended",
        )  # fmt: skip
    for action in (start, resume):
        action.add_argument("--port", type=int, default=8080, help="of NNI's server and WebUI")
    best = actions.add_parser("best", help="print or copy the best architectures of a search")
    _add_best_flags(best)
    for action in (start, resume, best):
        action.add_argument("--experiments-dir", type=to_path,
                            help="folder of experiments (default: NNI's own)")  # fmt: skip


def _add_best_flags(best: argparse.ArgumentParser) -> None:
    best.add_argument(
        "id", nargs="?", help="the experiment, or the folder of `search run`; by default the latest"
    )
    best.add_argument("--output", type=to_path, help="write the best to this file")
    best.add_argument("--top", type=positive, default=5, metavar="K",
                      help="how many to list (default: 5)")  # fmt: skip
    best.add_argument("--output-dir", type=to_path, metavar="DIR",
                      help="write the best K (--top) as files into this new folder")  # fmt: skip
    best.add_argument("--json", action="store_true", help="print one JSON object")
    best.set_defaults(run=_best)


def _start(args: argparse.Namespace) -> int:
    _check_config(args.config)
    check_port(args.port)
    print(f"checking {args.config} and writing its search space ...", flush=True)
    changes = Changes(
        _class_args(args),
        args.concurrency,
        args.trial_command,
        _trial_flags(args),
        args.experiments_dir,
    )
    prepared = prepare_experiment(args.config, changes)
    if prepared.remark:
        print(prepared.remark, flush=True)
    return _guarded(lambda: start_experiment(prepared.config, port=args.port), prepared.num_planned)


def _trial_flags(args: argparse.Namespace) -> tuple[str, ...]:
    """Flags of `tester.py` that were given; trials run in another folder than this command."""
    given = {
        "--run-dir": args.run_dir and args.run_dir.resolve(),
        "--space": args.space,
        "--data-dir": args.data_dir and args.data_dir.resolve(),
    }
    return tuple(f"{flag}={value}" for flag, value in given.items() if value)


def _class_args(args: argparse.Namespace) -> dict[str, Any]:
    """The tuner's arguments that were given as flags."""
    class_args: dict[str, Any] = {
        name: value
        for name in ("rounds", "population", "seed", "searcher")
        if (value := getattr(args, name)) is not None
    }
    if args.constraint:
        limits = parse_constraint_flags(args.constraint, flag="--constraint")
        class_args["constraints"] = write_constraints(limits)
    if args.objective:
        objective = parse_objective_flags(args.objective, flag="--objective")
        class_args["objective"] = dict(objective.weights)
    return class_args


def _check_config(path: Path) -> None:
    if not os.path.exists(path):
        raise ConfigError(
            f"--config {path}: there is no such file in {Path.cwd()}; give the settings of the "
            "search (--config FILE), such as config_search.yml of the repository, or run the "
            "command there"
        )


def _run(args: argparse.Namespace) -> int:
    _check_config(args.config)
    try:
        search_run.run_locally(args, _class_args(args))
    except KeyboardInterrupt:
        print("\nstopped; the same command continues")
        return 128 + signal.SIGINT
    _print_result(None, args.output_dir, num_listed=5)
    return 0


def _resume(args: argparse.Namespace) -> int:
    known = find_experiment(args.id, args.experiments_dir)
    check_port(args.port)
    progress = read_progress(known.state_path)
    num_planned = progress.num_planned if progress else None
    num_more_trials = 0
    if args.retry_failed:
        if num_planned is None:
            raise SearchError(
                f"--retry-failed: {known.state_path} is not there, so that this is no search of "
                "ours or has not begun; leave the flag out"
            )
        num_more_trials = 2 * num_planned  # every candidate may fail once
    return _guarded(
        lambda: resume_experiment(
            args.id,
            port=args.port,
            experiments_dir=args.experiments_dir,
            num_more_trials=num_more_trials,
        ),
        num_planned,
    )


def _best(args: argparse.Namespace) -> int:
    name, log = _find_search(args.id, args.experiments_dir)
    arch = read_best(log)
    if arch is None:
        raise SearchError(f"{_title(name, log)} has no result yet ({log / BEST} is not there)")
    ranking = rank_entries(read_entries(log), best=arch.id)
    written = _write_top(args, arch, _title(name, log), log, ranking)
    if args.output:
        try:
            save_architecture(args.output, arch)
        except OSError as problem:
            is_lost = not args.output.parent.is_dir()
            reason = f"there is no folder {args.output.parent}" if is_lost else problem.strerror
            raise SearchError(f"--output {args.output}: cannot be written ({reason})") from None
    if args.json:
        front = [arch.id for arch in read_front(log)]
        best = [asdict(each) for each in ranking[: args.top]]
        value = {"experiment": name, "folder": str(log), "best": best}
        print(json.dumps({**value, "front": front} if front else value))
        return 0
    _print_result(name, log, num_listed=args.top)
    if args.output:
        print(f"wrote {args.output}")
    for path in written:
        print(f"wrote {path}")
    return 0


def _write_top(
    args: argparse.Namespace, best: Architecture, title: str, log: Path, ranking: Sequence[Entry]
) -> list[Path]:
    """Write the ``--top`` best where ``--output-dir`` says, if it does; returns the files."""
    folder, number = args.output_dir, args.top
    if folder is None:
        return []
    if read_front(log):
        raise SearchError(
            f"--output-dir {folder}: {title} looked for the best score at every cost, so that no "
            f"{number} are the best; what it found are architecture files already, in {log / FRONT}"
        )
    if len(ranking) < number:
        raise SearchError(
            f"--top {number}: {title} has only {len(ranking)} candidates with a score; ask for at "
            "most as many, or search on"
        )
    if not folder.name:  # `.`, which cannot give way to a folder
        raise ConfigError(f"--output-dir {folder}: name a new folder, such as runs/top")
    chosen = [
        Architecture(best.space, best.options, each.choices, each.metrics)
        for each in ranking[:number]
    ]
    with writing(f"--output-dir {folder}", advice="; name a new folder"):
        return save_ranking(folder, chosen)


def _find_search(target: str | None, experiments_dir: Path | None) -> tuple[str | None, Path]:
    """NNI's id of a search, if it has one, and the folder of its journal."""
    if target is None:
        latest = find_latest(experiments_dir)
        if latest is None:
            places = experiments_dir or f"~/nni-experiments or {RUN_FOLDER}"
            raise SearchError(
                f"there is no search in {places} yet; start one with `python -m spos search start`"
            )
        return latest
    if (Path(target) / JOURNAL).exists():
        return None, Path(target)
    known = find_experiment(target, experiments_dir)
    return known.id, known.log


def _guarded(begin: Callable[[], RunningExperiment], num_planned: int | None) -> int:
    """Start an experiment, watch it, and stop NNI's manager whatever happens."""
    status = 0
    with _Signals() as signals:
        experiment = begin()
        print(f"experiment {experiment.id}: http://localhost:{experiment.server.port}", flush=True)
        try:
            signals.let_interrupt(True)
            watch_experiment(experiment, num_planned=num_planned)
        except _Interrupted as interrupted:
            status = 128 + interrupted.number
            print(f"\nstopping experiment {experiment.id} ...", flush=True)
        finally:
            signals.let_interrupt(False)
            stop_experiment(experiment)
    if status:
        print(f"stopped; to continue: python -m spos search resume {experiment.id}")
        return status
    _print_result(experiment.id, experiment.log, num_listed=5)
    return 0


class _Interrupted(Exception):
    """Ctrl-C or SIGTERM came."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Signals:
    """Ctrl-C and SIGTERM interrupt only while they may: not while NNI starts or stops."""

    def __init__(self) -> None:
        self._may_interrupt = False
        self._pending: int | None = None

    def __enter__(self) -> _Signals:
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._previous = {number: signal.signal(number, self._on_signal) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def let_interrupt(self, may: bool) -> None:
        """From now on signals raise `_Interrupted` or not; one that came before does at once."""
        self._may_interrupt = may
        if may and self._pending is not None:
            raise _Interrupted(self._pending)

    def _on_signal(self, number: int, _: Any) -> None:
        self._pending = number
        if self._may_interrupt:
            self._may_interrupt = False
            raise _Interrupted(number)


def _print_result(experiment_id: str | None, log: Path, *, num_listed: int) -> None:
    entries, best = read_entries(log), read_best(log)
    ranking = rank_entries(entries, best=best.id if best else None)
    failed = len(entries) - len(ranking)
    print(f"{_title(experiment_id, log)}: {len(ranking)} candidates evaluated, {failed} failed")
    if failed:
        command = "search run ..." if experiment_id is None else f"search resume {experiment_id}"
        print(f"again, once the cause is mended: python -m spos {command} --retry-failed")
    if not ranking:
        return
    if ranking[0].objective != "default":
        print(f"score: {ranking[0].objective}")
    print(f"{'rank':>4}  {_HEADER}")
    for rank, each in enumerate(ranking[:num_listed], start=1):
        print(f"{rank:4}  {_columns(each)}")
    median = ranking[len(ranking) // 2]
    print(f"median  {median.id:12}  {median.score:8.4f}")
    front, by_id = read_front(log), {each.id: each for each in ranking}
    if front:
        print(f"\nbest score at every cost, cheapest first: {log / FRONT}")
        print(f"{'':4}  {_HEADER}")
        for each in (by_id[arch.id] for arch in front if arch.id in by_id):
            print(f"{'':4}  {_columns(each)}")
        print()
    print(f"all candidates: {log / JOURNAL}")
    print(f"best architecture: {log / BEST}")
    print(f"train it: python scratch.py --fixed-arc {shlex.quote(str(log / BEST))}")


_HEADER = f"{'architecture':12}  {'score':>8}  {'MACs':>10}  {'params':>9}  round"


def _columns(entry: Entry) -> str:
    macs, params = (_scaled(entry.metrics.get(name)) for name in ("macs", "params"))
    return f"{entry.id:12}  {entry.score:8.4f}  {macs:>10}  {params:>9}  {entry.round:5}"


def _title(experiment_id: str | None, log: Path) -> str:
    return f"search in {log}" if experiment_id is None else f"experiment {experiment_id}"


def _scaled(count: float | None) -> str:
    if count is None:
        return "-"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if count >= size:
            return f"{count / size:.1f} {letter}"
    return f"{count:.0f}"
