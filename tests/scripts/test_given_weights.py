"""supernet.py --weights: another system's supernet, or an earlier one, is where one begins."""

import torch
from forked import run_script

from spos.files import read_journal
from spos.spaces import build_space
from spos.supernet import Supernet
from spos.training.checkpoint import latest_checkpoint, load_checkpoint

NUMBERS = {"k3": "0", "k5": "1", "k7": "2", "xcep": "3"}  # Megvii's names of the candidates
ARGUMENTS = ("--space", "shufflenetv2", "--device", "cpu", "--workers", "0", "--image-size", "8",
             "--held-out-per-class", "4", "--batch-size", "6", "--calibration-images", "20",
             "--val-paths", "1", "--data-dir", "data")  # fmt: skip


def as_megvii(weights):
    """Keys as in the official checkpoints, written by DataParallel."""
    renamed = {}
    for name, tensor in weights.items():
        parts = name.split(".")
        if parts[0] == "features":
            parts[2] = NUMBERS[parts[2]]
        renamed[".".join(["module", *parts])] = tensor
    return {"state_dict": renamed}


def test_anothers_supernet_is_ready_for_the_search_as_it_is(trained):
    torch.manual_seed(5)
    options = {"image_size": 8, "num_classes": 3}
    weights = Supernet(build_space("shufflenetv2", options=options, affine=False)).state_dict()
    torch.save(as_megvii(weights), trained.folder / "megvii.pth.tar")
    finished = run_script(
        "supernet.py", *ARGUMENTS, "--weights", "megvii.pth.tar", "--epochs", "0",
        "--run-dir", "given", folder=trained.folder,
    )  # fmt: skip
    assert finished.status == 0, finished.stderr
    run = trained.folder / "given"
    step, path = latest_checkpoint(run / "checkpoints")
    kept = load_checkpoint(path)["network"]
    assert step == 0 and kept.keys() == weights.keys()
    assert all(torch.equal(kept[name], tensor) for name, tensor in weights.items())
    assert "val/top1" in read_journal(run / "metrics.jsonl")[-1]


def test_a_subnet_is_refused_as_a_supernet(trained):
    finished = run_script(
        "supernet.py", *ARGUMENTS, "--weights", "scratch/best.safetensors", "--run-dir", "refused",
        folder=trained.folder,
    )  # fmt: skip
    assert finished.status == 2
    assert "best.safetensors" in finished.stderr
    assert not (trained.folder / "refused").exists()
