"""Fixtures that every test may use."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import no_network  # noqa: F401  for its effect, on every test
import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real images and tables (`SPOS_SHARED_DATA`, else beside the checkout)."""
    folder = Path(os.environ.get("SPOS_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there; set SPOS_SHARED_DATA to the folder of test data")
    return folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch on one thread: its threads wait for each other actively, so small networks crawl on a
    machine that is busy otherwise."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny_spaces() -> Iterator[None]:
    """The spaces of `tiny_space`, known by name as if a command line had named them."""
    from tiny_space import TINY, WIDTHS, TinySpace, WidthSpace

    from spos.spaces import SPACES

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SPACES, TINY, TinySpace)
        patch.setitem(SPACES, WIDTHS, WidthSpace)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that wait for NNI come first, then those with most tests: the last ones are short, so
    that all processes have something to do until the end."""
    waiting = {item.path for item in items if item.get_closest_marker("nni")}
    num_tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path not in waiting, -num_tests[item.path], item.path))
