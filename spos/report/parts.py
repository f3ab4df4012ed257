"""The pieces that the report's sections are put together from: tiles, figures, tables, notices.

Imports `spos.architecture` and `spos.report`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from spos.architecture import Architecture, Candidate, Choices
from spos.report.markup import Html, element
from spos.report.style import GREY, Picture, plain

MAX_VALUE = 300  # characters of a setting that are shown


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        html: all of it.
        pictures: the figures in it.
    """

    html: Html
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Tile:
    """One figure of the summary: what it is, its value, and what it is out of."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Cell:
    """A cell of a table: what it shows and, where rows can be sorted by it, its sort key."""

    shown: Html | str
    key: float | str = ""
    is_text: bool = False


@dataclass(frozen=True)
class Column:
    """A column of a table; ``first`` is how the first press sorts, empty if it does not."""

    name: str
    first: str = ""
    is_text: bool = False


@dataclass(frozen=True)
class Gallery:
    """Figures side by side, and what is said in the place of those that are missing."""

    pictures: list[Picture] = field(default_factory=list)
    items: list[Html] = field(default_factory=list)

    def add(self, picture: Picture | None, caption: str, *, title: str, missing: str) -> None:
        """Show a figure with its caption; without one, say ``missing``."""
        heading = element("h3", title)
        if picture is None:
            self.items.append(element("figure", heading, missing_part(missing)))
            return
        self.pictures.append(picture)
        image = element("img", src=picture.data_url, alt=picture.alt)
        self.items.append(
            element(
                "figure",
                heading,
                element("div", image, class_="scroll"),
                element("figcaption", caption),
                class_="wide" if picture.is_wide else None,
            )
        )

    @property
    def html(self) -> Html:
        """All of them."""
        return element("div", *self.items, class_="figures")


def missing_part(text: str) -> Html:
    """What is not there yet, and when it will be."""
    return element("p", text, class_="missing-part")


def notices(problems: Sequence[str]) -> list[Html]:
    """What went wrong, each in a box."""
    return [element("p", problem, class_="problem") for problem in problems]


def tiles(each: Sequence[Tile]) -> Html:
    """The summary's figures."""
    return element(
        "div",
        *(
            element(
                "dl",
                element("dt", tile.label),
                element("dd", tile.value, element("small", f" {tile.note}" if tile.note else "")),
                class_="tile",
            )
            for tile in each
        ),
        class_="tiles",
    )


def table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> Html:
    """A table; one whose columns can be sorted has a button in their heads."""
    heads = [
        element(
            "th",
            element("button", column.name, type="button") if column.first else column.name,
            scope="col",
            data_first=column.first or None,
            class_="text" if column.is_text else None,
        )
        for column in columns
    ]
    body = [
        element(
            "tr",
            *(
                element(
                    "td", cell.shown, data_value=cell.key, class_="text" if cell.is_text else None
                )
                for cell in row
            ),
        )
        for row in rows
    ]
    is_sortable = any(column.first for column in columns)
    return element(
        "div",
        element(
            "table",
            element("thead", element("tr", *heads)),
            element("tbody", *body),
            class_="sortable" if is_sortable else None,
        ),
        class_="scroll",
    )


def settings(config: Mapping[str, object]) -> Html:
    """The settings of a run, folded away."""
    rows = [
        element("tr", element("td", str(key)[:80], class_="text"),
                element("td", _shown(value), class_="text long"))
        for key, value in config.items()
    ]  # fmt: skip
    return folded("Settings", element("div", element("table", *rows), class_="scroll"))


def folded(title: str, content: Html) -> Html:
    """Something that is seen when its title is pressed."""
    return element("details", element("summary", title), content)


def json_link(arch: Architecture, text: str) -> Html:
    """A link that saves an architecture's file; the file is in the page itself."""
    data = base64.b64encode(arch.to_json().encode()).decode()
    address = f"data:application/json;base64,{data}"
    return element("a", text, href=address, download=f"{arch.id}.json")


def choice_strip(choices: Choices, colors: Mapping[Candidate, str]) -> Html:
    """An architecture as a row of coloured squares, one for each named choice."""
    named = [(label, each) for label, each in choices.items() if type(each) is str]
    squares = [
        element("rect", element("title", f"{plain(label)}: {plain(each)}"), x=9 * number, y=0,
                width=8, height=14, rx=1.5, fill=colors.get(each, GREY))
        for number, (label, each) in enumerate(named)
    ]  # fmt: skip
    text = " ".join(plain(each) for _, each in named)
    return element(
        "svg", *squares, width=max(9 * len(named) - 1, 1), height=14, role="img", aria_label=text
    )


def color_legend(colors: Mapping[Candidate, str]) -> Html:
    """Which colour is which candidate."""
    entries = []
    for candidate, color in colors.items():
        square = element("rect", width=11, height=11, rx=2, fill=color)
        swatch = element("svg", square, width=11, height=11, aria_hidden="true")
        entries.append(element("span", swatch, plain(candidate)))
    return element("div", *entries, class_="legend")


def section(title: str, intro: Html | str, *content: Html, source: object = None) -> Html:
    """A part of the page with its title; ``source`` is the folder that it shows."""
    where = [element("p", element("code", str(source)), class_="muted path")] if source else []
    lead = [element("p", intro, class_="muted")] if intro else []
    return element("section", element("h2", title), *where, *lead, *content)


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]} …"
