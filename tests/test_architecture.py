"""Architectures are values, their format is stable, no file gets past `ArchitectureError`."""

import json
import os
import random
import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spos.architecture import (
    MAX_ARCHITECTURE_BYTES,
    Architecture,
    SearchSpec,
    load_architecture,
    parse_architecture,
    save_architecture,
)
from spos.errors import ArchitectureError

EXAMPLES = int(os.environ.get("SPOS_EXAMPLES", "500"))

BLOCKS = ("k3", "k5", "k7", "xcep")
SPEC = SearchSpec(
    "shufflenetv2",
    {"image_size": 224, "num_classes": 1000},
    {f"layer_{number}": BLOCKS for number in range(1, 21)},
)
# Operators and widths in turn, as in channel search: candidates are text or numbers.
MIXED = SearchSpec(
    "wide", {}, {"layer_1": ("k3", "k5"), "channel_1": (16, 24, 32), "layer_2": ("k3",)}
)

# Byte for byte what release 0.1.0 writes. It is read for ever: never edit it to mend a test.
GOLDEN = """\
{
  "version": 1,
  "space": "wide",
  "options": {
    "image_size": 32,
    "strides": [
      1,
      2
    ]
  },
  "choices": {
    "layer_1": "k5",
    "channel_1": 24,
    "layer_2": "k3"
  },
  "metrics": {
    "top1": 0.7413,
    "macs": 322918720
  },
  "extra": {
    "author": "Zo\\u00eb",
    "from": {
      "run": null
    }
  }
}
"""
GOLDEN_ARCH = Architecture(
    "wide",
    {"image_size": 32, "strides": [1, 2]},
    {"layer_1": "k5", "channel_1": 24, "layer_2": "k3"},
    {"top1": 0.7413, "macs": 322918720},
    {"author": "Zoë", "from": {"run": None}},
)
GOLDEN_ID = "6e74c2b1ddd2"


def random_choices(spec: SearchSpec, seed: int) -> dict:
    draw = random.Random(seed)
    return {label: draw.choice(candidates) for label, candidates in spec.choices.items()}


# --- the value -------------------------------------------------------------------------------


def test_equality_ignores_order_and_what_is_carried():
    choices = random_choices(SPEC, 0)
    arch = Architecture("s", {"a": 1, "b": 2}, choices)
    backwards = dict(reversed(choices.items()))
    same = Architecture("s", {"b": 2, "a": 1}, backwards, {"top1": 0.5}, {"note": "x"})
    assert arch == same
    assert hash(arch) == hash(same)
    assert arch.id == same.id
    assert len({arch, same}) == 1


@pytest.mark.parametrize(
    "other",
    [
        Architecture("t", {"a": 1}, {"layer_1": 1}),
        Architecture("s", {"a": 2}, {"layer_1": 1}),
        Architecture("s", {"a": True}, {"layer_1": 1}),
        Architecture("s", {}, {"layer_1": 1}),
        Architecture("s", {"a": 1}, {"layer_1": 2}),
        Architecture("s", {"a": 1}, {"layer_1": "1"}),
        Architecture("s", {"a": 1}, {"layer_2": 1}),
        {"layer_1": 1},
    ],
    ids=repr,
)
def test_equality_tells_others_apart(other):
    arch = Architecture("s", {"a": 1}, {"layer_1": 1})
    assert arch != other
    assert arch.id != getattr(other, "id", None)


def test_architecture_is_immutable():
    choices = {"layer_1": "k3"}
    arch = Architecture("s", {}, choices)
    choices["layer_1"] = "k5"
    assert arch.choices["layer_1"] == "k3"
    with pytest.raises(TypeError):
        arch.choices["layer_1"] = "k5"  # type: ignore[index]
    with pytest.raises(FrozenInstanceError):
        arch.space = "t"  # type: ignore[misc]


