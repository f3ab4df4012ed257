"""What the loaders make of real photographs, against torchvision, OpenCV's rule and each other."""

from dataclasses import replace
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


def draw_training_views(photographs: ImageSet) -> list[tuple[Image.Image, View]]:
    rule = ViewRule("paper", "standard", 96, 0)
    return [
        (image, draw_view(rule, epoch=0, index=index, width=image.width, height=image.height))
        for index, image in enumerate(open_some(photographs, 8))
    ]


def crop_as_torchvision(image: Any, view: View) -> Any:
    left, top, width, height = view.box
    image = functional.resized_crop(image, top, left, height, width, [96, 96])
    return functional.hflip(image) if view.flip else image


def test_training_crops_are_torchvisions(photographs: ImageSet) -> None:
    for image, view in draw_training_views(photographs):
        plain = replace(view, jitter=(1.0, 1.0, 1.0))
        ours = render_view(image, plain, image_size=96, antialias=True)
        assert np.array_equal(ours, np.asarray(crop_as_torchvision(image, view)))


def test_training_colours_are_torchvisions(photographs: ImageSet) -> None:
    """But for the steps in between, which torchvision cuts to whole levels 0 to 255."""
    for image, view in draw_training_views(photographs):
        brightness, contrast, saturation = view.jitter
        pixels = np.asarray(crop_as_torchvision(image, view), np.float64)
        grey = np.array([0.299, 0.587, 0.114])
        mean = (pixels @ grey).mean()
        pixels = brightness * (mean + contrast * (pixels - mean))
        greys = (pixels @ grey)[..., None]
        exact = (greys + saturation * (pixels - greys)).clip(0, 255)
        ours = render_view(image, view, image_size=96, antialias=True)
        assert np.abs(ours - exact).max() < 0.51
        assert abs((ours - exact).mean()) < 0.05


def test_colours_are_torchvisions_step_by_step(photographs: ImageSet) -> None:
    for image, view in draw_training_views(photographs):
        for place, adjust in enumerate(
            (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)
        ):
            jitter = [1.0, 1.0, 1.0]
            jitter[place] = view.jitter[place]
            changed = replace(view, jitter=(jitter[0], jitter[1], jitter[2]))
            expected = np.asarray(adjust(crop_as_torchvision(image, view), jitter[place]))
            ours = render_view(image, changed, image_size=96, antialias=True)
            assert np.abs(ours.astype(int) - expected).max() <= 2


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
        ("paper", "standard", 224, 0.3, 0.5),
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
    options |= {
        "image_size": image_size,
        "cache_bytes": 2**27,
    }  # whole images, as DALI decodes them
    ours, theirs = (load_all(photographs, backend, **options) for backend in BACKENDS)
    differences = (ours - theirs).abs().mean((1, 2, 3))
    assert differences.mean() < on_average
    assert differences.max() < worst_image
    assert (ours - theirs).mean().abs() < 0.02  # neither is brighter


def test_parts_of_images_give_the_views_of_whole_ones(photographs: ImageSet) -> None:
    """To the bit where the JPEG is decoded at full size, closely where at a half or less."""
    at_full_size = 0
    for image_size, on_average in ((224, 2.0), (64, 6.0)):
        parts, wholes = (
            load_all(photographs, "torchvision", augmentation="paper", image_size=image_size,
                     cache_bytes=cache)
            for cache in (0, 2**27)
        )  # fmt: skip
        rule = ViewRule("paper", "standard", image_size, 0)
        for index, path in enumerate(photographs.paths):
            with Image.open(photographs.root / path) as image:
                width, height = image.size
            view = draw_view(rule, epoch=0, index=index, width=width, height=height)
            if min(view.box[2:]) < 2 * image_size:
                at_full_size += 1
                assert torch.equal(parts[index], wholes[index])
            else:
                assert (parts[index] - wholes[index]).abs().mean() < on_average
                assert (parts[index] - wholes[index]).mean().abs() < 0.2
    assert 60 < at_full_size < 120


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
