"""The search space of NAS-Bench-Macro, all of whose networks were trained on CIFAR-10.

Imports the modules of `spos.spaces`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from spos.spaces.inverted_residual import InvertedResidual, initialize, pointwise, skip, stem
from spos.spaces.nni_pieces import LayerChoice, ModelSpace
from spos.spaces.options import check_images, strides

STEM_WIDTH = 32
STAGES = ((64, 2), (128, 3), (256, 3))  # width, number of layers
HEAD_WIDTH = 1280


class NASBenchMacroSpace(ModelSpace):
    """8 layers of ``identity``, ``mb3_k3`` or ``mb6_k5`` (Su et al. 2021, "Prioritized ... MCT").

    Inverted residuals of expansion 3 and kernel 3, or expansion 6 and kernel 5, in stages of 64,
    128 and 256 channels with 2, 3 and 3 layers, whose first halve the map; after a stem of 32 (at
    32 x 32 without stride) and before a 1 x 1 convolution to 1280, average pooling and a classifier
    with bias. Where the shape changes, the identity is a strided 1 x 1 convolution with BatchNorm.
    The choices are ``layer_1`` to ``layer_8``; the benchmark's digits 0, 1, 2 are the numbers of
    their candidates. Widths and strides follow from the published parameters and FLOPs, which our
    counts equal for all 6,561 networks; the activation, ReLU6, does not show in them.

    Args:
        image_size: side of the square input images, from 8 to 4096; from 64 on the stem halves the
            map as well.
        num_classes: width of the classifier.
        affine: whether BatchNorm has weight and bias.

    Raises:
        ConfigError: if an option is out of its range.
    """

    def __init__(self, image_size: int = 32, num_classes: int = 10, affine: bool = True) -> None:
        super().__init__()
        check_images("nasbench_macro", image_size, num_classes)
        stem_stride, *stage_strides = strides(image_size, 1 + len(STAGES))
        self.first_conv = stem(STEM_WIDTH, stride=stem_stride, affine=affine)
        self.features = nn.Sequential(*_layers(stage_strides, affine=affine))
        self.conv_last = nn.Sequential(*pointwise(STAGES[-1][0], HEAD_WIDTH, affine=affine))
        self.globalpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(HEAD_WIDTH, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, image_size, image_size) to logits (N, num_classes)."""
        x = self.conv_last(self.features(self.first_conv(x)))
        return self.classifier(torch.flatten(self.globalpool(x), 1))


def _layers(stage_strides: Sequence[int], *, affine: bool) -> Iterator[nn.Module]:
    in_channels, layer = STEM_WIDTH, 0
    for (width, depth), stage_stride in zip(STAGES, stage_strides, strict=True):
        for index in range(depth):
            layer += 1
            stride = stage_stride if index == 0 else 1
            candidates = {
                "identity": skip(in_channels, width, stride=stride, affine=affine),
                "mb3_k3": InvertedResidual(
                    in_channels, width, kernel_size=3, expansion=3, stride=stride, affine=affine
                ),
                "mb6_k5": InvertedResidual(
                    in_channels, width, kernel_size=5, expansion=6, stride=stride, affine=affine
                ),
            }
            yield LayerChoice(candidates, label=f"layer_{layer}")
            in_channels = width
