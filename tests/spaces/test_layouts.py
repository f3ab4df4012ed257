"""Each system's blocks, attention and heads against functions written anew from descriptions."""

import pytest
import torch
import torch.nn.functional as F
from published_networks import (
    MMRAZOR,
    ONESHOT,
    PLUS,
    PLUS_LAYOUT,
    RELEASED,
    S_PLUS,
    shuffle_architecture,
)
from torch import nn

from spos.errors import ConfigError
from spos.spaces import build_space, build_subnet
from spos.spaces.blocks import LAYOUTS, BlockStyle, SqueezeExcitation, shuffle_block, xception_block
from spos.spaces.halves import join

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"image_size": 32, "num_classes": 7}


def randomize(network: nn.Module) -> nn.Module:
    """Random weights and statistics, in double precision and evaluation mode."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.normal_(module.bias, 0, 0.3)
    return network.double().eval()


def group_shuffle(x):
    """ShuffleNet's: reshape to two groups, swap, reshape back."""
    n, c, h, w = x.shape
    return x.reshape(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def megvii(block, x):
    if block.branch_proj is not None:
        return torch.cat([block.branch_proj(x), block.branch_main(x)], 1)
    n, c, h, w = x.shape
    pairs = x.reshape(n * c // 2, 2, h * w).permute(1, 0, 2).reshape(2, -1, c // 2, h, w)
    return torch.cat([pairs[0], block.branch_main(pairs[1])], 1)


def canyonwind(block, x):
    if block.branch_proj is not None:
        return torch.cat([block.branch_proj(x), block.branch_main(x)], 1)
    x = group_shuffle(x)
    half = x.shape[1] // 2
    return torch.cat([x[:, :half], block.branch_main(x[:, half:])], 1)


def lliai(block, x):
    if block.branch_proj is not None:
        return group_shuffle(torch.cat([block.branch_main(x), block.branch_proj(x)], 1))
    half = x.shape[1] // 2
    return group_shuffle(torch.cat([block.branch_main(x[:, :half]), x[:, half:]], 1))


def mmrazor(block, x):
    if block.branch_proj is not None:
        return group_shuffle(torch.cat([block.branch_proj(x), block.branch_main(x)], 1))
    half = x.shape[1] // 2
    return group_shuffle(torch.cat([x[:, :half], block.branch_main(x[:, half:])], 1))


PUBLISHED = {"canonical": megvii, "canyonwind": canyonwind, "lliai": lliai, "classic": mmrazor}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("projects", [False, True])
def test_block_is_the_published_function(layout, projects):
    torch.manual_seed(0)
    widths = (8, 24, 12) if projects else (16, 16, 8)
    stride = 2 if projects else 1
    style = BlockStyle(layout=layout)
    for block in (
        shuffle_block(*widths, kernel_size=5, stride=stride, projects=projects, style=style),
        xception_block(*widths, stride=stride, projects=projects, style=style),
    ):
        randomize(block)
        x = torch.randn(2, widths[0], 6, 6, dtype=torch.float64)
        torch.testing.assert_close(join(block(x)), PUBLISHED[layout](block, x), rtol=0, atol=1e-12)
        assert join(block(x)).shape == (2, widths[1], 6 // stride, 6 // stride)


def test_layouts_are_different_functions_of_the_same_layers():
    torch.manual_seed(0)
    networks = {}
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    logits = []
    for layout in ("canonical", "canyonwind", "lliai"):
        network = randomize(build_subnet(shuffle_architecture(ONESHOT, layout=layout, **SMALL)))
        if networks:
            network.load_state_dict(networks["canonical"].state_dict())
        networks[layout] = network
        logits.append(network(images))
    for index in range(3):
        for other in range(index):
            assert not torch.allclose(logits[index], logits[other], rtol=1e-2)


def test_canyonwinds_shuffle_has_the_published_order():
    block = shuffle_block(8, 8, 4, kernel_size=3, style=BlockStyle(layout="canyonwind"))
    block.branch_main = nn.Identity()
    x = torch.arange(8.0).reshape(1, 8, 1, 1)
    assert join(block(x)).flatten().tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


@pytest.mark.parametrize(
    ("layout", "projection_channels"), [("canonical", 8), ("lliai", 0), ("classic", 16)]
)
def test_next_block_works_on_as_much_of_the_projection_as_published(layout, projection_channels):
    """Of stage 1's projection (16 channels, classic 32) the second block works on so many."""
    network = build_subnet(shuffle_architecture(RELEASED, layout=layout, **SMALL))
    first, second = network.features[0], network.features[1]
    seen = []
    first.branch_proj.register_forward_hook(lambda *_: torch.ones_like(_[-1]))
    first.branch_main.register_forward_hook(lambda *_: torch.zeros_like(_[-1]))
    second.branch_main.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network.eval()(torch.randn(1, 3, 32, 32))
    assert int(seen[0][0, :, 0, 0].sum()) == projection_channels


def test_classic_layout_halves_the_first_block_of_a_stage():
    network = build_subnet(shuffle_architecture(MMRAZOR, layout="classic", **SMALL))
    state = network.state_dict()
    assert state["features.0.branch_proj.2.weight"].shape == (32, 16, 1, 1)
    assert state["features.0.branch_main.5.weight"].shape == (32, 32, 1, 1)
    canonical = build_subnet(shuffle_architecture(MMRAZOR, **SMALL)).state_dict()
    assert canonical["features.0.branch_proj.2.weight"].shape == (16, 16, 1, 1)
    assert canonical["features.0.branch_main.5.weight"].shape == (48, 32, 1, 1)
    differing = {key.split(".")[1] for key in state if state[key].shape != canonical[key].shape}
    assert differing == {"0", "4"}


@pytest.mark.parametrize(("attention", "squeezed"), [("megvii", 9), ("canyonwind", 16)])
def test_attention_is_the_published_function(attention, squeezed):
    torch.manual_seed(0)
    module = randomize(SqueezeExcitation(36, attention))
    state = module.state_dict()
    x = torch.randn(3, 36, 5, 5, dtype=torch.float64)
    y = x.mean((2, 3)) @ state["SE_opr.1.weight"].flatten(1).T
    if attention == "megvii":
        scale = state["SE_opr.2.weight"] / torch.sqrt(state["SE_opr.2.running_var"] + 1e-5)
        y = (y - state["SE_opr.2.running_mean"]) * scale + state["SE_opr.2.bias"]
        y = y.clamp(min=0) @ state["SE_opr.4.weight"].flatten(1).T
    else:
        y = (y + state["SE_opr.1.bias"]).clamp(min=0)
        y = y @ state["SE_opr.3.weight"].flatten(1).T + state["SE_opr.3.bias"]
    assert state["SE_opr.1.weight"].shape == (squeezed, 36, 1, 1)
    expected = x * ((y + 3).clamp(0, 6) / 6)[:, :, None, None]
    torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-12)


def hswish(x):
    return x * (x + 3).clamp(0, 6) / 6


def test_heads_are_the_published_functions():
    torch.manual_seed(0)
    options = {**SMALL, **PLUS_LAYOUT, "channel_scales": None, "space": "shufflenetv2plus"}
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    for head in ("plain", "mobilenetv3", "plus"):
        network = randomize(build_subnet(shuffle_architecture(S_PLUS, head=head, **options)))
        x = network.features(network.first_conv(images))
        state = network.state_dict()
        if head == "mobilenetv3":
            weight = state["conv_last.0.weight"].flatten(1)
            x = hswish(x.mean((2, 3)) @ weight.T + state["conv_last.0.bias"])
            assert weight.shape == (1024, 512)
        else:
            width = 768 if head == "plus" else 1024
            assert state["conv_last.0.weight"].shape == (width, 512, 1, 1)
            x = network.conv_last[1](F.conv2d(x, state["conv_last.0.weight"]))
            x = hswish(x).mean((2, 3))
        if head == "plus":
            x = network.LastSE(x[:, :, None, None]).flatten(1)
            x = hswish(x @ state["fc.0.weight"].T + state["fc.0.bias"])
            assert state["LastSE.SE_opr.1.weight"].shape == (192, 768, 1, 1)
        x = x @ state["classifier.0.weight"].T + state["classifier.0.bias"]
        torch.testing.assert_close(network(images), x, rtol=1e-9, atol=1e-9)


def test_names_are_those_of_megviis_plus():
    network = build_subnet(shuffle_architecture(ONESHOT, space="shufflenetv2plus", **SMALL))
    state = network.state_dict()
    assert state["LastSE.SE_opr.1.weight"].shape == (320, 1280, 1, 1)
    assert state["fc.0.weight"].shape == (1280, 1280) and "fc.0.bias" not in state
    assert state["features.8.branch_main.8.SE_opr.1.weight"].shape == (32, 128, 1, 1)
    assert not any(
        "SE_opr" in key for key in state if key.startswith(("features.7.", "features.0"))
    )
    assert "classifier.0.weight" in state and "classifier.0.bias" not in state


def test_activations_are_hswish_from_stage_2_on():
    for options in (PLUS, {"space": "shufflenetv2plus"}):
        arch = shuffle_architecture(ONESHOT, **{**options, **SMALL, "channel_scales": None})
        network = build_subnet(arch)
        kinds = {
            stage: {type(m) for m in layers.modules() if isinstance(m, (nn.ReLU, nn.Hardswish))}
            for stage, layers in {
                "stem": network.first_conv,
                "1": network.features[:4],
                "2": network.features[4:8],
                "4": network.features[16:],
                "head": network.conv_last,
            }.items()
        }
        assert kinds["stem"] == kinds["2"] == kinds["head"] == {nn.Hardswish}
        assert kinds["1"] == {nn.ReLU}
        assert kinds["4"] == {nn.Hardswish, nn.ReLU}  # ReLU in squeeze-excitation
    network = build_subnet(shuffle_architecture(ONESHOT, stem_activation="relu6", **SMALL))
    relu6 = [name for name, module in network.named_modules() if isinstance(module, nn.ReLU6)]
    assert relu6 == ["first_conv.2", "conv_last.2"]


@pytest.mark.parametrize(
    ("space", "options", "message"),
    [
        ("shufflenetv2", {"layout": "shunlu"}, "layout is 'shunlu', expected one of canonical, "),
        ("shufflenetv2", {"layout": []}, r"layout is \[\], expected one of"),
        ("shufflenetv2", {"activation": "gelu"}, "activation is 'gelu'"),
        ("shufflenetv2", {"stem_activation": "gelu"}, "stem_activation is 'gelu'"),
        ("shufflenetv2", {"squeeze_excitation": True}, "expected one of null, canyonwind, megvii"),
        ("shufflenetv2", {"head": "big"}, "head is 'big'"),
        ("shufflenetv2", {"head": "plus"}, "the head 'plus' holds a squeeze-excitation"),
        ("shufflenetv2plus", {"squeeze_excitation": None}, "the head 'plus' holds"),
        ("shufflenetv2", {"classifier_bias": 1}, "classifier_bias is 1, expected true or false"),
        ("shufflenetv2", {"dropout": 1.0}, "dropout is 1.0"),
        ("shufflenetv2", {"dropout": "0.1"}, "dropout is '0.1'"),
        ("shufflenetv2", {"stage_widths": [64, 160, 320]}, "expected a list of 4 numbers"),
        ("shufflenetv2", {"stage_widths": [64, 160, 320, 642]}, "expected multiples of 4, each"),
        ("shufflenetv2", {"stage_widths": [64, 64, 320, 640]}, "each more than the one before"),
        ("shufflenetv2", {"stage_widths": [64.0, 160, 320, 640]}, "stage_widths is 64.0"),
        ("shufflenetv2", {"stem_width": 64}, "after a stem of 64, expected"),
        ("shufflenetv2", {"stem_width": 0}, "stem_width is 0"),
        ("shufflenetv2", {"last_width": 10**9}, "last_width is 1000000000"),
        ("shufflenetv2plus", {"activation": "relu"}, "has no option 'activation'"),
        ("shufflenetv2plus", {"image_size": 7}, "shufflenetv2plus: image_size is 7"),
    ],
)
def test_options_out_of_range_are_refused(space, options, message):
    with pytest.raises(ConfigError, match=message):
        build_space(space, options=options, affine=True)
