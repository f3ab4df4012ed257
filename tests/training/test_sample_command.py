"""`python -m spos sample`: the published comparison, what it prints and draws, what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from published_networks import PLUS
from tiny_space import TINY

from spos.__main__ import main
from spos.architecture import load_architecture
from spos.cost.constraints import Constraint
from spos.cost.counting import build_cost_table
from spos.cost.table import CostTable
from spos.deploy.networks import open_network
from spos.errors import ConfigError, ConstraintError
from spos.training.samplers.coverage import measure_coverage

pytestmark = pytest.mark.usefixtures("one_thread")

# CanyonWind's box and as many draws as its walk has steps in an epoch.
BOX = ["--path-range", "macs=190M:330M", "--path-range", "params=2.8M:5M"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run folder as far as this command needs one: CanyonWind's supernet+, a small space."""
    folder = tmp_path_factory.mktemp("tables")
    build_cost_table("shufflenetv2", options={"image_size": 224, "num_classes": 1000, **PLUS}).save(
        folder / "cost.json"
    )
    build_cost_table("nasbench_macro", options={}).save(folder / "macro.json")
    return folder


def test_strolling_covers_what_is_published(folder, capsys):
    assert main(["sample", str(folder), *BOX, "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["cells"] == 154 and value["options"]["head"] == "mobilenetv3"
    found = {name: each["occupied"] for name, each in value["samplers"].items()}
    # Published: 95, 104 and 149, and an entropy over 7 x 7 cells of 0.711 and 0.978.
    assert list(found) == ["uniform", "constrained", "strolling"]
    assert abs(found["uniform"] - 95) <= 8 and abs(found["constrained"] - 104) <= 8
    assert found["strolling"] >= 149
    uniform, constrained, strolling = value["samplers"].values()
    assert uniform["inside"] == pytest.approx(0.48, abs=0.03)
    assert uniform["mean"]["macs"] == pytest.approx(332.4e6, rel=0.01)
    assert constrained["inside"] == strolling["inside"] == 1
    assert constrained["coarse_entropy"] == pytest.approx(0.711, abs=0.02)
    assert strolling["coarse_entropy"] > 0.97


def test_table_is_printed_and_drawn(folder, tmp_path, capsys):
    plot = tmp_path / "paths.png"
    words = ["--sampler", "fair", "macs-uniform", "--draws", "300", "--plot", str(plot)]
    assert main(["sample", str(folder / "macro.json"), *words]) == 0
    first, header, *rows = capsys.readouterr().out.splitlines()
    assert "macs 7,713,280 to 105,660,928 and params" in first
    assert header.split() == ["sampler", "inside", "cells", *"14 x 11 7 x 7".split()]
    assert [row.split()[:2] for row in rows] == [["fair", "100.0%"], ["macs-uniform", "100.0%"]]
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_epoch_of_the_warmup_is_drawn(folder, capsys):
    means = []
    for epoch in ("1", "3"):
        words = ["--draws", "50", "--channel-warmup", "oneshot", "--epoch", epoch, "--json"]
        assert main(["sample", str(folder), *words]) == 0
        means.append(json.loads(capsys.readouterr().out)["samplers"]["uniform"]["mean"]["macs"])
    assert means[0] > means[1] > 400e6


def test_space_is_counted(capsys):
    assert main(["sample", "nasbench_macro", "--draws", "20", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["box"]["macs"] == [7_713_280, 105_660_928]
    assert value["samplers"]["uniform"]["inside"] == 1


def test_networks_to_be_measured_are_written(tmp_path, capsys, monkeypatch, tiny_spaces):
    build_cost_table(TINY, options={"image_size": 8, "num_classes": 3}).save(tmp_path / "tiny.json")
    folder = tmp_path / "phone"
    words = ["sample", str(tmp_path / "tiny.json"), "--onnx", str(folder), "--draws"]
    assert main([*words, "1"]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1].startswith("fair ")
    assert (
        "phone: 1 networks ID.onnx" in printed.err and "`cost --fit` needs 7 or more" in printed.err
    )
    (path,) = folder.glob("*.onnx")
    network, before = open_network(path), path.read_bytes()
    assert network.arch.id == path.stem
    images = torch.randn(2, 3, 8, 8)
    assert network(images).shape == (2, 3) and network(images).std() > 0
    # Repeated, the command writes what is not there yet.
    monkeypatch.setattr("spos.commands.sample_files._export", lambda arch: arch.id.encode())
    assert main([*words, "3"]) == 0
    archs = [load_architecture(each) for each in folder.glob("*.json")]
    assert len(archs) == 3 and network.arch in archs
    for arch in archs:
        expected = before if arch == network.arch else arch.id.encode()
        assert (folder / f"{arch.id}.onnx").read_bytes() == expected
    for label in ("layer_1", "layer_2", "layer_3"):  # each candidate once in three draws
        assert {arch.choices[label] for arch in archs} == {"k1", "k3", "k5"}
    # So it does after it was killed between the two files of a network; none is counted twice.
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("spos.commands.sample_files.save_architecture", die)
        main([*words, "90"])
    capsys.readouterr()
    assert main([*words, "90"]) == 0
    names = sorted(each.stem for each in folder.glob("*.onnx"))
    assert names == sorted(each.stem for each in folder.glob("*.json"))
    assert f"phone: {len(names)} networks" in capsys.readouterr().err


def die(*_):
    raise KeyboardInterrupt


def test_architectures_to_be_trained_are_written(folder, tmp_path, capsys):
    target, path = str(folder / "macro.json"), tmp_path / "truth"
    words = ["--draws", "9", "--json", "--output-dir"]
    assert main(["sample", target, *words, str(path)]) == 0
    printed = capsys.readouterr()
    assert list(json.loads(printed.out)["samplers"]) == ["uniform"]
    table = CostTable.load(Path(target))
    archs = [load_architecture(each) for each in path.iterdir()]
    assert {f"{arch.id}.json" for arch in archs} == {each.name for each in path.iterdir()}
    assert f"truth: {len(archs)} architectures ID.json" in printed.err and len(archs) == 9
    for arch in archs:
        assert arch.options == table.spec.options and arch.metrics == table.costs(arch.choices)
    (tmp_path / "taken" / f"{archs[0].id}.json").mkdir(parents=True)
    with pytest.raises(
        ConfigError, match=rf"{archs[0].id}\.json: cannot be written .*another --out"
    ):
        main(["sample", target, *words, str(tmp_path / "taken")])
    # Within a range they are drawn from it.
    limit = sorted(arch.metrics["macs"] for arch in archs)[4]
    words += [str(tmp_path / "of" / "small"), "--path-range", f"macs=:{limit}"]
    assert main(["sample", target, *words]) == 0
    small = [load_architecture(each) for each in (tmp_path / "of" / "small").iterdir()]
    assert len(small) > 1 and all(arch.metrics["macs"] <= limit for arch in small)
    with pytest.raises(ConfigError, match="--output-dir: is for the paths of one sampler"):
        main(["sample", target, *words, "--sampler", "fair", "uniform"])


def test_architectures_are_as_many_as_one_can_train(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "spos.commands.sample.write_architectures", lambda *given: asked.extend(given[-1])
    )
    assert main(["sample", str(folder / "macro.json"), "--output-dir", "truth"]) == 0
    assert len(asked) == 20


@pytest.mark.parametrize(
    ("words", "sampler", "count"),
    [([], "fair", 200), (["--path-range", "macs=:50M", "--draws", "9"], "constrained", 9)],
)
def test_networks_to_be_measured_suit_the_fit(folder, capsys, monkeypatch, words, sampler, count):
    asked = []
    monkeypatch.setattr(
        "spos.commands.sample.write_networks",
        lambda folder, table, paths, *, space: asked.extend(map(table.cost, paths)),
    )
    assert main(["sample", str(folder / "macro.json"), "--onnx", "phone", *words]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{sampler} ")
    assert len(asked) == count and (not words or max(asked) <= 50_000_000)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sampler", "fair", "uniform"], "--onnx: is for the paths of one sampler"),
        (["--onnx", "macro.json"], "--onnx macro.json: cannot be written .*name another folder"),
        (["--space", "nowhere:Space"], "'nowhere:Space' cannot be imported"),
    ],
)
def test_networks_that_cannot_be_written_are_said(folder, monkeypatch, words, message):
    monkeypatch.chdir(folder)
    before = sorted(folder.iterdir())
    with pytest.raises(ConfigError, match=message):
        main(["sample", "macro.json", "--draws", "9", "--onnx", "phone", *words])
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sampler", "strolling"], "--sampler strolling: needs the box"),
        (["--path-range", "macs=1G:2G"], "the space reaches 7,713,280"),
        (["--channel-warmup", "x"], "--channel-warmup x"),
        (["--space-options", "{}"], "--space-options: .*macro.json"),
        (["--draws", "9", "--plot", "no/such/folder.png"], "--plot no/such/folder.png"),
    ],
)
def test_wrong_flags_are_named(folder, words, message):
    with pytest.raises((ConfigError, ConstraintError), match=message):
        main(["sample", str(folder / "macro.json"), *words])


@pytest.mark.parametrize("flag", ["--draws", "--epoch"])
def test_counts_are_of_one_or_more(folder, capsys, flag):
    with pytest.raises(SystemExit):
        main(["sample", str(folder / "macro.json"), flag, "0"])
    assert f"{flag}: expected 1 or more, found 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "message"),
    [("resnet", "resnet: is neither a file"), ("{}/macro.json/x", "is neither a file")],
)
def test_target_that_is_none_is_refused(folder, target, message):
    with pytest.raises(ConfigError, match=message):
        main(["sample", target.format(folder)])


