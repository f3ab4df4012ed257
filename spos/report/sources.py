"""What a report is about: training runs and searches, read as far as they have been written.

Imports `spos.architecture`, `spos.cost.constraints`, `spos.errors`, `spos.files`, `spos.search`,
`spos.training.run_folder`.

A reader here never gives up on a run: what cannot be read becomes one of its ``problems``, which
the page shows in place of what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spos.architecture import FORMAT_VERSION, Architecture, parse_architecture
from spos.cost.constraints import Constraint
from spos.errors import ConfigError, SearchError, SposError
from spos.files import read_journal
from spos.search.launch import (
    KnownExperiment,
    find_experiment,
    find_latest,
    is_alive,
    list_experiments,
    list_searches,
)
from spos.search.objective import is_number
from spos.search.record import Progress, read_progress
from spos.search.results import (
    BEST,
    JOURNAL,
    STATE_FILE,
    Entry,
    rank_entries,
    read_best,
    read_entries,
)
from spos.training.run_folder import RunSettings, read_settings

METRICS = "metrics.jsonl"
MAX_NUMBER = 1e15  # beyond it nothing of ours measures anything, and no axis is readable
MAX_LABELS = 400
DEFAULT_RUNS = (Path("runs/supernet"), Path("runs/scratch"))


@dataclass(frozen=True)
class Curve:
    """A metric over the steps of a training."""

    steps: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def last(self) -> float:
        """The newest value."""
        return self.values[-1]


@dataclass(frozen=True)
class TrainingRun:
    """A run folder of supernet.py or scratch.py, as far as it goes.

    Attributes:
        path: the folder.
        stage: ``supernet`` or ``scratch``; ``run`` if ``args.json`` cannot be read.
        config: the settings that results depend on.
        curves: metric name, such as ``val/top1``, -> its curve; only those with a number.
        last_time: of the newest record, in seconds since 1970; None without one.
        problems: what could not be read.
    """

    path: Path
    stage: str
    config: Mapping[str, Any]
    curves: Mapping[str, Curve]
    last_time: float | None
    problems: tuple[str, ...]

    @property
    def measured(self) -> str:
        """Which images ``val/`` is of: ``held-out`` ones or ``test``; unknown: ``validation``."""
        if "held_out" in self.config:
            return "held-out"
        return "test" if self.config else "validation"

    @property
    def num_steps(self) -> int:
        """Steps recorded so far."""
        return max((curve.steps[-1] for curve in self.curves.values()), default=0)

    @property
    def num_planned(self) -> int | None:
        """Steps of the whole recipe, if the settings tell."""
        config = {"held_out": 0, **self.config}
        numbers = [config.get(name) for name in ("num_train", "held_out", "epochs", "batch_size")]
        num_train, held_out, epochs, batch_size = (
            each if type(each) is int and 0 <= each < MAX_NUMBER else -1 for each in numbers
        )
        if min(num_train, held_out, epochs) < 0 or batch_size < 1:
            return None
        return epochs * max((num_train - held_out) // batch_size, 1)  # as `spos.data.schedule`

    @property
    def is_finished(self) -> bool:
        """Whether the recipe was carried out; also one without a step, once it was measured."""
        planned = self.num_planned
        return bool(self.curves) and planned is not None and self.num_steps >= planned

    def architecture(self) -> Architecture:
        """What a run of scratch.py trains, as its settings say.

        Raises:
            ArchitectureError: if they do not.
        """
        parts = {name: self.config.get(name) for name in ("space", "options", "choices")}
        text = json.dumps({"version": FORMAT_VERSION, **parts})
        return parse_architecture(text, source=f"{self.path}/args.json")

    def final_metric(self, k: int) -> str:
        """The name of the top-``k`` accuracy that a run of scratch.py ends with."""
        return f"{self.measured.replace('-', '_')}/top{k}"


@dataclass(frozen=True)
class SearchRun:
    """A search, as far as it goes.

    Attributes:
        folder: of ``search.jsonl`` and ``checkpoints``.
        id: NNI's id of the experiment; None for a search without NNI.
        url: of NNI's own page, if its server runs on this machine.
        entries: settled candidates, oldest first.
        progress: what the saved state says; None if there is none yet.
        problems: what could not be read.
        best: id of the best architecture, once its file is there.
    """

    folder: Path
    id: str | None
    url: str | None
    entries: tuple[Entry, ...]
    progress: Progress | None
    problems: tuple[str, ...] = ()
    best: str | None = None

    @property
    def ranking(self) -> list[Entry]:
        """The scored candidates, best first."""
        return rank_entries(self.entries, best=self.best)

    @property
    def best_path(self) -> Path | None:
        """The file of the best architecture, once it is there."""
        path = self.folder / BEST
        return path if path.is_file() else None

    @property
    def constraints(self) -> tuple[Constraint, ...] | None:
        """The box that candidates stay in; None if the state does not say."""
        return self.progress.constraints if self.progress else None

    def architecture(self, entry: Entry) -> Architecture | None:
        """A candidate as an architecture; None while it is not known of which space it is."""
        if self.progress is None or not self.progress.space:
            return None
        space, options = self.progress.space, self.progress.options
        return Architecture(space, options, entry.choices, entry.metrics)


@dataclass(frozen=True)
class Sources:
    """All that one report is about."""

    runs: tuple[TrainingRun, ...]
    searches: tuple[SearchRun, ...]
    problems: tuple[str, ...]

    def of_stage(self, stage: str) -> list[TrainingRun]:
        """The training runs of a stage."""
        return [run for run in self.runs if run.stage == stage]


def default_targets(experiments_dir: Path | None) -> list[str]:
    """What the commands write unless told otherwise: two runs, and of the searches the latest."""
    runs = [path for path in DEFAULT_RUNS if path.is_dir()]
    latest = find_latest(experiments_dir)
    return [str(path) for path in (*runs, *(latest[1:] if latest else ()))]


def collect(targets: Sequence[str], *, experiments_dir: Path | None = None) -> Sources:
    """Read what the targets name.

    Args:
        targets: each a run folder, the folder of a search or of an NNI experiment, a folder that
            holds such folders, or the id of an experiment.
        experiments_dir: where ids are looked up; ``~/nni-experiments`` by default.

    Raises:
        SearchError: if a target is neither a folder nor the id of an experiment.
    """
    runs: dict[Path, TrainingRun] = {}
    searches: dict[Path, SearchRun] = {}
    problems = []
    for target in targets:
        try:
            found = _find(target, experiments_dir)
            for each in found:
                if _is_run(each):
                    runs[each.resolve()] = read_run(each)
                else:
                    searches[each.resolve()] = read_search(each)
        except OSError as problem:  # a folder that may not be looked into
            problems.append(f"{target}: cannot be read ({problem.strerror or problem})")
            continue
        if not found:
            problems.append(
                f"{target} holds no run yet: there is no args.json, metrics.jsonl or search.jsonl "
                "in it or in the folders in it"
            )
    return Sources(tuple(runs.values()), tuple(searches.values()), tuple(problems))


def read_run(path: Path) -> TrainingRun:
    """A run folder of supernet.py or scratch.py."""
    problems = []
    settings = RunSettings("run", {}, {})
    try:
        settings = read_settings(path)
    except SposError as problem:
        problems.append(str(problem))
    lines: list[Any] = []
    try:
        lines = read_journal(path / METRICS, error=ConfigError)
    except SposError as problem:
        problems.append(str(problem))
    curves: dict[str, tuple[list[int], list[float]]] = {}
    times = []
    for line in lines:
        step = line.get("step") if isinstance(line, dict) else None
        if type(step) is not int or not 0 <= step < MAX_NUMBER:
            problems.append(f"{path / METRICS}: a line without a step is left out")
            continue
        for name, value in line.items():
            if name == "time" and is_drawable(value):
                times.append(value)
            elif name != "step" and is_drawable(value):
                steps, values = curves.setdefault(name, ([], []))
                steps.append(step)
                values.append(float(value))
    stage = settings.stage if settings.stage in ("supernet", "scratch") else "run"
    return TrainingRun(
        path,
        stage,
        settings.config,
        {name: Curve(tuple(steps), tuple(values)) for name, (steps, values) in curves.items()},
        max(times, default=None),
        tuple(dict.fromkeys(problems)),
    )


def read_search(path: Path) -> SearchRun:
    """A search: the folder of ``search.jsonl``, or the experiment's folder with it in ``log``."""
    is_experiment = not (path / JOURNAL).exists() and (path / "log").is_dir()
    is_log = path.name == "log" and (path.parent / "checkpoint").is_dir()
    experiment = path if is_experiment else path.parent if is_log else None
    folder = path / "log" if is_experiment else path
    state = (experiment / "checkpoint" if experiment else folder) / STATE_FILE
    problems: list[str] = []
    entries: list[Entry] = []
    progress = best = None
    try:
        entries = read_entries(folder)
    except SposError as problem:
        problems.append(str(problem))
    try:
        progress = read_progress(state)
    except SposError as problem:
        problems.append(str(problem))
    try:
        best = read_best(folder)
    except SposError as problem:
        problems.append(str(problem))
    good = [checked for each in entries if (checked := _check_entry(each))]
    if len(good) < len(entries):
        num_bad = len(entries) - len(good)
        problems.append(f"{folder / JOURNAL}: {num_bad} lines are not of a search and left out")
    if progress and progress.problem:
        problems.append(f"the search stopped: {progress.problem}")
    known = _known_experiment(experiment) if experiment else None
    return SearchRun(
        folder,
        experiment.resolve().name if experiment else None,
        _url(known) if known else None,
        tuple(good),
        progress,
        tuple(problems),
        best.id if best else None,
    )


