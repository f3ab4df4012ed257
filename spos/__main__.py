"""`python -m spos <command>`: what the three scripts do not do. `--help` lists the commands."""

from __future__ import annotations

import argparse
import importlib

from spos.errors import run_main

# command -> what it does; each has a module `spos.commands.<command>` with `configure(parser)`,
# which adds its flags and sets the default `run`, a function of the parsed flags.
COMMANDS = {
    "bench": "queries that each searcher needs on a table; latency of deployed networks",
    "convert": "turn architectures and weights of other systems into ours, and back",
    "cost": "what a network costs in any system's convention; cost tables and profiles",
    "data": "make data sets of own images and of CIFAR, split them, find undecodable images",
    "evaluate": "accuracy of a trained network on a data set, by class, and its confusions",
    "evaluator": "keep a supernet and its images loaded for the trials of a search",
    "export": "a trained network as ONNX, int8, or a folder to hand over; checked on real images",
    "predict": "the most probable classes of image files",
    "rank": "how well a supernet ranks architectures whose true accuracies are known",
    "report": "one HTML page and PNGs of a supernet, its search and its winner",
    "sample": "draw the paths of any sampler without training: how they cover a box; as ONNX",
    "search": "start an architecture search on NNI safely, show its best architectures",
    "summary": "what a supernet, its search and trainings from scratch came to",
    "zoo": "list the published networks, which zoo:NAME stands for",
}


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, run the command, return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m spos", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, summary in COMMANDS.items():
        module = importlib.import_module(f"spos.commands.{name}")
        module.configure(commands.add_parser(name, help=summary, description=summary))
    arguments = parser.parse_args(argv)
    return arguments.run(arguments) or 0


if __name__ == "__main__":
    run_main(main)
