"""The flags on a teacher of `scratch.py`, and the network that they name.

Imports `spos.data`, `spos.errors`, `spos.files`, `spos.flag_values`, `spos.placement`,
`spos.spaces`, `spos.subnet`, `spos.training`.
"""

from __future__ import annotations

import argparse
import logging
from typing import Any

from spos.data.preprocessing import UNSAID_PREPROCESSING
from spos.errors import CheckpointError, ConfigError
from spos.files import digest
from spos.flag_values import to_path
from spos.placement import place
from spos.spaces import complete_options
from spos.subnet import FOLDER_WEIGHTS, load_subnet
from spos.training.distillation import TEMPERATURE, WEIGHT, Teacher
from spos.training.inputs import Inputs, check_classes, check_preprocessing
from spos.training.parallel import rank

log = logging.getLogger(__name__)


def add_teacher_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that `find_teacher` reads."""
    group = parser.add_argument_group("teacher (knowledge distillation)")
    group.add_argument(
        "--teacher", type=to_path, metavar="FILE",
        help="trained network whose answers are learned too: best.safetensors of scratch.py, or a "
        "folder of export --hub-dir",
    )  # fmt: skip
    group.add_argument(
        "--teacher-weight", type=float, help=f"of the teacher in the loss (default: {WEIGHT:g})"
    )
    group.add_argument(
        "--temperature", type=float,
        help=f"divides the logits of both before they are compared (default: {TEMPERATURE:g})",
    )  # fmt: skip


def find_teacher(args: argparse.Namespace, inputs: Inputs) -> Teacher | None:
    """What the flags mean for these images; None without ``--teacher``.

    Raises:
        ConfigError: if a flag has nothing to be about, or is out of range.
        CheckpointError: if the file is no trained network, or one of other classes or other
            preprocessing than these images.
    """
    given = {
        field: value
        for field, value in (("weight", args.teacher_weight), ("temperature", args.temperature))
        if value is not None
    }
    path = args.teacher
    if path is None:
        if given:
            flag = "--teacher-weight" if "weight" in given else "--temperature"
            raise ConfigError(f"{flag}: there is no teacher; give --teacher FILE too")
        return None
    if path.suffix != ".safetensors" and not path.is_dir():
        raise CheckpointError(
            f"--teacher {path}: is no trained network; expected a .safetensors file of scratch.py, "
            "or a folder of `python -m spos export --hub-dir`"
        )
    network: Any = load_subnet(path)
    _check_images(network, inputs, f"--teacher {path}:")
    if rank() == 0:
        log.info("taught by %s of %s in %s", network.arch.id, network.arch.space, path)
    placed = place(network, inputs.device).requires_grad_(False)
    return Teacher(placed, digest(path / FOLDER_WEIGHTS if path.is_dir() else path), **given)


def _check_images(network: Any, inputs: Inputs, source: str) -> None:
    """Refuse a network of `load_subnet` whose answers are not about these images."""
    if network.preprocessing is None:
        raise CheckpointError(f"{source} {UNSAID_PREPROCESSING}")
    check_preprocessing(network.preprocessing.name, inputs.preprocessing.name, source=source)
    number: Any = complete_options(network.arch.space, network.arch.options).get("num_classes")
    advice = "give a network that was trained on the same classes"
    check_classes(number, network.classes, inputs.data.train.classes, source=source, advice=advice)
