"""Files that earlier versions wrote stay readable and mean the same.

`tests/assets/VERSION` holds what that version wrote, with what it made of it in `expected.json`.
`python tests/test_old_files.py VERSION` writes the files of the present version; do so once, when
it is released, and never again.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_space import TINY, write_data

from spos.architecture import load_architecture
from spos.cost.table import CostTable
from spos.evaluation.build import open_supernet_run
from spos.search.results import read_entries
from spos.subnet import load_subnet
from spos.training.checkpoint import latest_checkpoint, load_checkpoint

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "tests" / "assets"
VERSIONS = sorted(path.name for path in ASSETS.iterdir()) if ASSETS.is_dir() else []
IMAGES = torch.linspace(-2, 2, 4 * 3 * 8 * 8).reshape(4, 3, 8, 8)
SEARCH = ("search", "run", "--run-dir", "supernet", "--output-dir", "search", "--space", TINY,
          "--device", "cpu", "--workers", "0", "--rounds", "2", "--population", "4",
          "--data-dir", "data")  # fmt: skip


COMMON = ("--space", TINY, "--device", "cpu", "--workers", "0", "--data-dir", "data",
          "--image-size", "8", "--batch-size", "6", "--epochs", "2")  # fmt: skip
SUPERNET = (str(ROOT / "supernet.py"), *COMMON, "--run-dir", "supernet",
            "--held-out-per-class", "4", "--calibration-images", "20")  # fmt: skip
SCRATCH = (str(ROOT / "scratch.py"), *COMMON, "--run-dir", "scratch", "--fixed-arc", "arch.json")


def read_what_it_means(folder: Path) -> dict:
    """Everything that a version's files say, as JSON."""
    run = open_supernet_run(folder / "supernet")
    weights = load_checkpoint(run.checkpoint())["network"]
    network = load_subnet(folder / "scratch" / "best.safetensors")
    with torch.no_grad():
        logits = network(IMAGES)
    arch = load_architecture(folder / "arch.json")
    return {
        "space": run.spec.space,
        "choices": {label: list(each) for label, each in run.spec.choices.items()},
        "macs": CostTable.load(folder / "supernet" / "cost.json").bounds("macs"),
        "weights": {name: float(each.double().sum()) for name, each in sorted(weights.items())},
        "logits": logits.tolist(),
        "classes": list(network.classes),
        "architecture": dict(arch.choices),
        "scores": {each.id: each.score for each in read_entries(folder / "search")},
    }


@pytest.fixture(params=VERSIONS)
def old(request, tmp_path, tiny_spaces) -> Path:
    """A copy of what a version wrote."""
    return Path(shutil.copytree(ASSETS / request.param, tmp_path / "old"))


def test_files_of_earlier_versions_mean_what_they_meant(old):
    expected = json.loads((old / "expected.json").read_text())
    found = json.loads(json.dumps(read_what_it_means(old)))
    logits = torch.tensor(found.pop("logits"))
    torch.testing.assert_close(logits, torch.tensor(expected.pop("logits")), atol=1e-5, rtol=0)
    assert found.pop("weights") == pytest.approx(expected.pop("weights"), rel=1e-6, abs=1e-6)
    assert found == expected


def test_runs_of_an_earlier_version_are_continued(old):
    write_data(old / "data")
    weights = old / "scratch" / "best.safetensors"
    weights.unlink()
    before = latest_checkpoint(old / "supernet" / "checkpoints")
    run(old, *SUPERNET)
    assert latest_checkpoint(old / "supernet" / "checkpoints") == before
    run(old, *SCRATCH)  # its checkpoints are not kept, so it is trained anew
    assert load_subnet(weights).classes


def test_a_search_of_an_earlier_version_is_continued(old):
    write_data(old / "data")
    before = read_entries(old / "search")
    journal = old / "search" / "search.jsonl"
    lines = journal.read_text()
    run(old, "-m", "spos", *SEARCH)
    assert journal.read_text() == lines, "a finished search is not searched again"
    assert read_entries(old / "search") == before


def test_there_are_files_of_an_earlier_version():
    assert VERSIONS


def run(folder: Path, *words: str) -> None:
    """Run Python in a folder, with the package and the tests' search space."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def write_assets(folder: Path) -> None:
    """Run the stages of the present version on tiny data and keep what they wrote."""
    folder.mkdir(parents=True)
    write_data(folder / "data")
    run(folder, *SUPERNET)
    shutil.copy(ROOT / "config_search.yml", folder)
    run(folder, "-m", "spos", *SEARCH, "--config", "config_search.yml")
    shutil.copy(folder / "search" / "checkpoints" / "best.json", folder / "arch.json")
    run(folder, *SCRATCH)
    for name in ("data", "supernet/tb", "scratch/tb", "scratch/checkpoints"):
        shutil.rmtree(folder / name)
    for path in [*folder.rglob(".lock"), *folder.rglob("log.txt")]:
        path.unlink()
    for path in folder.rglob("args.json"):  # where they were written is nobody's business
        path.write_text(path.read_text().replace(str(folder), ".").replace(str(ROOT), "."))
    from spos.spaces import load_space_class

    load_space_class(TINY, allow_import=True)
    (folder / "expected.json").write_text(json.dumps(read_what_it_means(folder), indent=1))


if __name__ == "__main__":
    write_assets(ASSETS / sys.argv[1])
