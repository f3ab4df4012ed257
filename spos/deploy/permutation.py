"""The channel shuffle of ShuffleNet blocks as a fixed 1 x 1 convolution.

Imports `spos.errors`, `spos.spaces` and torch. For converters and accelerators that handle strided
slices and reshapes badly (CanyonWind's "shuffle by conv").
"""

from __future__ import annotations

import copy
from collections import OrderedDict

import torch
from torch import Tensor, nn

from spos.errors import ConfigError
from spos.spaces.blocks import TwoBranchBlock
from spos.spaces.shufflenet import ShuffleNetV2PlusSpace, ShuffleNetV2Space


def shuffle_by_convolution(network: nn.Module) -> nn.Module:
    """A copy of a ShuffleNet subnet in which channels change places by convolutions alone.

    It computes the same function to the bit: a permutation adds nothing but zeros. Its cost grows,
    though: C^2 multiply-adds for each pixel of each shuffle (`python -m spos cost` does not count
    them).

    Args:
        network: a subnet of `shufflenetv2` or `shufflenetv2plus`, in any layout; folded or not.

    Raises:
        ConfigError: if it is no such network.
    """
    if not isinstance(network, (ShuffleNetV2Space, ShuffleNetV2PlusSpace)):
        raise ConfigError(
            f"{type(network).__name__} has no channel shuffle that could become a convolution; "
            "only the networks of shufflenetv2 and shufflenetv2plus have"
        )
    network = copy.deepcopy(network)
    children = OrderedDict(network.named_children())
    children["features"] = nn.Sequential(
        *(_PermutedBlock(block) for block in network.features)  # type: ignore[union-attr]
    )
    return nn.Sequential(children).train(network.training)


class _PermutedBlock(nn.Module):
    """A `TwoBranchBlock` whose split and shuffle are convolutions.

    Args:
        block: its branches are taken over, with their names.
    """

    def __init__(self, block: TwoBranchBlock) -> None:
        super().__init__()
        self.branch_main, self.branch_proj = block.branch_main, block.branch_proj
        self._layout = block.layout
        layer = _convolutions(self.branch_main)[0]
        width, like = layer.in_channels, layer.weight
        if self.branch_proj is None and self._layout.split == "odd":
            self.split = _permutation([*range(0, 2 * width, 2), *range(1, 2 * width, 2)], like)
        elif self.branch_proj is None and self._layout.split == "shuffle":
            self.split = _permutation(_interleaved(2 * width), like)
        else:
            self.split = nn.Identity()
        self.shuffle: nn.Module = nn.Identity()
        if self._layout.shuffles:
            self.shuffle = _permutation(_interleaved(self._out_channels()), like)

    def _out_channels(self) -> int:
        out_channels = _convolutions(self.branch_main)[-1].out_channels
        if self.branch_proj is None:
            return 2 * out_channels
        return out_channels + _convolutions(self.branch_proj)[-1].out_channels

    def forward(self, x: Tensor) -> Tensor:
        """See `TwoBranchBlock.forward`."""
        if self.branch_proj is None:
            passed, x = self.split(x).chunk(2, dim=1)
            if self._layout.split == "first":
                passed, x = x, passed
        else:
            passed = self.branch_proj(x)
        main = self.branch_main(x)
        x = torch.cat((main, passed) if self._layout.works_first else (passed, main), 1)
        return self.shuffle(x)


def _convolutions(branch: nn.Module) -> list[nn.Conv2d]:
    """Those of a branch itself, without its squeeze-excitation's."""
    return [each for each in branch.children() if isinstance(each, nn.Conv2d)]


def _interleaved(channels: int) -> list[int]:
    """Where each channel of the shuffled map comes from: 0, C/2, 1, C/2 + 1, ..."""
    half = channels // 2
    return [place // 2 + (place % 2) * half for place in range(channels)]


def _permutation(sources: list[int], like: Tensor) -> nn.Conv2d:
    """Output channel i is input channel ``sources[i]``; it never learns."""
    channels = len(sources)
    convolution = nn.Conv2d(channels, channels, 1, bias=False, device=like.device, dtype=like.dtype)
    weight = torch.zeros_like(convolution.weight)
    weight[torch.arange(channels), torch.tensor(sources)] = 1
    convolution.weight = nn.Parameter(weight, requires_grad=False)
    return convolution
