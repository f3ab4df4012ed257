"""Fixtures of the report's tests."""

import pytest
from small_runs import write_all


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """The three stages of a finished search; not to be changed."""
    return write_all(tmp_path_factory.mktemp("demo"))


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home without experiments."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"
