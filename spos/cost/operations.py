"""What a network does to one image, operation by operation: kinds, shapes and parameters.

Imports `spos.errors`, `spos.spaces`, `spos.supernet` and torch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spos.errors import ConfigError
from spos.spaces.blocks import TwoBranchBlock
from spos.spaces.halves import join
from spos.spaces.sliced import active_tensors, own_tensors
from spos.supernet import Supernet

# The first kind that a module is an instance of is its own.
KINDS: tuple[tuple[str, tuple[type[nn.Module], ...]], ...] = (
    ("conv", (nn.Conv1d, nn.Conv2d, nn.Conv3d)),
    ("linear", (nn.Linear,)),
    ("batchnorm", (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)),
    ("relu6", (nn.ReLU6,)),
    ("relu", (nn.ReLU,)),
    ("hswish", (nn.Hardswish,)),
    ("hsigmoid", (nn.Hardsigmoid,)),
    ("adaptive pool", (nn.AdaptiveAvgPool2d,)),
    ("pool", (nn.AvgPool2d,)),
    ("shuffle", (TwoBranchBlock,)),
)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# What has multiply-adds.
MULTIPLIERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED, nn.Linear)


@dataclass(frozen=True)
class Operation:
    """One application of a layer to the features of one image.

    Attributes:
        name: the module's name in the network.
        kind: one of `KINDS`, or ``other`` for a layer with parameters that is none of them, such as
            a transposed convolution.
        input_shape: of one image's features: (C, H, W), or (C,).
        output_shape: the same, of its result.
        kernel: side of a convolution's kernel, or of the window that is averaged; else 1.
        groups: of a convolution; else 1.
        tensors: entries of its parameters that no operation before it has brought, by name.
        weights: entries of its weight, 0 without one.
        positions: at how many a convolution or linear layer applies its weight; else 0.
        has_bias: whether a convolution or linear layer adds one.
        is_affine: whether a BatchNorm has weight and bias.
    """

    name: str
    kind: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    kernel: int
    groups: int
    tensors: Mapping[str, int]
    weights: int
    positions: int
    has_bias: bool
    is_affine: bool

    @property
    def inputs(self) -> int:
        """Entries of the input."""
        return math.prod(self.input_shape)

    @property
    def outputs(self) -> int:
        """Entries of the output."""
        return math.prod(self.output_shape)

    @property
    def channels(self) -> int:
        """Width of the output."""
        axis = -1 if self.kind == "linear" else 0
        return self.output_shape[axis]

    @property
    def macs(self) -> int:
        """Multiply-adds of a convolution or linear layer; 0 of anything else."""
        return self.weights * self.positions

    @property
    def params(self) -> int:
        """Entries of the parameters that it is the first to use."""
        return sum(self.tensors.values())


def list_operations(network: nn.Module, image_size: int) -> list[Operation]:
    """The operations that a network applies to an image, in the order in which they run.

    Modules without parameters that are none of `KINDS` are not listed, nor is anything that is no
    module, such as an addition. A block that shuffles or splits its channels comes as an operation
    of its own, before its layers.

    Args:
        network: a network of images (N, 3, image_size, image_size), of a supernet its active path;
            it is left as it is.
        image_size: side of the square input image.

    Raises:
        ConfigError: if the network cannot run on such images, or a layer with parameters makes
            several tensors.
    """
    network = copy.deepcopy(network).eval()
    active = network.active_modules() if isinstance(network, Supernet) else network.modules()
    return record_operations(network, active, image_size)


def record_operations(
    network: nn.Module, modules: Iterable[nn.Module], image_size: int
) -> list[Operation]:
    """What `list_operations` says of some modules of a network that is in evaluation mode."""
    names = {id(module): name for name, module in network.named_modules()}
    operations: list[Operation] = []
    seen: set[int] = set()
    with ExitStack() as hooks:
        for module in modules:
            kind = _kind(module)
            if kind is None:
                continue
            record = _recorder(operations, names[id(module)], kind, seen)
            if kind == "shuffle":
                handle = module.register_forward_pre_hook(_before(record))
            else:
                handle = module.register_forward_hook(record)
            hooks.callback(handle.remove)
        run_on_image(network, image_size)
    return operations


def run_on_image(network: nn.Module, image_size: int) -> Tensor:
    """What a network makes of one black image, on its device and of its type.

    Raises:
        ConfigError: if it cannot run on such images.
    """
    like = next((each for each in network.parameters() if each.is_floating_point()), torch.empty(0))
    try:
        with torch.no_grad():
            return network(like.new_zeros(1, 3, image_size, image_size))
    except RuntimeError as problem:
        raise ConfigError(
            f"the network cannot be counted on images of {image_size} x {image_size}, "
            f"because it does not run on them: {problem}"
        ) from problem


def _kind(module: nn.Module) -> str | None:
    for kind, classes in KINDS:
        if isinstance(module, classes):
            is_quiet = isinstance(module, TwoBranchBlock) and module.branch_proj is not None
            return None if is_quiet else kind
    return "other" if own_tensors(module) else None


def _recorder(
    operations: list[Operation], name: str, kind: str, seen: set[int]
) -> Callable[[nn.Module, Any, Any], None]:
    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        if not isinstance(output, Tensor):
            raise ConfigError(
                f"the layer {name} ({type(module).__name__}) makes several tensors, and so is not "
                "counted by itself; `python -m spos cost` counts its search space"
            )
        own = {} if kind == "shuffle" else dict(module.named_parameters(recurse=False))
        used = active_tensors(module) if own else {}
        fresh = {key: used[key].numel() for key, each in own.items() if id(each) not in seen}
        seen.update(id(each) for each in own.values())
        operations.append(
            Operation(
                name,
                kind,
                tuple(inputs[0].shape[1:]),
                tuple(output.shape[1:]),
                kernel=_kernel(module, kind, inputs[0], output),
                groups=_groups(module, used),
                tensors=fresh,
                weights=used["weight"].numel() if "weight" in used else 0,
                positions=_positions(module, inputs[0], output),
                has_bias="bias" in own and kind in ("conv", "linear"),
                is_affine=kind == "batchnorm" and "weight" in own,
            )
        )

    return record


def _before(record: Callable[[nn.Module, Any, Any], None]) -> Callable[..., None]:
    """Records what comes in, for a shuffle leaves its shape."""

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        features = join(inputs[0])
        record(module, (features,), features)

    return before


def _kernel(module: Any, kind: str, x: Tensor, output: Tensor) -> int:
    if kind == "conv":
        return active_tensors(module)["weight"].shape[-1]
    if kind == "adaptive pool":
        return x.shape[-1] // output.shape[-1]
    if kind == "pool":
        return module.kernel_size if isinstance(module.kernel_size, int) else module.kernel_size[0]
    return 1


def _positions(module: nn.Module, x: Tensor, output: Tensor) -> int:
    if not isinstance(module, MULTIPLIERS):
        return 0
    if isinstance(module, _TRANSPOSED):  # each position of its input meets the whole weight
        return x.numel() // x.shape[1]
    return output.numel() // output.shape[-1 if isinstance(module, nn.Linear) else 1]


def _groups(module: Any, used: Mapping[str, Tensor]) -> int:
    """As many as the active path gives a convolution: one for each channel if it is depthwise."""
    if not isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return 1
    is_depthwise = module.groups == module.in_channels and module.groups > 1
    return used["weight"].shape[0] if is_depthwise else module.groups
