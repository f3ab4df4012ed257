import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from spos.data.digits import is_digits, prepare_digits
from spos.data.folder import DataFolder, open_data
from spos.data.split import apply_split, load_split
from spos.errors import DataError


def test_digits_are_all_there(digits: DataFolder) -> None:
    assert digits.train.classes == tuple("0123456789")
    assert (len(digits.train), len(digits.test)) == (1497, 300)
    assert set(Counter(digits.test.labels).values()) == {30}
    names = [Path(path).name for path in digits.train.paths + digits.test.paths]
    assert len(set(names)) == 1797  # no image is both in train and test
    assert is_digits(digits)


def test_digits_come_with_their_split(digits: DataFolder) -> None:
    training, held_out = apply_split(
        digits.train, load_split(digits.train.root.parent / "split.json")
    )
    assert (len(training), len(held_out)) == (1247, 250)
    assert set(Counter(held_out.labels).values()) == {25}


def test_files_hold_the_original_images(digits: DataFolder) -> None:
    originals: Any = load_digits()
    for images in (digits.train, digits.test):
        for path, label in zip(images.paths[::50], images.labels[::50], strict=True):
            index = int(Path(path).stem)
            image = Image.open(images.root / path).convert("RGB")
            assert image.size == (32, 32)
            assert originals.target[index] == label
            small = np.asarray(image.resize((8, 8), Image.Resampling.BOX))[:, :, 0] / 255 * 16
            assert np.corrcoef(small.ravel(), originals.images[index].ravel())[0, 1] > 0.95


def test_prepared_digits_are_left_alone(digits: DataFolder) -> None:
    folder = digits.train.root.parent
    before = folder.stat().st_mtime_ns
    assert prepare_digits(folder) == folder
    assert folder.stat().st_mtime_ns == before
    assert {each.name for each in folder.iterdir()} == {"train", "test", "split.json"}


@pytest.mark.parametrize("problem", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_interrupted_preparation_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: type[BaseException]
) -> None:
    saves = 0
    save = Image.Image.save

    def failing_save(image: Image.Image, path: Path, **options: Any) -> None:
        nonlocal saves
        saves += 1
        if saves == 100:
            raise problem
        save(image, path, **options)

    monkeypatch.setattr(Image.Image, "save", failing_save)
    with pytest.raises((KeyboardInterrupt, DataError)):
        prepare_digits(tmp_path / "digits")
    assert [each.name for each in tmp_path.iterdir()] == [".digits.lock"]


def test_killed_preparation_is_done_again(tmp_path: Path) -> None:
    code = "import sys; from spos.data.digits import prepare_digits; prepare_digits(sys.argv[1])"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "digits")])
    partial = tmp_path / ".digits.partial" / "train" / "3"
    while not (partial.is_dir() and any(partial.iterdir())):
        assert process.poll() is None, "finished before it could be killed"
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert not (tmp_path / "digits").exists()
    assert is_digits(open_data(prepare_digits(tmp_path / "digits")))
    assert not (tmp_path / ".digits.partial").exists()


def test_several_may_prepare_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(prepare_digits, [tmp_path / "digits"] * 3))
    assert is_digits(open_data(tmp_path / "digits"))


def test_other_things_in_the_way_are_named(tmp_path: Path, digits: DataFolder) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file: is not a folder"):
        prepare_digits(tmp_path / "file")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    with pytest.raises(DataError, match="other: does not hold the digits"):
        prepare_digits(tmp_path / "other")
    assert (tmp_path / "other" / "thesis.txt").exists()
    with pytest.raises(DataError, match="cannot be written there"):
        prepare_digits(tmp_path / "file" / "digits")


def test_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "digits").mkdir()
    assert is_digits(open_data(prepare_digits(tmp_path / "digits")))


def test_lost_images_are_noticed(tmp_path: Path) -> None:
    folder = prepare_digits(tmp_path / "digits")
    next((folder / "train" / "4").iterdir()).unlink()
    with pytest.raises(DataError, match="found 1796 images"):
        prepare_digits(folder)
