"""Channel search: which widths, the hub's names for them, and slicing that is a plain subnet."""

import importlib
import random

import pytest
import torch
from published_networks import IMAGENET, SCALES, shuffle_architecture
from torch import nn

from spos.architecture import Architecture
from spos.errors import ArchitectureError, ConfigError
from spos.evaluation.batchnorm import recalibrate
from spos.spaces import build_space, build_subnet, space_spec
from spos.spaces.nni_pieces import open_hub, read_choices
from spos.spaces.shufflenet import mid_widths
from spos.spaces.sliced import active_tensors
from spos.supernet import Supernet

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"image_size": 16, "num_classes": 5}
WIDTHS = {
    64: [6, 12, 19, 25, 32, 38, 44, 51, 57, 64],
    48: [4, 9, 14, 19, 24, 28, 33, 38, 43, 48],
    128: [12, 25, 38, 51, 64, 76, 89, 102, 115, 128],
    256: [25, 51, 76, 102, 128, 153, 179, 204, 230, 256],
    512: [51, 102, 153, 204, 256, 307, 358, 409, 460, 512],
    160: list(range(16, 161, 16)),
    320: list(range(32, 321, 32)),
    640: list(range(64, 641, 64)),
}


@pytest.fixture(scope="module")
def hub_space():
    open_hub()
    return importlib.import_module("nni.nas.hub.pytorch.shufflenet").ShuffleNetSpace


@pytest.fixture(scope="module")
def supernet():
    """With all ten widths and statistics that are not the initial ones; tests leave it so."""
    torch.manual_seed(0)
    options = {**SMALL, "channel_scales": SCALES}
    network = Supernet(build_space("shufflenetv2", options=options, affine=True)).train()
    generator = random.Random(0)
    for parameter in network.parameters():
        if parameter.dim() == 1:  # BatchNorm's: idle channels would show as its bias
            nn.init.normal_(parameter)
    for _ in range(3):
        network.activate(draw(network.spec_choices, generator))
        network(torch.randn(8, 3, 16, 16))
    return network


def draw(choices, generator: random.Random) -> dict:
    return {label: generator.choice(each) for label, each in choices.items()}


@pytest.mark.parametrize("stage_width", WIDTHS)
def test_widths_are_the_published_ones(stage_width):
    assert mid_widths("shufflenetv2", stage_width, SCALES) == WIDTHS[stage_width]


def test_choices_of_width_follow_those_of_their_layer():
    spec = space_spec("shufflenetv2", options={**IMAGENET, "channel_scales": SCALES})
    labels = [f"{kind}_{n}" for n in range(1, 21) for kind in ("layer", "channel")]
    assert list(spec.choices) == labels
    expected = [WIDTHS[64]] * 4 + [WIDTHS[160]] * 4 + [WIDTHS[320]] * 8 + [WIDTHS[640]] * 4
    assert [list(spec.choices[f"channel_{n}"]) for n in range(1, 21)] == expected
    assert all(type(each) is int for label in labels[1::2] for each in spec.choices[label])


def test_published_middle_widths_are_those_of_the_indices():
    arch = shuffle_architecture(
        "0 " * 20, "6 5 3 5 2 6 3 4 2 5 7 5 4 6 7 4 4 5 4 3", channel_scales=SCALES[:8]
    )
    assert [arch.choices[f"channel_{n}"] for n in range(1, 21)] == [
        *(44, 38, 25, 38, 48, 112, 64, 80, 96, 192, 256, 192, 160, 224, 256, 160),
        *(320, 384, 320, 256),
    ]


def test_scales_up_to_16_are_the_hubs_space(hub_space):
    hub = read_choices(hub_space(channel_search=True))
    ours = space_spec("shufflenetv2", options={**IMAGENET, "channel_scales": SCALES[:8]})
    assert {label: tuple(each) for label, each in hub.items()} == dict(ours.choices)


def test_subnet_with_widths_is_the_function_of_the_hub(hub_space):
    options = {"image_size": 128, "num_classes": 1000, "channel_scales": SCALES[:8]}
    spec = space_spec("shufflenetv2", options=options)
    arch = spec.architecture(draw(spec.choices, random.Random(1)))
    torch.manual_seed(0)
    ours = build_subnet(arch)
    hub = hub_space.frozen_factory(dict(arch.choices))(channel_search=True)
    hub.load_state_dict(ours.state_dict(), strict=True)
    images = torch.randn(2, 3, 128, 128)
    ours.train(), hub.train()
    ours.dropout.p = hub.dropout.p = 0.0
    with torch.no_grad():
        expected, logits = hub(images), ours(images)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("seed", range(3))
def test_path_is_its_subnet_before_and_after_recalibration(supernet, seed):
    choices = draw(supernet.spec_choices, random.Random(10 + seed))
    supernet.activate(choices)
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    subnet = supernet.extract(choices)
    batches = list(torch.randn(24, 3, 16, 16).split(8))
    try:
        for step in ("inherited", "recalibrated"):
            if step == "recalibrated":
                recalibrate(supernet, supernet.active_modules(), batches)
                recalibrate(subnet, subnet.modules(), batches)
            for training in (False, True):
                supernet.train(training), subnet.train(training)
                kept = {name: tensor.clone() for name, tensor in subnet.state_dict().items()}
                saved = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
                with torch.no_grad():
                    expected, logits = run(subnet, images), run(supernet, images)
                subnet.load_state_dict(kept), supernet.load_state_dict(saved)
                torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
                assert expected.std() > 1e-3, (step, training)
    finally:
        supernet.load_state_dict(before)
        supernet.train()


def run(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(3)  # of the dropout
    return network(images)


def test_four_candidates_share_the_width(supernet):
    choices = {**draw(supernet.spec_choices, random.Random(4)), "channel_9": 96}
    for block, index in (("k3", 0), ("k5", 0), ("k7", 0), ("xcep", 2)):
        supernet.activate({**choices, "layer_9": block})
        conv = supernet.get_submodule(f"features.8.{block}.branch_main.{index}")
        assert active_tensors(conv)["weight"].shape == (96, 160, 1, 1)
        assert torch.equal(active_tensors(conv)["weight"], conv.weight[:96])


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ([], r"channel_scales is \[\], expected a list"),
        ("0.2", "channel_scales is '0.2', expected a list"),
        (1.0, "channel_scales is 1.0, expected a list"),
        ([0.2, "1"], "channel_scales holds '1', expected numbers"),
        ([0.2, True], "channel_scales holds True"),
        ([0.2, -1.0], "channel_scales holds -1.0"),
        ([0.2, float("nan")], "channel_scales holds nan"),
        ([0.2, float("inf")], "channel_scales holds inf"),
        ([0.2, 1e9], "channel_scales holds 1000000000.0"),
        ([1.0, 1.01], r"give the widths \[32, 32\] in the stage of 64 channels, .*different"),
        ([0.01, 1.0], r"give the widths \[0, 32\] in the stage of 64"),
    ],
)
def test_scales_that_give_no_widths_are_refused(scales, message):
    with pytest.raises(ConfigError, match=message):
        build_space("shufflenetv2", options={"channel_scales": scales}, affine=True)


def test_width_that_is_no_candidate_is_refused():
    arch = shuffle_architecture("0 " * 20, "4 " * 20, channel_scales=SCALES)
    wrong = Architecture(arch.space, arch.options, {**arch.choices, "channel_3": 33})
    with pytest.raises(ArchitectureError, match=r"channel_3 is 33, expected one of \[6, 12"):
        build_subnet(wrong)
