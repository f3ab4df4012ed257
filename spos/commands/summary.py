"""`python -m spos summary`: what a supernet, its search and the training from scratch came to.

Imports `spos.errors`, `spos.files`, `spos.search` and `spos.training.run_folder`; never torch.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from spos.errors import ConfigError
from spos.files import read_journal
from spos.search.launch import find_search
from spos.search.results import Entry, read_entries
from spos.training.run_folder import read_settings


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("--supernet", type=Path, default=Path("runs/supernet"), metavar="DIR")
    parser.add_argument("--scratch", type=Path, default=Path("runs/scratch"), metavar="DIR")
    parser.add_argument("--search", metavar="ID", help="NNI's id; by default the latest search")
    parser.add_argument("--experiments-dir", type=Path, help="default: ~/nni-experiments")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    experiment = find_search(args.search, args.experiments_dir)
    entries = read_entries(experiment.folder / "log")
    summary = summarize(_last_metrics(args.supernet), entries, _last_metrics(args.scratch))
    summary["search"]["experiment"] = experiment.id
    settings = read_settings(args.scratch, stage="scratch")
    summary["scratch"]["choices"] = " ".join(map(str, settings.config["choices"].values()))
    if args.json:
        print(json.dumps(summary))
        return 0
    for stage, rows in summary.items():
        print(f"\n{stage}")
        for name, value in rows.items():
            print(f"  {name:38s} {_shown(name, value)}")
    return 0


def summarize(
    supernet: dict[str, Any], entries: list[Entry], scratch: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """The figures of the three stages, by name.

    Args:
        supernet: last metrics of the supernet's run.
        entries: the candidates of the search.
        scratch: last metrics of the run from scratch.

    Raises:
        ConfigError: if a stage is not finished.
    """
    scored = sorted((each for each in entries if each.score is not None), key=_score)
    if not scored:
        raise ConfigError("the search has no scored candidate yet")
    for stage, metrics, name in (
        ("supernet", supernet, "val/top1"),
        ("scratch", scratch, "test/top1"),
    ):
        if name not in metrics:
            raise ConfigError(f"the {stage} run is not finished: it has no {name} yet")
    best, median = scored[-1], scored[len(scored) // 2]
    return {
        "supernet": {
            "top-1 of sampled paths, mean": supernet["val/top1"],
            "best": supernet["val/top1_best"],
            "worst": supernet["val/top1_worst"],
        },
        "search": {
            "candidates": len(scored),
            "top-1 of the best candidate": _top1(best),
            "top-1 of the median candidate": statistics.median(map(_top1, scored)),
            "MACs of the best": best.metrics["macs"],
            "MACs of the median candidate": median.metrics["macs"],
            "parameters of the best": best.metrics["params"],
            "parameters of the median candidate": median.metrics["params"],
        },
        "scratch": {
            "test top-1": scratch["test/top1"],
            "test top-5": scratch["test/top5"],
        },
    }


def _score(entry: Entry) -> float:
    assert entry.score is not None
    return entry.score


def _top1(entry: Entry) -> float:
    """The accuracy, which is not the score where the search had another objective."""
    return entry.metrics.get("top1", _score(entry))


def _last_metrics(run_dir: Path) -> dict[str, Any]:
    """The newest value of every metric of a run."""
    read_settings(run_dir)
    last: dict[str, Any] = {}
    for entry in read_journal(run_dir / "metrics.jsonl", error=ConfigError):
        last.update(entry)
    return last


def _shown(name: str, value: Any) -> str:
    if isinstance(value, float) and value <= 1:
        return f"{100 * value:.2f} %"
    return f"{value:,.0f}" if isinstance(value, (int, float)) else str(value)
