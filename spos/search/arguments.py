"""From the tuner's arguments in an experiment's configuration to the search they describe.

Imports `spos.cost`, `spos.errors` and the searcher; never torch.
"""

from __future__ import annotations

import base64
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spos.cost.table import CostTable, parse_constraints
from spos.errors import ConfigError, ConstraintError
from spos.search.aging import AgingEvolution
from spos.search.evolution import Evolution
from spos.search.feasible import FeasibleSpace
from spos.search.pareto import ParetoEvolution
from spos.search.predictor import PredictorSearch
from spos.search.random_search import RandomSearch
from spos.search.searcher import Method, Search

COST_TABLE = "cost.json"  # beside the search-space file, where the trial script writes both

# name -> how that searcher proposes candidates; its fields are the tuner's ``classArgs``
METHODS: dict[str, Callable[..., Method]] = {
    "evolution": Evolution,
    "random": RandomSearch,
    "aging": AgingEvolution,
    "predictor": PredictorSearch,
    "pareto": ParetoEvolution,
}


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


def build_method(name: str, settings: Mapping[str, Any]) -> Method:
    """The searcher ``name`` with ``settings``; None stands for a setting's default.

    Raises:
        ConfigError: if there is no such searcher or setting, or a value is wrong.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise ConfigError(f"searcher is {name!r}, expected one of {', '.join(METHODS)}")
    known = inspect.signature(METHODS[name]).parameters
    given = {key: value for key, value in settings.items() if value is not None}
    for key in given:
        if key not in known:
            raise ConfigError(
                f"{key} is no setting of the {name} searcher, expected some of "
                f"{', '.join([*known, 'constraints', 'cost_table'])}"
            )
    return METHODS[name](**given)


def build_search(
    paths: ExperimentPaths,
    *,
    searcher: str = "evolution",
    constraints: Any = None,
    cost_table: Any = None,
    **settings: Any,
) -> Search:
    """The search that a tuner's ``classArgs`` describe.

    Args:
        paths: where the cost table is.
        searcher: one of `METHODS`.
        constraints: metric of the cost table -> ``[low, high]`` or an upper bound.
        cost_table: path of the cost table, if it is not beside the search-space file.
        settings: of the searcher.

    Raises:
        ConfigError: if a setting is wrong.
        ConstraintError: if the cost table is missing or damaged, or a constraint cannot be met.
    """
    if cost_table is not None and not isinstance(cost_table, str):
        raise ConfigError(f"cost_table is {cost_table!r}, expected the path of a cost table")
    method = build_method(searcher, settings)
    bounds = parse_constraints({} if constraints is None else constraints)
    table = CostTable.load(paths.cost_table(cost_table))
    for metric in method.costs if isinstance(method, ParetoEvolution) else ():
        if metric not in table.metrics:
            raise ConstraintError(
                f"costs: the cost table of {table.spec.space!r} has no metric {metric!r}; it has "
                f"{', '.join(table.metrics)}"
            )
    return Search(FeasibleSpace(table, bounds), method)
