"""Evaluate candidate architectures of a trained supernet.

    python tester.py --arch best.json                   # one architecture or several, by hand
    nnictl ss_gen -t "python tester.py"                 # write the search space for NNI
    nnictl create --config config_search.yml            # then NNI starts this script as its trials

Everything but the machine comes from the supernet's run folder, so that a trial measures just what
its training prepared: the search space, the images, their preprocessing and the held-out split.
"""

import argparse
import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from spos.cost.table import CostTable, find_violation, parse_constraint_flags
from spos.errors import ConfigError, run_main

if TYPE_CHECKING:
    from spos.search.trial import Trial

SEARCH_SPACE_VARIABLE = "NNI_GEN_SEARCH_SPACE"  # set by `nnictl ss_gen`: the file to write

log = logging.getLogger("spos.tester")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run-dir", type=Path, default=Path("runs/supernet"), metavar="DIR",
                        help="run folder of supernet.py (default: %(default)s)")  # fmt: skip
    parser.add_argument(
        "--arch", type=Path, nargs="+", metavar="FILE", help="architectures to evaluate"
    )
    parser.add_argument("--space", metavar="MODULE:CLASS",
                        help="your own space, if the supernet was trained with one")  # fmt: skip
    parser.add_argument(
        "--data-dir", "--imagenet-dir", type=Path, metavar="DIR",
        help="where the images are now (default: where they were in training)",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--workers", type=int, default=2, help="of the image loader")
    parser.add_argument(
        "--threads", type=int, default=max(1, (os.cpu_count() or 1) // 2),
        help="of a CPU; part of the result's last bits, so the same for every candidate "
        "(default: half of the cores, %(default)s here)",
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

    run = open_supernet_run(args.run_dir)
    for constraint in parse_constraint_flags(args.constraint):
        constraint.check_reachable(run.table)
    run.table.save(path.parent / "cost.json")
    write_json(path, run.spec.search_space())
    sys.stderr.write(f"wrote {path} and {path.parent / 'cost.json'}: {run.spec.space}, "
                     f"{run.spec.num_architectures:.3g} architectures\n")  # fmt: skip


def evaluate_files(args: argparse.Namespace) -> None:
    """Evaluate the architectures in files and print their results."""
    if args.constraint:
        raise ConfigError("--constraint is for trials; --arch evaluates what it is given")
    from spos.convert.architectures import read_architecture
    from spos.evaluation.build import open_supernet_run

    run = open_supernet_run(args.run_dir)
    archs = [read_architecture(path, run.spec) for path in args.arch]
    evaluator = build_evaluator(args, run)
    for path, arch in zip(args.arch, archs, strict=True):
        result = evaluate(evaluator, run, arch.choices)
        if args.json:
            sys.stdout.write(json.dumps({**result, "arch": dict(arch.choices)}) + "\n")
            continue
        sys.stdout.write(f"{path}\n")
        for name, value in result.items():
            shown = f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
            sys.stdout.write(f"  {name:8s} {shown}\n")


def run_trial(args: argparse.Namespace) -> None:
    """Evaluate what NNI's tuner asks for, and report it."""
    from spos.search.trial import start_trial

    trial = start_trial()
    try:
        if refuse(args, trial):
            return
        from spos.evaluation.build import open_supernet_run
        from spos.evaluation.results import load_result, save_result

        run = open_supernet_run(args.run_dir)
        arch = run.spec.architecture(trial.parameters, source="the parameters of this trial")
        checkpoint = run.checkpoint()
        result = load_result(run.path, checkpoint, arch)
        if result is None:
            result = evaluate(
                build_evaluator(args, run), run, arch.choices, progress=trial.report_intermediate
            )
            save_result(run.path, checkpoint, arch, result)
    except Exception as problem:
        trial.report_failure(f"{type(problem).__name__}: {problem}")
        raise
    trial.report_final({"default": result["top1"], **result, "arch": dict(arch.choices)})


def refuse(args: argparse.Namespace, trial: "Trial") -> bool:
    """Report a candidate that violates a constraint, without evaluating it; whether it does."""
    if not args.constraint:
        return False
    table = CostTable.load(args.run_dir / "cost.json")
    arch = table.spec.architecture(trial.parameters, source="the parameters of this trial")
    violation = find_violation(parse_constraint_flags(args.constraint), table, arch.choices)
    if violation:
        trial.report_infeasible(violation, table.costs(arch.choices))
    return violation is not None


def build_evaluator(args, run):
    """The evaluator of a supernet run on this machine."""
    import torch

    from spos.spaces import load_space_class
    from spos.training.parallel import select_device
    from spos.training.run_folder import show_log

    show_log()
    torch.set_num_threads(args.threads)
    if args.space:
        load_space_class(args.space, allow_import=True)
    return run.evaluator(
        run.checkpoint(), data_dir=args.data_dir, workers=args.workers,
        device=select_device(args.device),
    )  # fmt: skip


def evaluate(evaluator, run, choices, *, progress=None) -> dict[str, float]:
    """Held-out accuracy and costs of one architecture of a supernet run."""
    from spos.evaluation.accuracy import check_finite

    accuracy = check_finite(evaluator.evaluate(choices, progress=progress))
    return {
        "top1": accuracy.top1,
        "top5": accuracy.top5,
        "loss": accuracy.loss,
        **run.table.costs(choices),
    }


if __name__ == "__main__":
    run_main(main)
