"""`python -m spos export`: a trained subnet as ONNX, as int8, as a folder to hand over.

Imports `spos.errors`, `spos.files`, `spos.flag_values`; `spos.deploy`, `spos.evaluation`,
`spos.folding`, `spos.training.run_folder` and torch when it runs.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spos.errors import ConfigError
from spos.files import open_atomic, writing
from spos.flag_values import positive, to_path

FOLDED_TOLERANCE = 1e-5
ONNX_TOLERANCE = 1e-4
CALIBRATION_IMAGES = 256
LATENCY_REPEATS = 50


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument(
        "model", type=to_path, metavar="MODEL", help="best.safetensors, or an exported folder"
    )
    outputs = parser.add_argument_group("what to write (at least one)")
    outputs.add_argument(
        "--onnx", type=to_path, metavar="FILE", help="ONNX, float32, BatchNorm folded"
    )
    outputs.add_argument("--int8", type=to_path, metavar="FILE", help="ONNX, int8 (QDQ)")
    outputs.add_argument(
        "--hub-dir", type=to_path, metavar="DIR",
        help="folder with model.safetensors, config.json and a model card",
    )  # fmt: skip
    images = parser.add_argument_group("images that the outputs are checked on")
    images.add_argument(
        "--data-dir", type=to_path, metavar="DIR",
        help="the data set it was trained on (default: what args.json beside MODEL says)",
    )  # fmt: skip
    images.add_argument(
        "--test-images", type=positive, metavar="N", help="of the test set (default: all)"
    )
    _add_int8_flags(parser)
    parser.add_argument(
        "--shuffle-by-convolution", action="store_true",
        help="channel shuffles as fixed 1 x 1 convolutions",
    )  # fmt: skip
    parser.add_argument("--space", help="module:Class of your own, if MODEL is of it")
    parser.set_defaults(run=run)


def _add_int8_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("int8")
    group.add_argument(
        "--calibration", choices=("min-max", "entropy", "percentile"), default="min-max",
        help="how the range of each map follows from the images (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--calibration-images", type=positive, metavar="N",
        help="of the training set, evenly over the classes "
        f"(default: {CALIBRATION_IMAGES}, or all if there are fewer)",
    )  # fmt: skip
    group.add_argument(
        "--float-layers", nargs="+", default=[], metavar="NAME",
        help="layers left in float32, such as first_conv features.0 classifier",
    )  # fmt: skip
    group.add_argument(
        "--per-tensor", action="store_true", help="one scale for a weight, not one per channel"
    )
    group.add_argument(
        "--reduce-range", action=argparse.BooleanOptionalAction, default=True,
        help="7-bit weights; with 8 bits, products overflow on x86 processors without VNNI",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Make everything, check it, then write it."""
    from spos.deploy.folder import write_folder
    from spos.deploy.networks import check_knows_its_images, open_network
    from spos.spaces import load_space_class

    _check_outputs(args)
    if args.space:
        load_space_class(args.space, allow_import=True)
    if args.model.suffix == ".onnx":
        raise ConfigError(f"{args.model}: is ONNX already; give the .safetensors it was made of")
    network = open_network(args.model)
    check_knows_its_images(network, args.model)
    metrics = dict(network.arch.metrics)
    if args.onnx or args.int8:
        made = _make_onnx(args, network)
        metrics.update(made.metrics)
        for path, model in ((args.onnx, made.float32), (args.int8, made.int8)):
            if path:
                _write(path, model)
    if args.hub_dir:
        write_folder(args.hub_dir, network, metrics=metrics)
        print(f"{args.hub_dir}: model.safetensors, config.json, README.md")
    return 0


@dataclass(frozen=True)
class _Made:
    """Models, as bytes, and what was measured of the network."""

    float32: bytes
    int8: bytes
    metrics: dict[str, float]


def _make_onnx(args: argparse.Namespace, network: Any) -> _Made:
    import torch

    from spos.deploy.images import load_calibration_images, load_test_images, open_images
    from spos.deploy.networks import OnnxNetwork, compare_networks
    from spos.deploy.onnx_export import export_onnx, require_onnx
    from spos.evaluation.accuracy import measure_accuracy

    require_onnx()
    data = open_images(network, args.data_dir or _data_dir_of_run(args.model))
    test = load_test_images(network, data.test, count=args.test_images)
    calibration = []
    if args.int8:
        count = args.calibration_images or min(CALIBRATION_IMAGES, len(data.train))
        calibration = load_calibration_images(network, data.train, count=count)
    plain = _fold(args, network, test)
    model = export_onnx(
        plain, network.arch, image_size=network.image_size,
        preprocessing=network.preprocessing, classes=network.classes,
    )  # fmt: skip
    float32 = OnnxNetwork(model, source=str(args.onnx or "ONNX"))
    agreement = compare_networks(network, float32, test)
    agreement.check(ONNX_TOLERANCE, what=f"{args.model} in ONNX Runtime")
    accuracy = measure_accuracy(network, test, torch.device("cpu"))
    print(
        f"ONNX: {_mib(model)}; ONNX Runtime against PyTorch: largest difference of a logit "
        f"{agreement.difference:.1e}, same first class on {100 * agreement.same_top1:.2f} %\n"
        f"test top-1: {100 * accuracy.top1:.2f} % on {accuracy.num_images} images"
    )
    metrics = {"top1": accuracy.top1, "top5": accuracy.top5}
    if not args.int8:
        return _Made(model, b"", metrics)
    int8 = _make_int8(args, model, calibration)
    _report_int8(args, model, int8, float32, test, num_calibrated=sum(map(len, calibration)))
    return _Made(model, int8, metrics)


