"""scratch.py: the weights that it writes are the network that it measured."""

import copy
import json
import random
import runpy
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import ROOT, Script, run_ranks, run_script, wait_until
from run_contents import assert_identical, read_run
from tiny_space import TINY, TinySpace

import spos
from spos.__main__ import main
from spos.architecture import Architecture, load_architecture, parse_architecture
from spos.cost.counting import count_macs, count_params
from spos.data.folder import scan_folder, select_images
from spos.data.loader import build_loader
from spos.data.split import apply_split, load_split
from spos.errors import CheckpointError
from spos.evaluation.accuracy import measure_accuracy
from spos.evaluation.evaluator import ImageBatches
from spos.files import digest, read_json
from spos.spaces import SPACES
from spos.subnet import save_subnet
from spos.training import parallel
from spos.training.inputs import split_id

LONG = ("--epochs", 24, "--val-every", 6)


@pytest.fixture(scope="module")
def uninterrupted(trained):
    finished = trained.scratch(*LONG, run="long_scratch")
    assert finished.status == 0, finished.stderr
    return trained.folder / "long_scratch"


def test_written_weights_score_what_was_reported(trained, tiny_spaces, one_thread):
    network = spos.load_subnet(trained.folder / "scratch" / "best.safetensors")
    assert network.classes == ("class_0", "class_1", "class_2")
    loader = build_loader(
        scan_folder(trained.folder / "data" / "val"), image_size=8, augmentation="none",
        batch_size=256, shuffle=False,
    )  # fmt: skip
    batches = ImageBatches(loader, preprocessing=network.preprocessing, device=torch.device("cpu"))
    found = measure_accuracy(network, batches, torch.device("cpu"))
    tested = read_run(trained.folder / "scratch").measured()[-1]
    assert tested["step"] == 24
    assert (tested["test/top1"], tested["test/top5"]) == (found.top1, found.top5)
    assert tested["test/loss"] == pytest.approx(found.loss, rel=1e-5)
    assert found.num_images == 15


def check_saved(folder: Path, change: float) -> str:
    """What `check_best` says of a network that knows one class, saved with ``change`` in that."""
    SPACES[TINY] = TinySpace
    network: Any = spos.load_subnet(folder / "scratch" / "best.safetensors")
    network.classifier.bias.data[0] += 100
    images = scan_folder(folder / "data" / "val")
    loader = build_loader(
        select_images(images, range(3)), image_size=8, batch_size=1,
        augmentation="none", shuffle=False, rank=parallel.rank(), world_size=parallel.world_size(),
    )  # fmt: skip
    cpu = torch.device("cpu")
    test = ImageBatches(loader, preprocessing=network.preprocessing, device=cpu)
    accuracy = measure_accuracy(network, test, cpu)
    saved = copy.deepcopy(network)
    saved.classifier.bias.data[0] += change
    path = folder / "saved.safetensors"
    if parallel.rank() == 0:
        save_subnet(path, saved, network.arch, preprocessing="standard")
    try:
        runpy.run_path(str(ROOT / "scratch.py"))["check_best"](path, network, test, cpu, accuracy)
    except CheckpointError as problem:
        return str(problem)
    return "passed"


@pytest.mark.parametrize("world_size", [1, 2])
def test_file_that_scores_otherwise_ends_with_an_error(workspace, world_size):
    for change, said in ((0, "passed"), (-200, "scores 0.0000 after loading, 1.0000 before")):
        ranks = run_ranks(check_saved, workspace.folder, change, world_size=world_size)
        assert all(said in each for each in ranks), ranks


def test_written_metadata_describe_the_network(trained, tiny_spaces):
    from safetensors import safe_open

    path = trained.folder / "scratch" / "best.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    arch = parse_architecture(metadata["architecture"])
    settings = read_json(trained.folder / "scratch" / "args.json")
    assert metadata.get("commit") == settings["environment"]["commit"]
    assert dict(arch.choices) == {"layer_1": "k3", "layer_2": "k5", "layer_3": "k1"}
    assert dict(arch.options) == {"image_size": 8, "num_classes": 3}
    network = spos.load_subnet(path)
    assert arch.metrics["macs"] == count_macs(network, 8)
    assert arch.metrics["params"] == count_params(network)
    tested = read_run(trained.folder / "scratch").measured()[-1]
    assert arch.metrics["top1"] == tested["test/top1"]


