"""A network of digits trained for seconds, exported once; a tiny one as ONNX."""

import contextlib
import io
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from forked import run_script
from subnets import TINY_ARCH, trained_like
from tiny_space import TINY

from spos.__main__ import main
from spos.architecture import Architecture, save_architecture
from spos.data.digits import prepare_digits
from spos.data.preprocessing import Preprocessing
from spos.deploy.onnx_export import export_onnx
from spos.folding import fold_batchnorm
from spos.spaces import SPACES, build_subnet

CHOICES = {f"layer_{n}": "mb3_k3" if n in (1, 3, 6) else "identity" for n in range(1, 9)}


@dataclass(frozen=True)
class Exported:
    """A folder with ``data``, ``run/best.safetensors`` and what was exported of it."""

    folder: Path
    printed: str

    @property
    def weights(self) -> Path:
        return self.folder / "run" / "best.safetensors"

    @property
    def onnx(self) -> Path:
        return self.folder / "net.onnx"

    @property
    def int8(self) -> Path:
        return self.folder / "net.int8.onnx"

    @property
    def hub(self) -> Path:
        return self.folder / "hub"


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory) -> Path:
    """A folder with ``data`` and a scratch run of three epochs in ``run``."""
    folder = tmp_path_factory.mktemp("digits")
    prepare_digits(folder / "data")
    options = {"image_size": 16, "num_classes": 10}
    save_architecture(folder / "arch.json", Architecture("nasbench_macro", options, CHOICES))
    finished = run_script(
        "scratch.py", "--fixed-arc", "arch.json", "--data-dir", "data", "--run-dir", "run",
        "--epochs", 3, "--device", "cpu", "--workers", 0, folder=folder,
    )  # fmt: skip
    assert finished.status == 0, finished.stderr
    shutil.rmtree(folder / "run" / "checkpoints")
    return folder


@pytest.fixture(scope="session")
def exported(digits_run) -> Exported:
    """All outputs of one export; not to be changed."""
    outputs = {"--onnx": "net.onnx", "--int8": "net.int8.onnx", "--hub-dir": "hub"}
    words = [word for flag, name in outputs.items() for word in (flag, str(digits_run / name))]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(["export", str(digits_run / "run" / "best.safetensors"), *words]) == 0
    torch.set_num_threads(threads)
    return Exported(digits_run, printed.getvalue())


@pytest.fixture(scope="session")
def tiny_onnx() -> bytes:
    """A tiny network as ONNX."""
    from tiny_space import TinySpace

    torch.manual_seed(5)  # the same network whichever tests ran before
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SPACES, TINY, TinySpace)
        network = trained_like(build_subnet(TINY_ARCH), 8)
    folded = fold_batchnorm(network, torch.zeros(1, 3, 8, 8)).network
    return export_onnx(
        folded,
        TINY_ARCH,
        image_size=8,
        preprocessing=Preprocessing("spos"),
        classes=("a", "b", "c"),
    )
