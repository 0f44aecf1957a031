"""Fused attention with decomposed relative positions for NVIDIA GPUs, in Triton.

The relative bias of a tile of scores is one small product: the bias vectors of its queries times the one-hot
position vectors of its keys. It is added in registers, so neither queries and keys of a larger width nor a
bias matrix are in memory. Heads of 96 values are two products, of 64 and of 32: a tile's sides are powers of
two, and 128 would waste a quarter. The algorithm is that of FlashAttention-2 (arXiv 2307.08691).

This module needs the package triton; torch with CUDA on Linux brings it. With TRITON_INTERPRET=1 the kernels
run on a CPU, for tests.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS, _COLUMNS = 64, 64  # queries and keys per tile


@triton.jit
def _load(base, rows, row_stride, count, start, WIDTH: tl.constexpr, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows of a matrix, ``TILE`` columns from ``start``; 0 outside of ``count`` rows and WIDTH columns."""
    columns = start + tl.arange(0, TILE)
    inside = (rows[:, None] < count) & (columns[None, :] < WIDTH)
    return tl.load(base + rows[:, None] * row_stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _store(base, rows, row_stride, count, start, values, WIDTH: tl.constexpr, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    columns = start + tl.arange(0, TILE)
    inside = (rows[:, None] < count) & (columns[None, :] < WIDTH)
    place = base + rows[:, None] * row_stride + columns[None, :]
    tl.store(place, values.to(base.dtype.element_ty), mask=inside)


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    q, k, v, bias, codes, out, logs, queries, keys, heads,
    D: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, CODES: tl.constexpr, CODE_TILE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head; all tensors [B, tokens, M, width], codes [keys, CODES]."""
    head = tl.program_id(1)
    sample, head = head // heads, head % heads
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    q_base = q + (sample * queries * heads + head) * D
    k_base = k + (sample * keys * heads + head) * D
    v_base = v + (sample * keys * heads + head) * D
    stride = heads * D
    q1 = _load(q_base, rows, stride, queries, 0, D, FIRST)
    if SECOND > 0:
        q2 = _load(q_base, rows, stride, queries, FIRST, D, SECOND)
    bias_base = bias + (sample * queries * heads + head) * CODES
    b = _load(bias_base, rows, heads * CODES, queries, 0, CODES, CODE_TILE)
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sum1 = tl.zeros([ROWS, FIRST], tl.float32)
    if SECOND > 0:
        sum2 = tl.zeros([ROWS, SECOND], tl.float32)
    for start in range(0, keys, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        code = _load(codes, columns, CODES, keys, 0, CODES, CODE_TILE)
        k1 = _load(k_base, columns, stride, keys, 0, D, FIRST)
        scores = tl.dot(q1, tl.trans(k1), input_precision=PRECISION)
        scores += tl.dot(b, tl.trans(code), input_precision=PRECISION)
        if SECOND > 0:
            k2 = _load(k_base, columns, stride, keys, FIRST, D, SECOND)
            scores += tl.dot(q2, tl.trans(k2), input_precision=PRECISION)
        scores = tl.where(columns[None, :] < keys, scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, 1))
        shares = tl.exp(scores - larger[:, None])
        scale = tl.exp(largest - larger)
        total = total * scale + tl.sum(shares, 1)
        v1 = _load(v_base, columns, stride, keys, 0, D, FIRST)
        shares = shares.to(v1.dtype)
        sum1 = sum1 * scale[:, None] + tl.dot(shares, v1, input_precision=PRECISION)
        if SECOND > 0:
            v2 = _load(v_base, columns, stride, keys, FIRST, D, SECOND)
            sum2 = sum2 * scale[:, None] + tl.dot(shares, v2, input_precision=PRECISION)
        largest = larger
    out_base = out + (sample * queries * heads + head) * D
    _store(out_base, rows, stride, queries, 0, sum1 / total[:, None], D, FIRST)
    if SECOND > 0:
        _store(out_base, rows, stride, queries, FIRST, sum2 / total[:, None], D, SECOND)
    # Logarithm of the sum of the exponentials, [B, M, queries].
    place = logs + (sample * heads + head) * queries + rows
    tl.store(place, largest + tl.log(total), mask=rows < queries)


@triton.jit
def _backward_queries(  # type: ignore[no-untyped-def]
    q, k, v, bias, codes, logs, grad, deltas, grad_q, grad_bias, queries, keys, heads,
    D: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, CODES: tl.constexpr, CODE_TILE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of queries and of their bias vectors."""
    head = tl.program_id(1)
    sample, head = head // heads, head % heads
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    stride = heads * D
    of_queries = (sample * queries * heads + head) * D
    of_keys = (sample * keys * heads + head) * D
    q1 = _load(q + of_queries, rows, stride, queries, 0, D, FIRST)
    g1 = _load(grad + of_queries, rows, stride, queries, 0, D, FIRST)
    sum1 = tl.zeros([ROWS, FIRST], tl.float32)
    if SECOND > 0:
        q2 = _load(q + of_queries, rows, stride, queries, FIRST, D, SECOND)
        g2 = _load(grad + of_queries, rows, stride, queries, FIRST, D, SECOND)
        sum2 = tl.zeros([ROWS, SECOND], tl.float32)
    of_bias = (sample * queries * heads + head) * CODES
    b = _load(bias + of_bias, rows, heads * CODES, queries, 0, CODES, CODE_TILE)
    sum_b = tl.zeros([ROWS, CODE_TILE], tl.float32)
    of_rows = (sample * heads + head) * queries
    log = tl.load(logs + of_rows + rows, mask=rows < queries, other=float("inf"))
    delta = tl.load(deltas + of_rows + rows, mask=rows < queries, other=0.0)
    for start in range(0, keys, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        code = _load(codes, columns, CODES, keys, 0, CODES, CODE_TILE)
        k1 = _load(k + of_keys, columns, stride, keys, 0, D, FIRST)
        v1 = _load(v + of_keys, columns, stride, keys, 0, D, FIRST)
        scores = tl.dot(q1, tl.trans(k1), input_precision=PRECISION)
        scores += tl.dot(b, tl.trans(code), input_precision=PRECISION)
        grad_shares = tl.dot(g1, tl.trans(v1), input_precision=PRECISION)
        if SECOND > 0:
            k2 = _load(k + of_keys, columns, stride, keys, FIRST, D, SECOND)
            v2 = _load(v + of_keys, columns, stride, keys, FIRST, D, SECOND)
            scores += tl.dot(q2, tl.trans(k2), input_precision=PRECISION)
            grad_shares += tl.dot(g2, tl.trans(v2), input_precision=PRECISION)
        shares = tl.where(columns[None, :] < keys, tl.exp(scores - log[:, None]), 0.0)
        grad_scores = (shares * (grad_shares - delta[:, None])).to(k1.dtype)
        sum1 += tl.dot(grad_scores, k1, input_precision=PRECISION)
        sum_b += tl.dot(grad_scores, code, input_precision=PRECISION)
        if SECOND > 0:
            sum2 += tl.dot(grad_scores, k2, input_precision=PRECISION)
    _store(grad_q + of_queries, rows, stride, queries, 0, sum1, D, FIRST)
    if SECOND > 0:
        _store(grad_q + of_queries, rows, stride, queries, FIRST, sum2, D, SECOND)
    _store(grad_bias + of_bias, rows, heads * CODES, queries, 0, sum_b, CODES, CODE_TILE)


@triton.jit
def _backward_keys(  # type: ignore[no-untyped-def]
    q, k, v, bias, codes, logs, grad, deltas, grad_k, grad_v, queries, keys, heads,
    D: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, CODES: tl.constexpr, CODE_TILE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of keys and values."""
    head = tl.program_id(1)
    sample, head = head // heads, head % heads
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    stride = heads * D
    of_queries = (sample * queries * heads + head) * D
    of_keys = (sample * keys * heads + head) * D
    of_bias = (sample * queries * heads + head) * CODES
    of_rows = (sample * heads + head) * queries
    code = _load(codes, columns, CODES, keys, 0, CODES, CODE_TILE)
    k1 = _load(k + of_keys, columns, stride, keys, 0, D, FIRST)
    v1 = _load(v + of_keys, columns, stride, keys, 0, D, FIRST)
    k_sum1 = tl.zeros([COLUMNS, FIRST], tl.float32)
    v_sum1 = tl.zeros([COLUMNS, FIRST], tl.float32)
    if SECOND > 0:
        k2 = _load(k + of_keys, columns, stride, keys, FIRST, D, SECOND)
        v2 = _load(v + of_keys, columns, stride, keys, FIRST, D, SECOND)
        k_sum2 = tl.zeros([COLUMNS, SECOND], tl.float32)
        v_sum2 = tl.zeros([COLUMNS, SECOND], tl.float32)
    for start in range(0, queries, ROWS):
        rows = start + tl.arange(0, ROWS)
        q1 = _load(q + of_queries, rows, stride, queries, 0, D, FIRST)
        g1 = _load(grad + of_queries, rows, stride, queries, 0, D, FIRST)
        b = _load(bias + of_bias, rows, heads * CODES, queries, 0, CODES, CODE_TILE)
        log = tl.load(logs + of_rows + rows, mask=rows < queries, other=float("inf"))
        delta = tl.load(deltas + of_rows + rows, mask=rows < queries, other=0.0)
        scores = tl.dot(q1, tl.trans(k1), input_precision=PRECISION)
        scores += tl.dot(b, tl.trans(code), input_precision=PRECISION)
        grad_shares = tl.dot(g1, tl.trans(v1), input_precision=PRECISION)
        if SECOND > 0:
            q2 = _load(q + of_queries, rows, stride, queries, FIRST, D, SECOND)
            g2 = _load(grad + of_queries, rows, stride, queries, FIRST, D, SECOND)
            scores += tl.dot(q2, tl.trans(k2), input_precision=PRECISION)
            grad_shares += tl.dot(g2, tl.trans(v2), input_precision=PRECISION)
        shares = tl.exp(scores - log[:, None])  # 0 for rows outside, whose logarithm is infinite
        narrow = tl.trans(shares.to(v1.dtype))
        v_sum1 += tl.dot(narrow, g1, input_precision=PRECISION)
        grad_scores = tl.trans((shares * (grad_shares - delta[:, None])).to(k1.dtype))
        k_sum1 += tl.dot(grad_scores, q1, input_precision=PRECISION)
        if SECOND > 0:
            v_sum2 += tl.dot(narrow, g2, input_precision=PRECISION)
            k_sum2 += tl.dot(grad_scores, q2, input_precision=PRECISION)
    _store(grad_k + of_keys, columns, stride, keys, 0, k_sum1, D, FIRST)
    _store(grad_v + of_keys, columns, stride, keys, 0, v_sum1, D, FIRST)
    if SECOND > 0:
        _store(grad_k + of_keys, columns, stride, keys, FIRST, k_sum2, D, SECOND)
        _store(grad_v + of_keys, columns, stride, keys, FIRST, v_sum2, D, SECOND)


def triton_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, codes: Tensor) -> Tensor:
    """softmax(q k^T + bias codes^T) v, without a scale. First derivatives, none of ``codes``.

    Args:
        q: float [B, N, M, d].
        k, v: float [B, N", M, d].
        bias: bias vectors of the queries, float [B, N, M, K].
        codes: one-hot position vectors of the keys, float [N", K]; zeros for the class token.

    Returns:
        [B, N, M, d], in the type of ``q``, which all arguments have.
    """
    result: Tensor = _attention(q, k, v, bias, codes)[0]
    return result


def _tiles(width: int, codes: int) -> dict[str, Any]:
    """Sizes of tiles: a head's width as the sum of at most two powers of two, each at least 16."""
    first = max(1 << (width.bit_length() - 1), 16)
    rest = max(width - first, 0)
    second = 0 if rest == 0 else max(triton.next_power_of_2(rest), 16)
    return {
        "D": width,
        "FIRST": first,
        "SECOND": second,
        "CODES": codes,
        "CODE_TILE": max(triton.next_power_of_2(codes), 16),
        "ROWS": _ROWS,
        "COLUMNS": _COLUMNS,
    }


def _precision(x: Tensor) -> str:
    return "ieee" if x.dtype == torch.float32 and not torch.backends.cuda.matmul.allow_tf32 else "tf32"


@torch.library.custom_op("videomaskfeat::triton_attention", mutates_args=())
def _attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """The result, and the logarithms of the sums of exponentials [B, M, N]."""
    q, k, v, bias, codes = (x.contiguous() for x in (q, k, v, bias, codes))
    batch, queries, heads, width = q.shape
    out = torch.empty_like(q)
    logs = q.new_empty(batch, heads, queries, dtype=torch.float32)
    grid = (triton.cdiv(queries, _ROWS), batch * heads)
    _forward[grid](
        q, k, v, bias, codes, out, logs, queries, k.shape[1], heads,
        **_tiles(width, codes.shape[1]), PRECISION=_precision(q),
    )  # fmt: skip
    return out, logs


@torch.library.custom_op("videomaskfeat::triton_attention_backward", mutates_args=())
def _attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, codes: Tensor, out: Tensor, logs: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad, q, k, v, bias, codes = (x.contiguous() for x in (grad, q, k, v, bias, codes))
    batch, queries, heads, width = q.shape
    keys = k.shape[1]
    deltas = (grad.float() * out.float()).sum(-1).transpose(1, 2).contiguous()  # [B, M, N]
    grads = [torch.empty_like(x) for x in (q, k, v, bias)]
    options = {**_tiles(width, codes.shape[1]), "PRECISION": _precision(q)}
    inputs = (q, k, v, bias, codes, logs, grad, deltas)
    _backward_queries[triton.cdiv(queries, _ROWS), batch * heads](
        *inputs, grads[0], grads[3], queries, keys, heads, **options
    )
    _backward_keys[triton.cdiv(keys, _COLUMNS), batch * heads](
        *inputs, grads[1], grads[2], queries, keys, heads, **options
    )
    return grads[0], grads[1], grads[2], grads[3]


@_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    logs = q.new_empty(q.shape[0], q.shape[2], q.shape[1], dtype=torch.float32)
    return q.new_empty(q.shape), logs


@_attention_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, codes: Tensor, out: Tensor, logs: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    empty = [x.new_empty(x.shape) for x in (q, k, v, bias)]
    return empty[0], empty[1], empty[2], empty[3]


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    return *_attention_backward(grad, *ctx.saved_tensors), None


_attention.register_autograd(_differentiate, setup_context=_save)
