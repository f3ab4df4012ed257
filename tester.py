"""Evaluate candidate architectures of a trained supernet.

    python tester.py --arch best.json                   # one architecture or several, by hand
    nnictl ss_gen -t "python tester.py"                 # write the search space for NNI
    nnictl create --config config_search.yml            # then NNI starts this script as its trials

Everything but the machine comes from the supernet's run folder, so that a trial measures just what
its training prepared: the search space, the images, their preprocessing and the held-out split.
Trials share one process that keeps all of it loaded (see `python -m spos evaluator`), so this
script imports torch only where it evaluates itself.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spos.cost.constraints import find_violation, parse_constraint_flags
from spos.cost.table import CostTable
from spos.errors import ConfigError, run_main
from spos.evaluation.client import ask_evaluator
from spos.evaluation.settings import add_evaluation_flags, read_evaluation_flags
from spos.flag_values import to_path
from spos.training.run_folder import open_supernet_settings

if TYPE_CHECKING:
    from spos.evaluation.candidates import Candidates
    from spos.search.trial import Trial

SEARCH_SPACE_VARIABLE = "NNI_GEN_SEARCH_SPACE"  # set by `nnictl ss_gen`: the file to write

log = logging.getLogger("spos.tester")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--arch", type=to_path, nargs="+", metavar="FILE", help="architectures to evaluate"
    )
    add_evaluation_flags(parser)
    parser.add_argument(
        "--idle-seconds", type=float, default=120.0, metavar="S",
        help="trials: how long the evaluator that they share waits for the next one before it ends;"
        " 0: each evaluates in its own process (default: %(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--constraint", action="append", default=[], metavar="METRIC=LOW:HIGH",
        help="trials: what lies outside (such as macs=0:330M) is not evaluated and scores -1; for "
        "NNI's own tuners, which know no constraints",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print each result as one line of JSON")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if SEARCH_SPACE_VARIABLE in os.environ:
        write_search_space(args, Path(os.environ[SEARCH_SPACE_VARIABLE]))
    elif args.arch:
        evaluate_files(args)
    else:
        run_trial(args)


def write_search_space(args: argparse.Namespace, path: Path) -> None:
    """Write the search space as NNI wants it, and the cost table that the tuner wants beside it."""
    from spos.evaluation.build import open_supernet_run
    from spos.files import write_json
    from spos.search.feasible import FeasibleSpace
    from spos.search.generate import CHECK_VARIABLE
    from spos.search.trained import describe_limits
    from spos.training.parallel import select_device
    from spos.training.samplers import trained_ranges

    run = open_supernet_run(args.run_dir)
    if os.environ.get(CHECK_VARIABLE) == "1":  # asked by `search start`, whose trials run here
        run.checkpoint()
        run.images(args.data_dir, workers=0, device=select_device(args.device))
    source = str(args.run_dir / "args.json")
    run.table.trained = trained_ranges(run.settings.config, run.table, source=source)
    if limits := parse_constraint_flags(args.constraint, flag="--constraint"):
        remark = describe_limits(FeasibleSpace(run.table, limits), run.table.trained)
        sys.stderr.write(f"{remark}\n" if remark else "")
    run.table.save(path.parent / "cost.json")
    write_json(path, run.spec.search_space())
    sys.stderr.write(f"wrote {path} and {path.parent / 'cost.json'}: {run.spec.space}, "
                     f"{run.spec.num_architectures:.3g} architectures\n")  # fmt: skip


def evaluate_files(args: argparse.Namespace) -> None:
    """Evaluate the architectures in files, in this process, and print their results."""
    if args.constraint:
        raise ConfigError("--constraint is for trials; --arch evaluates what it is given")
    from spos.convert.architectures import read_architecture
    from spos.evaluation.build import open_supernet_run
    from spos.spaces import load_space_class

    run = open_supernet_run(args.run_dir)
    if args.space:
        load_space_class(args.space, allow_import=True)
    archs = [
        run.check_network(read_architecture(path, run.spec), source=str(path)) for path in args.arch
    ]
    candidates = load_candidates(args)
    for path, arch in zip(args.arch, archs, strict=True):
        result = candidates.measure(arch.choices)
        result["top1_uncalibrated"] = candidates.top1_uncalibrated(arch.choices)
        if args.json:
            sys.stdout.write(json.dumps({**result, "arch": dict(arch.choices)}) + "\n")
            continue
        sys.stdout.write(f"{path}\n")
        for name, value in result.items():
            shown = f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
            sys.stdout.write(f"  {name:17s} {shown}\n")


def run_trial(args: argparse.Namespace) -> None:
    """Have evaluated what NNI's tuner asks for, and report it."""
    from spos.search.trial import start_trial

    trial = start_trial()
    try:
        settings, _ = open_supernet_settings(args.run_dir)
        trial.supernet = {name: settings.config[name] for name in ("space", "options")}
        if refuse(args, trial):
            return
        result = score(args, trial.parameters, trial.report_intermediate)
    except Exception as problem:
        trial.report_failure(f"{type(problem).__name__}: {problem}")
        raise
    trial.report_final({"default": result["top1"], **result, "arch": trial.parameters})


def score(
    args: argparse.Namespace, choices: dict[str, Any], progress: Callable[[float], None]
) -> dict[str, float]:
    """Held-out accuracy and costs of a candidate, from the evaluator if one can be had."""
    settings = read_evaluation_flags(args)
    if args.idle_seconds:
        answer = ask_evaluator(settings, choices, idle_seconds=args.idle_seconds, progress=progress)
        if answer is not None:
            return answer
        log.warning("no evaluator: this process evaluates")
    return load_candidates(args).score(choices, progress=progress)


def refuse(args: argparse.Namespace, trial: "Trial") -> bool:
    """Report a candidate that violates a constraint, without evaluating it; whether it does."""
    if not args.constraint:
        return False
    _, costs = open_supernet_settings(args.run_dir)
    table = CostTable.load(costs)
    arch = table.spec.architecture(trial.parameters, source="the parameters of this trial")
    violation = find_violation(
        parse_constraint_flags(args.constraint, flag="--constraint"), table, arch.choices
    )
    if violation:
        trial.report_infeasible(violation, table.costs(arch.choices))
    return violation is not None


def load_candidates(args: argparse.Namespace) -> "Candidates":
    """Everything that evaluation needs, in this process."""
    from spos.evaluation.candidates import Candidates
    from spos.training.run_folder import show_log

    show_log()
    return Candidates(read_evaluation_flags(args))


if __name__ == "__main__":
    run_main(main)
