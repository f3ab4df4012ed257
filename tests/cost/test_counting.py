"""Counts are exact: published figures, torch's own counter, and tables against counted networks."""

import random

import nni
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from spos.architecture import load_architecture
from spos.cost.conventions import count
from spos.cost.counting import build_cost_table, count_macs, count_params
from spos.cost.operations import list_operations
from spos.cost.table import CostTable
from spos.errors import ConfigError
from spos.spaces import SPACES, build_space, build_subnet, space_spec
from spos.spaces.nni_pieces import LayerChoice, ModelSpace, Repeat
from spos.supernet import Supernet

import nni.nas.nn.pytorch as mutable  # isort: skip  (after ours, which silences its warnings)

pytestmark = pytest.mark.usefixtures("one_thread")

PAPER = {"image_size": 224, "num_classes": 1000}
SMALL = {"image_size": 32, "num_classes": 10}

# The released network, block by block: for k3, k5, k7 and xcep the multiply-adds, the weights and
# the parameters of BatchNorm. Counted on the authors' code and in closed form.
BLOCK_COSTS = {
    1: (
        (13_396_992, 2736 + 288),
        (15_805_440, 3504 + 288),
        (19_418_112, 4656 + 288),
        (13_146_112, 4192 + 448),
    ),
    2: (
        (7_325_696, 2336 + 192),
        (8_931_328, 2848 + 192),
        (11_339_776, 3616 + 192),
        (12_343_296, 3936 + 384),
    ),
    5: (
        (26_304_768, 18192 + 768),
        (28_111_104, 20496 + 768),
        (30_820_608, 23952 + 768),
        (20_296_192, 25888 + 1216),
    ),
    6: (
        (10_599_680, 13520 + 480),
        (11_603_200, 14800 + 480),
        (13_108_480, 16720 + 480),
        (16_746_240, 21360 + 960),
    ),
    9: (
        (30_670_080, 79680 + 1600),
        (31_673_600, 84800 + 1600),
        (33_178_880, 92480 + 1600),
        (21_199_360, 108160 + 2560),
    ),
    10: (
        (10_317_440, 52640 + 960),
        (10_819_200, 55200 + 960),
        (11_571_840, 59040 + 960),
        (15_899_520, 81120 + 1920),
    ),
    17: (
        (30_387_840, 312960 + 3200),
        (30_889_600, 323200 + 3200),
        (31_642_240, 338560 + 3200),
        (20_634_880, 421120 + 5120),
    ),
    18: (
        (10_176_320, 207680 + 1920),
        (10_427_200, 212800 + 1920),
        (10_803_520, 220480 + 1920),
        (15_476_160, 315840 + 3840),
    ),
}


@pytest.fixture(scope="module")
def table() -> CostTable:
    return build_cost_table("shufflenetv2", options=PAPER)


@pytest.fixture
def own_spaces():
    """Lets a test add spaces of its own."""
    before = dict(SPACES)
    yield SPACES
    SPACES.clear()
    SPACES.update(before)


def draw(choices, generator: random.Random) -> dict:
    return {label: generator.choice(candidates) for label, candidates in choices.items()}


def test_every_block_costs_what_was_published(table):
    assert [term.labels for term in table.terms] == [(f"layer_{n}",) for n in range(1, 21)]
    firsts = sorted(BLOCK_COSTS)
    for layer, term in enumerate(table.terms, start=1):
        published = BLOCK_COSTS[max(first for first in firsts if first <= layer)]
        assert list(zip(term.costs["macs"], term.costs["params"], strict=True)) == list(published)


def test_fixed_part_is_stem_and_head(table):
    assert table.fixed == {
        "macs": 5_419_008 + 33_136_640,
        "params": 432 + 32 + 655_360 + 2_048 + 1_024_000,
    }


def test_published_networks_are_counted_to_the_integer(table, request):
    released = load_architecture(request.config.rootpath / "architecture_final.json", table.spec)
    assert table.costs(released.choices) == {"macs": 322_918_720, "params": 3_558_464}
    assert table.costs(released.choices) == released.metrics
    uniform = {"k3": 295_842_496, "k5": 313_654_976, "k7": 340_373_696, "xcep": 358_825_920}
    for block, macs in uniform.items():
        assert table.cost(dict.fromkeys(table.spec.choices, block)) == macs
    assert table.bounds() == (270_359_360, 398_609_216)
    assert table.is_separable


