"""Train the weight-sharing supernet, one path a step.

    python supernet.py                                  # data/imagenet, else the embedded digits
    python supernet.py --data-dir data/cifar10 --epochs 100 --run-dir runs/cifar10
    torchrun --nproc-per-node 8 supernet.py --data-dir data/imagenet --amp bf16

Repeat a command to continue it. The run folder then holds what the search needs: the settings, the
split of the training images, the cost table (cost.json) and checkpoints.
"""

import argparse
import functools
import logging
import os
import shlex
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from spos.convert.start import add_weights_flags, find_start, read_supernet_start
from spos.convert.weights import ConvertedWeights
from spos.cost.constraints import Constraint, parse_constraint_flags, write_constraint_flag
from spos.cost.counting import build_cost_table
from spos.cost.table import CostTable
from spos.data.folder import ImageSet
from spos.data.split import apply_split, save_split
from spos.errors import run_main
from spos.evaluation.build import build_evaluator
from spos.evaluation.evaluator import Evaluator
from spos.flag_values import not_negative, parse_options, positive
from spos.spaces import build_space, load_space_class
from spos.supernet import Supernet
from spos.training.flags import (
    add_data_flags,
    add_recipe_flags,
    add_run_flags,
)
from spos.training.inputs import Inputs, fit_recipe, open_inputs, open_split, split_id
from spos.training.loop import Training
from spos.training.parallel import process_group, rank, select_device
from spos.training.recipe import Recipe
from spos.training.run_folder import RunFolder, RunSettings, show_log
from spos.training.samplers import SAMPLERS, build_sampler, trained_ranges
from spos.training.samplers.arguments import add_path_flags, parse_warmup
from spos.training.samplers.protocol import PathSampler
from spos.training.samplers.uniform import UniformSampler
from spos.training.samplers.warmup import WarmedSampler
from spos.training.shrink_flags import add_shrink_flags, plan_shrinking
from spos.training.shrinking import Shrinking, ShrinkPlan

VAL_SEED = 2**32  # of the paths that validation measures; apart from the seeds people choose
WHOLE_COSTS = "base/cost.json"  # of the space before it was shrunk
SEARCH_LIMIT = 330_000_000  # MACs, in config_search.yml

log = logging.getLogger("spos.supernet")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_data_flags(parser)
    parser.add_argument(
        "--held-out-per-class", type=positive, metavar="N",
        help="training images kept for the search, if the data has no split.json (default: 50 or "
        "25, or a fifth of the smallest class if that is too small)",
    )  # fmt: skip
    group = parser.add_argument_group("search space and paths")
    group.add_argument(
        "--space", default="shufflenetv2",
        help="its name, or module:Class of your own (default: %(default)s)",
    )  # fmt: skip
    group.add_argument("--space-options", metavar="JSON", help="options of the space")
    group.add_argument(
        "--sampler", choices=SAMPLERS, default="macs-uniform",
        help="of the path of each step (default: %(default)s)",
    )  # fmt: skip
    add_path_flags(group)
    add_shrink_flags(parser)
    add_weights_flags(
        parser, "of a supernet, ours or another system's, or a run folder; --epochs 0: as it is"
    )
    add_recipe_flags(parser)
    add_run_flags(parser, run_dir="runs/supernet")
    group = parser.add_argument_group("validation of sampled paths")
    group.add_argument("--val-paths", type=not_negative, default=4,
                       help="how many (default: %(default)s)")  # fmt: skip
    group.add_argument(
        "--calibration-images", type=positive, metavar="N",
        help="for BatchNorm, also in the search (default: 25,600 on ImageNet)",
    )  # fmt: skip
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    show_log()
    device = select_device(args.device)
    load_space_class(args.space, allow_import=True)
    with process_group(device):
        train(args, open_inputs(args, device))


