"""Checkpoints that a kill cannot spoil and a flipped bit cannot enter unnoticed.

Imports `spos.errors`, `spos.files` and torch.

A checkpoint is two files: ``step_00012000.pt`` and, written after it, ``step_00012000.json``, which
holds its size and SHA-256. Without the second the first does not count.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError  # what torch raises; nothing is unpickled here
from typing import IO, Any

import torch

from spos.errors import CheckpointError
from spos.files import digest, open_atomic, read_json, write_json

FORMAT_VERSION = 1
KEEP = 3
_PLAIN = (str, int, float, bool, type(None))
_MARK = re.compile(r"step_(\d{8,})\.json")

log = logging.getLogger(__name__)


def save_checkpoint(
    folder: Path | str, step: int, state: Mapping[str, Any], *, keep: int = KEEP
) -> Path:
    """Save ``state`` (tensors, numbers, text, lists and dictionaries only) as step ``step``.

    The oldest checkpoints beyond ``keep`` are deleted, and what killed writers left, but only after
    this one is complete. If the disk fills up, the earlier checkpoints stay as they are.

    Raises:
        CheckpointError: if the files cannot be written.
    """
    assert _is_plain(dict(state)), "this could be saved but not loaded"
    folder = Path(folder)
    path = folder / f"step_{step:08d}.pt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open_atomic(path) as file:
            save_tensors(dict(state), file)
        mark = {
            "version": FORMAT_VERSION,
            "step": step,
            "size": path.stat().st_size,
            "sha256": digest(path),
            "torch": torch.__version__,
        }
        write_json(path.with_suffix(".json"), mark)
    except (OSError, RuntimeError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise CheckpointError(
            f"{path}: cannot be saved ({reason}); earlier checkpoints are kept"
        ) from problem
    _delete_old(folder, keep)
    return path


def save_tensors(value: Any, file: IO[bytes]) -> None:
    """`torch.save`, but for what it makes of a full disk: its writer's own loss of its place.

    Raises:
        OSError: if the file cannot be written.
    """
    try:
        torch.save(value, file)
    except RuntimeError as problem:
        if isinstance(problem.__context__, OSError):
            raise problem.__context__ from None
        raise


def latest_checkpoint(folder: Path | str) -> tuple[int, Path] | None:
    """Step and path of the newest checkpoint that is whole; None if there is none at all.

    One that is damaged is renamed to ``*.damaged`` with a warning, and the one before it is taken.

    Raises:
        CheckpointError: if there are checkpoints but every one of them is damaged, or the newest
            may not be read, which is no damage.
    """
    kept = set()
    for step, mark in _marks(Path(folder)):
        path = mark.with_suffix(".pt")
        if mark.exists() and not os.access(mark, os.R_OK):
            raise CheckpointError(f"{mark}: may not be read by this user; have that changed")
        try:
            check_checkpoint(path)
        except CheckpointError as problem:
            log.warning("%s; trying the checkpoint before it", problem)
            for file in (path, mark):
                try:
                    os.replace(file, file.with_name(file.name + ".damaged"))
                except FileNotFoundError:
                    pass  # the other one is missing, or another process has renamed it
                except OSError:  # a folder that may only be read
                    kept.add(path.stem)
            continue
        return step, path
    renamed = {path.name.split(".")[0] for path in Path(folder).glob("step_*.damaged")}
    damaged = sorted(renamed | kept)
    if damaged:  # now or at an earlier start: not to be taken for a run that has only begun
        raise CheckpointError(
            f"{folder}: every checkpoint is damaged ({', '.join(damaged)}); restore one from a "
            "copy, or start again in another run folder"
        )
    return None


def newest_mark(folder: Path | str) -> Path | None:
    """The commit mark of the newest checkpoint, whole or not; None if there is none."""
    return next((mark for _, mark in _marks(Path(folder))), None)


def check_checkpoint(path: Path | str) -> str:
    """Verify a checkpoint against its commit mark and return its SHA-256.

    Raises:
        CheckpointError: if the file or its mark is missing, or they do not belong together.
    """
    path = Path(path)
    mark = read_json(path.with_suffix(".json"), error=CheckpointError)
    if not isinstance(mark, dict) or mark.get("version") != FORMAT_VERSION:
        raise CheckpointError(f"{path.with_suffix('.json')}: is not a checkpoint's commit mark")
    if not path.is_file():
        raise CheckpointError(f"{path}: is missing, though its commit mark is there")
    size = path.stat().st_size
    if size != mark.get("size"):
        raise CheckpointError(f"{path}: is damaged ({size} bytes, expected {mark.get('size')})")
    found = digest(path)
    if found != mark.get("sha256"):
        raise CheckpointError(f"{path}: is damaged (its SHA-256 does not match its commit mark)")
    return found


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """Load a checkpoint of ours after verifying it; tensors are put on the CPU.

    Raises:
        CheckpointError: if it is damaged, or holds anything but plain data.
    """
    check_checkpoint(path)
    state = load_tensors(path)
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, expected a dictionary")
    return state


def load_tensors(path: Path | str) -> Any:
    """Load a file of `torch.save` without running anything in it.

    Raises:
        CheckpointError: if it is missing, damaged, or needs code to be run; what it needs is named.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch thinks of odd files, we say below
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file") from None
    except UnpicklingError as problem:
        raise _no_weights(path, problem) from None
    except Exception as problem:  # damaged bytes make torch's reader fail in a dozen ways
        reason = str(problem).partition(" In PyTorch")[0]  # there its advice begins: see below
        raise CheckpointError(
            f"{path}: is damaged or not a checkpoint ({type(problem).__name__}: {reason})"
        ) from None


