"""Architectures in the formats of all the systems: which one a file is in, and what it holds.

Imports `spos.architecture`, `spos.convert.mmrazor_yaml`, `spos.convert.zoo`, `spos.errors`,
`spos.files`, `spos.spaces`.
"""

from __future__ import annotations

import functools
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spos.architecture import (
    MAX_ARCHITECTURE_BYTES,
    Architecture,
    Candidate,
    SearchSpec,
    parse_architecture,
)
from spos.convert.mmrazor_yaml import parse_mmrazor
from spos.convert.zoo import ANGLENAS_NAMES, CHANNEL_SCALES, ZOO_PREFIX, zoo_architecture
from spos.errors import ArchitectureError
from spos.files import parse_json, read_bytes
from spos.spaces import space_spec

ANGLENAS_SKIP = -1  # in place of the number of an operator
_WEIGHTS = {".safetensors", ".params", ".pth", ".pt", ".tar"}

_NUMERIC = re.compile(r"[-0-9,;/\s()\[\]]*")
_NUMBER = re.compile(r"-?\d{1,9}")
_TWO_LISTS = re.compile(r"(\[[^\[\]]*\])[\s,;]*(\[[^\[\]]*\])")
_NUM_LAYERS = {20: "shufflenetv2", 21: "proxyless_gpu", 8: "nasbench_macro"}
_SMALL_SPACES = {"nasbench_macro": {"image_size": 32, "num_classes": 10}}
_IMAGENET = {"image_size": 224, "num_classes": 1000}
_MMRAZOR_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "shufflenetv2": {"layout": "classic", "classifier_bias": True, "dropout": 0.0},
    "proxyless_gpu": {"skips": "mmrazor"},
}
_LABEL = re.compile(r"(layer|channel)_([1-9]\d?)")


@dataclass(frozen=True)
class Reading:
    """What a file was found to be.

    Attributes:
        format: whose format it is, in words.
        arch: the architecture in it.
    """

    format: str
    arch: Architecture


def read_architecture(source: Path | str, spec: SearchSpec | None = None) -> Architecture:
    """The architecture in a file of any known format, or a published one by its name.

    Args:
        source: a file (see `recognize`), or ``"zoo:NAME"`` (`python -m spos zoo` lists them).
        spec: the search space that it must be of. Without it, a file of a system that does not name
            its space is taken to be of the reference systems' space with as many layers.

    Raises:
        ArchitectureError: if there is no such file or network, or it is malformed, or of another
            space.
    """
    return recognize(source, spec).arch


def recognize(source: Path | str, spec: SearchSpec | None = None) -> Reading:
    """The architecture in a file and whose format it is in; see `read_architecture`.

    Known are our own files, samples of NNI 3, NNI 2's one-hot and index forms, numbers of blocks
    (as a tuple, a list or separated by anything), numbers of blocks and then of channel scales
    (as two lists or two lines: CanyonWind's, Megvii's), AngleNAS' ids with -1 for a skip,
    NAS-Bench-Macro's digits without separators, and MMRazor's YAML of all its releases.
    """
    if str(source).startswith(ZOO_PREFIX):
        arch = zoo_architecture(str(source)[len(ZOO_PREFIX) :])
        if spec is not None:
            spec.check_architecture(arch, source=str(source))
        return Reading("published network", arch)
    if Path(source).suffix in _WEIGHTS and Path(source).is_file():
        raise ArchitectureError(
            f"{source}: is a file of weights, expected one of an architecture, which `python -m "
            f"spos convert {shlex.quote(str(source))} arch.json` writes of them"
        )
    data = read_bytes(source, error=ArchitectureError, max_bytes=MAX_ARCHITECTURE_BYTES)
    return recognize_text(data, spec, source=str(source))


def recognize_text(
    data: bytes | str, spec: SearchSpec | None = None, *, source: str = "architecture"
) -> Reading:
    """As `recognize`, of the contents of a file; ``source`` names it in errors."""
    try:
        text = (data.decode("utf-8") if isinstance(data, bytes) else data).strip()
    except UnicodeDecodeError:
        raise ArchitectureError(f"{source}: is not text, so no architecture") from None
    if not text:
        raise ArchitectureError(f"{source}: is empty")
    if _NUMERIC.fullmatch(text):
        return _from_numbers(text, spec, source)
    if text[0] in '{["':
        return _from_json(text, spec, source)
    return _from_mmrazor(text, spec, source)


