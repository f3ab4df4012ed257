"""Gets a network, and torch's threads, ready to run on a device.

Imports `spos.spaces.convolution` and torch.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

from spos.spaces.convolution import choose_algorithms

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h

Network = TypeVar("Network", bound=nn.Module)


def place(network: Network, device: torch.device) -> Network:
    """Move a network to where it will run, channels last; on a CPU, see to what slows it there.

    Parameters, names and the state dict stay as they are; copies of the network compute as it does.
    """
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if device.type == "cpu":
        choose_algorithms(network)
        keep_freed_memory()
    return network


@contextmanager
def cpu_threads(number: int) -> Iterator[None]:
    """While the block runs, torch computes with so many threads of the CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def keep_freed_memory() -> None:
    """Let glibc reuse the memory of activations that were freed.

    By default it returns every tensor of more than 32 MiB to the system at once, whose pages are
    then mapped and cleared anew at the next allocation: up to two fifths of the time of a pass. It
    holds for the whole process; an allocator that was put in glibc's place is left alone.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)  # never
