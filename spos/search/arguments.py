"""From the tuner's arguments in an experiment's configuration to the search they describe.

Imports `spos.architecture`, `spos.cost`, `spos.errors` and the searchers; never torch.
"""

from __future__ import annotations

import base64
import dataclasses
import importlib
import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spos.architecture import Candidate, SearchSpec, load_architecture
from spos.cost.constraints import parse_constraints, parse_quantity
from spos.cost.scores import search_score_weights
from spos.cost.table import CostTable
from spos.errors import ArchitectureError, ConfigError, SposError
from spos.search.aging import AgingEvolution
from spos.search.evolution import Evolution
from spos.search.feasible import FeasibleSpace
from spos.search.objective import parse_objective
from spos.search.pareto import ParetoEvolution
from spos.search.predictor import PredictorSearch
from spos.search.random_search import RandomSearch
from spos.search.searcher import Method, Search
from spos.search.settings import check_plan, check_whole
from spos.search.two_stage import CHANNELS, TwoStage, check_patterns, match_labels

COST_TABLE = "cost.json"  # beside the search-space file, where the trial script writes both

# name -> how that searcher proposes candidates; its fields are the tuner's ``classArgs``.
# `load_method` adds those of the user's own.
METHODS: dict[str, Callable[..., Method]] = {
    "evolution": Evolution,
    "random": RandomSearch,
    "aging": AgingEvolution,
    "predictor": PredictorSearch,
    "pareto": ParetoEvolution,
    "two_stage": TwoStage,
}
DEFAULT_SEARCHER = "evolution"
METHOD_FIELDS = ("rounds", "population", "seed", "max_failures")  # of every searcher
METHOD_PARTS = ("batch_size", "propose")  # fields or not
# name in `spos.search.tuner` -> the searcher that it has; None: the one that classArgs name
TUNERS = {
    "SearchTuner": None,
    "EvolutionTuner": "evolution",
    "RandomTuner": "random",
    "TwoStageTuner": "two_stage",
}
# ``classArgs`` that say what is searched, for every searcher
TASK = (
    "constraints",  # metric of the cost table -> [low, high] or an upper bound
    "objective",  # a metric's name, or metric -> weight
    "score_reference",  # metric -> cost of the network that search_score compares with
    "search_only",  # channels, blocks or labels ...
    "fixed_arc",  # ... and the architecture file that the other choices are taken from
    "cost_table",  # its path, if it is not beside the search-space file
)
SEARCH_SCORE = "search_score"  # the metric that `spos.cost.scores` describes


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


def complete_arguments(tuner: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `SearchTuner` that ``arguments`` of one of `TUNERS` stand for.

    Raises:
        ConfigError: if they name another searcher than the tuner's.
    """
    searcher = TUNERS[tuner]
    if searcher is None:
        return dict(arguments)
    if arguments.get("searcher", searcher) != searcher:
        raise ConfigError(
            f"searcher is {arguments['searcher']!r}, but {tuner} is SearchTuner with searcher "
            f"{searcher}; use SearchTuner, or leave searcher out"
        )
    return {**arguments, "searcher": searcher}


def change_arguments(arguments: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``arguments`` with those that flags replace.

    Constraints on other metrics stay; settings that only the replaced searcher has go: all but the
    new one's, if it is one of the user's own, which nobody imported.
    """
    if "searcher" in changes:
        replaced = str(arguments.get("searcher", DEFAULT_SEARCHER))
        old = _settings(replaced) if replaced in METHODS else {*arguments} - {*TASK}
        foreign = old - _settings(changes["searcher"])
        arguments = {name: value for name, value in arguments.items() if name not in foreign}
    changed = {**arguments, **changes}
    old, new = arguments.get("constraints"), changes.get("constraints")
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        changed["constraints"] = {**old, **new}
    return changed


def _settings(searcher: Any) -> set[str]:
    method = METHODS.get(str(searcher))
    return set(inspect.signature(method).parameters) if method else set()


def load_method(name: str, *, folder: Path | None = None) -> None:
    """Make ``searcher: module:Class``, a searcher of the user's own, known by that name.

    This imports the module, which runs its code: only where the user named it himself, on the
    command line, or where the tuner was started by a configuration, which names programs anyway.

    Args:
        name: of one of `METHODS`, which are known already, or ``module:Class``.
        folder: is looked into as well, as NNI does with ``codeDirectory``.

    Raises:
        ConfigError: if it cannot be imported or is no searcher.
    """
    module_name, colon, class_name = str(name).partition(":")
    if name in METHODS or not colon:
        return
    before = list(sys.path)
    sys.path += [str(folder.resolve())] if folder else []
    try:
        method = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, TypeError, ValueError) as problem:
        raise ConfigError(
            f"the searcher {name!r} cannot be imported ({problem}); expected module:Class of a "
            f"module in {folder or 'this folder'}, installed, or on PYTHONPATH"
        ) from problem
    finally:
        sys.path[:] = before
    is_dataclass = isinstance(method, type) and dataclasses.is_dataclass(method)
    fields = {each.name for each in dataclasses.fields(method)} if is_dataclass else set()
    missing = [each for each in METHOD_FIELDS if each not in fields]
    missing += [each for each in METHOD_PARTS if each not in fields and not hasattr(method, each)]
    if not is_dataclass or missing:
        what = f"has no {', '.join(missing)}" if is_dataclass else "is not a dataclass"
        raise ConfigError(
            f"the searcher {name!r} {what}; expected the fields {', '.join(METHOD_FIELDS)} and "
            "what else spos.search.searcher.Method says, best as a frozen dataclass derived from "
            "spos.search.random_search.RandomSearch"
        )
    METHODS[name] = method  # type: ignore[assignment]  # its parts are those of a Method


