"""Convolutions on a CPU: torch's function and gradients, whatever algorithm is chosen."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from spos.architecture import SearchSpec
from spos.placement import place
from spos.spaces import build_space
from spos.spaces.convolution import _Depthwise, convolve
from spos.spaces.sliced import SlicedConv2d, active_tensors
from spos.supernet import Supernet
from spos.training.samplers import UniformSampler

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


def features(*shape, memory_format=torch.channels_last, dtype=torch.float32):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return x.contiguous(memory_format=memory_format).requires_grad_()


def results(function, x, layer):
    """The output, and the gradients of a loss in which every output counts differently."""
    settings = layer.stride, layer.padding, layer.dilation, layer.groups
    y = function(x, layer.weight, layer.bias, *settings)
    loss = (y * torch.arange(y.numel()).view(y.shape).sin()).sum()
    inputs = [each for each in (x, layer.weight, layer.bias) if each is not None]
    return y, torch.autograd.grad(loss, inputs)


def assert_is_torchs(x, layer):
    # Torch's own in the layout that it does not spoil memory with (see `spos.spaces.convolution`).
    plain = x.detach().contiguous().requires_grad_()
    (y, gradients), (expected, torchs) = (
        results(function, each, layer) for function, each in ((convolve, x), (F.conv2d, plain))
    )
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(gradients, torchs, strict=True):
        assert mine.shape == theirs.shape
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    return y


def is_ours(y):
    """Whether another algorithm than torch's made it."""
    return "Convolution" not in type(y.grad_fn).__name__


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("width", [6, 8])
@pytest.mark.parametrize("stride", [1, 2, (3, 1)], ids=str)
def test_a_pointwise_convolution(stride, width, bias):
    x, layer = features(3, width, 5, 7), nn.Conv2d(width, 10, 1, stride, bias=bias)
    y = assert_is_torchs(x, layer)
    assert is_ours(y) and y.is_contiguous(memory_format=torch.channels_last)
    _, (gradient, *_) = results(convolve, x, layer)
    assert gradient.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [(8, 8), (5, 7), (2, 2), (1, 1), (1, 4)], ids=str)
@pytest.mark.parametrize("stride", [1, 2, (2, 1)], ids=str)
@pytest.mark.parametrize("kernel_size", [5, 7, (3, 7)], ids=str)
def test_a_depthwise_convolution(size, stride, kernel_size):
    sides = (kernel_size,) * 2 if isinstance(kernel_size, int) else kernel_size
    padding = tuple(side // 2 for side in sides)
    layer = nn.Conv2d(6, 6, kernel_size, stride, padding, groups=6, bias=False)
    assert is_ours(assert_is_torchs(features(3, 6, *size), layer))


@pytest.mark.parametrize("kernel_size", [5, 7])
def test_a_depthwise_convolution_of_a_large_map(kernel_size):
    layer = nn.Conv2d(6, 6, kernel_size, 1, kernel_size // 2, groups=6, bias=False)
    assert is_ours(assert_is_torchs(features(2, 6, 23, 30), layer))


@pytest.mark.parametrize("padding", [0, 1, 4])
def test_a_depthwise_convolution_whose_padding_is_not_half_its_kernel(padding):
    layer = nn.Conv2d(6, 6, 5, 1, padding, groups=6, bias=False)
    assert is_ours(assert_is_torchs(features(2, 6, 6, 5), layer))


def test_a_kernel_of_three_that_is_larger_than_the_map():
    layer = nn.Conv2d(6, 6, 3, 1, 1, groups=6, bias=False)
    assert is_ours(assert_is_torchs(features(3, 6, 2, 2), layer))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 8, 3, padding=1),
        nn.Conv2d(6, 8, 1, padding=1),
        nn.Conv2d(6, 6, 1, groups=3),
        nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False),
        nn.Conv2d(6, 6, 5, padding=2, groups=6, bias=True),
        nn.Conv2d(6, 6, 5, padding=4, dilation=2, groups=6, bias=False),
        nn.Conv2d(6, 12, 5, padding=2, groups=6, bias=False),
        nn.Conv2d(6, 6, 5, padding="same", groups=6, bias=False),
    ],
    ids=str,
)
def test_other_convolutions_are_left_to_torch(layer):
    assert not is_ours(assert_is_torchs(features(2, 6, 8, 8), layer))


