"""The export of a network of digits: what it writes, prints and keeps of the network's accuracy."""

import json
import re

import onnx
import pytest
import torch

import spos
from spos.__main__ import main
from spos.architecture import parse_architecture
from spos.data.folder import open_data
from spos.deploy.images import load_test_images
from spos.deploy.int8 import count_int8_convolutions
from spos.deploy.networks import compare_networks, open_network
from spos.errors import CheckpointError, ConfigError, DataError
from spos.evaluation.accuracy import measure_accuracy

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture
def weights(exported):
    return str(exported.weights)


def metadata(path):
    return {each.key: each.value for each in onnx.load(path).metadata_props}


# --- what was written ----------------------------------------------------------------------------


def test_onnx_is_the_same_function_on_real_images(exported):
    network, other = open_network(exported.weights), open_network(exported.onnx)
    test = load_test_images(network, open_data(exported.folder / "data").test, count=256)
    agreement = compare_networks(network, other, test)
    assert agreement.num_images == 256 and agreement.same_top1 == 1.0
    assert agreement.difference <= 1e-4
    for count in (1, 3):
        images = torch.randn(count, 3, 16, 16)
        assert other(images).shape == (count, 10)
        assert torch.allclose(other(images), network(images), atol=1e-4)


def test_onnx_has_no_batchnorm_and_its_layers_bear_their_names(exported):
    nodes = onnx.load(exported.onnx).graph.node
    assert "BatchNormalization" not in {node.op_type for node in nodes}
    convolutions = [node.name for node in nodes if node.op_type == "Conv"]
    names = {name for name, _ in spos.load_subnet(exported.weights).named_modules()}
    assert len(convolutions) == 11 and set(convolutions) <= names
    assert "classifier" in {node.name for node in nodes}


@pytest.mark.parametrize("name", ["net.onnx", "net.int8.onnx"])
def test_metadata_say_all_that_is_needed(exported, name):
    found = metadata(exported.folder / name)
    network = spos.load_subnet(exported.weights)
    assert parse_architecture(found["architecture"]) == network.arch
    assert json.loads(found["classes"]) == list("0123456789")
    prepared = json.loads(found["preprocessing"])
    assert prepared["name"] == "standard" and prepared["image_size"] == 16
    assert prepared["resize_shorter_side"] == 16 and prepared["channels"] == "RGB"
    assert ("quantization" in found) == (name == "net.int8.onnx")


def test_onnx_does_not_tell_where_it_was_made(exported):
    content = exported.onnx.read_bytes() + exported.int8.read_bytes()
    for word in (b"spos.spaces", b"site-packages", b"fx_node", str(exported.folder).encode()):
        assert word not in content


def test_int8_loses_at_most_one_point_and_runs_in_int8(exported):
    network, quantized = open_network(exported.onnx), open_network(exported.int8)
    test = load_test_images(network, open_data(exported.folder / "data").test, count=None)
    before, after = (
        measure_accuracy(each, test, torch.device("cpu")).top1 for each in (network, quantized)
    )
    assert before > 0.8
    assert after >= before - 0.01
    assert count_int8_convolutions(exported.int8.read_bytes(), source="int8") == (11, 11)
    assert count_int8_convolutions(exported.onnx.read_bytes(), source="fp32") == (0, 11)
    assert exported.int8.stat().st_size < 0.5 * exported.onnx.stat().st_size


def test_printed_figures_are_those_of_the_files(exported):
    top1 = 100 * spos.load_subnet(exported.weights).arch.metrics["top1"]
    text = exported.printed
    assert "folded: 11 BatchNorms into convolutions; largest difference of a logit" in text
    assert "same first class on 100.00 %" in text
    assert f"test top-1: {top1:.2f} % on 300 images" in text
    assert "min-max over 256 training images; 11 of 11 convolutions run in int8" in text
    assert re.search(rf"test top-1: {top1:.2f} % in float32, [\d.]+ % in int8 \([+-][\d.]+ p", text)
    assert re.search(r"float32 [\d.]+ ms, int8 [\d.]+ ms", text)
    size = exported.onnx.stat().st_size / 2**20
    assert f"ONNX: {size:.1f} MiB" in text


# --- the folder to hand over ---------------------------------------------------------------------


def test_folder_gives_back_the_network(exported):
    given, original = spos.load_subnet(exported.hub), spos.load_subnet(exported.weights)
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(given(images), original(images))
    assert given.arch == original.arch and given.classes == original.classes
    assert given.preprocessing == original.preprocessing and not given.training


