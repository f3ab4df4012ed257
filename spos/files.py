"""Files that are never half-written: atomic writes, digests, strict JSON, an append-only journal.

Imports only `spos.errors`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from spos.errors import ConfigError, SposError

MAX_JSON_BYTES = 64 * 2**20
MAX_JSON_DEPTH = 100  # Python's own limit differs by version and by who calls


@contextlib.contextmanager
def open_atomic(path: Path | str) -> Iterator[IO[bytes]]:
    """Open ``path`` for writing so that it appears whole or not at all.

    The bytes go to a temporary file in the same folder, which is flushed to disk and renamed over
    ``path`` when the block ends; the folder is flushed too. On an exception (a full disk included)
    the temporary file is removed and whatever stood at ``path`` stays; an OSError then names
    ``path``.
    """
    path = Path(path)
    temporary = temporary_beside(path)
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as problem:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(problem, OSError) and problem.filename in (None, str(temporary)):
            problem.filename, problem.filename2 = str(path), None
        raise
    _sync_folder(path.parent)


def temporary_beside(path: Path) -> Path:
    """A new name in the same folder, for what will be renamed to ``path``."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


@contextlib.contextmanager
def writing(path: Path | str, *, advice: str = "") -> Iterator[None]:
    """Make of an OSError of the block a ConfigError that names ``path``.

    Args:
        path: what is written, as the user gave it.
        advice: ends the message, such as "; name another --output".
    """
    try:
        yield
    except OSError as problem:
        reason = problem.strerror or problem
        raise ConfigError(f"{path}: cannot be written ({reason}){advice}") from None


def write_text(path: Path | str, text: str) -> None:
    """Write ``text`` to ``path`` atomically, as UTF-8; bytes of file names that are not stay."""
    with open_atomic(path) as file:
        file.write(text.encode(errors="surrogateescape"))


def write_json(path: Path | str, value: Any) -> None:
    """Write ``value`` as indented JSON to ``path`` atomically; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def parse_json(text: str | bytes, *, source: str, error: type[SposError] = SposError) -> Any:
    """Parse strict JSON: no repeated keys, no NaN or infinity, no endless nesting or digits.

    Raises:
        error: with ``source`` (a path or a description) and what was wrong.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        value = json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_int=_short_int,
            parse_float=_finite_float,
            parse_constant=_finite_float,
        )
        _refuse_deep(value)
    except (ValueError, RecursionError) as problem:
        reason = "nested too deeply" if isinstance(problem, RecursionError) else problem
        raise error(f"{source}: not valid JSON ({reason})") from None
    return value


def read_json(
    path: Path | str, *, error: type[SposError] = SposError, max_bytes: int = MAX_JSON_BYTES
) -> Any:
    """Read a JSON file strictly (see `parse_json`).

    Raises:
        error: if the file is missing, unreadable, larger than ``max_bytes`` or malformed.
    """
    return parse_json(
        read_bytes(path, error=error, max_bytes=max_bytes), source=str(path), error=error
    )


def read_bytes(
    path: Path | str, *, error: type[SposError] = SposError, max_bytes: int = MAX_JSON_BYTES
) -> bytes:
    """Read a small file whole; ``error`` names the file if it is missing or too large."""
    try:
        with open(path, "rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as problem:
        raise error(f"{path}: cannot be read ({problem.strerror or problem})") from None
    if len(data) > max_bytes:
        raise error(f"{path}: larger than {max_bytes} bytes, which no file of this kind is")
    return data


def digest(path: Path | str) -> str:
    """SHA-256 of a file, in hexadecimal."""
    sha256 = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            sha256.update(block)
    return sha256.hexdigest()


def append_journal(path: Path | str, entry: Any) -> None:
    """Append one JSON line to a journal and flush it to disk.

    Safe for several processes at once (advisory lock). A last line cut by a crash is dropped first.

    Raises:
        OSError: naming ``path`` if it cannot be written.
    """
    line = json.dumps(entry, allow_nan=False).encode() + b"\n"
    try:
        with open(path, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            _drop_partial_line(file)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as problem:
        problem.filename = str(path)
        raise


def write_journal(path: Path | str, entries: Iterable[Any]) -> None:
    """Replace a journal by these entries, atomically."""
    write_text(path, "".join(json.dumps(entry, allow_nan=False) + "\n" for entry in entries))


def read_journal(path: Path | str, *, error: type[SposError] = SposError) -> list[Any]:
    """Entries of a journal, oldest first; a last line cut by a crash is ignored.

    Raises:
        error: if it cannot be read or a complete line is not JSON. A missing file is an empty
            journal.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        return []
    except OSError as problem:
        raise error(f"{path}: cannot be read ({problem.strerror or problem})") from None
    lines = data.split(b"\n")[:-1]
    return [
        parse_json(line, source=f"{path}, line {number}", error=error)
        for number, line in enumerate(lines, start=1)
    ]


@contextlib.contextmanager
def lock_file(path: Path | str, *, blocking: bool = True) -> Iterator[None]:
    """Hold an advisory lock on ``path``; released when the block ends or the process dies.

    Processes forked meanwhile, such as an image loader's, do not hold it with this one.

    Raises:
        BlockingIOError: if not ``blocking`` and another process holds it.
    """
    with open(path, "a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX if blocking else fcntl.LOCK_EX | fcntl.LOCK_NB)
        _held.add(file)
        try:
            yield
        finally:
            _held.discard(file)


_held: set[IO[bytes]] = set()


def _close_held() -> None:
    while _held:
        _held.pop().close()


# Else a worker that outlives its killed parent for some seconds would keep the lock.
os.register_at_fork(after_in_child=_close_held)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"key {repeated[:80]!r} is given twice")
    return value


def _short_int(text: str) -> int:
    if len(text) > 50:  # more than 128 bits, the state of a random generator, never has
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _finite_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is not a finite number")
    return number


def _refuse_deep(value: Any) -> None:
    level = [value]
    for _ in range(MAX_JSON_DEPTH):
        level = [
            item
            for each in level
            if isinstance(each, (dict, list))
            for item in (each.values() if isinstance(each, dict) else each)
        ]
    if level:
        raise ValueError(f"nested more than {MAX_JSON_DEPTH} deep")


def _drop_partial_line(file: IO[bytes]) -> None:
    size = file.seek(0, os.SEEK_END)
    end = size
    while end:
        block = min(end, 4096)
        file.seek(end - block)
        newline = file.read(block).rfind(b"\n")
        if newline >= 0:
            end = end - block + newline + 1
            break
        end -= block
    if end != size:
        file.truncate(end)
