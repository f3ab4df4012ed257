"""Which network of which space a set of weights is of, seen from names and shapes alone.

Imports `spos.architecture`, `spos.convert.mmrazor_yaml`, `spos.convert.state_dicts`,
`spos.convert.zoo`, `spos.errors`, `spos.spaces` and torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from spos.architecture import Candidate
from spos.convert.mmrazor_yaml import SHUFFLE_STAGES
from spos.convert.state_dicts import STAGE_STARTS, Tensors
from spos.convert.zoo import CHANNEL_SCALES, STAGE_OF_LAYER
from spos.errors import CheckpointError
from spos.spaces import complete_options
from spos.spaces.mobilenet import LAST_STAGE, STAGES

_MOBILE_STAGES = [(width, layers) for width, layers, _ in (*STAGES, LAST_STAGE)]
_CANDIDATE = re.compile(r"features\.(\d+)\.(k3|k5|k7|xcep|k[357]e[36]|skip)\.(.+)")


def split_candidates(tensors: Mapping[str, Any]) -> dict[int, set[str]]:
    """The candidates that each layer has weights of, where names say so."""
    found: dict[int, set[str]] = {}
    for name in tensors:
        if match := _CANDIDATE.fullmatch(name):
            found.setdefault(int(match[1]), set()).add(match[2])
    return found


def drop_candidates(tensors: Tensors) -> Tensors:
    """The weights of a subnet whose names still say which candidate each layer has."""
    return {
        f"features.{match[1]}.{match[3]}" if (match := _CANDIDATE.fullmatch(name)) else name: tensor
        for name, tensor in tensors.items()
    }


# --- ShuffleNet ----------------------------------------------------------------------------------


def shuffle_network(
    tensors: Tensors, base: Mapping[str, Any], *, source: str
) -> tuple[str, dict[str, Any], dict[str, Candidate] | None]:
    """Space, options and choices of ShuffleNet weights by our names; no choices for a supernet.

    Args:
        tensors: name -> tensor, with the names of our spaces.
        base: options that follow from the system that the weights are of.
        source: begins error messages.

    Raises:
        CheckpointError: if a layer is missing, or of a shape that no such network has.
    """
    is_supernet = bool(split_candidates(tensors))
    shapes = _Shapes(tensors, source)
    choices: dict[str, Candidate] = {}
    widths, middles = [], []
    for stage, start in enumerate(STAGE_STARTS):
        block = f"features.{start}.k3" if is_supernet else f"features.{start}"
        main = shapes.main_places(block)[-1]
        main_out = shapes.dim(f"{block}.branch_main.{main}.weight", 0)
        widths.append(main_out + shapes.dim(f"{block}.branch_proj.2.weight", 0))
        for layer in range(start, start + SHUFFLE_STAGES[stage]):
            block = f"features.{layer}.k3" if is_supernet else f"features.{layer}"
            candidate, middle = shapes.block(block)
            choices[f"layer_{layer + 1}"] = candidate
            middles.append(middle)
    options = {**_shuffle_options(shapes, is_supernet, widths), **base}
    space = "shufflenetv2plus" if options["head"] == "plus" else "shufflenetv2"
    scales = _scales(widths, middles, is_supernet, options, source)
    options["channel_scales"] = scales
    if scales is not None:
        choices.update({f"channel_{n}": middle for n, middle in enumerate(middles, start=1)})
    # Only what differs is written into architectures; shufflenetv2plus has one activation only.
    defaults = {"activation": "hswish", **complete_options(space, {"num_classes": None})}
    defaults["stage_widths"] = list(defaults["stage_widths"])
    kept = {name: value for name, value in options.items() if value != defaults.get(name)}
    return space, kept, None if is_supernet else choices


def _shuffle_options(shapes: _Shapes, is_supernet: bool, widths: list[int]) -> dict[str, Any]:
    block = "features.8.k3" if is_supernet else "features.8"
    attention = None
    for place in (8, 15):
        excitation = f"{block}.branch_main.{place}.SE_opr.1"
        if f"{excitation}.weight" in shapes.tensors:
            attention = "canyonwind" if f"{excitation}.bias" in shapes.tensors else "megvii"
    head = "plain" if "conv_last.1.running_mean" in shapes.tensors else "mobilenetv3"
    if "LastSE.SE_opr.1.weight" in shapes.tensors:
        head = "plus"
    return {
        "num_classes": shapes.dim("classifier.0.weight", 0),
        "stem_width": shapes.dim("first_conv.0.weight", 0),
        "stage_widths": widths,
        "last_width": shapes.dim("classifier.0.weight", 1),
        "activation": "relu" if attention is None else "hswish",
        "squeeze_excitation": attention,
        "head": head,
        "classifier_bias": "classifier.0.bias" in shapes.tensors,
        "dropout": 0.1 if attention is None else 0.2,
    }


def _scales(
    widths: list[int],
    middles: list[int],
    is_supernet: bool,
    options: Mapping[str, Any],
    source: str,
) -> list[float] | None:
    """The channel scales that such middle widths are of; None if all are the fixed ones."""
    halves = [widths[stage] // 2 for stage in STAGE_OF_LAYER]
    if middles == halves:
        return None
    known = options.get("channel_scales")
    for scales in [known] if known else [CHANNEL_SCALES[:8], CHANNEL_SCALES]:
        searched = [[int(half * scale) for scale in scales] for half in halves]
        if is_supernet and middles == [max(each) for each in searched]:
            return list(scales)
        pairs = zip(middles, searched, strict=True)
        if not is_supernet and all(middle in each for middle, each in pairs):
            return list(scales)
    raise CheckpointError(
        f"{source}: its blocks have the middle widths {middles}, which are not those of the "
        f"channel scales {', '.join(map(str, known or CHANNEL_SCALES))}"
    )


class _Shapes:
    """Sizes of tensors by name, with an error for one that is not there."""

    def __init__(self, tensors: Tensors, source: str) -> None:
        self.tensors, self._source = tensors, source

    def dim(self, name: str, axis: int) -> int:
        shape = self.tensors[name].shape if name in self.tensors else ()
        if not -len(shape) <= axis < len(shape):
            raise CheckpointError(
                f"{self._source}: has no {name} that could be used; it is cut short, or of another "
                "network"
            )
        return shape[axis]

    def main_places(self, block: str) -> tuple[int, ...]:
        """Places of the pointwise convolutions in a block's main branch."""
        is_xception = f"{block}.branch_main.12.weight" in self.tensors
        return (2, 7, 12) if is_xception else (0, 5)

    def block(self, block: str) -> tuple[str, int]:
        """Candidate and middle width of a ShuffleNet block."""
        places = self.main_places(block)
        middle = self.dim(f"{block}.branch_main.{places[0]}.weight", 0)
        if len(places) == 3:
            return "xcep", middle
        return f"k{self.dim(f'{block}.branch_main.3.weight', 3)}", middle

    def mobile_block(self, block: str) -> tuple[str, int]:
        """Candidate and output width of an inverted residual."""
        hidden, width = (self.dim(f"{block}.conv.0.weight", axis) for axis in (0, 1))
        kernel = self.dim(f"{block}.conv.3.weight", 3)
        return f"k{kernel}e{hidden // max(width, 1)}", self.dim(f"{block}.conv.6.weight", 0)


