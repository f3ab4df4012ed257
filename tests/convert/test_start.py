"""Training begins with the weights that were given, and with a new head only where one asked."""

import foreign_networks as foreign
import pytest
import torch
from foreign_networks import Weights, images, saved

from spos.architecture import Architecture
from spos.convert.start import read_subnet_start, read_supernet_start
from spos.convert.zoo import ZOO, zoo_architecture
from spos.errors import CheckpointError
from spos.spaces import build_space
from spos.supernet import Supernet

pytestmark = pytest.mark.usefixtures("one_thread")

RELEASED = [int(digit) for digit in ZOO["megvii"].blocks]
OPTIONS = {"image_size": 32, "num_classes": 10}


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
    torch.manual_seed(3)
    network = Supernet(build_space("shufflenetv2", options=OPTIONS, affine=False))
    path = tmp_path_factory.mktemp("supernet") / "step_00000007.pt"
    config = {"space": "shufflenetv2", "options": OPTIONS}
    torch.save({"network": network.state_dict(), "config": config}, path)
    return network, path


@torch.no_grad()
def test_anothers_network_is_fine_tuned_as_it_is(subnet):
    network = read_subnet_start(subnet, released(image_size=224))  # halved five times, as theirs
    expected = foreign.megvii(Weights(), images(), RELEASED).float()
    found = network(images().float())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@torch.no_grad()
def test_part_of_a_supernet_computes_what_it_did_there(supernet):
    shared, path = supernet
    network = read_subnet_start(path, released())
    shared.activate(released().choices)
    x = images().float()
    for each in (network, shared):
        each.eval()
    torch.testing.assert_close(network(x), shared(x), rtol=1e-5, atol=1e-5)
    assert any(name.endswith("branch_main.1.weight") for name in network.state_dict())  # affine


def read_subnet(path, classes: int, seed: int | None):
    return read_subnet_start(path, released(num_classes=classes), head_seed=seed)


def read_supernet(path, classes: int, seed: int | None):
    options = {**OPTIONS, "num_classes": classes}
    return read_supernet_start(path, space="shufflenetv2", options=options, head_seed=seed).network


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
        read_subnet_start(path, released(**option), head_seed=seed)


def test_weights_of_other_options_say_how_to_train_them(tmp_path):
    """The architecture says nothing of the option, so it would be trained without."""
    options = {**OPTIONS, "stem_activation": "relu6"}
    network = Supernet(build_space("shufflenetv2", options=options, affine=False))
    path = tmp_path / "step_00000007.pt"
    config = {"space": "shufflenetv2", "options": options}
    torch.save({"network": network.state_dict(), "config": config}, path)
    with pytest.raises(CheckpointError, match='--space-options \'{"stem_activation": "relu6"}\''):
        read_subnet_start(path, released())
    assert read_subnet_start(path, released(stem_activation="relu6"))
