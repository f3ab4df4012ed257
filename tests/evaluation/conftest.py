"""Tiny images that the tests of evaluation share."""

import pytest
from tiny_space import write_data

from spos.data.folder import ImageSet, scan_folder


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> ImageSet:
    """33 images of 12 x 12 pixels in three classes."""
    return scan_folder(write_data(tmp_path_factory.mktemp("tiny"), train=11, test=2) / "train")
