"""CanyonWind's names for weights, of both of MXNet's ways to name them, and ours for them.

Imports `spos.convert.state_dicts`, `spos.convert.zoo`, `spos.errors` and torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from spos.convert.state_dicts import (
    PROJECTION_PLACES,
    SHUFFLE_PLACES,
    STAGE_STARTS,
    XCEPTION_PLACES,
    Tensors,
)
from spos.convert.zoo import CHANNEL_SCALES
from spos.errors import CheckpointError

NAME = "CanyonWind"
# Narrower paths of its supernet are masked before BatchNorm, which brings the masked channels back:
# ours, which are sliced, compute another function of the same weights (and would need training).
SUPERNET_SCALES = (2.0,)
OPTIONS = {"layout": "canyonwind", "channel_scales": list(CHANNEL_SCALES)}

_FIRST_BLOCK = 3  # features: stem, BatchNorm, activation, then the blocks
_NUM_BLOCKS = 20
_CANDIDATES = {
    "block_sn_3x3": "k3",
    "block_sn_5x5": "k5",
    "block_sn_7x7": "k7",
    "block_sx_3x3": "xcep",
}
_VALUES = {
    "weight": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "running_mean": "running_mean",
    "running_var": "running_var",
}
# of `save_parameters`: places in the tree of blocks
_TREE = re.compile(
    r"features\.(\d{1,2})\.(?:(block_s[nx]_\dx\d)\.)?(main|proj)_branch\.(\d{1,2})\."
    r"(?:channel_attention\.([13])\.)?(\w{1,20})"
)
_TREE_END = re.compile(r"(features|output)\.(\d{1,2})\.(?:channel_attention\.([13])\.)?(\w{1,20})")
# of `export`: kinds of layers, numbered in each block
_GRAPH = re.compile(
    r"\w*?shufflenetblock(\d{1,2})_(conv|batchnorm|se)(\d{1,2})_"
    r"(?:conv_(squeeze|excitation)_)?(\w{1,20})"
)
_GRAPH_END = re.compile(
    r"\w*?(first_conv|batchnorm0|last_conv|batchnorm1|conv_fc|output_conv0|se0_conv_squeeze|"
    r"se0_conv_excitation)_(weight|bias|gamma|beta|running_mean|running_var)"
)
_GRAPH_ENDS = {
    "first_conv": "first_conv.0",
    "batchnorm0": "first_conv.1",
    "last_conv": "conv_last.0",
    "batchnorm1": "conv_last.1",
    "conv_fc": "fc.0",
    "output_conv0": "classifier.0",
    "se0_conv_squeeze": "LastSE.SE_opr.1",
    "se0_conv_excitation": "LastSE.SE_opr.3",
}
_SQUEEZE = {"1": 1, "3": 3, "squeeze": 1, "excitation": 3}

# layer, candidate, branch, kind (conv, bn, se) -> place in the file -> value -> tensor
_Branch = tuple[int, str, str, str]
_Blocks = dict[_Branch, dict[int, dict[str, Tensor]]]


def rename_canyonwind(arrays: Mapping[str, Tensor], *, source: str) -> Tensors:
    """CanyonWind's arrays by our names, of a fixed network or of the supernet.

    Raises:
        CheckpointError: if there is a name that its networks do not have.
    """
    blocks: _Blocks = {}
    tensors: Tensors = {}
    for name, array in arrays.items():
        if match := _TREE.fullmatch(name):
            _add_from_tree(blocks, match, array, source)
        elif match := _GRAPH.fullmatch(name):
            _add_from_graph(blocks, match, array, source)
        elif match := _TREE_END.fullmatch(name):
            tensors[_tree_end(match, source)] = array
        elif (match := _GRAPH_END.fullmatch(name)) and match[2] in _VALUES:
            tensors[f"{_GRAPH_ENDS[match[1]]}.{_VALUES[match[2]]}"] = array
        elif not name.endswith(("transpose_conv_weight", "transpose_conv.weight")):
            # A shuffle written as a convolution is a permutation, which our blocks do themselves.
            raise CheckpointError(f"{source}: CanyonWind has no weights named {name[:100]!r}")
    for (layer, candidate, branch, kind), places in blocks.items():
        prefix = f"features.{layer}{'.' + candidate if candidate else ''}"
        branches = _split_branches(branch, kind, len(places), layer)
        for (ours, place), number in zip(branches, sorted(places), strict=False):
            for value, tensor in places[number].items():
                tensors[f"{prefix}.branch_{ours}.{place}.{value}"] = tensor
        if len(branches) < len(places):
            raise CheckpointError(f"{source}: layer {layer + 1} has too many layers of its own")
    return _settle(tensors)


def _add_from_tree(blocks: _Blocks, match: re.Match[str], array: Tensor, source: str) -> None:
    index, candidate, branch, place, squeeze, value = match.groups()
    kind = "se" if squeeze else "bn" if value in ("gamma", "beta") or "running" in value else "conv"
    if candidate is not None and candidate not in _CANDIDATES:
        raise CheckpointError(f"{source}: unknown block {candidate!r}")
    number = _SQUEEZE[squeeze] if squeeze else int(place)
    key = (int(index) - _FIRST_BLOCK, _CANDIDATES.get(candidate or "", ""), branch, kind)
    _add(blocks, key, number, value, array, source)


def _add_from_graph(blocks: _Blocks, match: re.Match[str], array: Tensor, source: str) -> None:
    block, layer, number, squeeze, value = match.groups()
    if (layer == "se") != (squeeze is not None):
        raise CheckpointError(f"{source}: CanyonWind has no weights named {match[0][:100]!r}")
    kind = {"conv": "conv", "batchnorm": "bn", "se": "se"}[layer]
    place = _SQUEEZE[squeeze] if squeeze else int(number)
    _add(blocks, (int(block), "", "main" if squeeze else "both", kind), place, value, array, source)


def _add(blocks: _Blocks, key: _Branch, place: int, value: str, array: Tensor, source: str) -> None:
    if not 0 <= key[0] < _NUM_BLOCKS or value not in _VALUES:
        raise CheckpointError(f"{source}: CanyonWind has no {value} in block {key[0]}")
    blocks.setdefault(key, {}).setdefault(place, {})[_VALUES[value]] = array


def _split_branches(
    branch: str, kind: str, number: int, layer: int
) -> Sequence[tuple[str, str | int]]:
    """Our branch and place for each of the layers of a kind in a block, in the file's order.

    An exported network numbers the layers of both branches through, those of the main one first.
    """
    if kind == "se":
        return [("main", "SE_opr.1"), ("main", "SE_opr.3")]
    shift = 1 if kind == "bn" else 0
    projection = [("proj", place + shift) for place in PROJECTION_PLACES]
    if branch == "proj":
        return projection
    has_projection = branch == "both" and layer in STAGE_STARTS
    num_main = number - len(projection) if has_projection else number
    places = SHUFFLE_PLACES if num_main <= len(SHUFFLE_PLACES) else XCEPTION_PLACES
    main = [("main", place + shift) for place in places[:num_main]]
    return [*main, *(projection if has_projection else ())]


def _tree_end(match: re.Match[str], source: str) -> str:
    """Our name of a layer before or after the blocks, of which the last ones are settled later."""
    top, index, squeeze, value = match.groups()
    if value not in _VALUES:
        raise CheckpointError(f"{source}: CanyonWind has no weights named {match[0][:100]!r}")
    if top == "output":
        return f"classifier.0.{_VALUES[value]}"
    place = int(index) - _FIRST_BLOCK - _NUM_BLOCKS
    if place < 0:
        return f"first_conv.{index}.{_VALUES[value]}"
    if squeeze:
        return f"LastSE.SE_opr.{squeeze}.{_VALUES[value]}"
    # plain: convolution, BatchNorm; with pooling first: pooling, convolution; ShuffleNetV2+'s:
    # convolution, BatchNorm, activation, pooling, squeeze-excitation, convolution
    ours = {0: "conv_last.0", 1: "conv_last.1" if value not in ("weight", "bias") else "fc.0"}
    return f"{ours.get(place, 'fc.0')}.{_VALUES[value]}"


def _settle(tensors: Tensors) -> Tensors:
    """Names that depend on what else there is; convolutions that are linear layers of ours."""
    has_last = "conv_last.0.weight" in tensors
    settled: Tensors = {}
    for name, tensor in tensors.items():
        block, dot, rest = name.partition(".branch_main.SE_opr.")
        if dot:
            is_xception = f"{block}.branch_main.12.weight" in tensors
            name = f"{block}.branch_main.{15 if is_xception else 8}.SE_opr.{rest}"
        if name.startswith("fc.0.") and not has_last:
            name = f"conv_last.0.{name[5:]}"  # the last convolution, after the pooling
        elif name in ("fc.0.weight", "classifier.0.weight") and tensor.ndim == 4:
            tensor = tensor.flatten(1)
        settled[name] = tensor
    return settled