def is_drawable(value: Any) -> bool:
    """Whether a value of a file is a number that an axis can hold."""
    return is_number(value) and abs(value) < MAX_NUMBER


def _check_entry(entry: Entry) -> Entry | None:
    """The entry with the numbers that can be drawn; None if it is none of a search."""
    choices, metrics = entry.choices, entry.metrics
    if type(entry.round) is not int or not 0 <= entry.round < MAX_NUMBER:
        return None
    if not 0 < len(choices) <= MAX_LABELS or not isinstance(metrics, Mapping):
        return None
    if any(type(each) not in (str, int) for each in choices.values()):
        return None
    if entry.score is not None and not is_drawable(entry.score):
        return None
    numbers = {name: value for name, value in metrics.items() if is_drawable(value)}
    return Entry(
        entry.round, entry.id, choices, entry.score, numbers, time=str(entry.time or "")[:40]
    )


# -- where things are ------------------------------------------------------------------------------


def _is_run(path: Path) -> bool:
    return (path / "args.json").exists() or (path / METRICS).exists()


def _is_search(path: Path) -> bool:
    is_nni = (path / "log").is_dir() and any(
        (path / name).is_dir() for name in ("checkpoint", "db", "environments")
    )
    return is_nni or (path / JOURNAL).exists() or (path / "log" / JOURNAL).exists()