# --- coverage ------------------------------------------------------------------------------------


def test_coverage_is_even_if_every_cell_has_as_many():
    box = Constraint("macs", 0, 14), Constraint("params", 0, 11)
    cells = np.array([(x + 0.5, y + 0.5) for x in range(14) for y in range(11)])
    even = measure_coverage(np.concatenate([cells, cells, [[20, 3], [1, 12]]]), box)
    assert (even.occupied, even.inside) == (154, 308 / 310)
    assert even.entropy == pytest.approx(1)
    one = measure_coverage(cells[:1], box)
    assert (one.occupied, one.entropy, one.coarse_entropy) == (1, 0, 0)
    none = measure_coverage(cells + 100, box)
    assert (none.occupied, none.inside, none.entropy) == (0, 0, 0)


def test_both_ends_of_the_box_belong_to_it(folder):
    box = Constraint("macs", 0, 14), Constraint("params", 0, 11)
    corners = measure_coverage(np.array([[0, 0], [14, 11], [0, 11], [14, 0.0]]), box)
    assert (corners.inside, corners.occupied) == (1, 4)


def test_space_of_one_cost_has_a_box_too():
    box = Constraint("macs", 5, 5), Constraint("params", 1, 2)
    assert measure_coverage(np.array([[5, 1.0]]), box).occupied == 1
