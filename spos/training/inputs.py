"""The images of a run: which data set, how it is divided, how it is loaded.

Imports `spos.data`, `spos.errors`, `spos.training.parallel`, `spos.training.recipe` and torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib.util
import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spos.data.counter_random import check_seed
from spos.data.decode import BadImage, file_size
from spos.data.digits import is_digits, prepare_digits
from spos.data.folder import DataFolder, ImageSet, names_id, open_data
from spos.data.loader import Loader, build_loader
from spos.data.preprocessing import Preprocessing
from spos.data.schedule import Schedule, count_batches
from spos.data.split import Split, apply_split, default_per_class, load_split, make_split
from spos.errors import CheckpointError, ConfigError, DataError
from spos.training.parallel import rank, world_size
from spos.training.recipe import CPU_PHOTOGRAPHS, PRESETS, Preset, Recipe

IMAGENET_DIR = Path("data/imagenet")
DIGITS_DIR = Path("data/digits")
LARGEST_SMALL_IMAGE = 96  # pixels: below, images keep their size; above, they are photographs
SAMPLED_IMAGES = 64
SMALL_IMAGES_CACHE = 1024  # MiB: CIFAR-10 takes 150

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """The images of a run.

    Attributes:
        data: training and test images.
        kind: a key of `PRESETS`.
        image_size: side of the network's input, in pixels.
        augmentation: of training images.
        preprocessing: from uint8 images to the network's input.
        backend: ``torchvision`` or ``dali``.
        workers: processes or threads of a loader.
        device: where batches are used.
        cache: memory of each loader for decoded images, in MiB.
    """

    data: DataFolder
    kind: str
    image_size: int
    augmentation: str
    preprocessing: Preprocessing
    backend: str
    workers: int
    device: torch.device
    cache: int = 0

    @property
    def preset(self) -> Preset:
        """What suits this kind of data, and the device."""
        preset = PRESETS[self.kind]
        if self.kind == "imagenet" and self.device.type == "cpu":
            return preset.with_batch_size(CPU_PHOTOGRAPHS)
        return preset

    def config(self) -> dict[str, Any]:
        """The part of a run's configuration that this is (see `RunSettings`).

        The last two, which tell its files by their names, are newer than the rest: older runs do
        not have them.
        """
        return {
            "data": self.data.name,
            "num_train": len(self.data.train),
            "num_test": len(self.data.test),
            "classes": list(self.data.train.classes),
            "image_size": self.image_size,
            "augmentation": self.augmentation,
            "preprocessing": self.preprocessing.name,
            "loader": self.backend,
            "train_names": names_id(self.data.train),
            "test_names": names_id(self.data.test),
        }

    def runtime(self) -> dict[str, Any]:
        """What results do not depend on: where the images lie, and the machine."""
        return {
            "data_dir": str(self.data.train.root.parent.resolve()),
            "workers": self.workers,
            "device": str(self.device),
            "cache": self.cache,
        }

    def space_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Options of a search space for these images: their size and classes, and those given.

        Raises:
            ConfigError: if those given say something else of the images.
        """
        options = {"image_size": self.image_size, "num_classes": len(self.data.train.classes)}
        for name, advice in (
            ("image_size", "set the size with --image-size"),
            ("num_classes", "there are as many classes as folders of training images"),
        ):
            if given.get(name, options[name]) != options[name]:
                raise ConfigError(
                    f"--space-options: has the {name} {given[name]!r}, but the images have "
                    f"{options[name]}; leave it out ({advice})"
                )
        return {**options, **given}

    def checked(self, recipe: Recipe) -> Recipe:
        """``recipe``, if these images can be trained on by it.

        Raises:
            ConfigError: if the batch cannot be divided between the processes, or their part of it
                into that many parts, or a square is to be cut out that is larger than the images.
        """
        if recipe.batch_size % world_size():
            raise ConfigError(
                f"--batch-size {recipe.batch_size}: cannot be divided between "
                f"{world_size()} processes; use a multiple"
            )
        batch_size = recipe.batch_size // world_size()
        if recipe.accumulate > batch_size:
            raise ConfigError(
                f"--accumulate {recipe.accumulate}: a process has {batch_size} images of a step"
            )
        if recipe.cutout > self.image_size:
            raise ConfigError(
                f"--cutout {recipe.cutout}: expected a number between 0 and {self.image_size}, the "
                "side of the network's input"
            )
        return recipe

    def training_loader(self, images: ImageSet, recipe: Recipe) -> Loader:
        """Shuffled, augmented batches of this rank, of a recipe that was checked."""
        return self._loader(
            images, recipe.batch_size // world_size(), augmentation=self.augmentation,
            shuffle=True, seed=recipe.seed,
        )  # fmt: skip

    def count_steps(self, images: ImageSet, recipe: Recipe) -> int:
        """Training steps of an epoch, the same for any number of processes."""
        schedule = Schedule(len(images), recipe.batch_size, shuffle=True, seed=recipe.seed)
        return count_batches(schedule)

    def evaluation_loader(self, images: ImageSet, batch_size: int) -> Loader:
        """Every image once, in order, the same at every pass."""
        return self._loader(images, batch_size, augmentation="none", shuffle=False, seed=0)

    def _loader(
        self, images: ImageSet, batch_size: int, *, augmentation: str, shuffle: bool, seed: int
    ) -> Loader:
        return build_loader(
            images,
            backend=self.backend,
            image_size=self.image_size,
            augmentation=augmentation,
            preprocessing=self.preprocessing.name,
            batch_size=batch_size,
            seed=seed,
            shuffle=shuffle,
            num_workers=self.workers,
            rank=rank(),
            world_size=world_size(),
            device=self.device,
            cache_bytes=self.cache * 2**20,
        )


