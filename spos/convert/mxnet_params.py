"""MXNet's `.params` files: named arrays, read without MXNet.

Imports `spos.errors` and torch.

The format, little-endian throughout: the magic number 0x112 and a reserved zero (64 bit each), the
number of arrays (64 bit) and the arrays, then the number of names (64 bit) and each name with its
length (64 bit) before it. An array of version 2 is a magic number (32 bit), the storage type (32
bit, 0 for dense), the number of dimensions (32 bit) and each of them (64 bit), the device's type
and number (32 bit each), the type of its elements (32 bit) and the elements. Version 1 has no
storage type; version 3 differs in what a shape of no dimensions means.
"""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path
from typing import IO

import torch

from spos.errors import CheckpointError

LIST_MAGIC = 0x112
LIST_START = struct.pack("<QQ", LIST_MAGIC, 0)
_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_DENSE = 0
_SMALLEST_ARRAY = 8  # bytes that even an empty array takes
_MAX_DIMENSIONS = 32
_MAX_ENTRIES = 2**48  # what torch can count, in shapes that hold nothing as well
_MAX_NAME = 4096
_TYPES = {
    0: torch.float32,
    1: torch.float64,
    2: torch.float16,
    3: torch.uint8,
    4: torch.int32,
    5: torch.int8,
    6: torch.int64,
}


def load_mxnet(path: Path | str) -> dict[str, torch.Tensor]:
    """The arrays of a file of MXNet's ``save_parameters``, ``export`` or ``nd.save``, by name.

    Every length in the file is compared with what is left of it before anything is allocated. The
    prefixes ``arg:`` and ``aux:`` of an exported network's names are dropped.

    Raises:
        CheckpointError: if it is missing, cut short, or not such a file.
    """
    try:
        with open(path, "rb") as file:
            return _read_list(_Source(file, os.fstat(file.fileno()).st_size, str(path)))
    except OSError as problem:
        raise CheckpointError(f"{path}: cannot be read ({problem.strerror or problem})") from None


class _Source:
    """Bytes of a file, of which never more are asked for than there are."""

    def __init__(self, file: IO[bytes], size: int, name: str) -> None:
        self._file, self.left, self._name = file, size, name

    def error(self, reason: str) -> CheckpointError:
        return CheckpointError(
            f"{self._name}: is damaged or not a parameter file of MXNet ({reason})"
        )

    def take(self, size: int) -> bytearray:
        if size > self.left:
            raise self.error(f"{size:,} bytes are announced where {self.left:,} are left")
        data = bytearray(size)
        if self._file.readinto(data) != size:  # type: ignore[attr-defined]
            raise self.error("it changed while it was read")
        self.left -= size
        return data

    def number(self, kind: str) -> int:
        return struct.unpack("<" + kind, self.take(struct.calcsize("<" + kind)))[0]

    def count(self, smallest: int) -> int:
        """A number of things of which each takes ``smallest`` bytes at least."""
        count = self.number("Q")
        if count * smallest > self.left:
            raise self.error(f"{count:,} entries are announced where {self.left:,} bytes are left")
        return count


def _read_list(source: _Source) -> dict[str, torch.Tensor]:
    if source.take(len(LIST_START)) != LIST_START:
        raise source.error("it does not begin as one")
    arrays = [_read_array(source) for _ in range(source.count(_SMALLEST_ARRAY))]
    names = [_read_name(source) for _ in range(source.count(8))]
    if len(names) != len(arrays):
        raise source.error(f"it has {len(arrays)} arrays and {len(names)} names")
    if source.left:
        raise source.error(f"{source.left:,} bytes follow its end")
    tensors = {}
    for name, array in zip(names, arrays, strict=True):
        short = name.split(":", 1)[1] if name.startswith(("arg:", "aux:")) else name
        if short in tensors:
            raise source.error(f"{short[:80]!r} is in it twice")
        if array is not None:
            tensors[short] = array
    return tensors


def _read_name(source: _Source) -> str:
    length = source.number("Q")
    if length > _MAX_NAME:
        raise source.error(f"a name of {length:,} bytes")
    try:
        return source.take(length).decode("utf-8")
    except UnicodeDecodeError:
        raise source.error("a name that is not text") from None


def _read_array(source: _Source) -> torch.Tensor | None:
    """The next array; None if it is one that was never given a shape."""
    magic = source.number("I")
    if magic not in (_V1, _V2, _V3):
        raise source.error(f"an array of the unknown version {magic:#x}")
    if magic != _V1 and (storage := source.number("i")) != _DENSE:
        raise source.error(f"an array of storage type {storage}, expected {_DENSE} (dense)")
    num_dimensions = source.number("i")
    if not 0 <= num_dimensions <= _MAX_DIMENSIONS:
        raise source.error(f"an array of {num_dimensions} dimensions")
    if num_dimensions == 0 and magic != _V3:
        return None
    shape = [source.number("q") for _ in range(num_dimensions)]
    source.take(8)  # device type and number
    kind = source.number("i")
    if kind not in _TYPES:
        raise source.error(f"an array of the unknown element type {kind}")
    if min(shape, default=0) < 0 or math.prod(size or 1 for size in shape) > _MAX_ENTRIES:
        raise source.error(f"an array of the shape {shape}")
    dtype = _TYPES[kind]
    data = source.take(math.prod(shape) * dtype.itemsize)
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).reshape(shape)
