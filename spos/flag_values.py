"""What flags take: numbers and paths, for `argparse`, and options of a search space.

Imports `spos.errors` and `spos.files` only, so that every command starts at once.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from spos.errors import ConfigError
from spos.files import parse_json


def to_path(text: str) -> Path:
    """A flag's path, with ``~`` for the home folder, which no shell makes of ``--flag=~/x``."""
    return Path(os.path.expanduser(text))


def positive(text: str) -> int:
    """A flag's value of 1 or more; argparse names the flag if it is something else."""
    return _at_least(1, text)


def not_negative(text: str) -> int:
    """A flag's value of 0 or more; argparse names the flag if it is something else."""
    return _at_least(0, text)


def parse_options(text: str | None) -> dict[str, Any]:
    """Options of a search space from ``--space-options``, a JSON object.

    Raises:
        ConfigError: if it is something else.
    """
    if text is None:
        return {}
    value = parse_json(text, source="--space-options", error=ConfigError)
    if not isinstance(value, dict):
        raise ConfigError(f'--space-options {text}: expected an object such as {{"key": 1}}')
    return value


def _at_least(low: int, text: str) -> int:
    number = int(text)
    if number < low:
        raise argparse.ArgumentTypeError(f"expected {low} or more, found {number}")
    return number
