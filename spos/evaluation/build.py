"""Evaluators: of a supernet in training, and of the one that a run folder holds.

Imports `spos.placement`, `spos.spaces`, `spos.training` and what is below them.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

import torch

from spos.architecture import Architecture, SearchSpec, describe_differences
from spos.cost.table import CostTable
from spos.data.split import Split, apply_split, balanced_subset, load_split
from spos.errors import ArchitectureError, CheckpointError, ConfigError, DataError
from spos.evaluation.evaluator import Evaluator, ImageBatches, Room, find_room
from spos.placement import place
from spos.spaces import COMMON_OPTIONS, build_space, complete_options
from spos.supernet import Supernet
from spos.training.checkpoint import latest_checkpoint, load_checkpoint, load_weights_into
from spos.training.inputs import Inputs, reopen_inputs, split_id
from spos.training.run_folder import RunSettings, open_supernet_settings

# The layers behind a BatchNorm see batches normalised by their own statistics, so the size of a
# calibration batch is part of the score. 128 is that of the official code.
CALIBRATION_BATCH = 128
VALIDATION_BATCH = 256
CALIBRATION_SEED = 0


def build_evaluator(
    supernet: Supernet,
    inputs: Inputs,
    split: Split,
    *,
    calibration_images: int,
    room: Room = Room(),  # noqa: B008  (it is frozen)
) -> Evaluator:
    """The evaluator of ``supernet`` on the images of its run, which are kept as far as ``room``."""
    training, held_out = apply_split(inputs.data.train, split)
    count = min(calibration_images, len(training))
    calibration = balanced_subset(training, count=count, seed=CALIBRATION_SEED)
    batches = [
        ImageBatches(
            inputs.evaluation_loader(images, batch_size),
            preprocessing=inputs.preprocessing,
            device=inputs.device,
            room=room,
        )
        for images, batch_size in ((calibration, CALIBRATION_BATCH), (held_out, VALIDATION_BATCH))
    ]
    return Evaluator(
        supernet,
        calibration=batches[0],
        validation=batches[1],
        device=inputs.device,
        path_bytes=room.path,
    )


@dataclass(frozen=True)
class TrainedSupernet:
    """A supernet run as the search needs it: what it can be asked, and what is known of it.

    Attributes:
        path: the run folder.
        settings: its ``args.json``.
        table: costs of its architectures.
    """

    path: Path
    settings: RunSettings
    table: CostTable

    @property
    def spec(self) -> SearchSpec:
        """The search space."""
        return self.table.spec

    def differences(self, arch: Architecture) -> str:
        """By which options ``arch`` is another network than this supernet's; empty if by none.

        What it does not say of its images is as here, and dropout, which only training has, may
        differ. An own space must have been imported (`spos.spaces.load_space_class`).
        """
        spec = self.spec
        images = {name: spec.options[name] for name in COMMON_OPTIONS if name in spec.options}
        own = [
            {**complete_options(spec.space, options), "dropout": None}
            for options in ({**images, **arch.options}, spec.options)
        ]
        return describe_differences(*own)

    def check_network(self, arch: Architecture, *, source: str) -> Architecture:
        """Return ``arch`` if it is a part of this supernet, whose options make the same network.

        Raises:
            ArchitectureError: naming ``source`` and the options that differ.
        """
        spec = self.spec
        if differences := self.differences(arch):
            words = ["python", "-m", "spos", "convert", source, "choices.json", "--to", "nni3"]
            words += ["--space", spec.space] if ":" in spec.space else []
            raise ArchitectureError(
                f"{source}: is another network than those of {self.path} ({differences}); to "
                f"evaluate its choices all the same, give them alone (`{shlex.join(words)}`)"
            )
        return arch

    def checkpoint(self) -> Path:
        """The newest whole checkpoint.

        Raises:
            CheckpointError: if there is none.
        """
        found = latest_checkpoint(self.path / "checkpoints")
        if found is None:
            raise CheckpointError(
                f"{self.path}: has no checkpoint yet; train the supernet first "
                f"(`python supernet.py --run-dir {shlex.quote(str(self.path))}`)"
            )
        return found[1]

    def evaluator(
        self, checkpoint: Path, *, data_dir: Path | None, workers: int, device: torch.device
    ) -> Evaluator:
        """An evaluator with the weights of ``checkpoint``, on the images of the run.

        Raises:
            CheckpointError: if the checkpoint is damaged or of another run.
            DataError: if the images, or those held out of them, are not those of the run.
        """
        config = self.settings.config
        state = load_checkpoint(checkpoint)
        if state.get("config") != dict(config):
            raise CheckpointError(
                f"{checkpoint}: was made by a run with other settings than {self.path}/args.json"
            )
        space = build_space(config["space"], options=config["options"], affine=config["affine"])
        supernet = Supernet(space)
        load_weights_into(supernet, state["network"], source=str(checkpoint))
        place(supernet, device)
        inputs, split = self.images(data_dir, workers=workers, device=device)
        return build_evaluator(
            supernet,
            inputs,
            split,
            calibration_images=config["calibration_images"],
            room=find_room(device),
        )

    def images(
        self, data_dir: Path | None, *, workers: int, device: torch.device
    ) -> tuple[Inputs, Split]:
        """The images of the run and which of them it held out; found, not read.

        Raises:
            DataError: if the images, or those held out of them, are not those of the run.
        """
        config = dict(self.settings.config)
        trained_on = Path(self.settings.runtime["data_dir"])
        if data_dir is None and not trained_on.is_dir():
            raise DataError(
                f"{trained_on}: is not there, where by {self.path}/args.json the images are that "
                "the supernet was trained on; say where they are now (--data-dir)"
            )
        data_dir = data_dir or trained_on
        inputs = reopen_inputs(config, data_dir, run_dir=self.path, workers=workers, device=device)
        split = load_split(self.path / "split.json")
        if split_id(split) != config["split"]:
            raise DataError(
                f"{self.path}/split.json: holds out other images than those that the supernet was "
                "not trained on; bring back the split that it was trained with"
            )
        apply_split(inputs.data.train, split)
        return inputs, split


def open_supernet_run(path: Path | str) -> TrainedSupernet:
    """The supernet run in folder ``path``.

    Raises:
        ConfigError: if the folder does not hold one, or its cost table is missing or of another
            network.
    """
    settings, costs = open_supernet_settings(path)
    table = CostTable.load(costs)
    spec, config = table.spec, settings.config
    if (spec.space, dict(spec.options)) != (config["space"], config["options"]):
        raise ConfigError(
            f"{path}/cost.json: holds the costs of {spec.space} {dict(spec.options)}, but the "
            f"supernet is {config['space']} {config['options']}; repeat the command that trained "
            "it, which writes its own"
        )
    return TrainedSupernet(Path(path), settings, table)
