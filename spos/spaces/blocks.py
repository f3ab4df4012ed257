"""Building blocks of the ShuffleNet spaces: two-branch blocks in each system's layout, attention.

Imports NNI's mutable layers by `spos.spaces.nni_pieces`, `spos.spaces.halves` and torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from spos.spaces.halves import Halves, join, shuffle_halves, split_by_parity
from spos.spaces.nni_pieces import MutableBatchNorm2d, MutableConv2d

Width = Any  # an integer, or one of NNI's choices of integers

# Not in place but for ReLU: of the others torch then copies the input, to have it in the gradient.
ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "relu6": nn.ReLU6,
    "hswish": nn.Hardswish,
}
ATTENTIONS = ("canyonwind", "megvii")


@dataclass(frozen=True)
class Layout:
    """How a block takes its input apart and puts its output together.

    Blocks of different layouts hold the same layers and compute different functions; their weights
    cannot be exchanged, because in stages whose first block joins branches of unequal width later
    blocks work on other channels.

    Attributes:
        split: what a block without projection works on: the ``odd`` channels, the ``first`` half,
            the ``last`` half, or the last half after a ``shuffle`` of the two halves.
        works_first: whether the main branch's output comes before the other's.
        shuffles: whether the two halves of the output are shuffled.
        halves: whether both branches of a block with a projection yield half of the output, as in
            classic ShuffleNetV2; else the projection keeps the input's width and the main branch
            supplies the rest.
    """

    split: str
    works_first: bool = False
    shuffles: bool = False
    halves: bool = False


LAYOUTS = {
    "canonical": Layout("odd"),  # Megvii and NNI
    "canyonwind": Layout("shuffle"),
    "lliai": Layout("first", works_first=True, shuffles=True),
    "classic": Layout("last", shuffles=True, halves=True),  # MMRazor
}


@dataclass(frozen=True)
class BlockStyle:
    """What all blocks of a stage have in common.

    Attributes:
        layout: a key of `LAYOUTS`.
        activation: a key of `ACTIVATIONS`.
        attention: one of `ATTENTIONS` for squeeze-excitation at the end of the main branch.
        affine: whether BatchNorm has weight and bias.
    """

    layout: str = "canonical"
    activation: str = "relu"
    attention: str | None = None
    affine: bool = True


PLAIN = BlockStyle()


class TwoBranchBlock(nn.Module):
    """Channels that pass beside channels that are worked on (Ma et al. 2018, fig. 3 c and d).

    With a projection, both branches take the whole input: ``projection(x), main(x)``. Without, half
    of the channels pass. In the canonical layout these are the even ones: ``even, main(odd)``; the
    split by parity is what shuffles the halves of the block before, so no block ends in a shuffle.

    The two parts of the output are handed on as they are, not concatenated: the next block takes
    them apart in another way, and joining them first would move every activation once more.

    Args:
        main: the branch that does the work; named ``branch_main`` in the state dict.
        projection: the other branch of a block that begins a stage; ``branch_proj``.
        layout: what becomes of which channels.
    """

    def __init__(self, main: nn.Module, projection: nn.Module | None, layout: Layout) -> None:
        super().__init__()
        self.branch_main = main
        self.branch_proj = projection
        self.layout = layout

    def forward(self, x: Tensor | Halves) -> Halves:
        """Features (N, C_in, H, W), whole or in two parts, to (N, C_out, H / stride, W / stride).

        Returns:
            The leading channels of the output, and the rest (see `spos.spaces.halves.join`).
        """
        if self.branch_proj is None:
            passed, x = _split(x, self.layout.split)
        else:
            x = join(x)
            passed = self.branch_proj(x)
        main = self.branch_main(x)
        halves = (main, passed) if self.layout.works_first else (passed, main)
        return shuffle_halves(halves) if self.layout.shuffles else halves


class Stages(nn.Sequential):
    """Blocks one after the other, and a whole tensor at the end."""

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, C_in, H, W) to what the last block makes of them."""
        return join(super().forward(x))


