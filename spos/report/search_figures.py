"""How a search went: its rounds, what it found at every cost, what it chose in every layer.

Imports `spos.architecture`, `spos.cost.constraints`, `spos.report`, `spos.search`, numpy and
matplotlib.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from spos.architecture import Candidate
from spos.cost.constraints import Constraint
from spos.report.sources import SearchRun
from spos.report.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    MUTED,
    VERMILLION,
    Picture,
    draw,
    format_axis,
    legend_above,
    percent_axis,
    plain,
    scaled,
)
from spos.search.record import NUM_BEST
from spos.search.results import Entry, score_of

QUALITIES = ("top1", "top5", "loss")  # metrics that say how good, not how dear a network is
UNITS = {"macs": "MACs", "params": "parameters", "latency_ms": "latency (ms)"}
MAX_COSTS = 4
MAX_PANELS = 8
MAX_ROWS = 100
_EARLY_TO_LATE = LinearSegmentedColormap.from_list("rounds", ["#a5c8e4", "#0a2a55"])


@dataclass(frozen=True)
class Round:
    """Scores of the candidates bred in one round, and the best one up to its end."""

    number: int
    scores: tuple[float, ...]
    median: float
    best_so_far: float


def measure_rounds(entries: Sequence[Entry]) -> list[Round]:
    """Every round that has a scored candidate, in order."""
    scores: dict[int, list[float]] = {}
    for entry in entries:
        if entry.score is not None:
            scores.setdefault(entry.round, []).append(entry.score)
    rounds, best = [], -math.inf
    for number in sorted(scores):
        best = max(best, *scores[number])
        rounds.append(Round(number, tuple(scores[number]), statistics.median(scores[number]), best))
    return rounds


def find_costs(entries: Sequence[Entry]) -> list[str]:
    """The metrics of a search that are costs and differ: MACs, parameters, latency first."""
    values: dict[str, set[float]] = {}
    for entry in entries:
        for name, value in entry.metrics.items():
            values.setdefault(name, set()).add(value)
    names = [name for name, each in values.items() if len(each) > 1 and name not in QUALITIES]
    known = [name for name in UNITS if name in names]
    return [*known, *(name for name in names if name not in known)][:MAX_COSTS]


def find_front(ranking: Sequence[Entry], metric: str) -> list[Entry]:
    """Those that no candidate beats, which would cost at most as much and score more."""
    front: list[Entry] = []
    priced = [each for each in ranking if metric in each.metrics]
    for entry in sorted(priced, key=lambda each: (each.metrics[metric], -score_of(each))):
        if not front or score_of(entry) > score_of(front[-1]):
            front.append(entry)
    return front


def is_top1(ranking: Sequence[Entry]) -> bool:
    """Whether the scores of a search are its candidates' top-1 accuracies."""
    return bool(ranking) and all(each.metrics.get("top1") == each.score for each in ranking)


def score_name(ranking: Sequence[Entry]) -> str:
    """What the score of a search is, with its unit."""
    return "top-1 accuracy (%)" if is_top1(ranking) else "score"


def draw_progress(search: SearchRun) -> Picture | None:
    """Every candidate, the best so far and the median, round by round."""
    rounds = measure_rounds(search.entries)
    if not rounds:
        return None

    def fill(figure: Figure) -> None:
        axes = figure.add_subplot()
        for number, each in enumerate(rounds):
            spread = 0.5 * (_spread(len(each.scores)) if len(each.scores) > 1 else np.zeros(1))
            axes.scatter(
                each.number + spread, each.scores, s=16, color=GREY, alpha=0.65, linewidth=0,
                label="" if number else "candidate",
            )  # fmt: skip
        numbers = [each.number for each in rounds]
        axes.plot(numbers, [each.median for each in rounds], "o-", color=BLUE, markersize=4,
                  label="median of the round")  # fmt: skip
        axes.step(numbers, [each.best_so_far for each in rounds], "o-", where="post",
                  color=VERMILLION, markersize=4, label="best so far")  # fmt: skip
        axes.set_xlabel("round")
        axes.set_ylabel(f"{score_name(search.ranking)}, held-out images")
        axes.xaxis.set_major_locator(MaxNLocator(12, integer=True, min_n_ticks=1))
        axes.set_xlim(numbers[0] - 0.6, numbers[-1] + 0.6)
        if is_top1(search.ranking):
            percent_axis(axes.yaxis)
        legend_above(axes)

    alt = (
        f"Scores of {len(search.ranking)} candidates over {len(rounds)} rounds; the median went "
        f"from {rounds[0].median:.3f} to {rounds[-1].median:.3f}, the best is "
        f"{rounds[-1].best_so_far:.3f}"
    )
    return draw("search_progress", alt, fill, size=(11, 3.7), is_wide=True)


