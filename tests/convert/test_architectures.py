"""Architectures of every system are read and written, and nothing gets past `SposError`."""

import json
import os
import random

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from spos.__main__ import main
from spos.architecture import SearchSpec, save_architecture
from spos.convert.architecture_writers import ARCHITECTURE_FORMATS, write_architecture
from spos.convert.architectures import (
    default_spec,
    read_architecture,
    recognize,
    recognize_text,
)
from spos.convert.mmrazor_yaml import MAX_YAML_CHARACTERS
from spos.convert.zoo import ANGLENAS_NAMES, CHANNEL_SCALES, ZOO, zoo_architecture
from spos.errors import ArchitectureError, SposError

EXAMPLES = int(os.environ.get("SPOS_EXAMPLES", "300"))
NUM_RANDOM = EXAMPLES // 3  # of each format and space; a thousand with SPOS_EXAMPLES=3000

PLAIN = default_spec("shufflenetv2")
WIDE = default_spec("shufflenetv2", channel_scales=list(CHANNEL_SCALES))
CLASSIC = default_spec("shufflenetv2", layout="classic", classifier_bias=True, dropout=0.0)
SHALLOW = default_spec("shufflenetv2", stage_depths=[4, 8, 4, 4])
MOBILE = default_spec("proxyless_gpu")
RAZOR_MOBILE = default_spec("proxyless_gpu", skips="mmrazor")
MACRO = default_spec("nasbench_macro")

RELEASED = [int(digit) for digit in ZOO["megvii"].blocks]
RAZOR = [int(digit) for digit in ZOO["mmrazor"].blocks]
SERIES = [int(digit) for digit in ZOO["megvii-oneshot"].blocks]
SCALES = [int(digit) for digit in ZOO["megvii-oneshot"].scales]
ANGLENAS = [2, 2, -1, 0, 0, -1, -1, 0, 5, -1, 4, 4, 0, 0, 4, 2, 3, 4, 4, 4, 3]
RAZOR_NAMES = ("shuffle_3x3", "shuffle_5x5", "shuffle_7x7", "shuffle_xception")


def random_architecture(spec: SearchSpec, seed: int):
    draw = random.Random(seed)
    return spec.architecture({k: draw.choice(v) for k, v in spec.choices.items()})


# --- what each system's files look like, written here from their description ---------------------


def razor_yaml(prefix: str = "") -> str:
    places = [(s, b) for s, depth in enumerate((4, 4, 8, 4)) for b in range(depth)]
    return "".join(
        f"{prefix}backbone.layers.{stage}.{block}:\n  chosen: {RAZOR_NAMES[number]}\n"
        for (stage, block), number in zip(places, RAZOR, strict=True)
    )


def razor_0x_yaml() -> str:
    places = [(s, b) for s, depth in enumerate((4, 4, 8, 4)) for b in range(depth)]
    return "".join(
        f"stage_{stage}_block_{block}:\n  chosen:\n  - {RAZOR_NAMES[number]}\n"
        for (stage, block), number in zip(places, RAZOR, strict=True)
    )


def razor_beta_yaml() -> str:
    lines = razor_yaml().replace(":\n  chosen:", ":").splitlines()
    return "modules:\n" + "".join(f"  {line}\n" for line in lines) + "channels:\n"


def razor_mobile_yaml(prefix: str = "mb") -> str:
    text = f"stage_0_block_0:\n  chosen:\n  - {prefix}_k3e1\n"
    for layer, number in enumerate(ANGLENAS):
        name = "identity" if number < 0 else f"{prefix}_{ANGLENAS_NAMES[number]}"
        text += f"stage_{layer // 4 + 1}_block_{layer % 4}:\n  chosen:\n  - {name}\n"
    return text


def by_numbers(spec: SearchSpec, numbers: list[int]):
    pairs = zip(spec.choices.items(), numbers, strict=True)
    return spec.architecture({label: values[number] for (label, values), number in pairs})


released = by_numbers(PLAIN, RELEASED)
one_hot = {f"LayerChoice{n}": [each == i for i in range(4)] for n, each in enumerate(RELEASED, 1)}
lists = f"{SERIES}\n{SCALES}"