def test_run_says_what_it_was(trained):
    settings = read_json(trained.folder / "scratch" / "args.json")
    assert settings["stage"] == "scratch"
    config = settings["config"]
    assert config["choices"] == {"layer_1": "k3", "layer_2": "k5", "layer_3": "k1"}
    assert (config["space"], config["num_train"], config["num_test"]) == (TINY, 48, 15)
    assert read_run(trained.folder / "scratch").steps() == [
        (8, "train"), (8, "val"), (16, "train"), (16, "val"), (24, "train"), (24, "val"),
        (24, "test"),
    ]  # fmt: skip


def test_architecture_is_fitted_to_the_data(workspace):
    choices = {"layer_1": "k1", "layer_2": "k1", "layer_3": "k1"}
    foreign = Architecture(TINY, {"image_size": 32, "num_classes": 9}, choices, {"top1": 0.9})
    (workspace.folder / "foreign.json").write_text(foreign.to_json())
    finished = workspace.scratch("--fixed-arc", "foreign.json", "--image-size", 8, "--epochs", 1,
                                 run="fitted")  # fmt: skip
    assert finished.status == 0, finished.stderr
    assert "other options than it came with: {'image_size': 8, 'num_classes': 3}" in finished.stderr
    config = read_json(workspace.folder / "fitted" / "args.json")["config"]
    assert config["options"] == {"image_size": 8, "num_classes": 3}


def test_network_that_computes_nothing_but_nan_is_no_result(workspace):
    finished = workspace.scratch("--epochs", 1, "--batch-size", 24, "--lr", 1e25, run="wild")
    assert finished.status == 2 and "lower --lr" in finished.stderr
    assert not (workspace.folder / "wild" / "best.safetensors").exists()


def test_sample_of_nni_is_an_architecture_too(workspace):
    (workspace.folder / "nni.json").write_text(
        json.dumps({"layer_3": "k1", "layer_1": "k3", "layer_2": "k5"})
    )
    # --image-size, since such a file has no options that would say it
    finished = workspace.scratch("--fixed-arc", "nni.json", "--image-size", 8)
    assert finished.status == 0, finished.stderr
    assert "continuing scratch after step 24 of 24" in finished.stderr


def test_repeated_command_writes_the_same_weights(workspace, tiny_spaces):
    run = workspace.folder / "scratch"
    kept = ("metrics.jsonl", "checkpoints/step_00000024.pt")
    before = {name: (run / name).read_bytes() for name in kept}
    settings = read_json(run / "args.json")
    weights = spos.load_subnet(run / "best.safetensors").state_dict()
    (run / "best.safetensors").unlink()
    finished = workspace.scratch()
    assert finished.status == 0, finished.stderr
    assert {name: (run / name).read_bytes() for name in kept} == before
    settings["runtime"]["data_dir"] = str((workspace.folder / "data").resolve())  # this copy's
    assert read_json(run / "args.json") == settings
    again = spos.load_subnet(run / "best.safetensors").state_dict()
    assert_identical(dict(again), dict(weights))


def test_teacher_and_what_is_done_to_images_belong_to_the_run(workspace):
    extras = ("--mixup", 0.2, "--mixup-off-epochs", 1, "--cutout", 3, "--epochs", 2)
    words = (*extras, "--teacher", "scratch/best.safetensors")
    for expected in ("taught by", "continuing"):
        finished = workspace.scratch(*words, run="taught")
        assert finished.status == 0, finished.stderr
        assert expected in finished.stderr
    config = read_json(workspace.folder / "taught" / "args.json")["config"]
    assert config["teacher"] == digest(workspace.folder / "scratch" / "best.safetensors")
    assert (config["teacher_weight"], config["temperature"]) == (0.5, 4)
    assert (config["mixup"], config["mixup_off_epochs"], config["cutout"]) == (0.2, 1, 3)
    refused = workspace.scratch(*extras, "--teacher", "taught/best.safetensors", run="taught")
    assert refused.status == 2 and "teacher was" in refused.stderr
    plain = read_json(workspace.folder / "scratch" / "args.json")["config"]
    assert {"teacher", "teacher_weight", "temperature", "mixup", "cutout"}.isdisjoint(plain)