def test_id_is_the_same_in_every_process_and_release():
    program = (
        "from spos.architecture import parse_architecture; import sys;"
        "print(parse_architecture(sys.argv[1]).id)"
    )
    for seed in ("1", "2"):
        command = [sys.executable, "-c", program, GOLDEN]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        assert subprocess.check_output(command, env=environment, text=True).strip() == GOLDEN_ID


def test_num_architectures():
    assert SPEC.num_architectures == 4**20
    assert MIXED.num_architectures == 6


def test_search_space_is_in_the_form_of_nni():
    assert MIXED.search_space() == {
        "layer_1": {"_type": "choice", "_value": ["k3", "k5"]},
        "channel_1": {"_type": "choice", "_value": [16, 24, 32]},
        "layer_2": {"_type": "choice", "_value": ["k3"]},
    }


def test_check_returns_the_order_of_the_space():
    choices = random_choices(SPEC, 1)
    checked = SPEC.check(dict(reversed(choices.items())))
    assert list(checked) == list(SPEC.choices)
    assert checked == choices


def test_spec_makes_architectures_of_itself():
    arch = SPEC.architecture(random_choices(SPEC, 2), metrics={"top1": 0.5})
    assert (arch.space, arch.options, arch.metrics) == (SPEC.space, SPEC.options, {"top1": 0.5})
    assert SPEC.check_architecture(arch) is arch


# --- our file --------------------------------------------------------------------------------


def test_file_of_version_1_is_byte_identical(tmp_path):
    path = tmp_path / "arch.json"
    save_architecture(path, GOLDEN_ARCH)
    assert path.read_text() == GOLDEN


def test_file_of_version_1_is_read():
    arch = parse_architecture(GOLDEN, MIXED)
    assert arch == GOLDEN_ARCH
    assert arch.id == GOLDEN_ID
    assert (arch.metrics, arch.extra) == (GOLDEN_ARCH.metrics, GOLDEN_ARCH.extra)
    assert arch.to_json() == GOLDEN


def test_shortest_file_is_read():
    arch = parse_architecture('{"version": 1, "space": "s", "choices": {"layer_1": 0}}')
    assert arch == Architecture("s", {}, {"layer_1": 0})
    assert set(json.loads(arch.to_json())) == {"version", "space", "options", "choices"}


def test_unknown_keys_are_carried():
    text = '{"version": 1, "space": "s", "choices": {"a": 1}, "extra": {"x": 1}, "paper": [2]}'
    arch = parse_architecture(text)
    assert arch.extra == {"x": 1, "paper": [2]}
    assert parse_architecture(arch.to_json()).extra == arch.extra


@pytest.mark.parametrize("spec", [SPEC, MIXED], ids=["shufflenetv2", "mixed"])
def test_thousand_architectures_round_trip(spec):
    for seed in range(1000):
        arch = spec.architecture(random_choices(spec, seed), metrics={"top1": seed / 1000})
        again = parse_architecture(arch.to_json(), spec)
        assert again == arch
        assert again.metrics == arch.metrics
        assert list(again.choices) == list(spec.choices)


def test_save_and_load_through_a_file(tmp_path):
    path = tmp_path / "arch.json"
    arch = SPEC.architecture(random_choices(SPEC, 3))
    save_architecture(path, arch)
    assert load_architecture(path) == load_architecture(str(path), SPEC) == arch


# --- files of other systems ------------------------------------------------------------------


def one_hot(spec: SearchSpec, choices: dict) -> dict:
    return {
        f"LayerChoice{number}": [candidate == choices[label] for candidate in candidates]
        for number, (label, candidates) in enumerate(spec.choices.items(), start=1)
    }


def numbers(spec: SearchSpec, choices: dict) -> list:
    return [candidates.index(choices[label]) for label, candidates in spec.choices.items()]


def numbered_keys(entries: list) -> dict:
    return {f"LayerChoice{number}": entry for number, entry in enumerate(entries, start=1)}


