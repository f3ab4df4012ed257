"""Numbers that flags take, for `argparse`; loads nothing, so that every command starts at once."""

from __future__ import annotations

import argparse


def positive(text: str) -> int:
    """A flag's value of 1 or more; argparse names the flag if it is something else."""
    return _at_least(1, text)


def not_negative(text: str) -> int:
    """A flag's value of 0 or more; argparse names the flag if it is something else."""
    return _at_least(0, text)


def _at_least(low: int, text: str) -> int:
    number = int(text)
    if number < low:
        raise argparse.ArgumentTypeError(f"expected {low} or more, found {number}")
    return number
