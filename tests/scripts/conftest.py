"""A trained tiny supernet and a network trained from scratch, made once by the scripts."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from forked import Finished, run_script
from tiny_space import TINY, write_data

from spos.architecture import Architecture, save_architecture

OPTIONS = {"image_size": 8, "num_classes": 3}
COMMON = ("--space", TINY, "--device", "cpu", "--workers", "0")
SUPERNET = (*COMMON, "--image-size", "8", "--held-out-per-class", "4", "--batch-size", "6",
            "--calibration-images", "20", "--val-paths", "2")  # fmt: skip
SCRATCH = (*COMMON, "--batch-size", "6")


@dataclass(frozen=True)
class Workspace:
    """A folder with ``data``, an architecture ``arch.json`` and the runs made of them."""

    folder: Path

    def supernet(self, *words: object, run: str = "supernet", **arguments) -> Finished:
        """Run ``supernet.py`` on the tiny data."""
        return run_script("supernet.py", *self.supernet_words(run, *words), folder=self.folder,
                          **arguments)  # fmt: skip

    def scratch(self, *words: object, run: str = "scratch", **arguments) -> Finished:
        """Run ``scratch.py`` on the tiny data."""
        return run_script("scratch.py", *self.scratch_words(run, *words), folder=self.folder,
                          **arguments)  # fmt: skip

    def tester(self, *words: object, run: str = "supernet", **arguments) -> Finished:
        """Run ``tester.py`` on the tiny supernet."""
        words = ("--run-dir", run, *COMMON, *words)
        return run_script("tester.py", *words, folder=self.folder, **arguments)

    def supernet_words(self, run: str, *words: object) -> list[object]:
        """Words of a command; later ones count."""
        return ["--data-dir", "data", "--run-dir", run, *SUPERNET, "--epochs", 3, *words]

    def scratch_words(self, run: str, *words: object) -> list[object]:
        """Words of a command; later ones count."""
        return ["--fixed-arc", "arch.json", "--data-dir", "data", "--run-dir", run, *SCRATCH,
                "--epochs", 3, *words]  # fmt: skip


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