# what it is -> (text, what it is found to be, the architecture)
FILES = {
    "ours": (released.to_json(), "spos", released),
    "NNI 3": (json.dumps(dict(released.choices)), "NNI 3", released),
    "NNI 2 one-hot": (json.dumps(one_hot), "NNI 2", released),
    "NNI 2 index": (
        json.dumps({f"LayerChoice{n}": str(each) for n, each in enumerate(RELEASED, 1)}),
        "NNI 2", released,
    ),
    "list": (json.dumps(RELEASED), "list", released),
    "list of text": (json.dumps([str(each) for each in RELEASED]), "list", released),
    "tuple": (repr(tuple(RELEASED)), "list", released),
    "tuple over lines": (repr(tuple(RELEASED)).replace(", ", ",\n") + "\n", "list", released),
    "numbers": (" ".join(map(str, RELEASED)), "list", released),
    "numbers with commas": (", ".join(map(str, RELEASED)) + ",\n", "list", released),
    "blocks and channels": (
        f"({tuple(SERIES)}, {tuple(SCALES)})", "blocks and channels",
        zoo_architecture("megvii-oneshot"),
    ),
    "two lists": (lists, "blocks and channels", zoo_architecture("megvii-oneshot")),
    "CanyonWind's flags": (
        lists.replace("[", "").replace("]", ""), "blocks and channels",
        zoo_architecture("canyonwind-oneshot"),
    ),
    "MMRazor 1.x": (razor_yaml(), "MMRazor", zoo_architecture("mmrazor")),
    "MMRazor 1.x search": (razor_yaml("architecture."), "MMRazor", zoo_architecture("mmrazor")),
    "MMRazor 0.x": (razor_0x_yaml(), "MMRazor", zoo_architecture("mmrazor")),
    "MMRazor beta": (razor_beta_yaml(), "MMRazor", zoo_architecture("mmrazor")),
    "MMRazor as JSON": (
        json.dumps(yaml.safe_load(razor_yaml())), "MMRazor", zoo_architecture("mmrazor")
    ),
    "MMRazor's MobileNet": (razor_mobile_yaml(), "MMRazor", zoo_architecture("anglenas-spos")),
    "MMRazor's MobileNetV2": (
        razor_mobile_yaml("mbv2"), "MMRazor", zoo_architecture("anglenas-spos")
    ),
    "AngleNAS": ("2 2 -1 0 / 0 -1 -1 0 / 5 -1 4 4 / 0 0 4 2 / 3 4 4 4 / 3", "AngleNAS",
                 zoo_architecture("anglenas-spos")),
    "AngleNAS as a list": (repr(ANGLENAS), "AngleNAS", zoo_architecture("anglenas-spos")),
    "NAS-Bench-Macro": ("02110212", "NAS-Bench-Macro",
                        by_numbers(MACRO, [0, 2, 1, 1, 0, 2, 1, 2])),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_file_is_recognized(tmp_path, name):
    text, kind, arch = FILES[name]
    path = tmp_path / "arch"
    path.write_text(text)
    found = recognize(path)
    assert found.format == kind
    assert found.arch.space == arch.space
    assert dict(found.arch.choices) == dict(arch.choices)


def test_search_space_is_that_of_the_system():
    assert recognize_text(razor_yaml()).arch == zoo_architecture("mmrazor")
    assert recognize_text(razor_mobile_yaml()).arch.options["skips"] == "mmrazor"
    assert recognize_text(repr(ANGLENAS)).arch == zoo_architecture("anglenas-spos")
    assert recognize_text(lists).arch.options["channel_scales"] == list(CHANNEL_SCALES)


def test_channel_scales_are_those_of_the_space():
    # 3 is the scale 0.8 wherever the space begins: its number in the reference systems' list.
    spec = default_spec("shufflenetv2", channel_scales=[0.8, 1.0, 1.2, 1.4, 1.6])
    arch = recognize_text(f"{SERIES}\n{[3] * 20}", spec).arch
    assert (arch.choices["channel_1"], arch.choices["channel_20"]) == (25, 256)
    with pytest.raises(
        ArchitectureError, match=r"channel_5 has the channel scale 2, .* 0\.8, 1\.0"
    ):
        recognize_text(f"{SERIES}\n{SCALES}", spec)


# format -> spaces that it can say
WRITABLE = {
    "spos": [PLAIN, WIDE, CLASSIC, MOBILE, RAZOR_MOBILE, MACRO],
    "nni3": [PLAIN, WIDE, MOBILE, MACRO],
    "nni2": [PLAIN, MOBILE, MACRO],
    "nni2-index": [PLAIN, MACRO],
    "ids": [PLAIN, WIDE, MACRO],
    "tuple": [PLAIN, WIDE, MACRO],
    "canyonwind": [WIDE],
    "anglenas": [MOBILE],
    "macro": [MACRO],
    "mmrazor": [CLASSIC, RAZOR_MOBILE],
    "mmrazor-prefix": [CLASSIC, RAZOR_MOBILE],
    "mmrazor-0.x": [CLASSIC, RAZOR_MOBILE],
}
assert WRITABLE.keys() == ARCHITECTURE_FORMATS.keys()


@pytest.mark.parametrize(
    ("format", "spec"), [(format, spec) for format, specs in WRITABLE.items() for spec in specs]
)
def test_what_is_written_is_read_again(format, spec):
    for seed in range(NUM_RANDOM):
        arch = random_architecture(spec, seed)
        text = write_architecture(arch, format)
        assert recognize_text(text, spec).arch == arch
        assert recognize_text(text).arch == arch  # the space is seen from the file


@pytest.mark.parametrize(
    ("format", "expected"),
    [
        ("mmrazor", razor_yaml()),
        ("mmrazor-prefix", razor_yaml("architecture.")),
        ("mmrazor-0.x", razor_0x_yaml()),
    ],
)
def test_yaml_is_byte_for_byte_that_of_mmrazor(format, expected):
    assert write_architecture(zoo_architecture("mmrazor"), format) == expected


def test_forms_of_other_formats():
    assert write_architecture(released, "tuple") == f"{tuple(RELEASED)}\n"
    assert json.loads(write_architecture(released, "nni2")) == one_hot
    assert json.loads(write_architecture(released, "nni2-index"))["LayerChoice1"] == "2"
    wide = recognize_text(lists).arch
    assert write_architecture(wide, "canyonwind") == lists.replace("[", "").replace("]", "") + "\n"
    angle = recognize_text(repr(ANGLENAS)).arch
    assert write_architecture(angle, "anglenas") == " ".join(map(str, ANGLENAS)) + "\n"


@pytest.mark.parametrize(
    ("format", "spec", "reason"),
    [
        ("nni2", WIDE, "NNI 2 does not search widths"),
        ("mmrazor", WIDE, "MMRazor does not search widths"),
        ("mmrazor", MACRO, "MMRazor has no search space like 'nasbench_macro'"),
        ("mmrazor", SHALLOW, r"has stages of \(4, 4, 8, 4\) blocks, this one of \(4, 8, 4, 4\)"),
        ("canyonwind", PLAIN, "no searched widths"),
        ("anglenas", PLAIN, "ids are of 'proxyless_gpu'"),
        ("macro", PLAIN, "not of 'shufflenetv2'"),
    ],
)
def test_format_that_cannot_say_it_is_refused(format, spec, reason):
    with pytest.raises(ArchitectureError, match=reason):
        write_architecture(random_architecture(spec, 0), format)


# --- what is refused -------------------------------------------------------------------------

LAUGHS = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [*{before}, *{before}, *{before}]}}\n"
    for before, name in zip("abcdefghijklmnopqrst", "bcdefghijklmnopqrstu", strict=True)
)

