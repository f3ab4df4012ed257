r"""Images per second of our loaders against torchvision's ImageFolder with the same augmentation.

    python benchmarks/loading.py --archive imagenet-jpeg-62.tar
    python benchmarks/loading.py --data-dir data/cifar10/train --image-size 32 \
        --augmentation crop-flip

The first decodes the photographs of an archive, repeated under other names until there are enough
for an epoch; the second takes a folder of classes. The baseline yields normalised floats as its
users have them, ours uint8, which is normalised on the device. Data are in the page cache.
"""

from __future__ import annotations

import argparse
import functools
import os
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from interleave import interleave, print_configuration, print_rates
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from spos.data.folder import ImageSet, scan_folder, select_images
from spos.data.loader import Loader, build_loader

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES = 4


def unpack(archive: Path, folder: Path, count: int) -> Path:
    """Class folders with ``count`` links to the photographs of an archive, in turn."""
    with tarfile.open(archive) as tar:
        tar.extractall(folder / "originals", filter="data")
    files = sorted(path for path in (folder / "originals").rglob("*") if path.is_file())
    for number in range(count):
        target = folder / "train" / f"class_{number % CLASSES}"
        target.mkdir(parents=True, exist_ok=True)
        os.link(files[number % len(files)], target / f"{number:05d}.jpg")
    return folder / "train"


def baseline(args: argparse.Namespace, root: Path) -> Callable[[], float]:
    """torchvision's own data set, transforms and worker processes, kept alive between epochs."""
    size = args.image_size
    augmentation = {
        "paper": [
            transforms.RandomResizedCrop(size),
            transforms.ColorJitter(0.4, 0.4, 0.4),
            transforms.RandomHorizontalFlip(),
        ],
        "crop-flip": [
            transforms.RandomCrop(size, padding=size // 8),
            transforms.RandomHorizontalFlip(),
        ],
    }[args.augmentation]
    images = ImageFolder(
        str(root),
        transforms.Compose([*augmentation, transforms.ToTensor(), transforms.Normalize(MEAN, STD)]),
    )
    loader = DataLoader(
        torch.utils.data.Subset(images, range(min(args.count, len(images)))),
        batch_size=args.batch_size,
        shuffle=True,
        num_workers=args.workers,
        drop_last=True,
        persistent_workers=args.workers > 0,
    )

    def run() -> float:
        begun = time.perf_counter()
        count = sum(len(labels) for _, labels in loader)
        return count / (time.perf_counter() - begun)

    return run


def ours(
    args: argparse.Namespace, images: ImageSet, *, backend: str, cache: int = 0, workers: int
) -> Loader:
    return build_loader(
        images, backend=backend, image_size=args.image_size, augmentation=args.augmentation,
        batch_size=args.batch_size, shuffle=True, num_workers=workers, device=args.device,
        cache_bytes=cache * 2**20,
    )  # fmt: skip


def timed(loader: Loader) -> Callable[[], float]:
    epoch = 0

    def run() -> float:
        nonlocal epoch
        epoch += 1
        begun = time.perf_counter()
        count = sum(len(labels) for _, labels in loader.epoch(epoch))
        return count / (time.perf_counter() - begun)

    return run


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--archive", type=Path, help="tar of photographs")
    source.add_argument("--data-dir", type=Path, help="folder of class folders")
    parser.add_argument("--count", type=int, default=512, help="images of an epoch")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--augmentation", choices=("paper", "crop-flip"), default="paper")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cache", type=int, default=1024, help="MiB of the cached variant")
    parser.add_argument("--dali", action="store_true", help="measure the DALI loader too")
    parser.add_argument("--rounds", type=int, default=7)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    print_configuration(
        images=args.count, augmentation=args.augmentation, size=args.image_size,
        batch=args.batch_size, workers=args.workers, device=args.device,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        root = unpack(args.archive, Path(folder), args.count) if args.archive else args.data_dir
        images = scan_folder(root)
        images = select_images(images, range(min(args.count, len(images))))
        build = functools.partial(ours, args, images)
        loaders = {
            "ours, torchvision": build(backend="torchvision", workers=args.workers),
            "ours, cached": build(backend="torchvision", cache=args.cache, workers=args.workers),
            # As training on a CPU does with small images.
            "ours, cached, no workers": build(backend="torchvision", cache=args.cache, workers=0),
        }
        if args.dali:
            loaders["ours, DALI"] = build(backend="dali", workers=args.workers)
        variants = {"ImageFolder": baseline(args, root)}
        variants.update({name: timed(loader) for name, loader in loaders.items()})
        print_rates(interleave(variants, rounds=args.rounds, warmup=1), unit="images/s")
        for loader in loaders.values():
            loader.close()


if __name__ == "__main__":
    main()
