"""Building blocks of the search spaces: the ShuffleNet and Xception blocks of Single Path One-Shot.

Imports torch only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TwoBranchBlock(nn.Module):
    """Channels that pass beside channels that are worked on (Ma et al. 2018, fig. 3 c and d).

    With a projection, both branches take the whole input: ``cat(projection(x), main(x))``.
    Without, the even channels pass and the odd ones are worked on: ``cat(even, main(odd))``. The
    split by parity is what shuffles the halves of the block before, so no block ends in a shuffle.

    Args:
        main: the branch that does the work; named ``branch_main`` in the state dict.
        projection: the other branch of a block that begins a stage; ``branch_proj``.
    """

    def __init__(self, main: nn.Module, projection: nn.Module | None = None) -> None:
        super().__init__()
        self.branch_main = main
        self.branch_proj = projection

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, C_in, H, W) to (N, C_out, H / stride, W / stride)."""
        if self.branch_proj is None:
            passed, x = x[:, 0::2], x[:, 1::2]  # views: a shuffled copy costs 3 to 5 % of a step
        else:
            passed = self.branch_proj(x)
        return torch.cat((passed, self.branch_main(x)), 1)


def shuffle_block(
    in_channels: int,
    out_channels: int,
    mid_channels: int,
    *,
    kernel_size: int,
    stride: int = 1,
    projects: bool = False,
    affine: bool = True,
) -> TwoBranchBlock:
    """ShuffleNetV2's block: pointwise, depthwise k x k, pointwise (Guo et al. 2020, fig. 7).

    Args:
        in_channels: width of the block's input; half of it enters the main branch unless the block
            projects.
        out_channels: width of its output; the main branch supplies what the other does not.
        mid_channels: width between the pointwise convolutions.
        kernel_size: of the depthwise convolutions, the projection's included.
        stride: of the block; more than 1 only with a projection.
        projects: whether the other branch is a projection of the whole input.
        affine: whether BatchNorm has weight and bias.
    """
    width = in_channels if projects else in_channels // 2
    main = nn.Sequential(
        *_pointwise(width, mid_channels, affine=affine),
        *_depthwise(mid_channels, kernel_size, stride, affine=affine),
        *_pointwise(mid_channels, out_channels - width, affine=affine),
    )
    return TwoBranchBlock(
        main, _projection(in_channels, kernel_size, stride, affine=affine) if projects else None
    )


def xception_block(
    in_channels: int,
    out_channels: int,
    mid_channels: int,
    *,
    stride: int = 1,
    projects: bool = False,
    affine: bool = True,
) -> TwoBranchBlock:
    """Three depthwise 3 x 3 and pointwise pairs (Guo et al. 2020, fig. 7); see `shuffle_block`."""
    width = in_channels if projects else in_channels // 2
    main = nn.Sequential(
        *_depthwise(width, 3, stride, affine=affine),
        *_pointwise(width, mid_channels, affine=affine),
        *_depthwise(mid_channels, 3, 1, affine=affine),
        *_pointwise(mid_channels, mid_channels, affine=affine),
        *_depthwise(mid_channels, 3, 1, affine=affine),
        *_pointwise(mid_channels, out_channels - width, affine=affine),
    )
    return TwoBranchBlock(
        main, _projection(in_channels, 3, stride, affine=affine) if projects else None
    )


def _projection(channels: int, kernel_size: int, stride: int, *, affine: bool) -> nn.Sequential:
    """Keeps the width; classic ShuffleNetV2 would project to half of the block's output."""
    return nn.Sequential(
        *_depthwise(channels, kernel_size, stride, affine=affine),
        *_pointwise(channels, channels, affine=affine),
    )


def _depthwise(channels: int, kernel_size: int, stride: int, *, affine: bool) -> list[nn.Module]:
    return [
        nn.Conv2d(
            channels,
            channels,
            kernel_size,
            stride,
            kernel_size // 2,
            groups=channels,
            bias=False,
        ),
        nn.BatchNorm2d(channels, affine=affine),
    ]


def _pointwise(in_channels: int, out_channels: int, *, affine: bool) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels, affine=affine),
        nn.ReLU(inplace=True),
    ]