# what is wrong -> (text, part of the message)
REFUSED = {
    "empty": ("", "is empty"),
    "blank": (" \n\t", "is empty"),
    "bytes": (b"\xff\xfe\x00", "is not text"),
    "too many numbers": ("0 " * 22, r"22 layers .*--space"),
    "no layers": ("[]", "0 layers"),
    "number out of range": ("[" + "4," * 19 + "4]", "entry for layer_1 is 4"),
    "negative number": ("-1 " * 20, "layer_1 is -1"),
    "huge number": ("9" * 30 + " 1", "where the number of a candidate should be"),
    "sign without number": ("0 - 0", "where the number of a candidate"),
    "AngleNAS out of range": (repr([6, *ANGLENAS[1:]]), "layer 1 is 6"),
    "AngleNAS skips a first layer": (repr([-1, *ANGLENAS[1:]]), "layer_1 is 'skip'"),
    "digit out of range": ("02130212", "layer_4 is 3"),
    "scale out of range": (f"{SERIES}\n{[10] * 20}", "channel_1 has the channel scale 10"),
    "scale negative": (f"{SERIES}\n{[-1] * 20}", "channel_1 has the channel scale -1"),
    "block out of range": (f"{[4] * 20}\n{SCALES}", "layer_1 is 4, expected 0 to 3"),
    "lists too short": (f"{SERIES[:5]}\n{SCALES[:5]}", "5 layers"),
    "brackets left open": ("((1,2),(3", "not valid JSON"),
    "NNI 2 with a missing layer": (json.dumps({"LayerChoice1": 0}), "--space"),
    "NNI 3 with an unknown block": (
        json.dumps({**released.choices, "layer_3": "k9"}), "layer_3 is 'k9'"
    ),
    "NNI 3 with an unknown width": (
        json.dumps({**zoo_architecture("megvii-oneshot").choices, "channel_3": 26}),
        "channel_3 is 26",
    ),
    "YAML of numbers": ("1: 2\n", "unknown layer 1"),
    "YAML of another kind": ("tuner:\n  name: x\n", "unknown layer 'tuner'"),
    "YAML list": ("- a\n- b\n", "no architecture file"),
    "YAML date of month 13": ("a: 2020-13-45\n", r"neither JSON .*ValueError"),
    "YAML binary": ("a: !!binary 'x'\n", "neither JSON"),
    "YAML tag": ("a: !!python/name:os.system\n", "neither JSON"),
    "YAML deep": ("[a" * 5000, "."),
    "YAML deep mapping": ("".join(" " * n + "a:\n" for n in range(250)), "."),
    "YAML laughs": (LAUGHS, "has aliases"),
    "YAML long": ("a: b\n" * MAX_YAML_CHARACTERS, "longer than"),
    "MMRazor lacks a layer": (razor_yaml().split("\n", 2)[2], "has 19 layers, expected the 20"),
    "MMRazor unknown block": (
        razor_yaml().replace("shuffle_5x5", "shuffle_9x9", 1), "'shuffle_9x9', expected one of"
    ),
    "MMRazor unknown layer": (
        razor_yaml().replace("layers.0.0", "layers.4.0"), "has 20 layers, expected"
    ),
    "MMRazor layer twice": (razor_yaml() + "stage_0_block_0: {chosen: x}\n", "names a layer twice"),
    "MMRazor two chosen": (
        razor_yaml().replace("chosen: shuffle_7x7", "chosen: [a, b]", 1), "has chosen"
    ),
    "MMRazor chose a number": (razor_yaml().replace("shuffle_7x7", "7", 1), "has chosen 7"),
    "MMRazor channels": (razor_beta_yaml() + "  x: 1\n", "has channels"),
    "MobileNet's first block": (
        razor_mobile_yaml().replace("mb_k3e1", "mb_k5e1"), "expected mb_k3e1"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusal_says_what_is_wrong(tmp_path, name):
    text, reason = REFUSED[name]
    path = tmp_path / "odd.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ArchitectureError, match=f"odd.txt: .*{reason}") as caught:
        read_architecture(path)
    assert len(str(caught.value)) < 800 + len(str(path))


def test_missing_huge_and_folder_are_refused(tmp_path):
    (tmp_path / "huge").write_bytes(b"0 " * 2**20)
    for name, reason in (("none", "cannot be read"), ("huge", "larger than"), (".", "cannot be")):
        with pytest.raises(ArchitectureError, match=reason):
            read_architecture(tmp_path / name)


def test_file_of_another_space_is_refused(tmp_path):
    path = tmp_path / "arch.json"
    save_architecture(path, random_architecture(MOBILE, 0))
    with pytest.raises(ArchitectureError, match="'proxyless_gpu', expected 'shufflenetv2'"):
        read_architecture(path, PLAIN)
    for text in (razor_mobile_yaml(), repr(ANGLENAS), "02110212", f"{SERIES}\n{SCALES}"):
        with pytest.raises(ArchitectureError):
            recognize_text(text, PLAIN)


def test_unknown_published_network_lists_the_known():
    with pytest.raises(ArchitectureError, match="zoo:nothing: there is no such .* megvii, "):
        read_architecture("zoo:nothing")
    with pytest.raises(ArchitectureError, match="expected 'nasbench_macro'"):
        read_architecture("zoo:megvii", MACRO)


# --- any bytes -------------------------------------------------------------------------------

VALID = [text.encode() for text, _, _ in FILES.values()]
SPECS = [None, PLAIN, WIDE, MOBILE, MACRO]
PIECES = [
    b"-1",
    b"[",
    b"]",
    b"(",
    b")",
    b"{",
    b"}",
    b":",
    b"\n",
    b"<<: ",
    b"&a ",
    b"*a ",
    b"!!int ",
]
PIECES += [b"chosen", b"1e999", b"null", b"true", b"0x1", b"9" * 40, b"\xff", b"- ", b'"', b"99"]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, len(data)))
        end = draw(st.integers(begin, min(begin + 12, len(data))))
        data[begin:end] = draw(st.binary(max_size=3) | st.sampled_from(PIECES))
    return bytes(data)


