import json
import logging
import os
from pathlib import Path

import pytest

from spos.data import folder as folder_module
from spos.data.folder import open_data, scan_folder
from spos.data.index import load_index
from spos.errors import DataError

LONG_AGO = 1_600_000_000


def settle(root: Path, *, seconds: int = LONG_AGO) -> None:
    """Make all folders look as if they had been changed last years ago."""
    for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
        os.utime(folder, (seconds, seconds))


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(folder_module, "INDEXED_IMAGES", 4)
    root = tmp_path / "set"
    for path in ("a/1.jpg", "a/deep/er/2.jpg", "b/\udcff odd\n.JPG", "b/4.jpg", "b/\u00e4.png"):
        (root / "train" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "train" / path).touch()
    for path in ("a/v.jpg", "b/v.jpg"):
        (root / "val" / path).parent.mkdir(parents=True)
        (root / "val" / path).touch()
    settle(root)
    return root


@pytest.fixture
def forbid_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("files were listed")

    monkeypatch.setattr(folder_module, "find_images", refuse)


def test_second_process_lists_no_files(
    data_dir: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_data(data_dir).train
    assert first == scan_folder(data_dir / "train")
    assert not (data_dir / ".spos-val.json").exists()  # too few images
    request.getfixturevalue("forbid_listing")
    assert scan_folder(data_dir / "train", indexes=[data_dir / ".spos-train.json"]) == first
    with pytest.raises(AssertionError, match="files were listed"):
        scan_folder(data_dir / "train")


@pytest.mark.parametrize("change", ["add", "remove", "add deep", "add class", "rename"])
def test_changed_folders_are_listed_again(data_dir: Path, change: str) -> None:
    open_data(data_dir)
    train = data_dir / "train"
    if change == "add":
        (train / "b" / "new.jpg").touch()
    elif change == "remove":
        (train / "b" / "4.jpg").unlink()
    elif change == "add deep":
        (train / "a" / "deep" / "er" / "3.jpg").touch()
    elif change == "add class":
        for part in ("train", "val"):
            (data_dir / part / "c").mkdir()
            (data_dir / part / "c" / "1.jpg").touch()
    else:
        (train / "b" / "4.jpg").rename(train / "b" / "5.jpg")
    expected = scan_folder(train)
    assert open_data(data_dir).train == expected
    settle(train, seconds=LONG_AGO + 1)
    assert open_data(data_dir).train == expected  # writes the index anew
    assert load_index(data_dir / ".spos-train.json").changed_ns == (LONG_AGO + 1) * 10**9


def test_fresh_folders_are_not_indexed(data_dir: Path) -> None:
    (data_dir / "train" / "a" / "9.jpg").touch()
    open_data(data_dir)
    assert not (data_dir / ".spos-train.json").exists()


def test_data_that_cannot_be_written_are_indexed_in_the_run(
    data_dir: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    save = folder_module.keep_index.__globals__["save_index"]

    def refuse(path: Path, listing: object) -> None:
        if path.parent == data_dir:
            raise PermissionError(13, "Permission denied")
        save(path, listing)

    monkeypatch.setitem(folder_module.keep_index.__globals__, "save_index", refuse)
    first = open_data(data_dir, index_dir=run_dir).train
    assert not (data_dir / ".spos-train.json").exists()
    assert open_data(data_dir).train == first  # nowhere to keep it: no error
    request.getfixturevalue("forbid_listing")
    again = scan_folder(data_dir / "train", indexes=[run_dir / ".spos-train.json"])
    assert again == first


@pytest.mark.parametrize(
    "damage",
    [
        "{",
        "[]",
        '{"version": 2, "changed_ns": 0, "classes": {}}',
        '{"version": 1, "changed_ns": 0, "classes": {}}',
        '{"version": 1, "changed_ns": 0, "classes": {"a": {"folders": {"": 0}, "files": ""}}}',
        '{"version": 1, "changed_ns": 0, "classes": {"a": {"folders": {}, "files": "x.jpg"}}}',
        '{"version": 1, "changed_ns": 0, "classes": {"a": {"folders": {"": "0"}, "files": "x"}}}',
    ],
)
def test_damaged_index_is_reported_and_made_again(
    data_dir: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected = open_data(data_dir).train
    index = data_dir / ".spos-train.json"
    whole = index.read_bytes()
    index.write_text(damage)
    with caplog.at_level(logging.WARNING, "spos.data.index"):
        assert open_data(data_dir).train == expected
    assert str(index) in caplog.text
    assert index.read_bytes() == whole


@pytest.mark.parametrize("name", ["../x.jpg", "/etc/x.jpg", "y/../../x.jpg", "a.jpg///x.jpg"])
@pytest.mark.parametrize("where", ["files", "folders", "classes"])
def test_index_names_nothing_outside_its_folder(tmp_path: Path, where: str, name: str) -> None:
    folders, files, label = {"": 0}, "1.jpg", "a"
    if where == "files":
        files += f"//{name}"
    elif where == "folders":
        folders[name] = 0
    else:
        label = name
    value = {
        "version": 1,
        "changed_ns": 0,
        "classes": {label: {"folders": folders, "files": files}},
    }
    path = tmp_path / "index.json"
    path.write_text(json.dumps(value))
    with pytest.raises(DataError, match="is not an index of version 1; remove it"):
        load_index(path)
