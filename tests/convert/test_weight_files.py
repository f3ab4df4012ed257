"""Weights are written as they were read; odd, hostile and foreign files are refused by name."""

import argparse
import os
import subprocess
import sys
from dataclasses import replace

import foreign_networks as foreign
import pytest
import torch
from foreign_networks import Weights, images, saved
from hypothesis import given, settings
from hypothesis import strategies as st
from mxnet_files import write_mxnet

from spos.__main__ import main
from spos.convert.architectures import read_architecture
from spos.convert.weight_writers import write_weights
from spos.convert.weights import read_weights
from spos.convert.zoo import ZOO, zoo_architecture
from spos.errors import CheckpointError, ConfigError
from spos.spaces import build_subnet, space_spec
from spos.subnet import load_subnet, save_subnet

pytestmark = pytest.mark.usefixtures("one_thread")

EXAMPLES = int(os.environ.get("SPOS_EXAMPLES", "300"))

RELEASED = [int(digit) for digit in ZOO["megvii"].blocks]
SYSTEMS = {"lliai": foreign.lliai, "MMRazor": foreign.razor, "ShunLu91": foreign.shunlu}


# --- files of ours ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def megvii_files(tmp_path_factory):
    """A subnet and a supernet in Megvii's form, in single precision."""
    folder = tmp_path_factory.mktemp("megvii")
    subnet, supernet = Weights(), Weights(affine=False)
    foreign.megvii(subnet, images(), RELEASED)
    foreign.megvii(supernet, images(), RELEASED, supernet=True)
    for name, weights in (("subnet", subnet), ("supernet", supernet)):
        single = {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}
        saved(folder / f"{name}.pth.tar", single, prefix="module.")
    return folder


@torch.no_grad()
def test_safetensors_are_loaded_without_more(tmp_path, megvii_files):
    found = read_weights(megvii_files / "subnet.pth.tar")
    write_weights(tmp_path / "x.safetensors", found, "safetensors", preprocessing="spos")
    network = load_subnet(tmp_path / "x.safetensors")
    assert network.preprocessing.name == "spos"
    assert network.classes is None
    x = images().float()
    assert torch.equal(network(x), found.network(x))
    again = read_weights(tmp_path / "x.safetensors")
    assert (again.system, again.arch) == ("spos", found.arch)
    assert torch.equal(again.network(x), found.network(x))


@pytest.mark.parametrize("kind", ["subnet", "supernet"])
def test_what_a_file_says_of_its_images_is_kept(tmp_path, megvii_files, kind):
    found = read_weights(megvii_files / f"{kind}.pth.tar")
    names = [f"class {number}" for number in range(10)]
    first = replace(found, said={"preprocessing": "spos", "classes": names}, affine=True)
    write_weights(tmp_path / "x.safetensors", first, "safetensors")
    second = read_weights(tmp_path / "x.safetensors")
    write_weights(tmp_path / "y.safetensors", second, "safetensors")
    third = read_weights(tmp_path / "y.safetensors")
    assert third.said["preprocessing"] == "spos" and third.said["classes"] == names
    assert third.affine
    write_weights(tmp_path / "y.safetensors", second, "safetensors", preprocessing="standard")
    assert read_weights(tmp_path / "y.safetensors").said["preprocessing"] == "standard"
    odd = replace(found, said={"classes": [1, 2]})
    with pytest.raises(CheckpointError, match="z.safetensors: its classes are not a list"):
        write_weights(tmp_path / "z.safetensors", odd, "safetensors")


@pytest.mark.parametrize(
    ("options", "is_same"),
    [({"image_size": 32}, False), ({"image_size": 32, "output_stride": 32}, True)],
)
def test_network_of_small_images_is_no_network_of_theirs(tmp_path, megvii_files, options, is_same):
    found = read_weights(megvii_files / "subnet.pth.tar", options=options)
    if is_same:
        write_weights(tmp_path / "x.pth.tar", found, "megvii")
        return
    with pytest.raises(CheckpointError, match="another function than one with image_size 32"):
        write_weights(tmp_path / "x.pth.tar", found, "megvii")


