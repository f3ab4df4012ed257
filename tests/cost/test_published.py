"""The published networks of the reference systems, counted to the integer in their conventions."""

import pytest
import torch
from published_networks import (
    MMRAZOR,
    ONESHOT,
    ONESHOT_CHANNELS,
    PLAIN,
    PLUS,
    PLUS_LAYOUT,
    RELEASED,
    S_PLUS,
    S_PLUS_CHANNELS,
    SCALES,
    operations_of,
    shuffle_architecture,
)

from spos.cost.conventions import count
from spos.cost.counting import build_cost_table, count_params
from spos.spaces import build_space

pytestmark = pytest.mark.usefixtures("one_thread")

SERIES = (ONESHOT, ONESHOT_CHANNELS)
S = (S_PLUS, S_PLUS_CHANNELS)
V2PLUS = {**PLUS_LAYOUT, "space": "shufflenetv2plus"}
POOLS_FIRST = {**V2PLUS, "head": "mobilenetv3"}
TINY = {**PLAIN, "last_width": 100, "classifier_bias": False}
NO_BIAS = {**PLAIN, "classifier_bias": False}

# blocks and channels, options; multiply-adds, parameters, CanyonWind's FLOPs, BatchNorm's buffers
CANYONWIND = {
    "OneShot": (SERIES, PLAIN, 327_857_920, 3_433_579, 327_909_096, 25_544),
    "OneShot, no bias": (SERIES, NO_BIAS, 327_857_920, 3_432_579, 327_908_096, 25_544),
    "OneShot+": (SERIES, PLUS, 296_707_840, 3_742_955, 297_058_024, 23_496),
    "OneShot-S+": (S, PLUS, 291_125_760, 3_541_829, 291_475_944, 21_604),
    "S+ on V2+": (S, V2PLUS, 208_817_058, 3_707_885, 209_111_882, 18_740),
    "S+ on V2+, pools first": (S, POOLS_FIRST, 188_992_418, 2_755_117, 189_272_970, 17_204),
    "tiny": (SERIES, TINY, 297_957_280, 1_915_371, 297_962_180, 23_696),
    "maximum": (("3 " * 20, "9 " * 20), PLAIN, 841_845_184, 7_170_504, 841_896_360, 64_480),
    "minimum": (("0 " * 20, "2 " * 20), PLUS, 167_714_752, 2_934_276, 168_064_936, 15_568),
    "S+ plain": (S, PLAIN, 322_275_840, 3_232_453, 322_327_016, 23_652),
}

# plain or with "+": blocks, channels; parameters, multiply-adds, CanyonWind's FLOPs, of its logs
LOGGED = [
    (
        PLAIN,
        "2 0 1 0 0 2 1 0 0 2 2 1 0 1 1 1 1 2 2 2",
        "8 9 9 2 4 2 4 5 3 2 3 3 5 7 3 6 5 2 2 6",
        (3_189_596, 333_973_120, 334_024_296),
    ),
    (
        PLAIN,
        "2 1 2 0 3 0 2 3 1 0 2 2 2 0 3 2 1 0 0 2",
        "2 3 2 3 4 2 8 3 3 5 8 2 3 3 2 2 3 2 4 5",
        (3_117_360, 288_397_632, 288_448_808),
    ),
    (
        PLAIN,
        "0 0 1 1 2 1 3 1 1 3 0 2 2 0 1 0 3 0 1 2",
        "4 9 5 7 7 5 7 6 4 8 2 3 2 2 3 5 3 2 3 2",
        (3_122_557, 353_400_640, 353_451_816),
    ),
    (
        PLUS,
        "1 2 0 0 0 1 3 1 2 1 2 0 3 0 3 0 2 1 1 0",
        "9 5 3 5 3 6 5 2 5 1 2 2 3 2 3 2 3 3 3 4",
        (3_321_353, 276_640_576, 276_990_760),
    ),
    (
        PLUS,
        "2 3 2 0 1 0 1 3 3 3 1 0 3 2 3 0 0 1 0 1",
        "4 0 3 8 1 3 4 3 1 1 0 1 6 3 3 3 3 2 2 5",
        (3_249_338, 224_902_848, 225_253_032),
    ),
    (
        PLUS,
        "2 1 0 2 1 1 3 2 1 1 3 3 1 3 1 3 0 1 0 2",
        "7 6 0 9 0 1 9 6 1 2 5 2 4 7 1 3 8 4 0 0",
        (3_427_281, 321_620_224, 321_970_408),
    ),
]

