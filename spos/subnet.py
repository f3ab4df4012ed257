"""A trained subnet on disk: weights as safetensors, with all that is needed to use them.

Imports `spos.architecture`, `spos.convert.architectures`, `spos.data`, `spos.errors`,
`spos.files`, `spos.spaces`, `spos.training.checkpoint` and torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from spos.architecture import Architecture, parse_architecture
from spos.convert.architectures import read_architecture
from spos.data.preprocessing import Preprocessing
from spos.errors import CheckpointError, ConfigError
from spos.files import open_atomic, parse_json
from spos.spaces import build_subnet
from spos.training.checkpoint import load_tensors, load_weights_into

FORMAT = "spos-subnet-1"


def save_subnet(
    path: Path | str,
    network: nn.Module,
    arch: Architecture,
    *,
    preprocessing: str | None,
    classes: Sequence[str] | None = None,
) -> None:
    """Write a subnet's weights and, as metadata, its architecture, preprocessing and classes.

    The last two are left out where they are not known, as of other systems' weights.
    """
    tensors = {name: tensor.contiguous().cpu() for name, tensor in network.state_dict().items()}
    metadata = {
        "format": FORMAT,
        "architecture": arch.to_json(),
    }
    if preprocessing is not None:
        metadata["preprocessing"] = preprocessing
    if classes is not None:
        metadata["classes"] = json.dumps(list(classes))
    with open_atomic(path) as file:
        file.write(save(tensors, metadata))


def load_subnet(arch: Architecture | Path | str, weights: Path | str | None = None) -> nn.Module:
    """The network of an architecture, in evaluation mode.

    ``load_subnet("best.safetensors")`` is enough for a file that `scratch.py` wrote, since it holds
    its architecture. The network has two more attributes: ``preprocessing``
    (`spos.data.Preprocessing`) and ``classes`` (a tuple of names), both None if ``weights`` do
    not say.

    Args:
        arch: an architecture, a file of one in any format that `read_architecture` reads, a
            published network (``"zoo:megvii"``), or a weight file that holds its own.
        weights: a ``.safetensors`` file, or a state dict saved by torch. None with an
            architecture gives a network with random weights.

    Raises:
        ArchitectureError: if the architecture is malformed.
        CheckpointError: if the weights are missing, damaged, unsafe, or of another architecture.
    """
    if isinstance(arch, (str, Path)):
        if str(arch).endswith(".safetensors"):
            weights, arch = arch, _read_architecture(Path(arch))
        else:
            arch = read_architecture(arch)
    network: Any = build_subnet(arch, affine=True)
    network.preprocessing = network.classes = None
    if weights is None:
        return network.eval()
    if str(weights).endswith(".safetensors"):
        metadata, tensors = read_subnet_file(Path(weights))
        if "preprocessing" in metadata:
            network.preprocessing = _read_preprocessing(metadata["preprocessing"], weights)
        if "classes" in metadata:
            network.classes = _read_classes(metadata["classes"], weights)
    else:
        tensors = load_tensors(weights)
        if isinstance(tensors, dict) and isinstance(tensors.get("network"), dict):
            tensors = tensors["network"]  # a checkpoint of ours
    load_weights_into(network, tensors, source=str(weights))
    return network.eval()


def _read_architecture(path: Path) -> Architecture:
    metadata, _ = read_subnet_file(path)
    if "architecture" not in metadata:
        raise CheckpointError(
            f"{path}: does not say which architecture it is of; give the architecture file as well"
        )
    return parse_architecture(metadata["architecture"], source=f"{path}, its architecture")


def _read_preprocessing(name: str, path: Path | str) -> Preprocessing:
    try:
        return Preprocessing(name)
    except ConfigError as problem:
        raise CheckpointError(f"{path}: {problem}") from None


def _read_classes(text: str, path: Path | str) -> tuple[str, ...]:
    names = parse_json(text, source=f"{path}, its classes", error=CheckpointError)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{path}: its classes are not a list of names")
    return tuple(names)


def read_subnet_file(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Metadata and tensors of a safetensors file.

    Raises:
        CheckpointError: if it is missing, damaged or no such file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file") from None
    except (SafetensorError, OSError) as problem:
        raise CheckpointError(f"{path}: is damaged or not a safetensors file ({problem})") from None