@pytest.mark.parametrize("kind", ["subnet", "supernet"])
def test_megvii_layout_is_that_which_was_read(tmp_path, megvii_files, kind):
    found = read_weights(megvii_files / f"{kind}.pth.tar")
    write_weights(tmp_path / "x.pth.tar", found, "megvii")
    before = torch.load(megvii_files / f"{kind}.pth.tar", weights_only=True)["state_dict"]
    after = torch.load(tmp_path / "x.pth.tar", weights_only=True)["state_dict"]
    assert {f"module.{name}" for name in after} == before.keys()
    assert all(torch.equal(after[name.removeprefix("module.")], before[name]) for name in before)
    assert len(after) == {"subnet": 493, "supernet": 1337}[kind]  # as its authors' have


def test_nni3_layout_names_candidates(tmp_path, megvii_files):
    found = read_weights(megvii_files / "supernet.pth.tar")
    write_weights(tmp_path / "x.pth", found, "nni3")
    state = torch.load(tmp_path / "x.pth", weights_only=True)
    assert "features.19.xcep.branch_main.12.weight" in state
    assert len(state) == 1337
    again = read_weights(tmp_path / "x.pth")
    assert state.keys() == again.network.state_dict().keys()


def test_supernet_as_safetensors_says_what_it_is(tmp_path, megvii_files):
    found = read_weights(megvii_files / "supernet.pth.tar")
    write_weights(tmp_path / "x.safetensors", found, "safetensors")
    again = read_weights(tmp_path / "x.safetensors")
    assert (again.system, again.space, again.arch) == ("spos", "shufflenetv2", None)
    assert dict(again.options) == dict(found.options)
    before, after = found.network.state_dict(), again.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_checkpoint_of_ours_knows_its_layout(tmp_path):
    weights = Weights()
    foreign.razor(weights, images(), RELEASED)
    found = read_weights(saved(tmp_path / "theirs.pth", weights))
    assert found.arch is not None
    config = {
        "space": found.space,
        "options": dict(found.options),
        "choices": dict(found.arch.choices),
    }
    state = {"network": found.network.state_dict(), "config": config, "step": 5}
    torch.save(state, tmp_path / "step_00000005.pt")
    again = read_weights(tmp_path / "step_00000005.pt")
    assert again.options["layout"] == "classic"
    assert again.arch == found.arch


def test_command_converts_weights(tmp_path, megvii_files, capsys):
    source = str(megvii_files / "subnet.pth.tar")
    assert (
        main(["convert", source, str(tmp_path / "x.safetensors"), "--fixed-arc", "zoo:megvii"]) == 0
    )
    assert "weights of Megvii or NNI" in capsys.readouterr().out
    assert main(["convert", str(tmp_path / "x.safetensors"), str(tmp_path / "x.pth.tar")]) == 0
    assert read_weights(tmp_path / "x.pth.tar").system == "Megvii or NNI"
    assert main(["convert", source, str(tmp_path / "x.json")]) == 0  # what it is
    assert read_architecture(tmp_path / "x.json").choices == zoo_architecture("megvii").choices
    for name in ("x.json", "x.pth.tar"):
        with pytest.raises(ConfigError, match="cannot be written"):
            main(["convert", source, str(tmp_path / "none" / name)])
    with pytest.raises(ConfigError, match="a supernet .* can be written as safetensors, megvii"):
        main(["convert", str(megvii_files / "supernet.pth.tar"), str(tmp_path / "x.json")])


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize("system", ["lliai", "MMRazor", "ShunLu91"])
def test_weights_of_another_function_are_refused_as_canonical(tmp_path, system):
    weights = Weights()
    SYSTEMS[system](weights, images(), RELEASED)
    path = saved(tmp_path / "x.pth.tar", weights)
    option, ours, canonical = {
        "lliai": ("layout", "lliai", "canonical"),
        "MMRazor": ("layout", "classic", "canonical"),
        "ShunLu91": ("stem_activation", "relu6", "relu"),
    }[system]
    with pytest.raises(
        CheckpointError, match=f"""'{canonical}'; say {{"{option}": "{ours}"}} in --space-options"""
    ):
        read_weights(path, options={option: canonical})
    assert read_weights(path, options={option: ours}).options[option] == ours
    with pytest.raises(CheckpointError, match="compute another function .* as .safetensors"):
        write_weights(tmp_path / "y.pth.tar", read_weights(path), "megvii")
    assert not (tmp_path / "y.pth.tar").exists()


