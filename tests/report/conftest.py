"""Fixtures of the report's tests."""

import pytest
from small_runs import write_all

from spos.report.report import write_report
from spos.report.sources import collect


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """The three stages of a finished search; not to be changed."""
    return write_all(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="session")
def report(demo, tmp_path_factory):
    """The folder of the report of the finished search."""
    folder = tmp_path_factory.mktemp("report")
    write_report(collect([str(demo)]), folder)
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home without experiments."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"
