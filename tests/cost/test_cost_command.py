"""`python -m spos cost`: what it prints of a file, of a published network and of a space."""

import argparse
import json

import pytest
from published_networks import PLAIN, PLUS, S_PLUS, S_PLUS_CHANNELS, shuffle_architecture

from spos.__main__ import COMMANDS
from spos.architecture import save_architecture
from spos.commands import cost
from spos.cost.conventions import CONVENTIONS
from spos.cost.table import CostTable
from spos.errors import ArchitectureError, ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def run(capsys):
    """Runs the command and returns what it printed."""

    def run(*arguments: object) -> str:
        parser = argparse.ArgumentParser()
        cost.configure(parser)
        parsed = parser.parse_args([str(each) for each in arguments])
        assert parsed.run(parsed) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def s_plus(tmp_path):
    path = tmp_path / "s_plus.json"
    save_architecture(path, shuffle_architecture(S_PLUS, S_PLUS_CHANNELS, **PLUS))
    return path


def test_command_is_registered():
    assert "cost" in COMMANDS


def test_help_names_every_convention():
    assert set(cost.CONVENTIONS) == {*CONVENTIONS, "micronet"}
    parser = argparse.ArgumentParser(
        formatter_class=lambda prog: argparse.HelpFormatter(prog, width=1000)
    )
    cost.configure(parser)
    text = parser.format_help()
    assert all(name in text for name in cost.CONVENTIONS)


def test_layers_and_total_are_printed(run, request):
    text = run(request.config.rootpath / "architecture_final.json")
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["layer", "macs", "params"]
    assert lines[1] == ["first_conv.0", "5,419,008", "432"]
    assert lines[-2] == ["total", "322,918,720", "3,558,464"]
    assert text.endswith("\nmacs: multiply-adds of convolutions and linear layers\n")
    assert len(lines) == 1 + 82 + 82 + 1 + 2  # convolutions, BatchNorms, classifier; two ends


def test_json_is_one_object_with_the_same_figures(run, request):
    path = request.config.rootpath / "architecture_final.json"
    value = json.loads(run(path, "--json"))
    assert value["total"] == {"macs": 322_918_720, "params": 3_558_464}
    assert sum(layer["macs"] for layer in value["layers"]) == 322_918_720
    assert sum(layer["params"] for layer in value["layers"]) == 3_558_464
    assert value["space"] == "shufflenetv2" and value["choices"]["layer_1"] == "k7"


@pytest.mark.parametrize(
    ("convention", "flops"),
    [("canyonwind", 291_475_944), ("macs", 291_125_760)],
)
def test_convention_is_followed(run, s_plus, convention, flops):
    value = json.loads(run(s_plus, "--convention", convention, "--json"))
    assert value["convention"] == convention
    assert value["total"]["macs" if convention == "macs" else "flops"] == flops
    if convention == "canyonwind":
        assert round(value["scores"]["readme_score"], 4) == 1.9304
        assert round(value["scores"]["search_score"], 4) == 0.9652
        assert "readme_score 1.9304" in run(s_plus, "--convention", convention)


def test_micronet_counts_are_printed(run, s_plus):
    value = json.loads(run(s_plus, "--convention", "micronet", "--json"))
    assert value["quantized"] == {
        "params": 3_520_225,
        "mults": 292_819_840,
        "adds": 286_217_920,
    }
    assert round(value["bits"]["8"]["micronet_score"], 4) == 0.2795
    text = run(s_plus, "--convention", "micronet")
    assert "32 bit: 3,652,225 words, 589,706,112 operations, micronet_score 1.0333" in text


def test_profile_lists_every_operation(run, s_plus):
    value = json.loads(run(s_plus, "--profile", "--json"))
    first, last = value["profile"][0], value["profile"][-1]
    assert first == {
        "name": "first_conv.0",
        "kind": "conv",
        "input_size": 224,
        "kernel": 3,
        "in_channels": 3,
        "out_channels": 16,
        "groups": 1,
        "params": 432,
        "mults": 5_419_008,
        "adds": 5_419_008 - 16 * 112 * 112,
        "quantized": True,
    }
    assert (last["name"], last["input_size"], last["params"]) == ("classifier.0", 1, 1_025_000)
    assert value["total"]["mults"] == 301_383_552
    lines = run(s_plus, "--profile").splitlines()
    assert lines[0].split()[:4] == ["name", "kind", "input", "kernel"]
    assert lines[-1].split() == ["total", "3,652,225", "301,383,552", "288,322,560"]
    assert len(lines) == len(value["profile"]) + 2


