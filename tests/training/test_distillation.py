"""Distillation: the published loss, and only teachers whose answers are about these images."""

import argparse
import math
from pathlib import Path

import pytest
import torch
from tiny_space import TINY, write_data
from torch import nn

from spos.architecture import Architecture
from spos.data.folder import open_data
from spos.data.preprocessing import Preprocessing
from spos.deploy.folder import write_folder
from spos.errors import CheckpointError, ConfigError
from spos.files import digest
from spos.spaces import build_subnet
from spos.subnet import load_subnet, save_subnet
from spos.training.distillation import Teacher
from spos.training.inputs import Inputs
from spos.training.teacher_flags import add_teacher_flags, find_teacher

pytestmark = pytest.mark.usefixtures("one_thread", "tiny_spaces")

CHOICES = {"layer_1": "k5", "layer_2": "k3", "layer_3": "k1"}
CLASSES = ("class_0", "class_1", "class_2")


# --- the loss ------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight, temperature", [(0.5, 4.0), (0.25, 1.0), (1.0, 20.0), (0.0, 2.0)])
def test_loss_is_that_of_hinton(weight, temperature):
    torch.manual_seed(0)
    logits, answers = torch.randn(4, 3), torch.randn(4, 3) * 3

    def soft(row):
        powers = [math.exp(value / temperature) for value in row]
        return [power / sum(powers) for power in powers]

    divergence = 0.0
    for own, taught in zip(logits.tolist(), answers.tolist(), strict=True):
        pairs = zip(soft(taught), soft(own), strict=True)
        divergence += sum(p * math.log(p / q) for p, q in pairs) / 4
    expected = (1 - weight) * 1.5 + weight * temperature**2 * divergence
    teacher = Teacher(nn.Identity(), "", weight, temperature)
    found = teacher.teach(torch.tensor(1.5), logits, answers)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_agreement_with_the_teacher_costs_nothing_and_leads_nowhere():
    answers = torch.randn(4, 3)
    logits = answers.clone().requires_grad_()
    loss = Teacher(nn.Identity(), "", 1.0, 3.0).teach(torch.tensor(9.0), logits, answers)
    loss.backward()
    assert abs(loss.item()) < 1e-6 and logits.grad.abs().max() < 1e-6


def test_teacher_computes_as_the_network_does_but_learns_nothing():
    seen = []

    class Watched(nn.Linear):
        def forward(self, x):
            seen.append((super().forward(x).dtype, torch.is_grad_enabled()))
            return super().forward(x)

    logits = torch.randn(2, 3, dtype=torch.bfloat16, requires_grad=True)
    network = Watched(4, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = Teacher(network, "").teach(torch.tensor(1.0), logits, torch.randn(2, 4))
    loss.backward()
    assert seen == [(torch.bfloat16, False)]
    assert loss.dtype == torch.float32
    assert logits.grad is not None and network.weight.grad is None


# --- which file ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Inputs:
    data = open_data(write_data(tmp_path_factory.mktemp("data"), train=2, test=1))
    return Inputs(
        data=data, kind="small", image_size=8, augmentation="none",
        preprocessing=Preprocessing("standard"), backend="torchvision", workers=0,
        device=torch.device("cpu"),
    )  # fmt: skip


def save(path: Path, *, preprocessing: str | None = "standard", classes=CLASSES, number=3) -> Path:
    arch = Architecture(TINY, {"image_size": 8, "num_classes": number}, CHOICES)
    torch.manual_seed(1)
    save_subnet(path, build_subnet(arch), arch, preprocessing=preprocessing, classes=classes)
    return path


def find(inputs: Inputs, *words: object) -> Teacher | None:
    parser = argparse.ArgumentParser()
    add_teacher_flags(parser)
    return find_teacher(parser.parse_args([str(word) for word in words]), inputs)


def test_weights_and_exported_folders_teach(tmp_path, inputs):
    file, folder = save(tmp_path / "best.safetensors"), tmp_path / "folder"
    network = load_subnet(file)
    network.image_size = 8
    write_folder(folder, network, metrics={})
    x = torch.randn(2, 3, 8, 8)
    for path, hashed in ((file, file), (folder, folder / "model.safetensors")):
        teacher = find(inputs, "--teacher", path, "--temperature", 2)
        assert teacher is not None and not teacher.network.training
        assert not any(each.requires_grad for each in teacher.network.parameters())
        assert teacher.config() == {
            "teacher": digest(hashed), "teacher_weight": 0.5, "temperature": 2.0
        }  # fmt: skip
        torch.testing.assert_close(teacher.network(x), network(x))
    assert find(inputs) is None


def test_teacher_of_unnamed_classes_is_taken_at_their_number(tmp_path, inputs):
    assert find(inputs, "--teacher", save(tmp_path / "a.safetensors", classes=None))
    with pytest.raises(CheckpointError, match=r"b.safetensors: tells 4 classes apart, .* of 3;"):
        find(inputs, "--teacher", save(tmp_path / "b.safetensors", classes=None, number=4))


@pytest.mark.parametrize("saved, says", [
    ({"preprocessing": "spos"}, "'spos' preprocessing, not with 'standard'; give --spos-prep"),
    ({"preprocessing": None}, "does not say how its images .*python -m spos convert"),
    ({"classes": ("class_0", "cat", "class_2")}, r"other classes apart, .*\(cat\); give a network"),
    ({"classes": CLASSES[::-1]}, "in another order"),
])  # fmt: skip
def test_teacher_of_other_images_is_refused(tmp_path, inputs, saved, says):
    path = save(tmp_path / "other.safetensors", **saved)
    with pytest.raises(CheckpointError, match=f"^--teacher .*other.safetensors: .*{says}"):
        find(inputs, "--teacher", path)


def test_what_has_no_weights_teaches_nothing(tmp_path, inputs):
    arch = Architecture(TINY, {"image_size": 8, "num_classes": 3}, CHOICES)
    (tmp_path / "arch.json").write_text(arch.to_json())
    for name in ("arch.json", "gone.pth", "gone.safetensors"):
        with pytest.raises(CheckpointError, match=f"{name}: "):
            find(inputs, "--teacher", tmp_path / name)


@pytest.mark.parametrize("words, says", [
    (("--teacher-weight", 0.3), "--teacher-weight: there is no teacher; give --teacher FILE"),
    (("--temperature", 3), "--temperature: there is no teacher"),
])  # fmt: skip
def test_flags_without_a_teacher_are_refused(inputs, words, says):
    with pytest.raises(ConfigError, match=says):
        find(inputs, *words)


@pytest.mark.parametrize("flag, value", [
    ("--teacher-weight", 1.5), ("--teacher-weight", "nan"), ("--temperature", 0),
    ("--temperature", "inf"), ("--temperature", "nan"),
])  # fmt: skip
def test_flag_out_of_range_is_refused(tmp_path, inputs, flag, value):
    with pytest.raises(ConfigError, match=f"{flag} .*: expected a number"):
        find(inputs, "--teacher", save(tmp_path / "best.safetensors"), flag, value)
