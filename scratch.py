"""Train one architecture from scratch and measure it on the test set.

    python scratch.py --fixed-arc best.json             # data/imagenet, else the embedded digits
    python scratch.py --fixed-arc architecture_final.json --data-dir data/cifar10
    torchrun --nproc-per-node 8 scratch.py --fixed-arc best.json --data-dir data/imagenet --amp bf16

Repeat a command to continue it. All training images are used, and the test images only to measure:
the weights written to best.safetensors are those at the end of training, with BatchNorm's
statistics computed exactly over training images. --weights begins with weights that are there
already, to fine-tune them: a network's of other images, or the supernet's. --held-out leaves the
test images alone, to choose between several architectures: it trains without the images that
supernet.py holds out, and measures those.
"""

import argparse
import copy
import logging
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from spos.architecture import Architecture
from spos.convert.architectures import read_architecture
from spos.convert.start import add_weights_flags, find_start, read_subnet_start
from spos.cost.counting import build_cost_table
from spos.cost.table import CostTable
from spos.data.folder import ImageSet
from spos.data.split import Split, apply_split, save_split
from spos.errors import CheckpointError, run_main
from spos.evaluation.accuracy import Accuracy, check_finite, measure_accuracy
from spos.evaluation.batchnorm import recalibrate
from spos.evaluation.build import VALIDATION_BATCH
from spos.evaluation.evaluator import ImageBatches
from spos.flag_values import parse_options, to_path
from spos.spaces import build_subnet, load_space_class, space_spec
from spos.subnet import load_subnet, save_subnet
from spos.training.flags import (
    add_data_flags,
    add_recipe_flags,
    add_run_flags,
)
from spos.training.inputs import Inputs, fit_recipe, open_inputs, open_split, split_id
from spos.training.loop import Training
from spos.training.parallel import broadcast_module, process_group, rank, select_device
from spos.training.recipe import Recipe
from spos.training.run_folder import RunFolder, RunSettings, show_log
from spos.training.teacher_flags import add_teacher_flags, find_teacher

log = logging.getLogger("spos.scratch")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fixed-arc", type=to_path, required=True, metavar="FILE",
                        help="architecture to train: any system's file, or zoo:NAME")  # fmt: skip
    parser.add_argument("--space", help="search space of a file that does not name it, "
                        "or module:Class of your own")  # fmt: skip
    parser.add_argument("--space-options", metavar="JSON", help="options of the space to change")
    add_data_flags(parser)
    parser.add_argument(
        "--held-out", action="store_true",
        help="train without the images that supernet.py holds out, and measure those in place of "
        "the test images",
    )  # fmt: skip
    add_weights_flags(
        parser, "of this architecture, ours or another system's, or of a supernet or its run folder"
    )
    add_recipe_flags(parser)
    add_teacher_flags(parser)
    add_run_flags(parser, run_dir="runs/scratch")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    show_log()
    device = select_device(args.device)
    if args.space:
        load_space_class(args.space, allow_import=True)
    options = parse_options(args.space_options)
    spec = space_spec(args.space, options=options) if args.space else None
    arch = read_architecture(args.fixed_arc, spec)
    with process_group(device):
        inputs = open_inputs(args, device, arch_options=arch.options)
        train(args, fit_architecture(arch, inputs, options), inputs)


def fit_architecture(arch: Architecture, inputs: Inputs, options: dict) -> Architecture:
    """The same choices for the classes and the image size of this data set, checked."""
    fitted = {**arch.options, **inputs.space_options(options)}
    changed = {name: value for name, value in fitted.items() if arch.options.get(name) != value}
    if changed and rank() == 0:
        log.info("the architecture is trained with other options than it came with: %s", changed)
    return space_spec(arch.space, options=fitted).architecture(arch.choices)


@dataclass(frozen=True)
class Division:
    """The images that a run is trained on, and those that it is measured on.

    Attributes:
        training: all training images, or with ``--held-out`` the rest of them.
        measured: the test images, or with ``--held-out`` those.
        split: of the training images; None where the test images are measured.
    """

    training: ImageSet
    measured: ImageSet
    split: Split | None = None

    @property
    def kind(self) -> str:
        """Of the measured images, as names of metrics begin."""
        return "held_out" if self.split else "test"

    @property
    def label(self) -> str:
        """Of the measured images, in words."""
        return self.kind.replace("_", "-")

    def config(self) -> dict[str, object]:
        """The part of a run's configuration that this is, as `supernet.py` has it."""
        if self.split is None:
            return {}
        return {"held_out": len(self.split.held_out), "split": split_id(self.split)}


def divide(inputs: Inputs, *, is_held_out: bool) -> Division:
    if not is_held_out:
        return Division(inputs.data.train, inputs.data.test)
    split = open_split(inputs, per_class=None)
    return Division(*apply_split(inputs.data.train, split), split)


