"""Results of candidates, kept in the supernet's run folder so that none is evaluated twice.

Imports `spos.architecture`, `spos.files` and `spos.errors`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from spos.architecture import Architecture
from spos.errors import CheckpointError
from spos.files import append_journal, read_journal, read_json

FILE_NAME = "evaluations.jsonl"


def load_result(run_dir: Path, checkpoint: Path, arch: Architecture) -> dict[str, float] | None:
    """The result of ``arch`` with the weights of ``checkpoint``, if it was measured before.

    Raises:
        CheckpointError: if the journal is malformed.
    """
    key = _key(checkpoint, arch)
    for entry in reversed(read_journal(run_dir / FILE_NAME, error=CheckpointError)):
        if not isinstance(entry, dict) or not isinstance(entry.get("result"), dict):
            raise CheckpointError(
                f"{run_dir / FILE_NAME}: holds a line that is not a result; move the file away"
            )
        if entry.get("key") == key:
            return entry["result"]
    return None


def save_result(
    run_dir: Path, checkpoint: Path, arch: Architecture, result: Mapping[str, float]
) -> None:
    """Keep a result; to be called before it is reported, so that a lost report costs nothing."""
    entry = {"key": _key(checkpoint, arch), "choices": dict(arch.choices), "result": dict(result)}
    append_journal(run_dir / FILE_NAME, entry)


def _key(checkpoint: Path, arch: Architecture) -> str:
    # The digest of the weights and the architecture decide: everything else that a score depends
    # on (images, split, calibration) is fixed by the run folder.
    mark = read_json(checkpoint.with_suffix(".json"), error=CheckpointError)
    return f"{mark['sha256'][:16]}-{arch.id}"
