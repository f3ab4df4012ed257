"""Whose weights a file holds, and what each of its tensors is called in our spaces.

Imports `spos.convert.mmrazor_yaml`, `spos.convert.zoo`, `spos.errors` and torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from spos.convert.mmrazor_yaml import MOBILE_NAMES, SHUFFLE_NAMES, SHUFFLE_STAGES
from spos.convert.zoo import ANGLENAS_NAMES, BLOCKS
from spos.errors import CheckpointError

Tensors = dict[str, Tensor]

STAGE_STARTS = (0, 4, 8, 16)  # layers that begin a stage, the only ones with a projection

# Places of convolution and BatchNorm, in pairs, in a block's branches as Megvii builds them.
SHUFFLE_PLACES = (0, 3, 5)
XCEPTION_PLACES = (0, 2, 5, 7, 10, 12)
PROJECTION_PLACES = (0, 2)
MOBILE_PLACES = {"expand_conv": 0, "depthwise_conv": 3, "linear_conv": 6}
FIRST_MOBILE_PLACES = {"depthwise_conv": 0, "linear_conv": 3}  # expansion 1 needs no expand_conv

_PARTS = {"conv": 0, "bn": 1}
_RAZOR_BLOCKS = {theirs: ours for ours, theirs in SHUFFLE_NAMES.items()}
_RAZOR_MOBILE = {theirs: ours for ours, theirs in MOBILE_NAMES.items()}


@dataclass(frozen=True)
class System:
    """How one of the reference systems names and arranges its weights.

    Attributes:
        name: of the system.
        space: our space of its networks; ``shufflenetv2`` may turn out to be ``shufflenetv2plus``.
        marker: what some name in its state dict matches and none in the others'.
        rename: a name in its state dict -> ours, ``""`` for weights that compute nothing, or None
            for a name that it does not have.
        options: what in the space makes the same function of the weights.
        reverses: whether its channels are in reverse order at every border between blocks.
    """

    name: str
    space: str
    marker: re.Pattern[str]
    rename: Callable[[str], str | None]
    options: Mapping[str, Any] = field(default_factory=dict)
    reverses: bool = False


def find_system(tensors: Mapping[str, Tensor], *, source: str) -> System:
    """The system that such a state dict is of.

    Raises:
        CheckpointError: if it is none of the known ones'; ``source`` begins the message.
    """
    for system in SYSTEMS:
        if any(system.marker.match(name) for name in tensors):
            return system
    some = ", ".join(name[:60] for name in list(tensors)[:3])
    raise CheckpointError(
        f"{source}: has weights of no system that is known (such as {some or 'none at all'}); "
        f"known are those of {', '.join(system.name for system in SYSTEMS)}, and CanyonWind's "
        ".params"
    )


def rename_all(system: System, tensors: Mapping[str, Tensor], *, source: str) -> Tensors:
    """The same tensors by our names, without those that compute nothing.

    Raises:
        CheckpointError: if the system has no such weights, or two are of the same name.
    """
    renamed: Tensors = {}
    for name, tensor in tensors.items():
        new = system.rename(name)
        if new is None:
            raise CheckpointError(f"{source}: {system.name} has no weights named {name[:100]!r}")
        if new in renamed:
            raise CheckpointError(f"{source}: two of its weights are {new[:100]!r}")
        if new:
            renamed[new] = tensor
    return renamed


# --- Megvii, NNI, ShunLu91 -----------------------------------------------------------------------

_MEGVII_BLOCK = re.compile(
    r"features\.(\d{1,2})\.(?:([0-3]|k3|k5|k7|xcep)\.)?branch_(main|proj)\.([\w.]{1,60})"
)
_MEGVII_REST = re.compile(
    r"(first_conv\.[01]|conv_last\.[01]|LastSE\.SE_opr\.[0-4]|fc\.0|classifier\.0)\.\w{1,30}"
)
_SHUNLU_BLOCK = re.compile(r"choice_block\.(\d{1,2})\.(?:([0-3])\.)?cb_(main|proj)\.([\w.]{1,60})")
_SHUNLU_REST = {"stem": "first_conv", "last_conv": "conv_last", "classifier": "classifier.0"}


def _rename_megvii(name: str) -> str | None:
    if match := _MEGVII_BLOCK.fullmatch(name):
        return _block_name(*match.groups())
    return name if _MEGVII_REST.fullmatch(name) else None


def _rename_shunlu(name: str) -> str | None:
    if match := _SHUNLU_BLOCK.fullmatch(name):
        return _block_name(*match.groups())
    head, _, rest = name.partition(".")
    return f"{_SHUNLU_REST[head]}.{rest}" if head in _SHUNLU_REST else None


def _block_name(layer: str, candidate: str | None, branch: str, rest: str) -> str | None:
    """Our name of a tensor in a block; NNI 2's projections at stride 1 are never applied."""
    if int(layer) >= sum(SHUFFLE_STAGES):
        return None
    if branch == "proj" and int(layer) not in STAGE_STARTS:
        return ""
    if candidate is not None and candidate.isdigit():
        candidate = BLOCKS[int(candidate)]
    middle = f".{candidate}" if candidate else ""
    return f"features.{int(layer)}{middle}.branch_{branch}.{rest}"


