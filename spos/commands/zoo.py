"""`python -m spos zoo`: the published networks that `zoo:NAME` stands for wherever a file does.

Imports only `spos.convert.zoo`; never torch, so that it starts at once.
"""

from __future__ import annotations

import argparse
import json

from spos.convert.zoo import ZOO


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    if args.json:
        print(json.dumps({name: vars(network) for name, network in ZOO.items()}))
        return 0
    print(
        f"{'zoo:NAME':27s} {'system':10s} {'space':16s} {'MACs':>11s} {'params':>9s} {'top-1':>6s}"
    )
    for name, network in ZOO.items():
        top1 = "-" if network.top1 is None else f"{100 * network.top1:.2f}"
        print(
            f"{name:27s} {network.system:10s} {network.space:16s} {network.macs:11,d} "
            f"{network.params:9,d} {top1:>6s}\n    {network.source}"
        )
        if network.differs:
            print(f"    {network.differs}")
    return 0
