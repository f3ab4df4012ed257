"""BatchNorm folded for the validation: the same accuracy, and a network left as it was."""

import contextlib

import pytest
import torch
from test_evaluator import bits, choices_of, make_batches
from tiny_space import TINY, WIDTHS
from torch import nn

from spos.evaluation import evaluator as evaluators
from spos.evaluation.evaluator import Evaluator
from spos.evaluation.folded import find_pairs, folded
from spos.placement import place
from spos.spaces import build_space
from spos.supernet import Supernet

pytestmark = pytest.mark.usefixtures("one_thread", "tiny_spaces")

CPU = torch.device("cpu")
SIZES = {"image_size": 32, "num_classes": 10}
SPACES = {
    TINY: {},
    "shufflenetv2": SIZES,
    "shufflenetv2plus": SIZES,
    "proxyless_gpu": SIZES,
    "nasbench_macro": {},
}


def make_network(name: str, *, affine: bool = False) -> Supernet:
    torch.manual_seed(0)
    network = Supernet(build_space(name, options=SPACES.get(name, {}), affine=affine))
    for module in network.modules():  # as after training
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            if affine:
                nn.init.uniform_(module.weight, -0.5, 2)
                nn.init.normal_(module.bias)
    return place(network.eval(), CPU)


def active_norms(network: Supernet) -> set[nn.Module]:
    return {each for each in network.active_modules() if isinstance(each, nn.BatchNorm2d)}


@torch.no_grad()
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("name", SPACES)
def test_logits_are_those_of_the_network_as_it_is(name, affine):
    network = make_network(name, affine=affine)
    pairs = find_pairs(network)
    size = 8 if name == TINY else 32
    images = torch.randn(4, 3, size, size).contiguous(memory_format=torch.channels_last)
    before = bits(network)
    for shift in range(3):
        network.activate({
            label: each[(shift + number) % len(each)]
            for number, (label, each) in enumerate(network.spec_choices.items())
        })  # fmt: skip
        active = set(network.active_modules())
        assert active_norms(network) == {norm for _, norm in pairs} & active  # every one
        wanted = network(images)
        calls = count_calls(network)
        with folded(pairs, active):
            found = network(images)
            assert calls and not any(calls.values()), "a BatchNorm normalised"
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
        assert torch.equal(network(images), wanted)
    assert bits(network) == before


def count_calls(network: nn.Module) -> dict[str, int]:
    """How often BatchNorms of the network change what they are given, from now on."""
    calls: dict[str, int] = {}

    def see(name: str):
        def hook(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
            calls[name] = calls.get(name, 0) + (output is not inputs[0])

        return hook

    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(see(name))
    return calls


def test_accuracy_is_that_without_folding(images, monkeypatch):
    torch.manual_seed(0)
    space = build_space("shufflenetv2", options={"image_size": 8, "num_classes": 3}, affine=False)
    evaluator = Evaluator(
        Supernet(space),
        calibration=make_batches(images, count=20),
        validation=make_batches(images),
        device=CPU,
    )
    found = [evaluator.evaluate(choices_of(evaluator, number)) for number in range(4)]
    monkeypatch.setattr(evaluators, "folded", lambda *_: contextlib.nullcontext())
    for number, score in enumerate(found):
        wanted = evaluator.evaluate(choices_of(evaluator, number))
        assert (score.top1, score.top5) == (wanted.top1, wanted.top5)
        assert score.loss == pytest.approx(wanted.loss, rel=1e-4)


def test_network_is_itself_after_an_error():
    network = make_network(TINY)
    network.activate({label: each[0] for label, each in network.spec_choices.items()})
    parameters = list(network.parameters())
    with pytest.raises(KeyError), folded(find_pairs(network), set(network.modules())):
        assert [id(each) for each in network.parameters()] != [id(each) for each in parameters]
        raise KeyError
    assert all(a is b for a, b in zip(network.parameters(), parameters, strict=True))
    assert not any("forward" in module.__dict__ for module in network.modules())


def test_layers_of_searched_widths_stay_as_they_are():
    network = make_network(WIDTHS)
    assert not any(hasattr(layer, "slicing") for pair in find_pairs(network) for layer in pair)


class Backwards(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in reversed(list(self)):
            x = layer(x)
        return x


def test_only_what_is_certain_is_folded():
    def pair() -> tuple[nn.Conv2d, nn.BatchNorm2d]:
        return nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    shared, norm = pair()
    twice, again = pair()
    certain = pair()
    network = nn.ModuleList([
        nn.Sequential(*certain, nn.ReLU()),
        nn.Sequential(shared, norm), nn.Sequential(shared, nn.ReLU()),
        nn.Sequential(twice, again, twice),
        Backwards(*pair()),
        nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)),
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3)),
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)),
    ])  # fmt: skip
    assert find_pairs(network) == [certain]
