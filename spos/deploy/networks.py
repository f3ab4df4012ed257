"""Any file that we deploy as one thing: a module from images to logits that knows its images.

Imports `spos.architecture`, `spos.convert.weights`, `spos.data`, `spos.deploy.onnx_export`,
`spos.errors`, `spos.files`, `spos.subnet` and torch; onnxruntime for an ONNX file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from spos.architecture import Architecture, parse_architecture
from spos.convert.weights import check_options, read_weights
from spos.data.prepare import prepare_image
from spos.data.preprocessing import UNSAID_PREPROCESSING, Preprocessing
from spos.deploy.onnx_export import FORMAT, require_onnx
from spos.errors import CheckpointError, ConfigError, DataError
from spos.files import parse_json, read_bytes
from spos.subnet import (
    check_classes,
    equip_network,
    load_subnet,
    read_classes,
    read_preprocessing,
)

MAX_ONNX_BYTES = 2**31  # what its format can hold
# Quantises the weights of a convolution in float between two in int8, and so undoes our list.
_QUANTIZER = "WeightBiasQuantization"


class OnnxNetwork(nn.Module):
    """A network that ONNX Runtime runs on the CPU, to be used like any other.

    Args:
        model: bytes of a model that `export_onnx` or `quantize` made.
        source: begins error messages.
        threads: that an operation may use.

    Attributes:
        arch: its architecture.
        preprocessing: what its images need.
        classes: names of its classes, or None.

    Raises:
        CheckpointError: if it is damaged, no model of ours, or refers to other files.
    """

    def __init__(self, model: bytes, *, source: str, threads: int = 1) -> None:
        super().__init__()
        self._session = open_session(model, source=source, threads=threads)
        metadata, self._input, shape = _describe(self._session, source)
        if metadata.get("format") != FORMAT:
            raise CheckpointError(
                f"{source}: is an ONNX model, but not one of ours (it does not say how its images "
                "are to be prepared); export one with `python -m spos export`"
            )
        where = f"{source}, its architecture"
        self.arch: Architecture = parse_architecture(metadata.get("architecture", ""), source=where)
        described = parse_json(
            metadata.get("preprocessing", ""), source=f"{source}, its preprocessing",
            error=CheckpointError,
        )  # fmt: skip
        self.preprocessing: Preprocessing = read_preprocessing(described, source)
        self.classes: tuple[str, ...] | None = None
        if "classes" in metadata:
            self.classes = read_classes(metadata["classes"], source)
        if len(shape) != 4 or type(shape[-1]) is not int:
            raise CheckpointError(f"{source}: takes {shape}, expected (batch, 3, height, width)")
        self.image_size: int = shape[-1]

    def forward(self, images: Tensor) -> Tensor:
        """Preprocessed images (N, 3, H, W) to logits (N, classes)."""
        (logits,) = self._session.run(None, {self._input: images.contiguous().numpy()})
        return torch.from_numpy(logits)

    def preprocess(self, image: Path | str | Image.Image) -> Tensor:
        """An image file, or an image that Pillow has opened, as input (1, 3, H, W)."""
        return prepare_image(image, preprocessing=self.preprocessing, image_size=self.image_size)


def _describe(session: Any, source: str) -> tuple[dict[str, str], str, list[Any]]:
    """Metadata, and name and shape of the first input."""
    try:
        given = session.get_inputs()[0]
        return session.get_modelmeta().custom_metadata_map, given.name, given.shape
    except (UnicodeDecodeError, IndexError) as problem:
        raise CheckpointError(f"{source}: is damaged ({problem})") from None


def open_session(model: bytes, *, source: str, threads: int = 1, options: Any = None) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU.

    Args:
        model: bytes of an ONNX model.
        source: begins error messages.
        threads: that an operation may use.
        options: `onnxruntime.SessionOptions` to begin with.

    Raises:
        CheckpointError: if the bytes are no model that can be run, or need other files.
        ConfigError: if onnxruntime is not installed.
    """
    require_onnx()
    import onnx
    import onnxruntime

    try:
        parsed = onnx.load_model_from_string(model)
        # Weights in other files could name any file of this machine.
        if any(each.external_data for each in parsed.graph.initializer):
            raise CheckpointError(f"{source}: has weights in other files, which are not read")
        options = options or onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        options.add_session_config_entry("session.force_spinning_stop", "1")
        return onnxruntime.InferenceSession(
            model,
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=[_QUANTIZER],
        )
    except CheckpointError:
        raise
    except Exception as problem:  # the runtime has a dozen classes for what is wrong with a model
        raise CheckpointError(
            f"{source}: is damaged or not an ONNX model that can be run "
            f"({str(problem).splitlines()[0][:200]})"
        ) from None