def default_spec(space: str, **options: Any) -> SearchSpec:
    """The space as the systems have it: ImageNet's images and classes, or CIFAR-10's."""
    return known_spec(space, {**_SMALL_SPACES.get(space, _IMAGENET), **options})


def known_spec(space: str, options: Mapping[str, Any]) -> SearchSpec:
    """As `space_spec`, which is slow with searched widths, but remembering the last ones."""
    return _cached_spec(space, json.dumps(dict(options), sort_keys=True))


@functools.lru_cache(maxsize=32)
def _cached_spec(space: str, options: str) -> SearchSpec:
    return space_spec(space, options=json.loads(options))


# --- reading -----------------------------------------------------------------------------------


def _from_json(text: str, spec: SearchSpec | None, source: str) -> Reading:
    value = parse_json(text, source=source, error=ArchitectureError)
    if isinstance(value, dict) and "version" in value:
        return Reading("spos", parse_architecture(text, spec, source=source))
    if isinstance(value, dict) and _looks_like_mmrazor(value):
        return _from_mmrazor(text, spec, source)
    kind = "list"
    if isinstance(value, dict):
        is_nni2 = any(str(key).startswith("LayerChoice") for key in value)
        kind = "NNI 2" if is_nni2 else "NNI 3"
    if spec is None and isinstance(value, (dict, list)):
        spec = _guess_spec(value, source)
    return Reading(kind, parse_architecture(text, spec, source=source))


def _looks_like_mmrazor(value: Mapping[str, Any]) -> bool:
    return "modules" in value or any(isinstance(entry, dict) for entry in value.values())


def _from_mmrazor(text: str, spec: SearchSpec | None, source: str) -> Reading:
    names = parse_mmrazor(text, source=source)
    if spec is None:
        space = _NUM_LAYERS[len(names)]
        spec = default_spec(space, **_MMRAZOR_OPTIONS[space])
    return Reading("MMRazor", _by_names(names, spec, source))


def _guess_spec(value: dict[str, Any] | list[Any], source: str) -> SearchSpec:
    """The reference systems' space with the layers of such a sample."""
    labels = [match for key in value if (match := _LABEL.fullmatch(str(key)))]
    num_layers = len(value)
    if isinstance(value, dict) and labels:
        num_layers = sum(match[1] == "layer" for match in labels)
    has_channels = any(match[1] == "channel" for match in labels)
    return _spec_of(num_layers, has_channels, source)


def _spec_of(num_layers: int, has_channels: bool, source: str) -> SearchSpec:
    space = _NUM_LAYERS.get(num_layers)
    if space is None or (has_channels and space != "shufflenetv2"):
        known = ", ".join(f"{number} ({name})" for number, name in _NUM_LAYERS.items())
        raise ArchitectureError(
            f"{source}: has {num_layers} layers and does not name its search space, so give it "
            f"(--space); known by their number of layers are {known}"
        )
    options = {"channel_scales": list(CHANNEL_SCALES)} if has_channels else {}
    return default_spec(space, **options)


def _from_numbers(text: str, spec: SearchSpec | None, source: str) -> Reading:
    """Digits, lists in brackets or parentheses, or numbers with anything between them."""
    if text.isdigit() and len(text) > 1:
        arch = _by_numbers([int(digit) for digit in text], spec, source)
        return Reading("NAS-Bench-Macro" if len(text) == 8 else "digits", arch)
    if text[0] in "([":
        text = re.sub(r",\s*\]", "]", text.replace("(", "[").replace(")", "]"))
        if two := _TWO_LISTS.fullmatch(text):
            text = f"[{two[1]},{two[2]}]"
        value: Any = parse_json(text, source=source, error=ArchitectureError)
    else:
        value = [_split_numbers(part, source) for part in re.split("[;\n]", text) if part.strip()]
        if len(value) != 2 or len(value[0]) != len(value[1]):
            value = [number for numbers in value for number in numbers]
    if len(value) == 2 and all(isinstance(each, list) and _are_numbers(each) for each in value):
        return Reading("blocks and channels", _by_scales(value[0], value[1], spec, source))
    if not _are_numbers(value):
        spec = spec or _spec_of(len(value), False, source)
        return Reading("list", parse_architecture(text, spec, source=source))
    is_mobile = len(value) == 21 or ANGLENAS_SKIP in value
    return Reading("AngleNAS" if is_mobile else "list", _by_numbers(value, spec, source))


