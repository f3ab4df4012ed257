"""The pieces of NNI that search spaces are written with, and what a space's choices mean to NNI.

Imports NNI, `spos.architecture`, `spos.errors`. Other modules take the classes of NNI from here.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import os
import sys
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import nni

from spos.architecture import Candidate, Choices
from spos.errors import ConfigError

if os.environ["NNI_FRAMEWORK"] == "none":  # set by `spos`, too late if nni was imported before it
    nni.set_default_framework("none")

with warnings.catch_warnings():
    # NNI 3.0 wraps every class of torch.nn and says of two of torch 2.13's that they are no modules
    warnings.filterwarnings("ignore", ".*not a nn.Module.*", RuntimeWarning)
    from nni.mutable import Categorical, CategoricalMultiple, Mutable, ensure_frozen, frozen_context
    from nni.nas.nn import pytorch as _pytorch
    from nni.nas.nn.pytorch import (
        Cell,
        InputChoice,
        LayerChoice,
        ModelSpace,
        MutableModule,
        ParametrizedModule,
        Repeat,
    )
    from nni.nas.space import model_context

# NNI writes the module of these two when it is first imported: no type checker knows them before.
MutableBatchNorm2d: Any = getattr(_pytorch, "MutableBatchNorm2d")  # noqa: B009
MutableConv2d: Any = getattr(_pytorch, "MutableConv2d")  # noqa: B009

__all__ = [
    "Cell",
    "InputChoice",
    "LayerChoice",
    "ModelSpace",
    "Mutable",
    "MutableBatchNorm2d",
    "MutableConv2d",
    "MutableModule",
    "NniValues",
    "ParametrizedModule",
    "Repeat",
    "build_widest",
    "list_mutables",
    "model_context",
    "nni_sample",
    "open_hub",
    "read_choices",
    "tabulate",
]

NniValues = Mapping[str, Mapping[Candidate, Any]]  # label -> candidate -> NNI's value of it

MAX_COMBINATIONS = 65_536


def open_hub() -> None:
    """Make the modules of NNI's hub importable without Lightning.

    Its package imports every space and with NASNet NNI's one-shot trainers, which need Lightning.
    Where that is not installed, the package is left empty, and a space is imported from its module
    (``nni.nas.hub.pytorch.proxylessnas``).
    """
    name = "nni.nas.hub.pytorch"
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as problem:
        specification = importlib.util.find_spec(name)
        if "lightning" not in str(problem.name) or specification is None:
            raise
        sys.modules[name] = importlib.util.module_from_spec(specification)


def list_mutables(module: Any) -> list[Mutable]:
    """What a module itself lets be chosen, as NNI has registered it; empty for plain modules."""
    mutables: Any = module.mutables if isinstance(module, MutableModule) else ()
    return list(mutables)


def read_choices(space: ModelSpace) -> dict[str, dict[Candidate, Any]]:
    """Label -> candidate -> the value that NNI knows it by, in the order of the space's definition.

    Names and integers stand for themselves. Other values, such as MobileNetV3's expansion ratio
    4.0, are named by their text ``"4.0"``: a number with a fraction of zero would not survive
    NNI's manager, which is JavaScript. The candidates of an `InputChoice` are its inputs' numbers.

    Raises:
        ConfigError: for a choice that is not one out of a list.
    """
    choices: dict[str, dict[Candidate, Any]] = {}
    for label, mutable in space.simplify().items():
        if isinstance(mutable, Categorical):
            table = {_name(value): value for value in mutable.values}
        elif isinstance(mutable, CategoricalMultiple) and mutable.n_chosen == 1:
            table = {_name(value): [value] for value in mutable.values}
        else:
            raise ConfigError(
                f"{type(space).__name__}: the choice {label!r} is a {type(mutable).__name__}, "
                "expected one candidate out of a list (LayerChoice, nni.choice, Repeat, or "
                "InputChoice of one input)"
            )
        if len(table) != len(mutable.values):
            raise ConfigError(
                f"{type(space).__name__}: candidates of {label!r} have the same name: "
                f"{list(mutable.values)}"
            )
        choices[str(label)] = table  # a plain str: NNI's own would end up in checkpoints
    return choices


def nni_sample(choices: Choices, values: NniValues) -> dict[str, Any]:
    """The architecture ``choices`` as the sample that NNI's ``model_context`` takes."""
    return {label: table[choices[label]] for label, table in values.items()}


def tabulate(
    arguments: Mapping[str, Any], values: NniValues, *, source: str
) -> tuple[tuple[str, ...], dict[tuple[Candidate, ...], dict[str, Any]]]:
    """Evaluate expressions over choices for every combination of the candidates they depend on.

    Args:
        arguments: name -> plain value or NNI expression.
        values: what `read_choices` says of the space.
        source: the module that the arguments are of, for the error message.

    Returns:
        The labels that the expressions depend on, and for each combination of their candidates the
        arguments' plain values.

    Raises:
        ConfigError: if they depend on more combinations than can be tabulated.
    """
    mutables = [value for value in arguments.values() if isinstance(value, Mutable)]
    labels = tuple(dict.fromkeys(label for each in mutables for label in each.simplify()))
    if math.prod(len(values[label]) for label in labels) > MAX_COMBINATIONS:
        raise ConfigError(
            f"{source}: its size depends on more than {MAX_COMBINATIONS} combinations of "
            f"{', '.join(labels)}; let it depend on fewer choices"
        )
    table = {}
    for combination in itertools.product(*(values[label].items() for label in labels)):
        sample = {label: value for label, (_, value) in zip(labels, combination, strict=True)}
        key = tuple(candidate for candidate, _ in combination)
        table[key] = {
            name: ensure_frozen(value, sample=sample) for name, value in arguments.items()
        }
    return labels, table


def build_widest(space: ModelSpace, values: NniValues) -> ModelSpace:
    """The same space, built so that each searched number has its largest candidate.

    NNI builds a space with the first candidate of everything. The weights of a supernet are those
    of the largest, and only the space's own constructor knows how to initialise them.
    """
    largest = {
        label: max(numbers)
        for label, table in values.items()
        if len(numbers := _numbers(table.values())) == len(table)
    }
    with frozen_context(largest):
        widest: Any = type(space)(*space.trace_args, **space.trace_kwargs)
    return widest


def _name(value: Any) -> Candidate:
    return value if type(value) in (str, int) else str(value)


def _numbers(values: Iterable[Any]) -> list[float]:
    return [value for value in values if type(value) in (int, float)]
