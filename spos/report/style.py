"""How the report's figures look: colours, type, number formats, and their way into files.

Imports `spos.architecture`, `spos.errors`, `spos.files` and matplotlib, through its figure classes
alone: no backend with windows is ever chosen.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from spos.architecture import Candidate
from spos.errors import ConfigError
from spos.files import open_atomic

INK, MUTED, GRID = "#1f2328", "#59636e", "#e4e7eb"
# Told apart by people with any kind of colour vision (Okabe and Ito 2008).
BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#e69f00", "#009e73", "#cc79a7"
VERMILLION, SKY, YELLOW, GREY = "#d55e00", "#56b4e9", "#f0e442", "#8c959f"
CATEGORIES = (BLUE, ORANGE, GREEN, PURPLE, VERMILLION, SKY, YELLOW, GREY)
PNG_DPI = 150

# What readers' systems call their own typeface; all narrower than the one figures are laid out in.
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a dollar in a name is a dollar
    "axes.edgecolor": "#afb8c1",
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "white",
    "svg.fonttype": "none",  # text stays text: sharp, small and in the reader's typeface
    "svg.hashsalt": "spos",  # the same figure is the same bytes
}


@dataclass(frozen=True)
class Picture:
    """A figure, ready for the page and for a file.

    Attributes:
        name: of its PNG file, without the suffix.
        alt: what it shows, for those who cannot see it.
        svg: the figure for the page.
        png: the same for slides and papers.
        is_wide: whether it takes the page's whole width; on a narrow screen it scrolls sideways.
    """

    name: str
    alt: str
    svg: bytes
    png: bytes
    is_wide: bool

    @property
    def data_url(self) -> str:
        """The SVG as an address that needs no network; as an image it can run nothing."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg).decode()}"

    def save(self, folder: Path) -> Path:
        """Write the PNG into a folder."""
        path = folder / f"{self.name}.png"
        with open_atomic(path) as file:
            file.write(self.png)
        return path


def draw(
    name: str,
    alt: str,
    fill: Callable[[Figure], None],
    *,
    size: tuple[float, float],
    is_wide: bool = False,
) -> Picture:
    """Draw a figure.

    Args:
        name: of its PNG file.
        alt: what it shows.
        fill: draws into the new figure.
        size: width and height in inches, of 96 CSS pixels each.
        is_wide: see `Picture`.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        fill(figure)
        svg, png = io.BytesIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
        figure.set_layout_engine("none")  # what was laid out stays so
        figure.savefig(png, format="png", dpi=PNG_DPI)
    text = svg.getvalue().replace(b"'DejaVu Sans'", FONTS.replace("'", "&apos;").encode())
    return Picture(name, alt, text, png.getvalue(), is_wide)


def save_plot(figure: Figure, path: Path) -> None:
    """Write the figure that a command was asked for by ``--plot``.

    Raises:
        ConfigError: if the file cannot be written, or its ending is of no known format.
    """
    try:
        figure.savefig(path)
    except (OSError, ValueError) as problem:
        raise ConfigError(f"--plot {path}: cannot be written ({problem})") from None


def plain(value: object, limit: int = 24) -> str:
    """A name out of a file as a figure can show it: short, printable, in letters of its font."""
    text = "".join(each if each.isprintable() and ord(each) < 0x250 else "?" for each in str(value))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def scaled(number: float) -> str:
    """A count with a unit prefix: 322918720 is ``323 M``."""
    number = float(f"{number:.3g}")  # first, or 999999 would be "1e+03 k"
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.3g}"


def percent(share: float) -> str:
    """A share: 0.768 is ``76.8 %``."""
    return f"{100 * share:.1f} %"


def format_axis(axis: Axis, format_number: Callable[[float], str]) -> None:
    """Write an axis' numbers with one of the functions above, at few round places."""
    axis.set_major_locator(MaxNLocator(6))
    axis.set_major_formatter(FuncFormatter(lambda number, _: format_number(number)))


def percent_axis(axis: Axis) -> None:
    """Write shares as per cent, with as many digits as the range asks for."""
    low, high = axis.get_view_interval()
    digits = 0 if high - low > 0.05 else 1
    axis.set_major_locator(MaxNLocator(6))
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.{digits}f}"))


def legend_above(axes: Axes) -> None:
    """The legend on a line of its own over the plot, where it hides no point."""
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0.2,
        handlelength=1.6, columnspacing=1.2, scatteryoffsets=[0.5],
    )  # fmt: skip


def colors_of(candidates: Sequence[Candidate]) -> dict[Candidate, str]:
    """A colour for each candidate, always the same for the same list."""
    return {each: CATEGORIES[n % len(CATEGORIES)] for n, each in enumerate(candidates)}
