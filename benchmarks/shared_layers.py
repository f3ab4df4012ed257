"""What a search saves when candidates share the layers that they have in common with the last one.

    python benchmarks/shared_layers.py --data-dir data/cifar10 --calibration 2000 --validation 2000

Two evaluators score the candidates of one evolution, one of them without a memory of the last path,
in turns; rates are of CPU time. Every score has to be the same to the bit.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from interleave import Rates, print_configuration, print_rates
from nni_search import make_run

from spos.evaluation.build import open_supernet_run
from spos.evaluation.evaluator import Evaluator
from spos.search.arguments import ExperimentPaths, build_search
from spos.search.searcher import Search


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work-dir", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--data-dir", type=Path, default=Path("data/cifar10"))
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument(
        "--output-stride", type=int, default=32, help="that of the canonical network is 32"
    )
    parser.add_argument("--calibration", type=int, default=2000, help="images")
    parser.add_argument("--validation", type=int, default=2000, help="images")
    parser.add_argument("--generations", type=int, default=6)
    parser.add_argument("--population", type=int, default=50)
    parser.add_argument("--unsorted", action="store_true", help="leave sorts_rounds out")
    args = parser.parse_args()
    run = make_run(
        args.work_dir.resolve(), args.data_dir, image_size=args.image_size,
        calibration=args.calibration, validation=args.validation,
        output_stride=args.output_stride,
    )  # fmt: skip
    torch.set_num_threads(1)
    search = build_search(
        ExperimentPaths(run), rounds=args.generations, population=args.population,
        sorts_rounds=not args.unsorted, cost_table=str(run / "cost.json"),
    )  # fmt: skip
    print_configuration(
        image_size=args.image_size, output_stride=args.output_stride,
        calibration=args.calibration, validation=args.validation,
        population=args.population, is_sorted=not args.unsorted,
    )  # fmt: skip
    evaluators = {"alone": open_evaluator(run, shares=False), "shared": open_evaluator(run)}
    for each in evaluators.values():  # decodes the images
        each.evaluate({label: each[0] for label, each in search.space.spec.choices.items()})
    rates: Rates = {name: [] for name in evaluators}
    for number in range(args.generations):
        seconds = run_generation(search, evaluators, args.population)
        print(f"generation {number}: {seconds['alone'] / seconds['shared']:.2f} times", flush=True)
        for name, each in seconds.items():
            rates[name].append(60 * args.population / each)
    print_rates(rates, unit="per CPU minute")


def open_evaluator(path: Path, *, shares: bool = True) -> Evaluator:
    run = open_supernet_run(path)
    evaluator = run.evaluator(
        run.checkpoint(), data_dir=None, workers=0, device=torch.device("cpu")
    )
    if shares:
        return evaluator
    return Evaluator(
        evaluator.supernet, calibration=evaluator.calibration, validation=evaluator.validation,
        device=evaluator.device,
    )  # fmt: skip


def run_generation(
    search: Search, evaluators: dict[str, Evaluator], population: int
) -> dict[str, float]:
    """CPU seconds of each evaluator for the candidates of a generation."""
    seconds = dict.fromkeys(evaluators, 0.0)
    order = list(evaluators)
    for _ in range(population):
        choices = search.ask()
        assert choices is not None
        scores = []
        order.reverse()  # the second one finds weights and code in the processor's caches
        for name in order:
            began = time.process_time()
            scores.append(evaluators[name].evaluate(choices))
            seconds[name] += time.process_time() - began
        assert scores[0] == scores[1], "the scores differ"
        search.tell(choices, scores[0].top1)
    return seconds


if __name__ == "__main__":
    main()
