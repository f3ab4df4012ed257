"""CIFAR-10 and CIFAR-100 as class folders of PNG, from the binary versions of their archives.

Imports only `spos.errors` and the folder and making of folders of this package.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import lzma
import math
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from spos.data.folder import DataFolder, open_data, scan_folder
from spos.data.whole_folder import make_folder
from spos.errors import DataError

AUTHORS_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
_EXPECTED = f"expected cifar-10-binary.tar.gz or cifar-100-binary.tar.gz of {AUTHORS_PAGE}"
_PARTS = ("train", "test")
_SHAPE = (3, 32, 32)  # of an image's bytes: red, green and blue, each row by row
_MAX_MEMBERS = 100  # that are looked at; the archives have fewer than ten
_MAX_NAMES_BYTES = 2**16
_PYTHON_FOLDERS = ("cifar-10-batches-py", "cifar-100-python")
# Of a file that is no archive, or was cut or damaged: OSError includes those of gzip and bz2, and
# tarfile believes a size that no file has.
_READ_ERRORS = (
    OSError, EOFError, ValueError, OverflowError, tarfile.TarError, zlib.error, lzma.LZMAError,
)  # fmt: skip


@dataclass(frozen=True)
class Version:
    """What the archive of a data set has in which file.

    Attributes:
        title: the data set.
        folder: which has all files.
        names: the file with the names of the classes, one a line.
        num_classes: how many.
        label_bytes: before the pixels of each image; the last is the number of its class.
        files: file -> (``train`` or ``test``, how many images of all classes).
    """

    title: str
    folder: str
    names: str
    num_classes: int
    label_bytes: int
    files: Mapping[str, tuple[str, int]]

    @property
    def image_bytes(self) -> int:
        """Labels and pixels of one image."""
        return self.label_bytes + math.prod(_SHAPE)

    def per_class(self, part: str) -> int:
        """Images of each class in ``train`` or ``test``."""
        return sum(count for each, count in self.files.values() if each == part) // self.num_classes


# Krizhevsky 2009; the authors' page describes the formats.
VERSIONS = (
    Version(
        "CIFAR-10", "cifar-10-batches-bin", "batches.meta.txt", num_classes=10, label_bytes=1,
        files={
            **{f"data_batch_{number}.bin": ("train", 10_000) for number in range(1, 6)},
            "test_batch.bin": ("test", 10_000),
        },
    ),
    Version(
        "CIFAR-100", "cifar-100-binary", "fine_label_names.txt", num_classes=100, label_bytes=2,
        files={"train.bin": ("train", 50_000), "test.bin": ("test", 10_000)},
    ),
)  # fmt: skip


@dataclass(frozen=True)
class _Archive:
    """An open archive, whose files have the right sizes, and its names of classes."""

    path: Path
    tar: tarfile.TarFile
    version: Version
    members: Mapping[str, tarfile.TarInfo]
    classes: tuple[str, ...]


def unpack_cifar(archive: Path | str, folder: Path | str) -> DataFolder:
    """Write the images of ``archive`` to ``folder`` as lossless PNG, and open it.

    ``train/<class>/`` and ``test/<class>/`` have the archive's own names of the classes; a file is
    named after its batch and its place there, such as ``data_batch_1_00042.png``. ``folder``
    appears whole or not at all, and is left alone if it is there already.

    Args:
        archive: ``cifar-10-binary.tar.gz`` or ``cifar-100-binary.tar.gz``.
        folder: what to make.

    Raises:
        DataError: if ``archive`` is another one, cut or damaged, or ``folder`` holds something else
            or cannot be written.
    """
    path = Path(archive)
    with contextlib.ExitStack() as stack:
        with _reading(path):
            opened = _open(path, stack.enter_context(tarfile.open(path)))
        make_folder(
            folder,
            holds=opened.version.title,
            check=functools.partial(_check_folder, opened),
            write=functools.partial(_write_images, opened),
        )
    return open_data(folder)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Name the archive in whatever error its reading ends with."""
    try:
        yield
    except DataError:
        raise
    except _READ_ERRORS as problem:
        reason = problem.strerror if isinstance(problem, OSError) else None
        reason = reason or "not a tar archive, cut or damaged"
        raise DataError(f"{path}: cannot be read ({reason}); {_EXPECTED}") from None


