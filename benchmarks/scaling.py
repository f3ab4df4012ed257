"""Images per second of supernet training with one process and with several, under torchrun.

    torchrun --nproc-per-node 1 benchmarks/scaling.py --output one.json
    torchrun --nproc-per-node 2 benchmarks/scaling.py --output two.json --compare one.json

Every process trains the same paths on its share of the global batch and reduces the gradients of
the active path; the batch of a process stays as it is (weak scaling). The efficiency is the rate of
N processes over N times that of one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from interleave import print_configuration
from training_step import FixedBatch, build_supernet, make_images, our_training

from spos.training.parallel import process_group, rank, select_device, world_size


def measure(args: argparse.Namespace) -> list[float]:
    """Images per second of all processes together, one figure for each round."""
    batch = make_images(args, args.batch_size)
    training = our_training(args, build_supernet(args), FixedBatch(*batch), amp=args.amp)
    rates = []
    for number in range(-1, args.rounds):  # the first warms up
        begun = time.perf_counter()
        for _ in range(args.steps):
            loss = training.train_step(*batch)
        loss.item()  # waits for a GPU
        if number >= 0:
            seconds = time.perf_counter() - begun
            rates.append(args.steps * args.batch_size * world_size() / seconds)
    return rates


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=64, help="of each process")
    parser.add_argument("--num-classes", type=int, default=1000)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--amp", choices=("off", "bf16"), default="off")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--steps", type=int, default=3, help="in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="where the median rate goes, as JSON")
    parser.add_argument("--compare", type=Path, help="such a file, of another number of processes")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    device = select_device(args.device)
    args.device = str(device)
    with process_group(device):
        rates = measure(args)
        processes = world_size()
        if rank() != 0:
            return
    rate = statistics.median(rates)
    print_configuration(processes=processes, device=args.device, threads=args.threads)
    print(f"{processes} processes: {rate:.4g} images/s ({min(rates):.4g} to {max(rates):.4g})")
    if args.output:
        args.output.write_text(json.dumps({"processes": processes, "rate": rate}) + "\n")
    if args.compare:
        other = json.loads(args.compare.read_text())
        efficiency = rate / processes / (other["rate"] / other["processes"])
        print(f"scaling efficiency against {other['processes']} processes: {efficiency:.0%}")


if __name__ == "__main__":
    main()
