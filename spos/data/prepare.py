"""One image as a network is fed with it, from a file or from Pillow.

Imports torch, `spos.errors` and the other modules of this package.
"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from spos.data.augmentation import ViewRule, draw_view
from spos.data.decode import BadImage, load_rgb, open_rgb
from spos.data.preprocessing import UNSAID_PREPROCESSING, Preprocessing
from spos.data.torch_loader import render_view
from spos.errors import ConfigError


def prepare_image(
    image: Path | str | Image.Image, *, preprocessing: Preprocessing | None, image_size: int
) -> torch.Tensor:
    """Decode, resize, crop and normalise an image as in evaluation.

    Args:
        image: a file, or an image that Pillow has opened.
        preprocessing: what the network expects.
        image_size: side of the network's input, in pixels.

    Returns:
        A batch of one, float32 (1, 3, image_size, image_size).

    Raises:
        DataError: naming an image that cannot be decoded.
        ConfigError: if ``preprocessing`` is None: the network's file does not say.
    """
    if preprocessing is None:
        raise ConfigError(f"the network's file {UNSAID_PREPROCESSING}")
    rgb = open_rgb(image) if isinstance(image, Image.Image) else load_rgb(image)
    if isinstance(rgb, BadImage):
        raise rgb.error()
    rule = ViewRule("none", preprocessing.name, image_size, 0)
    view = draw_view(rule, epoch=0, index=0, width=rgb.width, height=rgb.height)
    pixels = render_view(rgb, view, image_size=image_size, antialias=rule.antialias)
    return preprocessing.apply(torch.tensor(pixels).permute(2, 0, 1)[None])
