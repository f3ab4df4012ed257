"""A folder for tests that write thousands of files."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

MEMORY = "/dev/shm"


@pytest.fixture
def memory_folder(tmp_path) -> Iterator[Path]:
    """A folder in memory, if the machine has such: a busy disk takes ten times as long to replace
    a file, and histories do so hundreds of times each."""
    if not os.access(MEMORY, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        yield Path(folder)
