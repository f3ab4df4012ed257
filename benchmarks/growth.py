"""How time and memory grow with images, layers, candidates, classes, data set and GPUs.

    python benchmarks/growth.py                 # all tables
    python benchmarks/growth.py --only listing

Every row is measured in a process of its own, so that its peak memory is its own. What this machine
cannot hold is marked: `x` numbers are extended in proportion, the table of GPUs is a simulation.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from interleave import print_configuration

STEPS = 5  # timed training steps of a row, after two that are not
MEGABYTE = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=TABLES, help="one table (default: all)")
    parser.add_argument(
        "--files", type=int, default=50_000, help="image files that are really listed (%(default)s)"
    )
    parser.add_argument(
        "--images-per-second", type=float, default=5_000,
        help="of one GPU, for the simulation (%(default)s)",
    )  # fmt: skip
    args = parser.parse_args()
    print_configuration(threads=os.environ.get("OMP_NUM_THREADS", "all"))
    for name in [args.only] if args.only else TABLES:
        TABLES[name](args)
        print()


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    cells = [list(columns), *([_shown(each) for each in row] for row in rows)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(columns))]
    print(title)
    for row in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 1_000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


# --- one row, in a process of its own ----------------------------------------------------------


def measure(function: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """What ``function`` returns in a new process, and that process's ``peak`` memory in MB."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_with_peak, function, arguments).result()