FOREIGN = {
    "NNI 3": lambda spec, choices: dict(reversed(choices.items())),
    "NNI 2 one-hot": one_hot,
    "NNI 2 one-hot in any order": lambda *given: dict(reversed(one_hot(*given).items())),
    "NNI 2 index": lambda *given: numbered_keys(numbers(*given)),
    "NNI 2 index in a list": lambda *given: numbered_keys([[each] for each in numbers(*given)]),
    "ids": numbers,
    "ids as text": lambda *given: [str(each) for each in numbers(*given)],
}


@pytest.mark.parametrize("spec", [SPEC, MIXED], ids=["shufflenetv2", "mixed"])
@pytest.mark.parametrize("write", FOREIGN.values(), ids=FOREIGN.keys())
def test_foreign_formats_are_read(write, spec):
    for seed in range(100):
        choices = random_choices(spec, seed)
        arch = parse_architecture(json.dumps(write(spec, choices)), spec)
        assert arch == Architecture(spec.space, spec.options, choices)
        assert list(arch.choices) == list(spec.choices)


def test_foreign_format_needs_a_space():
    with pytest.raises(ArchitectureError, match="does not name its search space, so give it"):
        parse_architecture('{"layer_1": "k3"}')


# --- what is refused, and how it is said -------------------------------------------------------


def version_1(**changes: object) -> str:
    value = {"version": 1, "space": "wide", "options": {}, "choices": dict(GOLDEN_ARCH.choices)}
    return json.dumps({**value, **changes})


def choices_with(**changes: object) -> str:
    return version_1(choices={**GOLDEN_ARCH.choices, **changes})


