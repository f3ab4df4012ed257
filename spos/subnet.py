"""A trained subnet on disk: weights as safetensors, with all that is needed to use them.

Imports `spos.architecture`, `spos.convert.architectures`, `spos.data`, `spos.errors`,
`spos.files`, `spos.spaces`, `spos.training` and torch.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from spos.architecture import Architecture, parse_architecture
from spos.convert.architectures import read_architecture
from spos.data.prepare import prepare_image
from spos.data.preprocessing import Preprocessing
from spos.errors import CheckpointError, ConfigError
from spos.files import open_atomic, parse_json, read_json
from spos.spaces import build_subnet, default_image_size
from spos.training.checkpoint import load_tensors, load_weights_into
from spos.training.run_folder import code_version, read_settings

FORMAT = "spos-subnet-1"
FOLDER_FORMAT = "spos-folder-1"
FOLDER_CONFIG = "config.json"
FOLDER_WEIGHTS = "model.safetensors"


def save_subnet(
    path: Path | str,
    network: nn.Module,
    arch: Architecture,
    *,
    preprocessing: str | None,
    classes: Sequence[str] | None = None,
) -> None:
    """Write a subnet's weights and, as metadata, its architecture, preprocessing and classes.

    Also the commit of this code. What is not known is left out, as of other systems' weights.
    """
    metadata = {"format": FORMAT, "architecture": arch.to_json()}
    if commit := code_version():
        metadata["commit"] = commit
    save_with_metadata(path, network, metadata, preprocessing=preprocessing, classes=classes)


def save_with_metadata(
    path: Path | str,
    network: nn.Module,
    metadata: Mapping[str, str],
    *,
    preprocessing: str | None,
    classes: Sequence[str] | None,
) -> None:
    """Write a network's weights as safetensors with this metadata, and what is known of its images.

    `read_preprocessing` and `read_classes` read the latter.
    """
    said = dict(metadata)
    if preprocessing is not None:
        said["preprocessing"] = preprocessing
    if classes is not None:
        said["classes"] = json.dumps(list(classes))
    with open_atomic(path) as file:
        file.write(save(plain_tensors(network), said))


def plain_tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    """A network's state dict as files hold it: on the CPU, in the usual memory format."""
    return {name: tensor.contiguous().cpu() for name, tensor in network.state_dict().items()}


def load_subnet(arch: Architecture | Path | str, weights: Path | str | None = None) -> nn.Module:
    """The network of an architecture, in evaluation mode.

    ``load_subnet("best.safetensors")`` is enough for a file that `scratch.py` wrote, since it holds
    its architecture, and so is a folder of ``python -m spos export --hub-dir``. The network has
    more attributes: ``arch``, its `Architecture`; ``image_size``, the side of its input in pixels;
    ``preprocessing`` (`spos.data.Preprocessing`) and ``classes`` (a tuple of names), which are None
    if ``weights`` do not say; and ``preprocess(image)``, which makes of an image file, or an image
    that Pillow has opened, the network's input (1, 3, image_size, image_size), as in evaluation
    (`spos.data.prepare.prepare_image`).

    Args:
        arch: an architecture, a file of one in any format that `read_architecture` reads, a
            published network (``"zoo:megvii"``), a weight file that holds its own, or a folder
            that was exported.
        weights: a ``.safetensors`` file, or a state dict saved by torch. None takes those in the
            file or folder of ``arch``; with an architecture alone they are random.

    Raises:
        ArchitectureError: if the architecture is malformed.
        CheckpointError: if the weights are missing, damaged, unsafe, or of another architecture.
    """
    if isinstance(arch, (str, Path)):
        if Path(arch).is_dir():
            if weights is not None:
                raise CheckpointError(f"{arch}: has weights of its own; leave out {weights}")
            return _load_folder(Path(arch))
        if str(arch).endswith(".safetensors"):
            weights, arch = weights or arch, _read_architecture(Path(arch))
        else:
            arch = read_architecture(arch)
    network = build_subnet(arch, affine=True)
    preprocessing = classes = None
    if weights is not None:
        tensors, preprocessing, classes = _read_weights(weights)
        load_weights_into(network, tensors, source=str(weights))
    return equip_network(network, arch, preprocessing=preprocessing, classes=classes)


