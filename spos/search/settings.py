"""Checks of the settings that searchers share.

Imports only `spos.errors`.
"""

from __future__ import annotations

from typing import Any

from spos.errors import ConfigError


def check_plan(plan: Any) -> None:
    """Refuse wrong values of the settings that every searcher has.

    Raises:
        ConfigError: naming the setting, its value and what is expected.
    """
    for name in ("rounds", "population", "max_failures"):
        check_whole(name, getattr(plan, name), low=1)
    check_whole("seed", plan.seed, low=0)


def check_whole(name: str, value: Any, *, low: int) -> None:
    """Refuse what is not a whole number of at least ``low``.

    Raises:
        ConfigError: naming the setting.
    """
    if type(value) is not int or value < low:
        raise ConfigError(f"{name} is {value!r}, expected a whole number of at least {low}")


def check_probability(name: str, value: Any) -> None:
    """Refuse what is not a number from 0 to 1.

    Raises:
        ConfigError: naming the setting.
    """
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise ConfigError(f"{name} is {value!r}, expected 0 to 1")
