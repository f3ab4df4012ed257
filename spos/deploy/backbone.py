"""A subnet as feature extractor: its maps at several strides, as detection and segmentation want.

Imports `spos.errors`, `spos.spaces.halves` and torch.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spos.errors import ConfigError
from spos.spaces.halves import join

STRIDES = (4, 8, 16, 32)
_PROBE = 256  # pixels, so that every stride of ours divides the side


class FeatureBackbone(nn.Module):
    """The layers of a subnet up to its last stage; yields the last map of each stride.

    Fits torchvision's detection models through a feature pyramid, whose maps bear the strides as
    names; the README has a whole detector.

    Detection trains with few images a step, too few for BatchNorm: `fold_batchnorm` the subnet
    before, and its statistics are frozen for good.

    Args:
        network: a subnet; its weights are copied. It must have a sequence ``features``, with
            what is applied before it as its earlier children, as all our spaces have.
        strides: of the maps, relative to the image; those of a network for small images are
            smaller (32 pixels: 1, 2, 4, 8).

    Attributes:
        channels: stride -> channels of its map.

    Raises:
        ConfigError: if the network is no such one, or has no map of a stride.
    """

    def __init__(self, network: nn.Module, strides: Sequence[int] = STRIDES) -> None:
        super().__init__()
        children = dict(network.named_children())
        features = children.get("features")
        if not isinstance(features, nn.Sequential):
            raise ConfigError(
                f"{type(network).__name__} has no sequence of layers called `features`; expected a "
                "network of one of our search spaces, or one built like them"
            )
        before = list(children)[: list(children).index("features")]
        layers = [*(children[name] for name in before), *features]
        self.body = copy.deepcopy(nn.Sequential(*layers))
        ends = _last_of_each_stride(self.body)
        missing = [str(stride) for stride in strides if stride not in ends]
        if missing or not strides:
            raise ConfigError(
                f"this network has no map of stride {', '.join(missing) or '(none was asked for)'};"
                f" it has {', '.join(map(str, ends))}. A network for small images halves them less "
                "often: search and train with a larger image_size or output_stride, or ask for the "
                "strides it has"
            )
        self._ends = {ends[stride][0]: str(stride) for stride in sorted(strides)}
        self.channels = {stride: ends[stride][1] for stride in sorted(strides)}
        del self.body[max(self._ends) + 1 :]

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """Images (N, 3, H, W) to maps (N, C, H / stride, W / stride), by stride: "4", "8", ..."""
        maps: OrderedDict[str, Tensor] = OrderedDict()
        for index, layer in enumerate(self.body):
            x = layer(x)
            if index in self._ends:
                maps[self._ends[index]] = join(x)
        return maps


def _last_of_each_stride(body: nn.Sequential) -> dict[int, tuple[int, int]]:
    """Stride -> place and channels of the last layer with such a map."""
    probe = copy.deepcopy(body).to("meta").eval()
    x: Any = torch.empty(1, 3, _PROBE, _PROBE, device="meta")
    ends = {}
    for index, layer in enumerate(probe):
        x = layer(x)
        whole = join(x)
        ends[_PROBE // whole.shape[-1]] = (index, whole.shape[1])
    return ends