def train(args: argparse.Namespace, arch: Architecture, inputs: Inputs) -> None:
    images = divide(inputs, is_held_out=args.held_out)
    usual = inputs.preset.scratch.for_images(len(images.training))
    recipe = inputs.checked(fit_recipe(usual, args))
    start = find_start(args, inputs, seed=recipe.seed)
    given = read_subnet_start(start, arch) if start else None
    teacher = find_teacher(args, inputs)
    table = build_cost_table(arch.space, options=arch.options)
    config = {
        "space": arch.space,
        "options": dict(arch.options),
        "choices": dict(arch.choices),
        **(start.config() if start else {}),
        **inputs.config(),
        **images.config(),
        **recipe.config(),
        **(teacher.config() if teacher else {}),
    }
    settings = RunSettings("scratch", config, inputs.runtime())
    run = RunFolder(args.run_dir, settings, is_writer=rank() == 0)
    if run.is_writer:
        if images.split:
            save_split(run.path / "split.json", images.split)
        describe(arch, table, images, inputs, recipe)
    torch.manual_seed(recipe.seed)
    network = build_subnet(arch, affine=True) if given is None else given
    measured = ImageBatches(
        inputs.evaluation_loader(images.measured, VALIDATION_BATCH),
        preprocessing=inputs.preprocessing,
        device=inputs.device,
    )
    training = Training(
        network,
        recipe,
        loader=inputs.training_loader(images.training, recipe),
        preprocessing=inputs.preprocessing,
        device=inputs.device,
        run=run,
        validate=lambda: as_metrics(measure_accuracy(network, measured, inputs.device)),
        rehearse=lambda: measure_accuracy(network, islice(measured, 1), inputs.device),
        validate_every=args.val_every or max(1, recipe.epochs // 10),
        save_every=args.save_every,
        teacher=teacher,
    )
    training.fit()
    calibrate(network, images.training, inputs, recipe)
    accuracy = check_finite(measure_accuracy(network, measured, inputs.device))
    run.record(training.step, as_metrics(accuracy, prefix=images.kind))
    best = run.path / "best.safetensors"
    if run.is_writer:
        write_best(best, network, arch, inputs, images, accuracy, table)
    check_best(best, network, measured, inputs.device, accuracy)
    if run.is_writer:
        log.info(
            "%s top-1 %.2f %%, top-5 %.2f %% on %d images; weights: %s", images.label,
            100 * accuracy.top1, 100 * accuracy.top5, accuracy.num_images, best,
        )  # fmt: skip
    run.close()


def describe(
    arch: Architecture, table: CostTable, images: Division, inputs: Inputs, recipe: Recipe
) -> None:
    log.info(
        "%s of %s: %s MACs, %s parameters; %d training images, %d %s images to measure; "
        "%d epochs of %d steps of batch %d at learning rate %g, on %s",
        arch.id, arch.space,
        f"{table.cost(arch.choices, 'macs'):,}", f"{table.cost(arch.choices, 'params'):,}",
        len(images.training), len(images.measured), images.label,
        recipe.epochs, inputs.count_steps(images.training, recipe), recipe.batch_size, recipe.lr,
        inputs.device,
    )  # fmt: skip


def calibrate(network: torch.nn.Module, training: ImageSet, inputs: Inputs, recipe: Recipe) -> None:
    """Exact BatchNorm statistics over augmented training images, as the official code ends."""
    loader = inputs.training_loader(training, recipe)
    num_batches = -(-inputs.preset.calibration_images // recipe.batch_size)
    batches = (
        inputs.preprocessing.apply(images.to(inputs.device))
        for images, _ in islice(loader.epoch(recipe.epochs), num_batches)
    )
    recalibrate(network, network.modules(), batches)
    loader.close()


def as_metrics(accuracy: Accuracy, *, prefix: str = "val") -> dict[str, float]:
    return {
        f"{prefix}/top1": accuracy.top1,
        f"{prefix}/top5": accuracy.top5,
        f"{prefix}/loss": accuracy.loss,
    }


def write_best(
    path: Path, network, arch: Architecture, inputs: Inputs, images: Division, accuracy, table
) -> None:
    prefix = "held_out_" if images.split else ""  # so that `top1` is that of test images
    quality = {f"{prefix}top1": accuracy.top1, f"{prefix}top5": accuracy.top5}
    metrics = {**quality, **table.costs(arch.choices)}
    save_subnet(
        path,
        network,
        Architecture(arch.space, arch.options, arch.choices, metrics),
        preprocessing=inputs.preprocessing.name,
        classes=inputs.data.train.classes,
    )


def check_best(
    path: Path,
    network: torch.nn.Module,
    measured: ImageBatches,
    device: torch.device,
    accuracy: Accuracy,
) -> None:
    """Refuse to end well if the file does not give back the network that was measured.

    All processes measure, since each has its part of the images; the file is on the first
    one's machine.
    """
    saved = load_subnet(path) if rank() == 0 else copy.deepcopy(network)
    saved.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    broadcast_module(saved)
    again = measure_accuracy(saved, measured, device)
    if again.top1 != accuracy.top1:
        raise CheckpointError(
            f"{path}: scores {again.top1:.4f} after loading, {accuracy.top1:.4f} before saving"
        )


if __name__ == "__main__":
    run_main(main)