def open_inputs(
    args: argparse.Namespace, device: torch.device, *, arch_options: Mapping[str, Any] | None = None
) -> Inputs:
    """The images that the flags of `add_data_flags` ask for, the rest chosen to suit them.

    An architecture that was searched for as many classes (``arch_options``) keeps its image size.

    Raises:
        DataError: if they are no data set, or of a single class.
    """
    data = open_data(args.data_dir or _default_data_dir())
    if len(data.train.classes) < 2:
        raise DataError(
            f"{data.train.root}: has a single class folder, {''.join(data.train.classes)!r}, and "
            "so nothing to tell apart; expected several, train/<class>/*.jpg and the same in test"
        )
    kind, natural_size = _classify(data)
    if arch_options and arch_options.get("num_classes") == len(data.train.classes):
        natural_size = arch_options.get("image_size") or natural_size
    return Inputs(
        data=data,
        kind=kind,
        image_size=args.image_size or natural_size,
        augmentation=args.augmentation or PRESETS[kind].augmentation,
        preprocessing=Preprocessing("spos" if args.spos_preprocessing else "standard"),
        backend=_choose_backend(args.loader, device),
        workers=_default_workers(kind, device) if args.workers is None else args.workers,
        device=device,
        cache=_default_cache(kind) if args.cache is None else args.cache,
    )


def reopen_inputs(
    config: dict[str, Any], data_dir: Path, *, run_dir: Path, workers: int, device: torch.device
) -> Inputs:
    """The images that the run in ``run_dir`` used, for the stage after it.

    That folder keeps the list of a large data set that cannot be written (see `open_data`).

    Raises:
        DataError: if ``data_dir`` now holds something else.
    """
    data = open_data(data_dir, index_dir=run_dir)
    found = [len(data.train), list(data.train.classes)]
    if found != [config["num_train"], config["classes"]]:
        raise DataError(
            f"{data_dir}: holds {found[0]} training images of {len(found[1])} classes, but the run "
            f"was trained on {config['num_train']} of {len(config['classes'])}; give the data set "
            "that it was trained on (--data-dir)"
        )
    if config.get("train_names", given := names_id(data.train)) != given:
        raise DataError(
            f"{data.train.root}: holds as many training images as the run in {run_dir} was trained "
            "on, but under other names: some were renamed, moved to another class or swapped; "
            "bring them back, or give the data set that it was trained on (--data-dir)"
        )
    kind, _ = _classify(data)
    return Inputs(
        data=data,
        kind=kind,
        image_size=config["image_size"],
        augmentation=config["augmentation"],
        preprocessing=Preprocessing(config["preprocessing"]),
        backend=config["loader"],
        workers=workers,
        device=device,
        cache=_default_cache(kind),
    )


def open_split(inputs: Inputs, *, per_class: int | None) -> Split:
    """The split beside the data if there is one, else a new one.

    That holds out exactly ``per_class`` images of each class; if it is None, as many as suit this
    kind of data or what `default_per_class` makes of that.
    """
    data, wanted = inputs.data, inputs.preset.held_out_per_class
    path = data.train.root.parent / "split.json"
    if path.exists():
        split = load_split(path)
    elif per_class is None:
        number = default_per_class(data.train, wanted=wanted)
        split = make_split(data.train, per_class=number)
        if number < wanted and rank() == 0:
            log.info(
                "held out of each class: %d images, a fifth of the smallest, which is too small "
                "for %d (--held-out-per-class of supernet.py)", number, wanted,
            )  # fmt: skip
    else:
        try:
            split = make_split(data.train, per_class=per_class)
        except DataError as problem:
            raise DataError(f"--held-out-per-class {per_class}: {problem}") from None
    apply_split(data.train, split)  # refuse one of other data now
    return split


