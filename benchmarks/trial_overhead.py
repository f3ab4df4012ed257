"""Trials a minute that have nothing to evaluate: what NNI and a trial's own process cost.

    python benchmarks/trial_overhead.py --trials 1000 --concurrency 2

Every candidate's result is in the run folder's evaluations.jsonl before the search asks for it, so
that a trial is what is left: NNI's scheduling, Python, the question, the evaluator's look-up, the
report. A result that NNI lost would leave its candidate without a score, and that is counted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from interleave import print_configuration
from nni_search import ROOT, count_choices, make_run, run_search

from spos.evaluation.build import open_supernet_run
from spos.evaluation.results import FILE_NAME, Results
from spos.files import write_journal
from spos.search.arguments import ExperimentPaths, build_search

IMAGE_SIZE = 32


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work-dir", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--data-dir", type=Path, default=Path("data/cifar10"))
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--concurrency", type=int, default=2)
    args = parser.parse_args()
    work = args.work_dir.resolve()
    run = make_run(work, args.data_dir, image_size=IMAGE_SIZE, calibration=100, validation=100)
    write_results(run, args.trials)
    command = [sys.executable, f"{ROOT}/tester.py", "--run-dir", f"{run}", "--device", "cpu"]
    done = run_search(
        work / "empty", command, candidates=args.trials, concurrency=args.concurrency, seed=0,
        searcher="random",
    )  # fmt: skip
    scored = count_choices(done.entries)
    print_configuration(trials=args.trials, concurrency=args.concurrency)
    print(f"{done.per_minute():.1f} trials/min; {scored} of {args.trials} candidates scored by "
          f"{done.num_trials} trials, {done.num_trials - scored} results lost")  # fmt: skip


def write_results(run_dir: Path, num_trials: int) -> None:
    """Give every candidate that the search will propose a result."""
    run = open_supernet_run(run_dir)
    search = build_search(
        ExperimentPaths(run_dir), searcher="random", rounds=1, population=num_trials, seed=0,
        cost_table=str(run_dir / "cost.json"),
    )  # fmt: skip
    results, entries = Results(run_dir, run.checkpoint()), []
    while choices := search.ask():
        arch = run.spec.architecture(choices)
        entries.append(results.entry(arch, {"top1": 0.5, **run.table.costs(choices)}))
        search.tell(choices, 0.5)
    write_journal(run_dir / FILE_NAME, entries)


if __name__ == "__main__":
    main()