def reverse_channels(tensors: Tensors) -> Tensors:
    """ShunLu91's weights, which work on the other half and join it first, as canonical ones.

    Its network is the canonical one with the channels at every border between blocks in reverse.
    """
    reversed_tensors: Tensors = {}
    for name, tensor in tensors.items():
        for axis in _reversed_axes(name, tensors):
            if tensor.ndim > axis:
                tensor = tensor.flip(axis)
        reversed_tensors[name] = tensor
    return reversed_tensors


def _reversed_axes(name: str, tensors: Tensors) -> tuple[int, ...]:
    if name.startswith("first_conv."):
        return (0,)
    if name == "conv_last.0.weight":
        return (1,)
    block, dot, rest = name.partition(".branch_main.")
    if not dot:
        if ".branch_proj." not in name:
            return ()
        return (0, 1) if name.endswith(".branch_proj.2.weight") else (0,)
    place = int(rest.split(".")[0]) if rest.split(".")[0].isdigit() else -1
    is_xception = f"{block}.branch_main.12.weight" in tensors
    if is_xception:
        return {0: (0,), 1: (0,), 2: (1,), 12: (0,), 13: (0,)}.get(place, ())
    return {0: (1,), 5: (0,), 6: (0,)}.get(place, ())


# --- lliai, MMRazor's ShuffleNet -----------------------------------------------------------------

_LLIAI_BLOCK = re.compile(
    r"choice_blocks\.(\d{1,2})\.(?:([0-3])\.)?branch([12])\.([0-5])\.(conv|bn)\.(\w{1,30})"
)
_RAZOR_BLOCK = re.compile(
    r"backbone\.layers\.([0-3])\.(\d)\._candidates\.(\w{1,30})\.branch([12])\.([0-2])\."
    r"(?:(depthwise_conv|pointwise_conv)\.)?(conv|bn)\.(\w{1,30})"
)
_ENDS = re.compile(
    r"(conv1|conv2|backbone\.conv1|backbone\.layers\.4)\.(conv|bn)\.(\w{1,30})"
    r"|(?:fc|head\.fc)\.(weight|bias)"
)


def _rename_lliai(name: str) -> str | None:
    if match := _LLIAI_BLOCK.fullmatch(name):
        layer, candidate, branch, unit, part, rest = match.groups()
        branch = "main" if branch == "1" else "proj"
        # Which places the units have is seen from how many there are: `settle_places`.
        return _block_name(layer, candidate, branch, f"unit{unit}.{_PARTS[part]}.{rest}")
    return _rename_ends(name)


def _rename_razor_shuffle(name: str) -> str | None:
    if match := _RAZOR_BLOCK.fullmatch(name):
        stage, block, candidate, branch, unit, half, part, rest = match.groups()
        if candidate not in _RAZOR_BLOCKS or int(block) >= SHUFFLE_STAGES[int(stage)]:
            return None
        layer = str(STAGE_STARTS[int(stage)] + int(block))
        index = 2 * int(unit) + (half == "pointwise_conv") if half else int(unit)
        branch = "main" if branch == "2" else "proj"
        rest = f"unit{index}.{_PARTS[part]}.{rest}"
        return _block_name(layer, _RAZOR_BLOCKS[candidate], branch, rest)
    return _rename_ends(name)


def _rename_ends(name: str) -> str | None:
    match = _ENDS.fullmatch(name)
    if match is None:
        return None
    place, part, rest, classifier = match.groups()
    if classifier:
        return f"classifier.0.{classifier}"
    return f"{'first_conv' if place.endswith('conv1') else 'conv_last'}.{_PARTS[part]}.{rest}"


_UNIT = re.compile(r"(features\.\d+(?:\.\w+)?\.branch_(main|proj))\.unit(\d)\.([01])\.(\w+)")


