"""Features in two parts that are not concatenated, and the ways to deal them out anew.

Imports torch only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Halves = tuple[Tensor, Tensor]  # (N, C_1, H, W) and (N, C_2, H, W): leading channels, the rest


def join(features: Tensor | Halves) -> Tensor:
    """The features as one tensor (N, C_1 + C_2, H, W); a tensor is itself."""
    return features if isinstance(features, Tensor) else torch.cat(features, 1)


def split_by_parity(first: Tensor, last: Tensor) -> Halves:
    """The even and the odd channels of two parts, without putting these together first.

    Of C_1 + C_2 channels, which must be an even number; they are counted through both parts.
    """
    if torch.is_grad_enabled() and (first.requires_grad or last.requires_grad):
        return _SplitByParity.apply(first, last)
    return _deal_out(first, last)


def shuffle_halves(halves: Halves) -> Halves:
    """Interleave the leading and the last half of the channels, 0, C/2, 1, C/2 + 1, ..., and halve.

    The two parts need not be equally wide; those of the result are.
    """
    x = join(halves)
    shuffled = x.unflatten(1, (2, x.shape[1] // 2)).transpose(1, 2).flatten(1, 2)
    leading, rest = shuffled.chunk(2, dim=1)
    return leading, rest


class _SplitByParity(torch.autograd.Function):
    """`split_by_parity` with a backward pass that writes each gradient once.

    Torch's own would fill two tensors of zeros for each part, write a parity into either, and add.
    """

    @staticmethod
    def forward(ctx: Any, first: Tensor, last: Tensor) -> Halves:
        ctx.widths = first.shape[1], last.shape[1]
        ctx.memory_format = _memory_format(first)
        return _deal_out(first, last)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, even: Tensor, odd: Tensor) -> Halves:
        first, last = (_empty(even, width, ctx.memory_format) for width in ctx.widths)
        width, shift = ctx.widths[0], ctx.widths[0] % 2
        half = width // 2
        first[:, 0::2], last[:, shift::2] = even[:, : width - half], even[:, width - half :]
        first[:, 1::2], last[:, 1 - shift :: 2] = odd[:, :half], odd[:, half:]
        return first, last


def _empty(x: Tensor, width: int, memory_format: torch.memory_format) -> Tensor:
    shape = (x.shape[0], width, *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)


def _deal_out(first: Tensor, last: Tensor) -> Halves:
    shift = first.shape[1] % 2  # parity in the whole of the last part's first channel
    even = torch.cat((first[:, 0::2], last[:, shift::2]), 1)
    odd = torch.cat((first[:, 1::2], last[:, 1 - shift :: 2]), 1)
    memory_format = _memory_format(first)  # which torch.cat loses sight of where widths are odd
    return even.contiguous(memory_format=memory_format), odd.contiguous(memory_format=memory_format)


def _memory_format(x: Tensor) -> torch.memory_format:
    is_last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last else torch.contiguous_format
