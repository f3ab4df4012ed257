"""Every search space as ONNX computes what PyTorch does, the main one from the command line too."""

import pytest
import torch
from subnets import random_subnet

from spos.__main__ import main
from spos.data.folder import open_data
from spos.data.preprocessing import Preprocessing
from spos.deploy.images import load_test_images
from spos.deploy.int8 import count_int8_convolutions
from spos.deploy.networks import OnnxNetwork, compare_networks, open_network
from spos.deploy.onnx_export import export_onnx
from spos.folding import fold_batchnorm
from spos.subnet import save_subnet

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.mark.parametrize("space", ["shufflenetv2", "shufflenetv2plus", "proxyless_gpu"])
def test_every_space_is_the_same_function_as_onnx(space):
    network = random_subnet(space)
    folded = fold_batchnorm(network, torch.zeros(1, 3, 32, 32)).network
    model = export_onnx(
        folded, network.arch, image_size=32, preprocessing=Preprocessing("standard")
    )
    exported = OnnxNetwork(model, source=space)
    for count in (1, 3):
        images = torch.randn(count, 3, 32, 32)
        with torch.no_grad():
            assert (exported(images) - network(images)).abs().max() <= 1e-4


def test_main_space_is_exported_from_the_command_line(digits_run, tmp_path, capsys):
    network = random_subnet("shufflenetv2")
    weights = tmp_path / "best.safetensors"
    classes = [str(digit) for digit in range(10)]
    save_subnet(weights, network, network.arch, preprocessing="standard", classes=classes)
    onnx, int8 = tmp_path / "net.onnx", tmp_path / "net.int8.onnx"
    command = ["export", weights, "--onnx", onnx, "--int8", int8, "--shuffle-by-convolution"]
    command += ["--data-dir", digits_run / "data", "--test-images", "40"]
    assert main([str(word) for word in [*command, "--calibration-images", "20"]]) == 0
    said = capsys.readouterr().out
    assert "same first class on 100.00 %" in said and "min-max over 20 training images" in said
    num_int8, num_convolutions = count_int8_convolutions(int8.read_bytes(), source="int8")
    assert num_int8 == num_convolutions > 88  # those of the shuffles as well
    test = load_test_images(open_network(weights), open_data(digits_run / "data").test, count=20)
    agreement = compare_networks(open_network(weights), open_network(onnx), test)
    assert agreement.difference <= 1e-4
