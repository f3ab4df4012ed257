"""CanyonWind's closed forms: FLOPs and parameters of a layer as polynomials in its middle width."""

import pytest
from published_networks import (
    IMAGENET,
    ONESHOT,
    PLAIN,
    PLUS,
    RELEASED,
    SCALES,
    operations_of,
    shuffle_architecture,
)

from spos.cost.conventions import Count, count
from spos.cost.counting import build_cost_table

pytestmark = pytest.mark.usefixtures("one_thread")

# stage, stride, block; FLOPs and parameters are a + b m + c m^2 for the middle width m
POLYNOMIALS = [
    (1, 2, "k3", (1_254_400, 379_456, 0), (560, 77, 0)),
    (1, 2, "k5", (2_057_216, 429_632, 0), (816, 93, 0)),
    (1, 2, "k7", (3_261_440, 504_896, 0), (1_200, 117, 0)),
    (1, 2, "xcep", (1_705_984, 257_152, 3_136), (736, 90, 1)),
    (1, 1, "k3", (0, 228_928, 0), (64, 77, 0)),
    (1, 1, "k5", (0, 279_104, 0), (64, 93, 0)),
    (1, 1, "k7", (0, 354_368, 0), (64, 117, 0)),
    (1, 1, "xcep", (903_168, 257_152, 3_136), (416, 90, 1)),
    (2, 2, "k3", (3_662_848, 283_024, 0), (5_120, 173, 0)),
    (2, 2, "k5", (4_465_664, 295_568, 0), (6_144, 189, 0)),
    (2, 2, "k7", (5_669_888, 314_384, 0), (7_680, 213, 0)),
    (2, 2, "xcep", (4_114_432, 139_552, 784), (5_824, 186, 1)),
    (2, 1, "k3", (0, 132_496, 0), (160, 173, 0)),
    (2, 1, "k5", (0, 145_040, 0), (160, 189, 0)),
    (2, 1, "k7", (0, 163_856, 0), (160, 213, 0)),
    (2, 1, "xcep", (564_480, 139_552, 784), (1_040, 186, 1)),
    (3, 2, "k3", (5_299_840, 158_564, 0), (28_000, 333, 0)),
    (3, 2, "k5", (5_801_600, 161_700, 0), (30_560, 349, 0)),
    (3, 2, "k7", (6_554_240, 166_404, 0), (34_400, 373, 0)),
    (3, 2, "xcep", (5_582_080, 66_248, 196), (29_760, 346, 1)),
    (3, 1, "k3", (0, 64_484, 0), (320, 333, 0)),
    (3, 1, "k5", (0, 67_620, 0), (320, 349, 0)),
    (3, 1, "k7", (0, 72_324, 0), (320, 373, 0)),
    (3, 1, "xcep", (282_240, 66_248, 196), (2_080, 346, 1)),
    (4, 2, "k3", (5_158_720, 78_841, 0), (107_200, 653, 0)),
    (4, 2, "k5", (5_409_600, 79_625, 0), (112_320, 669, 0)),
    (4, 2, "k7", (5_785_920, 80_801, 0), (120_000, 693, 0)),
    (4, 2, "xcep", (5_299_840, 32_242, 49), (110_720, 666, 1)),
    (4, 1, "k3", (0, 31_801, 0), (640, 653, 0)),
    (4, 1, "k5", (0, 32_585, 0), (640, 669, 0)),
    (4, 1, "k7", (0, 33_761, 0), (640, 693, 0)),
    (4, 1, "xcep", (141_120, 32_242, 49), (4_160, 666, 1)),
]
STAGES = {1: range(1, 5), 2: range(5, 9), 3: range(9, 17), 4: range(17, 21)}


def test_every_cell_of_the_lookup_table_follows_its_polynomial():
    """800 cells each of FLOPs and parameters: 20 layers, four blocks, ten widths."""
    table = build_cost_table("shufflenetv2", options={**IMAGENET, "channel_scales": SCALES})
    num_cells = 0
    for stage, stride, block, flops, params in POLYNOMIALS:
        layers = STAGES[stage][:1] if stride == 2 else STAGES[stage][1:]
        for layer in layers:
            term = table.terms[layer - 1]
            widths = table.spec.choices[f"channel_{layer}"]
            row = table.spec.choices[f"layer_{layer}"].index(block) * len(widths)
            for column, m in enumerate(widths, start=row):
                assert term.costs["macs"][column] == flops[0] + flops[1] * m + flops[2] * m * m
                assert term.costs["params"][column] == params[0] + params[1] * m + params[2] * m * m
                num_cells += 1
    assert num_cells == 800


def in_parts(counted: Count) -> dict[str, tuple[int, int]]:
    """FLOPs and parameters before the layers, of each of them, and after."""
    parts: dict[str, tuple[int, int]] = {}
    for name, flops, params in counted.layers:
        first, _, rest = name.partition(".")
        part = f"layer_{int(rest.split('.')[0]) + 1}" if first == "features" else "after"
        part = "before" if first == "first_conv" else part
        before = parts.get(part, (0, 0))
        parts[part] = (before[0] + flops, before[1] + params)
    return parts


def test_attention_adds_a_constant_to_stages_3_and_4():
    arch = shuffle_architecture(ONESHOT, **{**PLAIN, "channel_scales": None})
    attentive = shuffle_architecture(ONESHOT, **{**PLUS, "channel_scales": None})
    without, with_it = (
        in_parts(count(operations_of(each), "canyonwind")) for each in (arch, attentive)
    )
    for layer in range(1, 21):
        flops, params = without[f"layer_{layer}"]
        added = {1: (0, 0), 2: (0, 0), 3: (44_360, 13_000), 4: (67_280, 51_600)}
        stage = next(stage for stage, layers in STAGES.items() if layer in layers)
        expected = flops + added[stage][0], params + added[stage][1]
        assert with_it[f"layer_{layer}"] == expected, layer


@pytest.mark.parametrize(
    ("options", "after"),
    [
        (PLAIN, (33_187_816, 1_682_408)),
        (PLUS, (1_712_744, 1_681_384)),
        ({**PLUS, "head": "plus"}, (26_231_208, 2_601_384)),
    ],
)
def test_ends_cost_what_was_published(options, after):
    arch = shuffle_architecture(ONESHOT, **{**options, "channel_scales": None})
    parts = in_parts(count(operations_of(arch), "canyonwind"))
    assert parts["before"] == (5_419_008, 464)
    assert parts["after"] == after


def test_shuffle_as_a_dense_convolution_costs_what_was_published():
    operations = operations_of(shuffle_architecture(RELEASED))
    shapes = [each.input_shape for each in operations if each.kind == "shuffle"]
    assert sum(c * c for c, _, _ in shapes) == 2_034_688
    assert sum(c * c * h * w for c, h, w in shapes) == 299_450_368
