"""Bad input: one clear line, an exit status, and nothing half-written; table by table."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Finished

from spos.files import digest, read_json, write_json

Change = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """Something wrong, the command that meets it and the words of the answer.

    Attributes:
        command: ``supernet``, ``scratch`` or ``tester``.
        change: spoils the workspace.
        words: added to a command that is right otherwise.
        says: what the error line must say, among it the file or the flag.
        run: the run folder of the command; a new one unless the case is about an old one.
    """

    command: str
    says: tuple[str, ...]
    words: tuple[object, ...] = ()
    change: Change = lambda folder: None
    run: str = "new"


# --- how to spoil a workspace --------------------------------------------------------------------


def empty_class(folder: Path) -> None:
    shutil.rmtree(folder / "data" / "train" / "class_1")
    (folder / "data" / "train" / "class_1").mkdir()


def rename_images(folder: Path) -> None:
    """The first of two classes change their places."""
    first, second = (folder / "data" / "train" / f"class_{n}" / "000.jpg" for n in (0, 1))
    first.rename(second.with_name("swapped.jpg"))
    second.rename(first.with_name("swapped.jpg"))


def cut_image(part: str) -> Change:
    def cut(folder: Path) -> None:
        for file in sorted((folder / "data" / part / "class_2").iterdir()):
            os.truncate(file, file.stat().st_size // 2)

    return cut


def hold_out_others(folder: Path, where: str = "data") -> None:
    """As many images of each class as before, but not the same."""
    split = read_json(folder / "supernet" / "split.json")
    held_out = []
    for root in (folder / "data" / "train").iterdir():
        names = sorted(f"{root.name}/{path.name}" for path in root.iterdir())
        held_out += [name for name in names if name not in split["held_out"]][:4]
    write_json(folder / where / "split.json", {**split, "held_out": sorted(held_out)})


def hold_out_trained(folder: Path) -> None:
    hold_out_others(folder, where="supernet")


def cost_another(folder: Path) -> None:
    path = folder / "supernet" / "cost.json"
    value = read_json(path)
    write_json(path, {**value, "options": {**value["options"], "image_size": 16}})


def write_arch(**changes: Any) -> Change:
    def write(folder: Path) -> None:
        value = json.loads((folder / "arch.json").read_text())
        value["choices"].update(changes.pop("choices", {}))
        value.update(changes)
        value["choices"] = {k: v for k, v in value["choices"].items() if v is not None}
        (folder / "arch.json").write_text(json.dumps(value))

    return write


def edit_settings(**changes: Any) -> Change:
    def edit(folder: Path) -> None:
        path = folder / "supernet" / "args.json"
        value = read_json(path)
        value["config"].update(changes)
        write_json(path, value)

    return edit


def checkpoints(folder: Path, run: str) -> list[Path]:
    return sorted((folder / run / "checkpoints").glob("*.pt"))


def damage_all(run: str) -> Change:
    def damage(folder: Path) -> None:
        for path in checkpoints(folder, run):
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)

    return damage


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.marker,)


def plant_bombs(run: str) -> Change:
    """Checkpoints that run code, with commit marks that fit them."""

    def plant(folder: Path) -> None:
        for path in checkpoints(folder, run):
            state = torch.load(path, weights_only=True)
            torch.save({**state, "config": Bomb(folder / "exploded")}, path)
            mark = read_json(path.with_suffix(".json"))
            mark.update(size=path.stat().st_size, sha256=digest(path))
            write_json(path.with_suffix(".json"), mark)

    return plant


def swap_weights(folder: Path) -> None:
    shutil.rmtree(folder / "supernet" / "checkpoints")
    shutil.copytree(folder / "scratch" / "checkpoints", folder / "supernet" / "checkpoints")


def write(name: str, text: str) -> Change:
    def write_file(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(text)

    return write_file


def remove(*names: str) -> Change:
    def remove_paths(folder: Path) -> None:
        for path in (folder / name for name in names):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove_paths


# --- the cases -----------------------------------------------------------------------------------

OTHER_SPACE = {"space": "shufflenetv2", "options": {"image_size": 8, "num_classes": 3}}

CASES = {
    # images
    "data folder that is not there": Case(
        "supernet", ("gone", "is not a folder"), ("--data-dir", "gone")
    ),
    "data folder that is not there, scratch": Case(
        "scratch", ("gone", "is not a folder"), ("--data-dir", "gone")
    ),
    "data folder without val": Case(
        "supernet", ("data", "has no val/", "python -m spos data arrange data NEW"),
        change=remove("data/val"),
    ),
    "class folder without images": Case(
        "supernet", ("data/train/class_1", "without images"), change=empty_class
    ),
    "other classes in test": Case(
        "scratch", ("data/val", "only in training: class_1"), change=remove("data/val/class_1")
    ),
    "single class": Case(
        "scratch", ("data/train: has a single class folder, 'class_2'",),
        change=remove(*(f"data/{part}/class_{n}" for part in ("train", "val") for n in (0, 1))),
    ),
    "renamed images, supernet": Case(
        "supernet", ("supernet: holds a run on other files", "renamed", "data", "--run-dir"),
        change=rename_images, run="supernet",
    ),
    "renamed images, scratch": Case(
        "scratch", ("scratch: holds a run on other files", "renamed", "data", "--run-dir"),
        change=rename_images, run="scratch",
    ),
    "renamed images, tester": Case(
        "tester", ("data/train: holds as many", "other names", "--data-dir"),
        ("--arch", "arch.json", "--data-dir", "data"), run="supernet", change=rename_images,
    ),
    "weights in place of an architecture": Case(
        "scratch", ("best.safetensors: is a file of weights", "spos convert"),
        ("--fixed-arc", "scratch/best.safetensors"),
    ),
    "too few images to hold out": Case(
        "supernet", ("--held-out-per-class 8: data/train: cannot hold out 8",),
        ("--held-out-per-class", 8),
    ),
    "cut JPEG among the training images": Case(
        "supernet", ("data/train/class_2/0", ".jpg", "cannot be decoded"),
        change=cut_image("train"),
    ),
    "cut JPEG in a loading process": Case(
        "supernet", ("data/train/class_2/0", "cannot be decoded"), ("--workers", 2),
        change=cut_image("train"),
    ),
    "cut JPEG among the test images": Case(
        "scratch", ("data/val/class_2/0", "cannot be decoded"), change=cut_image("val")
    ),
    "cut JPEG among the held-out images": Case(
        "tester", ("data/train/class_2/0", "cannot be decoded"),
        ("--arch", "arch.json", "--data-dir", "data"),
        change=cut_image("train"), run="supernet",
    ),
    "images that were not those of training": Case(
        "tester", ("data", "holds 32 training images of 2 classes", "--data-dir"),
        ("--arch", "arch.json", "--data-dir", "data"), run="supernet",
        change=lambda folder: [remove(f"data/{part}/class_0")(folder) for part in ("train", "val")],
    ),
    "split of other data": Case(
        "supernet", ("split", "absent.jpg"),
        change=write("data/split.json", json.dumps({
            "version": 1, "seed": 0, "per_class": 1,
            "classes": ["class_0", "class_1", "class_2"], "held_out": ["class_0/absent.jpg"],
        })),
    ),
    "split that has changed since": Case(
        "supernet", ("supernet", "split was", "other settings"), change=hold_out_others,
        run="supernet",
    ),
    "image that is a broken link": Case(
        "supernet", ("data/train/class_0/link.jpg", "cannot be decoded", "No such file"),
        change=lambda folder: os.symlink("gone", folder / "data/train/class_0/link.jpg"),
    ),
    # architectures
    "architecture that is not there": Case(
        "scratch", ("gone.json", "cannot be read"), ("--fixed-arc", "gone.json")
    ),
    "architecture of another space, scratch": Case(
        "scratch", ("arch.json", "'shufflenetv2'", "TinySpace"), change=write_arch(**OTHER_SPACE)
    ),
    "architecture of another space, tester": Case(
        "tester", ("arch.json", "'shufflenetv2'", "TinySpace"), ("--arch", "arch.json"),
        change=write_arch(**OTHER_SPACE), run="supernet",
    ),
    "architecture for other images, tester": Case(
        "tester", ("arch.json: is another network", "image_size is 16, expected 8", "spos convert"),
        ("--arch", "arch.json"), change=write_arch(options={"image_size": 16, "num_classes": 3}),
        run="supernet",
    ),
    "architecture for other classes, tester": Case(
        "tester", ("arch.json: is another network", "num_classes is 5, expected 3", "--to nni3"),
        ("--arch", "arch.json"), change=write_arch(options={"num_classes": 5}), run="supernet",
    ),
    "architecture with another layer, tester": Case(
        "tester", ("arch.json: is another network", "normalize is False, expected True"),
        ("--arch", "arch.json"), change=write_arch(options={"normalize": False}), run="supernet",
    ),
    "unknown candidate": Case(
        "scratch", ("arch.json", "layer_2 is 'k9'", "'k5'"),
        change=write_arch(choices={"layer_2": "k9"}),
    ),
    "unknown candidate, tester": Case(
        "tester", ("arch.json", "layer_2 is 'k9'", "'k5'"), ("--arch", "arch.json"),
        change=write_arch(choices={"layer_2": "k9"}), run="supernet",
    ),
    "missing choice": Case(
        "scratch", ("arch.json", "missing", "layer_3"), change=write_arch(choices={"layer_3": None})
    ),
    "missing choice, tester": Case(
        "tester", ("arch.json", "missing", "layer_3"), ("--arch", "arch.json"),
        change=write_arch(choices={"layer_3": None}), run="supernet",
    ),
    "unknown choice": Case(
        "scratch", ("arch.json", "unknown", "layer_4"), change=write_arch(choices={"layer_4": "k1"})
    ),
    "architecture that is no JSON": Case(
        "tester", ("arch.json", "not valid JSON"), ("--arch", "arch.json"),
        change=write("arch.json", "{"), run="supernet",
    ),
    # spaces
    "unknown space": Case("supernet", ("'resnet'", "shufflenetv2"), ("--space", "resnet")),
    "space that cannot be imported": Case(
        "supernet", ("nowhere:Space", "PYTHONPATH"), ("--space", "nowhere:Space")
    ),
    "space that is no space": Case(
        "supernet", ("'json:JSONDecoder'", "ModelSpace"), ("--space", "json:JSONDecoder")
    ),
    "unknown option of the space": Case(
        "supernet", ("'depth'", "dropout"), ("--space-options", '{"depth": 3}')
    ),
    "option of other images": Case(
        "supernet", ("--space-options: has the image_size 16", "have 8", "--image-size"),
        ("--space-options", '{"image_size": 16}'),
    ),
    "option of other classes": Case(
        "scratch", ("--space-options: has the num_classes 5", "have 3", "folders"),
        ("--space-options", '{"num_classes": 5}'),
    ),
    "options that are no JSON": Case("supernet", ("--space-options",), ("--space-options", "{")),
    # checkpoints
    "architecture in place of weights": Case(
        "supernet", ("arch.json: is no weight file but JSON", "architectures"),
        ("--weights", "arch.json"),
    ),
    "text in place of weights": Case(
        "supernet", ("notes.txt: is no weight file; give a checkpoint",),
        ("--weights", "notes.txt"), change=write("notes.txt", "# weights"),
    ),
    "folder in place of weights": Case(
        "scratch", ("--weights data: holds no checkpoints", "run folder"), ("--weights", "data")
    ),
    "no weights whose head could be reset": Case(
        "supernet", ("--reset-head", "--weights FILE"), ("--reset-head",)
    ),
    "supernet's weights of other classes": Case(
        "supernet", ("step_00000018.pt", "3 classes", "of 2", "--reset-head"),
        ("--weights", "supernet"), change=remove("data/train/class_2", "data/val/class_2"),
    ),
    "subnet in place of a supernet": Case(
        "supernet", ("best.safetensors", "one subnet", "supernet"),
        ("--weights", "scratch/best.safetensors"),
    ),
    "weights of another architecture": Case(
        "scratch", ("best.safetensors", "not of the given architecture", "layer_1"),
        ("--weights", "scratch/best.safetensors"), change=write_arch(choices={"layer_1": "k5"}),
    ),
    "checkpoint of other settings": Case(
        "tester", ("step_00000018.pt", "other settings", "args.json"), ("--arch", "arch.json"),
        change=edit_settings(calibration_images=19), run="supernet",
    ),
    "settings of another run": Case(
        "supernet", ("supernet", "lr was 3", "other settings"), change=edit_settings(lr=3),
        run="supernet",
    ),
    "damaged checkpoints, supernet": Case(
        "supernet", ("supernet/checkpoints", "every checkpoint is damaged", "step_00000018"),
        change=damage_all("supernet"), run="supernet",
    ),
    "damaged checkpoints, tester": Case(
        "tester", ("supernet/checkpoints", "every checkpoint is damaged"), ("--arch", "arch.json"),
        change=damage_all("supernet"), run="supernet",
    ),
    "damaged checkpoints, scratch": Case(
        "scratch", ("scratch/checkpoints", "every checkpoint is damaged"),
        change=damage_all("scratch"), run="scratch",
    ),
    "checkpoint of another network": Case(
        "tester", ("step_00000024.pt", "other settings"), ("--arch", "arch.json"),
        change=swap_weights, run="supernet",
    ),
    "malicious checkpoint, supernet": Case(
        "supernet", ("step_00000018.pt", "blocked", "mkdir"), change=plant_bombs("supernet"),
        run="supernet",
    ),
    "malicious checkpoint, tester": Case(
        "tester", ("step_00000018.pt", "blocked", "mkdir"), ("--arch", "arch.json"),
        change=plant_bombs("supernet"), run="supernet",
    ),
    "malicious checkpoint, scratch": Case(
        "scratch", ("step_00000024.pt", "blocked", "mkdir"), change=plant_bombs("scratch"),
        run="scratch",
    ),
    "run without a checkpoint": Case(
        "tester", ("supernet", "no checkpoint yet", "supernet.py"), ("--arch", "arch.json"),
        change=remove("supernet/checkpoints"), run="supernet",
    ),
    "run that was killed before it began training": Case(
        "tester", ("supernet: has no cost.json", "never began training", "supernet.py --run-dir"),
        ("--arch", "arch.json"), change=remove("supernet/cost.json", "supernet/checkpoints"),
        run="supernet",
    ),
    # run folders
    "folder that is no run": Case(
        "tester", ("data", "not a run folder", "supernet.py"), ("--arch", "arch.json"), run="data"
    ),
    "run folder that is not there": Case(
        "tester", ("gone", "not a run folder"), ("--arch", "arch.json"), run="gone"
    ),
    "run of another script": Case(
        "tester", ("scratch", "run of scratch.py"), ("--arch", "arch.json"), run="scratch"
    ),
    "folder of somebody else": Case(
        "supernet", ("data", "not empty and not a run folder"), run="data"
    ),
    "run folder that cannot be made": Case(
        "supernet", ("--run-dir arch.json/run", "cannot be written"), run="arch.json/run"
    ),
    "other settings than before": Case(
        "scratch", ("scratch", "batch_size was 6, now 8", "--run-dir"), ("--batch-size", 8),
        run="scratch",
    ),
    "cost table that is not one": Case(
        "tester", ("supernet/cost.json", "cost table"), ("--arch", "arch.json"),
        change=write("supernet/cost.json", "[]"), run="supernet",
    ),
    "cost table of another network": Case(
        "tester", ("supernet/cost.json", "'image_size': 16", "repeat the command"),
        ("--arch", "arch.json"), change=cost_another, run="supernet",
    ),
    "images that the supernet was trained on": Case(
        "tester", ("supernet/split.json", "not trained on"), ("--arch", "arch.json"),
        change=hold_out_trained, run="supernet",
    ),
    "log on a full disk": Case(
        "supernet", ("supernet/log.txt: cannot be written (No space left",),
        change=lambda folder: [
            (folder / "supernet/log.txt").unlink(),
            (folder / "supernet/log.txt").symlink_to("/dev/full"),
        ],
        run="supernet",
    ),
    "settings that are not JSON": Case(
        "tester", ("supernet/args.json",), ("--arch", "arch.json"),
        change=write("supernet/args.json", "{"), run="supernet",
    ),
    "split that is not one": Case(
        "tester", ("supernet/split.json",), ("--arch", "arch.json"),
        change=write("supernet/split.json", "{}"), run="supernet",
    ),
    # flags
    "MACs that no architecture has": Case(
        "supernet", ("macs", "1,000,000", "reaches 4,338 to 45,810"),
        ("--path-range", "macs=1M:2M"),
    ),
    "ranges that no architecture meets together": Case(
        "supernet", ("no architecture", "macs between", "params between", "it reaches"),
        ("--sampler", "constrained", "--path-range", "macs=4K:5K", "--path-range", "params=700:"),
    ),
    "range that is none": Case(
        "supernet", ("--path-range 1M", "macs=0:330M"), ("--path-range", "1M")
    ),
    "range of an unknown cost": Case(
        "supernet", ("--path-range watts: is no cost", "macs, params"),
        ("--sampler", "strolling", "--path-range", "watts=1:2"),
    ),
    "range for a sampler that has none": Case(
        "supernet", ("--path-range", "uniform", "constrained"),
        ("--sampler", "uniform", "--path-range", "macs=4K:45K"),
    ),
    "sampler without its box": Case(
        "supernet", ("--sampler strolling", "--path-range"), ("--sampler", "strolling")
    ),
    "warm-up that is none": Case(
        "supernet", ("--channel-warmup 2:", "oneshot"), ("--channel-warmup", "2:")
    ),
    "warm-up of widths that are not searched": Case(
        "supernet", ("--channel-warmup", "no widths to search"), ("--channel-warmup", "oneshot")
    ),
    "missing GPU": Case(
        "supernet", ("--device cuda:0", "0 CUDA devices"), ("--device", "cuda")
    ),
    "missing GPU, scratch": Case(
        "scratch", ("--device cuda:1", "0 CUDA devices"), ("--device", "cuda:1")
    ),
    "missing GPU, tester": Case(
        "tester", ("--device cuda:0", "0 CUDA devices"),
        ("--arch", "arch.json", "--device", "cuda"), run="supernet",
    ),
    "odd device": Case("supernet", ("--device gpu",), ("--device", "gpu")),
    "fewer epochs than none": Case("supernet", ("--epochs -1",), ("--epochs", -1)),
    "no images in a batch": Case("scratch", ("--batch-size 0",), ("--batch-size", 0)),
    "more parts than images": Case(
        "scratch", ("--accumulate 6", "between 1 and 3"), ("--batch-size", 3, "--accumulate", 6)
    ),
    "square larger than the images": Case(
        "supernet", ("--cutout 9", "between 0 and 8"), ("--cutout", 9)
    ),
    "square larger than the images, scratch": Case(
        "scratch", ("--cutout 9", "between 0 and 8"), ("--cutout", 9)
    ),
    "architecture in place of a teacher": Case(
        "scratch", ("--teacher arch.json", "no trained network", "export --hub-dir"),
        ("--teacher", "arch.json"),
    ),
    "teacher of images with other preprocessing": Case(
        "scratch", ("--teacher scratch/best.safetensors", "leave out --spos-preprocessing"),
        ("--teacher", "scratch/best.safetensors", "--spos-preprocessing"),
    ),
    "learning rate beyond all numbers": Case("supernet", ("--lr 1e+300",), ("--lr", 1e300)),
    "learning rate beyond all numbers, scratch": Case("scratch", ("--lr 1e+300",), ("--lr", 1e300)),
    "negative seed": Case("scratch", ("seed -1",), ("--seed", -1)),
}  # fmt: skip

# Cases that are noticed only while images are read or weights are loaded, in a run folder that is
# whole by then and can be continued when the fault is mended.
LATE = ("cut JPEG", "image that is", "damaged checkpoints", "malicious", "log on")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.parent.name.startswith(".output-")
    }


def assert_one_error(finished: Finished, says: tuple[str, ...]) -> None:
    assert finished.status == 2, finished.stderr
    lines = finished.stderr.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert errors == [lines[-1]], finished.stderr
    assert "Traceback" not in finished.stderr
    assert finished.stdout == ""
    for word in says:
        assert word in errors[0], errors[0]


@pytest.mark.parametrize("name", CASES)
def test_bad_input_gets_one_line_and_leaves_nothing_behind(workspace, monkeypatch, name):
    case = CASES[name]
    case.change(workspace.folder)
    before = snapshot(workspace.folder)
    command = getattr(workspace, case.command)
    finished = command(*case.words, run=case.run, env={"CUDA_VISIBLE_DEVICES": ""})
    assert_one_error(finished, case.says)
    assert not (workspace.folder / "exploded").exists()
    after = snapshot(workspace.folder)
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    changed = {path for path in changed if not path.endswith("log.txt")}
    if not name.startswith(LATE):
        assert changed == set()
    assert not [path for path in after if path.endswith(".tmp")]


def test_flag_that_is_unknown_or_malformed_is_refused(workspace):
    for words in (("--epochs", "many"), ("--sampler", "best"), ("--nonsense",), ("--lr",)):
        finished = workspace.supernet(*words, run="new")
        assert finished.status == 2
        assert "error: " in finished.stderr and words[0] in finished.stderr
    assert not (workspace.folder / "new").exists()


@pytest.mark.parametrize(
    "command, flag, low",
    [
        ("supernet", "--save-every", 1), ("supernet", "--val-every", 1),
        ("supernet", "--held-out-per-class", 1), ("supernet", "--calibration-images", 1),
        ("supernet", "--val-paths", 0), ("scratch", "--image-size", 1), ("scratch", "--workers", 0),
    ],
)  # fmt: skip
def test_number_below_the_least_is_refused(workspace, command, flag, low):
    finished = getattr(workspace, command)(flag, low - 1, run="new")
    assert finished.status == 2
    assert f"argument {flag}: expected {low} or more, found {low - 1}" in finished.stderr
    assert not (workspace.folder / "new").exists()


@pytest.mark.parametrize("command", ["supernet", "scratch"])
def test_validation_that_would_fail_ends_the_run_before_its_first_step(workspace, command):
    folder = workspace.folder
    held_out = read_json(folder / "supernet" / "split.json")["held_out"]
    seen = [folder / "data" / "train" / name for name in held_out]
    for file in seen if command == "supernet" else folder.glob("data/val/*/*.jpg"):
        os.truncate(file, file.stat().st_size // 2)
    finished = getattr(workspace, command)("--val-every", 3, run="new")
    assert_one_error(finished, ("data/", "cannot be decoded"))
    assert not (folder / "new" / "metrics.jsonl").exists()
    assert not (folder / "new" / "checkpoints").exists()


def test_undecodable_image_that_was_replaced_lets_the_run_continue(workspace):
    training = workspace.folder / "data" / "train" / "class_2"
    copy = shutil.copytree(training, workspace.folder / "copy")
    cut_image("train")(workspace.folder)
    assert_one_error(workspace.supernet(run="new"), ("data/train/class_2",))
    shutil.rmtree(training)
    shutil.copytree(copy, training)
    finished = workspace.supernet(run="new")
    assert finished.status == 0, finished.stderr
    assert (workspace.folder / "new" / "checkpoints" / "step_00000018.json").exists()


def test_second_start_on_damaged_checkpoints_is_refused_as_well(workspace):
    damage_all("supernet")(workspace.folder)
    metrics = (workspace.folder / "supernet" / "metrics.jsonl").read_bytes()
    for _ in range(2):
        finished = workspace.supernet()
        assert_one_error(finished, ("every checkpoint is damaged",))
    assert (workspace.folder / "supernet" / "metrics.jsonl").read_bytes() == metrics


def test_names_that_are_not_utf8_are_names_like_others(workspace):
    for part in ("train", "val"):
        folder = workspace.folder / "data" / part
        for number, file in enumerate((folder / "class_1").iterdir()):
            file.rename(file.with_name(os.fsdecode(b"caf\xe9_%d.jpg" % number)))
        (folder / "class_2").rename(folder / os.fsdecode(b"th\xe9"))
    for finished in (
        workspace.supernet("--epochs", 1, run="new"),
        workspace.supernet("--epochs", 1, run="new"),  # goes on: the same images are held out
        workspace.tester("--arch", "arch.json", run="new"),
        workspace.scratch("--epochs", 1, run="new_scratch"),
    ):
        assert finished.status == 0, finished.stderr
    file = os.fsencode(workspace.folder / "data" / "train") + b"/th\xe9/000.jpg"
    os.truncate(file, 100)
    finished = workspace.supernet("--epochs", 1, run="third")
    assert_one_error(finished, ("000.jpg: cannot be decoded",))


def test_error_in_ones_own_code_is_no_error_line(workspace):
    """Only what the user can mend is shortened to a line; a bug keeps its traceback."""
    (workspace.folder / "own_space.py").write_text(
        "from tiny_space import TinySpace\n\n\n"
        "class Broken(TinySpace):\n"
        "    def forward(self, x):\n"
        "        return 1 / 0\n"
    )
    finished = workspace.supernet("--space", "own_space:Broken", run="new",
                                  env={"PYTHONPATH": str(workspace.folder)})  # fmt: skip
    assert finished.status == 1
    assert "ZeroDivisionError" in finished.stderr
