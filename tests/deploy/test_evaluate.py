"""`python -m spos evaluate`: the network's own accuracy, whatever it comes from and goes by."""

import json
import shutil

import pytest
import torch

from spos.__main__ import main
from spos.architecture import Architecture, save_architecture
from spos.convert.weights import read_weights
from spos.data.folder import open_data
from spos.errors import ArchitectureError, CheckpointError, ConfigError, DataError
from spos.subnet import load_subnet, save_subnet

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def evaluate(capsys, model, data_dir, *words):
    command = ["evaluate", model, "--data-dir", data_dir, "--device", "cpu", "--json", *words]
    assert main(list(map(str, command))) == 0
    return json.loads(capsys.readouterr().out)


def link_classes(folder, test_dir, names):
    """A folder with these class folders of the test set, by other names."""
    folder.mkdir(parents=True)
    for name, other in names.items():
        (folder / other).symlink_to(test_dir / name)
    return folder


@pytest.fixture(scope="module")
def test_dir(exported):
    return exported.folder / "data" / "test"


def test_every_kind_of_file_has_the_accuracy_that_training_measured(exported, capsys):
    expected = load_subnet(exported.weights).arch.metrics["top1"]
    results = {
        model: evaluate(capsys, model, exported.folder / "data", "--workers", workers)
        for model, workers in
        ((exported.weights, 0), (exported.hub, 2), (exported.onnx, 0), (exported.int8, 0))
    }  # fmt: skip
    for model, found in results.items():
        assert found["top1"] == pytest.approx(expected, abs=0.02 if model == exported.int8 else 0)
        assert (found["num_images"], found["preprocessing"]) == (300, "standard")
        low, high = found["top1_interval"]
        assert 0 < low < found["top1"] < high < 1 and found["top1"] <= found["top5"] <= 1
        right = sum(each["num_correct"] for each in found["classes"])
        wrong = sum(each["num_images"] for each in found["confusions"])
        assert (right, right + wrong) == (round(300 * found["top1"]), 300)
    assert results[exported.weights] == results[exported.hub]


def test_first_class_of_each_image_is_counted(exported, test_dir, capsys):
    network, images = load_subnet(exported.weights), open_data(exported.folder / "data").test
    found = evaluate(capsys, exported.weights, exported.folder / "data")
    counts = {
        (each["class"], each["predicted"]): each["num_images"] for each in found["confusions"]
    }
    counts |= {(each["class"],) * 2: each["num_correct"] for each in found["classes"]}
    for name in ("3", "8"):
        paths = [test_dir / path for path in images.paths if path.startswith(f"{name}/")]
        with torch.no_grad():
            predicted = [str(network(network.preprocess(path)).argmax().item()) for path in paths]
        for other in "0123456789":
            assert counts.get((name, other), 0) == predicted.count(other)


def test_folders_without_training_images_will_do(exported, test_dir, tmp_path, capsys):
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "val").symlink_to(test_dir)
    expected = evaluate(capsys, exported.weights, exported.folder / "data")
    for folder in (tmp_path / "only", test_dir):
        found = evaluate(capsys, exported.weights, folder)
        assert {**found, "images": None} == {**expected, "images": None}


def test_classes_go_by_name_and_some_may_be_missing(exported, test_dir, tmp_path, capsys):
    names = {str(digit): f"{9 - digit} turned" for digit in range(10)}  # sorted in another order
    hub = tmp_path / "hub"
    shutil.copytree(exported.hub, hub)
    config = json.loads((hub / "config.json").read_text())
    config["classes"] = list(names.values())
    (hub / "config.json").write_text(json.dumps(config))
    expected = evaluate(capsys, exported.weights, test_dir)
    found = evaluate(capsys, hub, link_classes(tmp_path / "all", test_dir, names))
    assert found["top1"] == expected["top1"]
    some = {name: names[name] for name in ("2", "7")}
    found = evaluate(capsys, hub, link_classes(tmp_path / "some", test_dir, some))
    assert found["num_images"] == 60
    assert found["classes"] == [
        {**each, "class": names[each["class"]]}
        for each in expected["classes"] if each["class"] in some
    ]  # fmt: skip
    (hub / "config.json").write_text(json.dumps({**config, "classes": ["2 turned", "7 turned"]}))
    with pytest.raises(CheckpointError, match="hub: tells 10 classes apart, but names 2"):
        evaluate(capsys, hub, tmp_path / "some")