def _split_numbers(text: str, source: str) -> list[int]:
    words = re.split(r"[\s,/]+", text.strip(" \t\r,/"))
    if not all(_NUMBER.fullmatch(word) for word in words):
        raise ArchitectureError(
            f"{source}: has {next(word for word in words if not _NUMBER.fullmatch(word))[:60]!r} "
            "where the number of a candidate should be"
        )
    return [int(word) for word in words]


def _are_numbers(value: Any) -> bool:
    return all(type(each) is int for each in value)


def _by_numbers(numbers: Sequence[int], spec: SearchSpec | None, source: str) -> Architecture:
    spec = spec or _spec_of(len(numbers), False, source)
    if spec.space != "proxyless_gpu":
        return parse_architecture(json.dumps(list(numbers)), spec, source=source)
    names = []
    for layer, number in enumerate(numbers, start=1):
        if not ANGLENAS_SKIP <= number < len(ANGLENAS_NAMES):
            raise ArchitectureError(
                f"{source}: layer {layer} is {number}, expected AngleNAS' number of a candidate, "
                f"0 to {len(ANGLENAS_NAMES) - 1}, or {ANGLENAS_SKIP} to skip it"
            )
        names.append("skip" if number == ANGLENAS_SKIP else ANGLENAS_NAMES[number])
    return _by_names(names, spec, source)


def _by_names(names: Sequence[str], spec: SearchSpec, source: str) -> Architecture:
    if len(names) != len(spec.choices):
        raise ArchitectureError(
            f"{source}: has {len(names)} layers, expected the {len(spec.choices)} of {spec.space!r}"
        )
    return spec.architecture(dict(zip(spec.choices, names, strict=True)), source=source)


def _by_scales(
    blocks: Sequence[int], scales: Sequence[int], spec: SearchSpec | None, source: str
) -> Architecture:
    """The architecture of numbers of blocks and of channel scales (0 for 0.2, 1 for 0.4, ...)."""
    spec = spec or _spec_of(len(blocks), True, source)
    layers, channels = block_labels(spec), channel_labels(spec)
    if len(layers) != len(blocks) or len(channels) != len(scales):
        raise ArchitectureError(
            f"{source}: has {len(blocks)} blocks and {len(scales)} channel scales, but "
            f"{spec.space!r} with these options has {len(layers)} layers and {len(channels)} "
            "searched widths"
        )
    known: list[Any] = list(spec.options.get("channel_scales") or ())
    choices: dict[str, Candidate] = {}
    for number, (block, scale) in enumerate(zip(blocks, scales, strict=True)):
        label, channel = layers[number], channels[number]
        if not 0 <= block < len(spec.choices[label]):
            raise ArchitectureError(
                f"{source}: {label} is {block}, expected 0 to {len(spec.choices[label]) - 1}"
            )
        if not 0 <= scale < len(CHANNEL_SCALES) or CHANNEL_SCALES[scale] not in known:
            raise ArchitectureError(
                f"{source}: {channel} has the channel scale {scale}, expected the number of one of "
                f"{', '.join(map(str, known))}, where 0 is {CHANNEL_SCALES[0]}"
            )
        choices[label] = spec.choices[label][block]
        choices[channel] = spec.choices[channel][known.index(CHANNEL_SCALES[scale])]
    return spec.architecture(choices, source=source)


def block_labels(spec: SearchSpec) -> list[str]:
    """The labels of a space's layers, without those of searched widths."""
    return [label for label in spec.choices if not label.startswith("channel_")]


def channel_labels(spec: SearchSpec) -> list[str]:
    """The labels of searched widths."""
    return [label for label in spec.choices if label.startswith("channel_")]
