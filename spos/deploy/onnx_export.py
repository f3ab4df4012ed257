"""A subnet as an ONNX model: folded, named after its modules, with all that is needed to use it.

Imports `spos.architecture`, `spos.data`, `spos.errors` and torch; onnx when it exports.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from spos.architecture import Architecture
from spos.data.preprocessing import Preprocessing
from spos.errors import ConfigError

FORMAT = "spos-onnx-1"
INPUT, OUTPUT = "images", "logits"
WEIGHTED = ("Conv", "Gemm", "MatMul")  # operations with weights
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def export_onnx(
    network: nn.Module,
    arch: Architecture,
    *,
    image_size: int,
    preprocessing: Preprocessing,
    classes: Sequence[str] | None = None,
) -> bytes:
    """The bytes of an ONNX model of ``network``.

    Its input ``images`` is float32 (batch, 3, image_size, image_size), preprocessed, for any batch;
    its output ``logits`` is (batch, classes). Convolutions and linear layers bear the names of
    their modules. The metadata are ``format``, ``architecture``, ``preprocessing``
    (`Preprocessing.describe`) and ``classes`` (JSON); what the exporter notes about the program
    that ran it is taken out.

    Args:
        network: a plain network on the CPU, best one of `fold_batchnorm`.
        arch: its architecture.
        image_size: side of its images.
        preprocessing: of its images.
        classes: their names, if known.

    Raises:
        ConfigError: if onnx is not installed.
    """
    require_onnx()
    # Two images: torch.export takes a batch of one for a constant.
    images = torch.zeros(2, 3, image_size, image_size)
    with quietly(), torch.no_grad():
        program: Any = torch.onnx.export(
            network.eval(),
            (images,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=[INPUT],
            output_names=[OUTPUT],
            verbose=False,
        )
    model = program.model_proto
    _drop_notes(model)
    _name_after_modules(model)
    metadata = {
        "format": FORMAT,
        "architecture": arch.to_json(),
        "preprocessing": json.dumps(preprocessing.describe(image_size)),
    }
    if classes is not None:
        metadata["classes"] = json.dumps(list(classes))
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    return model.SerializeToString(deterministic=True)


def require_onnx() -> None:
    """Raise a ConfigError that says what to install unless all of onnx is there."""
    for name in _PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as problem:
            raise ConfigError(
                f"ONNX needs {', '.join(_PACKAGES)} ({problem}); run pip install 'spos[deploy]'"
            ) from None


def weight_names(node: Any) -> list[str]:
    """Names of the modules whose weights an operation of a model uses."""
    if node.op_type not in WEIGHTED:
        return []
    return [name[: -len(".weight")] for name in node.input if name.endswith(".weight")]


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the remarks of the exporter and of ONNX Runtime, some of which are printed.

    They are on the exporter's own future, our dynamic batch, and files that are temporary.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _drop_notes(model: Any) -> None:
    """Stack traces and names of our classes: they are of no use, half of a small file, and tell
    where it was made."""
    graph = model.graph
    for each in (
        model, graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input,
        *graph.output, *model.functions,
    ):  # fmt: skip
        del each.metadata_props[:]
        each.ClearField("doc_string")


def _name_after_modules(model: Any) -> None:
    named = [(node, names[0]) for node in model.graph.node if len(names := weight_names(node)) == 1]
    counts = Counter(name for _, name in named)
    for node, name in named:
        if counts[name] == 1:
            node.name = name
