"""Weights of each system, built from its description, give the same outputs after conversion."""

import argparse
import random

import foreign_networks as foreign
import pytest
import torch
from foreign_networks import Weights
from hypothesis import given, settings
from hypothesis import strategies as st
from mxnet_files import write_mxnet

from spos.__main__ import main
from spos.convert.architectures import read_architecture
from spos.convert.weights import read_weights, write_weights
from spos.convert.zoo import BLOCKS, CHANNEL_SCALES, ZOO, zoo_architecture
from spos.errors import CheckpointError, ConfigError
from spos.subnet import load_subnet

pytestmark = pytest.mark.usefixtures("one_thread")

RELEASED = [int(digit) for digit in ZOO["megvii"].blocks]
SERIES = [int(digit) for digit in ZOO["megvii-oneshot"].blocks]
MIDDLES = [
    width
    for label, width in zoo_architecture("megvii-oneshot").choices.items()
    if label.startswith("channel")
]


def images(size: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, size, size, generator=generator, dtype=torch.float64)


def some_blocks(seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(4) for _ in range(20)]


def saved(path, tensors, *, container: str | None = "state_dict", prefix: str = ""):
    tensors = {prefix + name: tensor for name, tensor in tensors.items()}
    torch.save({container: tensors, "epoch": 3} if container else tensors, path)
    return path


@torch.no_grad()
def assert_same(network, expected, size: int = 32):
    found = network(images(size))
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10 * expected.abs().max())


def named(blocks) -> list[str]:
    return [BLOCKS[block] for block in blocks]


# --- subnets -----------------------------------------------------------------------------------

# system -> (its network, its container, its prefix, affine, options of ours)
SUBNETS = {
    "Megvii": (foreign.megvii, "state_dict", "module.", True, {}),
    "NNI 3": (foreign.megvii, None, "", True, {}),
    "ShunLu91": (foreign.shunlu, None, "", True, {"stem_activation": "relu6", "dropout": 0.0}),
    "lliai": (
        foreign.lliai, "state_dict", "module.", False,
        {"layout": "lliai", "dropout": 0.0, "classifier_bias": True},
    ),
    "MMRazor": (
        foreign.razor, "state_dict", "architecture.", True,
        {"layout": "classic", "dropout": 0.0, "classifier_bias": True},
    ),
}  # fmt: skip


@pytest.mark.parametrize("system", SUBNETS)
def test_subnet_computes_what_it_did(tmp_path, system):
    run, container, prefix, affine, options = SUBNETS[system]
    for seed, blocks in enumerate([RELEASED, some_blocks(1)]):
        weights = Weights(seed, affine=affine)
        expected = run(weights, images(), blocks)
        path = saved(tmp_path / "best.pth.tar", weights, container=container, prefix=prefix)
        found = read_weights(path)
        assert found.arch is not None
        assert list(found.arch.choices.values()) == named(blocks)
        assert found.space == "shufflenetv2"
        assert dict(found.options) == {"image_size": 224, "num_classes": 10, **options}
        assert_same(found.network, expected)


def test_subnet_with_channel_scales_computes_what_it_did(tmp_path):
    weights = Weights()
    expected = foreign.megvii(weights, images(), SERIES, middles=MIDDLES)
    found = read_weights(saved(tmp_path / "x.pth.tar", weights), options={"num_classes": 10})
    assert found.arch is not None
    assert found.arch.choices == zoo_architecture("megvii-oneshot").choices
    assert found.options["channel_scales"] == list(ZOO["megvii-oneshot"].options["channel_scales"])
    assert_same(found.network, expected)


ANGLENAS_IDS = [2, 2, -1, 0, 0, -1, -1, 0, 5, -1, 4, 4, 0, 0, 4, 2, 3, 4, 4, 4, 1]


