"""Convolutions as a CPU runs them fastest: the same functions and gradients, other algorithms.

Imports `spos.spaces.sliced` and torch.

Torch hands all convolutions of a CPU to oneDNN. For two kinds, which most networks of a search
space consist of, that is not the best there is: a pointwise one is a matrix product over channels,
for which the setting up of a convolution costs more than the product where maps are small; and of a
depthwise one with a kernel of 5 or more, or larger than the map, the weight's gradient takes five
to fifty times as long as the output, and two to eight times as long as `_weight_gradient`. With a
stride, a pointwise one is more than slow: where the input's width is no multiple of 8, oneDNN (seen
in torch 2.14, on a processor with AVX2 only) writes the weight's gradient beyond its end, and the
process is aborted at some later allocation.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from spos.spaces.sliced import get_slicing

LARGEST_STRIDED_MAP = 8  # where `_weight_gradient` was measured to be faster with a stride, too

Pair = tuple[int, int]


def choose_algorithms(network: nn.Module) -> None:
    """Let every convolution of the network run by `convolve`, those of searched sizes included."""
    for module in network.modules():
        slicing = get_slicing(module)
        layers = [each.plain for each in slicing.extents.values()] if slicing else [module]
        for layer in layers:
            if isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros":
                layer.__dict__["_conv_forward"] = partial(_conv_forward, layer)


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair | str,
    dilation: Pair,
    groups: int,
) -> Tensor:
    """What `torch.nn.functional.conv2d` computes, to rounding."""
    if _is_fast(x) and dilation == (1, 1) and not isinstance(padding, str):
        kernel = weight.shape[2:]
        if kernel == (1, 1) and groups == 1 and padding == (0, 0):
            rows, columns = stride
            pixels = x.permute(0, 2, 3, 1)[:, ::rows, ::columns]
            return F.linear(pixels, weight.flatten(1), bias).permute(0, 3, 1, 2)
        if groups == x.shape[1] == len(weight) and bias is None and _is_slow(x, weight, stride):
            return _Depthwise.apply(x, weight, stride, padding)
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


def _conv_forward(module: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    settings: Any = module.stride, module.padding, module.dilation, module.groups
    return convolve(x, weight, bias, *settings)


def _is_fast(x: Tensor) -> bool:
    """Whether these are features of a kind for which the algorithms here are meant."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.dim() == 4
        and x.is_contiguous(memory_format=torch.channels_last)
        and not torch.is_autocast_enabled("cpu")
    )


def _is_slow(x: Tensor, weight: Tensor, stride: Pair) -> bool:
    """Whether a depthwise convolution is one that `_Depthwise` makes faster."""
    size, kernel = x.shape[2:], max(weight.shape[2:])
    if stride != (1, 1) and any(
        n > LARGEST_STRIDED_MAP * step for n, step in zip(size, stride, strict=True)
    ):
        return False
    is_large = kernel > 3 or kernel > min(size)
    return is_large and weight.requires_grad and torch.is_grad_enabled()


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution without bias whose weight's gradient is a convolution as well."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, None, stride, padding, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_x = for_weight = None
        if ctx.needs_input_grad[0]:
            for_x = torch.ops.aten.convolution_backward(
                gradient, x, weight, None, ctx.stride, ctx.padding, (1, 1), False, (0, 0),
                len(weight), (True, False, False),
            )[0]  # fmt: skip
        if ctx.needs_input_grad[1]:
            for_weight = _weight_gradient(x, gradient, weight.shape, ctx.stride, ctx.padding)
        return for_x, for_weight, None, None


def _weight_gradient(
    x: Tensor, gradient: Tensor, shape: torch.Size, stride: Pair, padding: Pair
) -> Tensor:
    """Gradient (C, 1, K, K) of a depthwise weight.

    The gradient slides over the image as a kernel does: each channel of each image is convolved
    with its own gradient, (1, N C, H, W) with (N C, 1, H', W'), and the images' results are added
    up. Taps of the kernel that only ever meet padding have gradient 0 and are left out of this.
    Both are copied to maps one after the other, where this takes half as long as channels last.
    """
    count, channels, *size = x.shape
    taps = [
        (max(0, pad - (out - 1) * step), min(width, extent + pad))
        for width, extent, out, step, pad in zip(
            shape[2:], size, gradient.shape[2:], stride, padding, strict=True
        )
    ]
    (top, bottom), (left, right) = taps
    images = x.reshape(1, count * channels, *size)
    kernels = gradient.reshape(count * channels, 1, *gradient.shape[2:])
    found = F.conv2d(
        images, kernels, None, 1, (padding[0] - top, padding[1] - left), stride, count * channels
    )[0, :, : bottom - top, : right - left]
    found = found.reshape(count, channels, bottom - top, right - left).sum(0)
    return F.pad(found, (left, shape[3] - right, top, shape[2] - bottom))[:, None]
