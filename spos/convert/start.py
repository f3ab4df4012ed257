"""Weights that a training begins with: of ours or another system's, with a new head if need be.

Imports `spos.architecture`, `spos.convert.weights`, `spos.errors`, `spos.files`,
`spos.flag_values`, `spos.supernet`, `spos.training` and torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spos.architecture import Architecture
from spos.convert.weights import ConvertedWeights, build_network, check_options, read_weights
from spos.errors import CheckpointError, ConfigError
from spos.files import digest
from spos.flag_values import to_path
from spos.supernet import Supernet
from spos.training.checkpoint import latest_checkpoint, load_weights_into
from spos.training.inputs import Inputs, check_classes, check_preprocessing
from spos.training.parallel import rank

_FREE = {"image_size", "num_classes", "dropout"}  # options that may differ from the weights' own

log = logging.getLogger(__name__)


def add_weights_flags(parser: argparse.ArgumentParser, what: str) -> None:
    """Flags on the weights that a training begins with.

    Args:
        parser: of a script.
        what: may be given, for the help.
    """
    group = parser.add_argument_group("weights to begin with (default: random ones)")
    group.add_argument("--weights", type=to_path, metavar="FILE", help=what)
    group.add_argument(
        "--reset-head", action="store_true",
        help="leave out their last layer, for images of other classes",
    )  # fmt: skip


@dataclass(frozen=True)
class Start:
    """What to begin with, and for which images.

    Attributes:
        path: see `spos.convert.weights.read_weights`.
        preprocessing: of the images, by name.
        classes: of the images; their number is an option of the space, too.
        head_seed: of a new last layer; None keeps the one that there is.
    """

    path: Path
    preprocessing: str
    classes: Sequence[str]
    head_seed: int | None

    def config(self) -> dict[str, Any]:
        """What a run's configuration says of it."""
        config: dict[str, Any] = {"weights": digest(self.path)}
        return config if self.head_seed is None else {**config, "reset_head": True}


def find_start(args: argparse.Namespace, inputs: Inputs, *, seed: int) -> Start | None:
    """What the flags mean for these images: nothing, a file, or of a run its newest checkpoint.

    Raises:
        ConfigError: if there is no head to reset.
        CheckpointError: if a folder holds no checkpoint.
    """
    if args.weights is None:
        if args.reset_head:
            raise ConfigError("--reset-head: there is no head to reset; give --weights FILE too")
        return None
    path = args.weights
    if path.is_dir():
        found = latest_checkpoint(path / "checkpoints")
        if found is None:
            raise CheckpointError(
                f"--weights {path}: holds no checkpoints; give a run folder or a file"
            )
        path = found[1]
        if rank() == 0:
            log.info("beginning with %s", path)
    head_seed = seed if args.reset_head else None
    return Start(path, inputs.preprocessing.name, inputs.data.train.classes, head_seed)


def read_supernet_start(
    start: Start, *, space: str, options: Mapping[str, Any]
) -> ConvertedWeights:
    """A supernet of ``space`` to go on training.

    Raises:
        CheckpointError: if the file holds something else, is of other images, or has other classes
            and keeps its head.
    """
    found = _read(start, space=space, options=options)
    if found.arch is not None:
        raise CheckpointError(
            f"--weights {start.path}: holds the weights of one subnet, expected those of a supernet"
        )
    return found


def read_subnet_start(start: Start, arch: Architecture) -> nn.Module:
    """The plain network of an architecture, with its own weights or its part of a supernet's.

    Raises:
        CheckpointError: if the file holds another network, is of other images, or has other classes
            and keeps its head.
    """
    found = _read(start, space=arch.space, options=arch.options, arch=arch)
    check_options(found, arch, source=f"--weights {start.path}", free=_FREE)
    network = found.network
    if isinstance(network, Supernet):
        network = network.extract(arch.choices, affine=True)
    return network


def _read(
    start: Start, *, space: str, options: Mapping[str, Any], arch: Architecture | None = None
) -> ConvertedWeights:
    source = f"--weights {start.path}"
    others = {name: value for name, value in options.items() if name != "num_classes"}
    found = read_weights(start.path, space=space, options=others, arch=arch, is_part=True)
    found.network.float()
    expected = found.said.get("preprocessing", start.preprocessing)
    check_preprocessing(expected, start.preprocessing, source=f"{source}: its network")
    if start.head_seed is not None:
        return _replace_head(found, options["num_classes"], seed=start.head_seed, source=source)
    said = found.said.get("classes")
    check_classes(
        found.options["num_classes"], said if isinstance(said, list) else None, start.classes,
        source=f"{source}: its network", advice="--reset-head begins with a new last layer",
    )  # fmt: skip
    return found


def _replace_head(
    found: ConvertedWeights, num_classes: int, *, seed: int, source: str
) -> ConvertedWeights:
    """The same weights, but for those whose shape depends on the number of classes."""

    def build(classes: int) -> tuple[nn.Module, dict[str, Any], Architecture | None]:
        options = {**found.options, "num_classes": classes}
        arch = found.arch and dataclasses.replace(found.arch, options=options)
        return build_network(found.space, options, arch, affine=found.affine), options, arch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network, options, arch = build(num_classes)
    with torch.device("meta"):
        other = build(num_classes + 1)[0].state_dict()
    fresh = network.state_dict()
    head = {name: each for name, each in fresh.items() if each.shape != other[name].shape}
    if not head:
        raise CheckpointError(
            f"{source}: --reset-head finds no layer in {found.space} whose size follows the classes"
        )
    load_weights_into(network, {**found.network.state_dict(), **head}, source=source)
    return dataclasses.replace(found, network=network.eval(), options=options, arch=arch)
