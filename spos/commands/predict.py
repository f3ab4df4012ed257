"""`python -m spos predict`: what a deployed network says of image files.

Imports `spos.errors`, `spos.flag_values`; `spos.deploy`, `spos.spaces` and torch when it runs.
"""

from __future__ import annotations

import argparse
import json

from spos.errors import ConfigError
from spos.flag_values import positive, to_path


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument(
        "model", type=to_path, metavar="MODEL",
        help="best.safetensors, a folder of export --hub-dir, or an .onnx file of export",
    )  # fmt: skip
    parser.add_argument("images", type=to_path, nargs="+", metavar="IMAGE", help="image files")
    parser.add_argument("--top", type=positive, default=5, help="classes to show (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    parser.add_argument("--space", help="module:Class of your own, if MODEL is of it")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the most probable classes of each image; images are prepared as in evaluation."""
    import torch

    from spos.deploy.networks import check_knows_its_images, open_network
    from spos.spaces import load_space_class

    for path in args.images:
        if path.is_dir():
            raise ConfigError(f"{path}: is a folder, expected image files, such as {path}/*.jpg")
    if args.space:
        load_space_class(args.space, allow_import=True)
    network = open_network(args.model)
    check_knows_its_images(network, args.model)
    for path in args.images:
        with torch.inference_mode():
            probabilities = network(network.preprocess(path))[0].softmax(0)
        best = probabilities.topk(min(args.top, len(probabilities)))
        found = [
            (network.classes[index] if network.classes else str(index), probability)
            for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        if args.json:
            listed = [{"class": name, "probability": value} for name, value in found]
            print(json.dumps({"image": str(path), "classes": listed}))
        else:
            print(path)
            for name, probability in found:
                print(f"  {100 * probability:6.2f} %  {name}")
    return 0
