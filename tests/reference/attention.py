"""A slow pooled attention that computes the attention matrix for each pair of positions."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from videomaskfeat.grid import TokenGrid
from videomaskfeat.models.mvit import PooledAttention


def slow_attention_weights(layer: PooledAttention, tokens: Tensor, grid: TokenGrid) -> Tensor:
    """The softmax over all pairs of positions, [B, M, P+N', P+N"]."""
    return _attend(layer, tokens, grid)[0]


def slow_attention(layer: PooledAttention, tokens: Tensor, grid: TokenGrid) -> Tensor:
    """``layer(tokens, grid)[0]`` by the definition: one bias for each pair of positions."""
    weights, q, v = _attend(layer, tokens, grid)
    result, P = weights @ v, layer.prefix
    if layer.residual_pooling:
        result = torch.cat([result[:, :, :P], result[:, :, P:] + q[:, :, P:]], dim=2)
    return layer.proj(result.transpose(1, 2).flatten(2))


def _attend(layer: PooledAttention, tokens: Tensor, grid: TokenGrid) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, queries and values."""
    B, P, M, d = tokens.shape[0], layer.prefix, layer.heads, layer.head_width
    qkv = layer.qkv(tokens).reshape(B, -1, 3, M, d).permute(2, 0, 3, 1, 4)  # [3, B, M, P+N, d]
    q, q_grid = _pool(qkv[0], layer.pool_q.weight, layer.norm_q, layer.q_stride, grid, P)
    k, k_grid = _pool(qkv[1], layer.pool_k.weight, layer.norm_k, layer.kv_stride, grid, P)
    v, _ = _pool(qkv[2], layer.pool_v.weight, layer.norm_v, layer.kv_stride, grid, P)
    scores = q @ k.transpose(-2, -1) * d**-0.5  # [B, M, P+N', P+N"]
    bias = torch.zeros_like(scores)
    q_places, k_places = (
        list(itertools.product(*map(range, q_grid))),
        list(itertools.product(*map(range, k_grid))),
    )
    for row, q_place in enumerate(q_places):
        offsets = torch.zeros(len(k_places), d)
        for axis, name in enumerate("thw"):
            if name in layer.axes:
                table = layer.get_parameter(f"rel_pos_{name}")
                offsets = offsets + _offsets(table, q_place[axis], k_places, axis, q_grid, k_grid)
        bias[:, :, P + row, P:] = torch.einsum("bmd,kd->bmk", q[:, :, P + row], offsets)
    return (scores + bias).softmax(dim=-1), q, v


def _offsets(
    table: Tensor,
    q_index: int,
    k_places: list[tuple[int, ...]],
    axis: int,
    q_grid: list[int],
    k_grid: list[int],
) -> Tensor:
    """The vectors of one axis from one query to all keys, [N", d]."""
    queries, keys = q_grid[axis], k_grid[axis]
    length = 2 * max(queries, keys) - 1
    if len(table) != length:
        table = F.interpolate(table.t()[None], size=length, mode="linear")[0].t()
    q_step, k_step = max(keys / queries, 1), max(queries / keys, 1)
    rows = [int(q_index * q_step - place[axis] * k_step + (keys - 1) * k_step) for place in k_places]
    return table[rows]


def _pool(
    x: Tensor, weight: Tensor, norm: torch.nn.Module, stride: tuple[int, ...], grid: TokenGrid, prefix: int
) -> tuple[Tensor, list[int]]:
    """Pool each head separately in image layout, [B, M, P+N, d] -> [B, M, P+N', d]."""
    B, M, _, d = x.shape
    first, rest = x[:, :, :prefix], x[:, :, prefix:]
    image = rest.reshape(B * M, *grid.shape, d).permute(0, 4, 1, 2, 3)
    padding = [size // 2 for size in weight.shape[2:]]
    image = F.conv3d(image, weight, stride=stride, padding=padding, groups=d)
    rest = image.flatten(2).transpose(1, 2).reshape(B, M, -1, d)
    return norm(torch.cat([first, rest], dim=2)), list(image.shape[2:])