def draw_cost(search: SearchRun, metric: str) -> Picture:
    """Score against a cost, with the Pareto front and the box of the search's limits."""
    ranking = [each for each in search.ranking if metric in each.metrics]
    front = find_front(ranking, metric)
    limits = next((each for each in search.constraints or () if each.metric == metric), None)

    def fill(figure: Figure) -> None:
        axes = figure.add_subplot()
        points = axes.scatter(
            [each.metrics[metric] for each in ranking], [score_of(each) for each in ranking],
            c=[each.round for each in ranking], cmap=_EARLY_TO_LATE, s=20, linewidth=0,
        )  # fmt: skip
        axes.plot(
            [each.metrics[metric] for each in front], [score_of(each) for each in front],
            color=VERMILLION, marker="o", markersize=5, markerfacecolor="none", linewidth=1.4,
            drawstyle="steps-post", label="Pareto front",
        )  # fmt: skip
        if limits:
            _draw_limits(axes, limits)
        axes.set_xlabel(UNITS.get(metric, plain(metric)))
        axes.set_ylabel(f"{score_name(search.ranking)}, held-out images")
        format_axis(axes.xaxis, scaled)
        if is_top1(search.ranking):
            percent_axis(axes.yaxis)
        if len({each.round for each in ranking}) > 1:
            bar = figure.colorbar(points, ax=axes, pad=0.02, aspect=30, label="round")
            bar.ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
            bar.outline.set_visible(False)  # type: ignore[operator]
        legend_above(axes)

    name = "".join(each if each.isalnum() else "_" for each in plain(metric))
    alt = (
        f"Score against {plain(metric)} of {len(ranking)} candidates; {len(front)} of them are on "
        "the Pareto front"
    )
    return draw(f"search_{name}", alt, fill, size=(5.3, 3.5))


def _draw_limits(axes: Axes, limits: Constraint) -> None:
    """The allowed range as a box; a bound beyond the points is told, not drawn to scale."""
    left, right = axes.get_xlim()
    low, high = max(limits.low, left), min(limits.high, right)
    if low < high:
        axes.axvspan(low, high, color=GREEN, alpha=0.09, linewidth=0, label="within the limits")
    for bound in (limits.low, limits.high):
        if left <= bound <= right:
            axes.axvline(bound, color=GREEN, linewidth=1.2, linestyle="--")
    if right < limits.high < math.inf:
        axes.text(
            0.99, 0.02, f"limit: {scaled(limits.high)} →", transform=axes.transAxes,
            ha="right", color=MUTED, fontsize=8,
        )  # fmt: skip
    axes.set_xlim(left, right)


# -- what was chosen -------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChoiceShares:
    """How often the best so far had a candidate in a layer, after each round.

    Attributes:
        labels: the layers, in network order.
        candidates: names of the panels.
        rounds: numbers of the rounds.
        shares: (candidate, layer, round), each from 0 to 1.
        winner: for each layer the number of the best architecture's candidate.
    """

    labels: tuple[str, ...]
    candidates: tuple[str, ...]
    rounds: tuple[int, ...]
    shares: np.ndarray
    winner: tuple[int, ...]


def list_candidates(entries: Sequence[Entry]) -> dict[str, list[Candidate]]:
    """Label -> the candidates that were seen, sorted; numbers before names."""
    seen: dict[str, set[Candidate]] = {}
    for entry in entries:
        for label, chosen in entry.choices.items():
            seen.setdefault(label, set()).add(chosen)
    return {label: sorted(each, key=_candidate_order) for label, each in seen.items()}


