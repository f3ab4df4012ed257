"""Halves that travel apart: the same function and gradients as joining and splitting them."""

import pytest
import torch

from spos.spaces.halves import join, shuffle_halves, split_by_parity

pytestmark = pytest.mark.usefixtures("one_thread")

LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}


def halves_of(widths, *, memory_format, requires_grad):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, width, 3, 5, generator=generator)
        .contiguous(memory_format=memory_format)
        .requires_grad_(requires_grad)
        for width in widths
    ]


@pytest.mark.parametrize("memory_format", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("widths", [(4, 4), (4, 12), (5, 7), (7, 5)])
def test_split_by_parity_is_that_of_the_joined_tensor(widths, memory_format):
    first, last = halves_of(widths, memory_format=memory_format, requires_grad=True)
    even, odd = split_by_parity(first, last)
    whole = torch.cat((first, last), 1)
    assert torch.equal(even, whole[:, 0::2]) and torch.equal(odd, whole[:, 1::2])
    assert even.is_contiguous(memory_format=memory_format)

    def loss(even, odd):
        return (even * even.sin()).sum() + (odd.exp() * torch.arange(5.0)).sum()

    expected = torch.autograd.grad(loss(whole[:, 0::2], whole[:, 1::2]), (first, last))
    found = torch.autograd.grad(loss(even, odd), (first, last))
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)
        assert mine.is_contiguous(memory_format=memory_format)


def test_split_takes_a_half_that_needs_no_gradient():
    first, last = halves_of((4, 4), memory_format=torch.channels_last, requires_grad=False)
    last.requires_grad_(True)
    even, _ = split_by_parity(first, last)  # nobody uses the odd channels
    even.sum().backward()
    assert first.grad is None and last.grad is not None
    assert last.grad.sum((0, 2, 3)).tolist() == [30, 0, 30, 0]


def test_shuffle_interleaves_halves_of_unequal_width():
    first, last = torch.arange(8.0).reshape(1, 8, 1, 1).split((2, 6), dim=1)
    leading, rest = shuffle_halves((first, last))
    assert leading.flatten().tolist() == [0, 4, 1, 5]
    assert rest.flatten().tolist() == [2, 6, 3, 7]
    assert torch.equal(join((first, last)), torch.arange(8.0).reshape(1, 8, 1, 1))