def test_searched_architectures_are_compared_without_the_test_images(
    workspace, tiny_spaces, one_thread, monkeypatch, capsys
):
    monkeypatch.chdir(workspace.folder)
    for path in Path("data/val").rglob("*.jpg"):
        path.write_bytes(b"whoever reads this fails")
    search = str(ROOT / "tests" / "assets" / "0.1.0" / "search")
    assert main(["search", "best", search, "--top", "2", "--output-dir", "top"]) == 0
    best, second = map(load_architecture, sorted(Path("top").iterdir()))
    (file,) = Path("top").glob("02_*.json")
    words = ("--fixed-arc", file, "--epochs", 1, "--batch-size", 3, "--augmentation", "none")
    finished = workspace.scratch("--held-out", *words, run="compared")
    assert finished.status == 0, finished.stderr
    assert "39 training images, 9 held-out images to measure" in finished.stderr
    assert "held-out top-1" in finished.stderr
    assert "test images" not in finished.stderr and "test top-1" not in finished.stderr
    steps = read_run(Path("compared")).steps()
    assert steps == [(13, "train"), (13, "val"), (13, "held_out")]
    config = read_json(Path("compared/args.json"))["config"]
    split = load_split("compared/split.json")
    assert (config["held_out"], config["split"]) == (9, split_id(split))
    plain = read_json(Path("scratch/args.json"))["config"]
    assert set(config) - set(plain) == {"held_out", "split"}

    network: Any = spos.load_subnet("compared/best.safetensors")
    assert network.arch == second != best
    training, held_out = (
        ImageBatches(
            build_loader(each, image_size=8, augmentation="none", batch_size=256, shuffle=False),
            preprocessing=network.preprocessing, device=torch.device("cpu"),
        )
        for each in apply_split(scan_folder(Path("data/train")), split)
    )  # fmt: skip
    found = measure_accuracy(network, held_out, torch.device("cpu"))
    metrics = network.arch.metrics
    assert (metrics["held_out_top1"], metrics["held_out_top5"]) == (found.top1, found.top5)
    assert "top1" not in metrics
    ((images, _),) = training  # BatchNorm has seen these, and no others
    with torch.no_grad():
        means = network.stem[0](images).mean((0, 2, 3))
    torch.testing.assert_close(network.stem[1].running_mean, means)

    capsys.readouterr()
    assert main(["summary", "scratch", "compared", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["scratch"]
    assert list(listed) == ["compared", "scratch"] and "test top-1" in listed["scratch"]
    assert listed["compared"]["architecture"] == second.id
    assert listed["compared"]["held-out top-1"] == found.top1
    refused = workspace.scratch(*words, run="compared")
    assert refused.status == 2 and "held_out was 9, now None" in refused.stderr


@pytest.mark.slow
def test_killed_run_continues_to_the_same_weights(trained, uninterrupted, tiny_spaces):
    run = trained.folder / "killed_scratch"
    words = trained.scratch_words("killed_scratch", *LONG)
    rng = random.Random(1)
    for _ in range(3):
        before = len(list((run / "checkpoints").glob("*"))), sorted(run.glob("checkpoints/*.json"))
        script = Script("scratch.py", *words, folder=trained.folder)
        wait_until(
            lambda: sorted(run.glob("checkpoints/*.json")) > before[1],  # noqa: B023
            running=script.process,
        )
        time.sleep(rng.uniform(0, 0.03))
        script.send(signal.SIGKILL)
        assert script.wait().status == -signal.SIGKILL
    assert not (run / "best.safetensors").exists()
    finished = run_script("scratch.py", *words, folder=trained.folder)
    assert finished.status == 0, finished.stderr
    assert_identical(read_run(run).state, read_run(uninterrupted).state)
    assert read_run(run).steps() == read_run(uninterrupted).steps()
    assert read_run(run).measured() == read_run(uninterrupted).measured()
    one, other = (spos.load_subnet(each / "best.safetensors") for each in (run, uninterrupted))
    assert_identical(dict(one.state_dict()), dict(other.state_dict()))


@pytest.mark.slow
def test_network_learns_to_tell_the_colours(uninterrupted):
    assert read_run(uninterrupted).measured()[-1]["test/top1"] > 0.6
