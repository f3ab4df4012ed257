"""`python -m spos summary`: what a supernet, its search and trainings from scratch came to.

Imports `spos.commands.report`, `spos.errors` and `spos.search.results`; `spos.report` and torch
when it runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from spos.commands.report import add_target_flags, read_targets
from spos.errors import ConfigError
from spos.search.results import Entry, score_of

if TYPE_CHECKING:
    from spos.report.sources import SearchRun, TrainingRun

Source = TypeVar("Source")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_target_flags(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    sources = read_targets(args)
    supernets, scratch = sources.of_stage("supernet"), sources.of_stage("scratch")
    for each in (sources, *sources.runs, *sources.searches):
        for problem in each.problems:
            print(problem, file=sys.stderr)
    if not scratch:
        raise _expected("a run of scratch.py", ())
    summary = {}
    if supernets or sources.searches:
        summary = summarize(
            _only("run of supernet.py", {run.path: run for run in supernets}),
            _only("search", {search.folder: search for search in sources.searches}),
        )
    summary["scratch"] = compare(scratch)
    if len({str(run.config["split"]) for run in scratch if "split" in run.config}) > 1:
        print("the runs hold out different images, so that accuracies on these do not compare",
              file=sys.stderr)  # fmt: skip
    if args.json:
        print(json.dumps(summary))
        return 0
    for stage, rows in summary.items():
        print(f"\n{stage}")
        for name, value in rows.items():
            print(f"  {name:38s} {_shown(value)}")
    return 0


def summarize(supernet: TrainingRun, search: SearchRun) -> dict[str, dict[str, Any]]:
    """The figures of these two stages, by name.

    Raises:
        ConfigError: if a stage is not finished.
    """
    ranking = search.ranking
    if not ranking:
        raise ConfigError(f"{search.folder}: the search has no scored candidate yet")
    best, median = ranking[0], ranking[len(ranking) // 2]
    return {
        "supernet": _last(
            supernet,
            {
                "top-1 of sampled paths, mean": "val/top1",
                "best": "val/top1_best",
                "worst": "val/top1_worst",
            },
        ),
        "search": {
            "candidates": len(ranking),
            "top-1 of the best candidate": _top1(best),
            "top-1 of the median candidate": _top1(median),
            "MACs of the best": best.metrics["macs"],
            "MACs of the median candidate": median.metrics["macs"],
            "parameters of the best": best.metrics["params"],
            "parameters of the median candidate": median.metrics["params"],
            "experiment": search.id or str(search.folder),
        },
    }


def compare(runs: Sequence[TrainingRun]) -> dict[str, Any]:
    """The figures of a training from scratch, by name; of several, those of each, by its folder.

    The best comes first; what held-out images say comes before what test images say.

    Raises:
        ConfigError: if one is not finished.
        ArchitectureError: if the settings of one do not say what it trains.
    """
    found = []
    for run in runs:
        names = {f"{run.measured} top-{k}": run.final_metric(k) for k in (1, 5)}
        arch = run.architecture()
        found.append((run, arch, _last(run, names)))
    if len(found) == 1:
        ((_, arch, accuracies),) = found
        return {**accuracies, "choices": " ".join(map(str, arch.choices.values()))}
    found.sort(key=lambda each: (each[0].measured, *(-top for top in each[2].values())))
    return {str(run.path): {"architecture": arch.id, **top} for run, arch, top in found}


def _only(what: str, found: Mapping[Path, Source]) -> Source:
    """The one source of its kind."""
    if len(found) != 1:
        raise _expected(f"one {what}", found)
    return next(iter(found.values()))


def _expected(what: str, found: Iterable[Path]) -> ConfigError:
    return ConfigError(
        f"expected {what}, found {', '.join(map(str, found)) or 'none'}; name a supernet's run, a "
        "search (or its id) and runs from scratch, or these alone, or one folder that holds them"
    )


def _last(run: TrainingRun, names: Mapping[str, str]) -> dict[str, float]:
    """The newest values of metrics, by the names to show."""
    for name in names.values():
        if name not in run.curves:
            raise ConfigError(f"{run.path}: the {run.stage} is not finished: it has no {name} yet")
    return {shown: run.curves[name].last for shown, name in names.items()}


def _top1(entry: Entry) -> float:
    """The accuracy, which is not the score where the search had another objective."""
    return entry.metrics.get("top1", score_of(entry))


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "  ".join(f"{name} {_shown(each)}" for name, each in value.items())
    if isinstance(value, float) and value <= 1:
        return f"{100 * value:.2f} %"
    return f"{value:,.0f}" if isinstance(value, (int, float)) else str(value)