def settle_places(tensors: Tensors) -> Tensors:
    """Give the units of branches the places that they have in Megvii's and our blocks."""
    num_units: dict[str, int] = {}
    for name in tensors:
        if match := _UNIT.fullmatch(name):
            num_units[match[1]] = max(num_units.get(match[1], 0), int(match[3]) + 1)
    settled: Tensors = {}
    for name, tensor in tensors.items():
        if match := _UNIT.fullmatch(name):
            branch, kind, unit, part, rest = match.groups()
            places = SHUFFLE_PLACES if num_units[branch] <= 3 else XCEPTION_PLACES
            places = PROJECTION_PLACES if kind == "proj" else places
            place = places[int(unit)] + int(part) if int(unit) < len(places) else 99
            name = f"{branch}.{place}.{rest}"
        settled[name] = tensor
    return settled


# --- AngleNAS, MMRazor's MobileNet ---------------------------------------------------------------

_ANGLENAS = re.compile(
    r"features\.(\d{1,2})\.(?:_ops\.([0-5])\.)?conv\.([0-7])\.(\w{1,30})"
    r"|(conv_bn|conv_1x1_bn)\.([01])\.(\w{1,30})"
    r"|MBConv_ratio_1\.conv\.([0-4])\.(\w{1,30})|classifier\.[01]\.(weight|bias)"
)
_RAZOR_MOBILE_BLOCK = re.compile(
    r"backbone\.layer([1-7])\.([0-3])\._candidates\.(\w{1,30})\."
    r"(expand_conv|depthwise_conv|linear_conv|downsample)\.(conv|bn)\.(\w{1,30})"
)
_RAZOR_MOBILE_ENDS = re.compile(
    r"backbone\.(conv1|conv2)\.(conv|bn)\.(\w{1,30})|head\.fc\.(weight|bias)"
)


def _rename_anglenas(name: str) -> str | None:
    match = _ANGLENAS.fullmatch(name)
    if match is None:
        return None
    layer, op, place, rest, end, end_place, end_rest, first, first_rest, classifier = match.groups()
    if layer is not None:
        middle = f".{ANGLENAS_NAMES[int(op)]}" if op else ""
        return f"features.{int(layer)}{middle}.conv.{place}.{rest}"
    if end is not None:
        return f"{'first_conv' if end == 'conv_bn' else 'conv_last'}.{end_place}.{end_rest}"
    if first is not None:
        return f"first_block.conv.{first}.{first_rest}"
    return f"classifier.{classifier}"


def _rename_razor_mobile(name: str) -> str | None:
    if match := _RAZOR_MOBILE_ENDS.fullmatch(name):
        end, part, rest, classifier = match.groups()
        if classifier:
            return f"classifier.{classifier}"
        return f"{'first_conv' if end == 'conv1' else 'conv_last'}.{_PARTS[part]}.{rest}"
    match = _RAZOR_MOBILE_BLOCK.fullmatch(name)
    if match is None:
        return None
    stage, block, candidate, unit, part, rest = match.groups()
    if stage == "1":
        if (block, candidate) != ("0", "mb_k3e1") or unit not in FIRST_MOBILE_PLACES:
            return None
        return f"first_block.conv.{FIRST_MOBILE_PLACES[unit] + _PARTS[part]}.{rest}"
    layer = 4 * (int(stage) - 2) + int(block)
    if (
        candidate not in _RAZOR_MOBILE
        or layer > 20
        or (unit == "downsample") != (candidate == "identity")
    ):
        return None
    prefix = f"features.{layer}.{_RAZOR_MOBILE[candidate]}"
    if unit == "downsample":
        return f"{prefix}.{_PARTS[part]}.{rest}"
    return f"{prefix}.conv.{MOBILE_PLACES[unit] + _PARTS[part]}.{rest}"


# The order matters: a marker is looked for before those below it.
SYSTEMS = (
    System(
        "lliai",
        "shufflenetv2",
        re.compile(r"choice_blocks\."),
        _rename_lliai,
        {"layout": "lliai", "dropout": 0.0},
    ),
    System(
        "ShunLu91",
        "shufflenetv2",
        re.compile(r"choice_block\."),
        _rename_shunlu,
        {"stem_activation": "relu6", "dropout": 0.0},
        reverses=True,
    ),
    System(
        "MMRazor",
        "shufflenetv2",
        re.compile(r"backbone\.layers\."),
        _rename_razor_shuffle,
        {"layout": "classic", "dropout": 0.0},
    ),
    System(
        "MMRazor",
        "proxyless_gpu",
        re.compile(r"backbone\.layer1\."),
        _rename_razor_mobile,
        {"skips": "mmrazor"},
    ),
    System("AngleNAS", "proxyless_gpu", re.compile(r"MBConv_ratio_1\."), _rename_anglenas),
    System(
        "Megvii or NNI",
        "shufflenetv2",
        re.compile(r"features\.\d+\.(?:\w+\.)?branch_main\."),
        _rename_megvii,
    ),
)
