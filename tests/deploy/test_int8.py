"""Quantisation: every calibration, what stays in float, and images that do not fit."""

import json

import numpy as np
import onnx
import pytest
import torch
from subnets import TINY_ARCH

from spos.deploy.int8 import CALIBRATIONS, Quantization, count_int8_convolutions, quantize
from spos.deploy.networks import OnnxNetwork
from spos.errors import ConfigError, DataError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def batches():
    torch.manual_seed(0)
    return [torch.randn(4, 3, 8, 8) for _ in range(3)]


@pytest.mark.parametrize("calibration", CALIBRATIONS)
def test_every_calibration_gives_nearly_the_same_logits(tiny_onnx, batches, calibration, capfd):
    quantized = quantize(tiny_onnx, batches, Quantization(calibration))
    assert capfd.readouterr().out == ""
    network, other = (OnnxNetwork(each, source="model") for each in (tiny_onnx, quantized))
    images = torch.cat(batches)
    before, after = network(images), other(images)
    assert 0 < (before - after).abs().max() < 0.2 * before.abs().max()
    assert count_int8_convolutions(quantized, source="model") == (4, 4)
    assert other.arch == TINY_ARCH and other.classes == ("a", "b", "c")
    assert other.preprocessing.name == "spos" and other.image_size == 8


def test_named_layers_stay_in_float(tiny_onnx, batches):
    settings = Quantization(float_layers=("stem", "features.1.0", "classifier"))
    quantized = quantize(tiny_onnx, batches, settings)
    assert count_int8_convolutions(quantized, source="model") == (2, 4)
    model = onnx.load_model_from_string(quantized)
    said = {each.key: each.value for each in model.metadata_props}
    described = json.loads(said["quantization"])
    assert described["float_layers"] == list(settings.float_layers)
    assert described["images"] == 12
    everything = Quantization(float_layers=("stem", "features", "classifier"))
    unchanged = OnnxNetwork(quantize(tiny_onnx, batches, everything), source="model")
    images = batches[0]
    assert torch.equal(unchanged(images), OnnxNetwork(tiny_onnx, source="model")(images))


def test_per_channel_keeps_a_scale_for_each_channel(tiny_onnx, batches):
    counts = {}
    for per_channel in (True, False):
        model = quantize(tiny_onnx, batches, Quantization(per_channel=per_channel))
        tensors = onnx.load_model_from_string(model).graph.initializer
        counts[per_channel] = {
            each.name: list(each.dims) for each in tensors if each.name.endswith("0.weight_scale")
        }
    assert len(counts[True]) == len(counts[False]) == 4
    assert set(map(tuple, counts[True].values())) == {(6,)}
    assert (6,) not in set(map(tuple, counts[False].values()))


def test_weights_have_seven_bits_unless_eight_are_asked_for(tiny_onnx, batches):
    for settings, largest in ((Quantization(), 64), (Quantization(reduce_range=False), 127)):
        model = onnx.load_model_from_string(quantize(tiny_onnx, batches, settings))
        weights = [
            onnx.numpy_helper.to_array(each)
            for each in model.graph.initializer
            if each.name.endswith("weight_quantized")
        ]
        assert weights and {each.dtype for each in weights} == {np.dtype("int8")}
        assert max(abs(each.astype(int)).max() for each in weights) == largest


def test_quantisation_is_repeatable(tiny_onnx, batches):
    once, again = (quantize(tiny_onnx, batches, Quantization()) for _ in range(2))
    assert once == again


def test_unknown_layer_and_calibration_are_named(tiny_onnx, batches):
    with pytest.raises(ConfigError, match="layer 'head', to be left in float, .* it has stem.0"):
        quantize(tiny_onnx, batches, Quantization(float_layers=("head",)))
    with pytest.raises(ConfigError, match="calibration 'mean' is unknown; choose one of min-max"):
        Quantization("mean")


def test_images_of_another_size_are_refused(tiny_onnx, batches):
    wrong = [*batches, torch.randn(4, 3, 8, 12)]
    with pytest.raises(ConfigError, match="3 x 8 x 12, but the network takes 3 x 8 x 8"):
        quantize(tiny_onnx, wrong, Quantization())


def test_no_images_are_refused(tiny_onnx):
    for batches in ([], [torch.empty(0, 3, 8, 8)]):
        with pytest.raises(DataError, match="needs training images to calibrate on"):
            quantize(tiny_onnx, batches, Quantization())
