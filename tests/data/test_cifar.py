import dataclasses
import gzip
import io
import pickle
import random
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spos.data import cifar
from spos.data.cifar import VERSIONS, Version, unpack_cifar
from spos.data.folder import DataFolder
from spos.errors import DataError

EACH = {"train": 3, "test": 2}  # images of a class, in archives that are small but for that whole
PAGE = "www.cs.toronto.edu/~kriz/cifar.html"

Files = dict[str, bytes]


def shrink(version: Version) -> Version:
    counts = Counter(part for part, _ in version.files.values())
    each = {part: EACH[part] * version.num_classes // counts[part] for part in counts}
    return dataclasses.replace(
        version, files={name: (part, each[part]) for name, (part, _) in version.files.items()}
    )


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> tuple[Version, ...]:
    versions = tuple(map(shrink, VERSIONS))
    monkeypatch.setattr(cifar, "VERSIONS", versions)
    return versions


def draw_files(version: Version) -> Files:
    """Files of random images, shuffled over the batches of a part."""
    rng = np.random.default_rng(0)
    names = [f"class_{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(version.num_classes)]
    # The authors' file of names ends with an empty line.
    files = {version.names: ("\n".join(names) + "\n\n").encode()}
    for part, count in EACH.items():
        labels = iter(rng.permutation(np.repeat(np.arange(version.num_classes), count)).tolist())
        for file, (each, size) in version.files.items():
            if each == part:
                files[file] = b"".join(
                    bytes([7] * (version.label_bytes - 1) + [next(labels)]) + rng.bytes(3072)
                    for _ in range(size)
                )
    return files


def pack(path: Path, folder: str, files: Mapping[str, bytes], *, mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def make(tmp_path: Path, small: tuple[Version, ...]) -> Callable[..., Path]:
    """An archive of CIFAR-10 (0) or CIFAR-100 (1), with other files where they are given."""

    def make_archive(index: int = 0, changes: Mapping[str, bytes | None] | None = None) -> Path:
        files = {**draw_files(small[index]), **(changes or {})}
        kept = {name: data for name, data in files.items() if data is not None}
        return pack(tmp_path / "archive.tar.gz", small[index].folder, kept)

    return make_archive


def assert_same_images(data: DataFolder, version: Version, files: Files) -> None:
    names = files[version.names].decode().split()
    seen = 0
    for part, images in (("train", data.train), ("test", data.test)):
        assert Counter(images.labels) == dict.fromkeys(range(version.num_classes), EACH[part])
        for path in images.paths:
            label, _, file = path.partition("/")
            batch, _, number = Path(file).stem.rpartition("_")
            size = version.label_bytes + 3072
            record = files[f"{batch}.bin"][int(number) * size :][:size]
            assert names[record[version.label_bytes - 1]] == label
            assert version.files[f"{batch}.bin"][0] == part
            with Image.open(images.root / path) as image:
                assert (image.format, image.mode, image.size) == ("PNG", "RGB", (32, 32))
                planes = np.asarray(image).transpose(2, 0, 1)
            assert planes.tobytes() == record[version.label_bytes :]
            seen += 1
    assert seen == sum(count for _, count in version.files.values())


def test_formats_are_those_of_the_authors_page() -> None:
    ten, hundred = VERSIONS
    assert [ten.files[f"data_batch_{n}.bin"][1] * ten.image_bytes for n in range(1, 6)] == (
        [30_730_000] * 5
    )
    assert [ten.per_class("train"), ten.per_class("test")] == [5000, 1000]
    assert hundred.files["train.bin"][1] * hundred.image_bytes == 50_000 * 3074
    assert [hundred.per_class("train"), hundred.per_class("test")] == [500, 100]


@pytest.mark.parametrize("index", [0, 1])
def test_images_are_those_of_the_archive(
    tmp_path: Path, make: Callable[..., Path], small: tuple[Version, ...], index: int
) -> None:
    data = unpack_cifar(make(index), tmp_path / "data" / "set")
    assert_same_images(data, small[index], draw_files(small[index]))
    assert {each.name for each in (tmp_path / "data").iterdir()} == {"set", ".set.lock"}
    before = (tmp_path / "data" / "set").stat().st_mtime_ns
    unpack_cifar(tmp_path / "archive.tar.gz", tmp_path / "data" / "set")
    assert (tmp_path / "data" / "set").stat().st_mtime_ns == before


def test_order_and_form_of_the_archive_do_not_matter(
    tmp_path: Path, small: tuple[Version, ...]
) -> None:
    files = draw_files(small[0])
    backwards = {"readme.html": b"<html>", **dict(reversed(files.items()))}
    path = pack(tmp_path / "x.tar", "./cifar-10-batches-bin", backwards, mode="w")
    assert_same_images(unpack_cifar(path, tmp_path / "set"), small[0], files)


@pytest.mark.parametrize("folder", ["cifar-10-batches-py", "cifar-100-python"])
def test_python_version_is_not_read(tmp_path: Path, folder: str) -> None:
    path = pack(tmp_path / "x.tar.gz", folder, {"meta": pickle.dumps({}), "train": b"x"})
    with pytest.raises(DataError, match=rf"Python version.*pickles.*cifar-10-binary.*{PAGE}"):
        unpack_cifar(path, tmp_path / "set")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_batch_3.bin": None}, "data_batch_3.bin is missing, it should have 18,438"),
        ({"test_batch.bin": b"x" * 3073}, "test_batch.bin has 3,073 bytes, it should have 61,460"),
        ({"test_batch.bin": b"\x0a" * 61_460}, "is damaged.* 2 images of each of 10 classes in t"),
        ({"test_batch.bin": b"\x03" * 61_460}, "is damaged.* 2 images of each of 10 classes in t"),
        ({"batches.meta.txt": None}, "batches.meta.txt does not name 10 classes"),
        ({"batches.meta.txt": b"a b c"}, "batches.meta.txt does not name 10 classes"),
        ({"batches.meta.txt": b"a b c d e f g h i i"}, "batches.meta.txt does not name 10"),
        ({"batches.meta.txt": b"a b c d e f g h i ../../x"}, "batches.meta.txt does not name 10"),
        ({"batches.meta.txt": b"a" * 2**17}, "batches.meta.txt does not name 10 classes"),
    ],
)
def test_other_content_is_refused(
    tmp_path: Path, make: Callable[..., Path], changes: dict[str, bytes | None], message: str
) -> None:
    path = make(0, changes)
    with pytest.raises(DataError, match=message) as caught:
        unpack_cifar(path, tmp_path / "set")
    assert str(path) in str(caught.value) and PAGE in str(caught.value)
    assert {each.name for each in tmp_path.iterdir()} <= {"archive.tar.gz", ".set.lock"}


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<html>Not found</html>")
    (tmp_path / "empty.tar.gz").touch()
    pack(tmp_path / "other.tar.gz", "photos", {"1.jpg": b"x"})
    pack(tmp_path / "many.tar.gz", "photos", {f"{n}.jpg": b"" for n in range(1000)})
    for name, message in (
        ("page.html", "page.html: cannot be read .not a tar archive"),
        ("empty.tar.gz", "empty.tar.gz: cannot be read .not a tar archive"),
        ("other.tar.gz", "other.tar.gz: is another archive"),
        ("many.tar.gz", "many.tar.gz: is another archive"),
        ("gone.tar.gz", "gone.tar.gz: cannot be read .No such file"),
        ("", "cannot be read .Is a directory"),
    ):
        with pytest.raises(DataError, match=f"{message}.*{PAGE}"):
            unpack_cifar(tmp_path / name, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_absurd_size_in_a_header_is_refused(tmp_path: Path, make: Callable[..., Path]) -> None:
    data = bytearray(gzip.decompress(make().read_bytes()))
    data[124:136] = b"\x80" + b"\x7f" * 11  # in base 256
    data[148:156] = b"%06o\0 " % (256 + sum(data[:148]) + sum(data[156:512]))
    (tmp_path / "absurd.tar").write_bytes(data)
    with pytest.raises(DataError, match="absurd.tar: cannot be read"):
        unpack_cifar(tmp_path / "absurd.tar", tmp_path / "set")


@pytest.mark.parametrize("is_compressed", [True, False])
def test_damaged_archives_are_refused_by_name(
    tmp_path: Path, make: Callable[..., Path], is_compressed: bool
) -> None:
    whole = make().read_bytes() if is_compressed else gzip.decompress(make().read_bytes())
    path, draw, refused = tmp_path / "damaged.tar", random.Random(0), 0
    for _ in range(40):
        data = bytearray(whole)
        if draw.random() < 0.5:
            del data[draw.randrange(len(data)) :]
        else:
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        try:
            unpack_cifar(path, tmp_path / "set")
        except DataError as error:
            refused += 1
            assert str(path) in str(error)
            assert not (tmp_path / "set").exists()
        shutil.rmtree(tmp_path / "set", ignore_errors=True)
    # What is not compressed has no checksum: a flipped bit of a pixel is not noticed, a cut is.
    assert refused > (36 if is_compressed else 12)


def test_nothing_is_written_over_something_else(tmp_path: Path, make: Callable[..., Path]) -> None:
    path = make()
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "thesis.txt").touch()
    with pytest.raises(DataError, match="set: does not hold CIFAR-10 .*name another folder"):
        unpack_cifar(path, tmp_path / "set")
    unpack_cifar(path, tmp_path / "ten")
    with pytest.raises(DataError, match="ten: does not hold CIFAR-100 .*holds other images"):
        unpack_cifar(make(1), tmp_path / "ten")


def test_interrupted_work_leaves_nothing_and_is_repeated(
    tmp_path: Path, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, save, left = make(), Image.Image.save, 40

    def fail_late(image: Image.Image, target: Path) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(28, "No space left on device")
        save(image, target)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", fail_late)
        with pytest.raises(DataError, match="set: CIFAR-10 cannot be written there .No space left"):
            unpack_cifar(path, tmp_path / "set")
    assert {each.name for each in tmp_path.iterdir()} == {"archive.tar.gz", ".set.lock"}
    assert len(unpack_cifar(path, tmp_path / "set").train) == 30
