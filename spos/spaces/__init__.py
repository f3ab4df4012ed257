"""The search spaces by name, and what can be made of one: its spec, the space, a plain subnet.

Imports `spos.architecture`, `spos.errors` and the spaces beside it.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from spos.architecture import Architecture, SearchSpec
from spos.errors import ConfigError
from spos.spaces.mobilenet import ProxylessGPUSpace
from spos.spaces.nasbench_macro import NASBenchMacroSpace
from spos.spaces.nni_pieces import ModelSpace, model_context, nni_sample, open_hub, read_choices
from spos.spaces.shufflenet import ShuffleNetV2PlusSpace, ShuffleNetV2Space

# A user's own space may be added here, or be named "module:Class" on the command line.
SPACES: dict[str, type[ModelSpace]] = {
    "shufflenetv2": ShuffleNetV2Space,
    "shufflenetv2plus": ShuffleNetV2PlusSpace,
    "proxyless_gpu": ProxylessGPUSpace,
    "nasbench_macro": NASBenchMacroSpace,
}

DEFAULT_IMAGE_SIZE = 224  # of a space that does not say

COMMON_OPTIONS = ("image_size", "num_classes")


def load_space_class(name: str, *, allow_import: bool = False) -> type[ModelSpace]:
    """The class of a search space.

    Args:
        name: a key of `SPACES`, or ``"package.module:Class"`` for a space of the user's own.
        allow_import: whether such a module may be imported, which runs its code: only if the user
            named it himself, on the command line. The class is then added to `SPACES` under its
            full name, so that the files that name it can be read from there on.

    Raises:
        ConfigError: if there is no such space, or it may not be imported, or it is no space.
    """
    if name in SPACES:
        return SPACES[name]
    module_name, colon, class_name = name.partition(":")
    if not colon:
        raise ConfigError(
            f"there is no search space {name!r}; there are {', '.join(SPACES)}, and your own as "
            "--space package.module:Class"
        )
    if not allow_import:
        raise ConfigError(
            f"the search space {name!r} is code outside of this package, which a file alone may "
            f"not start; if you trust it, say so on the command line: --space {name}"
        )
    try:
        if module_name.startswith("nni.nas.hub"):
            open_hub()
        space_class = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, TypeError, ValueError) as problem:
        raise ConfigError(
            f"the search space {name!r} cannot be imported ({problem}); expected "
            "package.module:Class that Python finds (installed, or on PYTHONPATH)"
        ) from problem
    if not (isinstance(space_class, type) and issubclass(space_class, ModelSpace)):
        raise ConfigError(f"{name!r} is not a subclass of nni.nas.nn.pytorch.ModelSpace")
    SPACES[name] = space_class
    return space_class


def build_space(name: str, *, options: Mapping[str, Any], affine: bool) -> ModelSpace:
    """A search space with all its candidates.

    Its constructor is given those of ``options`` and ``affine`` that it takes. ``image_size`` and
    ``num_classes`` are options of every space, so a constructor without them is left alone; NNI's
    hub calls the latter ``num_labels``, which is understood.

    Args:
        name: see `load_space_class`.
        options: the space's options, such as ``{"image_size": 224, "num_classes": 1000}``.
        affine: whether BatchNorm has weight and bias.

    Raises:
        ConfigError: if the space is unknown, or has no such option, or refuses a value.
    """
    space_class: Any = load_space_class(name)
    return space_class(**_arguments(name, space_class, options, affine))


def space_spec(name: str, *, options: Mapping[str, Any]) -> SearchSpec:
    """Labels and candidates of a search space, in the order of the network's layers.

    Raises:
        ConfigError: as `build_space`, or if it has choices other than one out of a list.
    """
    return SearchSpec(name, options, {k: tuple(v) for k, v in _nni_values(name, options).items()})


def complete_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a search space, with its constructor's defaults for those that are not given.

    Raises:
        ConfigError: if the space is unknown.
    """
    parameters = _constructor_parameters(load_space_class(name))
    defaults = {k: each.default for k, each in parameters.items() if each.default is not each.empty}
    return {**defaults, **options}


def default_image_size(name: str, *, options: Mapping[str, Any]) -> int:
    """The size of the images of a space with these options, or with its constructor's default.

    Raises:
        ConfigError: if the space is unknown.
    """
    if "image_size" in options:
        return options["image_size"]
    parameter = _constructor_parameters(load_space_class(name)).get("image_size")
    default: Any = parameter.default if parameter else None
    return default if type(default) is int else DEFAULT_IMAGE_SIZE


def build_subnet(arch: Architecture, *, affine: bool = True) -> nn.Module:
    """The plain network of an architecture, newly initialised.

    Args:
        arch: the architecture; its space must be known (see `load_space_class`).
        affine: whether BatchNorm has weight and bias.

    Raises:
        ConfigError: if its space or an option is unknown.
        ArchitectureError: if its choices are not of that space.
    """
    values = _nni_values(arch.space, arch.options)
    spec = SearchSpec(arch.space, arch.options, {k: tuple(v) for k, v in values.items()})
    with model_context(nni_sample(spec.check(arch.choices), values)):
        return build_space(arch.space, options=arch.options, affine=affine)


def _nni_values(name: str, options: Mapping[str, Any]) -> dict[str, dict[str | int, Any]]:
    with torch.device("meta"):
        return read_choices(build_space(name, options=options, affine=False))


def _arguments(
    name: str, space_class: type[ModelSpace], options: Mapping[str, Any], affine: bool
) -> dict[str, Any]:
    parameters = _constructor_parameters(space_class)
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    arguments = {}
    for option, value in {**options, "affine": affine}.items():
        if option in parameters or takes_any:
            arguments[option] = value
        elif option == "num_classes" and "num_labels" in parameters:
            arguments["num_labels"] = value
        elif option not in (*COMMON_OPTIONS, "affine"):
            known = sorted({*COMMON_OPTIONS, *parameters} - {"affine"})
            raise ConfigError(
                f"the search space {name!r} has no option {option!r}; it has {', '.join(known)}"
            )
    return arguments


def _constructor_parameters(space_class: type[ModelSpace]) -> dict[str, inspect.Parameter]:
    """Parameters of the constructor that the user wrote, which NNI wraps once per subclass."""
    for each in space_class.__mro__:
        constructor = vars(each).get("_init_wrapped")
        if constructor is not None and constructor.__name__ == "__init__":
            _, *parameters = inspect.signature(constructor).parameters.items()  # without self
            return dict(parameters)
    return {}
