"""A trained tiny supernet and a network trained from scratch, made once by the scripts."""

import shutil

import pytest
from commands import OPTIONS, Workspace
from tiny_space import TINY, write_data

from spos.architecture import Architecture, save_architecture


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Workspace:
    """A finished supernet and scratch run; not to be changed."""
    workspace = Workspace(tmp_path_factory.mktemp("trained"))
    write_data(workspace.folder / "data")
    choices = {"layer_1": "k3", "layer_2": "k5", "layer_3": "k1"}
    save_architecture(workspace.folder / "arch.json", Architecture(TINY, OPTIONS, choices))
    for finished in (workspace.supernet(), workspace.scratch()):
        assert finished.status == 0, finished.stderr
    return workspace


@pytest.fixture
def workspace(trained, tmp_path) -> Workspace:
    """A copy of `trained` to be changed."""
    copy = Workspace(tmp_path / "workspace")
    shutil.copytree(trained.folder, copy.folder)
    return copy
