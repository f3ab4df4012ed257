"""The page's parts on a search: its progress, the best architecture, the table of the top ones.

Imports `spos.architecture`, `spos.errors`, `spos.report` and `spos.search`.
"""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Callable, Mapping, Sequence

from spos.architecture import Architecture, Candidate
from spos.errors import SposError
from spos.report.markup import Html, element, join
from spos.report.network import Block, list_blocks
from spos.report.network_figures import draw_network
from spos.report.parts import (
    Cell,
    Column,
    Gallery,
    Section,
    Tile,
    choice_strip,
    color_legend,
    folded,
    json_link,
    missing_part,
    notices,
    section,
    table,
)
from spos.report.search_figures import (
    QUALITIES,
    UNITS,
    draw_choices,
    draw_cost,
    draw_progress,
    find_costs,
    is_top1,
    list_candidates,
    order_candidates,
    score_name,
)
from spos.report.sources import SearchRun
from spos.report.style import colors_of, percent, plain, scaled
from spos.search.record import NUM_BEST
from spos.search.results import Entry, score_of

NUM_LISTED = 20
_NO_CANDIDATE = "No candidate has been scored yet: search.jsonl gets a line for each."


def search_sections(search: SearchRun) -> list[Section]:
    """A search: how it went, what it found, and the top of its candidates."""
    colors = colors_of(order_candidates(list_candidates(search.entries)))
    return [_progress(search), _best(search, colors), _top(search, colors)]


def search_tiles(search: SearchRun) -> list[Tile]:
    """What a search has come to so far."""
    ranking = search.ranking
    if not ranking:
        return []
    best, show = ranking[0], _show_score(ranking)
    score = "top-1" if is_top1(ranking) else "score"
    tiles = [
        Tile("Best candidate", show(score_of(best)), f"{score}, round {best.round}"),
        Tile("Median candidate", show(statistics.median_low(map(score_of, ranking))), score),
    ]
    for name, label in (("macs", "MACs"), ("params", "Parameters")):
        if name in best.metrics:
            tiles.append(Tile(label, scaled(best.metrics[name]), "of the best"))
    if "latency_ms" in best.metrics:
        value = f"{best.metrics['latency_ms']:.3g} ms"
        tiles.append(Tile("Latency", value, "of the best"))
    return tiles


def describe_search(search: SearchRun) -> tuple[str, str]:
    """How far a search is, as text and as a class of the page's style."""
    progress, count = search.progress, len(search.entries)
    if progress is None:
        return f"Search: {count} candidates", "partial" if count else "missing"
    text = f"Search: {count} of {progress.num_planned} candidates"
    is_done = count >= progress.num_planned or progress.is_exhausted
    return text, "done" if is_done else "partial" if count else "missing"


# -- how it went -----------------------------------------------------------------------------------


def _progress(search: SearchRun) -> Section:
    gallery = Gallery()
    gallery.add(
        draw_progress(search),
        "All candidates are measured on the same held-out images. The best of them is chosen by "
        "that accuracy, which is therefore a little optimistic.",
        title="Progress",
        missing=_NO_CANDIDATE,
    )
    costs = find_costs(search.entries) if search.ranking else []
    quality = "Accuracy" if is_top1(search.ranking) else "Score"
    for metric in costs:
        gallery.add(
            draw_cost(search, metric),
            _limits_caption(search, metric),
            title=f"{quality} against {UNITS.get(metric, plain(metric))}",
            missing="",
        )
    if search.ranking and not costs:
        gallery.items.append(missing_part("The candidates have no cost that differs among them."))
    caption = (
        f"How often the best {NUM_BEST} candidates up to each round chose it; the triangle marks "
        "what the best architecture has."
    )
    if search.ranking:
        for widths, title in ((False, "What the search chose"), (True, "Widths it chose")):
            if picture := draw_choices(search, widths=widths):
                gallery.add(picture, caption, title=f"{title}, layer by layer", missing="")
    html = section(
        "Search" + (f" {plain(search.id, 40)}" if search.id else ""),
        _intro(search),
        *notices(search.problems),
        gallery.html,
        source=search.folder,
    )
    return Section(html, tuple(gallery.pictures))


def _intro(search: SearchRun) -> Html:
    failed = sum(each.score is None for each in search.entries)
    text = f"{len(search.ranking)} candidates scored, {failed} failed. "
    if search.url:
        return join(text, "NNI's own page is at ", element("a", search.url, href=search.url), ".")
    if search.id:
        text += "NNI's own page is not up now: "
        how = element("code", f"nnictl view {search.id}")
        return join(text, how, " shows it while no search runs.")
    return join(text)


def _limits_caption(search: SearchRun, metric: str) -> str:
    front = "The line is the Pareto front: nothing cheaper scores as much."
    if search.constraints is None:
        return f"{front} The search's state does not say what its limits were."
    limits = [each for each in search.constraints if each.metric == metric]
    if not limits:
        return f"{front} The search had no limit on this."
    low, high = limits[0].low, limits[0].high
    end = f"to {scaled(high)}" if high < math.inf else "or more"
    return f"{front} The search allowed {scaled(max(low, 0))} {end}."


