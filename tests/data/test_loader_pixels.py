"""What the loaders make of real photographs, against torchvision, OpenCV's rule and each other."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional
from torchvision.transforms.v2 import CenterCrop, Compose, Resize

from spos.data.augmentation import View, ViewRule, draw_view
from spos.data.decode import load_rgb
from spos.data.folder import ImageSet, select_images
from spos.data.loader import BACKENDS, build_loader
from spos.data.torch_loader import render_view


def open_some(photographs: ImageSet, step: int) -> list[Image.Image]:
    images = [load_rgb(photographs.root / path) for path in photographs.paths[::step]]
    return [image for image in images if isinstance(image, Image.Image)]


def load_all(images: ImageSet, backend: str, **options: object) -> torch.Tensor:
    """All views as float (N, 3, H, W)."""
    usual = {"shuffle": False, "batch_size": 16, "image_size": 224, "augmentation": None}
    loader = build_loader(images, backend=backend, **{**usual, **options})  # type: ignore[arg-type]
    return torch.cat([pixels for pixels, _ in loader.epoch(0)]).float()


def test_evaluation_pixels_are_torchvisions(photographs: ImageSet) -> None:
    transform = Compose([Resize(256), CenterCrop(224)])
    images = open_some(photographs, 8)
    expected = np.stack([np.asarray(transform(image)) for image in images])
    ours = load_all(select_images(photographs, range(0, 63, 8)), "torchvision")
    assert np.array_equal(ours.permute(0, 2, 3, 1).numpy(), expected)


def test_training_pixels_are_torchvisions(photographs: ImageSet) -> None:
    rule = ViewRule("paper", "standard", 96, 0)
    for index, image in enumerate(open_some(photographs, 8)):
        width, height = image.size
        view = draw_view(rule, epoch=0, index=index, width=width, height=height)
        left, top, box_width, box_height = view.box
        expected: Any = image
        expected = functional.resized_crop(expected, top, left, box_height, box_width, [96, 96])
        if view.flip:
            expected = functional.hflip(expected)
        expected = functional.adjust_brightness(expected, view.jitter[0])
        expected = functional.adjust_contrast(expected, view.jitter[1])
        expected = functional.adjust_saturation(expected, view.jitter[2])
        ours = render_view(image, view, image_size=96, antialias=rule.antialias)
        assert np.array_equal(ours, np.asarray(expected))


def test_shifted_views_are_black_outside() -> None:
    image = Image.new("RGB", (8, 8), (255, 255, 255))
    view = View(box=(0, 0, 8, 8), resized=(8, 8), window=(-1, 2), flip=True)
    expected = np.zeros((8, 8, 3), np.uint8)
    expected[:6, :7] = 255  # moved one to the right and two up, then mirrored
    assert np.array_equal(render_view(image, view, image_size=8, antialias=True), expected)


def resize_as_opencv(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear between the four nearest pixels, their centres at half coordinates; float64."""
    for axis, length in ((1, size[0]), (0, size[1])):
        old = pixels.shape[axis]
        place = np.clip((np.arange(length) + 0.5) * old / length - 0.5, 0, old - 1)
        first = np.floor(place).astype(int)
        second = np.minimum(first + 1, old - 1)
        shape = [1, 1, 1]
        shape[axis] = length
        weight = (place - first).reshape(shape)
        pixels = pixels.take(first, axis) * (1 - weight) + pixels.take(second, axis) * weight
    return pixels


@pytest.mark.parametrize("backend", BACKENDS)
def test_spos_evaluation_pixels_are_opencvs(photographs: ImageSet, backend: str) -> None:
    if backend == "dali":
        pytest.importorskip("nvidia.dali")
    rule = ViewRule("none", "spos", 224, 0)
    chosen = select_images(photographs, range(0, 63, 8))
    ours = load_all(chosen, backend, preprocessing="spos").permute(0, 2, 3, 1).numpy()
    for image, pixels in zip(open_some(photographs, 8), ours, strict=True):
        view = draw_view(rule, epoch=0, index=0, width=image.width, height=image.height)
        left, top = view.window
        resized = resize_as_opencv(np.asarray(image, np.float64), view.resized)
        difference = np.abs(resized[top : top + 224, left : left + 224] - pixels)
        assert difference.max() <= 1.01  # whole levels
        assert difference.mean() < 0.33  # rounding makes 0.25, after each direction 0.31


# The bounds are in levels of 0 to 255. Rounding to whole levels makes up to 0.2; the rest is at the
# borders, where Pillow leaves out the pixels beyond the image and DALI repeats the last one.
@pytest.mark.parametrize(
    ("augmentation", "preprocessing", "image_size", "on_average", "worst_image"),
    [
        ("none", "standard", 224, 0.2, 0.25),
        ("none", "spos", 224, 0.2, 0.25),
        ("none", "standard", 64, 0.2, 0.4),
        ("paper", "standard", 224, 0.3, 0.8),
        ("crop-flip", "standard", 48, 0.2, 0.5),
    ],
)
def test_loaders_agree_on_pixels(
    photographs: ImageSet,
    augmentation: str,
    preprocessing: str,
    image_size: int,
    on_average: float,
    worst_image: float,
) -> None:
    pytest.importorskip("nvidia.dali")
    options = {"augmentation": augmentation, "preprocessing": preprocessing}
    ours, theirs = (
        load_all(photographs, backend, image_size=image_size, **options) for backend in BACKENDS
    )
    differences = (ours - theirs).abs().mean((1, 2, 3))
    assert differences.mean() < on_average
    assert differences.max() < worst_image
    assert (ours - theirs).mean().abs() < 0.02  # neither is brighter


@pytest.mark.gpu
def test_gpu_loader_agrees_on_pixels(photographs: ImageSet) -> None:
    pytest.importorskip("nvidia.dali")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for augmentation in ("none", "paper", "crop-flip"):
        ours = load_all(photographs, "torchvision", augmentation=augmentation)
        theirs = load_all(photographs, "dali", augmentation=augmentation, device="cuda")
        assert theirs.is_cuda
        differences = (ours - theirs.cpu()).abs().mean((1, 2, 3))
        assert differences.mean() < 1.0  # the GPU's JPEG decoder is another one
