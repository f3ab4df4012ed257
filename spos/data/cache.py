"""Decoded images in memory that worker processes share, up to a limit.

Imports only `spos.errors`.
"""

from __future__ import annotations

import mmap
import multiprocessing

import numpy as np
from PIL import Image

from spos.errors import ConfigError

_FIELDS = 3  # of an image: place of its pixels, counted from 1 (0: not there), width, height


class PixelCache:
    """Pixels of RGB images by number; each is kept as it was decoded, before any augmentation.

    Filled as images are first used. When the limit is reached, further images are not kept, and
    those that are stay. Processes forked from this one fill and read the same memory, of which a
    machine gives out only what is used.

    Args:
        count: of the images, numbered from 0.
        limit: bytes of pixels.

    Raises:
        ConfigError: if the machine cannot have so much memory.
    """

    def __init__(self, count: int, *, limit: int) -> None:
        try:
            self._pixels = np.frombuffer(mmap.mmap(-1, limit), np.uint8)
            table = mmap.mmap(-1, 8 * (1 + _FIELDS * count))
        except OSError as problem:
            raise ConfigError(
                f"a cache of {limit // 2**20} MiB: this machine has no room for it "
                f"({problem.strerror}); give a smaller --cache, or 0"
            ) from None
        numbers = np.frombuffer(table, np.int64)
        self._used, self._table = numbers[:1], numbers[1:].reshape(count, _FIELDS)
        self._lock = multiprocessing.get_context("fork").Lock()

    def get(self, index: int) -> np.ndarray | None:
        """Image ``index``, uint8 (H, W, 3), not to be written to; None if it is not kept."""
        place, width, height = self._table[index].tolist()
        if place == 0:
            return None
        pixels = self._pixels[place - 1 : place - 1 + 3 * width * height]
        return pixels.reshape(height, width, 3)

    def put(self, index: int, image: Image.Image) -> None:
        """Keep image ``index`` if there is room and no other process has put it there."""
        pixels = np.asarray(image).reshape(-1)
        with self._lock:  # also what makes the pixels visible before their place
            start = int(self._used[0])
            if self._table[index, 0] or start + pixels.size > self._pixels.size:
                return
            self._used[0] = start + pixels.size
            self._pixels[start : start + pixels.size] = pixels
            self._table[index, 1:] = image.size
        with self._lock:
            self._table[index, 0] = start + 1
