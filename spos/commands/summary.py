"""`python -m spos summary`: what a supernet, its search and the training from scratch came to.

Imports `spos.commands.report` and `spos.errors`; `spos.report` and torch when it runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from spos.commands.report import add_target_flags, read_targets
from spos.errors import ConfigError

if TYPE_CHECKING:
    from spos.report.sources import SearchRun, TrainingRun
    from spos.search.results import Entry

Source = TypeVar("Source")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_target_flags(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    sources = read_targets(args)
    supernet, scratch = (
        _only(f"run of {stage}.py", {run.path: run for run in sources.of_stage(stage)})
        for stage in ("supernet", "scratch")
    )
    search = _only("search", {search.folder: search for search in sources.searches})
    for problem in (*supernet.problems, *search.problems, *scratch.problems):
        print(problem, file=sys.stderr)
    summary = summarize(supernet, search, scratch)
    if args.json:
        print(json.dumps(summary))
        return 0
    for stage, rows in summary.items():
        print(f"\n{stage}")
        for name, value in rows.items():
            print(f"  {name:38s} {_shown(value)}")
    return 0


def summarize(
    supernet: TrainingRun, search: SearchRun, scratch: TrainingRun
) -> dict[str, dict[str, Any]]:
    """The figures of the three stages, by name.

    Raises:
        ConfigError: if a stage is not finished.
    """
    ranking = search.ranking
    if not ranking:
        raise ConfigError(f"{search.folder}: the search has no scored candidate yet")
    best, median = ranking[0], ranking[len(ranking) // 2]
    choices = scratch.config.get("choices", {})
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
        "scratch": {
            **_last(scratch, {"test top-1": "test/top1", "test top-5": "test/top5"}),
            "choices": " ".join(map(str, choices.values())),
        },
    }


def _only(what: str, found: Mapping[Path, Source]) -> Source:
    """The one source of its kind."""
    if len(found) != 1:
        raise ConfigError(
            f"expected one {what}, found {', '.join(map(str, found)) or 'none'}; name a supernet's "
            "run, a search (or its id) and a run from scratch, or one folder that holds them"
        )
    return next(iter(found.values()))


def _last(run: TrainingRun, names: Mapping[str, str]) -> dict[str, float]:
    """The newest values of metrics, by the names to show."""
    for name in names.values():
        if name not in run.curves:
            raise ConfigError(f"{run.path}: the {run.stage} is not finished: it has no {name} yet")
    return {shown: run.curves[name].last for shown, name in names.items()}


def _top1(entry: Entry) -> float:
    """The accuracy, which is not the score where the search had another objective."""
    from spos.report.sources import score_of

    return entry.metrics.get("top1", score_of(entry))


def _shown(value: Any) -> str:
    if isinstance(value, float) and value <= 1:
        return f"{100 * value:.2f} %"
    return f"{value:,.0f}" if isinstance(value, (int, float)) else str(value)
