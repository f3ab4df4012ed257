"""MMRazor's architecture files: which candidate each of its layers chose, as YAML.

Imports `spos.errors` and PyYAML.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from spos.errors import ArchitectureError

MAX_YAML_CHARACTERS = 2**16
MAX_EVENTS = 4096

# Our candidate's name -> MMRazor's, of its two search spaces.
SHUFFLE_NAMES = {
    "k3": "shuffle_3x3",
    "k5": "shuffle_5x5",
    "k7": "shuffle_7x7",
    "xcep": "shuffle_xception",
}
MOBILE_NAMES = {
    **{f"k{k}e{e}": f"mb_k{k}e{e}" for k in (3, 5, 7) for e in (3, 6)},
    "skip": "identity",
}
SHUFFLE_STAGES = (4, 4, 8, 4)
MOBILE_STAGES = (4, 4, 4, 4, 4, 1)
MOBILE_FIRST = "mb_k3e1"  # the one candidate of the block before the searched ones

_PLACES = (
    re.compile(r"(?:architecture\.)?backbone\.layers\.(\d{1,2})\.(\d{1,2})"),
    re.compile(r"(?:architecture\.)?backbone\.layer(\d{1,2})\.(\d{1,2})"),
    re.compile(r"stage_(\d{1,2})_block_(\d{1,2})"),
)


def parse_mmrazor(text: str, *, source: str) -> list[str]:
    """The candidates of an MMRazor file in network order, by our names.

    Read are the forms of 0.x (``stage_0_block_0: {chosen: [shuffle_5x5]}``), of 1.x
    (``backbone.layers.0.0: {chosen: shuffle_5x5}``, with or without the prefix ``architecture.``)
    and of its betas (``modules: {backbone.layers.0.0: shuffle_5x5}``).

    Returns:
        20 names of `SHUFFLE_NAMES` or 21 of `MOBILE_NAMES`.

    Raises:
        ArchitectureError: if it is none of these; ``source`` begins the message.
    """
    value = _load(text, source)
    if not isinstance(value, dict):
        raise ArchitectureError(
            f"{source}: is no architecture file that is known; expected JSON, a list of numbers, "
            "or MMRazor's YAML of layers and what each has chosen"
        )
    if "modules" in value:
        if value.get("channels"):
            raise ArchitectureError(f"{source}: has channels, which MMRazor's SPOS does not search")
        value = value["modules"]
    if not isinstance(value, dict) or not value:
        raise ArchitectureError(f"{source}: expected layers and what each of them has chosen")
    chosen = {
        _place(layer, source): _chosen(layer, entry, source) for layer, entry in value.items()
    }
    if len(chosen) != len(value):
        raise ArchitectureError(f"{source}: names a layer twice")
    return _in_order(chosen, source)


def write_mmrazor(names: Sequence[str], *, variant: str) -> str:
    """The file of MMRazor for these candidates (our names); see `parse_mmrazor` for the forms.

    Args:
        names: 20 of `SHUFFLE_NAMES` or 21 of `MOBILE_NAMES`.
        variant: ``"1.x"``, ``"prefix"`` (as its 1.x search writes them) or ``"0.x"``.
    """
    mobile = len(names) == sum(MOBILE_STAGES)
    theirs = MOBILE_NAMES if mobile else SHUFFLE_NAMES
    layers = list(_layers(mobile))
    candidates = ([MOBILE_FIRST] if mobile else []) + [theirs[name] for name in names]
    value = {}
    for (stage, block), candidate in zip(layers, candidates, strict=True):
        if variant == "0.x":
            value[f"stage_{stage}_block_{block}"] = {"chosen": [candidate]}
        else:
            layer = f"layer{stage + 1}" if mobile else f"layers.{stage}"
            prefix = "architecture." if variant == "prefix" else ""
            value[f"{prefix}backbone.{layer}.{block}"] = {"chosen": candidate}
    return yaml.safe_dump(value, sort_keys=False)


def _layers(mobile: bool) -> list[tuple[int, int]]:
    """Stage and block of every layer in a 0.x file, the fixed first block included."""
    stages = (1, *MOBILE_STAGES) if mobile else SHUFFLE_STAGES
    return [(stage, block) for stage, blocks in enumerate(stages) for block in range(blocks)]


def _load(text: str, source: str) -> Any:
    """Plain values of a YAML text that is neither long nor refers to itself."""
    if len(text) > MAX_YAML_CHARACTERS:
        raise ArchitectureError(
            f"{source}: is longer than {MAX_YAML_CHARACTERS:,} characters, which no file of "
            "MMRazor's is"
        )
    try:
        for number, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
            # A few lines of nested aliases and merge keys would expand to gigabytes.
            if isinstance(event, yaml.AliasEvent) or number > MAX_EVENTS:
                raise ArchitectureError(f"{source}: has aliases or too many entries")
        return yaml.safe_load(text)
    except ArchitectureError:
        raise
    except Exception as problem:  # odd scalars fail in many ways: a date of month 13, "0b", ...
        reason = " ".join(str(problem).split())[:200]
        raise ArchitectureError(
            f"{source}: is neither JSON nor a list of numbers nor YAML "
            f"({type(problem).__name__}: {reason})"
        ) from None


def _place(layer: Any, source: str) -> tuple[int, int]:
    """Stage and block of a layer's name; the form with ``layer1`` counts stages from 1."""
    for number, pattern in enumerate(_PLACES):
        if isinstance(layer, str) and (match := pattern.fullmatch(layer)):
            return int(match[1]) - (number == 1), int(match[2])
    raise ArchitectureError(
        f"{source}: unknown layer {_shorten(layer)}, expected names like backbone.layers.0.0, "
        "backbone.layer1.0 or stage_0_block_0"
    )


def _chosen(layer: str, entry: Any, source: str) -> str:
    if isinstance(entry, Mapping) and set(entry) == {"chosen"}:
        entry = entry["chosen"]
    if isinstance(entry, list) and len(entry) == 1:
        entry = entry[0]
    if isinstance(entry, str):
        return entry.replace("mbv2_", "mb_")  # as some of its releases spell it
    raise ArchitectureError(
        f"{source}: {layer} has chosen {_shorten(entry)}, expected the name of one candidate"
    )


def _in_order(chosen: Mapping[tuple[int, int], str], source: str) -> list[str]:
    mobile = next(iter(chosen.values())) not in SHUFFLE_NAMES.values()
    expected = _layers(mobile)
    if mobile and chosen.get((0, 0), MOBILE_FIRST) != MOBILE_FIRST:
        raise ArchitectureError(
            f"{source}: its first block is {_shorten(chosen[0, 0])}, expected {MOBILE_FIRST}"
        )
    if mobile:
        expected = expected[1:]
    found = [place for place in chosen if not (mobile and place == (0, 0))]
    if sorted(found) != expected:
        raise ArchitectureError(
            f"{source}: has {len(found)} layers, expected the {len(expected)} of MMRazor's "
            f"{'MobileNet' if mobile else 'ShuffleNet'} search space, stage by stage"
        )
    ours = {their: our for our, their in (MOBILE_NAMES if mobile else SHUFFLE_NAMES).items()}
    for place in expected:
        if chosen[place] not in ours:
            raise ArchitectureError(
                f"{source}: stage {place[0]}, block {place[1]} has chosen "
                f"{_shorten(chosen[place])}, expected one of {', '.join(ours)}"
            )
    return [ours[chosen[place]] for place in expected]


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
