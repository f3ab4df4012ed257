"""Of a sliced parameter only the part on the active path learns, exactly as SGD would train it."""

import random

import pytest
import torch
from torch import nn

from spos.spaces import build_space
from spos.supernet import Supernet
from spos.training.recipe import decay_groups
from spos.training.slices import only_active_slices

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = {"image_size": 16, "num_classes": 4, "channel_scales": [0.4, 1.0, 1.6]}
LR, MOMENTUM, DECAY = 0.05, 0.9, 0.01


def supernet() -> Supernet:
    torch.manual_seed(0)
    return Supernet(build_space("shufflenetv2", options=OPTIONS, affine=True)).double().train()


def draw(network: Supernet, generator: random.Random) -> dict:
    return {label: generator.choice(each) for label, each in network.spec_choices.items()}


def sgd(network: nn.Module, **options) -> torch.optim.SGD:
    return torch.optim.SGD(
        decay_groups(network.parameters(), DECAY), lr=LR, momentum=MOMENTUM, **options
    )


def backward(network: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    network.zero_grad(set_to_none=True)
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    network(images).square().mean().backward()


def masks_of(network: Supernet) -> dict[str, torch.Tensor]:
    """Name of a parameter with a gradient -> which entries the path uses."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    masks = {
        name: torch.ones_like(parameter, dtype=torch.bool)
        for name, parameter in network.named_parameters()
        if parameter.grad is not None
    }
    for parameter, part in network.partial_parameters():
        if parameter.grad is not None:
            mask = torch.zeros_like(parameter, dtype=torch.bool)
            mask[part] = True
            masks[names[id(parameter)]] = mask
    return masks


@pytest.mark.parametrize("foreach", [False, True])
def test_each_entry_follows_its_own_sgd(foreach):
    network = supernet()
    optimizer = sgd(network, foreach=foreach)
    weights = {name: each.detach().clone() for name, each in network.named_parameters()}
    momenta: dict[str, torch.Tensor] = {}
    generator = random.Random(0)
    num_partial = 0
    for step in range(5):
        network.activate(draw(network, generator))
        backward(network, step)
        for name, mask in masks_of(network).items():
            num_partial += not bool(mask.all())
            gradient = network.get_parameter(name).grad
            assert gradient is not None and not gradient[~mask].any()
            weight = weights[name]
            momentum = momenta.setdefault(name, torch.zeros_like(weight))
            decay = DECAY if weight.dim() > 1 else 0.0
            moved = momentum * MOMENTUM + (gradient + decay * weight)
            momenta[name] = torch.where(mask, moved, momentum)
            weights[name] = torch.where(mask, weight - LR * moved, weight)
        with only_active_slices(network, optimizer):
            optimizer.step()
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(parameter.detach(), weights[name], rtol=1e-12, atol=1e-15)
            if name in momenta:
                state = optimizer.state[parameter]["momentum_buffer"]
                torch.testing.assert_close(state, momenta[name], rtol=1e-12, atol=1e-15)
    assert num_partial > 100


def test_what_is_not_in_use_keeps_every_bit():
    network = supernet()
    optimizer = sgd(network)
    generator = random.Random(1)
    for step in range(3):  # later paths find momentum where earlier ones have been
        network.activate(draw(network, generator))
        backward(network, step)
        masks = masks_of(network)
        before = {name: each.detach().clone() for name, each in network.named_parameters()}
        old = {
            name: optimizer.state[each]["momentum_buffer"].clone()
            for name, each in network.named_parameters()
            if "momentum_buffer" in optimizer.state[each]
        }
        with only_active_slices(network, optimizer):
            optimizer.step()
        for name, parameter in network.named_parameters():
            idle = ~masks.get(name, torch.zeros_like(parameter, dtype=torch.bool))
            assert torch.equal(parameter[idle], before[name][idle]), name
            assert (parameter[~idle] != before[name][~idle]).any() == bool((~idle).any()), name
            state = optimizer.state[parameter].get("momentum_buffer")
            if state is not None:
                expected = old.get(name, torch.zeros_like(parameter))
                assert torch.equal(state[idle], expected[idle]), name


def test_one_path_trains_as_its_subnet():
    network = supernet()
    choices = draw(network, random.Random(2))
    network.activate(choices)
    subnet = network.extract(choices)
    optimizers = sgd(network), sgd(subnet)
    for step in range(3):
        for each, optimizer in zip((network, subnet), optimizers, strict=True):
            backward(each, step)
            with only_active_slices(each, optimizer):
                optimizer.step()
    trained = network.extract(choices)
    for name, tensor in subnet.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], tensor, rtol=1e-9, atol=1e-12)


def test_optimizer_without_the_context_would_move_idle_entries():
    network = supernet()
    optimizer = sgd(network)
    network.activate({**draw(network, random.Random(3)), "layer_1": "k3", "channel_1": 12})
    backward(network, 0)
    weight = network.get_parameter("features.0.k3.branch_main.0.weight")
    before = weight.detach().clone()
    optimizer.step()
    assert not torch.equal(weight[12:], before[12:])


def test_parameters_have_their_size_again_after_a_failed_step():
    network = supernet()
    optimizer = sgd(network)
    network.activate(draw(network, random.Random(4)))
    backward(network, 0)
    shapes = {name: each.shape for name, each in network.named_parameters()}
    with pytest.raises(KeyboardInterrupt), only_active_slices(network, optimizer):
        assert any(each.shape != shapes[name] for name, each in network.named_parameters())
        raise KeyboardInterrupt
    for name, parameter in network.named_parameters():
        assert parameter.shape == shapes[name]
        assert parameter.grad is None or parameter.grad.shape == shapes[name]


def test_optimizer_state_is_saved_at_full_size():
    network = supernet()
    optimizer = sgd(network)
    network.activate({label: each[0] for label, each in network.spec_choices.items()})
    backward(network, 0)
    with only_active_slices(network, optimizer):
        optimizer.step()
    other = sgd(network)
    other.load_state_dict(optimizer.state_dict())
    weight = network.get_parameter("features.0.k3.branch_main.0.weight")
    state = other.state[weight]["momentum_buffer"]
    assert state.shape == weight.shape == (51, 16, 1, 1)
    assert state[:12].any() and not state[12:].any()


def test_loss_scaling_unscales_the_slices():
    """The scaler divides the gradients in place, inside of the context, as it does outside."""
    networks = supernet(), supernet()
    choices = draw(networks[0], random.Random(5))
    for network, is_scaled in zip(networks, (False, True), strict=True):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=is_scaled)
        optimizer = sgd(network)
        network.float().activate(choices)
        for step in range(2):
            torch.manual_seed(step)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(network(torch.randn(4, 3, 16, 16)).square().mean()).backward()
            with only_active_slices(network, optimizer):
                scaler.step(optimizer)
            scaler.update()
    state = networks[0].state_dict()
    for name, tensor in networks[1].state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=1e-4, atol=1e-6)
