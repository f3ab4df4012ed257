"""`python -m spos rank`: how well a trained supernet ranks architectures of known accuracy.

Imports the search side and `spos.evaluation.settings`; `spos.report`, torch and matplotlib when it
runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spos.architecture import Architecture
from spos.errors import ConfigError
from spos.evaluation.settings import add_evaluation_flags, read_evaluation_flags
from spos.flag_values import positive, to_path
from spos.search.ranking import Agreement, draw_architectures, measure_agreement, read_truth

if TYPE_CHECKING:
    from spos.evaluation.build import TrainedSupernet


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_evaluation_flags(parser)
    parser.add_argument(
        "--truth",
        type=to_path,
        default=Path("data/nas-bench-macro_cifar10.json"),
        metavar="FILE|DIR",
        help='the table of NAS-Bench-Macro, [{"choices": {...}, "top1": 0.71}, ...], or a folder '
        "with runs of scratch.py (%(default)s)",
    )
    parser.add_argument(
        "--count", type=positive, default=200, help="architectures, drawn at random (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of that draw (%(default)s)")
    parser.add_argument(
        "--plot", type=to_path, metavar="FILE", help="draw scores against the truth"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate the architectures and print how the two rankings agree.

    Results are kept in the run folder, so that a command repeated after a kill goes on.
    """
    from spos.evaluation.build import open_supernet_run
    from spos.evaluation.candidates import Candidates
    from spos.spaces import load_space_class

    supernet = open_supernet_run(args.run_dir)
    if args.space:
        load_space_class(args.space, allow_import=True)
    if args.truth.is_dir():
        truth = read_trainings(args.truth, supernet)
    else:
        truth = read_truth(args.truth, supernet.spec)
    archs = draw_architectures(truth, count=args.count, seed=args.seed)
    candidates = Candidates(read_evaluation_flags(args))
    found = {}
    for number, arch in enumerate(archs, start=1):
        found[arch] = candidates.score(arch.choices)["top1"]
        sys.stderr.write(f"\r{number}/{len(archs)} architectures")
    sys.stderr.write("\n")
    scores = [found[arch] for arch in archs]
    accuracies = [truth[arch] for arch in archs]
    agreement = measure_agreement(scores, accuracies, seed=args.seed)
    if args.json:
        print(json.dumps(dataclasses.asdict(agreement)))
    else:
        print(_describe(agreement))
    if args.plot:
        _plot(scores, accuracies, agreement, args.plot)
    return 0


def read_trainings(folder: Path, supernet: TrainedSupernet) -> dict[Architecture, float]:
    """True accuracies as trainings from scratch found them: of several of one, their mean.

    A training that has not ended is left out, and named on stderr.

    Args:
        folder: holds run folders of scratch.py.
        supernet: of which all must be parts.

    Raises:
        ConfigError: if one is another network, or they were not all measured on the same images:
            those of the test, or those of one split.
        ArchitectureError: if one is of another space, or its settings do not say what it trains.
    """
    from spos.report.sources import collect

    found: dict[Architecture, list[float]] = {}
    measured_on: dict[tuple[str, str], Path] = {}
    sources = collect([str(folder)])
    for problem in (*sources.problems, *(each for run in sources.runs for each in run.problems)):
        print(problem, file=sys.stderr)
    for run in sources.of_stage("scratch"):
        metric = run.final_metric(1)
        if metric not in run.curves:
            print(f"{run.path}: is not finished and left out", file=sys.stderr)
            continue
        test = [run.config.get(name) for name in ("num_test", "classes")]
        measured_on.setdefault((run.measured, str(run.config.get("split", test))), run.path)
        trained = supernet.spec.check_architecture(run.architecture(), source=str(run.path))
        arch = supernet.spec.architecture(trained.choices)
        if differences := supernet.differences(trained):
            raise ConfigError(
                f"{run.path}: is another network than those of {supernet.path} ({differences}); "
                "rank the supernet by trainings of its own networks"
            )
        found.setdefault(arch, []).append(run.curves[metric].last)
    if len(measured_on) > 1:
        shown = " and ".join(f"{path} on {kind} ones" for (kind, _), path in measured_on.items())
        raise ConfigError(
            f"{folder}: its runs were measured on different images, {shown}, so that their "
            "accuracies do not compare; keep one kind"
        )
    if not found:
        raise ConfigError(f"{folder}: holds no finished run of scratch.py; expected several")
    return {arch: sum(values) / len(values) for arch, values in found.items()}


def _describe(agreement: Agreement) -> str:
    low, high = agreement.kendall_interval
    return (
        f"architectures         {agreement.num_architectures}\n"
        f"Kendall tau           {agreement.kendall_tau:.3f} "
        f"(95 % interval {low:.3f} to {high:.3f})\n"
        f"Spearman              {agreement.spearman:.3f}\n"
        f"true top-1 of the best by score  {100 * agreement.best_found:.2f} %, "
        f"of the best {100 * agreement.best:.2f} %"
    )


def _plot(
    scores: Sequence[float], accuracies: Sequence[float], agreement: Agreement, path: Path
) -> None:
    import matplotlib.figure

    from spos.report.style import save_plot

    figure = matplotlib.figure.Figure(figsize=(5, 4.5), layout="constrained")
    axis = figure.subplots()
    axis.scatter([100 * each for each in accuracies], [100 * each for each in scores], s=10)
    axis.set(
        title=f"{len(scores)} architectures, Kendall tau {agreement.kendall_tau:.2f}",
        xlabel="true top-1, %",
        ylabel="top-1 with the supernet's weights, %",
    )
    save_plot(figure, path)
