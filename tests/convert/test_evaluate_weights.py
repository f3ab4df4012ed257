"""`python -m spos evaluate` of another system's weights gives what its own code gives."""

import json
import shutil

import foreign_networks as foreign
import numpy as np
import pytest
import torch
from foreign_networks import Weights, saved
from PIL import Image

from spos.__main__ import main
from spos.convert.zoo import ZOO
from spos.data.prepare import prepare_image
from spos.data.preprocessing import Preprocessing
from spos.errors import CheckpointError, DataError

pytestmark = pytest.mark.usefixtures("one_thread")

BLOCKS = [int(digit) for digit in ZOO["megvii"].blocks]


@torch.no_grad()
def test_first_classes_are_those_of_megviis_network(tmp_path, capsys):
    generator, prepared = np.random.default_rng(0), []
    for number in range(10):
        folder = tmp_path / "data" / "val" / f"n{number}"
        folder.mkdir(parents=True)
        pixels = generator.integers(0, 25 * (number + 1), (40 + 30 * number, 300, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "1.png")
        spos = Preprocessing("spos")
        prepared.append(prepare_image(folder / "1.png", preprocessing=spos, image_size=128))
    weights = Weights()
    logits = foreign.megvii(weights, torch.cat(prepared).double(), BLOCKS)
    path = saved(tmp_path / "checkpoint.pth.tar", weights, prefix="module.")

    def evaluate(model, *words):
        command = ["evaluate", model, "--weights", path, "--data-dir", tmp_path / "data", *words]
        smaller = ["--space-options", '{"image_size": 128}']  # halved as often as 224
        return main([*map(str, command), *smaller, "--workers", "0", "--device", "cpu", "--json"])

    assert evaluate("zoo:megvii", "--spos-preprocessing") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["num_images"], found["preprocessing"]) == (10, "spos")
    firsts = {f"n{number}": f"n{first}" for number, first in enumerate(logits.argmax(1).tolist())}
    wrong = {each["class"]: each["predicted"] for each in found["confusions"]}
    assert {name: wrong.get(name, name) for name in firsts} == firsts
    loss = torch.nn.functional.cross_entropy(logits, torch.arange(10)).item()
    assert found["loss"] == pytest.approx(loss, rel=1e-4)

    with pytest.raises(CheckpointError, match="checkpoint.pth.tar: .* not of the given archit"):
        evaluate("zoo:megvii-oneshot-blocks")
    shutil.rmtree(tmp_path / "data" / "val" / "n4")
    with pytest.raises(DataError, match="has 9 classes .* tells 10 apart and knows no names"):
        evaluate("zoo:megvii")
