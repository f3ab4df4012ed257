"""The loader on Pillow and torchvision's rules, with worker processes.

Imports torch and the other modules of this package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image, ImageEnhance

from spos.data.augmentation import View, ViewRule, draw_view
from spos.data.cache import PixelCache
from spos.data.decode import BadImage, load_rgb
from spos.data.folder import ImageSet
from spos.data.schedule import Schedule, count_batches
from spos.data.workers import BatchWorkers, PackedImages

Batch = tuple[torch.Tensor, torch.Tensor]


class TorchLoader:
    """Decodes and augments with Pillow; the `Loader` for machines without a spare GPU.

    Args:
        images: what to load.
        rule: how views are drawn.
        schedule: which images make up which batch.
        num_workers: processes that decode; 0 decodes in this one.
        device: where batches are delivered.
        cache_bytes: memory for decoded images; 0 decodes them at every use.
    """

    def __init__(
        self,
        images: ImageSet,
        *,
        rule: ViewRule,
        schedule: Schedule,
        num_workers: int,
        device: torch.device,
        cache_bytes: int = 0,
    ) -> None:
        self._schedule = schedule
        self._device = device
        cache = PixelCache(len(images), limit=cache_bytes) if cache_bytes else None
        self._workers = BatchWorkers(
            _make_batches(images, rule, cache),
            schedule=schedule,
            num_workers=num_workers,
            pin_memory=device.type == "cuda",
        )

    def __len__(self) -> int:
        return count_batches(self._schedule)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """See `spos.data.loader.Loader.epoch`."""
        for pixels, labels in self._workers.epoch(epoch, start):
            images = pixels.to(self._device, non_blocking=True).permute(0, 3, 1, 2)
            yield images, labels.to(self._device, non_blocking=True)  # images (N, 3, H, W)

    def close(self) -> None:
        """Stop the worker processes."""
        self._workers.close()


def render_view(image: Image.Image, view: View, *, image_size: int, antialias: bool) -> np.ndarray:
    """Carry out a view of an RGB image with Pillow: uint8 (H, W, 3), both ``image_size``."""
    left, top, width, height = view.box
    if view.box != (0, 0, *image.size):
        image = image.crop((left, top, left + width, top + height))
    image = _resize(image, view.resized, antialias=antialias)
    if view.window != (0, 0) or view.resized != (image_size, image_size):
        left, top = view.window
        image = image.crop((left, top, left + image_size, top + image_size))  # black outside
    if view.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    brightness, contrast, saturation = view.jitter
    if view.jitter != (1.0, 1.0, 1.0):  # as torchvision's adjust_brightness and its siblings
        image = ImageEnhance.Brightness(image).enhance(brightness)
        image = ImageEnhance.Contrast(image).enhance(contrast)
        image = ImageEnhance.Color(image).enhance(saturation)
    return np.asarray(image)


def _resize(image: Image.Image, size: tuple[int, int], *, antialias: bool) -> Image.Image:
    if image.size == size:
        return image
    if antialias:
        return image.resize(size, Image.Resampling.BILINEAR)
    # Pillow always averages when it makes images smaller; OpenCV takes the four nearest pixels.
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(pixels, size[::-1], mode="bilinear")
    return Image.fromarray(resized[0].permute(1, 2, 0).contiguous().numpy())


def _only_moves(view: View, width: int, height: int) -> bool:
    """Whether a view takes the pixels of an image as they are, at another place or mirrored."""
    is_whole = view.box == (0, 0, width, height) and view.resized == (width, height)
    return is_whole and view.jitter == (1.0, 1.0, 1.0)


def _move(pixels: np.ndarray, view: View, target: np.ndarray) -> None:
    """`render_view` for such a view of ``pixels`` (H, W, 3), written to ``target``."""
    (left, top), size = view.window, len(target)
    height, width, _ = pixels.shape
    x, y = max(left, 0), max(top, 0)  # the part of the image that is seen
    part = pixels[y : min(top + size, height), x : min(left + size, width)]
    if part.shape != target.shape:
        target[:] = 0
    seen = target[:, ::-1] if view.flip else target
    seen[y - top : y - top + part.shape[0], x - left : x - left + part.shape[1]] = part


def _make_batches(
    images: ImageSet, rule: ViewRule, cache: PixelCache | None
) -> Callable[[int, np.ndarray], Batch | BadImage]:
    packed = PackedImages(images)

    def decode(index: int) -> Image.Image | np.ndarray | BadImage:
        if cache is None:
            return load_rgb(packed.path(index))
        if (kept := cache.get(index)) is not None:
            return kept
        image = load_rgb(packed.path(index))
        if not isinstance(image, BadImage):
            cache.put(index, image)
        return image

    def make(epoch: int, indices: np.ndarray) -> Batch | BadImage:
        pixels = np.empty((len(indices), rule.image_size, rule.image_size, 3), np.uint8)
        for row, index in enumerate(indices.tolist()):
            image = decode(index)
            if isinstance(image, BadImage):
                return image
            size = image.shape[1::-1] if isinstance(image, np.ndarray) else image.size
            view = draw_view(rule, epoch=epoch, index=index, width=size[0], height=size[1])
            if isinstance(image, np.ndarray):
                if _only_moves(view, *size):
                    _move(image, view, pixels[row])
                    continue
                image = Image.fromarray(image)
            pixels[row] = render_view(
                image, view, image_size=rule.image_size, antialias=rule.antialias
            )
        return torch.from_numpy(pixels), torch.from_numpy(packed.labels[indices])

    return make
