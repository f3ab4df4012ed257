"""Search spaces that train in milliseconds, and class folders of JPEGs that they can learn."""

from pathlib import Path

import nni
import numpy as np
from PIL import Image
from torch import Tensor, nn

from spos.spaces.nni_pieces import LayerChoice, ModelSpace

import nni.nas.nn.pytorch as mutable  # isort: skip  (after ours, which silences its warnings)

TINY = "tiny_space:TinySpace"
WIDTHS = "tiny_space:WidthSpace"
CLASSES = 3
WIDTH = 6


class TinySpace(ModelSpace):
    """Three layers of ``k1``, ``k3`` or ``k5``; images as small as 8 pixels."""

    def __init__(
        self,
        image_size: int = 8,
        num_classes: int = CLASSES,
        affine: bool = True,
        normalize: bool = True,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()

        def block(in_channels: int, size: int, stride: int = 1) -> nn.Sequential:
            norm = nn.BatchNorm2d(WIDTH, affine=affine) if normalize else nn.Identity()
            conv = nn.Conv2d(in_channels, WIDTH, size, stride, size // 2, bias=not normalize)
            return nn.Sequential(conv, norm, nn.ReLU())

        self.stem = block(3, 3, stride=2)
        self.features = nn.Sequential(
            *(
                LayerChoice({f"k{k}": block(WIDTH, k) for k in (1, 3, 5)}, label=f"layer_{n}")
                for n in (1, 2, 3)
            )
        )
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(WIDTH, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(self.stem(x)).mean((2, 3))
        return self.classifier(self.dropout(x))


class WidthSpace(ModelSpace):
    """A searched width, shared by a BatchNorm, and a layer of two candidates behind it."""

    def __init__(self, num_classes: int = CLASSES, affine: bool = True) -> None:
        super().__init__()
        width = nni.choice("width", [2, 4, 6])
        self.first = nn.Sequential(
            mutable.MutableConv2d(3, width, 3, padding=1, bias=False),
            mutable.MutableBatchNorm2d(width, affine=affine),
            nn.ReLU(),
        )
        self.second = LayerChoice(
            {
                f"k{k}": nn.Sequential(
                    mutable.MutableConv2d(width, WIDTH, k, padding=k // 2, bias=False),
                    nn.BatchNorm2d(WIDTH, affine=affine),
                )
                for k in (1, 3)
            },
            label="layer_1",
        )
        self.classifier = nn.Linear(WIDTH, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.second(self.first(x)).mean((2, 3)))


def write_data(
    folder: Path,
    *,
    train: int = 16,
    test: int = 5,
    size: int = 12,
) -> Path:
    """Write ``train`` and ``test`` images of each class: noise in the colour of the class."""
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("val", test)):
        for label in range(CLASSES):
            target = folder / part / f"class_{label}"
            target.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 160, (size, size, 3))
                pixels[..., label] += 90
                Image.fromarray(pixels.astype(np.uint8)).save(target / f"{number:03d}.jpg")
    return folder
