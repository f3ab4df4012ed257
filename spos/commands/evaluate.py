"""`python -m spos evaluate`: the accuracy of a trained network on a data set, as it is.

Imports `spos.errors`, `spos.flag_values`; what opens and measures networks, and torch, when it
runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING, Any

from spos.errors import ConfigError
from spos.flag_values import not_negative, parse_options, to_path

if TYPE_CHECKING:
    import torch

    from spos.data.folder import ImageSet
    from spos.data.preprocessing import Preprocessing
    from spos.evaluation.by_class import AccuracyByClass

SHOWN = 5  # worst classes, and confusions
FIRST = 5  # with no more classes than this, a top-5 says nothing


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument(
        "model", type=to_path, metavar="MODEL",
        help="best.safetensors, a folder of export --hub-dir, an .onnx file of export; with "
        "--weights an architecture: any system's file, or zoo:NAME",
    )  # fmt: skip
    parser.add_argument(
        "--data-dir", "--imagenet-dir", type=to_path, required=True, metavar="DIR",
        help="images: DIR/val/CLASS/*, without it DIR/test/CLASS/*, without either DIR/CLASS/*",
    )  # fmt: skip
    weights = parser.add_argument_group("weights of an architecture")
    weights.add_argument(
        "--weights", type=to_path, metavar="FILE", help="of this architecture, ours or another's"
    )
    weights.add_argument(
        "--space", help="search space of a file that does not name it, or module:Class of your own"
    )
    weights.add_argument("--space-options", metavar="JSON", help="options of the space to change")
    parser.add_argument(
        "--spos-preprocessing", action="store_true",
        help="BGR from 0 to 255, as Megvii's and AngleNAS' weights expect, if MODEL does not say; "
        "otherwise normalised RGB",
    )  # fmt: skip
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)"
    )
    parser.add_argument(
        "--workers", type=not_negative, default=2, help="processes that decode images (%(default)s)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, with all classes and confusions"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure the network and print what was found."""
    from spos.deploy.images import match_test_images

    network = _open_network(args)
    device = _choose_device(args, network)
    network.preprocessing = _choose_preprocessing(args, network)
    images = match_test_images(network, args.data_dir, source=args.weights or args.model)
    found = _measure(network, images, device, num_workers=args.workers)
    if args.json:
        print(json.dumps(_as_json(found, images, network.preprocessing)))
    else:
        print(_describe(found, images, network.preprocessing))
    return 0


def _open_network(args: argparse.Namespace) -> Any:
    import torch

    from spos.convert.architectures import read_architecture
    from spos.deploy.networks import open_network, open_weights
    from spos.spaces import load_space_class, space_spec

    options = parse_options(args.space_options)
    if args.space:
        load_space_class(args.space, allow_import=True)
    if args.weights is None:
        if options:
            raise ConfigError(f"--space-options: {args.model} says its own; leave them out")
        return open_network(args.model, threads=torch.get_num_threads())
    spec = space_spec(args.space, options=options) if args.space else None
    arch = read_architecture(args.model, spec)
    arch = dataclasses.replace(arch, options={**arch.options, **options})
    return open_weights(arch, args.weights)


def _choose_device(args: argparse.Namespace, network: Any) -> torch.device:
    from spos.deploy.networks import OnnxNetwork
    from spos.training.parallel import select_device

    if not isinstance(network, OnnxNetwork):
        return select_device(args.device)
    if args.device not in ("auto", "cpu"):
        raise ConfigError(f"--device {args.device}: ONNX Runtime runs {args.model} on the CPU")
    return select_device("cpu")


def _choose_preprocessing(args: argparse.Namespace, network: Any) -> Preprocessing:
    from spos.data.preprocessing import Preprocessing

    said = network.preprocessing
    if said is None:
        return Preprocessing("spos" if args.spos_preprocessing else "standard")
    if args.spos_preprocessing and said.name != "spos":
        raise ConfigError(
            f"{args.weights or args.model}: says that its images need {said.name!r} preprocessing; "
            "leave out --spos-preprocessing"
        )
    return said


def _measure(
    network: Any, images: ImageSet, device: torch.device, *, num_workers: int
) -> AccuracyByClass:
    from tqdm import tqdm

    from spos.deploy.images import evaluation_loader
    from spos.evaluation.by_class import measure_by_class
    from spos.placement import place

    place(network, device)
    loader = evaluation_loader(network, images, num_workers=num_workers, device=device)
    shown = tqdm(loader.epoch(0), total=len(loader), unit=" batches", disable=None)
    batches = ((network.preprocessing.apply(pixels), labels) for pixels, labels in shown)
    try:
        return measure_by_class(network, batches, device, classes=images.classes)
    finally:
        loader.close()


def _as_json(
    found: AccuracyByClass, images: ImageSet, preprocessing: Preprocessing
) -> dict[str, Any]:
    total = found.total
    return {
        "images": str(images.root),
        "preprocessing": preprocessing.name,
        "num_images": total.num_images,
        "top1": total.top1,
        "top1_interval": found.interval,
        "top5": total.top5 if len(images.classes) > FIRST else None,
        "balanced_accuracy": found.balanced,
        "loss": total.loss,
        "classes": [
            {
                "class": each.name,
                "num_images": each.num_images,
                "num_correct": each.num_correct,
                "top1": each.top1,
            }
            for each in found.classes
        ],
        "confusions": [
            {"class": each.name, "predicted": each.predicted, "num_images": each.num_images}
            for each in found.confusions
        ],
    }


def _describe(found: AccuracyByClass, images: ImageSet, preprocessing: Preprocessing) -> str:
    total, known, seen = found.total, len(images.classes), len(found.classes)
    low, high = found.interval
    sizes = {each.name: each.num_images for each in found.classes}
    lines = [
        f"images                {total.num_images:,} of {images.root}, "
        f"{preprocessing.name} preprocessing",
        f"classes               {known:,}" + (f", {seen:,} with images" if seen < known else ""),
        f"top-1                 {100 * total.top1:.2f} % "
        f"(95 % interval {100 * low:.2f} to {100 * high:.2f} %)",
    ]
    if known > FIRST:
        lines.append(f"top-5                 {100 * total.top5:.2f} %")
    lines += [
        f"balanced accuracy     {100 * found.balanced:.2f} %",
        f"loss                  {total.loss:.4f}",
    ]
    if found.confusions:
        lines.append("worst classes")
        lines += [
            f"  {100 * each.top1:6.2f} %  {each.name} ({each.num_correct} of {each.num_images})"
            for each in found.worst(SHOWN)
        ]
        lines.append("most frequent confusions")
        lines += [
            f"  {each.num_images} of {sizes[each.name]} images of {each.name} taken for "
            f"{each.predicted}"
            for each in found.confusions[:SHOWN]
        ]
    return "\n".join(lines)
