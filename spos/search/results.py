"""What a search writes and what is read back: `search.jsonl`, the best architectures, its state.

Imports `spos.architecture`, `spos.errors`, `spos.files`; never torch.

A search's folder is the NNI tuner's working directory (``$HOME/nni-experiments/$EXP_ID/log``):

    search.jsonl                    one line for each settled candidate, oldest first
    checkpoints/best.json           the best architecture so far
    checkpoints/round_001/01_*.json the best architectures when all of rounds 1 to 1 was settled
    checkpoints/front/001_*.json    of a search with several objectives: what none beats, cheapest
                                    first, as of the last completed round
    ../checkpoint/search.json       the state that `nnictl resume` continues from
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from spos.architecture import Architecture, Candidate, load_architecture, save_architecture
from spos.errors import SearchError
from spos.files import append_journal, read_journal, write_journal

RUN_FOLDER = Path("runs/search")  # of `search run`, unless told otherwise
JOURNAL = "search.jsonl"
BEST = "checkpoints/best.json"
FRONT = "checkpoints/front"
STATE_FILE = "search.json"  # in NNI's checkpoint folder of the experiment


@dataclass(frozen=True)
class Entry:
    """One settled candidate, as a line of `search.jsonl`.

    Attributes:
        round: the round it was bred in; 0 for one that came from outside the search.
        id: the architecture's id, as in file names.
        choices: label -> candidate.
        score: what the search maximizes, the value of ``objective``; None if the candidate failed.
        metrics: everything the trial reported and what the cost table says (``macs``, ``params``).
        failure: why there is no score; None if there is one.
        objective: what the score is, such as ``top1 - 1e-10 macs``; ``default`` is what the trial
            reports as its score.
        trial: NNI's id of the trial, which names its folder; None where NNI does not say.
        seconds: from handing the candidate out to its result; None across a resume.
        time: when it was settled, UTC, ISO 8601.
    """

    round: int
    id: str
    choices: Mapping[str, Candidate]
    score: float | None
    metrics: Mapping[str, float] = field(default_factory=dict)
    failure: str | None = None
    objective: str = "default"
    trial: str | None = None
    seconds: float | None = None
    time: str = ""


_NAMES = {each.name for each in fields(Entry)}


def append_entry(folder: Path, entry: Entry) -> None:
    """Add a settled candidate to the folder's `search.jsonl`."""
    append_journal(folder / JOURNAL, asdict(entry))


def read_entries(folder: Path) -> list[Entry]:
    """The settled candidates of a search, oldest first; of several lines of one, the last counts.

    Raises:
        SearchError: if a line is not an `Entry`.
    """
    path = folder / JOURNAL
    entries: dict[str, Entry] = {}
    for number, line in enumerate(read_journal(path, error=SearchError), start=1):
        entry = _parse_entry(line)
        if entry is None:
            raise SearchError(f"{path}, line {number}: is not a line that a search wrote")
        entries[entry.id] = entry
    return list(entries.values())


def rank_entries(entries: Iterable[Entry], *, best: str | None) -> list[Entry]:
    """The scored candidates, best first, of equals the older.

    Args:
        entries: of one search.
        best: the id of the architecture in `BEST`. It comes before its equals, whose scores may
            have come earlier where several were evaluated at once.
    """
    scored = [each for each in entries if each.score is not None]
    return sorted(scored, key=lambda each: (-score_of(each), each.id != best))


def read_best(folder: Path) -> Architecture | None:
    """The best architecture of a search, once there is one.

    Raises:
        ArchitectureError: if the file is damaged.
    """
    path = folder / BEST
    return load_architecture(path) if path.is_file() else None


def score_of(entry: Entry) -> float:
    """The score of a scored candidate."""
    assert entry.score is not None
    return entry.score


def write_entries(folder: Path, entries: Sequence[Entry]) -> None:
    """Replace the folder's `search.jsonl`, atomically."""
    write_journal(folder / JOURNAL, (asdict(entry) for entry in entries))


def save_best(folder: Path, arch: Architecture) -> None:
    """Write the best architecture so far."""
    path = folder / BEST
    path.parent.mkdir(exist_ok=True)
    save_architecture(path, arch)


def save_round(folder: Path, number: int, architectures: Sequence[Architecture]) -> None:
    """Write the best architectures at the end of a round, best first; never half of them."""
    target = folder / "checkpoints" / f"round_{number:03d}"
    if not target.exists():
        save_ranking(target, architectures)


def save_ranking(folder: Path, architectures: Sequence[Architecture]) -> list[Path]:
    """Write architectures, best first, into a new or empty folder; never half of them.

    Returns:
        The files, in this order.

    Raises:
        OSError: if the folder holds something or cannot be written.
    """
    names = [f"{rank:02d}_{arch.id}.json" for rank, arch in enumerate(architectures, start=1)]
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        for name, arch in zip(names, architectures, strict=True):
            save_architecture(temporary / name, arch)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return [folder / name for name in names]


def remove_rounds(folder: Path, first: int) -> None:
    """Remove what `save_round` wrote of a round and those after it."""
    for path in (folder / "checkpoints").glob("round_*"):
        if int(path.name.removeprefix("round_")) >= first:
            shutil.rmtree(path)


def save_front(folder: Path, architectures: Sequence[Architecture]) -> None:
    """Write the Pareto front in place of the one before; every file is whole at any time."""
    target = folder / FRONT
    target.mkdir(parents=True, exist_ok=True)
    old = set(target.glob("*.json"))
    for number, arch in enumerate(architectures, start=1):
        path = target / f"{number:03d}_{arch.id}.json"
        if path not in old:
            save_architecture(path, arch)
        old.discard(path)
    for path in old:
        path.unlink()


def read_front(folder: Path) -> list[Architecture]:
    """The Pareto front, cheapest first; empty if the search has none.

    Raises:
        ArchitectureError: if a file is damaged.
    """
    return [load_architecture(path) for path in sorted((folder / FRONT).glob("*.json"))]


def _parse_entry(line: Any) -> Entry | None:
    if not isinstance(line, dict) or not {"round", "id", "choices", "score"} <= line.keys():
        return None
    has_types = isinstance(line["id"], str) and isinstance(line["choices"], dict)
    if not has_types or not (line["score"] is None or type(line["score"]) in (int, float)):
        return None
    return Entry(**{name: value for name, value in line.items() if name in _NAMES})
