"""From the tuner's arguments in an experiment's configuration to the search they describe.

Imports `spos.cost`, `spos.errors` and the searcher; never torch.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spos.cost.table import CostTable, parse_constraints
from spos.errors import ConfigError
from spos.search.evolution import Evolution
from spos.search.feasible import FeasibleSpace
from spos.search.settings import EvolutionSettings

COST_TABLE = "cost.json"  # beside the search-space file, where the trial script writes both


@dataclass(frozen=True)
class ExperimentPaths:
    """Where an experiment's configuration says things are.

    Attributes:
        code: the tuner's ``codeDirectory``; relative paths in ``classArgs`` start here, because NNI
            runs the tuner in another folder and does not resolve them.
        search_space: the ``searchSpaceFile``, if there is one.
    """

    code: Path
    search_space: Path | None = None

    @classmethod
    def of_dispatcher(cls, argv: Sequence[str]) -> ExperimentPaths:
        """Those of the running tuner process, from the command line that NNI gave it."""
        if "--exp_params" not in argv:
            return cls(Path.cwd())
        encoded = argv[argv.index("--exp_params") + 1]
        config = json.loads(base64.b64decode(encoded))
        search_space = config.get("searchSpaceFile")
        return cls(
            Path(config["tuner"].get("codeDirectory") or Path.cwd()),
            Path(search_space) if search_space else None,
        )

    def cost_table(self, given: str | None) -> Path:
        """The cost table's path: as given, else beside the search-space file."""
        if given:
            return self.code / given
        return (self.search_space.parent if self.search_space else self.code) / COST_TABLE


def build_evolution(
    paths: ExperimentPaths, *, constraints: Any = None, cost_table: Any = None, **settings: Any
) -> Evolution:
    """The search that the tuner's ``classArgs`` describe.

    Raises:
        ConfigError: if a setting is wrong.
        ConstraintError: if the cost table is missing or damaged, or a constraint cannot be met.
    """
    if cost_table is not None and not isinstance(cost_table, str):
        raise ConfigError(f"cost_table is {cost_table!r}, expected the path of a cost table")
    checked = EvolutionSettings(**settings)
    bounds = parse_constraints({} if constraints is None else constraints)
    table = CostTable.load(paths.cost_table(cost_table))
    return Evolution(FeasibleSpace(table, bounds), checked)
