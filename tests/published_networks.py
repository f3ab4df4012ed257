"""The reference systems' networks as our architectures, from lists of numbers."""

import functools
import json

import torch

from spos.architecture import Architecture, SearchSpec
from spos.cost.operations import Operation, list_operations
from spos.spaces import build_subnet, space_spec

BLOCKS = ("k3", "k5", "k7", "xcep")
SCALES = [0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0]
IMAGENET = {"image_size": 224, "num_classes": 1000}

# CanyonWind's networks: "+" has squeeze-excitation, h-swish and a head that pools first
PLAIN = {"layout": "canyonwind", "channel_scales": SCALES, "classifier_bias": True}
PLUS = {
    **PLAIN,
    "activation": "hswish",
    "squeeze_excitation": "canyonwind",
    "head": "mobilenetv3",
    "dropout": 0.2,
}
PLUS_LAYOUT = {**PLAIN, "last_width": 1024, "squeeze_excitation": "canyonwind"}

RELEASED = "2 1 0 1 2 0 2 0 2 0 2 3 0 0 0 0 3 2 3 3"
ONESHOT = "0 0 3 1 1 1 0 0 2 0 2 1 1 0 2 0 2 1 3 2"
ONESHOT_CHANNELS = "6 5 3 5 2 6 3 4 2 5 7 5 4 6 7 4 4 5 4 3"
S_PLUS = "0 0 0 1 0 0 1 0 3 2 0 1 2 2 1 2 0 0 2 0"
S_PLUS_CHANNELS = "8 7 6 8 5 7 3 4 2 4 2 3 4 5 6 6 3 3 4 6"
MMRAZOR = "2 0 2 0 3 1 1 0 0 1 0 1 0 3 1 2 2 0 1 3"


@functools.cache
def _spec(space: str, options: str) -> SearchSpec:
    return space_spec(space, options=json.loads(options))


def shuffle_architecture(
    blocks: str, channels: str = "", *, space: str = "shufflenetv2", **options
) -> Architecture:
    spec = _spec(space, json.dumps({**IMAGENET, **options}))
    choices = {f"layer_{n}": BLOCKS[int(block)] for n, block in enumerate(blocks.split(), start=1)}
    for n, index in enumerate(channels.split(), start=1):
        choices[f"channel_{n}"] = spec.choices[f"channel_{n}"][int(index)]
    return spec.architecture(choices)


def operations_of(
    arch: Architecture, *, affine: bool = True, image_size: int = 224
) -> list[Operation]:
    with torch.device("meta"):
        network = build_subnet(arch, affine=affine)
    return list_operations(network, image_size)
