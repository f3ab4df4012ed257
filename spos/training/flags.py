"""The flags that `supernet.py` and other commands share; unset ones take what suits the data.

Imports `spos.flag_values` and `spos.training.recipe`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from spos.flag_values import not_negative, positive, to_path
from spos.training.recipe import AMP_MODES, SCHEDULES


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Flags on images and how they are prepared."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data-dir",
        "--imagenet-dir",
        type=to_path,
        metavar="DIR",
        help="folder with train/CLASS/* and val/ or test/ (default: data/imagenet if it is there, "
        "else the embedded handwritten digits)",
    )
    group.add_argument(
        "--image-size",
        type=positive,
        help="side of the network's input in pixels (default: 224, or "
        "the images' own size if they are small)",
    )
    group.add_argument(
        "--augmentation", choices=("paper", "crop-flip", "crop", "none"),
        help="of training images (default: paper for photographs, crop-flip for small images)",
    )  # fmt: skip
    group.add_argument(
        "--spos-preprocessing", action="store_true",
        help="BGR from 0 to 255, as the published weights expect, instead of normalised RGB",
    )  # fmt: skip
    group.add_argument(
        "--loader", choices=("auto", "torchvision", "dali"), default="auto",
        help="auto: DALI on a GPU if it is installed, torchvision otherwise",
    )  # fmt: skip
    group.add_argument(
        "--workers", type=not_negative,
        help="processes of the loader (default: 2; none for small images on a CPU)",
    )  # fmt: skip
    group.add_argument(
        "--cache", type=not_negative, metavar="MIB",
        help="memory of a torchvision loader for decoded images (default: 1024 for small images, "
        "0 for photographs)",
    )  # fmt: skip


def add_recipe_flags(parser: argparse.ArgumentParser) -> None:
    """Flags on training itself; see `spos.training.recipe.Recipe`."""
    group = parser.add_argument_group(
        "training (defaults: the paper's on ImageNet; see the README)"
    )
    group.add_argument("--epochs", type=int, help="passes over the training images")
    group.add_argument("--batch-size", type=int, help="images of a step, over all processes")
    group.add_argument(
        "--accumulate", type=int, metavar="N",
        help="compute a step in N parts, in the memory of one (default: 1)",
    )  # fmt: skip
    group.add_argument(
        "--lr", type=float, help="first learning rate; by default it follows the batch size"
    )
    group.add_argument("--schedule", choices=SCHEDULES, help="how the learning rate falls to 0")
    group.add_argument("--warmup-epochs", type=float, help="epochs in which it rises first")
    group.add_argument("--momentum", type=float, help="of SGD")
    group.add_argument(
        "--weight-decay", type=float, help="on weights of convolutions and linear layers"
    )
    group.add_argument(
        "--label-smoothing", type=float, help="share of the target spread over all classes"
    )
    group.add_argument(
        "--mixup", type=float, metavar="ALPHA",
        help="mix every image with another by a share from Beta(ALPHA, ALPHA), such as 0.2 "
        "(default: 0, off)",
    )  # fmt: skip
    group.add_argument(
        "--mixup-off-epochs", type=int, metavar="N", help="the last N epochs without (default: 0)"
    )
    group.add_argument(
        "--cutout", type=int, metavar="PIXELS",
        help="cut a square of this side out of every training image (default: 0, off)",
    )  # fmt: skip
    group.add_argument(
        "--clip-norm", type=float, help="largest norm of the gradient; 0: no clipping"
    )
    group.add_argument("--amp", choices=AMP_MODES, help="mixed precision (default: off)")
    group.add_argument("--seed", type=int, help="of everything random (default: 0)")


def add_run_flags(parser: argparse.ArgumentParser, *, run_dir: str) -> None:
    """Flags on the run folder and the machine."""
    group = parser.add_argument_group("run")
    group.add_argument(
        "--run-dir", type=to_path, default=Path(run_dir), metavar="DIR",
        help="settings, log, checkpoints; repeat a command to continue it (default: %(default)s)",
    )  # fmt: skip
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    group.add_argument("--save-every", type=positive, default=1, metavar="EPOCHS",
                       help="between checkpoints (default: %(default)s)")  # fmt: skip
    group.add_argument("--val-every", type=positive, metavar="EPOCHS",
                       help="between validations (default: a tenth of the run)")  # fmt: skip