def test_table_of_a_space_is_written(run, tmp_path):
    path = tmp_path / "cost.json"
    text = run("nasbench_macro", "--table", path)
    table = CostTable.load(path)
    assert dict(table.spec.options) == {"image_size": 32, "num_classes": 10}
    assert "8 choices, 6,561 architectures" in text
    low, high = table.bounds()
    assert (low, table.bounds("params")[0]) == (7_713_280, 387_882)
    assert f"{low:,d} to {high:,d}" in " ".join(text.split())
    value = json.loads(run("nasbench_macro", "--json", "--image-size", 64, "--num-classes", 7))
    assert value["options"] == {"image_size": 64, "num_classes": 7}
    assert value["bounds"]["macs"][0] == low - 3 * 1280  # the stem halves the larger image
    assert value["num_architectures"] == 6_561


def test_table_of_a_networks_space_is_written(run, s_plus, tmp_path):
    path = tmp_path / "cost.json"
    run(s_plus, "--table", path)
    table = CostTable.load(path)
    arch = shuffle_architecture(S_PLUS, S_PLUS_CHANNELS, **PLUS)
    assert table.costs(arch.choices) == {"macs": 291_125_760, "params": 3_541_829}


def test_options_change_the_network(run, request):
    path = request.config.rootpath / "architecture_final.json"
    value = json.loads(run(path, "--json", "--num-classes", 10, "--image-size", 32))
    assert value["total"]["params"] == 3_558_464 - 1024 * 990
    value = json.loads(run(path, "--json", "--space-options", '{"classifier_bias": true}'))
    assert value["total"]["params"] == 3_558_464 + 1000


def test_file_without_a_space_is_read_with_one(run, tmp_path):
    path = tmp_path / "blocks.json"
    path.write_text("[0, 1, 2, 0, 1, 2, 0, 1]")
    options = json.dumps({"image_size": 32})
    value = json.loads(run(path, "--space", "nasbench_macro", "--space-options", options, "--json"))
    assert value["choices"]["layer_3"] == "mb6_k5"
    value = json.loads(run("zoo:canyonwind-oneshot", "--json"))
    assert value["total"] == {"macs": 327_857_920, "params": 3_433_579}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["missing.json"], ArchitectureError, "missing.json"),
        (["shufflenetv3"], ArchitectureError, "shufflenetv3"),
        (["no.such:Space"], ConfigError, "cannot be imported"),
        (["nasbench_macro", "--profile"], ConfigError, "is a search space; --profile"),
        (["nasbench_macro", "--convention", "nni"], ConfigError, "is a search space"),
        (["nasbench_macro", "--space-options", "[1]"], ConfigError, "expected an object"),
        (["nasbench_macro", "--space-options", "{"], ConfigError, "--space-options"),
        (["nasbench_macro", "--space-options", '{"depth": 1}'], ConfigError, "no option 'depth'"),
        (["nasbench_macro", "--metric", "energy_mj"], ConfigError, "names the cost of --fit"),
        (["nasbench_macro", "--image-size", "1"], ConfigError, "image_size is 1"),
        (["nasbench_macro", "--table", "/dev/null/cost.json"], ConfigError, "cannot be written"),
    ],
)
def test_wrong_use_is_refused(run, arguments, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        run(*arguments)


def test_unknown_convention_is_refused(run, s_plus, capsys):
    with pytest.raises(SystemExit):
        run(s_plus, "--convention", "flops")
    assert "canyonwind-bn-relu" in capsys.readouterr().err


def test_plain_network_has_other_scores(run, tmp_path):
    path = tmp_path / "plain.json"
    save_architecture(path, shuffle_architecture(S_PLUS, S_PLUS_CHANNELS, **PLAIN))
    value = json.loads(run(path, "--convention", "canyonwind", "--json"))
    assert value["total"] == {"flops": 322_327_016, "params": 3_232_453}


def test_weights_are_no_architecture(run, tmp_path):
    path = tmp_path / "the best.safetensors"
    path.write_bytes(bytes(2**20 + 1))
    said = f"is a file of weights, .*convert '{path}' arch.json` writes"
    with pytest.raises(ArchitectureError, match=said):
        run(path)