# what is wrong -> (file, parts of the message besides the file's name)
REFUSED = {
    "version of the future": (version_1(version=2), ['"version" is 2', "reads 1"]),
    "version True": (version_1(version=True), ['"version" is True']),
    "version 1.0": (version_1(version=1.0), ['"version" is 1.0']),
    "no space": (version_1(space=None), ['"space"', "name of a search space"]),
    "empty space": (version_1(space=""), ['"space"']),
    "other space": (version_1(space="mobile"), ["'mobile'", "expected 'wide'"]),
    "options a list": (version_1(options=[]), ['"options" must be an object']),
    "extra a number": (version_1(extra=1), ['"extra" must be an object']),
    "choices a list": (version_1(choices=["k3"]), ['"choices" must be an object']),
    "no choices": (version_1(choices={}), ['"choices" must be an object']),
    "missing label": (version_1(choices={"layer_1": "k3"}), ["missing", "channel_1", "layer_2"]),
    "unknown label": (choices_with(layer_9="k3"), ["unknown: ['layer_9']", "'channel_1'"]),
    "unknown candidate": (choices_with(layer_1="k9"), ["layer_1 is 'k9'", "['k3', 'k5']"]),
    "unknown width": (choices_with(channel_1=17), ["channel_1 is 17", "[16, 24, 32]"]),
    "width as text": (choices_with(channel_1="16"), ["channel_1 is '16'", "[16, 24, 32]"]),
    "width as float": (choices_with(channel_1=16.0), ["'channel_1' is 16.0", "number"]),
    "candidate True": (choices_with(layer_1=True), ["'layer_1' is True", "name or number"]),
    "candidate null": (choices_with(layer_1=None), ["'layer_1' is None"]),
    "candidate a list": (choices_with(layer_1=["k3"]), ["'layer_1' is ['k3']"]),
    "metric as text": (version_1(metrics={"top1": "0.7"}), ["metric 'top1' is '0.7'", "number"]),
    "metric True": (version_1(metrics={"top1": True}), ["metric 'top1' is True"]),
    "metric NaN": ('{"version": 1, "metrics": {"top1": NaN}}', ["not valid JSON", "NaN"]),
    "metric infinite": ('{"version": 1, "metrics": {"top1": 1e999}}', ["not valid JSON", "1e999"]),
    "repeated label": ('{"layer_1": "k3", "layer_1": "k5"}', ["'layer_1' is given twice"]),
    "half a file": (GOLDEN[:200], ["not valid JSON"]),
    "empty file": ("", ["not valid JSON"]),
    "a number": ("1", ["one entry for each of the 3 labels", "found int"]),
    "null": ("null", ["found NoneType"]),
    "text": ('"k3"', ["found str"]),
    "empty object": ("{}", ["missing", "'layer_1'"]),
    "NNI 3 with candidate 0": ('{"layer_1": 0, "channel_1": 16, "layer_2": "k3"}', ["layer_1"]),
    "NNI 3 with width as float": (
        '{"layer_1": "k3", "channel_1": 16.0, "layer_2": "k3"}',
        ["channel_1 is 16.0", "[16, 24, 32]"],
    ),
    "too few ids": ("[0, 0]", ["3 labels", "found a list of 2"]),
    "too many ids": ("[0, 0, 0, 0]", ["found a list of 4"]),
    "id out of range": ("[2, 0, 0]", ["entry for layer_1 is 2", "['k3', 'k5']"]),
    "id negative": ("[-1, 0, 0]", ["entry for layer_1 is -1"]),
    "id True": ("[true, 0, 0]", ["entry for layer_1 is True"]),
    "id as float": ("[0, 1.0, 0]", ["entry for channel_1 is 1.0"]),
    "id in other digits": ('["\u0661", 0, 0]', ["entry for layer_1"]),
    "id of many digits": ('["' + "0" * 5000 + '", 0, 0]', ["entry for layer_1"]),
    "ids nested": ("[[[0]], 0, 0]", ["entry for layer_1 is [[0]]"]),
    "no one hot": ("[[false, false], 0, 0]", ["entry for layer_1", "one-hot list"]),
    "two hot": ("[[true, true], 0, 0]", ["entry for layer_1"]),
    "one-hot too long": ("[[true, false, false], 0, 0]", ["entry for layer_1"]),
    "one-hot of numbers": ("[[1, 0], 0, 0]", ["entry for layer_1"]),
    "NNI 2, keys missing": ('{"LayerChoice1": 0}', ["'LayerChoice3'", "found ['LayerChoice1']"]),
    "NNI 2, keys mixed": (
        '{"LayerChoice1": 0, "LayerChoice2": 0, "layer_2": "k3"}',
        ["LayerChoice3", "layer_2"],
    ),
}


@pytest.mark.parametrize(("text", "parts"), REFUSED.values(), ids=REFUSED.keys())
def test_refusal_names_file_label_and_expectation(tmp_path, text, parts):
    path = tmp_path / "odd.json"
    path.write_text(text)
    with pytest.raises(ArchitectureError) as caught:
        load_architecture(path, MIXED)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert [part for part in parts if part not in message] == []
    assert len(message) < 600 + len(str(path))


def test_missing_file_is_our_error(tmp_path):
    with pytest.raises(ArchitectureError, match=r"odd\.json: cannot be read"):
        load_architecture(tmp_path / "odd.json")


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 2**20,
        b'{"a":' * 2**17,
        b" " * (MAX_ARCHITECTURE_BYTES + 1),
        b'{"version": 1, "space": "' + b"x" * 2**21 + b'"}',
        version_1(space="x" * 900_000).encode(),
        version_1(choices={"x" * 900_000: True}).encode(),
        version_1(version="x" * 900_000).encode(),
        json.dumps(["x" * 900_000] * 1).encode(),
        json.dumps({"x" * 900_000: "k3"}).encode(),
    ],
    ids=lambda data: repr(data[:30]),
)
def test_huge_file_gets_a_short_refusal(tmp_path, data):
    path = tmp_path / "odd.json"
    path.write_bytes(data)
    with pytest.raises(ArchitectureError) as caught:
        load_architecture(path, MIXED)
    assert len(str(caught.value)) < 600 + len(str(path))


