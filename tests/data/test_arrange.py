import contextlib
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from spos.data.arrange import arrange_images
from spos.data.folder import DataFolder, ImageSet, open_data, scan_folder
from spos.errors import ConfigError, DataError

# Names with spaces, of other scripts, and folders below a class.
NAMES = {"red kite": "{:02d}.jpg", "Mäuse": "a b/{:02d}.JPEG", "猫": "deep/er/ñ {:02d}.png"}


def write_files(root: Path, classes: dict[str, str] | None = None, *, count: int = 10) -> Path:
    """``count`` files in each class, which are no images, each with its path as content."""
    for name, pattern in (classes or NAMES).items():
        for number in range(count):
            path = root / name / pattern.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(str(path.relative_to(root)))
    return root


def read_files(data: DataFolder) -> list[str]:
    """The content of every file, which is checked to be in the place that it names."""
    for images in (data.train, data.test):
        assert [(images.root / path).read_text() for path in images.paths] == list(images.paths)
    return sorted(data.train.paths + data.test.paths)


def listing(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_every_file_is_linked_once(tmp_path: Path) -> None:
    source = write_files(tmp_path / "my photos")
    data = arrange_images(source, tmp_path / "data" / "set")
    assert read_files(data) == sorted(scan_folder(source).paths)
    assert Counter(data.test.labels) == {0: 2, 1: 2, 2: 2}  # 15 % of 10, to the nearest even number
    assert data.train.classes == data.test.classes == ("Mäuse", "red kite", "猫")
    assert all((data.train.root / path).is_symlink() for path in data.train.paths)
    assert {each.name for each in (tmp_path / "data").iterdir()} == {"set", ".set.lock"}


def test_real_images_are_left_as_they_are(
    make_images: Callable[..., ImageSet], tmp_path: Path
) -> None:
    images = make_images(7)
    data = arrange_images(images.root, tmp_path / "set", test_share=0.3, copy=True)
    for part in (data.train, data.test):
        for path in part.paths:
            assert (part.root / path).read_bytes() == (images.root / path).read_bytes()
            assert not (part.root / path).is_symlink()
    assert (len(data.train), len(data.test)) == (10, 4)


def test_links_hold_when_both_folders_move(tmp_path: Path) -> None:
    source = write_files(tmp_path / "a" / "photos")
    (tmp_path / "link").symlink_to(tmp_path / "a")  # the place is seen through a link as well
    for _ in ("made", "found"):
        arrange_images(tmp_path / "link" / "photos", tmp_path / "link" / "sets" / "x")
    names = scan_folder(source).paths
    (tmp_path / "a").rename(tmp_path / "b")
    assert read_files(open_data(tmp_path / "b" / "sets" / "x")) == sorted(names)


def test_training_images_without_test_images_are_divided(tmp_path: Path) -> None:
    source = write_files(tmp_path / "photos" / "train")
    (tmp_path / "photos" / "labels").mkdir()
    data = arrange_images(tmp_path / "photos", tmp_path / "set")
    assert read_files(data) == sorted(scan_folder(source).paths)


def test_train_may_be_the_name_of_a_class(tmp_path: Path) -> None:
    source = write_files(tmp_path / "vehicles", {"train": "{}.jpg", "bus": "{}.jpg"})
    assert arrange_images(source, tmp_path / "set").train.classes == ("bus", "train")


def test_order_of_the_file_system_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_files(tmp_path / "photos")
    first = arrange_images(source, tmp_path / "first", seed=3)
    scan = os.scandir
    monkeypatch.setattr(
        os, "scandir", lambda path: contextlib.nullcontext(reversed(sorted(scan(path), key=str)))
    )
    second = arrange_images(source, tmp_path / "second", seed=3)
    assert first.test.paths == second.test.paths
    assert arrange_images(source, tmp_path / "third", seed=4).test.paths != first.test.paths


def test_what_is_there_is_left_alone(tmp_path: Path) -> None:
    source = write_files(tmp_path / "photos")
    arrange_images(source, tmp_path / "set")
    (tmp_path / "set" / "split.json").touch()
    before = (tmp_path / "set").stat().st_mtime_ns
    arrange_images(source, tmp_path / "set")
    assert (tmp_path / "set").stat().st_mtime_ns == before
    assert (tmp_path / "set" / "split.json").exists()


def test_nothing_is_written_over_something_else(tmp_path: Path) -> None:
    source = write_files(tmp_path / "photos")
    arrange_images(source, tmp_path / "set")
    before = listing(tmp_path)
    for changes in ({"seed": 1}, {"test_share": 0.5}, {"copy": True}):
        with pytest.raises(DataError, match="set: does not hold the images of .*remove it, or"):
            arrange_images(source, tmp_path / "set", **changes)
    copied = write_files(tmp_path / "other" / "photos")
    with pytest.raises(DataError, match="is not a link of .*other/photos"):
        arrange_images(copied, tmp_path / "set")
    shutil.rmtree(tmp_path / "other")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter 1.txt").touch()
    with pytest.raises(DataError, match="thesis: does not hold"):
        arrange_images(source, tmp_path / "thesis")
    with pytest.raises(DataError, match="is not a folder"):
        arrange_images(source, tmp_path / "thesis" / "chapter 1.txt")
    assert listing(tmp_path) == sorted([*before, "thesis", "thesis/chapter 1.txt"])


@pytest.mark.parametrize("problem", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("copy", [False, True])
def test_interrupted_work_leaves_nothing_and_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: type[BaseException], copy: bool
) -> None:
    source = write_files(tmp_path / "photos")
    left = 20

    def fail_late(*arguments: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise problem

    module, name = (shutil, "copyfile") if copy else (os, "symlink")
    with monkeypatch.context() as patch:
        patch.setattr(module, name, fail_late)
        with pytest.raises((KeyboardInterrupt, DataError)):
            arrange_images(source, tmp_path / "out" / "set", copy=copy)
    assert listing(tmp_path / "out") == [".set.lock"]
    assert len(read_files(arrange_images(source, tmp_path / "out" / "set", copy=copy))) == 30


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    source = write_files(tmp_path / "photos")
    write_files(tmp_path / ".set.partial" / "train", {"half": "{}.jpg"})
    data = arrange_images(source, tmp_path / "set")
    assert "half" not in data.train.classes
    assert not (tmp_path / ".set.partial").exists()


def test_empty_folder_behind_a_link_is_filled(tmp_path: Path) -> None:
    source = write_files(tmp_path / "photos")
    (tmp_path / "disk" / "set").mkdir(parents=True)
    (tmp_path / "set").symlink_to(tmp_path / "disk" / "set")
    assert len(read_files(arrange_images(source, tmp_path / "set"))) == 30
    assert (tmp_path / "set").is_symlink()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["photos/a/1.jpg", "photos/a/2.jpg", "photos/b/1.jpg"], "photos/b: has one image, but a"),
        (["photos/a/1.jpg", "photos/a/2.jpg"], "photos: has a single class folder, 'a'"),
        (["photos/1.jpg"], "photos: has no class folders"),
        (["photos/a/1.jpg", "photos/a/2.jpg", "photos/b/1.txt"], "b: a class folder without"),
        (
            ["photos/train/a/1.jpg", "photos/val/a/1.jpg"],
            r"has train/ and val/ already.*--data-dir",
        ),
        (["photos/train/a/1.jpg", "photos/test/a/1.jpg"], "has train/ and test/ already"),
        (["elsewhere/1.jpg"], "photos: is not a folder"),
    ],
)
def test_other_layouts_are_refused(tmp_path: Path, files: list[str], message: str) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    before = listing(tmp_path)
    with pytest.raises(DataError, match=message):
        arrange_images(tmp_path / "photos", tmp_path / "set")
    assert listing(tmp_path) == before


@pytest.mark.parametrize("place", ["photos", "photos/set", "link/set"])
def test_data_set_inside_the_classes_is_refused(tmp_path: Path, place: str) -> None:
    source = write_files(tmp_path / "photos")
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(DataError, match="lies in .*photos, whose folders are the classes"):
        arrange_images(source, tmp_path / place)


@pytest.mark.parametrize("share", [0, 1, -0.1, 15, float("nan")])
def test_share_that_is_none_is_refused(tmp_path: Path, share: float) -> None:
    source = write_files(tmp_path / "photos")
    with pytest.raises(ConfigError, match="--test .*between 0 and 1"):
        arrange_images(source, tmp_path / "set", test_share=share)


def test_file_that_cannot_be_copied_is_named(tmp_path: Path) -> None:
    source = write_files(tmp_path / "photos")
    (source / "猫" / "gone.jpg").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"猫/gone.jpg: cannot be copied .*No such file"):
        arrange_images(source, tmp_path / "set", copy=True)
    assert not (tmp_path / "set").exists()
