import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spos.data.folder import DataFolder, ImageSet, scan_folder
from spos.data.split import (
    Split,
    apply_split,
    balanced_subset,
    default_per_class,
    divide_classes,
    load_split,
    make_split,
    save_split,
)
from spos.errors import ConfigError, DataError


def image_set(*sizes: int) -> ImageSet:
    """An image set without files, with ``sizes[k]`` images in class k."""
    return ImageSet(
        root=Path("data/train"),
        paths=tuple(f"c{k}/{n:05d}.jpg" for k, size in enumerate(sizes) for n in range(size)),
        labels=tuple(k for k, size in enumerate(sizes) for _ in range(size)),
        classes=tuple(f"c{k}" for k in range(len(sizes))),
    )


@given(
    sizes=st.lists(st.integers(3, 40), min_size=1, max_size=8),
    seed=st.integers(0, 2**64 - 1),
    data=st.data(),
)
def test_every_class_gives_as_many(sizes: list[int], seed: int, data: st.DataObject) -> None:
    train = image_set(*sizes)
    per_class = data.draw(st.integers(1, (min(sizes) - 1) // 2))
    split = make_split(train, per_class=per_class, seed=seed)
    training, held_out = apply_split(train, split)
    assert list(split.held_out) == sorted(split.held_out)
    assert Counter(held_out.labels) == dict.fromkeys(range(len(sizes)), per_class)
    assert sorted(training.paths + held_out.paths) == list(train.paths)
    assert held_out.paths == split.held_out


def test_split_is_a_function_of_the_seed() -> None:
    train = image_set(500, 500)
    assert make_split(train, seed=3) == make_split(train, seed=3)
    assert make_split(train, seed=3).held_out != make_split(train, seed=4).held_out


def test_split_is_not_the_first_by_name() -> None:
    train = image_set(1000)
    numbers = [int(path[3:8]) for path in make_split(train, per_class=400).held_out]
    assert 440 < sum(numbers) / len(numbers) < 560  # the mean of all is 499.5, its deviation 11


def test_split_stays_the_same_for_ever() -> None:
    held_out = make_split(image_set(9, 7), per_class=2, seed=1).held_out
    assert held_out == ("c0/00003.jpg", "c0/00005.jpg", "c1/00001.jpg", "c1/00003.jpg")


@pytest.mark.parametrize("per_class", [0, -1, 5, 10, 1000])
def test_too_many_held_out_names_the_largest(per_class: int) -> None:
    with pytest.raises(DataError, match=r"'c1' has 10.*at most 4"):
        make_split(image_set(30, 10), per_class=per_class)


@pytest.mark.parametrize("size", [1, 2])
def test_class_of_two_images_cannot_be_split(size: int) -> None:
    with pytest.raises(DataError, match=f"'c1' has {size}, and it takes 3"):
        make_split(image_set(30, size), per_class=1)


@pytest.mark.parametrize("wanted", [25, 50])
def test_default_is_what_it_was_wherever_that_was_possible(wanted: int) -> None:
    for size in range(1, 400):
        train = image_set(400, size)
        number = default_per_class(train, wanted=wanted)
        try:
            split = make_split(train, per_class=wanted)
        except DataError:
            assert number == max(1, size // 5)
        else:
            assert number == wanted == split.per_class


@pytest.mark.parametrize(
    ("size", "number"), [(3, 1), (9, 1), (10, 2), (30, 6), (100, 20), (101, 50)]
)
def test_small_classes_hold_out_a_fifth(size: int, number: int) -> None:
    assert default_per_class(image_set(1000, size)) == number
    assert len(make_split(image_set(1000, size), per_class=number).held_out) == 2 * number


@given(
    sizes=st.lists(st.integers(2, 60), min_size=1, max_size=8),
    share=st.floats(0.001, 0.999),
    seed=st.integers(0, 2**64 - 1),
)
def test_every_class_is_divided_alike(sizes: list[int], share: float, seed: int) -> None:
    images = image_set(*sizes)
    train, test = divide_classes(images, share=share, seed=seed)
    assert sorted(train.paths + test.paths) == list(images.paths)
    assert train.classes == test.classes == images.classes
    counts = Counter(test.labels)
    for label, size in enumerate(sizes):
        assert 1 <= counts[label] <= size - 1
        assert abs(counts[label] - share * size) <= 1
    assert (train, test) == divide_classes(images, share=share, seed=seed)


def test_division_stays_the_same_for_ever() -> None:
    _, test = divide_classes(image_set(9, 7), share=0.3, seed=1)
    assert test.paths == (
        "c0/00003.jpg", "c0/00006.jpg", "c0/00007.jpg", "c1/00004.jpg", "c1/00005.jpg",
    )  # fmt: skip


def test_split_survives_its_file(tmp_path: Path, digits: DataFolder) -> None:
    split = make_split(digits.train, per_class=7, seed=2**64 - 1)
    save_split(tmp_path / "split.json", split)
    assert load_split(tmp_path / "split.json") == split


def test_split_of_names_that_are_not_utf8_survives_its_file(tmp_path: Path) -> None:
    names = [b"th\xe9/caf\xe9.jpg", b"th\xe9/plain.jpg", b"th\xe9/z\xe9.jpg"]
    for name in (*names, b"a/0.jpg", b"a/1.jpg", b"a/2.jpg"):
        path = tmp_path / "train" / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    split = make_split(scan_folder(tmp_path / "train"), per_class=1)
    save_split(tmp_path / "split.json", split)
    assert load_split(tmp_path / "split.json") == split


def test_split_file_has_the_documented_form(tmp_path: Path) -> None:
    split = Split(("a/1.jpg", "b/2.jpg"), classes=("a", "b"), per_class=1, seed=5)
    save_split(tmp_path / "split.json", split)
    assert json.loads((tmp_path / "split.json").read_text()) == {
        "version": 1,
        "seed": 5,
        "per_class": 1,
        "classes": ["a", "b"],
        "held_out": ["a/1.jpg", "b/2.jpg"],
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "is not a split of version 1"),
        ({"extra": 1}, "is not a split of version 1"),
        ({"seed": "0"}, "must be integers"),
        ({"per_class": True}, "must be integers"),
        ({"classes": []}, "classes: expected a list"),
        ({"classes": ["b", "a"]}, "classes: expected sorted"),
        ({"held_out": [1]}, "held_out: expected a list"),
        ({"held_out": ["a/1.jpg", "a/1.jpg"]}, "held_out: expected sorted"),
        ({"held_out": ["a/../../secret.jpg"]}, "not a relative path"),
        ({"held_out": ["../a/1.jpg"]}, "not a relative path"),
        ({"held_out": ["/etc/passwd"]}, "not a relative path"),
        ({"held_out": ["a//1.jpg"]}, "not a relative path"),
        ({"held_out": ["a/1\0.jpg"]}, "not a relative path"),
        ({"held_out": ["z/1.jpg"]}, "not a relative path"),
        ({"held_out": ["a"]}, "not a relative path"),
    ],
)
def test_malformed_files_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    value = {"version": 1, "seed": 0, "per_class": 1, "classes": ["a"], "held_out": ["a/1.jpg"]}
    path = tmp_path / "split.json"
    path.write_text(json.dumps({**value, **change}))
    with pytest.raises(DataError, match=message) as caught:
        load_split(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"version": 1}', "\x00" * 8])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "split.json").write_text(text)
    with pytest.raises(DataError):
        load_split(tmp_path / "split.json")


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        load_split(tmp_path / "split.json")


def test_split_of_another_data_set_is_refused() -> None:
    split = make_split(image_set(9, 9), per_class=2)
    with pytest.raises(DataError, match="2 classes .* has 3"):
        apply_split(image_set(9, 9, 9), split)


def test_images_that_are_gone_are_named() -> None:
    split = Split(("c0/00001.jpg", "c1/99999.jpg"), classes=("c0", "c1"), per_class=1, seed=0)
    with pytest.raises(DataError, match="1 images that are not in .* 'c1/99999.jpg'"):
        apply_split(image_set(9, 9), split)


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_subset_is_as_even_as_possible(sizes: list[int], seed: int, data: st.DataObject) -> None:
    images = image_set(*sizes)
    count = data.draw(st.integers(1, len(images)))
    subset = balanced_subset(images, count=count, seed=seed)
    assert len(subset) == len(set(subset.paths)) == count
    counts = Counter(subset.labels)
    unexhausted = [counts[k] for k, size in enumerate(sizes) if counts[k] < size]
    assert max(counts.values()) - min(unexhausted, default=max(counts.values())) <= 1


def test_every_stretch_of_a_subset_is_balanced() -> None:
    subset = balanced_subset(image_set(*[50] * 10), count=200, seed=0)
    for start in range(0, 200, 20):
        assert set(Counter(subset.labels[start : start + 20]).values()) == {2}
    assert subset.labels[:10] != subset.labels[10:20]  # the classes' order varies


def test_subset_is_a_function_of_the_seed() -> None:
    images = image_set(50, 50)
    assert balanced_subset(images, count=20, seed=1) == balanced_subset(images, count=20, seed=1)
    assert balanced_subset(images, count=20, seed=1) != balanced_subset(images, count=20, seed=2)


@pytest.mark.parametrize("count", [0, 101])
def test_impossible_subsets_are_refused(count: int) -> None:
    with pytest.raises(DataError, match="1 to 100"):
        balanced_subset(image_set(50, 50), count=count, seed=0)


def test_bad_seeds_are_refused() -> None:
    with pytest.raises(ConfigError, match="seed"):
        make_split(image_set(9), per_class=1, seed=-1)