def _fold(args: argparse.Namespace, network: Any, test: Any) -> Any:
    """The network as it is exported, compared with the one that it is made of."""
    import torch

    from spos.deploy.networks import compare_networks
    from spos.deploy.permutation import shuffle_by_convolution
    from spos.folding import fold_batchnorm

    size = network.image_size
    folding = fold_batchnorm(network, torch.zeros(1, 3, size, size))
    plain = folding.network
    if args.shuffle_by_convolution:
        plain = shuffle_by_convolution(plain)
    folded = compare_networks(network, plain, test)
    folded.check(FOLDED_TOLERANCE, what=f"{args.model} with BatchNorm folded")
    kept = f", {len(folding.kept)} stay: no convolution before them" if folding.kept else ""
    print(
        f"folded: {len(folding.folded)} BatchNorms into convolutions{kept}; largest difference of "
        f"a logit {folded.difference:.1e} on {folded.num_images} test images"
    )
    return plain


def _make_int8(args: argparse.Namespace, model: bytes, calibration: Any) -> bytes:
    from spos.deploy.int8 import Quantization, quantize

    settings = Quantization(
        calibration=args.calibration,
        float_layers=tuple(args.float_layers),
        per_channel=not args.per_tensor,
        reduce_range=args.reduce_range,
    )
    return quantize(model, calibration, settings)


def _report_int8(
    args: argparse.Namespace,
    model: bytes,
    int8: bytes,
    float32: Any,
    test: Any,
    *,
    num_calibrated: int,
) -> None:
    """Print size, what is really int8, accuracy before and after, and latency side by side."""
    import torch

    from spos.deploy.int8 import count_int8_convolutions
    from spos.deploy.latency import measure_latency
    from spos.deploy.networks import OnnxNetwork
    from spos.evaluation.accuracy import measure_accuracy

    quantized = OnnxNetwork(int8, source=str(args.int8))
    num_int8, num_convolutions = count_int8_convolutions(int8, source=str(args.int8))
    accuracies = [
        100 * measure_accuracy(each, test, torch.device("cpu")).top1
        for each in (float32, quantized)
    ]
    images = next(iter(test))[0][:1]
    pair = {"float32": float32, "int8": quantized}
    times = [
        each.median_ms for each in measure_latency(pair, images, repeats=LATENCY_REPEATS).values()
    ]
    print(
        f"int8: {_mib(int8)} ({100 * len(int8) / len(model):.0f} % of float32), {args.calibration} "
        f"over {num_calibrated} training images; {num_int8} of {num_convolutions} "
        f"convolutions run in int8 on this machine\n"
        f"test top-1: {accuracies[0]:.2f} % in float32, {accuracies[1]:.2f} % in int8 "
        f"({accuracies[1] - accuracies[0]:+.2f} points)\n"
        f"latency, one image, one thread, median of {LATENCY_REPEATS} in turns: float32 "
        f"{times[0]:.3f} ms, int8 {times[1]:.3f} ms"
    )


def _data_dir_of_run(model: Path) -> Path:
    """Where the images of the run lie that wrote ``model``."""
    from spos.training.run_folder import read_settings

    try:
        return Path(read_settings(model.parent).runtime["data_dir"])
    except (ConfigError, KeyError):
        raise ConfigError(
            f"{model}: has no args.json of its training beside it that says where its images are; "
            "outputs are checked on real images, so give the data set: --data-dir DIR"
        ) from None


def _check_outputs(args: argparse.Namespace) -> None:
    """Refuse what cannot be written before minutes are spent on it."""
    from spos.deploy.folder import check_folder_free

    if not (args.onnx or args.int8 or args.hub_dir):
        raise ConfigError("nothing to write: give at least one of --onnx, --int8, --hub-dir")
    if args.onnx and args.onnx == args.int8:
        raise ConfigError(f"--onnx and --int8 are the same file, {args.onnx}")
    for path in (args.onnx, args.int8):
        if path and path.suffix != ".onnx":
            raise ConfigError(f"{path}: an ONNX file is called .onnx")
        if path and path.is_dir():
            raise ConfigError(f"{path}: is a folder")
        if path and not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
            raise ConfigError(f"{path}: cannot be written (no such folder, or it is read-only)")
    if args.hub_dir:
        check_folder_free(args.hub_dir)


def _write(path: Path, model: bytes) -> None:
    with writing(path), open_atomic(path) as file:
        file.write(model)


def _mib(model: bytes) -> str:
    return f"{len(model) / 2**20:.1f} MiB"