def equip_network(
    network: nn.Module,
    arch: Architecture,
    *,
    preprocessing: Preprocessing | None,
    classes: tuple[str, ...] | None,
) -> Any:
    """The network itself, in evaluation mode, with the attributes that `load_subnet` names."""
    equipped: Any = network.eval()
    equipped.arch, equipped.preprocessing, equipped.classes = arch, preprocessing, classes
    equipped.image_size = default_image_size(arch.space, options=arch.options)
    equipped.preprocess = functools.partial(
        prepare_image, preprocessing=preprocessing, image_size=equipped.image_size
    )
    return equipped


def _read_weights(path: Path | str) -> tuple[Any, Preprocessing | None, tuple[str, ...] | None]:
    """State dict, preprocessing and classes of a file of weights, as far as it says them."""
    if not str(path).endswith(".safetensors"):
        tensors = load_tensors(path)
        if isinstance(tensors, dict) and isinstance(tensors.get("network"), dict):
            tensors = tensors["network"]  # a checkpoint of ours
        return tensors, None, None
    metadata, tensors = read_subnet_file(Path(path))
    preprocessing = classes = None
    if "preprocessing" in metadata:
        preprocessing = read_preprocessing(metadata["preprocessing"], path)
    if "classes" in metadata:
        classes = read_classes(metadata["classes"], path)
    return tensors, preprocessing, classes


def _read_architecture(path: Path) -> Architecture:
    with _open_subnet_file(path) as file:
        metadata = file.metadata() or {}
    if "architecture" not in metadata:
        raise CheckpointError(
            f"{path}: does not say which architecture it is of; give the architecture file as well"
        )
    return parse_architecture(metadata["architecture"], source=f"{path}, its architecture")


def _load_folder(folder: Path) -> nn.Module:
    """The network of a folder; what its config.json says holds, and the weights must fit it."""
    path = folder / FOLDER_CONFIG
    if (folder / "args.json").exists() and not path.exists():
        read_settings(folder, stage="scratch")  # refuses a run of supernet.py
        best = folder / "best.safetensors"
        raise CheckpointError(
            f"{folder}: is a run folder, expected a network; give the file that scratch.py writes "
            f"there at its end, {best}" + ("" if best.exists() else " (it is not there yet)")
        )
    config = read_json(path, error=CheckpointError)
    if not isinstance(config, dict) or config.get("format") != FOLDER_FORMAT:
        raise CheckpointError(
            f'{path}: is not the description of an exported network ("format" must be '
            f"{FOLDER_FORMAT!r}); make the folder by `python -m spos export --hub-dir`"
        )
    arch = parse_architecture(
        json.dumps(config.get("architecture")), source=f"{path}, its architecture"
    )
    network = load_subnet(arch, folder / FOLDER_WEIGHTS)
    preprocessing = read_preprocessing(config.get("preprocessing"), path)
    classes = config.get("classes")
    if classes is not None:
        classes = check_classes(classes, path)
    return equip_network(network, arch, preprocessing=preprocessing, classes=classes)


def read_preprocessing(value: Any, path: Path | str) -> Preprocessing:
    """The preprocessing of this name, or of a description with this name (`describe`).

    Raises:
        CheckpointError: naming ``path`` if it is neither.
    """
    name = value.get("name") if isinstance(value, dict) else value
    if not isinstance(name, str):
        raise CheckpointError(f"{path}: does not say which preprocessing its images need")
    try:
        return Preprocessing(name)
    except ConfigError as problem:
        raise CheckpointError(f"{path}: {problem}") from None


def read_classes(text: str, path: Path | str) -> tuple[str, ...]:
    """Names of classes out of their JSON.

    Raises:
        CheckpointError: naming ``path`` if it is not a list of names.
    """
    return check_classes(
        parse_json(text, source=f"{path}, its classes", error=CheckpointError), path
    )


def check_classes(names: Any, path: Path | str) -> tuple[str, ...]:
    """Names of classes, if a value is a list of them.

    Raises:
        CheckpointError: naming ``path`` otherwise.
    """
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{path}: its classes are not a list of names")
    return tuple(names)


def read_subnet_file(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Metadata and tensors of a safetensors file.

    Raises:
        CheckpointError: if it is missing, damaged or no such file.
    """
    with _open_subnet_file(path) as file:
        # Copies: at the odd addresses that tensors have in a file, sums end in other bits.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
        return file.metadata() or {}, tensors


@contextmanager
def _open_subnet_file(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file") from None
    except (SafetensorError, OSError) as problem:
        raise CheckpointError(f"{path}: is damaged or not a safetensors file ({problem})") from None
