"""Splitting and widening against plain slicing, concatenation and einsum."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from videomaskfeat.models.kernels.assembly import split_tokens, widen_queries


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def plain_widening(first: Tensor, rest: Tensor, offsets: list[Tensor | None]) -> Tensor:
    parts = [rest]
    for axis, offset in zip("thw", offsets, strict=True):
        if offset is not None:
            parts.append(torch.einsum(f"bthwmd,{axis}kd->bthwmk", rest, offset))
    body = torch.cat(parts, dim=-1).flatten(1, 3)
    zeros = first.new_zeros(*first.shape[:3], body.shape[-1] - first.shape[-1])
    return torch.cat([torch.cat([first, zeros], dim=-1), body], dim=1)


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("axes", ["thw", "hw", "t", ""])
def test_widened_queries_equal_the_products_written_out(heads: int, prefix: int, axes: str) -> None:
    torch.manual_seed(0)
    first, rest = draw(2, prefix, heads, 5), draw(2, 2, 3, 4, heads, 5)
    lengths = {"t": (2, 2), "h": (3, 6), "w": (4, 7)}  # queries, keys
    offsets = [draw(*lengths[axis], 5) if axis in axes else None for axis in "thw"]
    ours, plain = widen_queries(first, rest, offsets), plain_widening(first, rest, offsets)
    torch.testing.assert_close(ours, plain)
    inputs = [first, rest, *(offset for offset in offsets if offset is not None)]
    upstream = torch.randn_like(plain)
    pairs = zip(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(plain, inputs, upstream), strict=True
    )
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs)


def test_widening_under_autocast_keeps_float32_gradients_of_the_tables() -> None:
    torch.manual_seed(0)
    first, rest, offset = (
        draw(*shape).detach().float() for shape in ((2, 1, 2, 8), (2, 2, 3, 4, 2, 8), (3, 5, 8))
    )
    offset.requires_grad_()
    exact = widen_queries(first, rest, [None, offset, None])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = widen_queries(first, rest, [None, offset, None])
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, atol=5e-2, rtol=1e-2)  # eight bits of sums of eight
    (expected,) = torch.autograd.grad(exact.sum(), offset)
    (found,) = torch.autograd.grad(rounded.float().sum(), offset)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=5e-2, rtol=1e-2)


@pytest.mark.parametrize("prefix", [0, 1])
def test_split_tokens_are_slices_with_their_gradients(prefix: int) -> None:
    torch.manual_seed(0)
    tokens = draw(2, prefix + 4, 6)
    parts = split_tokens(tokens, prefix, 2)
    plain = (tokens[:, :prefix], tokens[:, prefix:, :2], tokens[:, prefix:, 2:])
    for mine, theirs in zip(parts, plain, strict=True):
        assert torch.equal(mine, theirs)
    weights = [torch.randn_like(part) for part in plain]
    found, expected = (
        torch.autograd.grad(
            sum((part * weight).sum() for part, weight in zip(side, weights, strict=True)), tokens
        )
        for side in (parts, plain)
    )
    assert torch.equal(found[0], expected[0])
