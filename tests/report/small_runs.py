"""A supernet run, an NNI experiment and a run from scratch, as the scripts write them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spos.architecture import SearchSpec
from spos.cost.counting import build_cost_table
from spos.cost.table import CostTable
from spos.files import append_journal, write_json
from spos.search.results import Entry, append_entry, save_best
from spos.training.run_folder import RunSettings, write_settings

SPACE = "nasbench_macro"
OPTIONS = {"image_size": 32, "num_classes": 3}
SPEC = SearchSpec(
    SPACE, OPTIONS, {f"layer_{n}": ("identity", "mb3_k3", "mb6_k5") for n in range(1, 9)}
)
RECIPE = {"epochs": 4, "batch_size": 8, "seed": 0, "num_train": 90, "data": "digits"}
LIMIT = 40_000_000


def write_supernet(path: Path, *, steps: int = 40, **config: Any) -> Path:
    """A run of supernet.py of 40 steps, ten an epoch, as far as ``steps``."""
    path.mkdir(parents=True)
    settings = {"space": SPACE, "options": OPTIONS, "sampler": "uniform", "path_range": None}
    settings |= {**RECIPE, "held_out": 10, **config}
    write_settings(path, RunSettings("supernet", settings, {}))
    cost_table().save(path / "cost.json")
    for step in range(10, steps + 1, 10):
        record(path, step, {"train/loss": 2 - step / 40, "train/top1": step / 80})
        validated = {"val/top1": step / 60, "val/top1_best": step / 50, "val/top1_worst": 0.1}
        record(path, step, {**validated, "val/loss": 2 - step / 30})
    return path


def write_scratch(path: Path, *, steps: int = 44, top1: float = 0.875, **config: Any) -> Path:
    """A run of scratch.py of 44 steps, eleven an epoch, as far as ``steps``."""
    path.mkdir(parents=True)
    choices = {label: each[0] for label, each in SPEC.choices.items()}
    settings = {"space": SPACE, "options": OPTIONS, "choices": choices, **RECIPE, **config}
    write_settings(path, RunSettings("scratch", settings, {}))
    for step in range(11, steps + 1, 11):
        record(path, step, {"train/loss": 2 - step / 40, "train/top1": step / 50})
        record(path, step, {"val/top1": step / 50, "val/top5": 1.0, "val/loss": 400 / step**2})
    if steps == 44:
        kind = "held_out" if "held_out" in config else "test"
        record(path, 44, {f"{kind}/top1": top1, f"{kind}/top5": 1.0, f"{kind}/loss": 0.3})
    return path


def record(path: Path, step: int, metrics: Mapping[str, float]) -> None:
    append_journal(path / "metrics.jsonl", {"step": step, "time": 1.7e9 + step, **metrics})


_tables: list[CostTable] = []


def cost_table() -> CostTable:
    """The cost table of the space, counted once."""
    if not _tables:
        _tables.append(build_cost_table(SPACE, options=OPTIONS))
    return _tables[0]


def write_experiment(
    path: Path, *, rounds: int = 3, population: int = 6, planned: int | None = None
) -> Path:
    """An NNI experiment's folder with a search of ``rounds`` rounds, one candidate of it failed."""
    log, draw = path / "log", random.Random(0)
    log.mkdir(parents=True)
    best = None
    for number in range(rounds * population):
        choices = {label: draw.choice(each) for label, each in SPEC.choices.items()}
        score = None if number == 3 else 0.3 + 0.02 * number + 0.1 * draw.random()
        metrics = {**cost_table().costs(choices), "top1": score or 0.0, "latency_ms": draw.random()}
        arch = SPEC.architecture(choices, metrics=metrics)
        entry = Entry(
            1 + number // population, arch.id, choices, score, metrics if score else {},
            time="2026-01-02T03:04:05+00:00",
        )  # fmt: skip
        append_entry(log, entry)
        if score and (best is None or score > best[0]):
            best = score, arch
    if best:
        save_best(log, best[1])
    write_state(path, planned=planned or rounds * population)
    return path


def write_state(path: Path, *, planned: int, **changes: Any) -> Path:
    """The tuner's state, as far as others read it."""
    (path / "checkpoint").mkdir(exist_ok=True)
    search = {
        "space": SPACE,
        "options": OPTIONS,
        "settings": {"rounds": 1, "population": planned},
        "is_exhausted": False,
    }
    state = {"version": 1, "problem": None, "constraints": {"macs": [None, LIMIT]}}
    file = path / "checkpoint" / "search.json"
    write_json(file, {**state, "search": search, **changes})
    return file


def write_all(folder: Path) -> Path:
    """All three, as `make demo` leaves them."""
    write_supernet(folder / "supernet")
    write_experiment(folder / "search" / "Ab3dE6gH")
    write_scratch(folder / "scratch")
    return folder
