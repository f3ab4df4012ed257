"""Networks of ours written for our own use, and in the layout of Megvii and NNI.

Imports `spos.convert.state_dicts`, `spos.convert.weights`, `spos.convert.zoo`, `spos.errors`,
`spos.files`, `spos.subnet` and torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from spos.convert.state_dicts import Tensors
from spos.convert.weights import SUPERNET_FORMAT, ConvertedWeights
from spos.convert.zoo import BLOCKS
from spos.errors import CheckpointError
from spos.files import open_atomic
from spos.subnet import save_subnet

WEIGHT_FORMATS = ("safetensors", "megvii", "nni3")


def write_weights(
    path: Path | str,
    converted: ConvertedWeights,
    format: str,
    *,
    preprocessing: str | None = None,
) -> None:
    """Write a network's weights.

    Args:
        path: the file.
        converted: the network.
        format: ``safetensors``: what `load_subnet` reads, or the supernet under the names of its
            space; ``megvii``: ``{"state_dict": ...}`` with candidates by number; ``nni3``: a plain
            state dict with candidates by name.
        preprocessing: of images for the network, if it is known; ``safetensors`` carries it.

    Raises:
        CheckpointError: if the network computes another function than Megvii's and NNI's does.
    """
    if format == "safetensors":
        if converted.arch is not None:
            save_subnet(path, converted.network, converted.arch, preprocessing=preprocessing)
            return
        metadata = {
            "format": SUPERNET_FORMAT,
            "space": converted.space,
            "options": json.dumps(dict(converted.options)),
        }
        with open_atomic(path) as file:
            file.write(save(_cpu_tensors(converted.network), metadata))
        return
    _refuse_other_functions(converted, path, format)
    tensors = _cpu_tensors(converted.network)
    if format == "megvii":
        numbers = {f".{name}.branch_": f".{number}.branch_" for number, name in enumerate(BLOCKS)}
        tensors = {_replace(name, numbers): tensor for name, tensor in tensors.items()}
    with open_atomic(path) as file:
        torch.save({"state_dict": tensors} if format == "megvii" else tensors, file)


def _cpu_tensors(network: nn.Module) -> Tensors:
    return {name: tensor.contiguous().cpu() for name, tensor in network.state_dict().items()}


def _replace(name: str, replacements: Mapping[str, str]) -> str:
    for old, new in replacements.items():
        name = name.replace(old, new)
    return name


def _refuse_other_functions(converted: ConvertedWeights, path: Path | str, format: str) -> None:
    """Megvii's and NNI's code builds the canonical network, whatever the weights were made for."""
    options = converted.options
    reasons = {
        "layout": options.get("layout", "canonical") != "canonical",
        "stem_activation": options.get("stem_activation") is not None,
        "squeeze_excitation": options.get("squeeze_excitation") == "canyonwind",
        "head": options.get("head") == "mobilenetv3",
        "classifier_bias": bool(options.get("classifier_bias")),
    }
    if converted.space not in ("shufflenetv2", "shufflenetv2plus"):
        raise CheckpointError(f"{path}: neither Megvii nor NNI has a network of {converted.space}")
    wrong = [f"{name} {options[name]!r}" for name, is_wrong in reasons.items() if is_wrong]
    if wrong:
        raise CheckpointError(
            f"{path}: the networks of Megvii and NNI compute another function than one with "
            f"{', '.join(wrong)}; write it as .safetensors"
        )
    has_affine = "first_conv.1.weight" in converted.network.state_dict()
    if format == "megvii" and converted.arch is None and has_affine:
        raise CheckpointError(
            f"{path}: Megvii's supernet has BatchNorm without weight and bias, this one has them; "
            "write it --to nni3"
        )