# --- MobileNet -----------------------------------------------------------------------------------


def mobile_options(tensors: Tensors, base: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """Options of `proxyless_gpu` for such weights."""
    return {"num_classes": _Shapes(tensors, source).dim("classifier.weight", 0), **base}


def mobile_choices(tensors: Tensors, *, source: str) -> dict[str, Candidate]:
    """Choices of a MobileNet subnet whose layers have kept their numbers."""
    shapes = _Shapes(tensors, source)
    choices: dict[str, Candidate] = {}
    for layer in range(sum(layers for _, layers in _MOBILE_STAGES)):
        has_block = f"features.{layer}.conv.0.weight" in tensors
        candidate = shapes.mobile_block(f"features.{layer}")[0] if has_block else "skip"
        choices[f"layer_{layer + 1}"] = candidate
    return choices


def renumber_mobile(
    tensors: Tensors, wanted: Mapping[str, Candidate] | None, *, source: str
) -> Tensors:
    """Give the blocks of an AngleNAS subnet, which has no trace of skipped layers, their numbers.

    Which of a stage's layers are skipped does not change the function, since all but the first have
    the same shape: without ``wanted`` it is the last ones.

    Args:
        tensors: blocks numbered from 0 without gaps.
        wanted: the choices of the architecture, if they are known.
        source: begins error messages.

    Raises:
        CheckpointError: if there are more blocks in a stage than it has layers.
    """
    shapes = _Shapes(tensors, source)
    blocks = sorted({int(name.split(".")[1]) for name in tensors if name.startswith("features.")})
    used: dict[int, int] = dict.fromkeys(range(len(_MOBILE_STAGES)), 0)
    widths = [width for width, _ in _MOBILE_STAGES]
    numbers: dict[int, int] = {}
    for block in blocks:
        width = shapes.mobile_block(f"features.{block}")[1]
        stage = widths.index(width) if width in widths else -1
        if stage < 0 or used[stage] == _MOBILE_STAGES[stage][1]:
            raise CheckpointError(
                f"{source}: block {block} has {width} channels, expected stages of "
                f"{', '.join(f'{layers} x {width}' for width, layers in _MOBILE_STAGES)}"
            )
        free = _free_layers(stage, wanted)
        if used[stage] >= len(free):
            raise CheckpointError(f"{source}: has more blocks than the given architecture")
        numbers[block] = free[used[stage]]
        used[stage] += 1
    renamed = {}
    for name, tensor in tensors.items():
        top, _, rest = name.partition(".")
        if top == "features":
            number, _, rest = rest.partition(".")
            name = f"features.{numbers[int(number)]}.{rest}"
        renamed[name] = tensor
    return renamed


def _free_layers(stage: int, wanted: Mapping[str, Candidate] | None) -> list[int]:
    first = sum(layers for _, layers in _MOBILE_STAGES[:stage])
    layers = range(first, first + _MOBILE_STAGES[stage][1])
    if wanted is None:
        return list(layers)
    return [layer for layer in layers if wanted.get(f"layer_{layer + 1}") != "skip"]
