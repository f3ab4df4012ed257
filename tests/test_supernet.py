"""One active path of shared weights: the same function as the subnet, and nothing else moves."""

import copy
import random
import time

import nni
import pytest
import torch
from nni.mutable import ensure_frozen
from nni.mutable.annotation import ExpressionConstraint
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from spos.architecture import Architecture
from spos.errors import ArchitectureError, ConfigError
from spos.spaces import build_space, build_subnet
from spos.spaces.nni_pieces import Cell, InputChoice, LayerChoice, ModelSpace, MutableModule, Repeat
from spos.spaces.sliced import SlicedBatchNorm2d, SlicedConv2d, active_tensors
from spos.supernet import Supernet

import nni.nas.nn.pytorch as mutable  # isort: skip  (after ours, which silences its warnings)

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = {"image_size": 32, "num_classes": 10}


class OwnSpace(ModelSpace):
    """A user's space: searched widths, kernels, depth, inputs, and layers of every sliced kind."""

    def __init__(self, num_classes: int = 5, affine: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        width = nni.choice("width", [4, 8, 12])
        kernel = nni.choice("kernel", [3, 5])
        self.dropout = dropout
        self.stem = nn.Sequential(
            mutable.MutableConv2d(3, width, kernel, padding=kernel // 2),
            mutable.MutableBatchNorm2d(width, affine=affine),
            nn.ReLU(),
        )
        self.depthwise = mutable.MutableConv2d(width, width, 3, groups=width, padding="same")
        self.body = Repeat(lambda index: self._block(width, index, affine), (1, 3), label="depth")
        self.pick = InputChoice(2, 1, label="input")
        self.project = mutable.MutableLinear(width, width * 2)
        self.norm = mutable.MutableLayerNorm(width * 2)
        self.head = LayerChoice(
            [
                nn.Sequential(mutable.MutableLinear(width * 2, num_classes)),
                mutable.MutableLinear(width * 2, num_classes, bias=False),
            ],
            label="head",
        )
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("shift", torch.tensor(0.25))
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 1e-3  # after the constructor, as NNI's hub does it

    def _block(self, width, index: int, affine: bool) -> nn.Module:
        mid = nni.choice(f"mid_{index}", [2, 6])
        work = nn.Sequential(
            mutable.MutableConv2d(width, mid, 1, bias=False),
            mutable.MutableBatchNorm2d(mid, affine=affine, momentum=None),
            nn.ReLU(),
            mutable.MutableConv2d(mid, width, 3, padding=1),
        )
        return LayerChoice({"work": work, "label": nn.Identity()}, label=f"op_{index}")

    def forward(self, x):
        x = self.stem(x)
        x = self.pick([x, self.depthwise(x)])
        x = self.body(x).mean((2, 3))
        x = self.norm(self.project(x)) * self.scale + self.shift
        return self.head(nn.functional.dropout(x, self.dropout, self.training))


def shufflenet(affine: bool) -> Supernet:
    return Supernet(build_space("shufflenetv2", options=OPTIONS, affine=affine))


def run(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Outputs with the dropout of one seed."""
    torch.manual_seed(5)
    return network(images)


def draw(supernet: Supernet, generator: random.Random) -> dict:
    return {label: generator.choice(each) for label, each in supernet.spec_choices.items()}


def with_channels(name: str, **options) -> Supernet:
    options = {**OPTIONS, "channel_scales": [0.2, 0.8, 1.4, 2.0], **options}
    return Supernet(build_space(name, options=options, affine=True))


MAKERS = {
    "shufflenetv2": lambda: shufflenet(affine=False),
    "shufflenetv2 affine": lambda: shufflenet(affine=True),
    "shufflenetv2 channels": lambda: with_channels("shufflenetv2"),
    "shufflenetv2plus channels": lambda: with_channels("shufflenetv2plus", layout="canyonwind"),
    "own": lambda: Supernet(OwnSpace()),
}


@pytest.fixture(params=MAKERS)
def supernet(request) -> Supernet:
    torch.manual_seed(0)
    return MAKERS[request.param]()


@pytest.fixture(scope="module")
def trained() -> Supernet:
    """A supernet whose statistics are not the initial ones; tests leave it as it is."""
    torch.manual_seed(0)
    supernet = shufflenet(affine=False).train()
    generator = random.Random(0)
    for _ in range(3):
        supernet.activate(draw(supernet, generator))
        supernet(torch.randn(4, 3, 32, 32))
    return supernet


def test_path_equals_its_subnet_in_every_mode(supernet):
    generator = random.Random(1)
    for _ in range(3):
        choices = draw(supernet, generator)
        supernet.activate(choices)
        for training in (False, True, False):  # the last after a batch has moved the statistics
            supernet.train(training)
            subnet = supernet.extract(choices)
            images = torch.randn(4, 3, 32, 32)
            before = {key: value.clone() for key, value in subnet.state_dict().items()}
            expected, logits = run(supernet, images), run(subnet, images)
            assert torch.equal(logits, expected)
            assert expected.std() > 0
            same = supernet.extract(choices).state_dict()
            for key, value in subnet.state_dict().items():
                assert torch.equal(value, same[key]), key
                if training and key.endswith(("running_mean", "running_var")):
                    assert not torch.equal(value, before[key]), key


def test_path_equals_its_subnet_after_training_steps(supernet):
    generator = random.Random(2)
    optimizer = torch.optim.SGD(supernet.parameters(), lr=0.01, momentum=0.9)
    for _ in range(3):
        choices = draw(supernet, generator)
        supernet.activate(choices)
        optimizer.zero_grad()
        supernet(torch.randn(4, 3, 32, 32)).square().mean().backward()
        optimizer.step()
    supernet.eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(supernet.extract(choices)(images), supernet(images))


def test_subnet_is_a_plain_network_with_its_own_weights(trained):
    choices = draw(trained, random.Random(3))
    arch = Architecture("shufflenetv2", OPTIONS, choices)
    subnet = trained.extract(choices, affine=True)
    expected = build_subnet(arch, affine=True).state_dict()
    assert {k: v.shape for k, v in subnet.state_dict().items()} == {
        k: v.shape for k, v in expected.items()
    }
    shared = {each.untyped_storage().data_ptr() for each in trained.state_dict().values()}
    assert not shared & {each.untyped_storage().data_ptr() for each in subnet.state_dict().values()}
    assert {type(module).__module__.split(".")[0] for module in subnet.modules()} <= {
        "torch",
        "spos",
    }
    norms = [m for m in subnet.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all((m.weight == 1).all() and (m.bias == 0).all() for m in norms)


def test_affine_subnet_of_plain_supernet_is_the_same_function(trained):
    choices = draw(trained, random.Random(4))
    trained.activate(choices)
    trained.eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(trained.extract(choices, affine=True)(images), trained(images))


def test_affine_weights_are_not_dropped_silently():
    supernet = shufflenet(affine=True)
    choices = draw(supernet, random.Random(5))
    with pytest.raises(ConfigError, match="a BatchNorm2d without bias, weight"):
        supernet.extract(choices, affine=False)


def test_extract_disturbs_nothing(trained):
    first, second = draw(trained, random.Random(6)), draw(trained, random.Random(7))
    trained.activate(first)
    state = {key: value.clone() for key, value in trained.state_dict().items()}
    random_state = torch.get_rng_state()
    subnet = trained.extract(second)
    assert trained.active == first
    assert torch.equal(torch.get_rng_state(), random_state)
    assert subnet.training == trained.training
    for key, value in trained.state_dict().items():
        assert torch.equal(value, state[key])


def test_extract_needs_no_active_path():
    supernet = Supernet(OwnSpace())
    supernet.extract(draw(supernet, random.Random(0)))
    assert supernet.active is None
    with pytest.raises(ArchitectureError, match="no active path"):
        supernet(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.AdamW])
def test_only_the_active_path_learns(optimizer_class):
    torch.manual_seed(0)
    supernet = shufflenet(affine=True).train()
    options = {"momentum": 0.9} if optimizer_class is torch.optim.SGD else {}
    optimizer = optimizer_class(supernet.parameters(), lr=0.1, weight_decay=0.1, **options)
    generator = random.Random(8)
    for _ in range(3):  # later paths find momentum that earlier ones have left
        supernet.activate(draw(supernet, generator))
        active = {id(parameter) for parameter in supernet.active_parameters()}
        before = {name: value.clone() for name, value in supernet.state_dict().items()}
        optimizer.zero_grad(set_to_none=True)
        supernet(torch.randn(4, 3, 32, 32)).square().mean().backward()
        optimizer.step()
        for name, parameter in supernet.named_parameters():
            assert (parameter.grad is not None) == (id(parameter) in active), name
            assert torch.equal(parameter, before[name]) == (id(parameter) not in active), name
        moved = {id(m) for m in supernet.active_modules() if isinstance(m, nn.BatchNorm2d)}
        for name, module in supernet.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                changed = not torch.equal(module.running_mean, before[f"{name}.running_mean"])
                assert changed == (id(module) in moved), name
    assert 0 < len(active) < len(before)


def test_active_modules_are_those_of_the_subnet(supernet):
    choices = draw(supernet, random.Random(9))
    supernet.activate(choices)
    layers = [m for m in supernet.active_modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d))]
    subnet = supernet.extract(choices)
    expected = [m for m in subnet.modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d))]
    assert len(layers) == len(expected) > 2
    for layer, other in zip(layers, expected, strict=True):
        shapes = {name: tensor.shape for name, tensor in active_tensors(layer).items()}
        assert shapes == {name: tensor.shape for name, tensor in active_tensors(other).items()}


def test_sliced_layer_uses_leading_channels_and_central_kernel():
    supernet = Supernet(OwnSpace())
    conv, norm = supernet.get_submodule("stem.0"), supernet.get_submodule("stem.1")
    assert isinstance(conv, SlicedConv2d) and isinstance(norm, SlicedBatchNorm2d)
    assert conv.weight.shape == (12, 3, 5, 5)
    choices = {label: candidates[0] for label, candidates in supernet.spec_choices.items()}
    supernet.activate({**choices, "width": 8, "kernel": 3})
    assert torch.equal(active_tensors(conv)["weight"], conv.weight[:8, :, 1:4, 1:4])
    assert torch.equal(active_tensors(conv)["bias"], conv.bias[:8])
    supernet.train()(torch.randn(4, 3, 8, 8))
    assert (norm.running_mean[:8] != 0).all() and (norm.running_mean[8:] == 0).all()
    assert (norm.running_var[:8] != 1).all() and (norm.running_var[8:] == 1).all()
    assert norm.num_batches_tracked == 1


def test_searched_widths_keep_the_initialisation_of_the_space():
    class Initialised(ModelSpace):
        def __init__(self):
            super().__init__()
            self.conv = mutable.MutableConv2d(3, nni.choice("width", [2, 8]), 1)
            nn.init.constant_(self.conv.weight, 7.0)

        def forward(self, x):
            return self.conv(x).mean((2, 3))

    supernet = Supernet(Initialised())
    assert torch.equal(supernet.get_submodule("conv").weight, torch.full((8, 3, 1, 1), 7.0))


def test_parameters_have_the_names_of_the_space():
    space = build_space("shufflenetv2", options=OPTIONS, affine=False)
    expected = list(space.state_dict())
    supernet = Supernet(space)
    assert list(supernet.state_dict()) == expected
    assert [name for name, _ in supernet.named_parameters()][1] == (
        "features.0.k3.branch_main.0.weight"
    )
    assert {"scale", "shift", "body.blocks.2.work.0.weight"} <= Supernet(
        OwnSpace()
    ).state_dict().keys()


def test_weights_load_strictly(trained):
    other = shufflenet(affine=False)
    other.load_state_dict(trained.state_dict(), strict=True)
    choices = draw(trained, random.Random(10))
    images = torch.randn(2, 3, 32, 32)
    for each in (trained, other):
        each.eval().activate(choices)
    assert torch.equal(other(images), trained(images))
    state = trained.state_dict()
    state["features.0.k9.weight"] = state.pop("features.0.k3.branch_main.0.weight")
    with pytest.raises(RuntimeError, match=r"(?s)features.0.k3.branch_main.0.weight.*k9"):
        other.load_state_dict(state, strict=True)


def test_supernet_works_under_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    try:
        supernet = Supernet(OwnSpace())
        wrapped = DistributedDataParallel(supernet, find_unused_parameters=True)
        supernet.activate(draw(supernet, random.Random(11)))
        wrapped(torch.randn(4, 3, 8, 8)).square().mean().backward()
        state = wrapped.state_dict()
        assert list(state) == [f"module.{key}" for key in supernet.state_dict()]
        wrapped.load_state_dict(state, strict=True)
    finally:
        torch.distributed.destroy_process_group()


def test_copy_is_independent(supernet):
    choices, others = draw(supernet, random.Random(12)), draw(supernet, random.Random(13))
    supernet.eval().activate(choices)
    twin = copy.deepcopy(supernet)
    images = torch.randn(2, 3, 32, 32)
    expected = supernet(images)
    supernet.activate(others)
    with torch.no_grad():
        for tensor in supernet.state_dict().values():
            tensor.zero_()
    assert torch.equal(twin(images), expected)
    assert twin.active == choices


def test_mode_reaches_the_space_itself():
    supernet = Supernet(OwnSpace(dropout=0.5))
    supernet.activate(draw(supernet, random.Random(14)))
    images = torch.randn(4, 3, 8, 8)
    supernet.eval()
    assert torch.equal(supernet(images), supernet(images))
    supernet.train()
    assert not torch.equal(supernet(images), supernet(images))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_3": "k9"}, r"layer_3 is 'k9', expected one of \['k3', 'k5', 'k7', 'xcep'\]"),
        ({"layer_3": 1}, "layer_3 is 1"),
        ({"layer_3": True}, "layer_3 is True"),
        ({"layer_3": ["k3"]}, "layer_3 is"),
        ({"layer_3": None}, "layer_3 is None"),
        ({"layer_21": "k3"}, r"unknown: \['layer_21'\]"),
    ],
)
def test_wrong_choices_leave_the_active_path(trained, change, message):
    choices = draw(trained, random.Random(15))
    trained.activate(choices)
    with pytest.raises(ArchitectureError, match=message):
        trained.activate({**choices, **change})
    missing = {label: chosen for label, chosen in choices.items() if label != "layer_3"}
    for wrong in (missing, {**missing, "layer_x": "k3"}, [], None, "k3"):
        with pytest.raises(ArchitectureError):
            trained.activate(wrong)
    assert trained.active == choices
    trained.eval()
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(trained(images), trained.extract(choices)(images))


def test_activation_is_cheap_enough_for_every_step(trained):
    paths = [draw(trained, random.Random(seed)) for seed in range(100)]
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        for path in paths:
            trained.activate(path)
        best = min(best, (time.perf_counter() - start) / len(paths))
    assert best < 50e-6


class _Custom(MutableModule):
    def __init__(self):
        super().__init__()
        size = self.add_mutable(nni.choice("size", [1, 2]))
        self.weight = nn.Parameter(torch.zeros(ensure_frozen(size)))


def _constrained(space: ModelSpace) -> nn.Module:
    first, second = nni.choice("first", [1, 2]), nni.choice("second", [1, 2])
    space.add_mutable(ExpressionConstraint(first + second <= 3, label="budget"))
    return mutable.MutableConv2d(3, first + second, 1)


def _tied(space: ModelSpace) -> nn.Module:
    space.add_mutable(nni.choice("unused", [1, 2]))
    return nn.Identity()


UNSUPPORTED = {
    "custom module": (lambda _: nn.Sequential(_Custom()), r"layer\.0: .*_Custom"),
    "constraint": (_constrained, "'budget' is a ExpressionConstraint"),
    "choice of no layer": (_tied, "depends on .*unused"),
    "number": (
        lambda _: mutable.MutableDropout(nni.uniform("p", 0.1, 0.5)),
        "'p' is a Numerical",
    ),
    "other layer": (
        lambda _: mutable.MutableConvTranspose2d(3, nni.choice("w", [1, 2]), 1),
        r"layer: .*ConvTranspose2d",
    ),
    "padding": (
        lambda _: mutable.MutableConv2d(3, nni.choice("w", [1, 2]), 3, padding_mode="reflect"),
        "layer: .*zero padding",
    ),
    "groups": (
        lambda _: mutable.MutableConv2d(4, 4, 1, groups=nni.choice("g", [1, 4])),
        "layer: its weight .* is no part of",
    ),
    "bias": (
        lambda _: mutable.MutableConv2d(3, 3, 1, bias=nni.choice("b", [False, True])),
        "layer",
    ),
    "several inputs": (lambda _: InputChoice(3, 2, label="i"), "'i' is a CategoricalMultiple"),
    "inputs as a list": (
        lambda _: InputChoice(3, 1, reduction="none", label="i"),
        "layer: .*must choose one input",
    ),
    "factory cell": (
        lambda _: Cell([lambda node, op, chosen: nn.Identity()], 2, label="cell"),
        "layer: .*Cell",
    ),
    "loose ends": (
        lambda _: Cell([nn.Identity()], 2, merge_op="loose_end", label="cell"),
        "layer: .*Cell",
    ),
    "own repeat": (
        lambda _: type("Stage", (Repeat,), {})(nn.Identity(), (1, 2), label="d"),
        "layer: .*Stage",
    ),
    "too many": (
        lambda _: mutable.MutableConv2d(
            3, sum(nni.choice(f"w{n}", list(range(1, 21))) for n in range(4)), 1
        ),
        "layer: its size depends on more than 65536",
    ),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_cannot_share_weights_is_named(case):
    make, message = UNSUPPORTED[case]

    class Unsupported(ModelSpace):
        def __init__(self):
            super().__init__()
            self.layer = make(self)

        def forward(self, x):
            return self.layer(x)

    with pytest.raises(ConfigError, match=message):
        Supernet(Unsupported())


def test_cell_of_modules_is_supported():
    class Cells(ModelSpace):
        def __init__(self):
            super().__init__()
            candidates = {"pool": nn.MaxPool2d(3, 1, 1), "conv": nn.Conv2d(3, 3, 3, padding=1)}
            self.cell = Cell(candidates, 2, 2, 1, label="cell")

        def forward(self, x):
            return self.cell([x]).mean((2, 3))

    supernet = Supernet(Cells()).eval()
    assert supernet.spec_choices["cell/input_2_1"] == (0, 1)
    for seed in range(5):
        choices = draw(supernet, random.Random(seed))
        supernet.activate(choices)
        images = torch.randn(2, 3, 8, 8)
        assert torch.equal(supernet.extract(choices)(images), supernet(images))