def test_strided_large_maps_other_layouts_and_types_are_left_to_torch():
    strided = nn.Conv2d(6, 6, 5, (1, 2), padding=2, groups=6, bias=False)
    assert not is_ours(assert_is_torchs(features(2, 6, 9, 16), strided))
    depthwise = nn.Conv2d(6, 6, 5, padding=2, groups=6, bias=False)
    pointwise = nn.Conv2d(6, 8, 1)
    contiguous = features(2, 6, 8, 8, memory_format=torch.contiguous_format)
    for layer in (depthwise, pointwise):
        assert not is_ours(assert_is_torchs(contiguous, layer))
        half = copy.deepcopy(layer).bfloat16()
        settings = layer.stride, layer.padding, layer.dilation, layer.groups
        x = features(2, 6, 8, 8, dtype=torch.bfloat16)
        assert not is_ours(convolve(x, half.weight, half.bias, *settings))
    with torch.autocast("cpu", torch.bfloat16):
        y = convolve(features(2, 6, 8, 8), pointwise.weight, None, (1, 1), (0, 0), (1, 1), 1)
    assert y.dtype == torch.bfloat16 and not is_ours(y)


def test_gradients_are_computed_where_they_are_needed_only():
    x, layer = features(2, 6, 4, 4), nn.Conv2d(6, 6, 5, padding=2, groups=6, bias=False)
    settings = layer.stride, layer.padding, layer.dilation, layer.groups
    convolve(x.detach(), layer.weight, None, *settings).sum().backward()
    assert x.grad is None and layer.weight.grad is not None
    with torch.no_grad():
        assert convolve(x, layer.weight, None, *settings).grad_fn is None
    weight = layer.weight.detach()
    assert not is_ours(convolve(x, weight, None, *settings))
    y = _Depthwise.apply(x, weight, (1, 1), (2, 2))
    y.sum().backward()
    assert x.grad is not None


def test_placing_a_network_changes_neither_its_state_dict_nor_its_copies():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(4, 6, 1),
        nn.Conv2d(6, 6, 5, padding=2, groups=6, bias=False),
        nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect"),
    )  # fmt: skip
    x = features(2, 4, 6, 6)
    names, expected = list(network.state_dict()), network(x)
    assert place(network, CPU) is network
    assert list(network.state_dict()) == names
    copied = copy.deepcopy(network)
    torch.testing.assert_close(network(x), expected)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert not network(x).any()
    torch.testing.assert_close(copied(x), expected)
    assert is_ours(copied[1](features(2, 6, 6, 6)))


def test_a_placed_networks_convolutions_of_searched_width_run_by_it_as_well():
    options = {"num_classes": 10, "image_size": 32, "channel_scales": [0.5, 1.0]}
    torchs = Supernet(build_space("shufflenetv2", options=options, affine=False))
    torchs.activate({label: table[0] for label, table in torchs.spec_choices.items()})
    torchs.to(memory_format=torch.channels_last)
    ours = place(copy.deepcopy(torchs), CPU)
    outputs = []
    for network in (torchs, ours):
        (pointwise, *_) = [
            each
            for each in network.active_modules()
            if isinstance(each, SlicedConv2d) and each.kernel_size == (1, 1)
        ]
        outputs.append(pointwise(features(2, active_tensors(pointwise)["weight"].shape[1], 4, 4)))
    torch.testing.assert_close(*outputs)
    assert [is_ours(each) for each in outputs] == [False, True]


@pytest.mark.parametrize("space", ["nasbench_macro", "proxyless_gpu"])
def test_twenty_steps_lose_what_they_lose_by_torchs_convolutions(space):
    """Each from the same weights: updates amplify the rounding of gradients.

    Not of ShuffleNetV2: at its published initial values torch's own losses differ by 1 % between
    two memory formats.
    """
    torch.manual_seed(0)
    options = {"num_classes": 10, "image_size": 32}
    torchs = Supernet(build_space(space, options=options, affine=False)).train()
    torchs.to(memory_format=torch.channels_last)
    ours = place(copy.deepcopy(torchs), CPU)
    sampler = UniformSampler(SearchSpec(space, {}, ours.spec_choices), seed=0)
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.01, momentum=0.9)
    images, labels = features(16, 3, 32, 32).detach(), torch.arange(16) % 10
    for step in range(20):
        torchs.load_state_dict(ours.state_dict())
        losses = []
        for network in (ours, torchs):
            network.activate(sampler.sample(step))
            network.zero_grad()
            losses.append(F.cross_entropy(network(images), labels))
            losses[-1].backward()
        assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-4)
        gradients = [
            torch.cat([p.grad.flatten() for p in network.active_parameters()])
            for network in (ours, torchs)
        ]
        assert (gradients[0] - gradients[1]).norm() < 0.02 * gradients[1].norm()
        torch.nn.utils.clip_grad_norm_(ours.parameters(), 5.0)
        optimizer.step()