def _is_source(path: Path) -> bool:
    return _is_run(path) or _is_search(path)


def _find_inside(path: Path) -> list[Path]:
    """Runs and searches one level down; of a folder of experiments only the latest."""
    if latest := list_searches(path):
        return [latest[-1].folder]
    found = []
    for each in sorted(path.iterdir()):
        if each.is_dir() and not each.is_symlink():
            if _is_source(each):
                found.append(each)
            elif latest := list_searches(each):
                found.append(latest[-1].folder)
    return found


def _find(target: str, experiments_dir: Path | None) -> list[Path]:
    """The runs and searches that a target names."""
    path = Path(target)
    if path.is_dir():
        return [path] if _is_source(path) else _find_inside(path)
    try:
        return [find_experiment(target, experiments_dir).folder]
    except SearchError as problem:
        raise SearchError(f"{target}: is no folder, and {problem}") from None


def _known_experiment(folder: Path) -> KnownExperiment | None:
    """NNI's own entry of an experiment, which says whether and where its server runs."""
    try:
        known = list_experiments(folder.parent)
    except SposError:  # NNI's list is damaged: the page has no link then
        return None
    return next((each for each in known if each.folder.resolve() == folder.resolve()), None)


def _url(known: KnownExperiment) -> str | None:
    is_up = known.pid is not None and known.status != "STOPPED" and is_alive(known.pid)
    return f"http://localhost:{known.port}" if is_up and type(known.port) is int else None
