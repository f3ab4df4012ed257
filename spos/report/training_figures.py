"""Loss and accuracy over the steps of a training, of the supernet and of the subnet alike.

Imports `spos.report.sources`, `spos.report.style` and matplotlib.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spos.report.sources import TrainingRun
from spos.report.style import (
    BLUE,
    GREEN,
    ORANGE,
    Picture,
    draw,
    format_axis,
    legend_above,
    percent_axis,
    scaled,
)

SIZE = (5.3, 3.3)


@dataclass(frozen=True)
class _Line:
    """How a metric is drawn."""

    metric: str
    label: str
    color: str


def draw_loss(run: TrainingRun) -> Picture | None:
    """Cross-entropy over the steps; None while nothing has been recorded."""
    title = "Loss of the supernet" if run.stage == "supernet" else "Loss"
    other = "sampled paths, held out" if run.stage == "supernet" else f"{run.measured} images"
    lines = (_Line("train/loss", "training", BLUE), _Line("val/loss", other, ORANGE))

    def fill(figure: Figure) -> None:
        axes = _plot(figure, run, lines)
        axes.set_ylabel("cross-entropy (nats)")
        axes.set_ylim(bottom=0, top=_upper_loss(run))
        format_axis(axes.yaxis, lambda number: f"{number:g}")

    return _drawn(f"{run.stage}_loss", title, run, lines, fill)


def draw_accuracy(run: TrainingRun) -> Picture | None:
    """Top-1 accuracy over the steps; None while nothing has been recorded."""
    if run.stage == "supernet":
        lines = (
            _Line("train/top1", "path of the step", BLUE),
            _Line("val/top1", "sampled paths", ORANGE),
        )
    else:
        lines = (
            _Line("train/top1", "training images", BLUE),
            _Line("val/top1", f"{run.measured} images", ORANGE),
            _Line("val/top5", f"{run.measured} images, top-5", GREEN),
        )

    def fill(figure: Figure) -> None:
        axes = _plot(figure, run, lines)
        best, worst = run.curves.get("val/top1_best"), run.curves.get("val/top1_worst")
        if best and worst and best.steps == worst.steps:
            axes.fill_between(
                best.steps, worst.values, best.values, color=ORANGE, alpha=0.22, linewidth=0,
                label="worst to best",
            )  # fmt: skip
            legend_above(axes)
        axes.set_ylim(0, 1.02)
        axes.set_ylabel("accuracy (%)" if run.stage != "supernet" else "top-1 accuracy (%)")
        percent_axis(axes.yaxis)

    return _drawn(f"{run.stage}_accuracy", "Accuracy", run, lines, fill)


def _plot(figure: Figure, run: TrainingRun, lines: tuple[_Line, ...]) -> Axes:
    axes = figure.add_subplot()
    for line in lines:
        if curve := run.curves.get(line.metric):
            marker = "o" if len(curve.steps) < 40 else ""
            axes.plot(
                curve.steps, curve.values, color=line.color, label=line.label, marker=marker,
                markersize=3,
            )  # fmt: skip
    axes.set_xlabel("step")
    axes.set_xlim(0, max(run.num_steps, 1) * 1.02)
    format_axis(axes.xaxis, lambda step: f"{step:,.0f}" if step < 1e5 else scaled(step))
    legend_above(axes)
    return axes


def _drawn(
    name: str,
    title: str,
    run: TrainingRun,
    lines: tuple[_Line, ...],
    fill: Callable[[Figure], None],
) -> Picture | None:
    shown = [f"{line.label} {run.curves[line.metric].last:.3f}" for line in lines
             if line.metric in run.curves]  # fmt: skip
    if not shown:
        return None
    alt = f"{title} over {run.num_steps:,} steps; newest values: {', '.join(shown)}"
    return draw(name, alt, fill, size=SIZE)


def is_cut_off(run: TrainingRun) -> bool:
    """Whether a loss lies beyond the axis of `draw_loss`."""
    losses = _losses(run)
    return bool(losses) and losses[-1] > _upper_loss(run)


def _upper_loss(run: TrainingRun) -> float:
    """Top of the loss axis: an untrained BatchNorm's first loss of hundreds is cut off."""
    losses = _losses(run)
    typical = losses[int(0.9 * (len(losses) - 1))]
    return 1.05 * max(loss for loss in losses if loss <= max(3 * typical, 1e-9))


def _losses(run: TrainingRun) -> list[float]:
    curves = (run.curves.get(metric) for metric in ("train/loss", "val/loss"))
    return sorted(value for curve in curves if curve for value in curve.values)
