"""A trained subnet in one file: it comes back as it was saved, or is refused by name."""

import copy
import json
import random

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_space import TINY, WIDTHS

import spos
from spos.architecture import Architecture, save_architecture
from spos.errors import ArchitectureError, CheckpointError, ConfigError
from spos.spaces import SPACES, build_subnet
from spos.subnet import load_subnet, save_subnet

pytestmark = pytest.mark.usefixtures("one_thread", "tiny_spaces")

CLASSES = ("ant", "bee", "größer, als")
METRICS = {"top1": 0.75, "macs": 1234}


def make_arch(*sizes: str, metrics=METRICS) -> Architecture:
    choices = {f"layer_{number}": size for number, size in enumerate(sizes, start=1)}
    return Architecture(TINY, {"image_size": 8, "num_classes": 3}, choices, metrics)


ARCH = make_arch("k3", "k1", "k5")
WIDTH_ARCH = Architecture(WIDTHS, {"num_classes": 3}, {"width": 4, "layer_1": "k3"})


def make_network(arch: Architecture = ARCH) -> torch.nn.Module:
    torch.manual_seed(3)
    network = build_subnet(arch)
    network(torch.randn(8, 3, 8, 8))  # running statistics that are not the initial ones
    return network.eval()


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "best.safetensors"
    save_subnet(path, make_network(), ARCH, preprocessing="spos", classes=CLASSES)
    return path


def logits(network: torch.nn.Module) -> torch.Tensor:
    assert not network.training
    with torch.no_grad():
        return network(torch.linspace(-1, 1, 2 * 3 * 64).view(2, 3, 8, 8))


# --- there and back ------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", [ARCH, WIDTH_ARCH], ids=["layers", "width"])
def test_file_gives_back_the_network(tmp_path, arch):
    network = make_network(arch)
    save_subnet(tmp_path / "a.safetensors", network, arch, preprocessing="standard", classes="abc")
    loaded = spos.load_subnet(tmp_path / "a.safetensors")
    assert torch.equal(logits(loaded), logits(network))
    assert loaded.preprocessing.name == "standard"
    assert loaded.classes == ("a", "b", "c")
    size = loaded.image_size
    assert loaded.preprocess(Image.new("RGB", (40, 30))).shape == (1, 3, size, size)
    assert copy.deepcopy(loaded).preprocess.keywords == loaded.preprocess.keywords
    assert torch.equal(logits(load_subnet(str(tmp_path / "a.safetensors"))), logits(network))


def test_file_says_what_it_holds(saved):
    with safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "spos-subnet-1"
    assert json.loads(metadata["classes"]) == list(CLASSES)
    assert metadata["preprocessing"] == "spos"
    described = json.loads(metadata["architecture"])
    assert described["choices"] == dict(ARCH.choices)
    assert described["metrics"] == METRICS


def test_names_are_those_of_the_space(saved):
    assert set(load_file(saved)) == set(make_network().state_dict())
    assert "features.1.0.weight" in load_file(saved)


def test_memory_format_does_not_matter(tmp_path, saved):
    again = tmp_path / "again.safetensors"
    channels_last = make_network().to(memory_format=torch.channels_last)
    save_subnet(again, channels_last, ARCH, preprocessing="spos", classes=CLASSES)
    assert torch.equal(logits(load_subnet(again)), logits(load_subnet(saved)))


def test_architecture_alone_gives_random_weights():
    network = load_subnet(ARCH)
    assert network.preprocessing is None and network.classes is None
    with pytest.raises(ConfigError, match="does not say how its images are to be prepared"):
        network.preprocess("a.jpg")
    assert logits(network).shape == (2, 3)


def test_architecture_file_and_weights_give_the_network(tmp_path, saved):
    save_architecture(tmp_path / "arch.json", ARCH)
    loaded = load_subnet(tmp_path / "arch.json", saved)
    assert torch.equal(logits(loaded), logits(make_network()))
    assert loaded.classes == CLASSES and loaded.preprocessing.name == "spos"


def test_weights_that_are_given_win_over_those_beside_the_architecture(tmp_path, saved):
    torch.manual_seed(4)
    other = build_subnet(ARCH).eval()
    save_subnet(tmp_path / "other.safetensors", other, ARCH, preprocessing=None)
    loaded = load_subnet(saved, tmp_path / "other.safetensors")
    assert torch.equal(logits(loaded), logits(other)) and loaded.classes is None
    with pytest.raises(CheckpointError, match="has weights of its own; leave out"):
        load_subnet(tmp_path, saved)