@pytest.mark.parametrize("format", ["megvii", "nni3"])
def test_networks_of_other_depths_are_refused_as_canonical(tmp_path, format):
    options = {"image_size": 224, "num_classes": 10, "stage_depths": [1, 1, 2, 1]}
    spec = space_spec("shufflenetv2", options=options)
    arch = spec.architecture({label: "k3" for label in spec.choices})
    save_subnet(tmp_path / "x.safetensors", build_subnet(arch), arch, preprocessing="standard")
    found = read_weights(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"than one with stage_depths \[1, 1, 2, 1\]; write"):
        write_weights(tmp_path / "y.pth", found, format)


def test_other_spaces_and_affine_supernets_have_no_megvii_layout(tmp_path):
    weights = Weights()
    foreign.anglenas(weights, images(), [0] * 21)
    found = read_weights(saved(tmp_path / "x.pth", weights))
    with pytest.raises(CheckpointError, match="has a network of proxyless_gpu"):
        write_weights(tmp_path / "y.pth", found, "megvii")
    weights = Weights()
    foreign.megvii(weights, images(), RELEASED, supernet=True)
    found = read_weights(saved(tmp_path / "x.pth", weights))
    with pytest.raises(CheckpointError, match="BatchNorm without weight and bias"):
        write_weights(tmp_path / "y.pth", found, "megvii")


def change(tensors: dict, how: str) -> dict:
    tensors = dict(tensors)
    first = "module.features.0.branch_main.0.weight"
    if how == "unknown layer":
        tensors["module.features.3.branch_side.0.weight"] = tensors[first]
    elif how == "layer out of range":
        tensors["module.features.20.branch_main.0.weight"] = tensors[first]
    elif how == "lacks a layer":
        tensors = {name: each for name, each in tensors.items() if ".features.7." not in name}
    elif how == "lacks a tensor":
        del tensors["module.features.4.branch_main.6.running_mean"]
    elif how == "of another shape":
        tensors[first] = tensors[first][:, :, :, 0]
    elif how == "of odd width":
        tensors[first] = tensors[first][:31]
    elif how == "of integers":
        tensors[first] = tensors[first].int()
    elif how == "sparse":
        tensors[first] = tensors[first].to_sparse()
    elif how == "expanded":
        tensors["module.classifier.0.weight"] = torch.zeros(1).expand(10**6, 10**6)
    elif how == "of no system":
        tensors = {name.replace("branch", "twig"): each for name, each in tensors.items()}
    elif how == "kernel of 9":
        name = "module.features.0.branch_main.3.weight"
        tensors[name] = torch.zeros(32, 1, 9, 9)
    elif how == "no weights":
        tensors = {}
    return tensors


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("unknown layer", "no weights named 'features.3.branch_side"),
        ("layer out of range", "no weights named 'features.20"),
        ("lacks a layer", "has no features.7.branch_main"),
        ("lacks a tensor", "do not fit this network: .*features.4.branch_main.6.running_mean"),
        ("of another shape", "size mismatch"),
        ("of odd width", "middle widths"),
        ("of integers", "is not a plain tensor of numbers"),
        ("sparse", "is not a plain tensor of numbers"),
        ("expanded", "has more entries than the file holds"),
        ("of no system", "weights of no system that is known"),
        ("kernel of 9", "layer_1 is 'k9'"),
        ("no weights", "weights of no system that is known"),
    ],
)
def test_refusal_says_what_is_wrong(tmp_path, megvii_files, how, reason):
    original = torch.load(megvii_files / "subnet.pth.tar", weights_only=True)["state_dict"]
    torch.save({"state_dict": change(original, how)}, tmp_path / "x.pth.tar")
    with pytest.raises(CheckpointError, match=rf"x\.pth\.tar: .*{reason}") as caught:
        read_weights(tmp_path / "x.pth.tar")
    assert len(str(caught.value)) < 1500