# -- the best one ----------------------------------------------------------------------------------


def _best(search: SearchRun, colors: Mapping[Candidate, str]) -> Section:
    title = "Best architecture"
    ranking = search.ranking
    if not ranking:
        return Section(section(title, "", missing_part(_NO_CANDIDATE)))
    best, gallery = ranking[0], Gallery()
    arch = search.architecture(best)
    blocks: list[Block] = []
    missing = "The search's state is not there, and with it the name of its search space."
    if arch is not None:
        try:
            blocks = list_blocks(arch)
        except SposError as problem:
            missing = f"The network cannot be drawn: {problem}"
    gallery.add(
        draw_network(blocks, colors) if blocks else None,
        "From input to output: height shows the width of each block's output, colour its "
        "candidate, the bars below its multiply-adds.",
        title=f"{best.id[:40]}: {_show_score(ranking)(score_of(best))} "
        f"{'top-1' if is_top1(ranking) else 'score'}",
        missing=missing,
    )
    content = [gallery.html]
    if blocks:
        content.append(folded("Block by block", _block_table(blocks)))
    content += _how_to_train(search, arch)
    return Section(section(title, "", *content), tuple(gallery.pictures))


def _block_table(blocks: Sequence[Block]) -> Html:
    names = ("kernel", "map", "channels", "widest inside", "MACs", "parameters")
    columns = [Column("block", is_text=True), Column("candidate", is_text=True)]
    columns += [Column(name) for name in names]
    rows = [
        [
            Cell(each.label or each.name, is_text=True),
            Cell("" if each.candidate is None else str(each.candidate), is_text=True),
            Cell(f"{each.kernel}×{each.kernel}" if each.kernel else "–"),
            Cell(f"{each.size}×{each.size}"),
            Cell(f"{each.channels:,}"),
            Cell(f"{each.widest:,}" if each.widest else "–"),
            Cell(f"{each.macs:,}"),
            Cell(f"{each.params:,}"),
        ]
        for each in blocks
    ]
    total = [Cell("total", is_text=True), Cell("", is_text=True), *(Cell("") for _ in range(4))]
    macs, params = sum(each.macs for each in blocks), sum(each.params for each in blocks)
    return table(columns, [*rows, [*total, Cell(f"{macs:,}"), Cell(f"{params:,}")]])


def _how_to_train(search: SearchRun, arch: Architecture | None) -> list[Html]:
    path = search.best_path
    if path is None or arch is None:
        return []
    command = f"python scratch.py --fixed-arc {shlex.quote(str(path))}"
    text = element("p", "Train it from scratch (", json_link(arch, "save its JSON"), "):")
    return [element("h3", "Next"), text, element("pre", command)]


# -- the top ---------------------------------------------------------------------------------------


def _top(search: SearchRun, colors: Mapping[Candidate, str]) -> Section:
    title, ranking = "Top architectures", search.ranking
    if not ranking:
        return Section(section(title, "", missing_part(_NO_CANDIDATE)))
    shown = ranking[:NUM_LISTED]
    costs = find_costs(shown)
    extra = [name for name in QUALITIES[1:] if any(name in each.metrics for each in shown)]
    score = score_name(ranking).replace("accuracy ", "")
    columns = [
        Column("rank", "ascending"),
        Column("architecture", "ascending", is_text=True),
        Column("round", "ascending"),
        Column(score, "descending"),
        *(Column({"top5": "top-5 (%)"}.get(name, name), _best_first(name)) for name in extra),
        *(Column({"macs": "MACs", "params": "parameters"}.get(name, plain(name)), "ascending")
          for name in costs),
        Column("choices, in order", is_text=True),
    ]  # fmt: skip
    show = _show_score(ranking)
    rows = []
    for rank, entry in enumerate(shown, start=1):
        arch = search.architecture(entry)
        name = entry.id[:40]
        rows.append(
            [
                Cell(str(rank), rank),
                Cell(json_link(arch, name) if arch else name, name, is_text=True),
                Cell(str(entry.round), entry.round),
                Cell(show(score_of(entry)).removesuffix(" %"), score_of(entry)),
                *(_metric(entry.metrics.get(name), name == "top5") for name in extra),
                *(_metric(entry.metrics.get(name)) for name in costs),
                Cell(choice_strip(entry.choices, colors), is_text=True),
            ]
        )
    intro = (
        f"The best {len(shown)} of {len(ranking)} scored candidates. A name saves the "
        "architecture's JSON; a column's head sorts."
    )
    content = [color_legend(colors), table(columns, rows)]
    return Section(section(title, intro, *content))


def _best_first(name: str) -> str:
    return "ascending" if name == "loss" else "descending"


def _metric(value: float | None, is_share: bool = False) -> Cell:
    if value is None:
        return Cell("–")
    if is_share:
        return Cell(percent(value).removesuffix(" %"), value)
    return Cell(f"{value:,}" if type(value) is int else f"{value:.4g}", value)


def _show_score(ranking: Sequence[Entry]) -> Callable[[float], str]:
    return percent if is_top1(ranking) else "{:.4g}".format