# lliai's: choices; multiply-adds, thop's figure, parameters with the dead ones, dead parameters,
# and parameters of the canonical network
LLIAI = [
    (
        "2 2 3 0 2 0 2 1 2 2 2 1 3 1 1 3 2 0 1 1",
        (338_366_656, 339_440_864, 3_841_464, 566_896, 3_298_112),
    ),
    (
        "2 2 3 0 2 0 1 1 2 2 2 1 3 3 1 0 2 0 1 1",
        (336_359_616, 337_433_824, 3_832_504, 562_416, 3_293_632),
    ),
    (
        "2 2 3 0 2 0 1 1 2 2 2 1 3 1 1 3 2 0 1 1",
        (336_861_376, 337_935_584, 3_837_624, 564_976, 3_296_192),
    ),
    (
        "2 2 3 0 1 0 1 2 2 2 2 1 3 1 1 0 2 0 1 1",
        (330_075_072, 331_149_280, 3_809_528, 566_896, 3_265_216),
    ),
    (
        "2 2 3 0 2 0 1 1 2 2 2 1 3 1 1 0 2 0 1 1",
        (331_279_296, 332_353_504, 3_809_144, 564_976, 3_266_752),
    ),
]

SUPERNETS = [
    ("shufflenetv2", {}, False, 8_388_176),
    ("shufflenetv2", {}, True, 8_489_648),
    ("shufflenetv2", {"layout": "lliai", "classifier_bias": True}, False, 8_389_176),
    ("shufflenetv2", {"layout": "classic", "classifier_bias": True}, True, 8_488_600),
    ("shufflenetv2", PLAIN, True, 15_939_672),
    ("shufflenetv2", PLUS, True, 17_180_248),
    ("shufflenetv2", {**PLUS, "head": "plus"}, True, 18_100_248),
]


def dead_parameters(blocks: str, *, affine: bool = False) -> int:
    """Of the projections that lliai and NNI 2.5 give to blocks without stride, and never run."""
    halves = [32] * 4 + [80] * 4 + [160] * 8 + [320] * 4
    firsts = (0, 4, 8, 16)
    total = 0
    for layer, (block, c) in enumerate(zip(blocks.split(), halves, strict=True)):
        if layer not in firsts:
            kernel = {"0": 3, "1": 5, "2": 7, "3": 3}[block]
            total += kernel * kernel * c + c * c + (4 * c if affine else 0)
    return total


@pytest.mark.parametrize("name", CANYONWIND)
def test_canyonwinds_networks(name):
    (blocks, channels), options, macs, params, flops, buffers = CANYONWIND[name]
    operations = operations_of(shuffle_architecture(blocks, channels, **options))
    assert sum(each.macs for each in operations) == count(operations).flops == macs
    counted = count(operations, "canyonwind")
    assert (counted.flops, counted.params) == (flops, params)
    norms = [each for each in operations if each.kind == "batchnorm"]
    assert sum(2 * each.channels for each in norms) == buffers


@pytest.mark.parametrize("row", LOGGED, ids=range(len(LOGGED)))
def test_canyonwinds_logs(row):
    options, blocks, channels, expected = row
    operations = operations_of(shuffle_architecture(blocks, channels, **options))
    counted = count(operations, "canyonwind")
    assert (counted.params, count(operations).flops, counted.flops) == expected


def test_canyonwinds_count_with_batchnorm_and_relu():
    operations = operations_of(shuffle_architecture(*SERIES, **PLAIN))
    assert count(operations, "canyonwind-bn-relu").flops == 344_984_616


def test_numbers_of_layers_are_the_published_ones():
    for blocks, options, multipliers, norms in (
        (SERIES, PLAIN, 77, 76),
        (SERIES, PLUS, 101, 75),
        (S, PLUS, 98, 72),
        (S, V2PLUS, 101, 73),
    ):
        kinds = [each.kind for each in operations_of(shuffle_architecture(*blocks, **options))]
        assert (kinds.count("conv") + kinds.count("linear"), kinds.count("batchnorm")) == (
            multipliers,
            norms,
        )


def test_networks_for_224_count_less_on_images_of_64():
    for blocks, options, macs in (
        (SERIES, PLAIN, 27_704_320),
        (SERIES, PLUS, 26_045_440),
        (S, PLUS, 25_589_760),
        (SERIES, TINY, 24_414_880),
        (S, V2PLUS, 19_160_328),
        (S, POOLS_FIRST, 17_030_408),
    ):
        operations = operations_of(shuffle_architecture(*blocks, **options), image_size=64)
        assert count(operations).flops == macs


