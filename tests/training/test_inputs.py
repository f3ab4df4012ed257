"""Inputs: what kind of images there are, and what suits them unless a flag says otherwise."""

import argparse
import dataclasses
import logging
import shutil

import pytest
import torch
from tiny_space import write_data

from spos.data.digits import prepare_digits
from spos.data.folder import names_id, open_data
from spos.data.split import make_split, save_split
from spos.errors import ConfigError, DataError
from spos.spaces import space_spec
from spos.training import inputs as inputs_module
from spos.training.flags import add_data_flags
from spos.training.inputs import open_inputs, open_split, reopen_inputs, split_id

CPU = torch.device("cpu")


def open_with(*flags: object, device: torch.device = CPU, arch_options=None):
    parser = argparse.ArgumentParser()
    add_data_flags(parser)
    args = parser.parse_args([str(flag) for flag in flags])
    return open_inputs(args, device, arch_options=arch_options)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return prepare_digits(tmp_path_factory.mktemp("inputs") / "digits")


# --- what suits which images ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "side, kind, size",
    [(12, "small", 32), (33, "small", 40), (96, "small", 96), (97, "imagenet", 224)],
)
def test_size_of_the_images_decides(tmp_path, side, kind, size):
    found = open_with("--data-dir", write_data(tmp_path, train=3, test=1, size=side))
    assert (found.kind, found.image_size) == (kind, size)
    assert found.augmentation == {"small": "crop-flip", "imagenet": "paper"}[kind]
    assert found.preprocessing.name == "standard"


@pytest.mark.parametrize("device, side, batch, lr", [
    ("cpu", 120, 64, 0.03125), ("cuda", 120, 1024, 0.5), ("cpu", 32, 128, 0.1),
])  # fmt: skip
def test_batch_of_photographs_fits_the_memory_of_a_cpu(tmp_path, device, side, batch, lr):
    folder = write_data(tmp_path, train=3, test=1, size=side)
    preset = open_with(
        "--data-dir", folder, "--loader", "torchvision", device=torch.device(device)
    ).preset
    for recipe in (preset.supernet, preset.scratch):
        assert (recipe.batch_size, recipe.lr) == (batch, lr)


@pytest.mark.parametrize(
    ("device", "side", "workers"), [("cpu", 8, 0), ("cuda", 8, 2), ("cpu", 120, 2)]
)
def test_small_images_in_memory_are_cut_by_the_process_that_trains(tmp_path, device, side, workers):
    folder = write_data(tmp_path, train=3, test=1, size=side)
    found = open_with("--data-dir", folder, "--loader", "torchvision", device=torch.device(device))
    assert found.workers == workers


def test_digits_are_known_wherever_they_lie(digits):
    found = open_with("--data-dir", digits)
    assert (found.kind, found.augmentation) == ("digits", "crop")
    assert found.image_size == found.preset.image_size
    assert len(found.data.train.classes) == 10
    for space, options in found.preset.space_options.items():
        space_spec(space, options=found.space_options(options))


def test_flags_decide_over_what_suits(tmp_path):
    folder = write_data(tmp_path, train=3, test=1)
    found = open_with(
        "--imagenet-dir", folder, "--image-size", 24, "--augmentation", "none",
        "--spos-preprocessing", "--workers", 5,
    )  # fmt: skip
    assert (found.image_size, found.augmentation, found.workers) == (24, "none", 5)
    assert found.preprocessing.name == "spos"
    assert found.config() == {
        "data": tmp_path.name, "num_train": 9, "num_test": 3, "image_size": 24,
        "classes": ["class_0", "class_1", "class_2"], "augmentation": "none",
        "preprocessing": "spos", "loader": "torchvision",
        "train_names": names_id(found.data.train), "test_names": names_id(found.data.test),
    }  # fmt: skip


@pytest.mark.parametrize("classes, size", [(3, 48), (10, 32)])
def test_architecture_of_as_many_classes_keeps_its_image_size(tmp_path, classes, size):
    folder = write_data(tmp_path, train=3, test=1)
    options = {"num_classes": classes, "image_size": 48}
    assert open_with("--data-dir", folder, arch_options=options).image_size == size
    assert open_with("--data-dir", folder, "--image-size", 8, arch_options=options).image_size == 8


def test_without_data_the_embedded_digits_are_used(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.INFO, logger="spos"):
        found = open_with()
    assert found.kind == "digits" and found.data.train.root.parent.name == "digits"
    assert "no --data-dir and no data/imagenet: using the embedded handwritten" in caplog.text


def test_imagenet_is_used_where_it_lies(tmp_path, monkeypatch):
    write_data(tmp_path / "data" / "imagenet", train=3, test=1, size=120)
    monkeypatch.chdir(tmp_path)
    assert open_with().kind == "imagenet"


