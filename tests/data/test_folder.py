from pathlib import Path

import pytest
import torchvision

from spos.data.folder import (
    IMAGE_EXTENSIONS,
    names_id,
    open_data,
    open_test_images,
    scan_folder,
    select_images,
)
from spos.errors import DataError


def touch(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def test_classes_and_files_are_sorted(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.jpg", "b/10.PNG", "a/x.JPEG", "a/deep/er.webp", "a/note.txt", "C/1.bmp")
    images = scan_folder(tmp_path)
    assert images.classes == ("C", "a", "b")
    assert images.paths == ("C/1.bmp", "a/deep/er.webp", "a/x.JPEG", "b/10.PNG", "b/2.jpg")
    assert images.labels == (0, 1, 1, 2, 2)
    assert len(images) == 5


def test_hidden_names_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "a/._1.jpg", ".ipynb_checkpoints/x.jpg", "stray.jpg")
    assert scan_folder(tmp_path).paths == ("a/1.jpg",)


def test_linked_class_folders_are_followed(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/1.jpg", "set/b/2.jpg")
    (tmp_path / "set" / "a").symlink_to(tmp_path / "elsewhere")
    assert scan_folder(tmp_path / "set").paths == ("a/1.jpg", "b/2.jpg")


def test_same_images_as_torchvision(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{c}/{i}{e}" for c in "zab" for i, e in enumerate(IMAGE_EXTENSIONS)))
    theirs = torchvision.datasets.ImageFolder(str(tmp_path))
    ours = scan_folder(tmp_path)
    assert list(ours.classes) == theirs.classes
    assert [(str(tmp_path / p), n) for p, n in zip(ours.paths, ours.labels, strict=True)] == (
        theirs.samples
    )


def test_val_is_the_test_set(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "test/a/t.jpg", "test/b/t.jpg")
    assert open_data(tmp_path).test.paths == ("a/t.jpg", "b/t.jpg")
    touch(tmp_path, "val/a/v.jpg", "val/b/v.jpg")
    data = open_data(tmp_path)
    assert data.test.paths == ("a/v.jpg", "b/v.jpg")
    assert data.train.root == tmp_path / "train"
    assert data.name == tmp_path.name


def test_test_images_need_no_training_images(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "b/1.jpg")
    assert open_test_images(tmp_path).paths == ("a/1.jpg", "b/1.jpg")
    for name in ("test", "val"):  # the latter counts, if both are there
        touch(tmp_path, f"{name}/c/{name}.jpg")
        assert open_test_images(tmp_path).paths == (f"c/{name}.jpg",)
    with pytest.raises(DataError, match="gone: is not a folder"):
        open_test_images(tmp_path / "gone")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "is not a folder"),
        (["val/a/1.jpg"], "has no train/"),
        (["a/1.jpg"], "has no train/.*`python -m spos data arrange .*set NEW` makes one"),
        (["train/a/1.jpg"], "has no val/<class>/.*`python -m spos data arrange .*set NEW`"),
        (["train/1.jpg", "val/a/1.jpg"], "train: has no class folders"),
        (["train/a/1.jpg", "train/b/1.txt", "val/a/1.jpg"], "b: a class folder without images"),
        (["train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg"], "only in training: b"),
        (["train/a/1.jpg", "val/a/1.jpg", "val/z/1.jpg"], "only in test: z"),
    ],
)
def test_malformed_folders_are_refused(tmp_path: Path, files: list[str], message: str) -> None:
    touch(tmp_path / "set", *files)
    with pytest.raises(DataError, match=message) as caught:
        open_data(tmp_path / "set")
    assert str(tmp_path / "set") in str(caught.value)


def test_selection_keeps_order_and_classes(tmp_path: Path) -> None:
    images = scan_folder(touch(tmp_path, "a/1.jpg", "a/2.jpg", "b/3.jpg"))
    chosen = select_images(images, [2, 0])
    assert chosen.paths == ("b/3.jpg", "a/1.jpg")
    assert chosen.labels == (1, 0)
    assert chosen.classes == images.classes


def test_link_to_itself_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg")
    for name in ("a/loop.jpg", "b"):
        link = tmp_path / name
        link.symlink_to(link)
        with pytest.raises(DataError, match=f"{link}: cannot be followed .*the link"):
            scan_folder(tmp_path)
        link.unlink()


def test_names_tell_files_and_classes_apart(tmp_path: Path) -> None:
    def id_of(*files: str) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        return names_id(scan_folder(touch(folder, *files)))

    names = ("a/1.jpg", "a/2.jpg", "b/3.jpg", "b/4.jpg")
    assert id_of(*names) == id_of(*reversed(names))
    others = (("a/1.jpg", "a/2.jpg", "b/3.jpg", "b/5.jpg"), ("a/1.jpg", "a/4.jpg", "b/2.jpg",
              "b/3.jpg"), names[1:])  # fmt: skip
    assert len({id_of(*each) for each in (names, *others)}) == 4
