"""A report from its sources to its files: one HTML page that needs nothing else, and PNGs.

Imports `spos.files` and `spos.report`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from importlib import resources
from pathlib import Path

from spos.files import write_text, writing
from spos.report.markup import Html, element, join, page
from spos.report.parts import Section, Tile, notices, tiles
from spos.report.search_sections import describe_search, search_sections, search_tiles
from spos.report.sources import Sources
from spos.report.style import Picture
from spos.report.training_sections import describe_state, training_section, training_tiles

PAGE = "index.html"


def write_report(sources: Sources, folder: Path) -> list[Path]:
    """Write the page and a PNG of each figure.

    Args:
        sources: what it is about.
        folder: made if it is not there.

    Returns:
        The files, the page first.

    Raises:
        ConfigError: if the folder cannot be written.
    """
    html, pictures = build_page(sources)
    with writing(folder, advice="; give another --output-dir"):
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / PAGE]
        write_text(files[0], html)
        files += [picture.save(folder) for picture in pictures]
    return files


def build_page(sources: Sources) -> tuple[str, list[Picture]]:
    """The whole page, and the figures in it with names that differ."""
    winners = [search.ranking[0] for search in sources.searches if search.ranking]
    best = winners[0].metrics if winners else None
    sections: list[Section] = []
    for run in sources.of_stage("supernet"):
        sections.append(training_section(run, best))
    for search in sources.searches:
        sections += search_sections(search)
    for run in (*sources.of_stage("scratch"), *sources.of_stage("run")):
        sections.append(training_section(run))
    title = _title(sources)
    html = page(
        title,
        element("header", element("div", element("h1", title), *_subtitle(sources))),
        element(
            "main",
            *notices(sources.problems),
            tiles(_tiles(sources)),
            *(each.html for each in sections),
        ),
        element("footer", element("p", _footer())),
        style=_asset("page.css"),
        script=_asset("table.js"),
    )
    return html, _rename([picture for each in sections for picture in each.pictures])


def _title(sources: Sources) -> str:
    runs = [*sources.of_stage("supernet"), *sources.runs]
    space = next((run.config["space"] for run in runs if "space" in run.config), None)
    if space is None:
        states = (search.progress for search in sources.searches)
        space = next((state.space for state in states if state), None)
    data = next((run.config["data"] for run in runs if "data" in run.config), None)
    subject = " on ".join(str(each)[:60] for each in (space, data) if each)
    return f"Architecture search: {subject}" if subject else "Architecture search"


def _subtitle(sources: Sources) -> list[Html]:
    states = [describe_state(run) for run in sources.of_stage("supernet")]
    states += [describe_search(search) for search in sources.searches]
    states += [describe_state(run) for run in sources.runs if run.stage != "supernet"]
    chips = [element("li", text, class_=kind) for text, kind in states]
    time = _newest(sources)
    shown = f"{time:%Y-%m-%d %H:%M:%S} UTC" if time else "nothing has been recorded"
    return [
        element("p", f"As of the newest record: {shown}", class_="muted"),
        element("ul", *chips, class_="chips"),
    ]


def _newest(sources: Sources) -> datetime | None:
    """When the newest line of any journal was written."""
    times = []
    for run in sources.runs:
        if run.last_time is not None and 0 <= run.last_time < 1e11:
            times.append(datetime.fromtimestamp(run.last_time, timezone.utc))
    for search in sources.searches:
        for entry in search.entries:
            try:
                time = datetime.fromisoformat(entry.time)
            except ValueError:
                continue
            if time.tzinfo:
                times.append(time.astimezone(timezone.utc))
    return max(times, default=None)


def _tiles(sources: Sources) -> list[Tile]:
    found: list[Tile] = []
    for run in sources.of_stage("supernet"):
        found += training_tiles(run)
    for search in sources.searches:
        found += search_tiles(search)
    others = [run for run in sources.runs if run.stage != "supernet"]
    for run in others:
        found += training_tiles(run, name=run.path.name if len(others) > 1 else "")
    return found


def _rename(pictures: Sequence[Picture]) -> list[Picture]:
    """The same pictures with a number in the name of each that would overwrite another."""
    seen: dict[str, int] = {}
    renamed = []
    for picture in pictures:
        seen[picture.name] = seen.get(picture.name, 0) + 1
        number = seen[picture.name]
        renamed.append(replace(picture, name=f"{picture.name}_{number}") if number > 1 else picture)
    return renamed


def _footer() -> Html:
    return join(
        "Written by ",
        element("code", "python -m spos report"),
        "; repeat it for the newest state. The figures lie beside this page as PNG files.",
    )


def _asset(name: str) -> str:
    return resources.files("spos.report").joinpath(name).read_text(encoding="utf-8")