def test_deep_file_that_is_read_can_be_written():
    # Between the depth that Python parses and the one that it writes lay a RecursionError.
    read = []
    for depth in (90, 500, 960, 1200, 5000):
        text = version_1(options={"deep": 0}).replace("0", "[" * depth + "]" * depth)
        try:
            arch = parse_architecture(text, MIXED)
        except ArchitectureError:
            continue
        read.append(depth)
        assert parse_architecture(arch.to_json()) == arch
        assert repr(arch.options)
    assert 90 in read


# --- any bytes -------------------------------------------------------------------------------

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 40)
    | st.integers()
    | st.floats()
    | st.sampled_from(["k3", "k5", "16", "", "NaN", "wide", "\ud800", "x" * 300])
)
LABELS = st.sampled_from(
    ["version", "space", "options", "choices", "metrics", "extra"]
    + ["layer_1", "channel_1", "layer_2", "LayerChoice1", "LayerChoice2", "LayerChoice3", ""]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(LABELS, inner, max_size=4),
    max_leaves=8,
)
VALID = st.sampled_from(
    [GOLDEN.encode(), version_1().encode(), b"[0, 2, 0]", b'["0", [1], 0]']
    + [json.dumps(one_hot(MIXED, dict(GOLDEN_ARCH.choices))).encode()]
    + [json.dumps(dict(GOLDEN_ARCH.choices)).encode()]
)


@st.composite
def near_valid(draw: st.DrawFn) -> bytes:
    """A valid file with some of its parts exchanged for anything."""
    value = json.loads(draw(VALID))
    for _ in range(draw(st.integers(1, 3))):
        place = value
        while isinstance(place, (dict, list)) and place:
            keys = list(place) if isinstance(place, dict) else range(len(place))
            key = draw(st.sampled_from(keys))
            if not isinstance(place[key], (dict, list)) or draw(st.booleans()):
                place[key] = draw(VALUES)
                break
            place = place[key]
    return json.dumps(value).encode("utf-8", "surrogatepass")


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid file with some of its bytes exchanged, doubled or left out."""
    data = bytearray(draw(VALID))
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, len(data)))
        end = draw(st.integers(begin, min(begin + 8, len(data))))
        change = st.binary(max_size=4) | st.just(bytes(data[begin:end]) * 2)
        data[begin:end] = draw(
            change | st.sampled_from([b"1e999", b"NaN", b"true", b"\xef\xbb\xbf"])
        )
    return bytes(data)


@st.composite
def nested(draw: st.DrawFn) -> bytes:
    """A valid file with a number in it replaced by deep nesting or by endless digits."""
    depth = draw(st.sampled_from([1, 95, 105, 400, 985, 1500, 9990, 50_000]))
    begin, end = draw(
        st.sampled_from([(b"[", b"]"), (b'{"a":', b"}"), (b"9", b""), (b"[[],", b"]")])
    )
    closing = end * (depth if draw(st.booleans()) else depth - 1)
    return draw(VALID).replace(b"0", begin * depth + b"0" + closing, 1)


ANY_BYTES = st.one_of(
    near_valid(), mutated(), nested(), VALUES.map(json.dumps), st.binary(), st.text()
)


@settings(max_examples=EXAMPLES, deadline=None)
@given(ANY_BYTES, st.sampled_from([None, SPEC, MIXED]))
def test_any_bytes_give_an_architecture_or_our_error(data, spec):
    try:
        arch = parse_architecture(data, spec, source="fuzz")
    except ArchitectureError as error:
        assert str(error).startswith("fuzz: ")
        return
    again = parse_architecture(arch.to_json(), spec)
    assert again == arch
    assert hash(again) == hash(arch)
    if spec is not None:
        assert spec.check(arch.choices) == dict(arch.choices)