def test_weights_for_another_network_are_refused(megvii_files):
    path = megvii_files / "subnet.pth.tar"
    with pytest.raises(CheckpointError, match="the space 'shufflenetv2', not of 'proxyless_gpu'"):
        read_weights(path, space="proxyless_gpu")
    with pytest.raises(CheckpointError, match="differ in layer_1, layer_2, layer_3, layer_5"):
        read_weights(path, arch=zoo_architecture("megvii-oneshot-blocks"))
    with pytest.raises(CheckpointError, match="are of shufflenetv2, not of proxyless_gpu"):
        read_weights(path, arch=zoo_architecture("anglenas-spos"))
    with pytest.raises(CheckpointError, match="holds a supernet, not the subnet"):
        read_weights(megvii_files / "supernet.pth.tar", arch=zoo_architecture("megvii"))
    with pytest.raises(CheckpointError, match="has no option 'depth'"):
        read_weights(path, options={"depth": 3})


@pytest.mark.parametrize(
    "config",
    [
        {"space": "shufflenetv2"},
        {"space": None, "options": {}},
        {"space": "shufflenetv2", "options": [1]},
        {"space": "shufflenetv2", "options": {"layout": torch.ones(3)}},
        {"space": "shufflenetv2", "options": {}, "choices": {"layer_1": torch.ones(3)}},
        {"space": "shufflenetv2", "options": {1: 2}},
        {"space": "shufflenetv2", "options": {}, "choices": {"layer_1": "k3"}},
        {"space": "os:system", "options": {}},
    ],
    ids=repr,
)
def test_checkpoint_of_ours_with_an_odd_configuration_is_refused(tmp_path, config):
    torch.save({"network": {"weight": torch.ones(2)}, "config": config}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"x\.pt: "):
        read_weights(tmp_path / "x.pt")