@pytest.mark.parametrize("row", LLIAI, ids=range(len(LLIAI)))
def test_lliais_networks(row):
    blocks, (macs, thop, params, dead, canonical) = row
    arch = shuffle_architecture(blocks, layout="lliai", classifier_bias=True)
    operations = operations_of(arch, affine=False)
    counted = count(operations, "thop2019")
    assert (count(operations).flops, counted.flops) == (macs, thop)
    assert dead_parameters(blocks) == dead
    assert counted.params + dead == params
    operations = operations_of(shuffle_architecture(blocks))
    assert (count(operations).flops, count(operations).params) == (macs, canonical)


@pytest.mark.parametrize(
    ("blocks", "channels", "options", "convention", "flops", "params"),
    [
        (RELEASED, "", {}, "macs", 322_918_720, 3_558_464),
        (RELEASED, "", {}, "nni", 343_271_360, 3_558_464),
        (RELEASED, "", {"stem_activation": "relu6"}, "macs", 322_918_720, 3_558_464),
        (ONESHOT, "", {}, "macs", 318_729_024, 3_345_088),
        (*SERIES, {"channel_scales": SCALES[:8]}, "macs", 327_857_920, 3_432_579),
        (MMRAZOR, "", {"layout": "classic"}, "macs", 316_019_520, 3_352_592),
        (RELEASED, "", {"layout": "classic"}, "macs", 321_915_200, 3_557_952),
    ],
)
def test_networks_of_the_other_systems(blocks, channels, options, convention, flops, params):
    operations = operations_of(shuffle_architecture(blocks, channels, **options))
    counted = count(operations, convention)
    assert (counted.flops, counted.params) == (flops, params)


def test_mmrazors_estimates():
    options = {"layout": "classic", "classifier_bias": True}
    operations = operations_of(shuffle_architecture(MMRAZOR, **options))
    assert (count(operations, "mmrazor").flops, count(operations).params) == (
        327_544_320,
        3_353_592,
    )
    parts = {"batchnorm": 2, "relu": 1, "adaptive pool": 1}
    sums = [sum(f * op.inputs for op in operations if op.kind == k) for k, f in parts.items()]
    assert sums == [8_529_920, 2_944_704, 50_176]
    released = operations_of(shuffle_architecture(RELEASED, **options))
    assert (count(released, "mmrazor").flops, count(released).params) == (333_668_928, 3_558_952)


@pytest.mark.parametrize(
    ("widths", "macs", "params"),
    [
        ((48, 128, 256, 512), 222_249_984, 5_679_840),
        ((36, 104, 208, 416), 155_845_008, 5_137_116),  # published as 156M, 5.1M
        ((68, 168, 336, 672), 360_050_704, 6_768_220),  # 360M, 6.7M
    ],
)
def test_megviis_shufflenetv2plus(widths, macs, params):
    arch = shuffle_architecture(ONESHOT, space="shufflenetv2plus", stage_widths=list(widths))
    counted = count(operations_of(arch))
    assert (counted.flops, counted.params) == (macs, params)


def test_parameters_of_nni_2_hold_dead_projections():
    dead = [sum(dead_parameters(f"{n} " * 20, affine=a) for n in range(4)) for a in (False, True)]
    assert dead[0] == 2_256_960
    assert 8_388_176 + dead[0] == 10_645_136
    assert 8_489_648 + dead[1] == 10_785_264
    assert 8_389_176 + dead[0] == 10_646_136  # lliai's supernet
    released = count(operations_of(shuffle_architecture(RELEASED)))
    assert released.params + dead_parameters(RELEASED, affine=True) == 4_121_968


@pytest.mark.parametrize(("space", "options", "affine", "params"), SUPERNETS)
def test_supernets_are_as_large_as_published(space, options, affine, params):
    # a space is built at its first widths; listed last to first, these are the largest
    scales = options.get("channel_scales")
    options = {**options, "channel_scales": scales[::-1]} if scales else options
    with torch.device("meta"):
        assert count_params(build_space(space, options=options, affine=affine)) == params


def test_table_of_40_choices_agrees_with_the_published_networks():
    arch = shuffle_architecture(*SERIES, **PLAIN)
    table = build_cost_table("shufflenetv2", options=arch.options)
    assert [term.labels for term in table.terms] == [
        (f"layer_{n}", f"channel_{n}") for n in range(1, 21)
    ]
    assert list(table.spec.choices) == [label for term in table.terms for label in term.labels]
    assert table.spec.num_architectures == 40**20 and table.is_separable
    assert table.costs(arch.choices) == {"macs": 327_857_920, "params": 3_433_579}
    widest = shuffle_architecture("3 " * 20, "9 " * 20, **PLAIN)
    assert table.costs(widest.choices) == {"macs": 841_845_184, "params": 7_170_504}
    # in CanyonWind's FLOPs, 51,176 more, these are its true minimum and maximum
    assert table.bounds() == (95_014_056 - 51_176, 880_365_672 - 51_176)
