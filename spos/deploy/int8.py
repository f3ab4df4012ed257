"""Static int8 quantisation by ONNX Runtime, and how much of a model really runs in int8.

Imports `spos.deploy.networks`, `spos.deploy.onnx_export`, `spos.errors` and torch; onnx and
onnxruntime when it quantises.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from spos.deploy.networks import open_session
from spos.deploy.onnx_export import INPUT, WEIGHTED, quietly, require_onnx
from spos.errors import ConfigError, DataError

CALIBRATIONS = {
    "min-max": "the whole range that was seen",
    "entropy": "the range that loses the least information (Kullback-Leibler)",
    "percentile": "the range without the outermost values",
}


@dataclass(frozen=True)
class Quantization:
    """How a model is quantised.

    Attributes:
        calibration: a key of `CALIBRATIONS`: how the range of each map follows from the images.
        float_layers: names of modules that stay in float32, with all that is in them.
        per_channel: whether every output channel of a weight has a scale of its own.
        reduce_range: weights in 7 bits: with 8, sums of two products overflow on x86 processors
            without VNNI, where a network can lose several points.
    """

    calibration: str = "min-max"
    float_layers: tuple[str, ...] = ()
    per_channel: bool = True
    reduce_range: bool = True

    def __post_init__(self) -> None:
        if self.calibration not in CALIBRATIONS:
            raise ConfigError(
                f"calibration {self.calibration!r} is unknown; choose one of "
                f"{', '.join(CALIBRATIONS)}"
            )


def quantize(model: bytes, batches: Sequence[Tensor], settings: Quantization) -> bytes:
    """An int8 model (QDQ format: uint8 activations, int8 weights) of a float32 model.

    Args:
        model: what `export_onnx` made.
        batches: preprocessed training images, each (N, 3, image_size, image_size).
        settings: how.

    Raises:
        ConfigError: if a layer to be left in float is not there, or a batch is of another size.
        DataError: if there are no images.
    """
    require_onnx()
    import onnx

    parsed = onnx.load_model_from_string(model)
    _check_images(parsed, batches)
    excluded = _find_layers(parsed, settings.float_layers)
    with tempfile.TemporaryDirectory(prefix="spos-int8-") as folder, quietly():
        quantized = _run_quantizer(parsed, batches, settings, excluded, Path(folder))
    del quantized.metadata_props[:]
    quantized.metadata_props.extend(parsed.metadata_props)
    quantized.metadata_props.add(
        key="quantization",
        value=json.dumps({**vars(settings), "images": sum(len(batch) for batch in batches)}),
    )
    return quantized.SerializeToString(deterministic=True)


def _run_quantizer(
    model: Any,
    batches: Sequence[Tensor],
    settings: Quantization,
    excluded: list[str],
    folder: Path,
) -> Any:
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    methods = {
        "min-max": quantization.CalibrationMethod.MinMax,
        "entropy": quantization.CalibrationMethod.Entropy,
        "percentile": quantization.CalibrationMethod.Percentile,
    }
    # ONNX's own shape inference suffices, and the symbolic one needs a batch of known size.
    given, prepared, output = (folder / f"{name}.onnx" for name in ("fp32", "prepared", "int8"))
    onnx.save_model(model, given)
    quant_pre_process(given, prepared, skip_symbolic_shape=True)
    quantization.quantize_static(
        prepared,
        output,
        _Reader(batches),  # type: ignore[arg-type]
        per_channel=settings.per_channel,
        reduce_range=settings.reduce_range,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        nodes_to_exclude=excluded,
        calibrate_method=methods[settings.calibration],
        extra_options={
            "CalibStridedMinMax": 1,  # a batch at a time, whatever the method: bounded memory
            "ActivationSymmetric": False,
            "CalibTensorRangeSymmetric": False,
        },
    )
    return onnx.load_model(output)


class _Reader:
    """Batches as ONNX Runtime's calibration asks for them."""

    def __init__(self, batches: Sequence[Tensor]) -> None:
        self._batches = batches
        self._left = iter(batches)

    def __len__(self) -> int:
        return len(self._batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Go on with these batches alone."""
        self._left = iter(self._batches[start_index:end_index])

    def get_next(self) -> dict[str, Any] | None:
        """The next batch, or None."""
        batch = next(self._left, None)
        return None if batch is None else {INPUT: batch.contiguous().numpy()}


def count_int8_convolutions(model: bytes, *, source: str) -> tuple[int, int]:
    """Convolutions that ONNX Runtime carries out in int8 on this machine, and all of them.

    Counted in the graph that it makes of the model to run it: a model may hold quantised weights
    and compute in float32 all the same.
    """
    require_onnx()
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="spos-int8-") as folder:
        path = Path(folder) / "optimized.onnx"
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(path)
        # Not all optimisations: those above depend on the processor and rename convolutions.
        level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.graph_optimization_level = level
        with quietly():
            open_session(model, source=source, options=options)
        kinds = [node.op_type for node in onnx.load_model(path).graph.node]
    num_int8 = sum(kinds.count(kind) for kind in ("QLinearConv", "ConvInteger"))
    return num_int8, num_int8 + sum(kinds.count(kind) for kind in ("Conv", "FusedConv"))


def _check_images(model: Any, batches: Sequence[Tensor]) -> None:
    if not batches or not all(len(batch) for batch in batches):
        raise DataError("int8 needs training images to calibrate on, and there are none")
    dimensions = model.graph.input[0].type.tensor_type.shape.dim
    expected = tuple(each.dim_value for each in dimensions)[1:]
    for batch in batches:
        if tuple(batch.shape[1:]) != expected:
            sizes = [" x ".join(map(str, shape)) for shape in (batch.shape[1:], expected)]
            raise ConfigError(
                f"calibration images of {sizes[0]}, but the network takes {sizes[1]} (channels, "
                "height, width); prepare them as for its evaluation"
            )


def _find_layers(model: Any, names: Sequence[str]) -> list[str]:
    """Names of the operations in the modules of these names."""
    known = [node.name for node in model.graph.node if node.op_type in WEIGHTED]
    found = []
    for name in names:
        inside = [each for each in known if each == name or each.startswith(f"{name}.")]
        if not inside:
            raise ConfigError(
                f"layer {name!r}, to be left in float, is not in the network; it has "
                f"{', '.join(known[:4])}, ..., {known[-1]}"
            )
        found += inside
    return found
