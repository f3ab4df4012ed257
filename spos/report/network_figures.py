"""A network drawn block by block, and the costs of the paths that a supernet was trained on.

Imports `spos.architecture`, `spos.cost.table`, `spos.report`, `spos.training.samplers` and
matplotlib.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Patch

from spos.architecture import Candidate
from spos.cost.table import CostTable
from spos.report.network import Block
from spos.report.sources import TrainingRun
from spos.report.style import (
    BLUE,
    GREY,
    INK,
    MUTED,
    VERMILLION,
    Picture,
    draw,
    format_axis,
    plain,
    scaled,
)
from spos.training.samplers import build_recorded_sampler

MAX_DRAWN_BLOCKS = 60
NUM_SAMPLED_PATHS = 1000
SAMPLED_METRICS = ("macs", "params")
FIXED_COLOR = "#d0d7de"


# -- the network -----------------------------------------------------------------------------------


def draw_network(blocks: Sequence[Block], colors: Mapping[Candidate, str]) -> Picture:
    """The network from left to right: height is width, colour the candidate, below its cost."""
    shown = blocks[:MAX_DRAWN_BLOCKS]

    def fill(figure: Figure) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2.1, 1))
        _draw_blocks(top, shown, colors)
        _draw_macs(bottom, shown, colors)
        used = [each.candidate for each in shown if each.candidate is not None]
        handles = [
            Patch(color=colors.get(each, GREY), label=plain(each, 14))
            for each in dict.fromkeys(sorted(used, key=str))
        ]
        fixed = Patch(color=FIXED_COLOR, label="same in every network")
        figure.legend(
            handles=[*handles, fixed], loc="outside upper left", ncols=8, handlelength=1,
            handleheight=1,
        )  # fmt: skip

    alt = (
        f"The best architecture, {len(blocks)} blocks from input to output: "
        + ", ".join(f"{plain(each.candidate, 14)} {each.channels}" for each in shown
                    if each.candidate is not None)
    )  # fmt: skip
    width = max(8.0, 1.2 + 0.43 * len(shown))
    return draw("best_architecture", alt, fill, size=(width, 4.6), is_wide=True)


def _draw_blocks(axes: Axes, blocks: Sequence[Block], colors: Mapping[Candidate, str]) -> None:
    heights = [max(each.channels, 1) ** 0.5 for each in blocks]  # linear would flatten the first
    tallest = max(heights)
    for x, (block, height) in enumerate(zip(blocks, heights, strict=True)):
        color = _color_of(block, colors)
        axes.add_patch(
            FancyBboxPatch(
                (x - 0.36, -height / 2), 0.72, height, linewidth=0, facecolor=color,
                boxstyle=f"round,pad=0,rounding_size={min(0.12, height / 2)}", mutation_aspect=2.5,
            )
        )  # fmt: skip
        if block.kernel:
            text = f"{block.kernel}×{block.kernel}"
            axes.text(x, 0, text, ha="center", va="center", fontsize=8, color=_ink_on(color),
                      weight="bold")  # fmt: skip
        axes.text(x, height / 2 + 0.03 * tallest, str(block.channels), ha="center", va="bottom",
                  fontsize=8, color=INK)  # fmt: skip
    for first, last, size in _stages(blocks):
        axes.plot([first - 0.36, last + 0.36], [-0.62 * tallest] * 2, color=GREY, linewidth=1)
        axes.text((first + last) / 2, -0.65 * tallest, f"{size}×{size}", ha="center", va="top",
                  fontsize=8, color=MUTED)  # fmt: skip
    axes.text(-0.02, 0.93, "channels", transform=axes.transAxes, ha="right", fontsize=8,
              color=MUTED)  # fmt: skip
    axes.text(-0.02, 0.5, "kernel", transform=axes.transAxes, ha="right", va="center",
              fontsize=8, color=MUTED)  # fmt: skip
    axes.text(-0.02, 0.04, "map (pixels)", transform=axes.transAxes, ha="right", fontsize=8,
              color=MUTED)  # fmt: skip
    axes.set_xlim(-0.7, len(blocks) - 0.3)
    axes.set_ylim(-0.78 * tallest, 0.64 * tallest)
    axes.axis("off")


def _draw_macs(axes: Axes, blocks: Sequence[Block], colors: Mapping[Candidate, str]) -> None:
    bars = [_color_of(each, colors) for each in blocks]
    axes.bar(range(len(blocks)), [each.macs for each in blocks], width=0.72, color=bars)
    names = [plain(each.label or each.name.split(".")[0], 16) for each in blocks]
    axes.set_xticks(range(len(blocks)), names, rotation=60, ha="right", rotation_mode="anchor")
    axes.tick_params(axis="x", labelsize=7.5)
    axes.set_ylabel("MACs")
    axes.grid(axis="x", visible=False)
    format_axis(axes.yaxis, scaled)


def _color_of(block: Block, colors: Mapping[Candidate, str]) -> str:
    return FIXED_COLOR if block.candidate is None else colors.get(block.candidate, GREY)


def _stages(blocks: Sequence[Block]) -> list[tuple[int, int, int]]:
    """First block, last block and map size of every run of blocks with maps of one size."""
    stages: list[tuple[int, int, int]] = []
    for number, block in enumerate(blocks):
        if stages and stages[-1][2] == block.size:
            stages[-1] = (stages[-1][0], number, block.size)
        else:
            stages.append((number, number, block.size))
    return stages


def _ink_on(color: str) -> str:
    """Dark or light text, whichever is read better on a colour (WCAG's relative luminance)."""
    red, green, blue = (int(color[place : place + 2], 16) / 255 for place in (1, 3, 5))
    is_light = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 > 0.18
    return INK if is_light else "white"


# -- sampled paths ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class SampledPaths:
    """Costs of paths that a supernet was trained on.

    Attributes:
        sampler: its name.
        num_steps: of the training.
        macs: multiply-adds of the paths.
        params: their parameters.
    """

    sampler: str
    num_steps: int
    macs: np.ndarray
    params: np.ndarray


def sample_paths(run: TrainingRun) -> SampledPaths | None:
    """The paths of evenly spread steps of a supernet's training so far; None before the first.

    Paths are functions of the seed and the step, so they are drawn again, not read from anywhere.
    Those of a stroll build on each other, so only the last epoch of one is walked.

    Raises:
        ConfigError: if the settings do not say how they were drawn.
        ConstraintError: if ``cost.json`` is missing or has no such metrics.
    """
    if not run.num_steps:
        return None
    table = CostTable.load(run.path / "cost.json")
    sampler, steps_per_epoch = build_recorded_sampler(
        run.config, table, source=str(run.path / "args.json")
    )
    name = str(run.config["sampler"])
    first = max(0, run.num_steps - steps_per_epoch) if name == "strolling" else 0
    count = min(run.num_steps - first, NUM_SAMPLED_PATHS)
    steps = np.linspace(first, run.num_steps - 1, count).astype(int)
    paths = [sampler.sample(step) for step in dict.fromkeys(steps.tolist())]
    macs, params = (
        np.array([table.cost(path, metric) for path in paths], dtype=float)
        for metric in SAMPLED_METRICS
    )
    return SampledPaths(name, run.num_steps, macs, params)


def draw_paths(paths: SampledPaths, best: Mapping[str, float] | None) -> Picture:
    """MACs and parameters of sampled paths with their histograms; ``best``: of the winner."""

    def fill(figure: Figure) -> None:
        grid = figure.add_gridspec(2, 2, width_ratios=(6, 1), height_ratios=(1, 3.4))
        axes = figure.add_subplot(grid[1, 0])
        above = figure.add_subplot(grid[0, 0], sharex=axes)
        beside = figure.add_subplot(grid[1, 1], sharey=axes)
        axes.scatter(paths.macs, paths.params, s=9, color=BLUE, alpha=0.35, linewidth=0,
                     label="sampled path", rasterized=True)  # fmt: skip
        above.hist(paths.macs, bins=30, color=BLUE, alpha=0.75)
        beside.hist(paths.params, bins=30, color=BLUE, alpha=0.75, orientation="horizontal")
        if best and set(SAMPLED_METRICS) <= set(best):
            axes.scatter(best["macs"], best["params"], marker="D", s=46, color=VERMILLION,
                         edgecolor="white", label="best candidate")  # fmt: skip
        axes.set_xlabel("MACs")
        axes.set_ylabel("parameters")
        for axis in (axes.xaxis, axes.yaxis):
            format_axis(axis, scaled)
        for histogram in (above, beside):
            histogram.grid(False)
            histogram.tick_params(labelbottom=histogram is beside, labelleft=histogram is above)
        above.set_ylabel("paths")
        beside.set_xlabel("paths")
        axes.legend(loc="upper left", handletextpad=0.3)

    alt = (
        f"{len(paths.macs)} paths of the {paths.sampler} sampler: MACs from "
        f"{scaled(paths.macs.min())} to {scaled(paths.macs.max())}, parameters from "
        f"{scaled(paths.params.min())} to {scaled(paths.params.max())}"
    )
    return draw("supernet_paths", alt, fill, size=(11, 4.4), is_wide=True)
