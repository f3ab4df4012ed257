"""MXNet's parameter files, written from their description."""

import struct
from pathlib import Path

import torch

KINDS = {
    torch.float32: 0,
    torch.float64: 1,
    torch.float16: 2,
    torch.uint8: 3,
    torch.int32: 4,
    torch.int8: 5,
    torch.int64: 6,
}
V1, V2, V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA


def array_bytes(tensor: torch.Tensor, version: int = V2) -> bytes:
    parts = [struct.pack("<I", version)]
    if version != V1:
        parts.append(struct.pack("<i", 0))
    parts.append(struct.pack(f"<I{tensor.ndim}q", tensor.ndim, *tensor.shape))
    parts.append(struct.pack("<iii", 1, 0, KINDS[tensor.dtype]))
    parts.append(tensor.contiguous().numpy().tobytes())
    return b"".join(parts)


def list_bytes(arrays: list[bytes], names: list[str]) -> bytes:
    parts = [struct.pack("<QQQ", 0x112, 0, len(arrays)), *arrays, struct.pack("<Q", len(names))]
    for name in names:
        parts.append(struct.pack("<Q", len(name.encode())) + name.encode())
    return b"".join(parts)


def write_mxnet(path: Path, tensors: dict, *, prefixes: bool = False, version: int = V2) -> Path:
    """With ``prefixes`` as MXNet's ``export`` writes them."""
    names = list(tensors)
    if prefixes:
        names = [f"{'aux' if 'running' in name else 'arg'}:{name}" for name in names]
    path.write_bytes(list_bytes([array_bytes(each, version) for each in tensors.values()], names))
    return path
