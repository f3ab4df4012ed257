"""Where a network runs: its layout, and the memory of a CPU."""

import platform
import subprocess
import sys

import pytest
import torch
from torch import nn

from spos.placement import place

COUNT_PAGE_FAULTS = """
import resource
import sys

import torch
from torch import nn

if sys.argv[1] == "placed":
    from spos.placement import place

    place(nn.Linear(1, 1), torch.device("cpu"))

def page_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

torch.ones(2**24)  # 64 MiB
before = page_faults()
for _ in range(32):  # the first few may find another place each
    torch.ones(2**24)
print(page_faults() - before)
"""


def test_a_placed_network_is_channels_last_and_the_same_object():
    network = nn.Conv2d(4, 6, 3)
    assert place(network, torch.device("cpu")) is network
    assert network.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="its allocator is another one")
def test_memory_that_was_freed_is_used_again():
    faults = {
        name: int(
            subprocess.run(
                [sys.executable, "-c", COUNT_PAGE_FAULTS, name],
                capture_output=True, check=True, text=True,
            ).stdout
        )
        for name in ("placed", "not placed")
    }  # fmt: skip
    assert faults["placed"] < faults["not placed"] / 4
