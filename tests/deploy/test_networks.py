"""ONNX files as networks: those of others and damaged ones are refused by name."""

import random

import onnx
import pytest
import torch
from torch import nn

from spos.deploy.networks import Agreement, OnnxNetwork, compare_networks, open_network
from spos.deploy.onnx_export import require_onnx
from spos.errors import CheckpointError, ConfigError, DataError, SposError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def saved(tiny_onnx, tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(tiny_onnx)
    return path


def test_cut_file_is_refused(saved, tiny_onnx):
    for length in (0, 4, 100, len(tiny_onnx) // 2, len(tiny_onnx) - 1):
        saved.write_bytes(tiny_onnx[:length])
        with pytest.raises(CheckpointError, match="net.onnx: is damaged or not an ONNX model"):
            open_network(saved)


def test_damaged_file_gives_our_error_or_a_network(saved, tiny_onnx):
    # The format has no checksum, so a flipped bit among the weights cannot be noticed.
    draw, refused = random.Random(0), 0
    for _ in range(60):
        damaged = bytearray(tiny_onnx)
        for _ in range(8):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        saved.write_bytes(damaged)
        try:
            open_network(saved)
        except SposError as error:
            refused += 1
            assert "net.onnx" in str(error)
    assert refused > 10


def test_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="gone.onnx: cannot be read"):
        open_network(tmp_path / "gone.onnx")


def test_model_of_others_is_refused(saved, tiny_onnx):
    model = onnx.load_model_from_string(tiny_onnx)
    del model.metadata_props[:]
    saved.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="net.onnx: is an ONNX model, but not one of ours"):
        open_network(saved)


@pytest.mark.parametrize("key", ["architecture", "preprocessing", "classes"])
def test_malformed_metadata_are_refused(saved, tiny_onnx, key):
    model = onnx.load_model_from_string(tiny_onnx)
    for each in model.metadata_props:
        if each.key == key:
            each.value = '{"oops": 1}'
    saved.write_bytes(model.SerializeToString())
    with pytest.raises(SposError, match="net.onnx"):
        open_network(saved)


def test_weights_in_other_files_are_not_read(saved, tiny_onnx):
    model = onnx.load_model_from_string(tiny_onnx)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    (saved.parent.parent / "secret").write_bytes(bytes(4096))
    saved.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="net.onnx: has weights in other files"):
        open_network(saved)


def test_networks_that_differ_are_found():
    class Shifted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.tensor([0.0, 0.01])

    images = [(torch.tensor([[1.0, 0.995], [3.0, 1.0]]), torch.tensor([0, 0]))]
    agreement = compare_networks(nn.Identity(), Shifted(), images)
    assert agreement.num_images == 2 and agreement.same_top1 == 0.5
    assert agreement.difference == pytest.approx(0.01) and agreement.largest == 3.0
    with pytest.raises(ConfigError, match="net: a logit differs by 1.00e-02 .* 50.00 % of 2 im"):
        agreement.check(1e-4, what="net")
    Agreement(9e-5, 0.5, 1.0, 2).check(1e-4, what="net")
    Agreement(9e-4, 10.0, 1.0, 2).check(1e-4, what="net")  # float32 rounds in proportion
    for difference, same in ((2e-4, 1.0), (0.0, 0.99), (float("nan"), 1.0)):
        with pytest.raises(ConfigError, match="net: a logit differs"):
            Agreement(difference, 1.0, same, 100).check(1e-4, what="net")
    broken = [*images, (torch.full((1, 2), torch.nan), torch.tensor([0]))]
    with pytest.raises(ConfigError, match="net: a logit differs by nan"):
        compare_networks(nn.Identity(), nn.Identity(), broken).check(1e-4, what="net")
    with pytest.raises(DataError, match="on no images"):
        compare_networks(nn.Identity(), nn.Identity(), [])


def test_missing_onnx_says_what_to_install(tiny_onnx, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ConfigError, match="onnxscript.*pip install 'spos.deploy.'"):
        require_onnx()
    with pytest.raises(ConfigError, match="pip install"):
        OnnxNetwork(tiny_onnx, source="net.onnx")