class SqueezeExcitation(nn.Module):
    """Scales each channel by what a small network makes of all channels' means (Hu et al. 2018).

    Its layers are named as in Megvii's ShuffleNetV2+, whose weights so fit.

    Args:
        channels: width of the features.
        attention: ``megvii`` squeezes to a quarter, with BatchNorm and without biases;
            ``canyonwind`` to a quarter rounded up to a multiple of 8, with biases and no BatchNorm.
        affine: whether BatchNorm has weight and bias.
    """

    def __init__(self, channels: int, attention: str, *, affine: bool = True) -> None:
        super().__init__()
        biased = attention == "canyonwind"
        squeezed = round_up(channels // 4) if biased else channels // 4
        self.SE_opr = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, 1, bias=biased),
            *([] if biased else [nn.BatchNorm2d(squeezed, affine=affine)]),
            nn.ReLU(inplace=True),
            nn.Conv2d(squeezed, channels, 1, bias=biased),
            nn.Hardsigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, C, H, W) to the same shape."""
        return x * self.SE_opr(x)


def shuffle_block(
    in_channels: int,
    out_channels: int,
    mid_channels: Width,
    *,
    kernel_size: int,
    stride: int = 1,
    projects: bool = False,
    style: BlockStyle = PLAIN,
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
        style: layout, activation, attention, affine.
    """
    width, main_out, other_out = _widths(in_channels, out_channels, projects, style)
    main = nn.Sequential(
        *_pointwise(width, mid_channels, style),
        *_depthwise(mid_channels, kernel_size, stride, style),
        *_pointwise(mid_channels, main_out, style),
        *_attention(main_out, style),
    )
    projection = None
    if projects:
        projection = _projection(in_channels, other_out, kernel_size, stride, style)
    return TwoBranchBlock(main, projection, LAYOUTS[style.layout])


def xception_block(
    in_channels: int,
    out_channels: int,
    mid_channels: Width,
    *,
    stride: int = 1,
    projects: bool = False,
    style: BlockStyle = PLAIN,
) -> TwoBranchBlock:
    """Three depthwise 3 x 3 and pointwise pairs (Guo et al. 2020, fig. 7); see `shuffle_block`."""
    width, main_out, other_out = _widths(in_channels, out_channels, projects, style)
    main = nn.Sequential(
        *_depthwise(width, 3, stride, style),
        *_pointwise(width, mid_channels, style),
        *_depthwise(mid_channels, 3, 1, style),
        *_pointwise(mid_channels, mid_channels, style),
        *_depthwise(mid_channels, 3, 1, style),
        *_pointwise(mid_channels, main_out, style),
        *_attention(main_out, style),
    )
    projection = None
    if projects:
        projection = _projection(in_channels, other_out, 3, stride, style)
    return TwoBranchBlock(main, projection, LAYOUTS[style.layout])


def convolution(
    in_channels: Width,
    out_channels: Width,
    kernel_size: int,
    stride: int = 1,
    *,
    groups: Width = 1,
) -> nn.Module:
    """A convolution that keeps the size of the map but for its stride; NNI's if a width is."""
    is_fixed = isinstance(in_channels, int) and isinstance(out_channels, int)
    kind: Any = nn.Conv2d if is_fixed else MutableConv2d
    return kind(
        in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False
    )


def normalization(channels: Width, *, affine: bool) -> nn.Module:
    """A BatchNorm; NNI's if the width is."""
    kind: Any = nn.BatchNorm2d if isinstance(channels, int) else MutableBatchNorm2d
    return kind(channels, affine=affine)


def round_up(width: int) -> int:
    """The least multiple of 8 that is not less than ``width``."""
    return -(-width // 8) * 8


def _split(x: Tensor | Halves, split: str) -> Halves:
    """The half that passes and the half that is worked on."""
    if isinstance(x, Tensor):
        leading, rest = x.tensor_split(2, dim=1)
        x = leading, rest
    if split == "odd":
        return split_by_parity(*x)
    if split == "shuffle":
        return shuffle_halves(x)
    first, last = x  # of a block that shuffled: equally wide
    return (last, first) if split == "first" else (first, last)


def _widths(
    in_channels: int, out_channels: int, projects: bool, style: BlockStyle
) -> tuple[int, int, int]:
    """Widths of the main branch's input, of its output, and of the other branch's output."""
    width = in_channels if projects else in_channels // 2
    halves = projects and LAYOUTS[style.layout].halves
    other_out = out_channels // 2 if halves else width
    return width, out_channels - other_out, other_out


def _projection(
    in_channels: int, out_channels: int, kernel_size: int, stride: int, style: BlockStyle
) -> nn.Sequential:
    return nn.Sequential(
        *_depthwise(in_channels, kernel_size, stride, style),
        *_pointwise(in_channels, out_channels, style),
    )


def _depthwise(
    channels: Width, kernel_size: int, stride: int, style: BlockStyle
) -> list[nn.Module]:
    return [
        convolution(channels, channels, kernel_size, stride, groups=channels),
        normalization(channels, affine=style.affine),
    ]


def _pointwise(in_channels: Width, out_channels: Width, style: BlockStyle) -> list[nn.Module]:
    return [
        convolution(in_channels, out_channels, 1),
        normalization(out_channels, affine=style.affine),
        ACTIVATIONS[style.activation](),
    ]


def _attention(channels: int, style: BlockStyle) -> list[nn.Module]:
    if style.attention is None:
        return []
    return [SqueezeExcitation(channels, style.attention, affine=style.affine)]
