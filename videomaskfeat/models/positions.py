"""Positions: relative tables per axis, the index tables that read them, and absolute embeddings."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from videomaskfeat.grid import TokenGrid


def table_length(queries: int, keys: int) -> int:
    """Rows of a relative table between axes of these lengths: every offset on the finer of the two."""
    return 2 * max(queries, keys) - 1


def resize_table(table: Tensor, length: int) -> Tensor:
    """A relative table [L, d] linearly interpolated to [length, d]; itself where the length fits."""
    if table.shape[0] == length:
        return table
    return F.interpolate(table.t()[None], size=length, mode="linear")[0].t()


def axis_offsets(table: Tensor, queries: int, keys: int) -> Tensor:
    """Relative vectors R[q, k] of one axis.

    Where queries and keys differ in number their indices are first stretched to the finer of the two
    (MViTv2, appendix; the truncation of PySlowFast).

    Args:
        table: float [L, d], interpolated when L is not ``table_length(queries, keys)``.
        queries: number of query positions on the axis.
        keys: number of key positions on the axis.

    Returns:
        float [queries, keys, d].
    """
    table = resize_table(table, table_length(queries, keys))
    return F.embedding(_constant(_relative_index, queries, keys, device=table.device), table)


def key_codes(grid: TokenGrid, axes: str, *, prefix: int, like: Tensor) -> Tensor:
    """For each key the one-hot vectors of its place on the given axes, side by side.

    The dot product of a query's bias vectors with a key's code is the relative bias of the pair.

    Args:
        grid: the grid of the keys.
        axes: some of "thw", in the order in which the query's bias vectors are laid out.
        prefix: rows of zeros before the grid's (the class token has no relative position).
        like: gives dtype and device.

    Returns:
        [prefix + N, the axes' lengths together], a constant without gradient.
    """
    return _constant(_key_codes, grid, axes, prefix, device=like.device).to(like.dtype)


def joint_positions(table: Tensor, native: TokenGrid, grid: TokenGrid) -> Tensor:
    """Absolute positions [1, N0, D] of the native grid, trilinearly interpolated to [1, N, D] of ``grid``."""
    if native == grid:
        return table
    volume = table.unflatten(1, native.shape).permute(0, 4, 1, 2, 3)  # [1, D, t0, h0, w0]
    volume = F.interpolate(volume, size=grid.shape, mode="trilinear")
    return volume.flatten(2).transpose(1, 2)


def separable_positions(space: Tensor, time: Tensor, native: TokenGrid, grid: TokenGrid) -> Tensor:
    """Absolute positions as a sum of one for the place [1, h0*w0, D] and one for the time [1, t0, D].

    Returns:
        [1, N, D] on ``grid``; interpolated like :func:`joint_positions` when it is not the native one.
    """
    table = space[:, None] + time[:, :, None]  # [1, t0, h0*w0, D]
    return joint_positions(table.flatten(1, 2), native, grid)


def sincos_positions(width: int, grid: TokenGrid, *, prefix: int, device: torch.device) -> Tensor:
    """Fixed absolute positions [1, prefix + N, D]; zeros for the tokens before the grid's.

    A quarter of the channels tells the time, 3/8 the column and 3/8 the row, each by sines and then cosines
    of the index over 10000^(i/n) (MAE on video, arXiv 2205.09113, in its published code).

    Args:
        width: channels, D; a multiple of 16.
        grid: the token grid, of any size.
        prefix: tokens before the grid's.
        device: where the positions go.
    """
    return _constant(_sincos, width, grid, prefix, device=device)


def _sincos(width: int, grid: TokenGrid, prefix: int, *, device: torch.device) -> Tensor:
    time, place = width // 4, width * 3 // 8
    parts = []
    for axis, channels in ((0, time), (2, place), (1, place)):
        count = torch.arange(channels // 2, dtype=torch.float64, device=device)
        rates = 10000.0 ** -(count / (channels // 2))
        angles = torch.arange(grid.shape[axis], dtype=torch.float64, device=device)[:, None] * rates
        waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # [t or h or w, channels]
        shape = [1, 1, 1, channels]
        shape[axis] = grid.shape[axis]
        parts.append(waves.reshape(shape).expand(*grid.shape, -1))
    table = torch.cat(parts, dim=-1).flatten(0, 2)  # [N, D]
    return F.pad(table, (0, 0, prefix, 0))[None].float()


def _relative_index(queries: int, keys: int, *, device: torch.device) -> Tensor:
    """Rows of the relative table, int64 [queries, keys]."""
    query_step, key_step = max(keys / queries, 1.0), max(queries / keys, 1.0)
    query = torch.arange(queries, device=device)[:, None] * query_step
    key = torch.arange(keys, device=device)[None, :] * key_step
    # The last key as seen from the first query is row 0.
    return (query - key + (keys - 1) * key_step).long()


def _key_codes(grid: TokenGrid, axes: str, prefix: int, *, device: torch.device) -> Tensor:
    parts = []
    for dim, axis in enumerate("thw"):
        if axis in axes:
            length = grid.shape[dim]
            shape = [1, 1, 1, length]
            shape[dim] = length
            parts.append(torch.eye(length, device=device).reshape(shape).expand(*grid.shape, -1))
    codes = torch.cat(parts, dim=-1).flatten(0, 2) if parts else torch.empty(grid.size, 0, device=device)
    return F.pad(codes, (0, 0, prefix, 0))


def _constant(build: Callable[..., Tensor], *arguments: Hashable, device: torch.device) -> Tensor:
    """A table that depends on shapes alone, built once per shape and device.

    While a graph is traced it is built anew: a cached tracer's tensor would outlive its trace. It is built on
    the device itself then, or a compiled step on a GPU would build every table on the CPU and copy it.
    """
    if torch.compiler.is_compiling():
        return build(*arguments, device=device)
    return _cached_constant(build, arguments, device)


@lru_cache(maxsize=512)
def _cached_constant(
    build: Callable[..., Tensor], arguments: tuple[Hashable, ...], device: torch.device
) -> Tensor:
    # Made outside inference mode, so that autograd may save it later.
    with torch.inference_mode(False):
        return build(*arguments, device=torch.device("cpu")).to(device)
