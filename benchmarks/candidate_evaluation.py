"""Candidates a minute through real NNI trials: ours against one fresh process for each.

    python benchmarks/candidate_evaluation.py --data-dir data/cifar10 --rounds 3
    python benchmarks/candidate_evaluation.py --candidates 60 --generations 3 \\
        --baseline-candidates 4 --rounds 1 --concurrency 1
    python benchmarks/candidate_evaluation.py --data-dir PHOTOGRAPHS --image-size 224 \\
        --calibration 25600 --validation 50000 --device cuda --baseline-candidates 0 --rounds 1

The baseline is what the published systems do: a trial imports NNI and torch, loads the checkpoint,
builds the loaders, lets BatchNorm's running averages see 200 batches and validates, in contiguous
fp32. Both search the same supernet at the same settings; weights are untrained, which costs the
same. Rates count from the first result on, so the start of NNI and of our evaluator are left out.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from interleave import interleave, print_configuration, print_rates
from nni_search import ROOT, Finished, count_choices, make_run, read_evaluation_seconds, run_search

BASELINE_TRIAL = "--baseline-trial"


def parse_arguments() -> argparse.Namespace:
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
    parser.add_argument("--batches", type=int, default=200, help="of the baseline's recalibration")
    parser.add_argument("--candidates", type=int, default=20, help="of each search")
    parser.add_argument(
        "--baseline-candidates", type=int, help="of the baseline's searches (as many); 0: none"
    )
    parser.add_argument("--generations", type=int, default=2, help="of each search")
    parser.add_argument("--rounds", type=int, default=3, help="searches of each kind")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 2], help="of the trials")
    parser.add_argument("--device", default="cpu", help="of ours; the baseline is for a CPU")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch, both kinds")
    parser.add_argument(BASELINE_TRIAL, type=Path, metavar="RUN_DIR", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.baseline_trial:
        run_baseline_trial(args)
        return
    if args.baseline_candidates is None:
        args.baseline_candidates = args.candidates
    work_dir = args.work_dir.resolve() / "candidate_evaluation"
    shutil.rmtree(work_dir, ignore_errors=True)  # scores of an earlier run would be found again
    run = make_run(
        work_dir, args.data_dir, image_size=args.image_size,
        calibration=args.calibration, validation=args.validation, device=args.device,
        output_stride=args.output_stride,
    )  # fmt: skip
    overheads: list[tuple[float, float]] = []
    rates = interleave(build_variants(args, run, overheads), rounds=args.rounds, warmup=0)
    print_configuration(
        space="shufflenetv2", image_size=args.image_size, output_stride=args.output_stride,
        calibration=args.calibration, validation=args.validation,
        candidates=args.candidates, generations=args.generations,
        baseline_candidates=args.baseline_candidates, device=args.device,
        threads=args.threads, baseline_batches=args.batches,
    )  # fmt: skip
    print_rates(rates, unit="candidates/min")
    if overheads:
        seconds, shares = (statistics.median(each) for each in zip(*overheads, strict=True))
        print(f"from a trial's end to the next report, without evaluation, 1 at a time: "
              f"{seconds:.2f} s; the evaluation takes {shares:.0%} of the time")  # fmt: skip


def build_variants(
    args: argparse.Namespace, run: Path, overheads: list[tuple[float, float]]
) -> dict[str, Callable[[], float]]:
    """Name -> a search that returns its candidates a minute; ours add to ``overheads``."""
    seeds = itertools.count()
    ours = [sys.executable, f"{ROOT}/tester.py", "--run-dir", f"{run}",
            "--device", args.device, "--threads", f"{args.threads}",
            "--workers", f"{args.threads}"]  # fmt: skip
    baseline = [
        sys.executable, f"{ROOT}/benchmarks/candidate_evaluation.py", BASELINE_TRIAL, f"{run}",
        "--threads", f"{args.threads}", "--batches", f"{args.batches}",
    ]  # fmt: skip

    def measure(command: list[str], concurrency: int) -> float:
        before = len(read_evaluation_seconds(run))
        candidates, generations = args.candidates, args.generations
        if command is baseline:  # to which every candidate costs the same
            candidates, generations = args.baseline_candidates, 1
        done = run_search(
            run.parent / "search", command, candidates=candidates,
            concurrency=concurrency, seed=next(seeds), rounds=generations,
        )  # fmt: skip
        assert count_choices(done.entries) == candidates, "a candidate was lost"
        if command is ours and concurrency == 1:
            overheads.append(_overhead(done, read_evaluation_seconds(run)[before:]))
        return done.per_minute()

    return {
        f"{name}, {count} at a time": partial(measure, command, count)
        for name, command in (("baseline", baseline), ("ours", ours))
        if command is ours or args.baseline_candidates
        for count in args.concurrency
    }


def _overhead(done: Finished, seconds: list[float]) -> tuple[float, float]:
    """Seconds between two results beyond the evaluation, mean of a search, and its share."""
    assert len(seconds) == len(done.times), "not every candidate was evaluated by the evaluator"
    between = (done.times[-1] - done.times[0]) / (len(done.times) - 1)
    evaluating = statistics.mean(seconds[1:])
    return between - evaluating, evaluating / between


# --- the baseline's trial ------------------------------------------------------------------------


def run_baseline_trial(args: argparse.Namespace) -> None:
    """Evaluate one candidate as the published systems do, in this process."""
    sys.path.insert(0, str(ROOT))
    if "NNI_GEN_SEARCH_SPACE" in os.environ:
        os.execv(sys.executable, [sys.executable, f"{ROOT}/tester.py", "--run-dir",
                                  str(args.baseline_trial)])  # fmt: skip
    import nni
    import torch

    from spos.evaluation.build import open_supernet_run
    from spos.spaces import build_space
    from spos.supernet import Supernet
    from spos.training.checkpoint import load_checkpoint

    choices = nni.get_next_parameter()
    torch.set_num_threads(args.threads)
    run = open_supernet_run(args.baseline_trial)
    config = run.settings.config
    space = build_space(config["space"], options=config["options"], affine=config["affine"])
    supernet = Supernet(space)
    supernet.load_state_dict(load_checkpoint(run.checkpoint())["network"])
    supernet.activate(choices)
    calibration, validation = baseline_loaders(run, args.batches)
    with torch.no_grad():
        supernet.train()
        for module in supernet.active_modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.reset_running_stats()
        for _, (images, _) in zip(range(args.batches), calibration, strict=False):
            supernet(images)
        supernet.eval()
        hits = count = 0
        for images, labels in validation:
            hits += (supernet(images).argmax(1) == labels).sum().item()
            count += len(labels)
    nni.report_final_result({"default": hits / count, "arch": choices})


def baseline_loaders(run, num_batches: int):
    """Shuffled calibration batches and validation batches, decoded by two workers."""
    from torch.utils.data import DataLoader, Subset
    from torchvision import datasets, transforms

    from spos.data.split import load_split

    config = run.settings.config
    size = config["options"]["image_size"]
    transform = transforms.Compose([
        transforms.Resize((size, size)), transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    images = datasets.ImageFolder(f"{run.settings.runtime['data_dir']}/train", transform)
    held_out = set(load_split(run.path / "split.json").held_out)
    root = Path(images.root)
    validation, training = [], []
    for index, (path, _) in enumerate(images.samples):
        name = Path(path).relative_to(root).as_posix()
        (validation if name in held_out else training).append(index)
    count = config["calibration_images"]
    step = max(1, len(training) // count)
    calibration = Subset(images, training[::step][:count])
    batch = max(1, count // num_batches)
    return (
        DataLoader(calibration, batch, shuffle=True, num_workers=2),
        DataLoader(Subset(images, validation), 200, num_workers=2),
    )


if __name__ == "__main__":
    main()
