"""Taking queries, keys and values apart, and widening the queries by their relative bias, in one pass each.

Written with torch's own slicing, concatenation and products these steps pass over the largest tensors of the
model a dozen times, forward and backward; here each is read and written once. Exported graphs get torch's own
operators, which any runtime knows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_exporting


def split_tokens(tokens: Tensor, prefix: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views of the class token, of the first ``width`` channels of the others, and of their remaining ones.

    Args:
        tokens: float [B, P+N, D].
        prefix: number of class tokens, P.
        width: channels of the second result.

    Returns:
        [B, P, D], [B, N, width] and [B, N, D - width].
    """
    if is_exporting():
        return tokens[:, :prefix], tokens[:, prefix:, :width], tokens[:, prefix:, width:]
    return _SplitTokens.apply(tokens, prefix, width)


def widen_queries(first: Tensor, rest: Tensor, offsets: Sequence[Tensor | None]) -> Tensor:
    """Queries with, behind their own channels, their products with the relative vectors of each axis.

    Args:
        first: float [B, P, M, d], the class token's queries; they get zeros.
        rest: float [B, t, h, w, M, d].
        offsets: for time, height and width the vectors R[query, key], float [axis, keys, d], or None.

    Returns:
        [B, P + t*h*w, M, d + keys of all axes], under autocast in its type. First derivatives only.
    """
    kind = rest.device.type
    if torch.is_autocast_enabled(kind):
        first, rest = (x.to(torch.get_autocast_dtype(kind)) for x in (first, rest))
    if is_exporting():
        return _widen_plainly(first, rest, offsets)
    with torch.autocast(kind, enabled=False):
        return _WidenQueries.apply(first, rest, *offsets)


def _widen_plainly(first: Tensor, rest: Tensor, offsets: Sequence[Tensor | None]) -> Tensor:
    """As :func:`widen_queries`, in operators without writes into parts of a tensor."""
    parts = [rest]
    for axis, offset in zip("thw", offsets, strict=True):
        if offset is not None:
            parts.append(torch.einsum(f"bthwmd,{axis}kd->bthwmk", rest, offset.to(rest.dtype)))
    wide = torch.cat(parts, dim=-1).flatten(1, 3)  # [B, t*h*w, M, d + keys]
    return torch.cat([F.pad(first, (0, wide.shape[3] - first.shape[3])), wide], dim=1)


class _SplitTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, prefix: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        ctx.prefix, ctx.width = prefix, width
        return tokens[:, :prefix], tokens[:, prefix:, :width], tokens[:, prefix:, width:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        first, left, right = grads
        channels = left.shape[2] + right.shape[2]
        joined = left.new_empty(left.shape[0], ctx.prefix + left.shape[1], channels)
        joined[:, : ctx.prefix] = first
        joined[:, ctx.prefix :, : ctx.width] = left
        joined[:, ctx.prefix :, ctx.width :] = right
        return joined, None, None


class _WidenQueries(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, first: Tensor, rest: Tensor, *offsets: Tensor | None) -> Tensor:
        ctx.save_for_backward(rest, *offsets)
        batch, prefix, heads, width = first.shape
        lengths = [0 if offset is None else offset.shape[1] for offset in offsets]
        wide = rest.new_empty(batch, prefix + math.prod(rest.shape[1:4]), heads, width + sum(lengths))
        wide[:, :prefix, :, :width] = first
        wide[:, :prefix, :, width:] = 0
        body = wide[:, prefix:].unflatten(1, rest.shape[1:4])  # [B, t, h, w, M, d + keys]
        body[..., :width] = rest
        for axis, offset, columns in _bias_columns(offsets, width):
            product = torch.bmm(_rows(rest, axis), _vectors(offset, axis, rest).transpose(1, 2))
            if axis == 2:
                product = product.transpose(0, 1)  # [B*t*h, w*M, keys]
            body[..., columns] = product.reshape(*rest.shape[:5], -1)
        return wide

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rest, *offsets = ctx.saved_tensors
        width, prefix = rest.shape[5], grad.shape[1] - math.prod(rest.shape[1:4])
        body = grad[:, prefix:].unflatten(1, rest.shape[1:4])  # [B, t, h, w, M, d + keys]
        grad_rest = body[..., :width].contiguous()
        grad_offsets: list[Tensor | None] = [None, None, None]
        for axis, offset, columns in _bias_columns(offsets, width):
            part = _rows(body[..., columns].contiguous(), axis)  # [n, rows, keys]
            outer = torch.bmm(part.transpose(1, 2), _rows(rest, axis))  # [n, keys, d]
            if axis == 2:
                product = torch.bmm(part, _vectors(offset, axis, rest)).transpose(0, 1)  # [B*t*h, w*M, d]
                grad_rest += product.reshape(rest.shape)
                grad_offsets[axis] = outer.unflatten(0, (len(offset), -1)).sum(1, dtype=offset.dtype)
            else:
                _rows(grad_rest, axis).baddbmm_(part, _vectors(offset, axis, rest))
                grad_offsets[axis] = outer.unflatten(0, (-1, len(offset))).sum(0, dtype=offset.dtype)
        return grad[:, :prefix, :, :width], grad_rest, *grad_offsets


def _bias_columns(offsets: Sequence[Tensor | None], width: int) -> Iterator[tuple[int, Tensor, slice]]:
    """The axes that have vectors, with the columns of their products behind the first ``width``."""
    for axis, offset in enumerate(offsets):
        if offset is not None:
            yield axis, offset, slice(width, width + offset.shape[1])
            width += offset.shape[1]


def _rows(x: Tensor, axis: int) -> Tensor:
    """A view of [B, t, h, w, M, c] as matrices whose rows share a place on the axis, [n, rows, c].

    n counts (B, t) for time, (B, t, h) for the height and (w, M) for the width.
    """
    if axis < 2:
        return x.flatten(2 + axis, 4).flatten(0, 1 + axis)
    return x.flatten(0, 2).flatten(1, 2).transpose(0, 1)


def _vectors(offset: Tensor, axis: int, rest: Tensor) -> Tensor:
    """The relative vectors [axis, keys, d] for each of the matrices of :func:`_rows`, [n, keys, d]."""
    offset = offset.to(rest.dtype)
    if axis == 2:
        return offset.repeat_interleave(rest.shape[4], dim=0)
    return offset.repeat(math.prod(rest.shape[: 1 + axis]), 1, 1)
