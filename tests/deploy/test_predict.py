"""Predictions are those of the evaluation, whatever kind of file the network comes from."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from spos.__main__ import main
from spos.data.folder import open_data
from spos.data.prepare import prepare_image
from spos.deploy.images import load_test_images
from spos.deploy.networks import open_network
from spos.errors import ConfigError, DataError
from spos.subnet import load_subnet, save_subnet

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def predictions(capsys, *words):
    assert main(["predict", "--json", *map(str, words)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("preprocessing", ["standard", "spos"])
@pytest.mark.parametrize(("width", "height"), [(16, 16), (90, 41), (12, 300)])
def test_images_are_prepared_as_in_evaluation(tmp_path, digits_run, preprocessing, width, height):
    network = load_subnet(digits_run / "run" / "best.safetensors")
    for size in (16, 96):
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        for part in ("train", "val"):
            (tmp_path / str(size) / part / "a").mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / str(size) / part / "a" / "1.png")
        network.image_size, network.preprocessing = size, type(network.preprocessing)(preprocessing)
        data = open_data(tmp_path / str(size))
        ((expected, _),) = load_test_images(network, data.test, count=None)
        path = tmp_path / str(size) / "val" / "a" / "1.png"
        with Image.open(path) as opened:
            for image in (path, str(path), opened):
                found = prepare_image(
                    image, preprocessing=network.preprocessing, image_size=network.image_size
                )
                assert torch.equal(found, expected) and found.shape == (1, 3, size, size)


def test_every_kind_of_file_says_the_same(exported, capsys):
    test = open_data(exported.folder / "data").test
    paths = [test.root / path for path in test.paths[::60]]
    network = open_network(exported.weights)
    expected = [network(network.preprocess(path))[0].softmax(0).topk(5) for path in paths]
    kinds = {exported.weights: 1e-6, exported.hub: 1e-6, exported.onnx: 1e-4, exported.int8: 0.1}
    for file, tolerance in kinds.items():
        found = predictions(capsys, file, *paths)
        assert [each["image"] for each in found] == list(map(str, paths))
        for each, best in zip(found, expected, strict=True):
            assert len(each["classes"]) == 5
            assert each["classes"][0]["class"] == str(best.indices[0].item())
            value = each["classes"][0]["probability"]
            assert value == pytest.approx(best.values[0].item(), abs=tolerance)


def test_prediction_is_printed_for_people(exported, capsys):
    path = next((exported.folder / "data" / "test" / "3").iterdir())
    assert main(["predict", str(exported.hub), str(path), "--top", "2"]) == 0
    name, first, second = capsys.readouterr().out.splitlines()
    assert name == str(path)
    assert first.split()[1] == "%" and first.split()[2] in "0123456789"
    assert float(first.split()[0]) >= float(second.split()[0])


def test_undecodable_image_is_named(exported, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(DataError, match="text.jpg: cannot be decoded"):
        main(["predict", str(exported.weights), str(tmp_path / "text.jpg")])


def test_image_that_pillow_cannot_finish_is_named(exported, tmp_path):
    preprocess = load_subnet(exported.hub).preprocess
    path = tmp_path / "cut.png"
    Image.effect_noise((64, 64), 50).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[:3000])
    with Image.open(path) as opened, pytest.raises(DataError, match="cut.png: cannot be decoded"):
        preprocess(opened)
    with pytest.raises(DataError, match="the given image: .* more than 8 bits"):
        preprocess(Image.new("F", (20, 20)))


def test_network_of_unknown_preprocessing_is_refused(exported, tmp_path):
    network = load_subnet(exported.weights)
    path = tmp_path / "net.safetensors"
    save_subnet(path, network, network.arch, preprocessing=None)
    with pytest.raises(ConfigError, match="does not say how its images .* --preprocessing"):
        main(["predict", str(path), "a.jpg"])
    with pytest.raises(ConfigError, match="does not say how its images .* --preprocessing"):
        load_subnet(path).preprocess("a.jpg")


def test_edited_description_counts_and_a_broken_one_is_refused(exported, tmp_path, capsys):
    import shutil

    hub = tmp_path / "hub"
    shutil.copytree(exported.hub, hub)
    config = json.loads((hub / "config.json").read_text())
    config["classes"] = [f"digit {number}" for number in range(10)]
    (hub / "config.json").write_text(json.dumps(config))
    assert load_subnet(hub).classes[3] == "digit 3"
    for changes in ({"format": "other"}, {"preprocessing": None}, {"classes": [1]},
                    {"architecture": {**config["architecture"], "options": {"num_classes": 3}}},
                    {"architecture": None}):  # fmt: skip
        (hub / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(ValueError, match="hub"):
            load_subnet(hub)
    (hub / "config.json").unlink()
    with pytest.raises(ValueError, match="config.json: cannot be read"):
        load_subnet(hub)


def test_folder_of_images_is_named(tmp_path):
    with pytest.raises(ConfigError, match=f"{tmp_path}: is a folder, .*{tmp_path}/"):
        main(["predict", "best.safetensors", str(tmp_path)])
