"""Train the weight-sharing supernet, one path a step.

    python supernet.py                                  # data/imagenet, else the embedded digits
    python supernet.py --data-dir data/cifar10 --epochs 100 --run-dir runs/cifar10
    torchrun --nproc-per-node 8 supernet.py --data-dir data/imagenet --amp bf16

Repeat a command to continue it. The run folder then holds what the search needs: the settings, the
split of the training images, the cost table (cost.json) and checkpoints.
"""

import argparse
import logging

import torch

from spos.cost.counting import build_cost_table
from spos.data.split import apply_split, save_split
from spos.errors import run_main
from spos.evaluation.build import build_evaluator
from spos.spaces import build_space, load_space_class
from spos.supernet import Supernet
from spos.training.flags import (
    RECIPE_FLAGS,
    add_data_flags,
    add_recipe_flags,
    add_run_flags,
    parse_options,
    parse_range,
)
from spos.training.inputs import Inputs, fit_recipe, open_inputs, open_split
from spos.training.loop import Training
from spos.training.parallel import process_group, rank, select_device
from spos.training.run_folder import RunFolder, RunSettings, show_log
from spos.training.samplers import SAMPLERS, UniformSampler, build_sampler

log = logging.getLogger("spos.supernet")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_data_flags(parser)
    parser.add_argument(
        "--held-out-per-class", type=int, metavar="N",
        help="training images kept for the search, if the data has no split.json",
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
    group.add_argument(
        "--macs-range", metavar="LOW:HIGH",
        help="of macs-uniform (default: the paper's, or mean +- 3 deviations)",
    )  # fmt: skip
    add_recipe_flags(parser)
    add_run_flags(parser, run_dir="runs/supernet")
    group = parser.add_argument_group("validation of sampled paths")
    group.add_argument("--val-paths", type=int, default=4, help="how many (default: %(default)s)")
    group.add_argument(
        "--calibration-images", type=int, metavar="N",
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
    preset = inputs.preset
    recipe = fit_recipe(preset.supernet, args, RECIPE_FLAGS)
    per_class = args.held_out_per_class or preset.held_out_per_class
    split = open_split(inputs.data, inputs.data.train.root.parent, per_class=per_class)
    training, _ = apply_split(inputs.data.train, split)
    options = {
        "image_size": inputs.image_size,
        "num_classes": len(inputs.data.train.classes),
        **parse_options(args.space_options),
    }
    table = build_cost_table(args.space, options=options)
    sampler = build_sampler(
        args.sampler, table, seed=recipe.seed,
        macs_range=parse_range(args.macs_range, flag="--macs-range"),
    )  # fmt: skip
    calibration_images = args.calibration_images or preset.calibration_images
    config = {
        "space": args.space,
        "options": dict(table.spec.options),
        "sampler": args.sampler,
        "macs_range": args.macs_range,
        **inputs.config(),
        "held_out": len(split.held_out),
        "calibration_images": calibration_images,
        "val_paths": args.val_paths,
        **vars(recipe),
    }
    runtime = {
        "data_dir": str(inputs.data.train.root.parent.resolve()),
        "workers": inputs.workers,
        "device": str(inputs.device),
    }
    is_main = rank() == 0
    run = RunFolder(args.run_dir, RunSettings("supernet", config, runtime), is_writer=is_main)
    if is_main:
        save_split(run.path / "split.json", split)
        table.save(run.path / "cost.json")
        log.info(
            "supernet of %s: %d training images, %d held out, %d classes at %d pixels; "
            "%d epochs of batch %d at learning rate %g, on %s",
            args.space, len(training), len(split.held_out), options["num_classes"],
            inputs.image_size, recipe.epochs, recipe.batch_size, recipe.lr, inputs.device,
        )  # fmt: skip

    torch.manual_seed(recipe.seed)
    supernet = Supernet(build_space(args.space, options=options, affine=False))
    evaluator = build_evaluator(supernet, inputs, split, calibration_images=calibration_images)
    paths = [UniformSampler(table.spec, seed=-1).sample(n) for n in range(args.val_paths)]

    def validate() -> dict[str, float]:
        results = [evaluator.evaluate(path) for path in paths]
        top1 = [result.top1 for result in results]
        mean_loss = sum(result.loss for result in results) / len(results)
        return {
            "val/top1": sum(top1) / len(top1),
            "val/top1_best": max(top1),
            "val/top1_worst": min(top1),
            "val/loss": mean_loss,
        }

    Training(
        supernet,
        recipe,
        loader=inputs.training_loader(training, recipe),
        preprocessing=inputs.preprocessing,
        device=inputs.device,
        run=run,
        sampler=sampler,
        validate=validate if paths else None,
        validate_every=args.val_every or max(1, recipe.epochs // 10),
        save_every=args.save_every,
    ).fit()
    run.close()
    if is_main:
        log.info(
            'done: %s; next: nnictl ss_gen -t "python tester.py --run-dir %s", '
            "or python -m spos search start",
            run.path, run.path,
        )  # fmt: skip


if __name__ == "__main__":
    run_main(main)
