"""The loader on Pillow and torchvision's rules, with worker processes.

Imports torch and the other modules of this package.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image

from spos.data.augmentation import View, ViewRule, draw_view
from spos.data.cache import PixelCache
from spos.data.decode import BadImage, Box, decode_part, encoded_size, load_rgb, read_encoded
from spos.data.folder import ImageSet
from spos.data.schedule import Schedule, count_batches
from spos.data.workers import BatchWorkers, PackedImages

_LEVELS = np.arange(256)
_GREY = np.array([0.299, 0.587, 0.114])  # of red, green and blue, as Pillow and DALI have it

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


def render_view(
    image: Image.Image, view: View, *, image_size: int, antialias: bool, box: Box | None = None
) -> np.ndarray:
    """Carry out a view of an RGB image with Pillow: uint8 (H, W, 3), both ``image_size``.

    Args:
        image: the image.
        view: what to do with it.
        image_size: width and height of the view.
        antialias: whether resizing averages all the pixels it covers.
        box: where the view's box lies in ``image`` (left, top, right, bottom), if it was decoded
            at another scale.
    """
    left, top, width, height = view.box
    image = _resize(
        image, view.resized, box or (left, top, left + width, top + height), antialias=antialias
    )
    if view.window != (0, 0) or view.resized != (image_size, image_size):
        left, top = view.window
        image = image.crop((left, top, left + image_size, top + image_size))  # black outside
    if view.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if view.jitter != (1.0, 1.0, 1.0):
        image = _jitter(image, *view.jitter)
    return np.asarray(image)


def _jitter(
    image: Image.Image, brightness: float, contrast: float, saturation: float
) -> Image.Image:
    """Brightness, contrast about the mean grey and saturation, in one map of colours.

    Differs from torchvision, which cuts to whole levels 0 to 255 after each of the three.
    """
    counts = np.array(image.histogram()).reshape(3, 256)
    mean = float(_GREY @ (counts @ _LEVELS)) / (image.width * image.height)
    scale, shift = brightness * contrast, brightness * (1 - contrast) * mean
    colours = scale * (saturation * np.eye(3) + (1 - saturation) * _GREY)  # (3 out, 3 in)
    return image.convert("RGB", tuple(np.column_stack([colours, [shift] * 3]).ravel().tolist()))


def _resize(image: Image.Image, size: tuple[int, int], box: Box, *, antialias: bool) -> Image.Image:
    outer = (math.floor(box[0]), math.floor(box[1]), math.ceil(box[2]), math.ceil(box[3]))
    if outer != (0, 0, *image.size):  # or resizing would use pixels beyond the box
        image = image.crop(outer)
        box = (box[0] - outer[0], box[1] - outer[1], box[2] - outer[0], box[3] - outer[1])
    if antialias:
        return image.resize(size, Image.Resampling.BILINEAR, box=box)
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
    options = {"image_size": rule.image_size, "antialias": rule.antialias}

    def decode_whole(index: int) -> Image.Image | np.ndarray | BadImage:
        if cache is not None and (kept := cache.get(index)) is not None:
            return kept
        image = load_rgb(packed.path(index))
        if cache is not None and not isinstance(image, BadImage):
            cache.put(index, image)
        return image

    def render_whole(epoch: int, index: int, target: np.ndarray) -> BadImage | None:
        image = decode_whole(index)
        if isinstance(image, BadImage):
            return image
        size = image.shape[1::-1] if isinstance(image, np.ndarray) else image.size
        view = draw_view(rule, epoch=epoch, index=index, width=size[0], height=size[1])
        if isinstance(image, np.ndarray):
            if _only_moves(view, *size):
                _move(image, view, target)
                return None
            image = Image.fromarray(image)
        target[:] = render_view(image, view, **options)
        return None

    def render_part(epoch: int, index: int, target: np.ndarray) -> BadImage | None:
        path = packed.path(index)
        encoded = read_encoded(path)
        if isinstance(encoded, BadImage):
            return encoded
        size = encoded_size(encoded, path=path)
        if isinstance(size, BadImage):
            return size
        view = draw_view(rule, epoch=epoch, index=index, width=size[0], height=size[1])
        part = decode_part(encoded, view.box, view.resized, path=path)
        if isinstance(part, BadImage):
            return part
        target[:] = render_view(part[0], view, **options, box=part[1])
        return None

    # Evaluation sees whole images, decoded as everyone decodes them.
    is_partial = rule.augmentation == "paper" and cache is None
    render = render_part if is_partial else render_whole

    def make(epoch: int, indices: np.ndarray) -> Batch | BadImage:
        pixels = np.empty((len(indices), rule.image_size, rule.image_size, 3), np.uint8)
        for row, index in enumerate(indices.tolist()):
            if (bad := render(epoch, index, pixels[row])) is not None:
                return bad
        return torch.from_numpy(pixels), torch.from_numpy(packed.labels[indices])

    return make
