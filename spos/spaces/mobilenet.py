"""The MobileNet space of AngleNAS and MMRazor, around the ProxylessNAS network for GPUs.

Imports the modules of `spos.spaces`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from spos.spaces.inverted_residual import InvertedResidual, initialize, pointwise, skip, stem
from spos.spaces.nni_pieces import LayerChoice, ModelSpace
from spos.spaces.options import (
    OUTPUT_STRIDES,
    check_choice,
    check_fraction,
    check_images,
    strides,
)

STEM_WIDTH = 40
FIRST_WIDTH = 24
HEAD_WIDTH = 1728
# width, number of layers, and whether the first of them halves the map
STAGES = ((32, 4, True), (56, 4, True), (112, 4, True), (128, 4, False), (256, 4, True))
LAST_STAGE = (432, 1, False)
SKIPS = ("anglenas", "mmrazor")


class ProxylessGPUSpace(ModelSpace):
    """21 layers of inverted residuals ``k3e3 k3e6 k5e3 k5e6 k7e3 k7e6``, or ``skip``.

    Kernel 3, 5 or 7 and expansion 3 or 6, in stages of 32, 56, 112, 128, 256 and 432 channels with
    4, 4, 4, 4, 4 and 1 layers, after a stem of 40 and a fixed block to 24 channels; a 1 x 1
    convolution to 1728, average pooling, classifier with bias; ReLU6. The candidates stand in the
    order of AngleNAS's operator numbers 0 to 5, with ``skip`` (its -1) last.

    Names in the state dict: ``first_conv.{0,1}``; ``first_block.conv.{0,1,3,4}``;
    ``features.N.CANDIDATE.conv.{0,1,3,4,6,7}`` for layer N + 1, without CANDIDATE in a subnet, and
    ``features.N.skip.{0,1}`` where a skip changes the shape; ``conv_last.{0,1}``;
    ``classifier.{weight,bias}``. A skipped layer keeps its number.

    Args:
        image_size: side of the square input images, from 8 to 4096; 224 is halved 5 times, small
            images fewer (`spos.spaces.options.strides`).
        num_classes: width of the classifier.
        affine: whether BatchNorm has weight and bias.
        skips: ``anglenas``: only the 15 layers that keep the shape can be skipped. ``mmrazor``: all
            21 can; where the shape changes, a skip is a strided 1 x 1 convolution with BatchNorm.
        dropout: before the classifier (AngleNAS retrains with 0.2).
        output_stride: how many times smaller than the image the last map is, see
            `spos.spaces.shufflenet.ShuffleNetV2Space`.

    Raises:
        ConfigError: if an option is out of its range.
    """

    def __init__(
        self,
        image_size: int = 224,
        num_classes: int = 1000,
        affine: bool = True,
        skips: str = "anglenas",
        dropout: float = 0.0,
        output_stride: int | None = None,
    ) -> None:
        super().__init__()
        check_images("proxyless_gpu", image_size, num_classes)
        check_choice("proxyless_gpu", "skips", skips, SKIPS)
        check_fraction("proxyless_gpu", "dropout", dropout)
        check_choice("proxyless_gpu", "output_stride", output_stride, (None, *OUTPUT_STRIDES))
        stem_stride, *stage_strides = strides(image_size, output_stride=output_stride)
        self.first_conv = stem(STEM_WIDTH, stride=stem_stride, affine=affine)
        self.first_block = InvertedResidual(
            STEM_WIDTH, FIRST_WIDTH, kernel_size=3, expansion=1, affine=affine
        )
        self.features = nn.Sequential(*_layers(stage_strides, skips=skips, affine=affine))
        self.conv_last = nn.Sequential(*pointwise(LAST_STAGE[0], HEAD_WIDTH, affine=affine))
        self.globalpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(HEAD_WIDTH, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, image_size, image_size) to logits (N, num_classes)."""
        x = self.conv_last(self.features(self.first_block(self.first_conv(x))))
        return self.classifier(self.dropout(torch.flatten(self.globalpool(x), 1)))


def _layers(stage_strides: Sequence[int], *, skips: str, affine: bool) -> Iterator[nn.Module]:
    remaining = list(stage_strides)
    in_channels, layer = FIRST_WIDTH, 0
    for width, depth, halves in (*STAGES, LAST_STAGE):
        for index in range(depth):
            layer += 1
            stride = remaining.pop(0) if halves and index == 0 else 1
            widths = (in_channels, width)
            candidates: dict[str, nn.Module] = {
                f"k{kernel_size}e{expansion}": InvertedResidual(
                    *widths,
                    kernel_size=kernel_size,
                    expansion=expansion,
                    stride=stride,
                    affine=affine,
                )
                for kernel_size in (3, 5, 7)
                for expansion in (3, 6)
            }
            # The first layer of a stage changes the width, so it cannot be left out as it is, at
            # whatever stride: a space has the same candidates for all image sizes.
            if index > 0 or skips == "mmrazor":
                candidates["skip"] = skip(*widths, stride=stride, affine=affine)
            yield LayerChoice(candidates, label=f"layer_{layer}")
            in_channels = width