@settings(max_examples=EXAMPLES, deadline=None)
@given(mutated() | st.binary() | st.text().map(str.encode), st.sampled_from(SPECS))
def test_any_bytes_give_an_architecture_or_our_error(data, spec):
    try:
        arch = recognize_text(data, spec, source="fuzz").arch
    except SposError as error:
        assert str(error).startswith("fuzz: ")
        return
    assert recognize_text(arch.to_json()).arch == arch
    if spec is not None:
        spec.check(arch.choices)


# --- the command -----------------------------------------------------------------------------


def test_command_converts_there_and_back(tmp_path, capsys):
    there, back = tmp_path / "there.yaml", tmp_path / "back.json"
    assert main(["convert", "zoo:mmrazor", str(there)]) == 0
    assert there.read_text() == razor_yaml()
    assert main(["convert", str(there), str(back)]) == 0
    assert read_architecture(back) == zoo_architecture("mmrazor")
    assert "MMRazor, architecture" in capsys.readouterr().out


def test_command_takes_space_and_options(tmp_path):
    (tmp_path / "a").write_text(" ".join(map(str, RELEASED)))
    args = ["convert", str(tmp_path / "a"), str(tmp_path / "b")]
    assert (
        main([*args, "--space", "shufflenetv2plus", "--space-options", '{"image_size": 64}']) == 0
    )
    arch = read_architecture(tmp_path / "b")
    assert (arch.space, arch.options["image_size"]) == ("shufflenetv2plus", 64)
    assert main([*args, "--to", "tuple"]) == 0
    assert (tmp_path / "b").read_text() == f"{tuple(RELEASED)}\n"


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--to", "nothing"], "can be written as spos, nni3"),
        (["--to", "safetensors"], "can be written as spos"),
        (["--fixed-arc", "x"], "for files of weights"),
        (["--space", "nothing"], "there is no search space 'nothing'"),
        (["--space-options", "[]"], "expected an object"),
        (["--space-options", '{"stride": 2}'], "has no option 'stride'"),
    ],
)
def test_command_refuses_what_it_cannot_do(tmp_path, flags, reason):
    with pytest.raises(SposError, match=reason):
        main(["convert", "zoo:megvii", str(tmp_path / "out"), *flags])
    assert not (tmp_path / "out").exists()