def test_hostile_shapes_take_no_memory(tmp_path, megvii_files):
    # Each tensor is small; a network with all their widths would take terabytes.
    tensors = torch.load(megvii_files / "subnet.pth.tar", weights_only=True)["state_dict"]
    tensors["module.classifier.0.weight"] = torch.zeros(1, 60_000)
    tensors["module.conv_last.0.weight"] = torch.zeros(60_000, 1, 1, 1)
    torch.save(tensors, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x\.pth: "):
        read_weights(tmp_path / "x.pth")


def test_file_that_needs_code_names_it(tmp_path):
    torch.save({"state_dict": {}, "args": argparse.Namespace(lr=0.5)}, tmp_path / "x.pth.tar")
    with pytest.raises(CheckpointError, match=r"blocked: argparse\.Namespace"):
        read_weights(tmp_path / "x.pth.tar")


def test_missing_files_are_refused_by_name(tmp_path):
    for name in ("x.pth", "x.params", "x.safetensors"):
        with pytest.raises(CheckpointError, match=name):
            read_weights(tmp_path / name)


# --- any names and shapes ----------------------------------------------------------------------

NAMES = st.sampled_from(
    ["first_conv.0.weight", "features.0.branch_main.0.weight", "features.0.3.branch_proj.2.weight",
     "choice_block.3.cb_main.5.weight", "choice_blocks.4.1.branch1.5.conv.weight", "conv1.bn.bias",
     "backbone.layers.0.0._candidates.shuffle_3x3.branch2.0.conv.weight", "head.fc.weight",
     "backbone.layer1.0._candidates.mb_k3e1.linear_conv.bn.bias", "MBConv_ratio_1.conv.0.weight",
     "features.0._ops.3.conv.6.weight", "features.20.conv.0.weight", "classifier.0.weight",
     "features.3.main_branch.0.weight", "output.0.weight",
     "x_shufflenetblock0_se0_conv_squeeze_bias", "x_shufflenetblock19_batchnorm9_gamma",
     "features.27.channel_attention.1.weight"]
)  # fmt: skip
RANDOM_TENSORS = st.dictionaries(
    NAMES | st.text(max_size=20),
    st.lists(st.integers(0, 3), max_size=5).map(torch.zeros),
    max_size=5,
)


@settings(max_examples=EXAMPLES // 3, deadline=None)
@given(RANDOM_TENSORS, st.sampled_from(["x.pth", "x.params"]))
def test_any_state_dict_gives_our_error(tmp_path_factory, tensors, name):
    path = tmp_path_factory.getbasetemp() / name
    if name == "x.params":
        write_mxnet(path, tensors)
    else:
        torch.save(tensors, path)
    with pytest.raises(CheckpointError):
        read_weights(path)


MUTATIONS = st.tuples(
    st.sampled_from(["drop", "rename", "shape", "dtype", "double"]), st.integers(0, 10**6)
)


@settings(max_examples=EXAMPLES // 25, deadline=None)
@given(st.lists(MUTATIONS, min_size=1, max_size=2))
def test_mutated_state_dict_gives_a_network_or_our_error(tmp_path_factory, megvii_files, changes):
    path = tmp_path_factory.getbasetemp() / "mutated.pth"
    tensors = torch.load(megvii_files / "subnet.pth.tar", weights_only=True)["state_dict"]
    for how, number in changes:
        name = list(tensors)[number % len(tensors)]
        if how == "drop":
            del tensors[name]
        elif how == "rename":
            tensors[name[:-1]] = tensors.pop(name)
        elif how == "shape":
            tensors[name] = tensors[name].reshape(-1)[: 1 + number % 5]
        elif how == "dtype":
            tensors[name] = tensors[name].to([torch.int8, torch.float16, torch.bool][number % 3])
        else:
            tensors[name] = torch.cat([tensors[name].reshape(1, -1)] * 2)
    torch.save(tensors, path)
    try:
        found = read_weights(path)
    except CheckpointError:
        return
    assert found.arch is not None


# --- wherever an architecture is given -----------------------------------------------------------


@torch.no_grad()
def test_networks_of_any_file_or_published_name(tmp_path):
    path = tmp_path / "subnet.yaml"
    assert main(["convert", "zoo:mmrazor", str(path)]) == 0
    network, published = load_subnet(path), load_subnet("zoo:mmrazor")
    assert network.state_dict().keys() == published.state_dict().keys()
    assert network.features[0].layout == published.features[0].layout
    assert network(images().float()).shape == (2, 1000)


def test_scratch_takes_published_networks(request):
    script = [sys.executable, "scratch.py", "--device", "cpu", "--fixed-arc", "zoo:none"]
    done = subprocess.run(script, cwd=request.config.rootpath, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: zoo:none: there is no such published network")


def test_command_says_what_a_file_cannot_hold(tmp_path, megvii_files, capsys):
    ours, theirs = str(tmp_path / "x.safetensors"), str(tmp_path / "x.pth.tar")
    assert main(["convert", str(megvii_files / "subnet.pth.tar"), ours]) == 0
    assert capsys.readouterr().out.splitlines()[2] == (
        f"{megvii_files / 'subnet.pth.tar'} does not say the size of its images, taken to be 224 "
        "(--space-options), their preprocessing (--preprocessing), the names of its classes"
    )
    found = read_weights(ours, options={"image_size": 192})
    names = [f"class {number}" for number in range(found.options["num_classes"])]
    told = replace(found, said={"preprocessing": "spos", "classes": names},
                   arch=replace(found.arch, options=found.options))  # fmt: skip
    write_weights(ours, told, "safetensors")
    assert main(["convert", ours, theirs]) == 0
    said = capsys.readouterr().out.splitlines()[2]
    assert said.startswith(f"{theirs} cannot hold the size of its images, 192, their spos prepro")
    assert f"the names of its {len(names)} classes" in said and said.endswith(f"or keep {ours}")
    assert main(["convert", ours, str(tmp_path / "y.safetensors")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