def _with_peak(function: Callable[..., dict[str, float]], arguments: Sequence[Any]) -> dict:
    result = function(*arguments)
    return {**result, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def training(space: str, options: dict[str, Any], batch: int) -> dict[str, float]:
    """Seconds of a training step of random paths, and what the supernet holds."""
    import torch
    import torch.nn.functional as F

    from spos.cost.counting import build_cost_table
    from spos.spaces import build_space
    from spos.supernet import Supernet
    from spos.training.samplers import UniformSampler

    began = time.perf_counter()
    table = build_cost_table(space, options=options)
    table_seconds = time.perf_counter() - began
    supernet = Supernet(build_space(space, options=options, affine=False))
    supernet.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(supernet.parameters(), lr=0.01, momentum=0.9)
    sampler = UniformSampler(table.spec)
    size = options["image_size"]
    images = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
    labels = torch.randint(options["num_classes"], (batch,))
    seconds = []
    for step in range(-2, STEPS):
        began = time.perf_counter()
        supernet.activate(sampler.sample(step + 2))
        optimizer.zero_grad()
        F.cross_entropy(supernet(images), labels).backward()
        optimizer.step()
        if step >= 0:
            seconds.append(time.perf_counter() - began)
    weights = sum(each.numel() for each in supernet.parameters())
    return {
        "seconds": statistics.median(seconds),
        "params": weights,
        # weights and momentum, as a checkpoint holds them once every candidate was trained
        "checkpoint": 8 * weights / MEGABYTE,
        "table": table_seconds,
    }


def recalibration(num_images: int) -> dict[str, float]:
    """Seconds of a candidate's BatchNorm recalibration on images of 32 pixels in memory."""
    import torch

    from spos.evaluation.batchnorm import recalibrate
    from spos.spaces import build_space
    from spos.supernet import Supernet

    options = {"image_size": 32, "num_classes": 10}
    supernet = Supernet(build_space("shufflenetv2", options=options, affine=False))
    supernet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    supernet.activate({label: each[0] for label, each in supernet.spec_choices.items()})
    images = torch.randint(0, 256, (num_images, 3, 32, 32), dtype=torch.uint8)
    batches = (batch.float().div(255) for batch in images.split(128))
    began = time.perf_counter()
    recalibrate(supernet, supernet.active_modules(), batches)
    return {"seconds": time.perf_counter() - began}


def listing(root: str, indexed: bool) -> dict[str, float]:
    """Seconds to list the image files below ``root``, or to read their list from its index."""
    from spos.data import folder

    folder.INDEXED_IMAGES = 1
    indexes = [Path(root).with_suffix(".json")] if indexed else []
    began = time.perf_counter()
    images = folder.scan_folder(Path(root), indexes=indexes)
    return {"seconds": time.perf_counter() - began, "files": len(images)}


# --- the tables ---------------------------------------------------------------------------------


def images_table(_: argparse.Namespace) -> None:
    rows = []
    for size in (32, 64, 128, 224):
        found = measure(training, "shufflenetv2", {"image_size": size, "num_classes": 1000}, 16)
        each = found["seconds"] / 16 / size**2 * 1e9
        rows.append((size, found["seconds"], each, found["peak"]))
    print_table(
        "image size: a training step of 16 images",
        ("pixels", "s", "us per image and 1,000 pixels", "peak MB"),
        rows,
    )


def candidates_table(_: argparse.Namespace) -> None:
    rows = []
    for space, options, layers, candidates in (
        ("nasbench_macro", {}, 8, 3),
        ("shufflenetv2", {}, 20, 4),
        ("shufflenetv2", {"channel_scales": [0.4, 0.8, 1.2, 1.6]}, 20, 16),
        ("proxyless_gpu", {}, 21, 7),
    ):
        found = measure(training, space, {"image_size": 64, "num_classes": 1000, **options}, 16)
        figures = (found["params"], found["checkpoint"], found["seconds"], found["table"])
        rows.append((space, layers, candidates, *figures, found["peak"]))
    print_table(
        "layers and candidates: a step trains one path, memory holds all (16 images of 64 pixels)",
        ("space", "layers", "candidates", "params", "checkpoint MB", "s", "table s", "peak MB"),
        rows,
    )


def calibration_table(_: argparse.Namespace) -> None:
    rows = []
    for count in (512, 1_024, 2_048, 4_096):
        found = measure(recalibration, count)
        rows.append((count, found["seconds"], found["seconds"] / count * 1e3, found["peak"]))
    columns = ("images", "s", "ms per image", "peak MB")
    print_table("calibration images: one candidate, 32 pixels", columns, rows)


def classes_table(_: argparse.Namespace) -> None:
    rows = []
    for classes in (10, 1_000, 10_000, 21_841):
        found = measure(training, "shufflenetv2", {"image_size": 64, "num_classes": classes}, 16)
        figures = (found["params"], found["checkpoint"], found["seconds"])
        rows.append((classes, *figures, found["peak"]))
    columns = ("classes", "params", "checkpoint MB", "s", "peak MB")
    print_table("classes: a training step of 16 images of 64 pixels", columns, rows)


def listing_table(args: argparse.Namespace) -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root, made = Path(folder, "train"), 0
        for target in (args.files // 10, args.files):
            for number in range(made, target):
                place = root / f"class_{number % 100:04d}"
                if number < 100:
                    place.mkdir(parents=True)
                (place / f"image_{number:08d}.JPEG").touch()
            made = target
            time.sleep(2.1)  # folders that have just changed get no index
            found = measure(listing, str(root), False)
            measure(listing, str(root), True)  # writes the index
            again = measure(listing, str(root), True)
            rows.append((f"{made:,}", found["seconds"], again["seconds"], again["peak"]))
    (_, *_, low), (_, seconds, reading, high) = rows
    for count in (1_281_167, 14_197_122):
        times = count / args.files
        peak = low + (high - low) / 0.9 * times
        rows.append((f"{count:,} x", seconds * times, reading * times, peak))
    print_table(
        "data set: listing its files on a local disk, once; then each process reads the index",
        ("images", "listing s", "index s", "peak MB"),
        rows,
    )


def gpus_table(args: argparse.Namespace) -> None:
    """Ring all-reduce of a path's gradients after a step; nothing overlaps: the worst case."""
    gradients = 4 * 3.4e6  # bytes of the 3.4 million parameters of a path
    rows = []
    for count, batch, bandwidth, name in (
        (1, 1_024, 1.0, ""),
        (8, 1_024, 200e9, "200 GB/s in one machine"),
        (64, 1_024, 25e9, "25 GB/s between machines"),
        (64, 8_192, 25e9, "25 GB/s between machines"),
    ):
        compute = batch / count / args.images_per_second
        hops = 2 * (count - 1)
        exchange = hops / count * gradients / bandwidth + hops * 20e-6 if count > 1 else 0.0
        efficiency = compute / (compute + exchange)
        rows.append((count, batch, 1e3 * compute, 1e3 * exchange, efficiency, name))
    print_table(
        f"GPUs: a simulation, {args.images_per_second:,.0f} images/s each, 20 us a hop",
        ("GPUs", "batch", "compute ms", "exchange ms", "efficiency", "link"),
        rows,
    )


TABLES: dict[str, Callable[[argparse.Namespace], None]] = {
    "images": images_table,
    "candidates": candidates_table,
    "calibration": calibration_table,
    "classes": classes_table,
    "listing": listing_table,
    "gpus": gpus_table,
}

if __name__ == "__main__":
    main()
