"""BatchNorm recalibration: the exact statistics over all images, and nothing else changed."""

import copy
import math

import pytest
import torch
from forked import run_ranks
from tiny_space import TINY, WIDTH, WIDTHS, TinySpace, WidthSpace
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from spos.errors import DataError
from spos.evaluation.batchnorm import recalibrate, saved_statistics
from spos.spaces import SPACES, build_space
from spos.supernet import Supernet
from spos.training import parallel

pytestmark = pytest.mark.usefixtures("one_thread", "tiny_spaces")

PATH = {"layer_1": "k3", "layer_2": "k1", "layer_3": "k5"}
SIZES = (7, 7, 7, 2)  # the last batch is a partial one


def make_batches(sizes=SIZES) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(size, 3, 8, 8, generator=generator) * 2 + 1 for size in sizes]


def make_supernet(name: str = TINY) -> Supernet:
    torch.manual_seed(0)
    supernet = Supernet(build_space(name, options={}, affine=False))
    for module in supernet.modules():  # as after training on other paths
        if isinstance(module, _BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return supernet


def statistics(modules) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(m.running_mean, m.running_var) for m in modules if isinstance(m, _BatchNorm)]


def direct_statistics(
    network: nn.Module, batches: list[torch.Tensor]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Float64 mean and unbiased variance of all that a network's BatchNorms are given.

    An independent way: a float64 copy keeps every input, and they are concatenated.
    """
    network = copy.deepcopy(network).double().eval()
    layers = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    kept: dict[int, list[torch.Tensor]] = {id(layer): [] for layer in layers}
    for layer in layers:
        layer.train()
        layer.register_forward_hook(lambda m, inputs, _: kept[id(m)].append(inputs[0]))
    with torch.no_grad():
        for images in batches:
            network(images.double())
    result = []
    for layer in layers:
        if kept[id(layer)]:
            flat = torch.cat(kept[id(layer)]).transpose(0, 1).flatten(1)
            result.append((flat.mean(1), flat.var(1, unbiased=True)))
    return result


def assert_equal_statistics(found, wanted, tolerance: float = 1e-5) -> None:
    assert len(found) == len(wanted) > 0
    for one, other in zip(found, wanted, strict=True):
        for mine, exact in zip(one, other, strict=True):
            torch.testing.assert_close(mine.double(), exact, atol=tolerance, rtol=tolerance)


def hashes(module: nn.Module) -> dict[str, tuple]:
    """Every parameter and buffer, to the bit."""
    return {
        name: (tensor.dtype, tensor.numpy().tobytes())
        for name, tensor in module.state_dict().items()
    }


# --- exact ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [SIZES, (23,), (1, 22), (3,) * 7 + (2,)])
def test_statistics_are_those_of_all_images_together(sizes):
    supernet = make_supernet()
    supernet.activate(PATH)
    batches = make_batches(sizes)
    modules = list(supernet.active_modules())
    assert recalibrate(supernet, modules, batches) == 23
    wanted = direct_statistics(supernet.extract(PATH), batches)
    assert_equal_statistics(statistics(modules), wanted)


def test_running_average_would_not_do():
    # The check above must tell an exact mean from torch's running average.
    supernet = make_supernet()
    supernet.activate(PATH)
    supernet.train()
    for images in make_batches():
        supernet(images)
    wanted = direct_statistics(supernet.extract(PATH), make_batches())
    with pytest.raises(AssertionError):
        assert_equal_statistics(statistics(supernet.active_modules()), wanted, tolerance=1e-2)


@pytest.mark.parametrize("size", ["k1", "k3"])
@pytest.mark.parametrize("width", [2, 4, 6])
def test_sliced_layers_get_the_statistics_of_their_channels(width, size):
    supernet = make_supernet(WIDTHS)
    before = supernet.first[1].running_mean.clone()
    choices = {"width": width, "layer_1": size}
    supernet.activate(choices)
    recalibrate(supernet, list(supernet.active_modules()), make_batches())
    (first_mean, first_var), second = direct_statistics(supernet.extract(choices), make_batches())
    layer = supernet.first[1]
    assert layer.num_features == WIDTH and len(first_mean) == width
    found = [(layer.running_mean[:width], layer.running_var[:width])]
    assert_equal_statistics(found, [(first_mean, first_var)])
    assert_equal_statistics(statistics(supernet.active_modules())[1:], [second])
    assert torch.equal(layer.running_mean[width:], before[width:])


@pytest.mark.parametrize("momentum", [0.1, None])
def test_settings_of_the_layers_are_left_as_they_were(momentum):
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=momentum), nn.Dropout(0.5)
    )
    with torch.no_grad():
        recalibrate(network, network.modules(), make_batches())
    assert network[1].momentum == momentum
    assert not network[1]._forward_hooks
    assert not network.training
    wanted = direct_statistics(network, make_batches())
    assert_equal_statistics(statistics(network.modules()), wanted)


def test_dropout_is_off_and_no_gradient_is_kept():
    network = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1))
    recalibrate(network, network.modules(), make_batches())
    flat = torch.cat(make_batches()).transpose(0, 1).flatten(1)
    torch.testing.assert_close(network[1].running_mean, flat.mean(1))
    assert all(parameter.grad is None for parameter in network.parameters())


def test_layers_that_no_image_reaches_keep_their_statistics():
    supernet = make_supernet()
    supernet.activate(PATH)
    before = hashes(supernet)
    recalibrate(supernet, list(supernet.modules()), make_batches())  # idle ones as well
    active = set(map(id, supernet.active_modules()))
    names = {name for name, module in supernet.named_modules() if id(module) in active}
    for name, value in hashes(supernet).items():
        layer, _, tensor = name.rpartition(".")
        if tensor != "num_batches_tracked":
            assert (value != before[name]) == (layer in names and "running" in tensor), name


def test_network_without_batchnorm_needs_nothing():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    assert recalibrate(network, network.modules(), make_batches()) == 23


def test_statistics_of_before_leave_no_trace():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    with torch.no_grad():
        network[1].running_mean.fill_(math.nan)
        network[1].running_var.fill_(math.inf)
        recalibrate(network, network.modules(), make_batches())
    assert_equal_statistics(
        statistics(network.modules()), direct_statistics(network, make_batches())
    )


def test_layer_that_runs_twice_has_the_statistics_of_both_runs():
    layer = nn.BatchNorm2d(3)
    network = nn.Sequential(layer, nn.ReLU(), layer)
    recalibrate(network, network.modules(), make_batches())
    assert_equal_statistics(statistics([layer]), direct_statistics(network, make_batches()))


def test_no_images_are_refused():
    network = nn.Sequential(nn.BatchNorm2d(3))
    with pytest.raises(DataError, match="no images"):
        recalibrate(network, network.modules(), [])


def test_failed_forward_leaves_settings_as_they_were():
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Linear(5, 5))  # does not fit images of 8 x 8
    with pytest.raises(RuntimeError):
        recalibrate(network, network.modules(), make_batches())
    assert network[0].momentum == 0.1 and not network[0]._forward_hooks


# --- no trace ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [TINY, WIDTHS])
def test_saved_statistics_come_back_to_the_bit(name):
    supernet = make_supernet(name)
    supernet.activate({label: each[-1] for label, each in supernet.spec_choices.items()})
    supernet.train()
    before = hashes(supernet)
    modules = list(supernet.active_modules())
    with saved_statistics(modules):
        recalibrate(supernet, modules, make_batches())
        assert hashes(supernet) != before
        assert not supernet.training
    assert hashes(supernet) == before
    assert all(module.training for module in modules)


def test_saved_statistics_come_back_after_an_error():
    supernet = make_supernet()
    supernet.activate(PATH)
    before = hashes(supernet)
    modules = list(supernet.active_modules())

    def batches():
        yield make_batches()[0]
        raise DataError("an image that cannot be decoded")

    with pytest.raises(DataError, match="decoded"), saved_statistics(modules):
        recalibrate(supernet, modules, batches())
    assert hashes(supernet) == before


# --- several processes ---------------------------------------------------------------------------


def recalibrate_rank() -> list[torch.Tensor]:
    SPACES.update({TINY: TinySpace, WIDTHS: WidthSpace})
    result = []
    for name in (TINY, WIDTHS):
        supernet = make_supernet(name)
        supernet.activate({label: each[0] for label, each in supernet.spec_choices.items()})
        modules = list(supernet.active_modules())
        batches = make_batches()[parallel.rank() :: parallel.world_size()]
        recalibrate(supernet, modules, batches)
        result += [tensor for pair in statistics(modules) for tensor in pair]
    return result


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_get_the_statistics_of_a_single_process(world_size):
    alone = recalibrate_rank()
    assert len(alone) == 12
    for each in run_ranks(recalibrate_rank, world_size=world_size):
        for mine, wanted in zip(each, alone, strict=True):
            torch.testing.assert_close(mine, wanted, atol=1e-6, rtol=1e-6)
