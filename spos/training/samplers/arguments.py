"""The flags that say which paths a sampler draws, and what they mean.

Imports `spos.errors` and `spos.training.samplers.warmup`; never torch.
"""

from __future__ import annotations

from typing import Any

from spos.errors import ConfigError
from spos.training.samplers.warmup import WARMUPS, Phase

_SCHEDULES = (
    f"{', '.join(WARMUPS)} (CanyonWind's), or WIDEST:EPOCHS,... such as 1:60,2:1,4:2; a last "
    "WIDEST alone stays; then all widths"
)


def add_path_flags(group: Any) -> None:
    """Flags on the paths that a sampler draws: ranges of costs and a warm-up."""
    group.add_argument(
        "--path-range", action="append", metavar="COST=LOW:HIGH",
        help="bounds of the paths' macs, params or other costs, such as macs=290M:360M or "
        "params=:5M; may be repeated (macs-uniform: the paper's in its space, else mean +- 3 "
        "deviations)",
    )  # fmt: skip
    group.add_argument(
        "--channel-warmup", metavar="SCHEDULE",
        help=f"widest of the searched widths that the first epochs train: {_SCHEDULES}",
    )  # fmt: skip


def parse_warmup(text: str | None) -> tuple[Phase, ...]:
    """A schedule such as ``oneshot``, ``1:60,oneshot`` or ``2:1,4:2,8``.

    Raises:
        ConfigError: if it is something else.
    """
    phases: list[Phase] = []
    for part in text.split(",") if text is not None else ():
        if phases and phases[-1].epochs is None:
            raise ConfigError(f"--channel-warmup {text}: nothing can follow {phases[-1].widest}")
        if part in WARMUPS:
            phases += WARMUPS[part]
            continue
        widest, colon, epochs = part.partition(":")
        numbers = [widest, *([epochs] if colon else [])]
        if not all(each.isascii() and each.isdigit() and int(each) > 0 for each in numbers):
            raise ConfigError(f"--channel-warmup {text}: expected {_SCHEDULES}; found {part!r}")
        phases.append(Phase(int(widest), int(epochs) if colon else None))
    return tuple(phases)