def _no_weights(path: Path | str, problem: UnpicklingError) -> CheckpointError:
    """Why a file was not loaded; never torch's own words, which advise to run what is in it."""
    with open(path, "rb") as file:
        is_json = file.read(1) == b"{"
    if is_json:
        return CheckpointError(
            f"{path}: is no weight file but JSON, as files of architectures and searches are; give "
            "a checkpoint, a .safetensors file or a saved state_dict"
        )
    if blocked := re.findall(r"GLOBAL (\S+)", str(problem)):
        return CheckpointError(
            f"{path}: is not a plain weight file, so it was not loaded (blocked: "
            f"{', '.join(blocked)}); save its state_dict alone and give that"
        )
    return CheckpointError(
        f"{path}: is no weight file; give a checkpoint, a .safetensors file or a saved state_dict"
    )


def load_weights_into(
    module: torch.nn.Module,
    weights: Mapping[str, torch.Tensor],
    *,
    source: str,
    assign: bool = False,
) -> None:
    """Load a state dict strictly.

    Args:
        module: the network.
        weights: its state dict.
        source: begins error messages.
        assign: whether the network takes over the tensors themselves, with their type, so that it
            may have been built on the meta device.

    Raises:
        CheckpointError: naming ``source`` and the missing, unexpected or misshapen tensors.
    """
    if not isinstance(weights, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor)
        for name, tensor in weights.items()
    ):
        raise CheckpointError(f"{source}: does not hold weights (names and tensors)")
    try:
        module.load_state_dict(weights, strict=True, assign=assign)
    except RuntimeError as problem:
        lines = [line.strip() for line in str(problem).splitlines()[1:4]]
        detail = " ".join(line if len(line) < 300 else line[:297] + "..." for line in lines)
        raise CheckpointError(
            f"{source}: its weights do not fit this network: {detail or problem}"
        ) from None


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(type(key) in _PLAIN and _is_plain(item) for key, item in value.items())
    if type(value) in (list, tuple):
        return all(_is_plain(item) for item in value)
    return isinstance(value, torch.Tensor) or type(value) in _PLAIN


def _delete_old(folder: Path, keep: int) -> None:
    marks = [mark for _, mark in _marks(folder)]
    for mark in marks[keep:]:
        mark.unlink(missing_ok=True)
    kept = {mark.with_suffix(".pt").name for mark in marks[:keep]}
    for path in (*folder.glob("step_*.pt"), *folder.glob(".step_*.tmp")):
        if path.name not in kept:
            path.unlink(missing_ok=True)


def _marks(folder: Path) -> list[tuple[int, Path]]:
    """Commit marks, newest first."""
    if not folder.is_dir():
        return []
    found = [(_MARK.fullmatch(path.name), path) for path in folder.iterdir()]
    return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)