def split_id(split: Split) -> str:
    """Twelve hexadecimal digits that tell which images are held out."""
    names = "\n".join(split.held_out).encode(errors="surrogateescape")  # they may not be UTF-8
    return hashlib.sha256(names).hexdigest()[:12]


def fit_recipe(recipe: Recipe, args: argparse.Namespace) -> Recipe:
    """``recipe`` with the given flags, which are named as its fields are.

    Unless they are given, the learning rate follows the batch size, and no more than a tenth of
    the epochs warm up.

    Raises:
        ConfigError: naming the flag that is out of range.
    """
    changes = {each.name: getattr(args, each.name) for each in dataclasses.fields(recipe)}
    if args.batch_size:
        recipe = recipe.with_batch_size(args.batch_size)
    if args.warmup_epochs is None:
        epochs = recipe.epochs if args.epochs is None else args.epochs
        changes["warmup_epochs"] = min(recipe.warmup_epochs, epochs / 10)
    changed = recipe.replace(changes)
    check_seed(changed.seed)
    return changed


def _default_data_dir() -> Path:
    if IMAGENET_DIR.is_dir():
        return IMAGENET_DIR
    if rank() == 0:
        log.info(
            "no --data-dir and no %s: using the embedded handwritten digits in %s",
            IMAGENET_DIR,
            DIGITS_DIR,
        )
    return prepare_digits(DIGITS_DIR)


def _classify(data: DataFolder) -> tuple[str, int]:
    """Kind of data and the input size that suits it."""
    side = _typical_side(data)
    if is_digits(data):
        kind = "digits"
    else:
        kind = "imagenet" if side > LARGEST_SMALL_IMAGE else "small"
    return kind, PRESETS[kind].image_size or max(32, -(-int(side) // 8) * 8)


def _typical_side(data: DataFolder) -> float:
    """Median of the shorter sides of some training images, in pixels; 0 if none can be read."""
    every = max(1, len(data.train) // SAMPLED_IMAGES)
    sides = []
    for path in data.train.paths[::every][:SAMPLED_IMAGES]:
        size = file_size(data.train.root / path)
        if not isinstance(size, BadImage):  # the loader and `data check` name such images
            sides.append(min(size))
    return statistics.median(sides) if sides else 0


def _default_cache(kind: str) -> int:
    """In MiB; photographs hardly ever fit, and decoding them anew wants no memory."""
    return 0 if kind == "imagenet" else SMALL_IMAGES_CACHE


def _default_workers(kind: str, device: torch.device) -> int:
    """None for small images on a CPU.

    To cut and mirror what is in memory takes less time than to hand it from process to process, and
    each process more takes a core away from the threads that train.
    """
    return 0 if kind != "imagenet" and device.type == "cpu" else 2


def _choose_backend(name: str, device: torch.device) -> str:
    has_nvidia = importlib.util.find_spec("nvidia") is not None
    has_dali = has_nvidia and importlib.util.find_spec("nvidia.dali") is not None
    if name == "dali" and not has_dali:
        raise ConfigError(
            "--loader dali: NVIDIA DALI is not installed; run pip install 'spos[dali-cuda130]'"
        )
    if name == "auto":
        return "dali" if has_dali and device.type == "cuda" else "torchvision"
    return name


def check_preprocessing(expected: str, given: str, *, source: str) -> None:
    """Refuse a network whose images are prepared in another way than these.

    Args:
        expected: preprocessing of its images, by name.
        given: of these.
        source: the network, as the subject of the message.

    Raises:
        CheckpointError: saying which flag to change.
    """
    if expected != given:
        word = "give" if expected == "spos" else "leave out"
        raise CheckpointError(
            f"{source} expects images with {expected!r} preprocessing, not with {given!r}; "
            f"{word} --spos-preprocessing"
        )


def check_classes(
    number: int, names: Sequence[str] | None, classes: Sequence[str], *, source: str, advice: str
) -> None:
    """Refuse a network that tells other classes apart than those of these images.

    Args:
        number: of its classes.
        names: of its classes, if known.
        classes: of these images.
        source: the network, as the subject of the message.
        advice: ends the message.

    Raises:
        CheckpointError: if they are more, less, others, or in another order.
    """
    if number != len(classes):
        raise CheckpointError(
            f"{source} tells {number} classes apart, these images are of {len(classes)}; {advice}"
        )
    if names is not None and list(names) != list(classes):
        others = ", ".join(str(each) for each in names if each not in classes)
        raise CheckpointError(
            f"{source} tells other classes apart, or in another order, than those of these images "
            f"({others[:80]}); {advice}"
        )