def test_macs_are_half_of_torchs_flops(table):
    generator = random.Random(0)
    for _ in range(3):
        arch = table.spec.architecture(draw(table.spec.choices, generator))
        network = build_subnet(arch).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.zeros(1, 3, 224, 224))
        assert counter.get_total_flops() == 2 * count_macs(network, 224)
        assert count_macs(network, 224) == table.cost(arch.choices)
        assert count_params(network) == table.cost(arch.choices, "params")


@pytest.mark.parametrize("options", [SMALL, {"image_size": 33, "num_classes": 3}])
def test_table_holds_for_small_images(options):
    table = build_cost_table("shufflenetv2", options=options)
    arch = table.spec.architecture(draw(table.spec.choices, random.Random(1)))
    network = build_subnet(arch)
    assert table.cost(arch.choices) == count_macs(network, options["image_size"])
    assert table.cost(arch.choices, "params") == count_params(network)


def test_operations_are_listed_with_their_costs():
    spec = space_spec("shufflenetv2", options=SMALL)
    network = build_subnet(spec.architecture(dict.fromkeys(spec.choices, "k5")))
    layers = [each for each in list_operations(network, 32) if each.params]
    assert layers[0].name == "first_conv.0"
    assert (layers[0].macs, layers[0].params) == (32 * 32 * 432, 432)
    assert (layers[1].name, layers[1].macs, layers[1].params) == ("first_conv.1", 0, 32)
    assert (layers[-1].name, layers[-1].macs) == ("classifier.0", 10_240)
    assert sum(layer.macs for layer in layers) == count_macs(network, 32)
    assert sum(layer.params for layer in layers) == count_params(network)


def test_active_path_counts_as_its_subnet():
    supernet = Supernet(build_space("shufflenetv2", options=SMALL, affine=False)).train()
    choices = draw(supernet.spec_choices, random.Random(2))
    supernet.activate(choices)
    state = {key: value.clone() for key, value in supernet.state_dict().items()}
    layers = list_operations(supernet, 32)
    assert supernet.training
    assert all(torch.equal(value, state[key]) for key, value in supernet.state_dict().items())
    expected = list_operations(supernet.extract(choices), 32)
    assert [(each.macs, each.params) for each in layers] == [
        (each.macs, each.params) for each in expected
    ]


