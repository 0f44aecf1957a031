"""Attention with relative positions on a GPU, in two forms besides the widened one of ``attention.py``.

Both add the bias to the scores from the bias vectors of the queries, so the width of the heads stays 96
instead of 118 or 132, between the sizes of fused kernels. ``flex`` is torch's FlexAttention; ``triton`` is a
kernel of this package. Which one is fastest is measured (``measure.py``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention


def relative_attention(
    kernel: str,
    first: Tensor,
    rest: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Sequence[Tensor | None],
    codes: Tensor,
) -> Tensor:
    """softmax(q k^T + bias) v, without a scale.

    Args:
        kernel: ``flex`` or ``triton``.
        first: queries of the class token, float [B, P, M, d], which have no bias.
        rest: queries on their grid, float [B, t, h, w, M, d].
        k, v: float [B, N", M, d].
        offsets: relative vectors of each axis [length, keys, d], or None; not all are None.
        codes: one-hot position vectors of the keys, float [N", keys of all axes]; zeros for the class token.

    Returns:
        [B, P + t*h*w, M, d].

    Raises:
        ImportError: the package triton is not installed.
    """
    bias = bias_vectors(first, rest, offsets)
    q = torch.cat([first, rest.flatten(1, 3)], dim=1)
    if kernel == "flex":
        lengths = [offset.shape[1] for offset in offsets if offset is not None]
        return flex_attention_with(q, k, v, bias, codes, lengths)
    from videomaskfeat.models.kernels.triton_attention import triton_attention

    return triton_attention(q, k, v, bias, codes.to(q.dtype))


def bias_vectors(first: Tensor, rest: Tensor, offsets: Sequence[Tensor | None]) -> Tensor:
    """Products of queries with the relative vectors of each axis, [B, P + t*h*w, M, keys of all axes].

    Args:
        first: queries of the class token [B, P, M, d], which have no bias.
        rest: queries [B, t, h, w, M, d].
        offsets: per axis [length, keys, d], or None.
    """
    columns = [
        torch.einsum(f"bthwmd,{axis}kd->bthwmk", rest, offset.to(rest.dtype))
        for axis, offset in zip("thw", offsets, strict=True)
        if offset is not None
    ]
    bias = torch.cat(columns, dim=-1).flatten(1, 3)
    return F.pad(bias, (0, 0, 0, 0, first.shape[1], 0))


def flex_attention_with(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, codes: Tensor, lengths: Sequence[int]
) -> Tensor:
    """softmax(q k^T + bias codes^T) v through FlexAttention; on a CPU without gradients.

    Args:
        q, k, v: float [B, N, M, d], [B, N", M, d] and [B, N", M, d].
        bias: result of :func:`bias_vectors`.
        codes: see :func:`relative_attention`.
        lengths: number of columns of each axis in ``bias`` and ``codes``.
    """
    tables, places = [], []
    for table, code in zip(bias.split(list(lengths), -1), codes.split(list(lengths), -1), strict=True):
        # The class token has no position: its bias is a further column of zeros.
        tables.append(F.pad(table, (0, 1)).transpose(1, 2).contiguous())  # [B, M, N, length + 1]
        places.append(torch.where(code.sum(1) > 0, code.argmax(1), code.shape[1]))  # [N"]

    def add_bias(score: Tensor, sample: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        for table, place in zip(tables, places, strict=True):
            score = score + table[sample, head, query, place[key]]
        return score

    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    function: Any = flex_attention if q.device.type == "cpu" or torch.compiler.is_compiling() else _compiled()
    result: Tensor = function(q, k, v, score_mod=add_bias, scale=1.0)
    return result.transpose(1, 2)


@functools.cache
def _compiled() -> Callable[..., Any]:
    """FlexAttention is fused only if it is compiled."""
    return torch.compile(flex_attention)
