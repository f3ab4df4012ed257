"""supernet.py and scratch.py --weights: training begins with what was trained already."""

import shutil

import torch
from forked import run_script

import spos
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


def test_a_subnet_begins_with_its_part_of_the_supernet(workspace, tiny_spaces):
    finished = workspace.scratch("--weights", "supernet", "--epochs", 0, run="inherited")
    assert finished.status == 0, finished.stderr
    _, path = latest_checkpoint(workspace.folder / "supernet" / "checkpoints")
    shared = load_checkpoint(path)["network"]
    network = spos.load_subnet(workspace.folder / "inherited" / "best.safetensors")
    part = {"features.0": "k3", "features.1": "k5", "features.2": "k1"}
    convolutions = {
        name: each.weight
        for name, each in network.named_modules()
        if isinstance(each, torch.nn.Conv2d)
    }
    assert len(convolutions) == 4
    for name, weight in convolutions.items():
        layer, number = name.rsplit(".", 1)
        key = f"{layer}.{part[layer]}.{number}" if layer in part else name
        assert torch.equal(weight, shared[f"{key}.weight"])


def test_fine_tuning_for_other_classes_can_be_continued(workspace, tiny_spaces):
    folder = workspace.folder
    for part in ("train", "val"):
        shutil.rmtree(folder / "data" / part / "class_2")
    words = ("--weights", "scratch/best.safetensors", "--reset-head")
    first = workspace.scratch(*words, "--epochs", 0, run="begun")
    assert first.status == 0, first.stderr
    before, after = (
        spos.load_subnet(folder / run / "best.safetensors").state_dict()
        for run in ("scratch", "begun")
    )
    assert after["classifier.weight"].shape == (2, 6)
    kernels = [name for name, each in before.items() if each.dim() == 4]
    assert kernels and all(torch.equal(after[name], before[name]) for name in kernels)
    for expected in ("2 epochs", "continuing"):
        finished = workspace.scratch(*words, "--epochs", 2, run="tuned")
        assert finished.status == 0, finished.stderr
        assert expected in finished.stderr
    refused = workspace.scratch(*words[:2], "--epochs", 2, run="tuned")
    assert refused.status == 2 and "--reset-head" in refused.stderr
