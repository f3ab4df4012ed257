"""Cost look-ups and MACs-uniform samples a CPU second, against the usual ways to do both.

    python benchmarks/architecture_costs.py

The baselines: building the network on the meta device and counting it, and drawing architectures
until one falls into the wanted bin, whose cost is looked up as fast as ours.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable

import torch
from interleave import interleave, print_configuration, print_rates

from spos.architecture import Architecture
from spos.cost.counting import build_cost_table, count_macs
from spos.spaces import build_subnet
from spos.training.samplers import CostUniformSampler


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--space", default="shufflenetv2")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=10_000, help="look-ups and samples of a round")
    args = parser.parse_args()
    options = {"image_size": args.image_size, "num_classes": 1000}
    table = build_cost_table(args.space, options=options)
    sampler = CostUniformSampler(table, seed=0)
    draw = random.Random(0)

    def uniform() -> dict:
        return {label: draw.choice(each) for label, each in table.spec.choices.items()}

    drawn = [uniform() for _ in range(args.count)]

    def count_network(number: int) -> None:
        with torch.device("meta"):
            network = build_subnet(Architecture(args.space, options, drawn[number]))
        assert count_macs(network, args.image_size) == table.cost(drawn[number])

    def reject(_: int) -> None:
        low, high = draw.choice(sampler.bins)
        while not low <= table.cost(uniform()) <= high:
            pass

    few = min(args.count, 3)
    print_configuration(space=args.space, image_size=args.image_size, count=args.count)
    costs = {
        "network counted": rate(count_network, few),
        "table looked up": rate(lambda number: table.cost(drawn[number]), args.count),
    }
    print_rates(interleave(costs, rounds=args.rounds), unit="costs/CPU s")
    samples = {
        "drawn until it fits": rate(reject, max(args.count // 20, 1)),
        "MACs-uniform sampler": rate(sampler.sample, args.count),
    }
    print_rates(interleave(samples, rounds=args.rounds), unit="samples/CPU s")


def rate(work: Callable[[int], object], count: int) -> Callable[[], float]:
    """What does ``work`` for the numbers from 0 to ``count`` and returns how many a CPU second."""

    def measure() -> float:
        began = time.process_time()
        for number in range(count):
            work(number)
        return count / (time.process_time() - began)

    return measure


if __name__ == "__main__":
    main()