def _open(path: Path, tar: tarfile.TarFile) -> _Archive:
    found = {each.name.removeprefix("./"): each for each in itertools.islice(tar, _MAX_MEMBERS)}
    folders = {name.partition("/")[0] for name in found}
    version = next((each for each in VERSIONS if each.folder in folders), None)
    if version is None:
        is_python = not folders.isdisjoint(_PYTHON_FOLDERS)
        reason = "the Python version, and to read its pickles is to run what they say"
        raise DataError(f"{path}: is {reason if is_python else 'another archive'}; {_EXPECTED}")
    members = {}
    for name, (_, count) in version.files.items():
        member, size = found.get(f"{version.folder}/{name}"), count * version.image_bytes
        if member is None or not member.isreg() or member.size != size:
            what = f"has {member.size:,} bytes" if member else "is missing"
            raise DataError(f"{path}: {name} {what}, it should have {size:,}; {_EXPECTED}")
        members[name] = member
    _read_to_end(tar)
    classes = _read_classes(path, version, tar, found.get(f"{version.folder}/{version.names}"))
    return _Archive(path, tar, version, members, classes)


def _read_to_end(tar: tarfile.TarFile) -> None:
    """Come to the checksum of a compressed archive, which is behind the end of the archive."""
    assert tar.fileobj is not None
    while tar.fileobj.read(2**20):
        pass


def _read_classes(
    path: Path, version: Version, tar: tarfile.TarFile, member: tarfile.TarInfo | None
) -> tuple[str, ...]:
    stream = tar.extractfile(member) if member else None
    text = stream.read(_MAX_NAMES_BYTES).decode("ascii", "replace") if stream else ""
    names = tuple(text.split())
    is_safe = all(re.fullmatch(r"[a-z][a-z_]*", name) for name in names)  # they become folders
    if len(set(names)) != version.num_classes or len(names) != version.num_classes or not is_safe:
        raise DataError(
            f"{path}: {version.names} does not name {version.num_classes} classes; {_EXPECTED}"
        )
    return names


def _read_images(opened: _Archive) -> Iterator[tuple[str, int, int, np.ndarray]]:
    """File, number in it, class and pixels (32, 32, 3) of each image, in the archive's order."""
    version = opened.version
    # To go back is to decompress everything before once more.
    for name in sorted(opened.members, key=lambda name: opened.members[name].offset_data):
        with _reading(opened.path):
            stream = opened.tar.extractfile(opened.members[name])
        assert stream is not None  # of a regular file
        for number in range(version.files[name][1]):
            with _reading(opened.path):
                data = stream.read(version.image_bytes)
            label, pixels = data[version.label_bytes - 1], data[version.label_bytes :]
            planes = np.frombuffer(pixels, np.uint8).reshape(_SHAPE)
            yield name, number, label, planes.transpose(1, 2, 0)


def _write_images(opened: _Archive, place: Path) -> None:
    version = opened.version
    for part, label in itertools.product(_PARTS, opened.classes):
        (place / part / label).mkdir(parents=True)
    counts: Counter[tuple[str, int]] = Counter()
    total = sum(count for _, count in version.files.values())
    images = tqdm(_read_images(opened), total=total, unit=" images", disable=None)
    for file, number, label, pixels in images:
        part, _ = version.files[file]
        counts[part, label] += 1
        if label >= version.num_classes or counts[part, label] > version.per_class(part):
            raise DataError(
                f"{opened.path}: is damaged: it has others than {version.per_class(part):,} images "
                f"of each of {version.num_classes} classes in {part}/; {_EXPECTED}"
            )
        name = f"{Path(file).stem}_{number:05d}.png"
        Image.fromarray(pixels).save(place / part / opened.classes[label] / name)


def _check_folder(opened: _Archive, place: Path) -> None:
    for part in _PARTS:
        found = scan_folder(place / part)
        sizes = dict.fromkeys(range(len(found.classes)), opened.version.per_class(part))
        if found.classes != tuple(sorted(opened.classes)) or Counter(found.labels) != sizes:
            raise DataError(f"{place / part} holds other images")