def build_method(name: str, settings: Mapping[str, Any]) -> Method:
    """The searcher ``name`` with ``settings``; None stands for a setting's default.

    Raises:
        ConfigError: if there is no such searcher (see `load_method`) or setting, or a value is
            wrong.
    """
    if isinstance(name, str) and ":" in name and name not in METHODS:
        raise ConfigError(
            f"the searcher {name!r} is code outside of this package, which a file alone may not "
            f"start; if you trust it, say so on the command line: --searcher {name}"
        )
    if not isinstance(name, str) or name not in METHODS:
        raise ConfigError(
            f"searcher is {name!r}, expected one of {', '.join(METHODS)}, or your own as "
            "module:Class"
        )
    known = inspect.signature(METHODS[name]).parameters
    given = {key: value for key, value in settings.items() if value is not None}
    for key in given:
        if key not in known:
            raise ConfigError(
                f"{key} is no setting of the {name} searcher, expected some of "
                f"{', '.join([*known, *TASK])}"
            )
    try:
        method = METHODS[name](**given)
    except SposError:
        raise
    except (TypeError, ValueError) as problem:  # one of the user's own
        raise ConfigError(f"the {name} searcher refuses its settings ({problem})") from problem
    check_plan(method)
    check_whole("batch_size", method.batch_size, low=1)
    return method


def build_search(
    paths: ExperimentPaths, *, searcher: str = DEFAULT_SEARCHER, **arguments: Any
) -> Search:
    """The search that a tuner's ``classArgs`` describe.

    Args:
        paths: where the cost table is, and what relative paths start at.
        searcher: one of `METHODS`, to which `load_method` adds.
        arguments: those that `TASK` names, and the settings of the searcher.

    Raises:
        ConfigError: if a setting is wrong.
        ArchitectureError: if the fixed architecture is missing, damaged or of another space.
        ConstraintError: if the cost table is missing or damaged, or a constraint cannot be met.
    """
    task = {name: arguments.pop(name, None) for name in TASK}
    method = build_method(searcher, arguments)
    for name in ("cost_table", "fixed_arc"):
        if task[name] is not None and not isinstance(task[name], str):
            raise ConfigError(f"{name} is {task[name]!r}, expected the path of a file")
    bounds = parse_constraints(task["constraints"] or {})
    objective = parse_objective(task["objective"])
    table = CostTable.load(paths.cost_table(task["cost_table"]))
    named = {*objective.weights, *(each.metric for each in bounds), *getattr(method, "costs", ())}
    if SEARCH_SCORE in named:
        table = table.with_sum(SEARCH_SCORE, _score_weights(task["score_reference"]))
    fixed = _fixed_choices(table.spec, task, paths)
    space = FeasibleSpace(table, bounds, fixed)
    if isinstance(method, (ParetoEvolution, TwoStage)):
        method.check_space(space)
    return Search(space, method, objective)


def _score_weights(reference: Any) -> dict[str, float]:
    if reference is None:
        return search_score_weights()
    if not isinstance(reference, Mapping) or not reference:
        raise ConfigError(
            f"score_reference is {reference!r}, expected costs of a network such as "
            "{macs: 328M, params: 3.4M}"
        )
    return search_score_weights(
        {
            str(metric): parse_quantity(cost, source=f"score_reference: {metric}")
            for metric, cost in reference.items()
        }
    )


def _fixed_choices(
    spec: SearchSpec, task: Mapping[str, Any], paths: ExperimentPaths
) -> dict[str, Candidate]:
    """The choices that ``fixed_arc`` fixes: all that ``search_only`` does not name."""
    if (task["fixed_arc"] is None) != (task["search_only"] is None):
        raise ConfigError(
            "fixed_arc and search_only belong together: the architecture file that choices are "
            "taken from, and which are searched all the same (channels, blocks or labels)"
        )
    if task["fixed_arc"] is None:
        return {}
    searched = _searched_labels(spec, task["search_only"])
    path = paths.code / task["fixed_arc"]
    arch = load_architecture(path)
    labels = {label: each for label, each in spec.choices.items() if label not in searched}
    if arch.space != spec.space:
        raise ArchitectureError(
            f"fixed_arc {path}: is an architecture of {arch.space!r}, expected {spec.space!r}"
        )
    # It may lack what is searched: blocks of a space without channels will do.
    choices = {label: each for label, each in arch.choices.items() if label in labels}
    part = SearchSpec(spec.space, spec.options, labels)
    return part.check(choices, source=f"fixed_arc {path}")


def _searched_labels(spec: SearchSpec, given: Any) -> list[str]:
    channels = match_labels(spec, CHANNELS)
    if given == "channels":
        searched = channels
    elif given == "blocks":
        searched = [label for label in spec.choices if label not in channels]
    else:
        searched = match_labels(spec, check_patterns("search_only", given))
    if not searched:
        raise ConfigError(
            f"search_only is {given!r}, but {spec.space!r} has no such choices; it has "
            f"{', '.join(spec.choices)}"
        )
    return searched
