"""How candidates of a supernet run are to be evaluated on this machine, and the flags that say so.

Imports `spos.errors` and `spos.flag_values`; never torch, because trials read these flags.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from spos.errors import ConfigError
from spos.flag_values import to_path


@dataclass(frozen=True)
class EvaluationSettings:
    """Which supernet, which images, which machine.

    Attributes:
        run_dir: run folder of `supernet.py`.
        data_dir: where the images are now; None: where they were in training.
        space: the user's own space, ``module:Class``, if the supernet is of one.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        threads: of a CPU; None: ``OMP_NUM_THREADS``, or one for each core.
        workers: processes that decode images.
    """

    run_dir: Path
    data_dir: Path | None = None
    space: str | None = None
    device: str = "auto"
    threads: int | None = None
    workers: int = 2

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"--threads {self.threads}: expected at least 1")
        if self.workers < 0:
            raise ConfigError(f"--workers {self.workers}: expected 0 or more")

    def flags(self) -> list[str]:
        """The command-line flags that `read_evaluation_flags` makes these settings of."""
        given = {
            "--run-dir": self.run_dir,
            "--data-dir": self.data_dir,
            "--space": self.space,
            "--device": self.device,
            "--threads": self.threads,
            "--workers": self.workers,
        }
        return [f"{flag}={value}" for flag, value in given.items() if value is not None]

    def num_threads(self) -> int:
        """The number of CPU threads; it decides the last bits of a result."""
        if self.threads is not None:
            return self.threads
        given = os.environ.get("OMP_NUM_THREADS", "")
        if given.isdigit() and int(given) > 0:
            return int(given)
        import psutil

        cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
        return max(1, min(cores, usable))


def add_evaluation_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of everything that evaluates candidates."""
    parser.add_argument("--run-dir", type=to_path, default=Path("runs/supernet"), metavar="DIR",
                        help="run folder of supernet.py (default: %(default)s)")  # fmt: skip
    parser.add_argument("--space", metavar="MODULE:CLASS",
                        help="your own space, if the supernet was trained with one")  # fmt: skip
    parser.add_argument(
        "--data-dir", "--imagenet-dir", type=to_path, metavar="DIR",
        help="where the images are now (default: where they were in training)",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--workers", type=int, default=2,
                        help="of the image loader (default: %(default)s)")  # fmt: skip
    parser.add_argument(
        "--threads", type=int, metavar="N",
        help="of a CPU; part of the result's last bits, so the same for every candidate "
        "(default: OMP_NUM_THREADS, else one for each core)",
    )  # fmt: skip


def read_evaluation_flags(args: argparse.Namespace) -> EvaluationSettings:
    """The settings that the parsed flags of `add_evaluation_flags` are.

    Raises:
        ConfigError: if one is out of range.
    """
    return EvaluationSettings(
        run_dir=args.run_dir,
        data_dir=args.data_dir,
        space=args.space,
        device=args.device,
        threads=args.threads,
        workers=args.workers,
    )
