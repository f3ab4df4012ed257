"""A search space's labels and candidates, one architecture of it, and the JSON both travel in.

Imports only `spos.errors` and `spos.files`; never torch, so that the search side starts at once.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from spos.errors import ArchitectureError
from spos.files import parse_json, read_bytes, write_text

Candidate = str | int
Choices = Mapping[str, Candidate]

FORMAT_VERSION = 1
MAX_ARCHITECTURE_BYTES = 2**20
MAX_SHOWN = 120  # characters of a value in a message
_KEYS = ("version", "space", "options", "choices", "metrics", "extra")


@dataclass(frozen=True)
class SearchSpec:
    """What can be chosen: the space's name and options, and label -> candidates in network order.

    Attributes:
        space: name of the search space, such as ``"shufflenetv2"``.
        options: the space's options, such as ``{"image_size": 224, "num_classes": 1000}``.
        choices: label -> its candidates, in the order in which the network applies them.
    """

    space: str
    options: Mapping[str, Any]
    choices: Mapping[str, tuple[Candidate, ...]]

    def __post_init__(self) -> None:
        frozen = {label: tuple(candidates) for label, candidates in self.choices.items()}
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))
        object.__setattr__(self, "choices", MappingProxyType(frozen))

    def check(self, choices: Any, *, source: str = "architecture") -> dict[str, Candidate]:
        """Return ``choices`` in the order of this space.

        Raises:
            ArchitectureError: if a label is missing or unknown or a candidate is not one of its
                label's; ``source`` (a file or a description) begins the message.
        """
        if not isinstance(choices, Mapping):
            raise ArchitectureError(
                f"{source}: expected label: candidate pairs, found {type(choices).__name__}"
            )
        missing = [label for label in self.choices if label not in choices]
        unknown = [label for label in choices if label not in self.choices]
        if missing or unknown:
            problems = {"missing": missing, "unknown": unknown}
            found = "; ".join(
                f"{what}: {_shorten(each)}" for what, each in problems.items() if each
            )
            raise ArchitectureError(
                f"{source}: does not fit the search space {self.space!r}, whose labels are "
                f"{_shorten(self.choices)}; {found}"
            )
        for label, candidates in self.choices.items():
            chosen = choices[label]
            if not any(chosen == each and type(chosen) is type(each) for each in candidates):
                raise ArchitectureError(
                    f"{source}: {label} is {_shorten(chosen)}, expected one of {list(candidates)}"
                )
        return {label: choices[label] for label in self.choices}

    def architecture(
        self,
        choices: Any,
        *,
        metrics: Mapping[str, float] | None = None,
        source: str = "architecture",
    ) -> Architecture:
        """The architecture with these choices, checked (see `check`)."""
        return Architecture(
            self.space, self.options, self.check(choices, source=source), metrics=metrics or {}
        )

    def check_architecture(
        self, arch: Architecture, *, source: str = "architecture"
    ) -> Architecture:
        """Return ``arch`` if it belongs to this space.

        Raises:
            ArchitectureError: if its space, a label or a candidate is another one.
        """
        if arch.space != self.space:
            raise ArchitectureError(
                f"{source}: is an architecture of the search space {_shorten(arch.space)}, "
                f"expected {self.space!r}"
            )
        self.check(arch.choices, source=source)
        return arch

    def combinations(self, labels: Iterable[str]) -> Iterator[tuple[Candidate, ...]]:
        """Every combination of these labels' candidates, the last label fastest."""
        return itertools.product(*(self.choices[label] for label in labels))

    def search_space(self) -> dict[str, dict[str, Any]]:
        """The space in NNI's search-space form, readable by NNI's own tuners as well."""
        return {
            label: {"_type": "choice", "_value": list(candidates)}
            for label, candidates in self.choices.items()
        }

    @property
    def num_architectures(self) -> int:
        """How many architectures the space holds."""
        return math.prod(map(len, self.choices.values()))


@dataclass(frozen=True, eq=False)
class Architecture:
    """One network of a search space: immutable, hashable, equal if space, options and choices are.

    Attributes:
        space: name of the search space.
        options: the space's options that the architecture was made with.
        choices: label -> chosen candidate.
        metrics: what is known of it (``top1``, ``macs``, ``params``); carried, never needed.
        extra: unknown keys of the file it came from; carried, never needed.
    """

    space: str
    options: Mapping[str, Any]
    choices: Choices
    metrics: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("options", "choices", "metrics", "extra"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def __reduce__(self) -> tuple[Any, ...]:
        """So that it can be copied and sent to a process, which a mapping proxy cannot."""
        names = ("options", "choices", "metrics", "extra")
        return Architecture, (self.space, *(dict(getattr(self, name)) for name in names))

    @cached_property
    def key(self) -> str:
        """Canonical text of what makes this architecture itself."""
        identity = [self.space, dict(self.options), dict(self.choices)]
        return json.dumps(identity, sort_keys=True, separators=(",", ":"))

    @cached_property
    def id(self) -> str:
        """Twelve hexadecimal digits that name the architecture in files and logs."""
        return hashlib.sha256(self.key.encode()).hexdigest()[:12]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Architecture) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def to_json(self) -> str:
        """The architecture file, version 1 (see the README, "Architecture files")."""
        value: dict[str, Any] = {
            "version": FORMAT_VERSION,
            "space": self.space,
            "options": dict(self.options),
            "choices": dict(self.choices),
        }
        if self.metrics:
            value["metrics"] = dict(self.metrics)
        if self.extra:
            value["extra"] = dict(self.extra)
        return json.dumps(value, indent=2, allow_nan=False) + "\n"


