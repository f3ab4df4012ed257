"""Weights of the reference systems, and ours, as networks of ours.

Imports `spos.architecture`, `spos.convert`, `spos.errors`, `spos.files`, `spos.spaces`,
`spos.subnet`, `spos.supernet`, `spos.training.checkpoint` and torch.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spos.architecture import Architecture, Candidate, parse_architecture
from spos.convert import canyonwind
from spos.convert.inference import (
    drop_candidates,
    mobile_choices,
    mobile_options,
    renumber_mobile,
    shuffle_network,
    split_candidates,
)
from spos.convert.mxnet_params import LIST_START, load_mxnet
from spos.convert.state_dicts import (
    Tensors,
    find_system,
    rename_all,
    reverse_channels,
    settle_places,
)
from spos.errors import ArchitectureError, CheckpointError, ConfigError
from spos.files import parse_json
from spos.spaces import build_space, build_subnet, complete_options
from spos.subnet import read_classes, read_preprocessing, read_subnet_file
from spos.supernet import Supernet
from spos.training.checkpoint import load_tensors, load_weights_into

SUPERNET_FORMAT = "spos-supernet-1"

_CONTAINERS = ("state_dict", "network", "model")
_PREFIXES = ("module.", "architecture.")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class ConvertedWeights:
    """A network of ours with somebody's weights.

    Attributes:
        system: whose weights they were.
        network: a plain subnet, or a `Supernet`.
        space: its search space.
        options: the space's options.
        arch: of a subnet, its architecture.
        affine: whether BatchNorm has weight and bias, where the space leaves the choice.
        own_options: those of ``options`` that the weights themselves say.
        said: of our own files, what else they say, such as ``preprocessing`` and ``classes``.
    """

    system: str
    network: nn.Module
    space: str
    options: Mapping[str, Any]
    arch: Architecture | None
    affine: bool
    own_options: Mapping[str, Any]
    said: Mapping[str, Any]


def read_weights(
    path: Path | str,
    *,
    space: str | None = None,
    options: Mapping[str, Any] | None = None,
    arch: Architecture | None = None,
    is_part: bool = False,
) -> ConvertedWeights:
    """The network whose weights a file of any of the systems holds.

    Which network it is follows from names and shapes. Nothing in the file is run.

    Args:
        path: a ``.safetensors`` file, a file of ``torch.save`` (a state dict, also inside of
            ``state_dict`` or with the prefix ``module.``), or MXNet's ``.params``.
        space: the search space that it must be of.
        options: of the space, where they are not as ImageNet needs them (``image_size``) or cannot
            be seen from the weights.
        arch: of a subnet, the architecture that it must be of.
        is_part: whether a supernet will do, of which the architecture is a part.

    Raises:
        CheckpointError: if the file is damaged, unsafe, of an unknown system, of another network,
            or if ``options`` would make another function of the weights.
    """
    wanted = dict(options or {})
    source = str(path)
    found = _read(Path(path))
    if found.config is not None:
        name, own, choices = _read_config(found.config, source)
        tensors = found.tensors
    else:
        name, own, choices, tensors = _identify(found, arch, wanted, source)
    if space is not None and space != name:
        raise CheckpointError(f"{source}: its weights are of the space {name!r}, not of {space!r}")
    _check_function(found.system, own, wanted, source)
    merged = {"image_size": 224, "num_classes": 1000, **own, **wanted}
    said = found.config or {}
    affine = said.get("affine")
    if not isinstance(affine, bool):
        affine = choices is not None or "first_conv.1.weight" in tensors
    network, subnet = _build(name, merged, choices, tensors, affine, source)
    if arch is not None and not (is_part and subnet is None):
        _check_same(arch, subnet, source)
    return ConvertedWeights(found.system, network, name, merged, subnet, affine, own, said)


@dataclass(frozen=True)
class _Found:
    """Whose tensors a file holds.

    Attributes:
        system: the system's name.
        tensors: by our names.
        space: our space of that system's networks.
        options: options of the space that follow from the system.
        config: of our own files, what they say of space, options and choices.
    """

    system: str
    tensors: Tensors
    space: str = "shufflenetv2"
    options: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None


def _read(path: Path) -> _Found:
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix == ".params" or begins_as_mxnet(path):
        tensors = canyonwind.rename_canyonwind(load_mxnet(path), source=str(path))
        return _Found(canyonwind.NAME, _checked(tensors, path), options=canyonwind.OPTIONS)
    state = load_tensors(path)
    config = state.get("config") if isinstance(state, dict) else None
    for container in _CONTAINERS:
        if isinstance(state, dict) and isinstance(state.get(container), Mapping):
            state = state[container]
            break
    tensors = _checked(state, path)
    if isinstance(config, dict) and "space" in config:
        return _Found("spos", tensors, config=config)
    for prefix in _PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name[len(prefix) :]: tensor for name, tensor in tensors.items()}
    return _rename(tensors, path)


def _read_safetensors(path: Path) -> _Found:
    metadata, tensors = read_subnet_file(path)
    config: dict[str, Any]
    if metadata.get("format") == SUPERNET_FORMAT:
        options = parse_json(
            metadata.get("options", ""), source=f"{path}, its options", error=CheckpointError
        )
        config = {"space": metadata.get("space"), "options": options}
        if "affine" in metadata:  # later versions than the first
            config["affine"] = metadata["affine"] == "true"
    elif "architecture" in metadata:
        arch = parse_architecture(metadata["architecture"], source=f"{path}, its architecture")
        config = {"space": arch.space, "options": arch.options, "choices": arch.choices}
    else:
        return _rename(_checked(tensors, path), path)
    config.update(_images(metadata, path))
    return _Found("spos", _checked(tensors, path), config=config)


def _images(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    """What a file says of the images that its network is for."""
    said: dict[str, Any] = {}
    if "preprocessing" in metadata:
        said["preprocessing"] = read_preprocessing(metadata["preprocessing"], path).name
    if "classes" in metadata:
        said["classes"] = list(read_classes(metadata["classes"], path))
    return said


def begins_as_mxnet(path: Path | str) -> bool:
    """Whether a file begins as a list of MXNet's arrays does."""
    try:
        with open(path, "rb") as file:
            return file.read(len(LIST_START)) == LIST_START
    except OSError as problem:
        raise CheckpointError(f"{path}: cannot be read ({problem.strerror or problem})") from None


