"""Folders of images that this package makes: whole or not there, and never over something else.

Imports only `spos.errors` and `spos.files`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from spos.errors import DataError
from spos.files import lock_file


def make_folder(
    folder: Path | str,
    *,
    holds: str,
    check: Callable[[Path], None],
    write: Callable[[Path], None],
) -> Path:
    """Let ``write`` fill ``folder`` unless it has been filled before, and return it.

    It is filled beside it, as ``.NAME.partial``, and renamed, under a lock, so that a kill leaves
    nothing half-written, the next attempt removes what was left, and several processes may ask at
    once.

    Args:
        folder: what to make; it may be there, empty.
        holds: what it will hold, for messages: "the digits".
        check: is given the folder if it holds something; raises a `DataError` that says what,
            unless that is what ``write`` would put there.
        write: fills the folder that it is given, which is empty and beside ``folder``.

    Raises:
        DataError: if something else is at ``folder``, or it is not writable.
    """
    folder = Path(folder)
    place = folder.resolve()  # if it is a link to an empty folder, that one is filled
    partial = place.with_name(f".{place.name}.partial")
    try:
        if _is_filled(folder, holds, check):
            return folder
        place.parent.mkdir(parents=True, exist_ok=True)
        with lock_file(place.with_name(f".{place.name}.lock")):
            if not _is_filled(folder, holds, check):  # else another process was faster
                _fill(partial, place, write)
    except OSError as problem:
        raise DataError(
            f"{folder}: {holds} cannot be written there ({problem.strerror or problem}); "
            "name a folder on a disk with space, where you may write"
        ) from None
    return folder


def _fill(partial: Path, place: Path, write: Callable[[Path], None]) -> None:
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed process
    try:
        partial.mkdir()
        write(partial)
        os.rename(partial, place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_filled(folder: Path, holds: str, check: Callable[[Path], None]) -> bool:
    if not os.path.lexists(folder):
        return False
    advice = "remove it, or name another folder"
    if not folder.is_dir():
        raise DataError(f"{folder}: is not a folder; {advice}")
    if not any(folder.iterdir()):
        return False
    try:
        check(folder.resolve())
    except DataError as problem:
        raise DataError(f"{folder}: does not hold {holds} ({problem}); {advice}") from None
    return True
