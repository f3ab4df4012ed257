"""Runs variants of the same work in turns, A B A B, and prints their rates and ratios.

Imports nothing of the package. Rates of a shared machine drift by a tenth and more within an hour,
ratios of runs that follow each other hardly do: so each round runs every variant once.
"""

from __future__ import annotations

import os
import platform
import shlex
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "torchvision", "nni", "nvidia-dali-cuda130", "pillow")

Rates = dict[str, list[float]]


def interleave(
    variants: Mapping[str, Callable[[], float]], *, rounds: int, warmup: int = 1
) -> Rates:
    """Call every variant once a round, the order turned by one from round to round.

    Args:
        variants: name -> what does the work once and returns its rate (per second or minute).
        rounds: how many rates of each variant are kept.
        warmup: rounds before these, whose rates are not.

    Returns:
        The rates of each variant, one for each round.
    """
    rates: Rates = {name: [] for name in variants}
    names = list(variants)
    for number in range(-warmup, rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            rate = variants[name]()
            if number >= 0:
                rates[name].append(rate)
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return rates


def ratios(rates: Rates, name: str, baseline: str) -> list[float]:
    """Rate of ``name`` over that of ``baseline``, round by round."""
    return [ours / theirs for ours, theirs in zip(rates[name], rates[baseline], strict=True)]


def print_rates(rates: Rates, *, unit: str, baseline: str | None = None) -> None:
    """Print median rates, ratios of medians to the baseline, and the rounds' extremes of each.

    Args:
        rates: as `interleave` returns them.
        unit: of a rate, such as ``images/s``.
        baseline: what the others are compared with; the first if not given.
    """
    baseline = next(iter(rates)) if baseline is None else baseline
    reference = statistics.median(rates[baseline])
    width = max(map(len, rates))
    rounds = len(rates[baseline])
    print(f"{'':{width}}  {unit:>12}  {'(min to max)':>19}  ratio  (min to max of {rounds} rounds)")
    for name, values in rates.items():
        median, spread = statistics.median(values), f"({min(values):.4g} to {max(values):.4g})"
        each = ratios(rates, name, baseline)
        print(
            f"{name:{width}}  {median:12.4g}  {spread:>19}  {median / reference:5.2f}  "
            f"({min(each):.2f} to {max(each):.2f})"
        )


def print_configuration(**settings: object) -> None:
    """Print the command, the machine, versions, and the settings of this run."""
    print(f"command   {shlex.join(['python', *_command()])}")
    print(f"machine   {_processor()}, {os.cpu_count()} logical CPUs, {platform.system()}")
    print(f"versions  Python {platform.python_version()}, {', '.join(_versions(PACKAGES))}")
    if settings:
        print("settings ", ", ".join(f"{name} {value}" for name, value in settings.items()))
    print()


def _command() -> list[str]:
    script = Path(sys.argv[0])
    root = Path(__file__).resolve().parent.parent
    if script.resolve().is_relative_to(root):
        script = script.resolve().relative_to(root)
    return [str(script), *sys.argv[1:]]


def _versions(packages: Sequence[str]) -> list[str]:
    found = []
    for package in packages:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
