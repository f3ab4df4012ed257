"""Writing the search space: the trial command is run once with NNI_GEN_SEARCH_SPACE set.

Imports `spos.cost`, `spos.errors`, `spos.files`; never torch.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from spos.cost.table import CostTable
from spos.errors import ConfigError
from spos.files import read_json
from spos.search.feasible import check_search_space

GENERATE_VARIABLE = "NNI_GEN_SEARCH_SPACE"
SECONDS = 300.0


def generate_search_space(command: str, *, folder: Path, target: Path, table: Path) -> Any:
    """Let the trial command write the search space and the cost table, and check both.

    What ``nnictl ss_gen`` does, but a failing command is an error, and files of an earlier run
    are removed first so that they cannot be taken for new ones.

    Args:
        command: the experiment's ``trialCommand``.
        folder: its ``trialCodeDirectory``.
        target: its ``searchSpaceFile``.
        table: where the command writes the cost table.

    Returns:
        The search space.

    Raises:
        ConfigError: if the command fails or does not write the search space.
        ConstraintError: if the cost table is not that of the search space.
    """
    for path in (target, table):
        path.unlink(missing_ok=True)
    environment = {**os.environ, GENERATE_VARIABLE: str(target)}
    try:
        # In bash because NNI runs trials so.
        process = subprocess.run(
            ["bash", "-c", command],
            cwd=folder,
            env=environment,
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
    if process.returncode != 0 or not target.exists():
        lines = (process.stderr or process.stdout).strip().splitlines()
        raise ConfigError(
            f"trialCommand: `{command}` did not write the search space {target} (exit status "
            f"{process.returncode}): {lines[-1] if lines else 'it said nothing'}"
        )
    space = read_json(target, error=ConfigError)
    if table.exists():
        check_search_space(space, CostTable.load(table).spec, source=str(target))
    return space
