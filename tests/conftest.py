"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real images and tables (`SPOS_SHARED_DATA`, else beside the checkout)."""
    folder = Path(os.environ.get("SPOS_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there; set SPOS_SHARED_DATA to the folder of test data")
    return folder