def open_network(path: Path | str, *, threads: int = 1) -> Any:
    """The network of a ``.safetensors`` file, an exported folder or an ``.onnx`` file.

    It has the attributes that `load_subnet` names; ``preprocessing`` and ``classes`` may be None in
    the first.

    Args:
        path: the file or folder.
        threads: of an ONNX model.

    Raises:
        CheckpointError: if it is missing, damaged, or an architecture without weights.
    """
    path = Path(path)
    if path.suffix == ".onnx":
        model = read_bytes(path, error=CheckpointError, max_bytes=MAX_ONNX_BYTES)
        return OnnxNetwork(model, source=str(path), threads=threads)
    if path.suffix != ".safetensors" and not path.is_dir():
        raise CheckpointError(
            f"{path}: is no trained network; expected a .safetensors file, a folder of `python -m "
            "spos export --hub-dir` or an .onnx file. An architecture has no weights: train it "
            "(`python scratch.py --fixed-arc FILE`), or convert weights that you have (`python -m "
            "spos convert`)"
        )
    return load_subnet(path)


def open_weights(arch: Architecture, weights: Path | str) -> Any:
    """The network of an architecture with weights of ours or another system's.

    It has the attributes that `load_subnet` names. The number of classes is that of the weights.

    Args:
        arch: what the weights must be of.
        weights: see `spos.convert.weights.read_weights`.

    Raises:
        CheckpointError: if they are missing, damaged, unsafe, a supernet's, of another architecture
            or of other options.
    """
    options = {name: value for name, value in arch.options.items() if name != "num_classes"}
    found = read_weights(weights, space=arch.space, options=options, arch=arch)
    check_options(found, arch, source=str(weights), free={"num_classes", "dropout"})
    preprocessing, classes = (found.said.get(name) for name in ("preprocessing", "classes"))
    return equip_network(
        found.network.float(),
        found.arch or arch,
        preprocessing=None if preprocessing is None else read_preprocessing(preprocessing, weights),
        classes=None if classes is None else check_classes(classes, weights),
    )


@dataclass(frozen=True)
class Agreement:
    """How far two networks agree on the same images.

    Attributes:
        difference: the largest difference of a logit.
        largest: the largest logit of the first network, in absolute value.
        same_top1: fraction of the images that both give the same class.
        num_images: images compared.
    """

    difference: float
    largest: float
    same_top1: float
    num_images: int

    def check(self, tolerance: float, *, what: str) -> None:
        """Refuse networks that are not the same function.

        Args:
            tolerance: largest difference, for logits up to 1; for larger ones in proportion, since
                float32 rounds in proportion.
            what: of the two, for the message.

        Raises:
            ConfigError: saying how far they are apart.
        """
        is_close = self.difference <= tolerance * max(1.0, self.largest)
        if not is_close or self.same_top1 < 1:
            raise ConfigError(
                f"{what}: a logit differs by {self.difference:.2e} (allowed: {tolerance:g} for "
                f"logits up to 1, here up to {self.largest:.3g}), the first class agrees on "
                f"{100 * self.same_top1:.2f} % of {self.num_images} images; nothing was written. "
                "Does the network do other things in evaluation than in its forward's one path?"
            )


@torch.inference_mode()
def compare_networks(
    first: nn.Module, second: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]
) -> Agreement:
    """Run both on the same preprocessed images.

    Raises:
        DataError: if there is no image.
    """
    first.eval()
    second.eval()
    differences, sizes = [], []
    same = count = 0
    for images, _ in batches:
        one, other = first(images), second(images)
        differences.append((one - other).abs().max())
        sizes.append(one.abs().max())
        same += int((one.argmax(1) == other.argmax(1)).sum())
        count += len(images)
    if not count:
        raise DataError("two networks were to be compared on no images")
    # Python's max would pass over NaN.
    difference, largest = (torch.stack(each).max().item() for each in (differences, sizes))
    return Agreement(difference, largest, same / count, count)


def check_knows_its_images(network: Any, source: Path | str) -> None:
    """Raise a ConfigError unless the preprocessing of a network's images is known."""
    if network.preprocessing is None:
        raise ConfigError(f"{source}: {UNSAID_PREPROCESSING}")
