"""The flags on shrinking of `supernet.py`, and the plan that they make.

Imports `spos.cost.constraints`, `spos.errors`, `spos.training.shrinking`.
"""

from __future__ import annotations

import argparse

from spos.cost.constraints import parse_quantity
from spos.errors import ConfigError
from spos.training.shrinking import PUBLISHED_EPOCHS, ShrinkPlan


def add_shrink_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that `plan_shrinking` reads."""
    group = parser.add_argument_group("shrinking (AngleNAS)")
    group.add_argument(
        "--shrink", nargs="?", const="1e6", metavar="N",
        help="drop candidates whose weights turn least until N architectures are left (1e6)",
    )  # fmt: skip
    group.add_argument(
        "--shrink-epochs", metavar="FIRST:EVERY",
        help="epochs before the first stage and between stages (100:5 of 195, in proportion)",
    )  # fmt: skip
    group.add_argument(
        "--shrink-drop", metavar="N",
        help="candidates of a stage, or a share below 1 (one more than a layer has with weights)",
    )  # fmt: skip
    group.add_argument("--shrink-max-macs", metavar="MACS",
                       help="score by subnets of at most so many, such as 600M")  # fmt: skip


def plan_shrinking(args: argparse.Namespace, epochs: int) -> ShrinkPlan | None:
    """The plan that the flags describe, None without ``--shrink``.

    Raises:
        ConfigError: naming the flag that is wrong.
    """
    if args.shrink is None:
        for name in ("shrink_epochs", "shrink_drop", "shrink_max_macs"):
            if getattr(args, name) is not None:
                raise ConfigError(f"--{name.replace('_', '-')}: needs --shrink")
        return None
    total, *published = PUBLISHED_EPOCHS
    first, every = (max(1, round(epochs * each / total)) for each in published)
    if args.shrink_epochs is not None:
        first, every = _parse_epochs(args.shrink_epochs)
    if first > epochs:
        raise ConfigError(
            f"--shrink-epochs {first}:{every}: the first stage comes after the last of {epochs} "
            "epochs; begin earlier or raise --epochs"
        )
    plan: dict[str, float] = {}
    if args.shrink_drop is not None:
        plan["drop"] = parse_quantity(args.shrink_drop, source="--shrink-drop")
    if args.shrink_max_macs is not None:
        plan["max_macs"] = parse_quantity(args.shrink_max_macs, source="--shrink-max-macs")
    target = parse_quantity(args.shrink, source="--shrink")
    if target != int(target) or target < 1:
        raise ConfigError(f"--shrink {args.shrink}: expected a number of architectures, 1 or more")
    return ShrinkPlan(int(target), first, every, **plan)


def _parse_epochs(text: str) -> tuple[int, int]:
    first, _, every = text.partition(":")
    if not (first.isdecimal() and every.isdecimal() and int(first) and int(every)):
        raise ConfigError(f"--shrink-epochs {text}: expected two numbers such as 100:5")
    return int(first), int(every)