def measure_choices(search: SearchRun, *, widths: bool = False) -> ChoiceShares | None:
    """Shares of each candidate among the best so far; None if there is nothing of that kind.

    Args:
        search: with at least one scored candidate.
        widths: of the numeric choices instead of the named ones; each layer has widths of its own,
            so that they are compared by rank, from narrow to wide.
    """
    ranking = search.ranking
    seen = list_candidates(search.entries)
    labels = [label for label, each in seen.items() if (type(each[0]) is int) == widths]
    labels = [label for label in labels if ranking and label in ranking[0].choices][:MAX_ROWS]
    if not labels:
        return None
    if widths:
        names: list[Candidate] = list(range(max(len(seen[label]) for label in labels)))
        number = {label: {each: n for n, each in enumerate(seen[label])} for label in labels}
    else:
        names = sorted({each for label in labels for each in seen[label]}, key=_candidate_order)
        number = {label: {each: names.index(each) for each in seen[label]} for label in labels}
    names = names[:MAX_PANELS]
    rounds = [each.number for each in measure_rounds(search.entries)]
    shares = np.zeros((len(names), len(labels), len(rounds)))
    for column, last in enumerate(rounds):
        best = [each for each in ranking if each.round <= last][:NUM_BEST]
        for row, label in enumerate(labels):
            chosen = [number[label][each.choices[label]] for each in best if label in each.choices]
            for n in range(len(names)):
                shares[n, row, column] = chosen.count(n) / max(len(chosen), 1)
    winner = tuple(number[label][ranking[0].choices[label]] for label in labels)
    panels = [
        f"width {number}" if widths else plain(name, 12) for number, name in enumerate(names, 1)
    ]
    return ChoiceShares(tuple(labels), tuple(panels), tuple(rounds), shares, winner)


def draw_choices(search: SearchRun, *, widths: bool = False) -> Picture | None:
    """A heat map for each candidate: layers down, rounds across, the winner's choice marked."""
    found = measure_choices(search, widths=widths)
    if found is None:
        return None

    def fill(figure: Figure) -> None:
        panels = figure.subplots(1, len(found.candidates), sharey=True, squeeze=False)[0]
        image = None
        for number, (axes, name) in enumerate(zip(panels, found.candidates, strict=True)):
            image = axes.imshow(
                found.shares[number], vmin=0, vmax=1, cmap="Blues", aspect="auto",
                interpolation="nearest",
            )  # fmt: skip
            rows = [row for row, each in enumerate(found.winner) if each == number]
            end = len(found.rounds) - 0.5
            axes.scatter([1.05 * end + 0.1] * len(rows), rows, marker="<", s=26,
                         color=VERMILLION, linewidth=0)  # fmt: skip
            axes.set_xlim(-0.5, 1.1 * end + 0.2)
            _name_cells(axes, found, name)
        assert image is not None
        bar = figure.colorbar(image, ax=panels, pad=0.02, aspect=40, fraction=0.05)
        bar.set_label(f"share of the best {NUM_BEST} so far (%)")
        percent_axis(bar.ax.yaxis)
        bar.outline.set_visible(False)  # type: ignore[operator]

    kind = "widths" if widths else "choices"
    alt = (
        f"Heat map of {len(found.labels)} layers over {len(found.rounds)} rounds: how often the "
        f"best {NUM_BEST} so far had each of {', '.join(found.candidates)}; triangles mark the "
        "best architecture"
    )
    size = (max(6.0, min(11.0, 1.5 + 2.2 * len(found.candidates))), 1.1 + 0.2 * len(found.labels))
    return draw(f"search_{kind}", alt, fill, size=size, is_wide=True)


def _name_cells(axes: Axes, found: ChoiceShares, name: str) -> None:
    axes.set_title(name, color=INK)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_yticks(range(len(found.labels)), [plain(each, 18) for each in found.labels])
    every = max(1, math.ceil(len(found.rounds) / 6))
    places = range(0, len(found.rounds), every)
    axes.set_xticks(places, [str(found.rounds[place]) for place in places])
    axes.set_xlabel("after round")


def order_candidates(candidates: Mapping[str, Sequence[Candidate]]) -> list[Candidate]:
    """All named candidates of a space once, in the order in which they get their colours."""
    names = {each for some in candidates.values() for each in some if type(each) is str}
    return sorted(names, key=_candidate_order)


def _candidate_order(candidate: Candidate) -> tuple[bool, int, str]:
    is_name = type(candidate) is str
    return is_name, 0 if is_name else int(candidate), str(candidate)


def _spread(count: int) -> np.ndarray:
    """Places from -1/2 to 1/2 in an order that lets neighbours lie apart, always the same."""
    golden = (math.sqrt(5) - 1) / 2
    return (np.arange(1, count + 1) * golden) % 1 - 0.5