class _Own(ModelSpace):
    """Widths shared between layers, depth, a layer used twice, nested choices."""

    def __init__(self, num_classes: int = 10, affine: bool = True) -> None:
        super().__init__()
        width, kernel = nni.choice("width", [4, 8]), nni.choice("kernel", [1, 3, 5])
        self.stem = mutable.MutableConv2d(3, width, kernel, 2, kernel // 2)
        self.norm = mutable.MutableBatchNorm2d(width, affine=affine)
        self.body = Repeat(lambda index: self._block(width, index), (0, 2), label="depth")
        self.twice = LayerChoice(
            {"conv": nn.Conv2d(3, 3, 3, padding=1), "skip": nn.Identity()}, label="x"
        )
        self.head = mutable.MutableLinear(width, num_classes)

    def _block(self, width, index: int) -> nn.Module:
        inner = LayerChoice([mutable.MutableConv2d(width, width, 1), nn.ReLU()], label=f"i_{index}")
        return LayerChoice({"nested": nn.Sequential(inner), "plain": nn.ReLU()}, label=f"o_{index}")

    def forward(self, x):
        x = self.twice(self.twice(x))
        return self.head(self.body(self.norm(self.stem(x))).mean((2, 3)))


def test_table_of_own_space_equals_counts(own_spaces):
    own_spaces["own"] = _Own
    options = {"image_size": 9, "num_classes": 4}
    table = build_cost_table("own", options=options)
    assert [term.labels for term in table.terms] == [
        ("width", "kernel", "depth", "o_0", "i_0", "o_1", "i_1"),
        ("x",),
    ]
    supernet = Supernet(_Own(num_classes=4))
    generator = random.Random(3)
    for _ in range(20):
        choices = draw(supernet.spec_choices, generator)
        subnet = supernet.extract(choices)
        assert table.costs(choices) == {
            "macs": count_macs(subnet, 9),
            "params": count_params(subnet),
        }


def test_too_many_combinations_stay_several_terms(own_spaces):
    class Wide(ModelSpace):
        def __init__(self, num_classes: int = 2) -> None:
            super().__init__()
            widths = [nni.choice(f"w_{index}", list(range(1, 9))) for index in range(6)]
            pairs = zip([3, *widths], [*widths, num_classes], strict=True)
            self.layers = nn.Sequential(*(mutable.MutableConv2d(a, b, 1) for a, b in pairs))

        def forward(self, x):
            return self.layers(x).mean((2, 3))

    own_spaces["wide"] = Wide
    table = build_cost_table("wide", options={"image_size": 4, "num_classes": 2})
    assert not table.is_separable
    assert max(len(term.costs["macs"]) for term in table.terms) <= 65_536
    widths = (7, 8, 1, 5, 2, 6)
    weights = 3 * 7 + 7 * 8 + 8 * 1 + 1 * 5 + 5 * 2 + 2 * 6 + 6 * 2
    assert table.costs({f"w_{index}": width for index, width in enumerate(widths)}) == {
        "macs": 16 * weights,
        "params": weights + sum(widths) + 2,
    }


class _Strided(ModelSpace):
    """Candidates that leave maps of another size to the layers after them."""

    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        candidates = {"stay": nn.Identity(), "halve": nn.AvgPool2d(2)}
        self.pool = LayerChoice(candidates, label="pool")
        self.conv = nn.Conv2d(3, num_classes, 1)

    def forward(self, x):
        return self.conv(self.pool(x)).mean((2, 3))


class _RarelyStrided(ModelSpace):
    """One candidate of one layer leaves maps of another size to the layers after it."""

    def __init__(self, num_classes: int = 2, place: int = 0) -> None:
        super().__init__()
        strides = [[1, 1, 2 if index == place else 1] for index in range(8)]
        self.layers = nn.Sequential(
            *(
                LayerChoice(
                    {f"s{n}": nn.Conv2d(3, 3, 3, each, 1) for n, each in enumerate(layer)},
                    label=f"layer_{index}",
                )
                for index, layer in enumerate(strides)
            )
        )
        self.head = nn.Conv2d(3, num_classes, 1)

    def forward(self, x):
        return self.head(self.layers(x)).mean((2, 3))


@pytest.mark.parametrize("place", range(8))
def test_candidate_that_halves_is_found_wherever_it_is(own_spaces, place):
    own_spaces["rare"] = _RarelyStrided
    with pytest.raises(ConfigError, match="costs are not additive"):
        build_cost_table("rare", options={"image_size": 8, "place": place})


class _Fixed(ModelSpace):
    """Takes no options and fits images of 8 x 8 only."""

    def __init__(self) -> None:
        super().__init__()
        candidates = {"on": nn.Conv2d(3, 3, 1), "off": nn.Identity()}
        self.conv = LayerChoice(candidates, label="conv")
        self.head = nn.Linear(3 * 8 * 8, 10)

    def forward(self, x):
        return self.head(self.conv(x).flatten(1))


class _Tied(ModelSpace):
    """A layer of every network shares its weight with a candidate."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 1, bias=False)
        tied = nn.Conv2d(3, 3, 1, bias=False)
        tied.weight = self.first.weight
        self.second = LayerChoice({"on": tied, "off": nn.Identity()}, label="second")

    def forward(self, x):
        return self.second(self.first(x)).mean((2, 3))


@pytest.mark.parametrize(
    ("space", "options", "message"),
    [
        (_Tied, {"image_size": 8}, "not additive.*nor may layers of different candidates share"),
        (_Strided, {"image_size": 8}, "costs are not additive"),
        (_Fixed, {"image_size": 16, "num_classes": 10}, "images of 16 x 16, because it does not"),
        (_Fixed, {"image_size": 8, "num_classes": 7}, r"shape \(1, 10\).*expected \(1, 7\)"),
        (_Fixed, {"image_size": 8, "depth": 7}, "no option 'depth'"),
    ],
)
def test_spaces_that_cannot_be_tabulated_are_refused(own_spaces, space, options, message):
    own_spaces["odd"] = space
    with pytest.raises(ConfigError, match=message):
        build_cost_table("odd", options=options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_networks_of_other_types_are_counted_too(dtype, request):
    network = build_subnet(load_architecture(request.config.rootpath / "architecture_final.json"))
    network = network.to(dtype)
    assert count_macs(network, 64) == count_macs(network.float(), 64)
    assert next(network.parameters()).dtype == torch.float32


class _Odd(ModelSpace):
    """A layer that no image reaches, and one that sees each pixel as an image of its own."""

    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        self.idle = nn.Linear(5, 5)
        self.first = LayerChoice({"on": nn.Conv2d(3, 3, 1), "off": nn.Identity()}, label="first")
        self.pixel = nn.Linear(3, 3)
        self.head = nn.Linear(3, num_classes)

    def forward(self, x):
        pixels = self.first(x).permute(0, 2, 3, 1).flatten(0, 2)
        return self.head(self.pixel(pixels).unflatten(0, (len(x), -1)).mean(1))


def test_odd_layers_are_counted_as_they_run(own_spaces):
    assert count_macs(nn.Sequential(nn.Flatten(2), nn.Linear(16, 5)), 4) == 3 * 16 * 5
    own_spaces["odd"] = _Odd
    table = build_cost_table("odd", options={"image_size": 4, "num_classes": 2})
    assert table.fixed == {"macs": 16 * 9 + 6, "params": 30 + 12 + 8}
    for candidate in ("on", "off"):
        subnet = Supernet(_Odd()).extract({"first": candidate})
        assert table.costs({"first": candidate}) == {
            "macs": count_macs(subnet, 4),
            "params": count_params(subnet),
        }


class _Upwards(ModelSpace):
    """Transposed convolutions: with a stride, groups and padding, and in one dimension."""

    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        up = nn.ConvTranspose2d(6, 4, 4, stride=2, padding=1, groups=2)
        self.up = nn.Sequential(nn.Conv2d(3, 6, 1), up)
        self.row = LayerChoice({"on": nn.ConvTranspose1d(4, 4, 3), "off": nn.Identity()}, label="r")
        self.head = nn.Linear(4, num_classes)

    def forward(self, x):
        return self.head(self.row(self.up(x).flatten(2)).mean(2))


def test_transposed_convolutions_are_counted(own_spaces):
    own_spaces["upwards"] = _Upwards
    table = build_cost_table("upwards", options={"image_size": 5, "num_classes": 2})
    assert table.fixed["macs"] == 25 * 18 + 25 * 4 * 4 * 6 * 4 // 2 + 8  # input positions
    (term,) = table.terms
    assert term.costs["macs"] == (100 * 4 * 4 * 3, 0)
    for candidate in ("on", "off"):
        subnet = Supernet(_Upwards()).extract({"r": candidate}).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            subnet(torch.zeros(1, 3, 5, 5))
        assert counter.get_total_flops() == 2 * table.cost({"r": candidate})
    with pytest.raises(ConfigError, match="'nni' has no rule for the layer up.1"):
        count(list_operations(subnet, 5), "nni")


class _Attentive(ModelSpace):
    """Attention, which gives its weights besides."""

    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        self.layer = LayerChoice({"k1": nn.Conv2d(3, 3, 1), "off": nn.Identity()}, label="layer")
        self.mix = nn.MultiheadAttention(3, 1, batch_first=True)
        self.head = nn.Linear(3, num_classes)

    def forward(self, x):
        x = self.layer(x).flatten(2).transpose(1, 2)
        return self.head(self.mix(x, x, x)[0].mean(1))


def test_layer_of_several_tensors_is_counted_in_its_space_only(own_spaces):
    own_spaces["attentive"] = _Attentive
    table = build_cost_table("attentive", options={"image_size": 4, "num_classes": 2})
    assert table.fixed == {"macs": 6, "params": count_params(_Attentive()) - 12}
    subnet = Supernet(_Attentive()).extract({"layer": "off"})
    with pytest.raises(ConfigError, match=r"the layer mix \(MultiheadAttention\) makes several"):
        list_operations(subnet, 4)
