"""Tiny images and spaces that the tests of training share."""

import pytest
from tiny_space import TINY, WIDTHS, TinySpace, WidthSpace, write_data

from spos.data.folder import ImageSet, scan_folder
from spos.spaces import SPACES


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> ImageSet:
    """36 images of 12 x 12 pixels in three classes."""
    return scan_folder(write_data(tmp_path_factory.mktemp("tiny"), train=12, test=2) / "train")


@pytest.fixture(scope="module")
def tiny_spaces():
    """The tiny spaces, known by name as if they had been given on a command line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SPACES, TINY, TinySpace)
        patch.setitem(SPACES, WIDTHS, WidthSpace)
        yield
