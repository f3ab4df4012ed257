"""Images kept in memory: the same batches to the bit, within the limit, shared by processes."""

import multiprocessing

import numpy as np
import pytest
import torch
from PIL import Image

from spos.data import torch_loader
from spos.data.cache import PixelCache
from spos.data.loader import build_loader
from spos.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def batches_of(images, *, epochs=2, start=0, **settings):
    settings = {"image_size": 16, "augmentation": "crop-flip", **settings}
    loader = build_loader(
        images, batch_size=4, seed=3, shuffle=True,
        **settings,
    )  # fmt: skip
    try:
        return [batch for epoch in range(epochs) for batch in loader.epoch(epoch, start)]
    finally:
        loader.close()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("limit", [2**20, 3 * 20 * 16 * 5], ids=["all", "five of twelve"])
def test_batches_are_the_same_with_and_without(make_images, workers, limit):
    images = make_images(6)  # of 20 x 16: a view of 16 pixels moves them, one of 12 resizes
    for settings in (
        {},
        {"image_size": 12},
        {"start": 1},
        {"augmentation": "paper"},
        {"augmentation": "none"},
    ):
        expected = batches_of(images, **settings)
        found = batches_of(images, num_workers=workers, cache_bytes=limit, **settings)
        for (pixels, labels), (mine, my_labels) in zip(expected, found, strict=True):
            assert torch.equal(pixels, mine) and torch.equal(labels, my_labels)


def test_each_image_is_decoded_once(make_images, monkeypatch):
    decoded = []
    load = torch_loader.load_rgb
    monkeypatch.setattr(torch_loader, "load_rgb", lambda path: decoded.append(path) or load(path))
    batches_of(make_images(6), epochs=3, cache_bytes=2**20)
    assert len(decoded) == len(set(decoded)) == 12


def test_images_beyond_the_limit_are_not_kept():
    rng = np.random.default_rng(0)
    first, second, third = (
        Image.fromarray(rng.integers(0, 256, shape, np.uint8))
        for shape in ((4, 6, 3), (9, 9, 3), (2, 3, 3))
    )
    cache = PixelCache(3, limit=100)
    for index, image in enumerate((first, second, third)):
        cache.put(index, image)
    assert cache.get(1) is None
    for index, image in ((0, first), (2, third)):
        kept = cache.get(index)
        assert kept is not None and np.array_equal(kept, np.asarray(image))


def test_forked_processes_share_it():
    cache = PixelCache(2, limit=100)
    image = Image.new("RGB", (3, 2), (10, 20, 30))
    process = multiprocessing.get_context("fork").Process(target=cache.put, args=(1, image))
    process.start()
    process.join(60)
    kept = cache.get(1)
    assert kept is not None and kept.tobytes() == image.tobytes()


@pytest.mark.parametrize("limit", [-1, 2**60])
def test_impossible_limits_are_refused(make_images, limit):
    with pytest.raises(ConfigError, match="a cache of"):
        batches_of(make_images(3), cache_bytes=limit)
