"""Training begins with the weights that were given, and with a new head only where one asked."""

import foreign_networks as foreign
import pytest
import torch
from foreign_networks import Weights, images, saved
from tiny_space import WIDTHS
from torch import nn

from spos.architecture import Architecture
from spos.convert.start import Start, read_subnet_start, read_supernet_start
from spos.convert.zoo import ZOO, zoo_architecture
from spos.errors import CheckpointError
from spos.spaces import SPACES, build_space
from spos.spaces.nni_pieces import LayerChoice, ModelSpace
from spos.supernet import Supernet

pytestmark = pytest.mark.usefixtures("one_thread", "tiny_spaces")

RELEASED = [int(digit) for digit in ZOO["megvii"].blocks]
OPTIONS = {"image_size": 32, "num_classes": 10}


def start(path, seed: int | None = None, *, classes: int = 10, preprocessing: str = "standard"):
    return Start(path, preprocessing, [f"class {number}" for number in range(classes)], seed)


def save_supernet(path, space: str, options, *, affine: bool = False, said=None) -> Supernet:
    """A supernet, and a checkpoint of its run."""
    torch.manual_seed(3)
    network = Supernet(build_space(space, options=options, affine=affine))
    config = {"space": space, "options": options, "affine": affine, **(said or {})}
    torch.save({"network": network.state_dict(), "config": config}, path)
    return network


def released(**options) -> Architecture:
    arch = zoo_architecture("megvii")
    return Architecture(arch.space, {**arch.options, **OPTIONS, **options}, arch.choices)


@pytest.fixture(scope="module")
def subnet(tmp_path_factory):
    """Megvii's released network with random weights for ten classes."""
    weights = Weights()
    foreign.megvii(weights, images(), RELEASED)
    return saved(tmp_path_factory.mktemp("subnet") / "best.pth.tar", weights, prefix="module.")


@pytest.fixture(scope="module")
def supernet(tmp_path_factory):
    """A supernet, and its file."""
    path = tmp_path_factory.mktemp("supernet") / "step_00000007.pt"
    return save_supernet(path, "shufflenetv2", OPTIONS), path


@torch.no_grad()
def test_anothers_network_is_fine_tuned_as_it_is(subnet):
    network = read_subnet_start(
        start(subnet), released(image_size=224)
    )  # halved five times, as theirs
    expected = foreign.megvii(Weights(), images(), RELEASED).float()
    found = network(images().float())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@torch.no_grad()
def test_part_of_a_supernet_computes_what_it_did_there(supernet):
    shared, path = supernet
    network = read_subnet_start(start(path), released())
    shared.activate(released().choices)
    x = images().float()
    for each in (network, shared):
        each.eval()
    torch.testing.assert_close(network(x), shared(x), rtol=1e-5, atol=1e-5)
    assert any(name.endswith("branch_main.1.weight") for name in network.state_dict())  # affine


def read_subnet(path, classes: int, seed: int | None):
    return read_subnet_start(start(path, seed, classes=classes), released(num_classes=classes))


def read_supernet(path, classes: int, seed: int | None):
    options = {**OPTIONS, "num_classes": classes}
    begun = start(path, seed, classes=classes)
    return read_supernet_start(begun, space="shufflenetv2", options=options).network


@pytest.mark.parametrize("kind", ["subnet", "supernet"])
@pytest.mark.parametrize("classes", [7, 10])
def test_only_the_head_is_new(request, kind, classes):
    given = request.getfixturevalue(kind)
    path = given[1] if kind == "supernet" else given
    read = read_supernet if kind == "supernet" else read_subnet
    before = torch.get_rng_state()
    states = [read(path, classes, seed).state_dict() for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before), "drawing a head must not change what follows"
    kept = read(path, 10, None).state_dict()
    head = "classifier.0.weight"
    for state in states:
        assert state.keys() == kept.keys()
        assert all(torch.equal(state[name], kept[name]) for name in kept if name != head)
        assert state[head].shape == (classes, 1024)
    first, again, other = (state[head] for state in states)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert classes != 10 or not torch.equal(first, kept[head])


@pytest.mark.parametrize("kind", ["subnet", "supernet"])
def test_other_classes_need_a_word(request, kind):
    given = request.getfixturevalue(kind)
    path = given[1] if kind == "supernet" else given
    read = read_supernet if kind == "supernet" else read_subnet
    with pytest.raises(CheckpointError, match="10 classes apart, .* of 7; --reset-head"):
        read(path, 7, None)


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("option", [{"stem_activation": "relu6"}, {"layout": "classic"}])
def test_options_that_would_make_another_function_are_refused(supernet, option, seed):
    _, path = supernet
    with pytest.raises(CheckpointError, match=next(iter(option))):
        read_subnet_start(start(path, seed), released(**option))


def test_weights_of_other_options_say_how_to_train_them(tmp_path):
    """The architecture says nothing of the option, so it would be trained without."""
    path = tmp_path / "step_00000007.pt"
    save_supernet(path, "shufflenetv2", {**OPTIONS, "stem_activation": "relu6"})
    with pytest.raises(CheckpointError, match='--space-options \'{"stem_activation": "relu6"}\''):
        read_subnet_start(start(path), released())
    assert read_subnet_start(start(path), released(stem_activation="relu6"))


# --- the images ------------------------------------------------------------------------------


def test_weights_for_other_preprocessing_are_refused(tmp_path):
    path = tmp_path / "step_00000007.pt"
    save_supernet(path, "shufflenetv2", OPTIONS, said={"preprocessing": "spos"})
    for seed in (None, 0):
        with pytest.raises(CheckpointError, match="'spos' .*'standard'; give --spos-preprocessing"):
            read_subnet_start(start(path, seed), released())
    assert read_subnet_start(start(path, preprocessing="spos"), released())


