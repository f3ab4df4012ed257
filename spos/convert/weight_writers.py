"""Networks of ours written for our own use, and in the layout of Megvii and NNI.

Imports `spos.convert.weights`, `spos.convert.zoo`, `spos.errors`, `spos.files`, `spos.spaces`,
`spos.subnet` and `spos.training.checkpoint`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spos.convert.weights import SUPERNET_FORMAT, ConvertedWeights
from spos.convert.zoo import BLOCKS
from spos.errors import CheckpointError
from spos.files import open_atomic
from spos.spaces.options import strides
from spos.spaces.shufflenet import STAGE_DEPTHS
from spos.subnet import (
    plain_tensors,
    read_classes,
    read_preprocessing,
    save_subnet,
    save_with_metadata,
)
from spos.training.checkpoint import save_tensors

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
        preprocessing: of images for the network; by default what its own file says. Only
            ``safetensors`` carries it, and the classes.

    Raises:
        CheckpointError: if the network computes another function than Megvii's and NNI's does, or
            what its file says of images and classes is malformed.
    """
    if format == "safetensors":
        _write_safetensors(path, converted, preprocessing)
        return
    _refuse_other_functions(converted, path, format)
    tensors = plain_tensors(converted.network)
    if format == "megvii":
        numbers = {f".{name}.branch_": f".{number}.branch_" for number, name in enumerate(BLOCKS)}
        tensors = {_replace(name, numbers): tensor for name, tensor in tensors.items()}
    with open_atomic(path) as file:
        save_tensors({"state_dict": tensors} if format == "megvii" else tensors, file)


def _write_safetensors(
    path: Path | str, converted: ConvertedWeights, preprocessing: str | None
) -> None:
    preprocessing, classes = _images(converted, path, preprocessing)
    said: Any = {"preprocessing": preprocessing, "classes": classes}
    if converted.arch is not None:
        save_subnet(path, converted.network, converted.arch, **said)
        return
    metadata = {
        "format": SUPERNET_FORMAT,
        "space": converted.space,
        "options": json.dumps(dict(converted.options)),
        "affine": json.dumps(converted.affine),
    }
    save_with_metadata(path, converted.network, metadata, **said)


def _replace(name: str, replacements: Mapping[str, str]) -> str:
    for old, new in replacements.items():
        name = name.replace(old, new)
    return name


def _images(
    converted: ConvertedWeights, path: Path | str, preprocessing: str | None
) -> tuple[str | None, tuple[str, ...] | None]:
    """Preprocessing and classes, as given or as the network's own file says."""
    said = converted.said
    if preprocessing is None and "preprocessing" in said:
        preprocessing = read_preprocessing(said["preprocessing"], path).name
    classes = read_classes(json.dumps(said["classes"]), path) if "classes" in said else None
    return preprocessing, classes


def _is_halved_five_times(options: Mapping[str, Any]) -> bool:
    return set(strides(options["image_size"], output_stride=options.get("output_stride"))) == {2}


def _refuse_other_functions(converted: ConvertedWeights, path: Path | str, format: str) -> None:
    """Megvii's and NNI's code builds the canonical network, whatever the weights were made for."""
    if converted.space not in ("shufflenetv2", "shufflenetv2plus"):
        raise CheckpointError(f"{path}: neither Megvii nor NNI has a network of {converted.space}")
    options = converted.options
    reasons = {
        "layout": options.get("layout", "canonical") != "canonical",
        "stem_activation": options.get("stem_activation") is not None,
        "squeeze_excitation": options.get("squeeze_excitation") == "canyonwind",
        "head": options.get("head") == "mobilenetv3",
        "classifier_bias": bool(options.get("classifier_bias")),
        "stage_depths": list(options.get("stage_depths", STAGE_DEPTHS)) != list(STAGE_DEPTHS),
        "image_size": not _is_halved_five_times(options),
    }
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
