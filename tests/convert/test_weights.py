"""Weights of each system, built from its description, give the same outputs after conversion."""

import random

import foreign_networks as foreign
import pytest
import torch
from foreign_networks import Weights, images, saved
from mxnet_files import write_mxnet

from spos.convert.weights import read_weights
from spos.convert.zoo import BLOCKS, CHANNEL_SCALES, ZOO, zoo_architecture

pytestmark = pytest.mark.usefixtures("one_thread")

RELEASED = [int(digit) for digit in ZOO["megvii"].blocks]
SERIES = [int(digit) for digit in ZOO["megvii-oneshot"].blocks]
MIDDLES = [
    width
    for label, width in zoo_architecture("megvii-oneshot").choices.items()
    if label.startswith("channel")
]


def some_blocks(seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(4) for _ in range(20)]


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


# system -> (its network, how it is built, its prefix, affine, its published number of tensors)
SUPERNETS = {
    "Megvii": (foreign.megvii, {}, "module.", False, 1337),
    "NNI 2": (foreign.megvii, {"dead": True}, "", False, 1849),
    "NNI 3": (foreign.megvii, {"names": BLOCKS}, "", True, 2005),
    "ShunLu91": (foreign.shunlu, {}, "", False, 1337),
    "lliai": (foreign.lliai, {}, "module.", False, 1850),
    "MMRazor": (foreign.razor, {}, "architecture.", True, 2006),
}


@pytest.mark.parametrize("system", SUPERNETS)
def test_paths_of_a_supernet_compute_what_they_did(tmp_path, system):
    run, given, prefix, affine, num_tensors = SUPERNETS[system]
    weights = Weights(affine=affine)
    run(weights, images(), RELEASED, supernet=True, **given)
    assert len(weights) == num_tensors
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


def test_nni3_supernet_with_channel_search_computes_what_it_did(tmp_path):
    middles = [int(width // 2 * 1.6) for _, _, _, width, _ in foreign.layers()]
    weights = Weights()
    foreign.megvii(weights, images(), RELEASED, supernet=True, names=BLOCKS, middles=middles)
    found = read_weights(saved(tmp_path / "x.pth", weights, container=None))
    assert found.options["channel_scales"] == list(CHANNEL_SCALES[:8])
    assert_same_paths(found, foreign.megvii, weights, [RELEASED], names=BLOCKS, middles=middles)


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
    weights = Weights()
    expected = foreign.anglenas(weights, images(), ANGLENAS_IDS, supernet=True)
    assert len(weights) == 2294
    found = read_weights(saved(tmp_path / "x.pth.tar", weights))
    names = ["k3e3", "k3e6", "k5e3", "k5e6", "k7e3", "k7e6", "skip"]
    found.network.activate({f"layer_{n}": names[op] for n, op in enumerate(ANGLENAS_IDS, start=1)})
    assert_same(found.network, expected)


def test_mmrazor_mobile_supernet_computes_what_it_did(tmp_path):
    names = ["mb_k5e3", "identity", "mb_k7e6", "mb_k3e3", "identity", *["mb_k3e6"] * 16]
    weights = Weights()
    expected = foreign.razor_mobile(weights, images(), names, supernet=True)
    assert len(weights) == 2330
    found = read_weights(saved(tmp_path / "x.pth.tar", weights))
    ours = [name.replace("mb_", "").replace("identity", "skip") for name in names]
    found.network.activate({f"layer_{n}": name for n, name in enumerate(ours, start=1)})
    assert_same(found.network, expected)


@torch.no_grad()
def test_canyonwind_half_precision_and_shuffle_by_convolution(tmp_path):
    weights = Weights(bn=foreign.MXNET)
    name = "canyonwind-oneshot"
    blocks = [int(digit) for digit in ZOO[name].blocks]
    foreign.canyonwind(weights, images(), blocks, MIDDLES)
    half = {k: v.half() if "running" not in k else v.float() for k, v in weights.items()}
    for key in half:
        weights[key] = half[key].double()
    half["features.4.channel_shuffle_and_split.transpose_conv.weight"] = torch.eye(64).half()
    found = read_weights(write_mxnet(tmp_path / "x.params", half))
    expected = foreign.canyonwind(weights, images(), blocks, MIDDLES)
    assert found.network.state_dict()["first_conv.0.weight"].dtype == torch.float32
    torch.testing.assert_close(
        found.network(images().float()), expected.float(), rtol=1e-4, atol=1e-4
    )
    assert_same(found.network.double(), expected)
