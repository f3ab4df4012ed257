"""What the figures of a search show, as numbers."""

import numpy as np
import pytest
from small_runs import write_experiment, write_state

from spos.report.search_figures import (
    draw_choices,
    draw_cost,
    draw_progress,
    find_costs,
    find_front,
    is_top1,
    list_candidates,
    measure_choices,
    measure_rounds,
    order_candidates,
)
from spos.report.sources import SearchRun, read_search
from spos.report.style import scaled
from spos.search.results import Entry


def entry(score, *, round=1, choices=None, **metrics):
    return Entry(round, f"{score}-{round}", choices or {"layer_1": "k3"}, score, metrics)


def search_of(*entries):
    return SearchRun(None, None, None, entries, None)  # type: ignore[arg-type]


def test_rounds_have_their_median_and_the_best_so_far():
    entries = [entry(0.5), entry(0.7), entry(0.6), entry(None), entry(0.65, round=3)]
    first, last = measure_rounds(entries)
    assert (first.number, first.scores, first.median) == (1, (0.5, 0.7, 0.6), 0.6)
    assert (last.number, last.median, last.best_so_far) == (3, 0.65, 0.7)
    assert measure_rounds([entry(None)]) == []


def test_costs_are_what_differs_and_says_not_how_good():
    entries = [
        entry(0.5, energy=1.0, latency_ms=3.0, params=2, macs=9, top1=0.5, loss=1.0, fixed=7),
        entry(0.6, energy=2.0, latency_ms=2.0, params=1, macs=8, top1=0.6, loss=0.9, fixed=7),
    ]
    assert find_costs(entries) == ["macs", "params", "latency_ms", "energy"]


def test_front_is_what_nothing_beats():
    points = [(5, 0.5), (5, 0.6), (7, 0.6), (8, 0.55), (9, 0.9), (4, 0.1)]
    ranking = [entry(score, macs=macs) for macs, score in points]
    front = [(each.metrics["macs"], each.score) for each in find_front(ranking, "macs")]
    assert front == [(4, 0.1), (5, 0.6), (9, 0.9)]
    beaten = {
        one for one in points for other in points
        if other != one and other[0] <= one[0] and other[1] >= one[1]
    }  # fmt: skip
    assert set(front) == set(points) - beaten
    assert find_front(ranking, "latency_ms") == []


def test_scores_are_accuracies_only_if_they_are():
    assert is_top1([entry(0.5, top1=0.5)])
    assert not is_top1([entry(0.5, top1=0.5), entry(0.5)])
    assert not is_top1([])


def test_shares_are_of_the_best_so_far():
    entries = [entry(0.01 * n, choices={"a": "k3", "b": "k3"}) for n in range(10)]
    entries += [entry(0.5 + 0.01 * n, round=2, choices={"a": "k5", "b": "k3"}) for n in range(4)]
    found = measure_choices(search_of(*entries))
    assert found and (found.labels, found.candidates, found.rounds) == (
        ("a", "b"), ("k3", "k5"), (1, 2)
    )  # fmt: skip
    assert np.allclose(found.shares[:, 0], [[1, 0.6], [0, 0.4]])
    assert np.allclose(found.shares[:, 1], [[1, 1], [0, 0]])
    assert found.winner == (1, 0)


def test_widths_are_compared_by_rank():
    entries = [
        entry(0.5, choices={"layer_1": "k3", "channel_1": 8, "channel_2": 640}),
        entry(0.6, choices={"layer_1": "k3", "channel_1": 24, "channel_2": 128}),
    ]
    found = measure_choices(search_of(*entries), widths=True)
    assert found and found.labels == ("channel_1", "channel_2")
    assert found.candidates == ("width 1", "width 2")
    assert found.winner == (1, 0)
    operators = measure_choices(search_of(*entries))
    assert operators and operators.labels == ("layer_1",)
    assert measure_choices(search_of(entry(0.5)), widths=True) is None


def test_candidates_have_an_order_of_their_own():
    entries = [entry(0.5, choices={"a": "k7", "b": 9}), entry(0.6, choices={"a": "k3", "b": 10})]
    assert list_candidates(entries) == {"a": ["k3", "k7"], "b": [9, 10]}
    assert order_candidates(list_candidates(entries)) == ["k3", "k7"]


def test_figures_are_drawn_with_a_single_candidate():
    search = search_of(entry(0.5, macs=7))
    for picture in (draw_progress(search), draw_cost(search, "macs"), draw_choices(search)):
        assert picture and picture.svg.startswith(b"<?xml") and picture.png.startswith(b"\x89PNG")


def test_figures_without_a_score_are_not_drawn():
    search = search_of(entry(None))
    assert draw_progress(search) is None and draw_choices(search) is None


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (999_499, "999 k"), (999_999, "1 M"), (322_918_720, "323 M")],
)
def test_counts_have_three_digits_and_a_prefix(count, text):
    assert scaled(count) == text


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ([None, 40_000_000], b"within the limits"),
        ([1, 900_000_000], "limit: 900 M →".encode()),
        ([900_000_000, 990_000_000], None),
    ],
)
def test_box_of_limits_is_drawn_or_told(tmp_path, limits, text):
    folder = write_experiment(tmp_path / "search")
    plain = draw_cost(read_search(folder), "params")
    write_state(folder, planned=18, constraints={"macs": limits})
    boxed = draw_cost(read_search(folder), "macs")
    assert b"within the limits" not in plain.svg
    assert (text in boxed.svg) if text else (b"within the limits" not in boxed.svg)
