"""Weights that a training begins with: of ours or another system's, with a new head if need be.

Imports `spos.convert.weights`, `spos.spaces`, `spos.supernet`, `spos.training.checkpoint`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from spos.architecture import Architecture
from spos.convert.weights import ConvertedWeights, read_weights
from spos.errors import CheckpointError, ConfigError
from spos.files import digest
from spos.spaces import build_space, build_subnet, complete_options
from spos.supernet import Supernet
from spos.training.checkpoint import latest_checkpoint, load_weights_into

_FREE = ("image_size", "num_classes", "dropout")  # options that may differ from the weights' own


def add_weights_flags(parser: argparse.ArgumentParser, what: str) -> None:
    """Flags on the weights that a training begins with.

    Args:
        parser: of a script.
        what: may be given, for the help.
    """
    group = parser.add_argument_group("weights to begin with (default: random ones)")
    group.add_argument("--weights", type=Path, metavar="FILE", help=what)
    group.add_argument(
        "--reset-head", action="store_true",
        help="leave out their last layer, for images of other classes",
    )  # fmt: skip


def find_weights(path: Path | None) -> Path | None:
    """The file that ``--weights`` means: itself, or of a run folder its newest checkpoint.

    Raises:
        CheckpointError: if it is a folder without one.
    """
    if path is None or not path.is_dir():
        return path
    found = latest_checkpoint(path / "checkpoints")
    if found is None:
        raise CheckpointError(
            f"--weights {path}: holds no checkpoints; give a run folder or a file"
        )
    return found[1]


def weights_config(args: argparse.Namespace) -> dict[str, Any]:
    """What a run's configuration says of these flags.

    Raises:
        ConfigError: if there is no head to reset.
    """
    if args.reset_head and not args.weights:
        raise ConfigError("--reset-head: there is no head to reset; give --weights FILE as well")
    config: dict[str, Any] = {"weights": digest(args.weights) if args.weights else None}
    return {**config, "reset_head": True} if args.reset_head else config


def read_supernet_start(
    path: Path, *, space: str, options: Mapping[str, Any], head_seed: int | None = None
) -> ConvertedWeights:
    """A supernet to go on training.

    Args:
        path: see `spos.convert.weights.read_weights`.
        space: the search space that it must be of.
        options: of the space.
        head_seed: of a new last layer for ``options["num_classes"]`` classes; None keeps the old.

    Raises:
        CheckpointError: if the file holds something else, or has other classes and keeps its head.
    """
    found = _read(path, space=space, options=options, head_seed=head_seed)
    if found.arch is not None:
        raise CheckpointError(
            f"--weights {path}: holds the weights of one subnet, expected those of a supernet"
        )
    return found


def read_subnet_start(path: Path, arch: Architecture, *, head_seed: int | None = None) -> nn.Module:
    """The plain network of an architecture, with its own weights or its part of a supernet's.

    Args:
        path: see `spos.convert.weights.read_weights`.
        arch: which network.
        head_seed: of a new last layer for the architecture's classes; None keeps the old one.

    Raises:
        CheckpointError: if the file holds another network, or has other classes and keeps its head.
    """
    found = _read(path, space=arch.space, options=arch.options, arch=arch, head_seed=head_seed)
    _check_options(found, arch, path)
    network = found.network
    if isinstance(network, Supernet):
        network = network.extract(arch.choices, affine=True)
    return network


def _read(
    path: Path,
    *,
    space: str,
    options: Mapping[str, Any],
    head_seed: int | None,
    arch: Architecture | None = None,
) -> ConvertedWeights:
    others = {name: value for name, value in options.items() if name != "num_classes"}
    found = read_weights(path, space=space, options=others, arch=arch, is_part=True)
    found.network.float()
    wanted, own = options["num_classes"], found.options["num_classes"]
    if head_seed is not None:
        return _replace_head(found, wanted, seed=head_seed, source=f"--weights {path}")
    if wanted != own:
        raise CheckpointError(
            f"--weights {path}: its network tells {own} classes apart, these images are of "
            f"{wanted}; --reset-head begins with a new last layer"
        )
    return found


def _replace_head(
    found: ConvertedWeights, num_classes: int, *, seed: int, source: str
) -> ConvertedWeights:
    """The same weights, but for those whose shape depends on the number of classes."""
    is_affine = any(each.affine for each in found.network.modules() if isinstance(each, _BatchNorm))

    def build(classes: int) -> nn.Module:
        options = {**found.options, "num_classes": classes}
        if found.arch is None:
            return Supernet(build_space(found.space, options=options, affine=is_affine))
        return build_subnet(dataclasses.replace(found.arch, options=options), affine=is_affine)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(num_classes)
    with torch.device("meta"):
        other = build(num_classes + 1).state_dict()
    fresh = network.state_dict()
    head = {name: each for name, each in fresh.items() if each.shape != other[name].shape}
    if not head:
        raise CheckpointError(
            f"{source}: --reset-head finds no layer in {found.space} whose size follows the classes"
        )
    load_weights_into(network, {**found.network.state_dict(), **head}, source=source)
    options = {**found.options, "num_classes": num_classes}
    arch = found.arch and dataclasses.replace(found.arch, options=options)
    return dataclasses.replace(found, network=network.eval(), options=options, arch=arch)


def _check_options(found: ConvertedWeights, arch: Architecture, path: Path) -> None:
    """Refuse weights of which the architecture's options would make another function."""
    own, asked = (
        json.loads(json.dumps(complete_options(arch.space, options)))
        for options in (found.options, arch.options)
    )
    differing = sorted(
        name
        for name in own.keys() | asked.keys()
        if name not in _FREE and own.get(name) != asked.get(name)
    )
    if differing:
        wanted = {name: own.get(name) for name in differing}
        raise CheckpointError(
            f"--weights {path}: its network has other options than the architecture; to train "
            f"that one give --space-options '{json.dumps(wanted)}'"
        )
