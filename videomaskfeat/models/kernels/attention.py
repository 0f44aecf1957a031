"""Attention without the score matrix in memory, with relative positions inside.

Torch's fused attention on x86 CPUs reaches a third of the speed of plain matrix products in bfloat16. Here
attention processes blocks of queries whose scores fit in the cache, with oneDNN's products, and recomputes
the scores in the backward pass.

A relative bias ``q.Rt[t_q, t_k] + q.Rh[h_q, h_k] + q.Rw[w_q, w_k]`` depends on the key only through three
small indices. So each query carries its three bias vectors and each key three one-hot vectors; their dot
product is the bias, which fused attention computes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_exporting

from videomaskfeat.models.kernels.choice import current_kernels
from videomaskfeat.models.kernels.dense import outer_sum, product
from videomaskfeat.models.kernels.gpu_attention import relative_attention

_FEW_SCORES = 2**21  # per batch: 8 MiB in float32
_SCORES_PER_BLOCK = 2**20  # 2 to 4 MiB: fits in the caches of two cores


class Relative(NamedTuple):
    """Relative positions of queries on a grid, and the class token's queries, which have none.

    first: float [B, P, M, d], queries of the class token, which precede those of the grid.
    offsets: for time, height and width the vectors R[query, key], float [length, keys, d], or None.
    codes: float [P + N", keys of all axes], one-hot position vectors of each key; zeros for the class token.
    """

    first: Tensor
    offsets: Sequence[Tensor | None]
    codes: Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, relative: Relative | None = None) -> Tensor:
    """softmax(q k^T + bias) v, without a scale. First derivatives only on the CPU.

    Args:
        q: float [B, N, M, d], tokens before heads; with ``relative`` on their grid, [B, t, h, w, M, d].
        k: float [B, N", M, d].
        v: float [B, N", M, d'].
        relative: None for no bias.

    Returns:
        [B, N, M, d'], with ``relative`` [B, P + t*h*w, M, d'], in autocast's type if it is enabled.
    """
    kind = q.device.type
    if (kind != "cpu" and relative is None) or is_exporting():
        return plain_attention(q, k, v, relative)
    if kind == "cuda" and relative is not None and relative.codes.shape[1]:
        kernel = current_kernels().gpu_attention
        if kernel != "widened":
            first, q, k, v, codes = _in_autocast_type(relative.first, q, k, v, relative.codes)
            with torch.autocast(kind, enabled=False):
                return relative_attention(kernel, first, q, k, v, relative.offsets, codes)
    scores = len(q) * math.prod(q.shape[1:-1]) * k.shape[1]
    blocked = kind == "cpu" and scores > _FEW_SCORES and current_kernels().attention == "blocked"
    if relative is not None and blocked:
        first, q, k, v, codes = _in_autocast_type(relative.first, q, k, v, relative.codes)
        with torch.autocast(kind, enabled=False):
            return _BlockedRelative.apply(first, q, k, v, codes, *relative.offsets)
    if relative is not None:
        q, k = _widen_queries(relative.first, q, relative.offsets), _widen_keys(k, relative.codes)
    if kind != "cpu":
        return plain_attention(q, k, v)
    q, k, v = _in_autocast_type(q, k, v)
    with torch.autocast(kind, enabled=False):  # it would compute the softmax in float32
        if scores <= _FEW_SCORES:
            return _attention_at_once(q, k, v)
        return _blocked_attention(q, k, v) if blocked else plain_attention(q, k, v)


def attention_weights(
    q: Tensor, k: Tensor, relative: Relative | None = None, bias: Tensor | None = None
) -> Tensor:
    """softmax(q k^T + bias), [B, M, N, N"]: the attention to one-hot values, so of the same kernels.

    Args:
        q, k, relative: as for :func:`attention`.
        bias: as for :func:`biased_attention`, instead of ``relative``.
    """
    size = k.shape[1]
    values = torch.eye(size, dtype=k.dtype, device=k.device)[None, :, None].expand(len(k), -1, k.shape[2], -1)
    shares = attention(q, k, values, relative) if bias is None else biased_attention(q, k, values, bias)
    return shares.transpose(1, 2)


def biased_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k^T + bias) v for a bias [M, N, N"] of any form; other arguments as for :func:`attention`."""
    q, k, v, bias = _in_autocast_type(q, k, v, bias)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [B, M, N, d]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None], scale=1.0).transpose(1, 2)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, relative: Relative | None = None) -> Tensor:
    """:func:`attention` in torch's own operators, without writes to slices of a tensor."""
    if relative is not None:
        first, q = _in_autocast_type(relative.first, q)
        columns = [q]
        for axis, offset in zip("thw", relative.offsets, strict=True):
            if offset is not None:
                columns.append(torch.einsum(f"bthwmd,{axis}kd->bthwmk", q, offset.to(q.dtype)))
        wide = torch.cat(columns, dim=-1).flatten(1, 3)  # [B, t*h*w, M, d + keys]
        q = torch.cat([F.pad(first, (0, wide.shape[3] - first.shape[3])), wide], dim=1)
        k = _widen_keys(k, relative.codes)
    q, k, v = _in_autocast_type(q, k, v)
    # The fused kernels need the same width for all three, a multiple of 8.
    width = -(-max(q.shape[3], v.shape[3]) // 8) * 8
    q, k, wide_v = (F.pad(x, (0, width - x.shape[3])).transpose(1, 2) for x in (q, k, v))
    result = F.scaled_dot_product_attention(q, k, wide_v, scale=1.0).transpose(1, 2)
    return result[..., : v.shape[3]]


def _in_autocast_type(*tensors: Tensor) -> tuple[Tensor, ...]:
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    return tuple(x.to(torch.get_autocast_dtype(kind)) for x in tensors)


def _widen_keys(k: Tensor, codes: Tensor) -> Tensor:
    """Append the codes to keys [B, N", M, d]: [B, N", M, d + keys]."""
    codes = codes[:, None].expand(k.shape[0], -1, k.shape[2], -1)
    return torch.cat([k, codes], dim=-1)


def _widen_queries(first: Tensor, rest: Tensor, offsets: Sequence[Tensor | None]) -> Tensor:
    """Append to queries their products with the relative vectors of each axis, or zeros for the class token.

    [B, P, M, d] and [B, t, h, w, M, d] -> [B, P + t*h*w, M, d + keys of all axes], in one pass over the
    largest tensors of the model, where slicing, concatenation and products need a dozen.
    """
    first, rest = _in_autocast_type(first, rest)
    with torch.autocast(rest.device.type, enabled=False):
        return _WidenQueries.apply(first, rest, *offsets)


class _WidenQueries(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, first: Tensor, rest: Tensor, *offsets: Tensor | None) -> Tensor:
        ctx.save_for_backward(rest, *offsets)
        return _widen(first, rest, offsets)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rest, *offsets = ctx.saved_tensors
        return _widen_backward(grad, rest, offsets)


class _BlockedRelative(torch.autograd.Function):
    """:func:`_blocked_attention` of widened queries and keys; the backward pass widens them again."""

    @staticmethod
    def forward(
        ctx: Any, first: Tensor, rest: Tensor, k: Tensor, v: Tensor, codes: Tensor, *offsets: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(first, rest, k, v, codes, *offsets)
        return _blocked_attention(_widen(first, rest, offsets), _widen_keys(k, codes), v)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        first, rest, k, v, codes, *offsets = ctx.saved_tensors
        q = _widen(first, rest, offsets)
        grad_q, grad_k, grad_v = _blocked_attention_backward(grad, q, _widen_keys(k, codes), v)
        grad_first, grad_rest, *grad_offsets = _widen_backward(grad_q, rest, offsets)
        return grad_first, grad_rest, grad_k[..., : k.shape[3]], grad_v, None, *grad_offsets


def _widen(first: Tensor, rest: Tensor, offsets: Sequence[Tensor | None]) -> Tensor:
    """See :func:`_widen_queries`."""
    batch, prefix, heads, width = first.shape
    lengths = [0 if offset is None else offset.shape[1] for offset in offsets]
    tokens = prefix + math.prod(rest.shape[1:4])
    # The memory of each head is contiguous, as attention needs it.
    wide = rest.new_empty(batch, heads, tokens, width + sum(lengths)).transpose(1, 2)
    wide[:, :prefix, :, :width] = first
    wide[:, :prefix, :, width:] = 0
    body = wide[:, prefix:].unflatten(1, rest.shape[1:4])  # [B, t, h, w, M, d + keys]
    body[..., :width] = rest
    for axis, offset, columns in _bias_columns(offsets, width):
        products = torch.bmm(_rows(rest, axis), _vectors(offset, axis, rest).transpose(1, 2))
        if axis == 2:
            products = products.transpose(0, 1)  # [B*t*h, w*M, keys]
        body[..., columns] = products.reshape(*rest.shape[:5], -1)
    return wide


def _widen_backward(
    grad: Tensor, rest: Tensor, offsets: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """Gradients of the arguments of :func:`_widen` from that of its result."""
    width, prefix = rest.shape[5], grad.shape[1] - math.prod(rest.shape[1:4])
    body = grad[:, prefix:].unflatten(1, rest.shape[1:4])  # [B, t, h, w, M, d + keys]
    grad_rest = body[..., :width].contiguous()
    grad_offsets: list[Tensor | None] = [None, None, None]
    for axis, offset, columns in _bias_columns(offsets, width):
        part = _rows(body[..., columns].contiguous(), axis)  # [n, rows, keys]
        outer = torch.bmm(part.transpose(1, 2), _rows(rest, axis))  # [n, keys, d]
        if axis == 2:
            products = torch.bmm(part, _vectors(offset, axis, rest)).transpose(0, 1)  # [B*t*h, w*M, d]
            grad_rest += products.reshape(rest.shape)
            grad_offsets[axis] = outer.unflatten(0, (len(offset), -1)).sum(1, dtype=offset.dtype)
        else:
            _rows(grad_rest, axis).baddbmm_(part, _vectors(offset, axis, rest))
            grad_offsets[axis] = outer.unflatten(0, (-1, len(offset))).sum(0, dtype=offset.dtype)
    return grad[:, :prefix, :, :width], grad_rest, *grad_offsets


def _bias_columns(offsets: Sequence[Tensor | None], width: int) -> Iterator[tuple[int, Tensor, slice]]:
    """The axes that have vectors, with the columns of their products after the first ``width``."""
    for axis, offset in enumerate(offsets):
        if offset is not None:
            yield axis, offset, slice(width, width + offset.shape[1])
            width += offset.shape[1]


def _rows(x: Tensor, axis: int) -> Tensor:
    """View [B, t, h, w, M, c] as matrices whose rows share a position on the axis, [n, rows, c].

    n runs over (B, t) for time, (B, t, h) for height and (w, M) for width.
    """
    if axis < 2:
        return x.flatten(2 + axis, 4).flatten(0, 1 + axis)
    return x.flatten(0, 2).flatten(1, 2).transpose(0, 1)


def _vectors(offset: Tensor, axis: int, rest: Tensor) -> Tensor:
    """The relative vectors [axis, keys, d] for each matrix of :func:`_rows`, [n, keys, d]."""
    offset = offset.to(rest.dtype)
    if axis == 2:
        return offset.repeat_interleave(rest.shape[4], dim=0)
    return offset.repeat(math.prod(rest.shape[: 1 + axis]), 1, 1)


def _attention_at_once(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """All scores in one batched product, which is faster if they fit in the cache, as in the nano models."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [B, M, N, d]
    return ((q @ k.transpose(2, 3)).softmax(dim=-1) @ v).transpose(1, 2)


@torch.library.custom_op("videomaskfeat::attention", mutates_args=(), device_types="cpu")
def _blocked_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    batch, queries, heads, _ = q.shape
    result = q.new_empty(batch, queries, heads, v.shape[3])
    step = max(_SCORES_PER_BLOCK // k.shape[1], 1)
    for sample in range(batch):
        for head in range(heads):
            keys, values = k[sample, :, head].contiguous(), v[sample, :, head].t().contiguous()
            for start in range(0, queries, step):
                rows = slice(start, start + step)
                shares = product(q[sample, rows, head], keys).softmax(dim=-1)  # [rows, N"]
                result[sample, rows, head] = product(shares, values)
    return result


@torch.library.custom_op("videomaskfeat::attention_backward", mutates_args=(), device_types="cpu")
def _blocked_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    batch, queries, heads, _ = q.shape
    grad_q = q.new_empty(batch, heads, queries, q.shape[3]).transpose(1, 2)  # as :func:`_widen`
    # Sums over blocks of queries are always in float32; the memory of each head is contiguous.
    wide = torch.promote_types(k.dtype, torch.float32)
    grad_k, grad_v = (x.new_zeros(batch, heads, x.shape[1], x.shape[3], dtype=wide) for x in (k, v))
    step = max(_SCORES_PER_BLOCK // k.shape[1], 1)
    for sample in range(batch):
        for head in range(heads):
            keys, values = k[sample, :, head].contiguous(), v[sample, :, head].contiguous()
            for start in range(0, queries, step):
                block = (sample, slice(start, start + step), head)
                block_q, block_grad = q[block].contiguous(), grad[block].contiguous()
                shares = product(block_q, keys).softmax(dim=-1)  # [rows, N"]
                grad_v[sample, head] += outer_sum(shares, block_grad)
                grad_shares = product(block_grad, values)
                grad_scores = torch._softmax_backward_data(grad_shares, shares, -1, shares.dtype)
                grad_q[block] = product(grad_scores, keys.t())
                grad_k[sample, head] += outer_sum(grad_scores, block_q)
    return grad_q, grad_k.transpose(1, 2).to(k.dtype), grad_v.transpose(1, 2).to(v.dtype)


@_blocked_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q.new_empty(*q.shape[:3], v.shape[3])


@_blocked_attention_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    batch, queries, heads, width = q.shape
    grad_q = q.new_empty(batch, heads, queries, width).transpose(1, 2)
    grad_k, grad_v = (x.new_empty(batch, heads, x.shape[1], x.shape[3]).transpose(1, 2) for x in (k, v))
    return grad_q, grad_k, grad_v


def _save_inputs(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _blocked_attention_backward(grad, *ctx.saved_tensors)


_blocked_attention.register_autograd(_differentiate, setup_context=_save_inputs)
