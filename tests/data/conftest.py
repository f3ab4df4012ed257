"""Image sets that several tests of the data package share."""

import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from spos.data.digits import prepare_digits
from spos.data.folder import DataFolder, ImageSet, open_data, scan_folder

# On a machine that is busy otherwise, an example may take any time.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "photographs" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.imagenet)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> DataFolder:
    return open_data(prepare_digits(tmp_path_factory.mktemp("data") / "digits"))


@pytest.fixture(scope="session")
def photographs(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """63 ImageNet JPEGs (one more than the archive says), dealt into four class folders."""
    archive = shared_data / "imagenet-jpeg-62.tar"
    if not archive.is_file():
        pytest.skip(f"{archive} is not there")
    root = tmp_path_factory.mktemp("photographs")
    with tarfile.open(archive) as tar:
        tar.extractall(root, filter="data")
    for number, file in enumerate(sorted(root.glob("*.JPEG"))):
        folder = root / f"class_{number % 4}"
        folder.mkdir(exist_ok=True)
        os.rename(file, folder / file.name)
    images = scan_folder(root)
    assert len(images) == 63
    return images


@pytest.fixture
def make_images(tmp_path: Path) -> Callable[..., ImageSet]:
    """Write ``count`` small JPEGs of random noise to each of ``classes`` folders."""

    def make(count: int, *, classes: int = 2, size: tuple[int, int] = (20, 16)) -> ImageSet:
        rng = np.random.default_rng(0)
        for label in range(classes):
            folder = tmp_path / "noise" / f"class_{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number:03d}.jpg")
        return scan_folder(tmp_path / "noise")

    return make