def save_architecture(path: Path | str, arch: Architecture) -> None:
    """Write ``arch`` to ``path`` atomically."""
    write_text(path, arch.to_json())


def load_architecture(path: Path | str, spec: SearchSpec | None = None) -> Architecture:
    """Read an architecture file.

    Besides our own format these are read when ``spec`` says which space they are of: a sample of
    NNI 3 (``{"layer_1": "k7", ...}``), the one-hot and index formats of NNI 2
    (``{"LayerChoice1": [false, true, ...], ...}``) and a plain list of candidate numbers.

    Raises:
        ArchitectureError: if the file is missing or malformed, or does not fit ``spec``.
    """
    text = read_bytes(path, error=ArchitectureError, max_bytes=MAX_ARCHITECTURE_BYTES)
    return parse_architecture(text, spec, source=str(path))


def parse_architecture(
    text: str | bytes, spec: SearchSpec | None = None, *, source: str = "architecture"
) -> Architecture:
    """The architecture in ``text`` (see `load_architecture`); ``source`` names it in errors."""
    value = parse_json(text, source=source, error=ArchitectureError)
    if isinstance(value, dict) and "version" in value:
        arch = _from_version_1(value, source)
        return spec.check_architecture(arch, source=source) if spec else arch
    if spec is None:
        raise ArchitectureError(
            f'{source}: expected "version", "space" and "choices"; a file of another system does '
            "not name its search space, so give it (--space)"
        )
    return spec.architecture(_from_other_system(value, spec, source), source=source)


def describe_differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """The options that differ, such as ``image_size is 32, expected 16``; "" if none does."""
    return "; ".join(
        f"{name} is {_shorten(found.get(name))}, expected {_shorten(expected.get(name))}"
        for name in {**expected, **found}
        if json.dumps(found.get(name), default=repr)  # a list in a file may be a tuple in code
        != json.dumps(expected.get(name), default=repr)
    )


def _from_version_1(value: dict[str, Any], source: str) -> Architecture:
    version = value["version"]
    if type(version) is not int or version != FORMAT_VERSION:
        raise ArchitectureError(
            f'{source}: "version" is {_shorten(version)}, this release reads {FORMAT_VERSION}'
        )
    space = value.get("space")
    if not isinstance(space, str) or not space:
        raise ArchitectureError(f'{source}: "space" must be the name of a search space')
    options, choices = value.get("options", {}), value.get("choices")
    metrics, extra = value.get("metrics", {}), value.get("extra", {})
    for name, part in (("options", options), ("metrics", metrics), ("extra", extra)):
        if not isinstance(part, dict):
            raise ArchitectureError(f'{source}: "{name}" must be an object')
    if not isinstance(choices, dict) or not choices:
        raise ArchitectureError(f'{source}: "choices" must be an object of label to candidate')
    for label, candidate in choices.items():
        if type(candidate) not in (str, int):
            raise ArchitectureError(
                f"{source}: {_shorten(label)} is {_shorten(candidate)}, "
                "expected a candidate's name or number"
            )
    for name, number in metrics.items():
        if type(number) not in (int, float):
            raise ArchitectureError(
                f"{source}: metric {_shorten(name)} is {_shorten(number)}, expected a number"
            )
    unknown = {key: item for key, item in value.items() if key not in _KEYS}
    return Architecture(space, options, choices, metrics, {**extra, **unknown})


def _from_other_system(value: Any, spec: SearchSpec, source: str) -> Any:
    labels = list(spec.choices)
    if isinstance(value, dict):
        if not any(isinstance(key, str) and key.startswith("LayerChoice") for key in value):
            return value  # a sample of NNI 3: label -> candidate
        expected = [f"LayerChoice{number}" for number in range(1, len(labels) + 1)]
        if sorted(value) != sorted(expected):
            raise ArchitectureError(
                f"{source}: an NNI 2 architecture of {spec.space!r} has the keys "
                f"{_shorten(expected)}, found {_shorten(sorted(value))}"
            )
        value = [value[key] for key in expected]
    if not isinstance(value, list) or len(value) != len(labels):
        found = f"a list of {len(value)}" if isinstance(value, list) else type(value).__name__
        raise ArchitectureError(
            f"{source}: expected one entry for each of the {len(labels)} labels of "
            f"{spec.space!r}, found {found}"
        )
    return {
        label: _candidate_at(entry, spec.choices[label], label, source)
        for label, entry in zip(labels, value, strict=True)
    }


def _candidate_at(
    entry: Any, candidates: tuple[Candidate, ...], label: str, source: str
) -> Candidate:
    """The candidate that a one-hot list, a number, a digit string or a list of one number names."""
    if isinstance(entry, list) and entry and all(type(flag) is bool for flag in entry):
        if len(entry) == len(candidates) and sum(entry) == 1:
            return candidates[entry.index(True)]
    else:
        number = entry[0] if isinstance(entry, list) and len(entry) == 1 else entry
        if isinstance(number, str) and number.isascii() and number.isdigit() and len(number) < 10:
            number = int(number)
        if type(number) is int and 0 <= number < len(candidates):
            return candidates[number]
    raise ArchitectureError(
        f"{source}: the entry for {label} is {_shorten(entry)}, expected the number of one of "
        f"{list(candidates)} or a one-hot list"
    )


def _shorten(value: Any) -> str:
    if isinstance(value, Mapping):
        value = list(value)
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 6:
        return f"{value[0]!r}, {value[1]!r} ... {value[-1]!r} ({len(value)})"[:MAX_SHOWN]
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."