@pytest.mark.parametrize("wrapped", [False, True])
def test_weights_saved_by_torch_give_the_network(tmp_path, wrapped):
    weights = make_network().state_dict()
    torch.save({"network": weights, "step": 3} if wrapped else weights, tmp_path / "weights.pt")
    loaded = load_subnet(ARCH, tmp_path / "weights.pt")
    assert torch.equal(logits(loaded), logits(make_network()))
    assert loaded.classes is None


def test_weights_without_metadata_need_the_architecture(tmp_path):
    path = tmp_path / "plain.safetensors"
    save_file(make_network().state_dict(), path)
    with pytest.raises(CheckpointError, match="plain.safetensors: does not say which architecture"):
        load_subnet(path)
    loaded = load_subnet(ARCH, path)
    assert torch.equal(logits(loaded), logits(make_network()))
    assert loaded.preprocessing is None


def test_failed_save_keeps_the_file_before_it(saved):
    before = saved.read_bytes()
    with pytest.raises(TypeError):
        save_subnet(saved, make_network(), ARCH, preprocessing=3, classes=CLASSES)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


# --- refused -------------------------------------------------------------------------------------


def test_weights_of_another_architecture_are_refused_with_the_tensors(saved):
    with pytest.raises(CheckpointError, match="best.safetensors: .*features.0.0.weight.*shape"):
        load_subnet(make_arch("k5", "k1", "k5"), saved)
    with pytest.raises(CheckpointError, match="best.safetensors: its weights do not fit.*first.0"):
        load_subnet(WIDTH_ARCH, saved)


def test_weights_for_other_classes_are_refused(saved):
    other = Architecture(TINY, {"image_size": 8, "num_classes": 7}, ARCH.choices)
    with pytest.raises(CheckpointError, match="classifier.weight"):
        load_subnet(other, saved)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="gone.safetensors: there is no such file"):
        load_subnet(tmp_path / "gone.safetensors")
    with pytest.raises(CheckpointError, match="gone.pt: there is no such file"):
        load_subnet(ARCH, tmp_path / "gone.pt")
    with pytest.raises(ArchitectureError, match="gone.json: cannot be read"):
        load_subnet(tmp_path / "gone.json")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="folder.safetensors"):
        load_subnet(tmp_path / "folder.safetensors")


def test_cut_file_is_refused(saved):
    data = saved.read_bytes()
    for length in (0, 4, 100, len(data) // 2, len(data) - 1):
        saved.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match="best.safetensors: is damaged"):
            load_subnet(saved)


def test_damaged_header_gives_our_error_or_a_network(saved):
    # The format has no checksum: a flipped bit among the weights cannot be noticed, and is no
    # more than a number. One in the header must not get past our own errors.
    data = saved.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    rng = random.Random(0)
    refused = 0
    for _ in range(300):
        place = rng.randrange(end)
        damaged = bytearray(data)
        damaged[place] ^= 1 << rng.randrange(8)
        saved.write_bytes(damaged)
        try:
            load_subnet(saved)
        except (CheckpointError, ArchitectureError, ConfigError) as error:
            refused += 1
            assert str(error)
    assert refused > 150


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"architecture": "{"}, "its architecture"),
        ({"architecture": '{"layer_1": "k3"}'}, "its architecture"),
        ({"preprocessing": "bgr"}, "preprocessing"),
        ({"classes": "["}, "its classes"),
        ({"classes": '{"a": 1}'}, "its classes"),
        ({"classes": "[1, 2, 3]"}, "its classes"),
    ],
)
def test_odd_metadata_are_refused_by_name(saved, changes, problem):
    with safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
    save_file(load_file(saved), saved, {**metadata, **changes})
    with pytest.raises((CheckpointError, ArchitectureError), match=f"best.safetensors.*{problem}"):
        load_subnet(saved)


def test_file_cannot_name_code_to_import(saved, monkeypatch):
    monkeypatch.delitem(SPACES, TINY)
    with pytest.raises(ConfigError, match="code outside of this package.*--space tiny_space:Tiny"):
        load_subnet(saved)


def test_run_folder_is_named_with_its_network(saved):
    run = saved.parent
    settings = {"version": 1, "stage": "scratch", "config": {}, "runtime": {}}
    (run / "args.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=f"{run}: is a run folder, .*give .*{saved}$"):
        load_subnet(run)
    saved.unlink()
    with pytest.raises(CheckpointError, match="not there yet"):
        load_subnet(run)
    (run / "args.json").write_text(json.dumps({**settings, "stage": "supernet"}))
    with pytest.raises(ConfigError, match="is the run of supernet.py, expected one of scratch.py"):
        load_subnet(run)