def test_report_for_people_names_the_worst(exported, test_dir, tmp_path, capsys):
    swapped = link_classes(tmp_path / "set", test_dir, {"3": "4", "4": "3", "6": "6"})
    main(["evaluate", str(exported.weights), "--data-dir", str(swapped), "--workers", "0"])
    printed = capsys.readouterr().out
    assert printed.startswith(f"images                90 of {swapped}, standard preprocessing\n")
    assert "classes               10, 3 with images\n" in printed
    assert "top-5 " in printed and "balanced accuracy " in printed
    worst = printed.partition("worst classes\n")[2].splitlines()
    assert worst[0].split()[2] in ("3", "4") and "of 30 images of 4 taken for 3" in printed


def test_checkpoint_of_ours_says_what_it_is_of(exported, test_dir, tmp_path, capsys):
    found = read_weights(exported.weights)
    assert found.arch is not None
    config = {
        **found.said, "options": dict(found.options), "choices": dict(found.arch.choices),
    }  # fmt: skip
    path = tmp_path / "step.pt"
    torch.save({"network": found.network.state_dict(), "config": config}, path)
    arch = tmp_path / "arch.json"
    save_architecture(arch, found.arch)
    words = ("--weights", path)
    expected = evaluate(capsys, exported.weights, test_dir)
    assert evaluate(capsys, arch, test_dir, *words) == expected
    larger = {**found.options, "image_size": 32, "num_classes": 1000}
    save_architecture(arch, Architecture(found.space, larger, found.arch.choices))
    with pytest.raises(CheckpointError, match="step.pt: .* --space-options '{\"image_size\": 16}'"):
        evaluate(capsys, arch, test_dir, *words)
    words = (*words, "--space-options", '{"image_size": 16}')
    assert evaluate(capsys, arch, test_dir, *words) == expected


def test_wrong_input_is_refused_by_name(exported, test_dir, tmp_path, capsys):
    weights, data = exported.weights, exported.folder / "data"
    link_classes(tmp_path / "others" / "val", test_dir, {"3": "3", "4": "vier"})
    with pytest.raises(
        DataError, match="others/val: .* does not know the classes vier; it .* 0, 1"
    ):
        evaluate(capsys, weights, tmp_path / "others")
    with pytest.raises(DataError, match="gone: is not a folder"):
        evaluate(capsys, weights, tmp_path / "gone")
    with pytest.raises(ConfigError, match="--device cuda: ONNX Runtime runs .*onnx on the CPU"):
        evaluate(capsys, exported.onnx, data, "--device", "cuda")
    with pytest.raises(ConfigError, match="'standard' preprocessing; leave out --spos-prep"):
        evaluate(capsys, weights, data, "--spos-preprocessing")
    with pytest.raises(ConfigError, match="--space-options: .*best.safetensors says its own"):
        evaluate(capsys, weights, data, "--space-options", '{"image_size": 32}')
    with pytest.raises(CheckpointError, match="arch.json: is no trained network"):
        evaluate(capsys, exported.folder / "arch.json", data)
    with pytest.raises(ArchitectureError, match="zoo:nobody: there is no such"):
        evaluate(capsys, "zoo:nobody", data, "--weights", weights)


@pytest.mark.parametrize("workers", [0, 2])
def test_undecodable_image_is_named(exported, test_dir, tmp_path, capsys, workers):
    shutil.copytree(test_dir, tmp_path / "val")
    (tmp_path / "val" / "5" / "zz.jpg").write_text("no image")
    with pytest.raises(DataError, match="val/5/zz.jpg: cannot be decoded"):
        evaluate(capsys, exported.weights, tmp_path, "--workers", workers)


def test_preprocessing_that_nobody_says_is_a_flag(exported, tmp_path, capsys):
    network = load_subnet(exported.weights)
    save_subnet(tmp_path / "x.safetensors", network, network.arch, preprocessing=None)
    data = exported.folder / "data"
    said = evaluate(capsys, exported.weights, data)
    plain = evaluate(capsys, tmp_path / "x.safetensors", data)
    assert plain == said
    other = evaluate(capsys, tmp_path / "x.safetensors", data, "--spos-preprocessing")
    assert other["preprocessing"] == "spos" and other["loss"] != said["loss"]