def train(args: argparse.Namespace, inputs: Inputs) -> None:
    split = open_split(inputs, per_class=args.held_out_per_class)
    training, _ = apply_split(inputs.data.train, split)
    recipe = inputs.checked(fit_recipe(inputs.preset.supernet.for_images(len(training)), args))
    start = find_start(args, inputs, seed=recipe.seed)
    usual = {} if start else inputs.preset.space_options.get(args.space, {})
    options = inputs.space_options({**usual, **parse_options(args.space_options)})
    given = read_supernet_start(start, space=args.space, options=options) if start else None
    options = dict(given.options) if given else options
    table = open_costs(args.run_dir, args.space, options)
    make_sampler = sampler_maker(args, recipe, inputs.count_steps(training, recipe))
    sampler, plan = make_sampler(table), plan_shrinking(args, recipe.epochs)
    images = args.calibration_images or inputs.preset.calibration_images
    config = {
        "space": args.space,
        "options": options,
        "affine": given is not None and given.affine,
        **(start.config() if start else {}),
        **path_config(args, plan, table),
        "held_out": len(split.held_out),
        "split": split_id(split),
        "calibration_images": images,
        **inputs.config(),
        **recipe.config(),
    }
    settings = RunSettings("supernet", config, inputs.runtime())
    run = RunFolder(args.run_dir, settings, is_writer=rank() == 0)
    if run.is_writer:
        save_split(run.path / "split.json", split)
        save_costs(run.path, table, will_shrink=plan is not None)
        describe(args.space, inputs, recipe, training, len(split.held_out), sampler)
    torch.manual_seed(recipe.seed)
    supernet = build_supernet(given, args.space, options)
    evaluator = build_evaluator(supernet, inputs, split, calibration_images=images)
    rehearse = functools.partial(evaluator.rehearse, measured_paths(table).sample(0))
    shrinking = plan and Shrinking(
        supernet, table, plan, build_sampler=make_sampler, folder=run.path / "base",
        publish=functools.partial(write_costs, run.path / "cost.json"), seed=recipe.seed,
    )  # fmt: skip

    def validate() -> dict[str, float]:
        return measure_paths(evaluator, shrinking.table if shrinking else table, args.val_paths)

    Training(
        supernet,
        recipe,
        loader=inputs.training_loader(training, recipe),
        preprocessing=inputs.preprocessing,
        device=inputs.device,
        run=run,
        sampler=sampler,
        validate=validate if args.val_paths else None,
        rehearse=rehearse if args.val_paths else None,
        validate_every=args.val_every or max(1, recipe.epochs // 10),
        save_every=args.save_every,
        shrinking=shrinking,
    ).fit()
    if run.is_writer:
        log.info("done: %s; next: %s", args.run_dir, search_command(args, config))
    run.close()


def search_command(args: argparse.Namespace, config: dict[str, Any]) -> str:
    """What searches this run; with its own limits where the usual one leaves nothing trained."""
    words = ["python", "-m", "spos", "search", "start", "--run-dir", str(args.run_dir)]
    if ":" in args.space:
        words += ["--space", args.space]
    table = CostTable.load(args.run_dir / "cost.json")  # what is left of a space that was shrunk
    paths = Constraint("macs", *table.bounds())
    for each in trained_ranges(config, table, source="the settings"):
        if each.metric == "macs":
            paths = each.intersect(paths) or paths
    if paths.low > SEARCH_LIMIT:
        words += ["--constraint", write_constraint_flag(paths)]
    return shlex.join(words)


def sampler_maker(
    args: argparse.Namespace, recipe: Recipe, steps_per_epoch: int
) -> Callable[[CostTable], PathSampler]:
    """What makes the chosen sampler of a space, or of what is left of it, from its costs."""
    return functools.partial(
        build_sampler, args.sampler, seed=recipe.seed, steps_per_epoch=steps_per_epoch,
        ranges=path_ranges(args), warmup=parse_warmup(args.channel_warmup),
    )  # fmt: skip


def path_ranges(args: argparse.Namespace) -> tuple[Constraint, ...]:
    return parse_constraint_flags(args.path_range or (), flag="--path-range")


def path_config(
    args: argparse.Namespace, plan: ShrinkPlan | None, table: CostTable
) -> dict[str, object]:
    """The part of the configuration that says which paths are trained and measured."""
    names = ("sampler", "path_range", "channel_warmup", "val_paths")
    config = {name: getattr(args, name) for name in names}
    metrics = [each.metric for each in path_ranges(args) if each.metric in table.measured]
    if metrics:  # measured again, they would mean other paths
        config["measured_costs"] = {metric: table.digest(metric) for metric in metrics}
    return {**config, "shrink": vars(plan)} if plan else config


def open_costs(run_dir: Path, space: str, options: dict) -> CostTable:
    """Costs of the whole space, with what was measured for it in the run folder."""
    table = build_cost_table(space, options=options)
    for path in (run_dir / WHOLE_COSTS, run_dir / "cost.json"):
        if os.path.exists(path):
            return table.with_measured(CostTable.load(path))
    return table


def save_costs(run_dir: Path, table: CostTable, *, will_shrink: bool) -> None:
    """Write the costs of the whole space where the search reads them, unless it is shrunk there."""
    if will_shrink:
        table.save(run_dir / WHOLE_COSTS)
    if not will_shrink or not (run_dir / "cost.json").exists():
        write_costs(run_dir / "cost.json", table)


def write_costs(path: Path, table: CostTable) -> None:
    """Write the cost table of a run; what was measured for it before is kept."""
    if path.exists():
        known = CostTable.load(path)
        kept = table.with_measured(known)
        if lost := sorted(set(known.measured) - set(kept.measured)):
            log.warning("%s: its %s is of another space and is dropped", path, ", ".join(lost))
        table = kept
    table.save(path)


def build_supernet(start: ConvertedWeights | None, space: str, options: dict) -> Supernet:
    if start is None:
        return Supernet(build_space(space, options=options, affine=False))
    assert isinstance(start.network, Supernet)
    return start.network


def describe(
    space: str,
    inputs: Inputs,
    recipe: Recipe,
    training: ImageSet,
    num_held_out: int,
    sampler: PathSampler,
) -> None:
    log.info(
        "supernet of %s: %d training images, %d held out, %d classes at %d pixels; "
        "%d epochs of %d steps of batch %d at learning rate %g, on %s",
        space, len(training), num_held_out, len(inputs.data.train.classes), inputs.image_size,
        recipe.epochs, inputs.count_steps(training, recipe), recipe.batch_size, recipe.lr,
        inputs.device,
    )  # fmt: skip
    if isinstance(sampler, WarmedSampler):
        log.info("channel warm-up: %s", "; ".join(sampler.describe()))


def measured_paths(table: CostTable) -> UniformSampler:
    return UniformSampler(table.spec, seed=VAL_SEED)


def measure_paths(evaluator: Evaluator, table: CostTable, number: int) -> dict[str, float]:
    """Held-out accuracy of the same few paths every time, BatchNorm recalibrated for each."""
    paths = measured_paths(table)
    results = [evaluator.evaluate(paths.sample(step)) for step in range(number)]
    top1 = [result.top1 for result in results]
    return {
        "val/top1": statistics.mean(top1),
        "val/top1_best": max(top1),
        "val/top1_worst": min(top1),
        "val/loss": statistics.mean(result.loss for result in results),
    }


if __name__ == "__main__":
    run_main(main)
