"""Results of candidates, kept in the supernet's run folder so that none is evaluated twice.

Imports `spos.architecture`, `spos.files` and `spos.errors`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spos.architecture import Architecture
from spos.errors import CheckpointError
from spos.files import append_journal, parse_json, read_json

FILE_NAME = "evaluations.jsonl"


class Results:
    """The results measured with one checkpoint's weights, by this process and by others.

    The journal is read once and then only where it has grown.

    Args:
        run_dir: the run folder.
        checkpoint: whose weights; the digest in its commit mark is what counts.

    Raises:
        CheckpointError: if the commit mark cannot be read.
    """

    def __init__(self, run_dir: Path, checkpoint: Path) -> None:
        self._path = run_dir / FILE_NAME
        mark = read_json(checkpoint.with_suffix(".json"), error=CheckpointError)
        # The digest of the weights and the architecture decide: everything else that a score
        # depends on (images, split, calibration) is in the settings, which the weights go with.
        self._weights = mark["sha256"][:16]
        self._found: dict[str, dict[str, float]] = {}
        self._position, self._num_lines = 0, 0

    def find(self, arch: Architecture) -> dict[str, float] | None:
        """The result of ``arch``, if it was measured before; the last one, if it was repeatedly.

        Raises:
            CheckpointError: if the journal is malformed or cannot be read.
        """
        self._read_on()
        return self._found.get(self._key(arch))

    def save(self, arch: Architecture, result: Mapping[str, float]) -> None:
        """Keep a result, before it is reported: so a report that is lost costs nothing."""
        append_journal(self._path, self.entry(arch, result))

    def entry(self, arch: Architecture, result: Mapping[str, float]) -> dict[str, Any]:
        """The line of the journal that keeps a result."""
        return {"key": self._key(arch), "choices": dict(arch.choices), "result": dict(result)}

    def _key(self, arch: Architecture) -> str:
        return f"{self._weights}-{arch.id}"

    def _read_on(self) -> None:
        try:
            with open(self._path, "rb") as file:
                if file.seek(0, 2) < self._position:  # somebody made it shorter: begin anew
                    self._found, self._position, self._num_lines = {}, 0, 0
                file.seek(self._position)
                data = file.read()
        except FileNotFoundError:
            self._found, self._position, self._num_lines = {}, 0, 0
            return
        except OSError as problem:
            raise CheckpointError(
                f"{self._path}: cannot be read ({problem.strerror or problem})"
            ) from None
        whole = data[: data.rfind(b"\n") + 1]  # a last line cut by a crash is passed over
        for number, line in enumerate(whole.split(b"\n")[:-1], start=self._num_lines + 1):
            self._take(parse_json(line, source=f"{self._path}, line {number}",
                                  error=CheckpointError))  # fmt: skip
            self._num_lines = number
        self._position += len(whole)

    def _take(self, entry: Any) -> None:
        if not isinstance(entry, dict) or not isinstance(entry.get("result"), dict):
            raise CheckpointError(
                f"{self._path}: holds a line that is not a result; move the file away"
            )
        self._found[str(entry.get("key"))] = entry["result"]