@pytest.mark.parametrize("knows_arch", [True, False])
def test_anglenas_subnet_computes_what_it_did(tmp_path, knows_arch):
    names = ["k3e3", "k3e6", "k5e3", "k5e6", "k7e3", "k7e6", "skip"]
    weights = Weights()
    expected = foreign.anglenas(weights, images(), ANGLENAS_IDS)
    path = saved(tmp_path / "x.pth.tar", weights, prefix="module.")
    arch = None
    if knows_arch:
        arch = zoo_architecture("anglenas-spos")
        choices = {f"layer_{n}": names[op] for n, op in enumerate(ANGLENAS_IDS, start=1)}
        arch = type(arch)(arch.space, arch.options, choices)
    found = read_weights(path, arch=arch)
    assert found.arch is not None
    assert_same(found.network, expected)
    if arch:
        assert found.arch.choices == arch.choices
    else:  # which of a stage's equal layers are skipped cannot be seen, and does not matter
        assert found.arch.choices["layer_8"] == "skip"
        assert sorted(found.arch.choices.values()) == sorted(names[op] for op in ANGLENAS_IDS)


def test_mmrazor_mobile_subnet_computes_what_it_did(tmp_path):
    names = ["mb_k5e3", "identity", "mb_k7e6", "mb_k3e3"] * 2
    names += ["identity", "identity", "mb_k3e6", "mb_k5e6"] * 3 + ["mb_k7e3"]
    weights = Weights()
    expected = foreign.razor_mobile(weights, images(), names)
    found = read_weights(saved(tmp_path / "x.pth", weights, prefix="architecture."))
    assert found.arch is not None
    ours = [name.replace("mb_", "").replace("identity", "skip") for name in names]
    assert list(found.arch.choices.values()) == ours
    assert found.options["skips"] == "mmrazor"
    assert_same(found.network, expected)


CANYONWIND = {
    "canyonwind-oneshot": {},
    "canyonwind-oneshot-plus": {"se": True, "pool_first": True},
    "canyonwind-s-plus-v2plus": {"se": True, "widths": (48, 128, 256, 512)},
}


@pytest.mark.parametrize("exported", [True, False], ids=["export", "save_parameters"])
@pytest.mark.parametrize("name", CANYONWIND)
def test_canyonwind_subnet_computes_what_it_did(tmp_path, name, exported):
    arch = zoo_architecture(name)
    blocks = [int(digit) for digit in ZOO[name].blocks]
    middles = [v for label, v in arch.choices.items() if label.startswith("channel")]
    weights = Weights(bn=foreign.MXNET)
    given = CANYONWIND[name]
    expected = foreign.canyonwind(weights, images(), blocks, middles, exported=exported, **given)
    path = write_mxnet(tmp_path / "x-0000.params", weights, prefixes=exported)
    found = read_weights(path)
    assert found.arch is not None
    assert found.arch.choices == arch.choices
    assert found.arch.space == arch.space
    assert {**found.options, "num_classes": 1000} == dict(arch.options)
    assert_same(found.network, expected)


# --- supernets -----------------------------------------------------------------------------------


@torch.no_grad()
def assert_same_paths(found, run, weights, paths, **given):
    assert found.arch is None
    weights.is_whole = True
    for blocks in paths:
        expected = run(weights, images(), blocks, supernet=True, **given)
        choices = {
            label: candidates[-1]
            if label.startswith("channel")
            else BLOCKS[blocks[int(label[6:]) - 1]]
            for label, candidates in found.network.spec_choices.items()
        }
        found.network.activate(choices)
        assert_same(found.network, expected)


SUPERNETS = {
    "Megvii": (foreign.megvii, {}, "module.", False),
    "NNI 2": (foreign.megvii, {"dead": True}, "", False),
    "NNI 3": (foreign.megvii, {"names": BLOCKS}, "", True),
    "ShunLu91": (foreign.shunlu, {}, "", False),
    "lliai": (foreign.lliai, {}, "module.", False),
    "MMRazor": (foreign.razor, {}, "architecture.", True),
}


