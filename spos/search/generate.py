"""Writing the search space: the trial command is run once with NNI_GEN_SEARCH_SPACE set.

Imports `spos.cost`, `spos.errors`, `spos.files`, `spos.search.feasible`; never torch.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spos.cost.table import CostTable
from spos.errors import ConfigError
from spos.files import parse_json, read_bytes
from spos.search.feasible import check_search_space

GENERATE_VARIABLE = "NNI_GEN_SEARCH_SPACE"
CHECK_VARIABLE = "SPOS_CHECK_TRIALS"  # "1": fail where trials on this machine would
SECONDS = 300.0


def generate_search_space(
    command: str, *, folder: Path, target: Path, table: Path, is_local: bool
) -> None:
    """Let the trial command write the search space and the cost table, and check both.

    What ``nnictl ss_gen`` does, but a failing command is an error. It writes into a folder of its
    own, so that files of an earlier time are neither taken for new ones nor lost if it fails; the
    cost table may be the very one that the command reads.

    Args:
        command: the experiment's ``trialCommand``.
        folder: its ``trialCodeDirectory``.
        target: its ``searchSpaceFile``.
        table: the cost table, which the command writes beside ``target``.
        is_local: whether trials will run on this machine, so that `tester.py` can look already
            whether it finds weights and images.

    Raises:
        ConfigError: if the command fails or does not write the search space.
        ConstraintError: if the cost table is not that of the search space.
    """
    with _folder_beside(target) as made:
        written, costs = made / target.name, made / table.name
        _run(command, folder, written, target, checks_trials=is_local)
        data = read_bytes(written, error=ConfigError)
        space = parse_json(data, source=str(target), error=ConfigError)
        found = costs if costs.exists() else table
        if found.exists():
            check_search_space(space, CostTable.load(found).spec, source=str(target))
        if found is costs:
            os.replace(costs, table)
        os.replace(written, target)


@contextmanager
def _folder_beside(target: Path) -> Iterator[Path]:
    try:
        folder = tempfile.TemporaryDirectory(dir=target.parent, prefix=".ss_gen-")
    except OSError as problem:
        raise ConfigError(
            f"searchSpaceFile: {target.parent} cannot be written ({problem.strerror})"
        ) from None
    with folder as name:
        yield Path(name)


def _run(command: str, folder: Path, written: Path, target: Path, *, checks_trials: bool) -> None:
    asked = {GENERATE_VARIABLE: str(written), CHECK_VARIABLE: str(int(checks_trials))}
    try:
        # In bash because NNI runs trials so.
        process = subprocess.run(
            ["bash", "-c", command],
            cwd=folder,
            env={**os.environ, **asked},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"trialCommand: `{command}` did not write the search space within {SECONDS:.0f} s"
        ) from None
    if process.returncode != 0 or not written.exists():
        lines = (process.stderr or process.stdout).strip().splitlines()
        raise ConfigError(
            f"trialCommand: `{command}` did not write the search space {target} (exit status "
            f"{process.returncode}): {lines[-1] if lines else 'it said nothing'}"
        )
