"""The page's parts on training: the supernet, its sampled paths, and the network from scratch.

Imports `spos.errors` and `spos.report`.
"""

from __future__ import annotations

from collections.abc import Mapping

from spos.errors import SposError
from spos.report.network_figures import draw_paths, sample_paths
from spos.report.parts import Gallery, Section, Tile, notices, section, settings
from spos.report.sources import TrainingRun
from spos.report.style import percent
from spos.report.training_figures import draw_accuracy, draw_loss, is_cut_off

_TITLES = {"supernet": "Supernet", "scratch": "From scratch", "run": "Training run"}
_INTROS = {
    "supernet": "One network that shares the weights of all candidates. Each step trains one "
    "sampled path; validation measures the same few paths every time, with their own BatchNorm "
    "statistics, on images held out of training.",
    "scratch": "The chosen architecture, trained anew on all training images.",
    "run": "",
}
_HELD_OUT_INTRO = (
    "An architecture, trained anew on the training images without those held out, which measure "
    "it, so that several can be compared without the test images."
)
_NOTHING_YET = "Nothing has been recorded yet: metrics.jsonl gets its first line after an epoch."


def training_section(run: TrainingRun, best: Mapping[str, float] | None = None) -> Section:
    """A training run: its curves, for a supernet its paths, its settings.

    Args:
        run: the run.
        best: MACs and parameters of the search's winner, to be marked among the sampled paths.
    """
    gallery = Gallery()
    gallery.add(draw_loss(run), _loss_caption(run), title="Loss", missing=_NOTHING_YET)
    gallery.add(draw_accuracy(run), _accuracy_caption(run), title="Accuracy", missing=_NOTHING_YET)
    if run.stage == "supernet":
        _add_paths(gallery, run, best)
    content = [*notices(run.problems), gallery.html]
    if run.config:
        content.append(settings(run.config))
    is_compared = run.stage == "scratch" and run.measured == "held-out"
    intro = _HELD_OUT_INTRO if is_compared else _INTROS[run.stage]
    html = section(_TITLES[run.stage], intro, *content, source=run.path)
    return Section(html, tuple(gallery.pictures))


def training_tiles(run: TrainingRun, *, name: str = "") -> list[Tile]:
    """What a run has come to so far; its ``name`` tells it from others of its stage."""
    if run.stage == "supernet" and (curve := run.curves.get("val/top1")):
        return [Tile("Sampled paths", percent(curve.last), "top-1, mean")]
    if run.stage != "supernet":
        for metric, label, images in (
            ("test/top1", "From scratch", "test"),
            ("held_out/top1", "From scratch", "held-out"),
            ("val/top1", "From scratch so far", run.measured),
        ):
            if curve := run.curves.get(metric):
                note = f"top-1, {images} images" + (f", {name}" if name else "")
                return [Tile(label, percent(curve.last), note)]
    return []


def describe_state(run: TrainingRun) -> tuple[str, str]:
    """How far a run is, as text and as a class of the page's style."""
    title = _TITLES[run.stage]
    if run.is_finished:
        return f"{title}: finished, {run.num_steps:,} steps", "done"
    if not run.num_steps:
        return f"{title}: nothing recorded yet", "missing"
    planned = f" of {run.num_planned:,}" if run.num_planned else ""
    return f"{title}: step {run.num_steps:,}{planned}", "partial"


def _add_paths(gallery: Gallery, run: TrainingRun, best: Mapping[str, float] | None) -> None:
    picture, caption = None, ""
    missing = "No path has been sampled yet: the training has not recorded its first epoch."
    try:
        if paths := sample_paths(run):
            picture = draw_paths(paths, best)
            caption = (
                f"{len(paths.macs):,} of the {paths.num_steps:,} paths trained so far, spread "
                f"evenly over the steps, as the {paths.sampler} sampler drew them."
            )
    except SposError as problem:
        missing = f"The sampled paths cannot be drawn: {problem}"
    gallery.add(picture, caption, title="MACs and parameters of sampled paths", missing=missing)


def _loss_caption(run: TrainingRun) -> str:
    if run.stage != "supernet":
        text = f"Cross-entropy on training images (with augmentation) and on {run.measured} images."
        return f"{text} What is beyond the axis is cut off." if is_cut_off(run) else text
    return "Cross-entropy of the step's path in training, and the mean of the validated paths."


def _accuracy_caption(run: TrainingRun) -> str:
    if run.stage != "supernet":
        return (
            "The end counts: best.safetensors holds the last weights, not those of the best epoch."
        )
    return (
        "Accuracy of single paths is that of shared weights: it ranks architectures and is far "
        "below what each reaches when trained alone."
    )
