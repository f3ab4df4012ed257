"""Subnets of any space with weights that look trained."""

import random
from typing import Any

import torch
from tiny_space import TINY

from spos.architecture import Architecture
from spos.spaces import build_subnet, space_spec

TINY_ARCH = Architecture(
    TINY, {"image_size": 8, "num_classes": 3}, {"layer_1": "k3", "layer_2": "k1", "layer_3": "k5"}
)


def trained_like(network: torch.nn.Module, image_size: int) -> torch.nn.Module:
    """The network with BatchNorm statistics of its own, and logits of about 1 to 10."""
    torch.manual_seed(5)
    network.train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
            if module.affine:
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.normal_(module.bias)
    images = torch.randn(8, 3, image_size, image_size)
    with torch.no_grad():
        network(images)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):  # few images: some channels are dead
                module.running_var.clamp_(min=float(module.running_var.mean()) / 4)
        scale = 5 / network.eval()(images).abs().max()
        last = [each for each in network.modules() if isinstance(each, torch.nn.Linear)][-1]
        last.weight.mul_(scale)
    return network


def random_subnet(space: str, side: int = 32, **options) -> Any:
    """A random architecture of a space, its statistics those of images of ``side`` pixels.

    It has its architecture as ``arch``, as the networks of `spos.load_subnet` have.
    """
    spec = space_spec(space, options={"num_classes": 10, "image_size": side, **options})
    draw = random.Random(3)
    choices = {label: draw.choice(candidates) for label, candidates in spec.choices.items()}
    arch = spec.architecture(choices)
    torch.manual_seed(5)
    network: Any = trained_like(build_subnet(arch), side)
    network.arch = arch
    return network
