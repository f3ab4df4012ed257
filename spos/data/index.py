"""The list of a large folder of images, kept in a file so that not every process makes it again.

Imports only `spos.errors` and `spos.files`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spos.errors import DataError
from spos.files import read_json, write_text

FORMAT_VERSION = 1
MAX_INDEX_BYTES = 2**32  # ImageNet-21k takes 400 MB
_BETWEEN = "//"  # between paths: the one text of printable characters that no path contains
_SETTLED_S = 2.0  # a folder's time may not tell a change from another as short after it

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClassListing:
    """The images of one class folder.

    Attributes:
        folders: each folder that was listed, relative to the class folder ("" is the class folder
            itself), with the time of its last change, in nanoseconds.
        files: image files relative to the class folder, sorted.
    """

    folders: Mapping[str, int]
    files: tuple[str, ...]


@dataclass(frozen=True)
class Listing:
    """What was found in a folder of class folders, and when that folder was last changed."""

    changed_ns: int
    classes: Mapping[str, ClassListing]


def change_time(folder: Path | str) -> int:
    """When a name was last added to a folder, removed from it or changed in it, in nanoseconds."""
    return os.stat(folder).st_mtime_ns


def load_index(path: Path | str) -> Listing:
    """Read an index.

    Raises:
        DataError: if it is missing, damaged, or names files outside its folder.
    """
    value = read_json(path, error=DataError, max_bytes=MAX_INDEX_BYTES)
    try:
        return _parse(value)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise DataError(
            f"{path}: is not an index of version {FORMAT_VERSION}; remove it, and it is made again"
        ) from None


def save_index(path: Path | str, listing: Listing) -> None:
    """Write an index, atomically, unless a folder changed so recently that it may change unseen.

    Raises:
        OSError: if it cannot be written.
    """
    times = [listing.changed_ns]
    times += [each for found in listing.classes.values() for each in found.folders.values()]
    if max(times) > time.time_ns() - _SETTLED_S * 1e9:
        return
    classes = {
        name: {"folders": dict(found.folders), "files": _BETWEEN.join(found.files)}
        for name, found in listing.classes.items()
    }
    value = {"version": FORMAT_VERSION, "changed_ns": listing.changed_ns, "classes": classes}
    write_text(path, json.dumps(value, indent=0) + "\n")


def is_current(root: Path, listing: Listing) -> bool:
    """Whether no folder below ``root`` has changed since; looks at folders only, not at files."""
    try:
        return listing.changed_ns == change_time(root) and all(
            change_time(root / name / folder) == changed_ns
            for name, found in listing.classes.items()
            for folder, changed_ns in found.folders.items()
        )
    except OSError:
        return False


def find_current(root: Path, paths: Iterable[Path]) -> Listing | None:
    """The first index of ``root`` that still holds; a damaged one is reported and passed over."""
    for path in paths:
        if not path.exists():
            continue
        try:
            listing = load_index(path)
        except DataError as problem:
            log.warning("%s; listing %s again", problem, root)
            continue
        if is_current(root, listing):
            return listing
        log.info("%s: %s has changed since; listing it again", path, root)
    return None


def keep_index(paths: Iterable[Path], listing: Listing) -> None:
    """Write ``listing`` to the first of ``paths`` that can be written; data may be read-only."""
    for path in paths:
        with contextlib.suppress(OSError):
            save_index(path, listing)
            return


def _parse(value: Any) -> Listing:
    if value["version"] != FORMAT_VERSION or type(value["changed_ns"]) is not int:
        raise ValueError
    classes = {}
    for name, found in value["classes"].items():
        folders, files = found["folders"], found["files"]
        names = (name, *(folder for folder in folders if folder))
        if "/" in name or not files or any(map(_leads_outside, (*names, files))):
            raise ValueError
        if any(type(each) is not int for each in folders.values()) or "" not in folders:
            raise ValueError
        classes[name] = ClassListing(folders, tuple(files.split(_BETWEEN)))
    if not classes:
        raise ValueError
    return Listing(value["changed_ns"], classes)


def _leads_outside(paths: str) -> bool:
    """Whether one of the paths that `_BETWEEN` joins is absolute, empty, or goes up."""
    if not paths or paths[0] == "/" or "///" in paths or "\0" in paths:
        return True
    return ".." in paths and ".." in paths.split("/")
