"""The search space of Single Path One-Shot: ShuffleNetV2 with a choice of four blocks per layer.

Imports `spos.errors`, `spos.spaces.blocks`, `spos.spaces.nni_pieces`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spos.errors import ConfigError
from spos.spaces.blocks import shuffle_block, xception_block
from spos.spaces.nni_pieces import LayerChoice, ModelSpace

STEM_WIDTH = 16
STAGES = ((64, 4), (160, 4), (320, 8), (640, 4))  # width, number of blocks
HEAD_WIDTH = 1024
DROPOUT = 0.1

IMAGE_SIZES = (8, 4096)
NUM_HALVINGS = ((128, 5), (64, 4), (16, 3), (8, 2))  # from this image size on, this many
MAX_CLASSES = 1_000_000


class ShuffleNetV2Space(ModelSpace):
    """20 layers of ``k3``, ``k5``, ``k7`` or ``xcep`` (Guo et al. 2020, sec. 4 and tab. 1).

    The canonical network of Megvii's release, with the state-dict keys of NNI 3.0's hub space
    ``ShuffleNetSpace`` and the same function: stem 16, stages of 64/160/320/640 channels with
    4/4/8/4 blocks, a 1 x 1 convolution to 1024, average pooling, dropout 0.1, classifier without
    bias. The choices are ``layer_1`` to ``layer_20``.

    The stem and the first block of each stage halve the map: 224 to 7, 128 to 4. A small image is
    halved fewer times (`NUM_HALVINGS`): 64 four times, 32 or 28 three times, to 4 x 4; below 28
    pixels the last map is 2 x 2 or 3 x 3. The earliest of (stem, stage 1, ..., stage 4) lose their
    stride first. Such a first block of a stage keeps its two branches, at stride 1.

    Args:
        image_size: side of the square input images, from 8 to 4096.
        num_classes: width of the classifier.
        affine: whether BatchNorm, the stem's included, has weight and bias (off in the paper's
            supernet, on in the network trained from scratch).

    Raises:
        ConfigError: if an option is out of its range.
    """

    def __init__(self, image_size: int = 224, num_classes: int = 1000, affine: bool = True) -> None:
        super().__init__()
        _check_integer("image_size", image_size, *IMAGE_SIZES)
        _check_integer("num_classes", num_classes, 1, MAX_CLASSES)
        stem_stride, *stage_strides = strides(image_size)
        self.first_conv = nn.Sequential(
            nn.Conv2d(3, STEM_WIDTH, 3, stem_stride, 1, bias=False),
            nn.BatchNorm2d(STEM_WIDTH, affine=affine),
            nn.ReLU(inplace=True),
        )
        layers: list[nn.Module] = []
        in_channels = STEM_WIDTH
        for (width, num_blocks), stride in zip(STAGES, stage_strides, strict=True):
            for block in range(num_blocks):
                label = f"layer_{len(layers) + 1}"
                block_stride = stride if block == 0 else 1
                layers.append(_layer(label, in_channels, width, block_stride, block == 0, affine))
                in_channels = width
        self.features = nn.Sequential(*layers)
        self.conv_last = nn.Sequential(
            nn.Conv2d(in_channels, HEAD_WIDTH, 1, bias=False),
            nn.BatchNorm2d(HEAD_WIDTH, affine=affine),
            nn.ReLU(inplace=True),
        )
        self.globalpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(DROPOUT)
        self.classifier = nn.Sequential(nn.Linear(HEAD_WIDTH, num_classes, bias=False))
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, image_size, image_size) to logits (N, num_classes)."""
        x = self.conv_last(self.features(self.first_conv(x)))
        return self.classifier(torch.flatten(self.dropout(self.globalpool(x)), 1))


def strides(image_size: int) -> tuple[int, ...]:
    """Strides of the stem and of the four stages for square images of this size.

    >>> strides(224), strides(32)
    ((2, 2, 2, 2, 2), (1, 1, 2, 2, 2))
    """
    num_halvings = max(number for size, number in NUM_HALVINGS if image_size >= size)
    return (1,) * (5 - num_halvings) + (2,) * num_halvings


def initialize(network: nn.Module) -> None:
    """Initialise weights as Megvii's release does.

    Convolutions are normal with deviation 1 / (input channels per group), so 1.0 for depthwise
    ones; the stem has 0.01. BatchNorm biases are 1e-4. The classifier is normal with 0.01.
    A network on the meta device is left alone: it has nothing to initialise, and the first random
    number there makes torch import its compiler, a second and more.
    """
    if any(parameter.is_meta for parameter in network.parameters()):
        return
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            std = 0.01 if "first" in name else 1.0 / module.weight.shape[1]
            nn.init.normal_(module.weight, 0, std)
        elif isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.ones_(module.weight)
            nn.init.constant_(module.bias, 1e-4)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)


def _layer(
    label: str, in_channels: int, width: int, stride: int, projects: bool, affine: bool
) -> nn.Module:
    widths = (in_channels, width, width // 2)
    candidates: dict[str, nn.Module] = {
        f"k{size}": shuffle_block(
            *widths, kernel_size=size, stride=stride, projects=projects, affine=affine
        )
        for size in (3, 5, 7)
    }
    candidates["xcep"] = xception_block(*widths, stride=stride, projects=projects, affine=affine)
    return LayerChoice(candidates, label=label)


def _check_integer(name: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise ConfigError(
            f"shufflenetv2: {name} is {value!r}, expected an integer from {low} to {high}"
        )