def _rename(tensors: Tensors, path: Path) -> _Found:
    system = find_system(tensors, source=str(path))
    renamed = settle_places(rename_all(system, tensors, source=str(path)))
    if system.reverses:
        renamed = reverse_channels(renamed)
    return _Found(system.name, renamed, system.space, system.options)


def _checked(state: Any, path: Path) -> Tensors:
    """Plain tensors by name, of which none claims more entries than the file gave it."""
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        raise CheckpointError(f"{path}: does not hold weights (names and tensors)")
    for name, tensor in state.items():
        is_count = name.endswith("num_batches_tracked") and tensor.dtype == torch.int64
        is_plain = tensor.layout == torch.strided and not (tensor.is_quantized or tensor.is_meta)
        if not is_plain or not (is_count or tensor.dtype in _FLOATS):
            raise CheckpointError(f"{path}: {name[:80]} is not a plain tensor of numbers")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise CheckpointError(f"{path}: {name[:80]} has more entries than the file holds")
    return dict(state)


def _read_config(
    config: Mapping[str, Any], source: str
) -> tuple[str, dict[str, Any], Mapping[str, Candidate] | None]:
    """Space, options and choices that a file of ours says it is of."""
    space, options, choices = (config.get(key) for key in ("space", "options", "choices"))
    try:
        json.dumps([space, dict(options or {}), dict(choices or {})], allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        space = None  # a checkpoint may hold anything there, tensors too
    is_whole = isinstance(space, str) and isinstance(options, Mapping)
    if not is_whole or not (choices is None or isinstance(choices, Mapping)):
        raise CheckpointError(f"{source}: does not say which network its weights are of")
    return space, dict(options), choices  # type: ignore[return-value,arg-type]


# --- which network it is -------------------------------------------------------------------------


def _identify(
    found: _Found, arch: Architecture | None, wanted: Mapping[str, Any], source: str
) -> tuple[str, dict[str, Any], Mapping[str, Candidate] | None, Tensors]:
    """Space, options, choices (None for a supernet) and the tensors by their final names."""
    tensors = found.tensors
    candidates = split_candidates(tensors)
    if candidates and max(map(len, candidates.values())) == 1:
        tensors, candidates = drop_candidates(tensors), {}  # MMRazor's subnets keep the names
    if found.space == "shufflenetv2":
        base = dict(found.options)
        if "channel_scales" in wanted:
            base["channel_scales"] = wanted["channel_scales"]
        elif found.system == canyonwind.NAME and candidates:
            base["channel_scales"] = list(canyonwind.SUPERNET_SCALES)
        space, options, choices = shuffle_network(tensors, base, source=source)
        return space, options, choices, tensors
    options = mobile_options(tensors, found.options, source=source)
    if candidates:
        return found.space, options, None, tensors
    if found.system == "AngleNAS":
        tensors = renumber_mobile(tensors, arch.choices if arch else None, source=source)
    return found.space, options, mobile_choices(tensors, source=source), tensors


# --- the network ---------------------------------------------------------------------------------


def _build(
    space: str,
    options: Mapping[str, Any],
    choices: Mapping[str, Candidate] | None,
    tensors: Tensors,
    affine: bool,
    source: str,
) -> tuple[nn.Module, Architecture | None]:
    """The network with these weights; it is built without memory of its own, to hold no more."""
    arch = None if choices is None else Architecture(space, options, choices)
    try:
        with torch.device("meta"):
            network = build_network(space, options, arch, affine=affine)
    except (ArchitectureError, ConfigError) as problem:
        raise CheckpointError(f"{source}: {problem}") from None
    complete = complete_tensors(network, tensors)
    load_weights_into(network, complete, source=source, assign=True)
    if any(buffer.is_meta for buffer in network.buffers()):  # that are in no state dict
        with torch.random.fork_rng(devices=[]):
            network = build_network(space, options, arch, affine=affine)
        load_weights_into(network, complete, source=source, assign=True)
    return network.eval(), arch


def build_network(
    space: str, options: Mapping[str, Any], arch: Architecture | None, *, affine: bool
) -> nn.Module:
    """The supernet of a space, or with ``arch`` that subnet, newly initialised."""
    if arch is None:
        return Supernet(build_space(space, options=options, affine=affine))
    return build_subnet(arch, affine=affine)


def _check_function(
    system: str, own: Mapping[str, Any], wanted: Mapping[str, Any], source: str
) -> None:
    """Refuse options that fit the shapes of the weights and make another function of them."""
    has, asked = _function(own), _function({**own, **wanted})
    for option, value in asked.items():
        if value != has[option]:
            raise CheckpointError(
                f"{source}: {system}'s weights compute another function with {option} {value!r}; "
                f"say {json.dumps({option: has[option]})} in --space-options"
            )


def _function(options: Mapping[str, Any]) -> dict[str, Any]:
    activation = options.get("activation", "relu")
    return {
        "layout": options.get("layout", "canonical"),
        "skips": options.get("skips", "anglenas"),
        "activation": activation,
        "stem_activation": options.get("stem_activation") or activation,
    }


def _check_same(wanted: Architecture, arch: Architecture | None, source: str) -> None:
    if arch is None:
        raise CheckpointError(f"{source}: holds a supernet, not the subnet of an architecture")
    if wanted.space != arch.space:
        raise CheckpointError(f"{source}: its weights are of {arch.space}, not of {wanted.space}")
    differing = [
        label for label, chosen in arch.choices.items() if wanted.choices.get(label) != chosen
    ]
    if differing:
        raise CheckpointError(
            f"{source}: its weights are not of the given architecture; they differ in "
            f"{', '.join(differing[:6])}"
        )


def check_options(
    found: ConvertedWeights, arch: Architecture, *, source: str, free: Collection[str]
) -> None:
    """Refuse weights of which the architecture's options would make another function.

    What the weights do not say is as in the architecture, but for our own files: there it is the
    space's default.

    Args:
        found: the weights.
        arch: the architecture.
        source: begins the message.
        free: options that may differ.

    Raises:
        CheckpointError: naming those that differ.
    """
    asked = complete_options(arch.space, arch.options)
    if found.said:
        own = complete_options(arch.space, found.own_options)
    else:
        own = {**asked, **found.own_options}
    names = (found.own_options.keys() | arch.options.keys()) - set(free)
    differing = {
        name: own.get(name)
        for name in sorted(names)
        if json.dumps(own.get(name), default=repr) != json.dumps(asked.get(name), default=repr)
    }
    if differing:
        raise CheckpointError(
            f"{source}: its network has other options than the architecture; for that one give "
            f"--space-options '{json.dumps(differing, default=repr)}'"
        )


def complete_tensors(network: nn.Module, tensors: Tensors) -> Tensors:
    """Tensors with those of BatchNorm that change nothing where a system leaves them out.

    BatchNorm without weight and bias is that with ones and zeros; old files and MXNet's do not
    count batches. Numbers of half precision become those of single precision.
    """
    is_double = any(tensor.dtype == torch.float64 for tensor in tensors.values())
    dtype = torch.float64 if is_double else torch.float32
    complete = {
        name: tensor.to(dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in tensors.items()
    }
    for name, module in network.named_modules():
        mean = complete.get(f"{name}.running_mean")
        if not isinstance(module, _BatchNorm) or mean is None:
            continue
        complete.setdefault(f"{name}.num_batches_tracked", torch.tensor(0))
        if module.affine and not {f"{name}.weight", f"{name}.bias"} & complete.keys():
            complete[f"{name}.weight"] = torch.ones_like(mean)
            complete[f"{name}.bias"] = torch.zeros_like(mean)
    return complete
