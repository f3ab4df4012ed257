"""MXNet's parameter files are read whole or refused, and never believed about their lengths."""

import os
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mxnet_files import KINDS, V1, V2, V3, array_bytes, list_bytes, write_mxnet

from spos.convert.mxnet_params import load_mxnet
from spos.errors import CheckpointError

EXAMPLES = int(os.environ.get("SPOS_EXAMPLES", "300"))

TENSORS = {
    "features.0.weight": torch.arange(24.0).reshape(2, 3, 2, 2),
    "features.1.gamma": torch.tensor([1.0, -2.0, 3.5], dtype=torch.float64),
}


@pytest.mark.parametrize("version", [V1, V2, V3])
@pytest.mark.parametrize("prefixes", [True, False])
def test_arrays_come_back(tmp_path, version, prefixes):
    found = load_mxnet(write_mxnet(tmp_path / "x", TENSORS, version=version, prefixes=prefixes))
    assert list(found) == list(TENSORS)
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("dtype", KINDS)
def test_every_element_type_comes_back(tmp_path, dtype):
    tensor = torch.tensor([[1, 2], [3, 100]]).to(dtype)
    found = load_mxnet(write_mxnet(tmp_path / "x", {"a": tensor}))["a"]
    assert found.dtype == dtype
    assert torch.equal(found, tensor)


def test_empty_scalar_and_shapeless_arrays(tmp_path):
    shapeless = struct.pack("<IiI", V2, 0, 0)
    scalar = array_bytes(torch.tensor(2.5), V3)
    empty = array_bytes(torch.zeros(0, 4))
    (tmp_path / "x").write_bytes(list_bytes([shapeless, scalar, empty], ["a", "b", "c"]))
    found = load_mxnet(tmp_path / "x")
    assert "a" not in found
    assert found["b"].item() == 2.5
    assert found["c"].shape == (0, 4)


def header(*, version: int = V2, storage: int = 0, dimensions=(2,), kind: int = 0) -> bytes:
    shape = struct.pack(f"<I{len(dimensions)}q", len(dimensions), *dimensions)
    return struct.pack("<Ii", version, storage) + shape + struct.pack("<iii", 1, 0, kind)


GOOD = list_bytes([array_bytes(torch.ones(2))], ["a"])

# what is wrong -> (bytes, part of the message)
REFUSED = {
    "empty": (b"", "announced where 0 are left"),
    "other file": (b"PK\3\4" + b"x" * 50, "does not begin as one"),
    "reserved not zero": (struct.pack("<QQQ", 0x112, 1, 0), "does not begin as one"),
    "cut in the start": (GOOD[:10], "16 bytes are announced where 10 are left"),
    "cut in an array": (GOOD[:50], "announced"),
    "cut in a name": (GOOD[:-1], "1 bytes are announced where 0 are left"),
    "bytes after the end": (GOOD + b"x", "1 bytes follow its end"),
    "endless arrays": (struct.pack("<QQQ", 0x112, 0, 2**63) + GOOD[24:], "entries are announced"),
    "endless names": (GOOD[:-17] + struct.pack("<Q", 2**60) + GOOD[-9:], "entries are announced"),
    "endless name": (GOOD[:-9] + struct.pack("<Q", 2**62) + b"a", "a name of"),
    "name not text": (GOOD[:-1] + b"\xff", "a name that is not text"),
    "two names": (list_bytes([array_bytes(torch.ones(2))], ["a", "b"]), "1 arrays and 2 names"),
    "no names": (list_bytes([array_bytes(torch.ones(2))], []), "1 arrays and 0 names"),
    "a name twice": (list_bytes([array_bytes(torch.ones(2))] * 2, ["arg:a", "aux:a"]), "twice"),
    "unknown version": (list_bytes([header(version=7)], ["a"]), "unknown version 0x7"),
    "sparse": (list_bytes([header(storage=1)], ["a"]), "storage type 1"),
    "unknown type": (list_bytes([header(kind=9)], ["a"]), "unknown element type 9"),
    "too many dimensions": (list_bytes([header(dimensions=(1,) * 33)], ["a"]), "33 dimensions"),
    "negative dimension": (list_bytes([header(dimensions=(-2, 4))], ["a"]), r"shape \[-2, 4\]"),
    "two negative": (list_bytes([header(dimensions=(-2, -4))], ["a"]), r"shape \[-2, -4\]"),
    "nothing of endless size": (list_bytes([header(dimensions=(2**62, 8, 0))], ["a"]), "the shape"),
    "terabytes": (
        list_bytes([header(dimensions=(2**20, 2**20))], ["a"]), "4,398,046,511,104 bytes"
    ),
    "overflow": (list_bytes([header(dimensions=(2**62, 4))], ["a"]), "the shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusal_says_what_is_wrong(tmp_path, name):
    data, reason = REFUSED[name]
    (tmp_path / "x.params").write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"x\.params: .*{reason}"):
        load_mxnet(tmp_path / "x.params")


def test_missing_file_is_our_error(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_mxnet(tmp_path / "x.params")


def test_every_cut_is_refused(tmp_path):
    path = write_mxnet(tmp_path / "x", TENSORS)
    data = path.read_bytes()
    for end in range(len(data)):
        path.write_bytes(data[:end])
        with pytest.raises(CheckpointError):
            load_mxnet(path)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.data())
def test_any_bytes_give_tensors_or_our_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzz.params"
    whole = bytearray(write_mxnet(path, TENSORS).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        begin = data.draw(st.integers(0, len(whole)))
        end = data.draw(st.integers(begin, min(begin + 8, len(whole))))
        whole[begin:end] = data.draw(st.binary(max_size=8))
    path.write_bytes(whole)
    try:
        found = load_mxnet(path)
    except CheckpointError:
        return
    assert sum(each.numel() * each.element_size() for each in found.values()) <= len(whole)