def test_loader_is_dali_only_where_it_helps(tmp_path, monkeypatch):
    folder = write_data(tmp_path, train=3, test=1)
    has = {"nvidia": True, "nvidia.dali": True}
    monkeypatch.setattr(
        inputs_module.importlib.util, "find_spec", lambda name: object() if has[name] else None
    )
    cuda = torch.device("cuda:0")
    assert open_with("--data-dir", folder).backend == "torchvision"
    assert open_with("--data-dir", folder, device=cuda).backend == "dali"
    assert open_with("--data-dir", folder, "--loader", "dali").backend == "dali"
    has["nvidia.dali"] = False
    assert open_with("--data-dir", folder, device=cuda).backend == "torchvision"
    with pytest.raises(ConfigError, match=r"--loader dali: .*pip install 'spos\[dali-cuda130\]'"):
        open_with("--data-dir", folder, "--loader", "dali")
    has["nvidia"] = False  # then Python cannot even look for nvidia.dali
    with pytest.raises(ConfigError, match="--loader dali"):
        open_with("--data-dir", folder, "--loader", "dali")


# --- loaders -------------------------------------------------------------------------------------


def test_loaders_are_shuffled_to_train_and_ordered_to_evaluate(tmp_path):
    found = open_with("--data-dir", write_data(tmp_path, train=6, test=2), "--image-size", 8,
                      "--workers", 0)  # fmt: skip
    recipe = found.preset.scratch.replace({"batch_size": 4, "seed": 3})
    training = found.training_loader(found.data.train, recipe)
    assert len(training) == 4
    labels = [batch.tolist() for _, batch in training.epoch(0)]
    assert labels != sorted(labels)
    evaluation = found.evaluation_loader(found.data.train, 4)
    passes = [[batch.tolist() for _, batch in evaluation.epoch(n)] for n in (0, 1)]
    assert sum(passes[0], []) == sum(passes[1], []) == sorted(found.data.train.labels)


def test_stage_after_uses_what_the_stage_before_did(tmp_path):
    folder = write_data(tmp_path / "a", train=3, test=1)
    first = open_with("--data-dir", folder, "--image-size", 24, "--spos-preprocessing")
    again = reopen_inputs(first.config(), folder, run_dir=tmp_path, workers=0, device=CPU)
    assert again.config() == first.config()
    other = write_data(tmp_path / "b", train=4, test=1)
    with pytest.raises(DataError, match="holds 12 training images of 3 classes.*trained on 9 of 3"):
        reopen_inputs(first.config(), other, run_dir=tmp_path, workers=0, device=CPU)


# --- the split -----------------------------------------------------------------------------------


def test_split_beside_the_data_is_preferred(tmp_path):
    inputs = open_with("--data-dir", write_data(tmp_path, train=8, test=1))
    drawn = open_split(inputs, per_class=2)
    assert drawn == make_split(inputs.data.train, per_class=2)
    given = make_split(inputs.data.train, per_class=3, seed=7)
    save_split(tmp_path / "split.json", given)
    assert open_split(inputs, per_class=2) == open_split(inputs, per_class=None) == given
    assert len({split_id(split) for split in (drawn, given)}) == 2
    assert split_id(given) == split_id(make_split(inputs.data.train, per_class=3, seed=7))


def test_default_fits_small_classes_and_says_so(tmp_path, caplog, monkeypatch):
    inputs = open_with("--data-dir", write_data(tmp_path, train=16, test=1))
    with caplog.at_level(logging.INFO, logger="spos"):
        assert open_split(inputs, per_class=None).per_class == 3
    assert "held out of each class: 3 images, a fifth of the smallest" in caplog.text
    assert "too small for 50" in caplog.text
    with pytest.raises(DataError, match="--held-out-per-class 8: .* cannot hold out 8"):
        open_split(inputs, per_class=8)
    caplog.clear()
    fitting = dataclasses.replace(inputs.preset, held_out_per_class=7)
    monkeypatch.setitem(inputs_module.PRESETS, inputs.kind, fitting)
    with caplog.at_level(logging.INFO, logger="spos"):
        assert open_split(inputs, per_class=None).per_class == 7
    assert caplog.text == ""


def test_split_of_other_data_is_refused(tmp_path):
    inputs = open_with("--data-dir", write_data(tmp_path / "a", train=8, test=1))
    other = open_data(write_data(tmp_path / "b", train=12, test=1))
    save_split(tmp_path / "a" / "split.json", make_split(other.train, per_class=5))
    with pytest.raises(DataError, match="not in .*a/train"):
        open_split(inputs, per_class=2)


def test_stage_after_notices_renamed_images(tmp_path):
    folder = write_data(tmp_path, train=3, test=1)
    config = open_with("--data-dir", folder).config()
    (folder / "train" / "class_0" / "000.jpg").rename(folder / "train" / "class_0" / "new.jpg")
    with pytest.raises(DataError, match="as many training images .* under other names"):
        reopen_inputs(config, folder, run_dir=tmp_path, workers=0, device=CPU)
    older = {name: value for name, value in config.items() if not name.endswith("_names")}
    reopen_inputs(older, folder, run_dir=tmp_path, workers=0, device=CPU)


def test_single_class_is_refused(tmp_path):
    folder = write_data(tmp_path, train=3, test=1)
    for name in ("class_0", "class_2"):
        for part in ("train", "val"):
            shutil.rmtree(folder / part / name)
    with pytest.raises(DataError, match="train: has a single class folder, 'class_1'"):
        open_with("--data-dir", folder)
