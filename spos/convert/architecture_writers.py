"""Architectures written in the formats of all the systems; every one of them is read as well.

Imports `spos.architecture`, `spos.convert.architectures`, `spos.convert.mmrazor_yaml`,
`spos.convert.zoo` and `spos.errors`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from spos.architecture import Architecture, SearchSpec
from spos.convert.architectures import (
    ANGLENAS_SKIP,
    block_labels,
    channel_labels,
    known_spec,
)
from spos.convert.mmrazor_yaml import SHUFFLE_STAGES, write_mmrazor
from spos.convert.zoo import ANGLENAS_NAMES, CHANNEL_SCALES
from spos.errors import ArchitectureError


def write_architecture(arch: Architecture, format: str) -> str:
    """The text of an architecture file.

    Args:
        arch: the architecture.
        format: a key of `ARCHITECTURE_FORMATS`.

    Raises:
        ArchitectureError: if the format cannot say what this architecture is.
    """
    if format == "spos":
        return arch.to_json()
    spec = known_spec(arch.space, arch.options)
    spec.check(arch.choices)
    return ARCHITECTURE_FORMATS[format](arch, spec)


def _write_nni3(arch: Architecture, spec: SearchSpec) -> str:
    return json.dumps({label: arch.choices[label] for label in spec.choices}, indent=2) + "\n"


def _write_nni2(arch: Architecture, spec: SearchSpec) -> str:
    return _layer_choices(
        [candidate == arch.choices[label] for candidate in spec.choices[label]]
        for label in _only_blocks(spec, "NNI 2")
    )


def _write_nni2_index(arch: Architecture, spec: SearchSpec) -> str:
    return _layer_choices(map(str, _numbers(arch, spec, _only_blocks(spec, "NNI 2"))))


def _layer_choices(entries: Any) -> str:
    named = {f"LayerChoice{number}": entry for number, entry in enumerate(entries, start=1)}
    return json.dumps(named, indent=2) + "\n"


def _write_ids(arch: Architecture, spec: SearchSpec) -> str:
    blocks = _numbers(arch, spec, block_labels(spec))
    if not channel_labels(spec):
        return json.dumps(blocks) + "\n"
    return json.dumps([blocks, _scale_numbers(arch, spec)]) + "\n"


def _write_tuple(arch: Architecture, spec: SearchSpec) -> str:
    return _write_ids(arch, spec).replace("[", "(").replace("]", ")")


def _write_canyonwind(arch: Architecture, spec: SearchSpec) -> str:
    if not channel_labels(spec):
        raise ArchitectureError(
            "CanyonWind's lists are of blocks and channels, but this architecture has no searched "
            "widths; write it --to ids"
        )
    lists = _numbers(arch, spec, block_labels(spec)), _scale_numbers(arch, spec)
    return "".join(", ".join(map(str, numbers)) + "\n" for numbers in lists)


def _write_anglenas(arch: Architecture, spec: SearchSpec) -> str:
    if spec.space != "proxyless_gpu":
        raise ArchitectureError(f"AngleNAS' ids are of 'proxyless_gpu', not of {spec.space!r}")
    ids = {**{name: number for number, name in enumerate(ANGLENAS_NAMES)}, "skip": ANGLENAS_SKIP}
    return " ".join(str(ids[str(arch.choices[label])]) for label in spec.choices) + "\n"


def _write_macro(arch: Architecture, spec: SearchSpec) -> str:
    if spec.space != "nasbench_macro":
        raise ArchitectureError(f"NAS-Bench-Macro's digits are not of {spec.space!r}")
    return "".join(map(str, _numbers(arch, spec, list(spec.choices)))) + "\n"


def _write_mmrazor(variant: str) -> Callable[[Architecture, SearchSpec], str]:
    def write(arch: Architecture, spec: SearchSpec) -> str:
        names = [str(arch.choices[label]) for label in _only_blocks(spec, "MMRazor")]
        if spec.space not in ("shufflenetv2", "proxyless_gpu"):
            raise ArchitectureError(f"MMRazor has no search space like {spec.space!r}")
        depths = spec.options.get("stage_depths", SHUFFLE_STAGES)
        if tuple(depths) != SHUFFLE_STAGES:
            raise ArchitectureError(
                f"MMRazor's ShuffleNet has stages of {SHUFFLE_STAGES} blocks, this one of "
                f"{tuple(depths)}; write it --to spos"
            )
        return write_mmrazor(names, variant=variant)

    return write


# format -> what writes it
ARCHITECTURE_FORMATS: dict[str, Callable[[Architecture, SearchSpec], str]] = {
    "spos": lambda arch, spec: arch.to_json(),
    "nni3": _write_nni3,
    "nni2": _write_nni2,
    "nni2-index": _write_nni2_index,
    "ids": _write_ids,
    "tuple": _write_tuple,
    "canyonwind": _write_canyonwind,
    "anglenas": _write_anglenas,
    "macro": _write_macro,
    "mmrazor": _write_mmrazor("1.x"),
    "mmrazor-prefix": _write_mmrazor("prefix"),
    "mmrazor-0.x": _write_mmrazor("0.x"),
}


def _only_blocks(spec: SearchSpec, system: str) -> list[str]:
    if channel_labels(spec):
        raise ArchitectureError(f"{system} does not search widths; write it --to nni3 or ids")
    return list(spec.choices)


def _numbers(arch: Architecture, spec: SearchSpec, labels: Sequence[str]) -> list[int]:
    return [spec.choices[label].index(arch.choices[label]) for label in labels]


def _scale_numbers(arch: Architecture, spec: SearchSpec) -> list[int]:
    known: list[Any] = list(spec.options.get("channel_scales") or ())
    numbers = []
    for label in channel_labels(spec):
        scale = known[spec.choices[label].index(arch.choices[label])]
        if scale not in CHANNEL_SCALES:
            raise ArchitectureError(
                f"{label} has the scale {scale}, which has no number among 0.2, 0.4, ... 2.0"
            )
        numbers.append(CHANNEL_SCALES.index(scale))
    return numbers