def test_folder_describes_the_network(exported):
    assert sorted(each.name for each in exported.hub.iterdir()) == [
        "README.md", "config.json", "model.safetensors",
    ]  # fmt: skip
    config = json.loads((exported.hub / "config.json").read_text())
    metrics = spos.load_subnet(exported.weights).arch.metrics
    assert config["classes"] == list("0123456789")
    assert config["metrics"] == pytest.approx(dict(metrics))
    card = (exported.hub / "README.md").read_text()
    assert f"| top1 | {metrics['top1']:.4f} |" in card
    assert f"| macs | {metrics['macs']:,d} |" in card
    assert 'spos.load_subnet("hub")' in card


# --- refused, with nothing written ---------------------------------------------------------------


def listing(folder):
    return sorted(str(path) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ([], ConfigError, "nothing to write: give at least one of --onnx, --int8, --hub-dir"),
        (["--onnx", "a.onnx", "--int8", "a.onnx"], ConfigError, "are the same file, a.onnx"),
        (["--onnx", "a.bin"], ConfigError, "a.bin: an ONNX file is called .onnx"),
        (["--onnx", "gone/a.onnx"], ConfigError, "gone/a.onnx: cannot be written"),
        (["--onnx", "file/a.onnx"], ConfigError, "file/a.onnx: cannot be written"),
        (["--onnx", "full.onnx"], ConfigError, "full.onnx: is a folder"),
        (["--hub-dir", "full.onnx"], ConfigError, "full.onnx: is there already; remove it or"),
        (["--hub-dir", "."], ConfigError, "--hub-dir .: name a new folder, such as my-net"),
        (["--hub-dir", "file/hub"], ConfigError, "file/hub: cannot be written"),
        (["--int8", "a.onnx", "--calibration-images", "5000"], DataError,
         "data/train: has 1497 images; ask for fewer (--calibration-images 5000)"),
        (["--onnx", "a.onnx", "--test-images", "301"], DataError,
         "data/test: has 300 images; ask for fewer (--test-images 301)"),
        (["--onnx", "a.onnx", "--data-dir", "gone"], DataError, "gone: is not a folder"),
        (["--onnx", "a.onnx", "--data-dir", "other"], DataError,
         "other: has the classes cat, dog, but the network was trained on 0, 1, 2, 3, 4, ..."),
        (["--onnx", "a.onnx", "--shuffle-by-convolution"], ConfigError, "has no channel shuffle"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_bad_request_writes_nothing(
    exported, weights, tmp_path, monkeypatch, words, error, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full.onnx").mkdir()
    (tmp_path / "full.onnx" / "kept").write_text("")
    (tmp_path / "file").write_text("")
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / "other" / part / name).mkdir(parents=True)
            (tmp_path / "other" / part / name / "1.jpg").write_bytes(b"")
    before = listing(tmp_path)
    with pytest.raises(error) as caught:
        main(["export", weights, *words])
    assert message in str(caught.value)
    assert listing(tmp_path) == before


def test_architecture_without_weights_is_refused(exported, tmp_path):
    for name in (exported.folder / "arch.json", tmp_path / "gone.json", "zoo:megvii"):
        with pytest.raises(
            CheckpointError, match="is no trained network; .* has no weights: train"
        ):
            main(["export", str(name), "--onnx", str(tmp_path / "a.onnx")])
    with pytest.raises(CheckpointError, match="gone.safetensors: there is no such file"):
        main(["export", "gone.safetensors", "--onnx", str(tmp_path / "a.onnx")])
    with pytest.raises(ConfigError, match="net.onnx: is ONNX already"):
        main(["export", str(exported.onnx), "--int8", str(tmp_path / "a.onnx")])
    assert listing(tmp_path) == []


def test_weights_without_their_run_need_the_data(exported, tmp_path):
    (tmp_path / "net.safetensors").write_bytes(exported.weights.read_bytes())
    words = ["export", str(tmp_path / "net.safetensors"), "--onnx", str(tmp_path / "a.onnx")]
    with pytest.raises(ConfigError, match="no args.json .* give the data set: --data-dir DIR"):
        main(words)
    assert listing(tmp_path) == [str(tmp_path / "net.safetensors")]


def test_undecodable_calibration_image_writes_nothing(exported, tmp_path, weights):
    import shutil

    shutil.copytree(exported.folder / "data", tmp_path / "data")
    for path in (tmp_path / "data" / "train").rglob("*.jpg"):
        path.write_bytes(path.read_bytes()[:200])
    words = ["--data-dir", str(tmp_path / "data"), "--int8", str(tmp_path / "a.onnx")]
    with pytest.raises(DataError, match="cannot be decoded"):
        main(["export", weights, *words])
    assert not (tmp_path / "a.onnx").exists()


def test_full_disk_leaves_nothing(exported, weights, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("spos.deploy.folder.write_json", full)
    with pytest.raises(ConfigError, match="hub: cannot be written .No space left on device"):
        main(["export", weights, "--hub-dir", str(tmp_path / "hub")])
    assert listing(tmp_path) == []