@pytest.mark.parametrize("system", SUPERNETS)
def test_paths_of_a_supernet_compute_what_they_did(tmp_path, system):
    run, given, prefix, affine = SUPERNETS[system]
    weights = Weights(affine=affine)
    run(weights, images(), RELEASED, supernet=True, **given)
    found = read_weights(saved(tmp_path / "x.pth.tar", weights, prefix=prefix))
    assert_same_paths(found, run, weights, [RELEASED, some_blocks(2)], **given)
    has_affine = "features.3.k5.branch_main.1.weight" in found.network.state_dict()
    assert has_affine == affine


def test_nni3_supernet_without_affine_has_an_affine_stem(tmp_path):
    weights = Weights(affine=False)
    foreign.megvii(weights, images(), RELEASED, supernet=True, names=BLOCKS)
    weights.take("first_conv.1.weight", 16, shift=1.0)
    weights.take("first_conv.1.bias", 16)
    found = read_weights(saved(tmp_path / "x.pth", weights, container=None))
    state = found.network.state_dict()
    assert torch.equal(state["first_conv.1.bias"], weights["first_conv.1.bias"])
    assert state["features.0.k3.branch_main.1.weight"].unique().tolist() == [1.0]


def test_canyonwind_supernet_at_full_width_computes_what_it_did(tmp_path):
    weights = Weights(bn=foreign.MXNET)
    foreign.canyonwind(weights, images(), RELEASED, supernet=True)
    path = write_mxnet(tmp_path / "x.params", weights)
    found = read_weights(path)
    assert found.options["channel_scales"] == [2.0]  # narrower paths are masked there, not sliced
    assert_same_paths(found, foreign.canyonwind, weights, [RELEASED, some_blocks(3)])
    wide = read_weights(path, options={"channel_scales": list(CHANNEL_SCALES)})
    assert wide.network.spec_choices["channel_1"][0] == 6
    assert_same_paths(wide, foreign.canyonwind, weights, [some_blocks(4)])


def test_anglenas_supernet_computes_what_it_did(tmp_path):
    weights = Weights(affine=False)
    expected = foreign.anglenas(weights, images(), ANGLENAS_IDS, supernet=True)
    found = read_weights(saved(tmp_path / "x.pth.tar", weights))
    names = ["k3e3", "k3e6", "k5e3", "k5e6", "k7e3", "k7e6", "skip"]
    found.network.activate({f"layer_{n}": names[op] for n, op in enumerate(ANGLENAS_IDS, start=1)})
    assert_same(found.network, expected)


def test_mmrazor_mobile_supernet_computes_what_it_did(tmp_path):
    names = ["mb_k5e3", "identity", "mb_k7e6", "mb_k3e3", "identity", *["mb_k3e6"] * 16]
    weights = Weights()
    expected = foreign.razor_mobile(weights, images(), names, supernet=True)
    found = read_weights(saved(tmp_path / "x.pth.tar", weights))
    ours = [name.replace("mb_", "").replace("identity", "skip") for name in names]
    found.network.activate({f"layer_{n}": name for n, name in enumerate(ours, start=1)})
    assert_same(found.network, expected)


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
    run, container, _, affine, _ = SUBNETS[system]
    weights = Weights(affine=affine)
    run(weights, images(), RELEASED)
    path = saved(tmp_path / "x.pth.tar", weights, container=container)
    if system != "ShunLu91":
        layout = {"lliai": "lliai", "MMRazor": "classic"}[system]
        with pytest.raises(CheckpointError, match=f"'canonical'; convert .* layout '{layout}'"):
            read_weights(path, options={"layout": "canonical"})
    with pytest.raises(CheckpointError, match="compute another function .* as .safetensors"):
        write_weights(tmp_path / "y.pth.tar", read_weights(path), "megvii")
    assert not (tmp_path / "y.pth.tar").exists()


def test_other_spaces_and_affine_supernets_have_no_megvii_layout(tmp_path):
    weights = Weights()
    foreign.anglenas(weights, images(), ANGLENAS_IDS)
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


@settings(max_examples=100, deadline=None)
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


@settings(max_examples=12, deadline=None)
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
