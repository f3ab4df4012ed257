import json
from collections.abc import Callable
from pathlib import Path

import pytest

from spos.__main__ import main
from spos.data.folder import DataFolder, ImageSet, open_data
from spos.data.split import load_split
from spos.errors import ConfigError, DataError


@pytest.fixture
def data_dir(make_images: Callable[..., ImageSet]) -> Path:
    """A data set of four training images in each of two classes."""
    images = make_images(4).root
    root = images.parent / "set"
    root.mkdir()
    images.rename(root / "train")
    (root / "test").symlink_to(root / "train")
    return root


def test_digits_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "digits", str(tmp_path / "here")]) == 0
    assert len(open_data(tmp_path / "here").test) == 300
    assert str(tmp_path / "here") in capsys.readouterr().out


def test_split_is_written(
    tmp_path: Path, digits: DataFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "held.json"
    folder = str(digits.train.root.parent)
    flags = ["--per-class", "10", "--seed", "3", "--output", str(output)]
    assert main(["data", "split", folder, *flags]) == 0
    split = load_split(output)
    assert (len(split.held_out), split.per_class, split.seed) == (100, 10, 3)
    assert "100 images held out, 1,397 left to train on, 10 classes" in capsys.readouterr().out


def test_split_goes_beside_the_images(data_dir: Path) -> None:
    assert main(["data", "split", str(data_dir), "--per-class", "1"]) == 0
    assert len(load_split(data_dir / "split.json").held_out) == 2


def test_split_refuses_what_it_cannot_do(tmp_path: Path, digits: DataFolder) -> None:
    folder = str(digits.train.root.parent)
    with pytest.raises(DataError, match="at most 71"):
        main(["data", "split", folder, "--per-class", "72", "--output", str(tmp_path / "x.json")])
    with pytest.raises(DataError, match="is not a folder"):
        main(["data", "split", str(tmp_path / "missing")])
    with pytest.raises(ConfigError, match="cannot be written"):
        main(["data", "split", folder, "--output", str(tmp_path / "missing" / "x.json")])
    assert list(tmp_path.iterdir()) == []


def test_split_of_small_classes_says_what_it_holds_out(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "split", str(data_dir)]) == 0
    assert "2 images held out (1 of each class, a fifth of the smallest)" in capsys.readouterr().out
    with pytest.raises(DataError, match="cannot hold out 50 .*at most 1"):
        main(["data", "split", str(data_dir), "--per-class", "50"])
    with pytest.raises(DataError, match="cannot hold out 0 "):
        main(["data", "split", str(data_dir), "--per-class", "0"])


def test_own_images_are_arranged(
    make_images: Callable[..., ImageSet], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = make_images(10).root, tmp_path / "set"
    words = ["data", "arrange", str(source), str(target), "--test", "0.3", "--seed", "5"]
    assert main(words) == 0
    said = f"{target}: 14 images to train on and 6 to test, 2 classes\n"
    assert capsys.readouterr().out == said
    assert main(words) == 0
    assert capsys.readouterr().out == said
    assert main(["data", "check", str(target)]) == 0
    assert main(["data", "split", str(target)]) == 0
    assert "2 images held out (1 of each class" in capsys.readouterr().out
    assert main(["data", "arrange", str(source), str(tmp_path / "copy"), "--copy"]) == 0
    assert not any(path.is_symlink() for path in (tmp_path / "copy").rglob("*"))


def test_archive_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-python.tar.gz").touch()
    words = [str(tmp_path / name) for name in ("cifar-10-python.tar.gz", "cifar10")]
    with pytest.raises(DataError, match="expected cifar-10-binary.tar.gz or cifar-100-binary"):
        main(["data", "cifar", *words])


def test_check_passes_whole_images(
    make_images: Callable[..., ImageSet], capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_images(3).root
    assert main(["data", "check", str(root)]) == 0
    assert capsys.readouterr().out == "6 images checked, 0 cannot be decoded\n"


def test_check_lists_what_it_finds(
    make_images: Callable[..., ImageSet], capsys: pytest.CaptureFixture[str]
) -> None:
    images = make_images(3)
    (images.root / images.paths[4]).write_bytes(b"")
    assert main(["data", "check", str(images.root), "--workers", "1"]) == 1
    out = capsys.readouterr().out
    assert f"{images.root / images.paths[4]}: the file is empty\n" in out
    assert "6 images checked, 1 cannot be decoded" in out
    assert main(["data", "check", str(images.root), "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {
        "checked": 6,
        "undecodable": [{"path": images.paths[4], "reason": "the file is empty"}],
        "passed_over": {},
        "gaps": [],
    }


def test_check_refuses_nonsense(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        main(["data", "check", str(tmp_path / "missing")])
    with pytest.raises(ConfigError, match="--workers 0"):
        main(["data", "check", str(tmp_path), "--workers", "0"])


def test_check_names_what_training_passes_over_or_misses(
    make_images: Callable[..., ImageSet], capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_images(3).root
    for name in ("class_0/a.gif", "class_0/b.GIF", "class_1/c.heic", "class_1/noted", "split.json"):
        (root / name).touch()
    assert main(["data", "check", str(root)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{root}: .gif is not read, 2 passed over: class_0/a.gif, class_0/b.GIF",
        f"{root}: .heic is not read, 1 passed over: class_1/c.heic",
        f"{root}: a name without extension is not read, 1 passed over: class_1/noted",
        "6 images checked, 0 cannot be decoded",
    ]
    (root / "class_2").mkdir()
    assert main(["data", "check", str(root)]) == 1
    gap = f"{root / 'class_2'}: a class folder without images"
    assert gap in capsys.readouterr().out
    assert main(["data", "check", str(root), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["gaps"] == [gap] and found["passed_over"][".heic"] == ["class_1/c.heic"]