def test_as_many_other_classes_need_a_word_too(tmp_path):
    path = tmp_path / "step_00000007.pt"
    names = [f"class {number}" for number in range(9)]
    save_supernet(path, "shufflenetv2", OPTIONS, said={"classes": [*names, "dog"]})
    with pytest.raises(CheckpointError, match=r"\(dog\); --reset-head"):
        read_subnet_start(start(path), released())
    assert read_subnet_start(start(path, 0), released())
    save_supernet(path, "shufflenetv2", OPTIONS, said={"classes": [*names, "class 9"]})
    assert read_subnet_start(start(path), released())


@pytest.mark.parametrize("nonsense", [3, [], {"a": 1}, torch.ones(2), [torch.ones(2)], None])
@pytest.mark.parametrize("name", ["classes", "preprocessing", "affine"])
def test_nonsense_in_a_checkpoint_is_no_traceback(tmp_path, name, nonsense):
    path = tmp_path / "step_00000007.pt"
    save_supernet(path, WIDTHS, {"num_classes": 3}, said={name: nonsense})
    try:
        read_supernet_start(start(path, classes=3), space=WIDTHS, options={"num_classes": 3})
    except CheckpointError as problem:
        assert str(path) in str(problem)


# --- spaces of the user's own ----------------------------------------------------------------


class OddSpace(ModelSpace):
    """An option that no shape shows, one that no JSON holds, a BatchNorm always affine, a buffer
    that no state dict holds."""

    def __init__(
        self,
        num_classes: int = 10,
        affine: bool = True,
        scale: float = 1.0,
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.5), persistent=False)
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), activation())
        self.block = LayerChoice(
            {
                f"k{k}": nn.Sequential(
                    nn.Conv2d(4, 4, k, padding=k // 2, bias=False),
                    nn.BatchNorm2d(4, affine=affine),
                )
                for k in (1, 3)
            },
            label="layer_1",
        )
        self.head = nn.Linear(4, num_classes)

    def forward(self, x):
        x = self.block(self.stem(x - self.mean)) * self.scale
        return self.head(x.mean((2, 3)))


@pytest.fixture
def odd(monkeypatch, tmp_path):
    monkeypatch.setitem(SPACES, "odd", OddSpace)
    return tmp_path / "step_00000007.pt"


@torch.no_grad()
@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("affine", [True, False])
def test_odd_space_begins_as_any_other(odd, seed, affine):
    shared = save_supernet(odd, "odd", {"num_classes": 10}, affine=affine).eval()
    options = {"num_classes": 10 if seed is None else 7}
    arch = Architecture("odd", options, {"layer_1": "k3"})
    network = read_subnet_start(start(odd, seed, classes=options["num_classes"]), arch).eval()
    given = read_supernet_start(
        start(odd, seed, classes=options["num_classes"]), space="odd", options=options
    )
    assert given.affine == affine
    assert isinstance(given.network, Supernet)
    for each in (shared, given.network):
        each.activate(arch.choices)
    x = images().float()
    torch.testing.assert_close(network(x), given.network.eval()(x), rtol=1e-5, atol=1e-5)
    if seed is None:
        torch.testing.assert_close(network(x), shared(x), rtol=1e-5, atol=1e-5)


def test_option_that_no_shape_shows_is_compared(odd):
    save_supernet(odd, "odd", {"num_classes": 10, "scale": 7.0})
    for options in ({"num_classes": 10}, {"num_classes": 10, "scale": 1.0}):
        with pytest.raises(CheckpointError, match="--space-options '{\"scale\": 7.0}'"):
            read_subnet_start(start(odd), Architecture("odd", options, {"layer_1": "k3"}))


def test_searched_widths_get_a_new_head(tmp_path):
    path = tmp_path / "step_00000007.pt"
    shared = save_supernet(path, WIDTHS, {"num_classes": 3})
    given = read_supernet_start(
        start(path, 0, classes=5), space=WIDTHS, options={"num_classes": 5}
    ).network
    before, after = shared.state_dict(), given.state_dict()
    assert after["classifier.weight"].shape == (5, 6)
    assert all(torch.equal(after[n], before[n]) for n in before if not n.startswith("classifier"))
    assert read_subnet_start(
        start(path, 0, classes=5),
        Architecture(WIDTHS, {"num_classes": 5}, {"width": 4, "layer_1": "k3"}),
    )


class FixedSpace(OddSpace):
    """Tells always as many classes apart."""

    def __init__(self, affine: bool = True) -> None:
        super().__init__(affine=affine)


def test_space_without_a_number_of_classes_has_no_head_to_reset(monkeypatch, tmp_path):
    monkeypatch.setitem(SPACES, "fixed", FixedSpace)
    path = tmp_path / "step_00000007.pt"
    save_supernet(path, "fixed", {"num_classes": 10})
    with pytest.raises(CheckpointError, match="--reset-head finds no layer in fixed"):
        read_supernet_start(start(path, 0), space="fixed", options={"num_classes": 10})


def test_weights_in_half_precision_are_trained_in_single(tmp_path):
    path = tmp_path / "step_00000007.pt"
    network = save_supernet(path, WIDTHS, {"num_classes": 3}).half()
    config = {"space": WIDTHS, "options": {"num_classes": 3}, "affine": False}
    torch.save({"network": network.state_dict(), "config": config}, path)
    given = read_supernet_start(start(path, classes=3), space=WIDTHS, options={"num_classes": 3})
    assert {each.dtype for each in given.network.parameters()} == {torch.float32}
