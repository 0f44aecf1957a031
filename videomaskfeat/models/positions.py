"""Absolute positions on any token grid, and resizing of saved position tables."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from videomaskfeat.grid import TokenGrid

AbsolutePositions = Literal["none", "joint", "separable", "sincos", "sincos_2d", "sincos_1d"]
Interpolation = Literal["linear", "bicubic"]

FIXED = ("sincos", "sincos_2d", "sincos_1d")
"""The absolute positions without parameters."""
STEM = "patch_embed.proj.weight"
TABLE, SPACE, TIME, CLASS = TABLES = (
    "pos_embed",
    "pos_embed_spatial",
    "pos_embed_temporal",
    "pos_embed_class",
)


def joint_positions(
    table: Tensor, native: TokenGrid, grid: TokenGrid, *, interpolation: Interpolation = "linear"
) -> Tensor:
    """Interpolate absolute positions [1, N0, D] of the native grid to ``grid``, [1, N, D].

    "linear" is trilinear. "bicubic" is bicubic in space, without antialiasing, and linear in time: DINO's and
    iBOT's published code for pictures, without its offset of 0.1 cells.
    """
    if native == grid:
        return table
    volume = table.unflatten(1, native.shape).permute(0, 4, 1, 2, 3)  # [1, D, t0, h0, w0]
    if interpolation == "bicubic":
        volume = F.interpolate(volume, size=(grid.t, native.h, native.w), mode="trilinear")
        frames = volume.transpose(1, 2).flatten(0, 1)  # [t, D, h0, w0]
        volume = F.interpolate(frames, size=grid.shape[1:], mode="bicubic").transpose(0, 1)[None]
    else:
        volume = F.interpolate(volume, size=grid.shape, mode="trilinear")  # [1, D, t, h, w]
    return volume.flatten(2).transpose(1, 2)  # [1, N, D]


def separable_positions(
    space: Tensor,
    time: Tensor,
    native: TokenGrid,
    grid: TokenGrid,
    *,
    interpolation: Interpolation = "linear",
) -> Tensor:
    """Spatial [1, h0*w0, D] plus temporal positions [1, t0, D], interpolated to ``grid``, [1, N, D]."""
    table = space[:, None] + time[:, :, None]  # [1, t0, h0*w0, D]
    return joint_positions(table.flatten(1, 2), native, grid, interpolation=interpolation)


def fixed_positions(kind: str, width: int, grid: TokenGrid, *, prefix: int, device: torch.device) -> Tensor:
    """Fixed absolute positions [1, prefix + N, D], with zeros for the first ``prefix`` tokens.

    Each axis has a share of the channels: sines, then cosines of the index divided by 10000^(i/n).

    - "sincos": a quarter for time, 3/8 for the column, then 3/8 for the row (published code of MAE for video,
      arXiv 2205.09113).
    - "sincos_2d": a half for the column, then a half for the row (published code of MAE, arXiv 2111.06377);
      the same at all times.
    - "sincos_1d": all for the index of the token in the order time, row, column, sine and cosine alternating
      (published code of VideoMAE, arXiv 2203.12602).

    ``width``, D, is a multiple of :func:`position_channels`.
    """
    return constant_table(_sincos, kind, width, grid, prefix, device=device)


def position_channels(kind: str) -> int:
    """The number that must divide the width of fixed positions."""
    return {"sincos": 16, "sincos_2d": 4, "sincos_1d": 2}[kind]


def _sincos(kind: str, width: int, grid: TokenGrid, prefix: int, *, device: torch.device) -> Tensor:
    if kind == "sincos_1d":
        rates = 10000.0 ** -(torch.arange(0, width, 2, dtype=torch.float64, device=device) / width)
        angles = torch.arange(grid.size, dtype=torch.float64, device=device)[:, None] * rates  # [N, D/2]
        table = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)  # [N, D]
        return F.pad(table, (0, 0, prefix, 0))[None].float()
    temporal, spatial = (width // 4, width * 3 // 8) if kind == "sincos" else (0, width // 2)
    columns = []
    for axis, channels in ((0, temporal), (2, spatial), (1, spatial)):
        count = torch.arange(channels // 2, dtype=torch.float64, device=device)
        rates = 10000.0 ** -(count / (channels // 2))
        angles = torch.arange(grid.shape[axis], dtype=torch.float64, device=device)[:, None] * rates
        waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # [t or h or w, channels]
        shape = [1, 1, 1, channels]
        shape[axis] = grid.shape[axis]
        columns.append(waves.reshape(shape).expand(*grid.shape, -1))
    table = torch.cat(columns, dim=-1).flatten(0, 2)  # [N, D]
    return F.pad(table, (0, 0, prefix, 0))[None].float()


def constant_table(build: Callable[..., Tensor], *arguments: Hashable, device: torch.device) -> Tensor:
    """A table that depends on shapes only, built once per shape and device.

    While a graph is traced, the table is built anew (a cached tensor of the tracer would outlive its trace),
    and on the device itself (a compiled GPU step would otherwise copy every table from the CPU).
    """
    if torch.compiler.is_compiling():
        return build(*arguments, device=device)
    return _cached_table(build, arguments, device)


@lru_cache(maxsize=512)
def _cached_table(
    build: Callable[..., Tensor], arguments: tuple[Hashable, ...], device: torch.device
) -> Tensor:
    # Built outside inference mode, so that autograd may save it later.
    with torch.inference_mode(False):
        return build(*arguments, device=torch.device("cpu")).to(device)


def resize_table(table: Tensor, length: int) -> Tensor:
    """Linearly interpolate a table [L, d] to [length, d]."""
    if table.shape[0] == length:
        return table
    return F.interpolate(table.t()[None], size=length, mode="linear")[0].t()


def resize_absolute(
    name: str, table: Tensor, grid: TokenGrid, prefix: int, *, interpolation: Interpolation = "linear"
) -> Tensor | None:
    """Resize a saved absolute position table float [1, L, D] to the native grid of another model.

    Args:
        name: one of :data:`TABLES`.
        grid, prefix: native grid and number of class tokens of the model that loads the table.
        interpolation: see :func:`joint_positions`.

    Returns:
        [1, L', D]; None if the table's own grid is unknown: a joint table of several time steps, or a frame
        of another aspect ratio.
    """
    if name == TIME:
        return resize_table(table[0].float(), grid.t)[None].to(table.dtype)
    prefix = prefix if name == TABLE else 0
    if name not in (TABLE, SPACE) or table.shape[1] <= prefix or (name == TABLE and grid.t != 1):
        return None
    first, places = table.split([prefix, table.shape[1] - prefix], dim=1)
    resized = resize_frame(places, grid, interpolation)
    return None if resized is None else torch.cat([first, resized], dim=1)


def resize_frame(places: Tensor, grid: TokenGrid, interpolation: Interpolation = "linear") -> Tensor | None:
    """Positions [1, h0*w0, D] of a frame -> [1, h*w, D]; None if the frame has another aspect ratio."""
    factor = (places.shape[1] / (grid.h * grid.w)) ** 0.5
    native = TokenGrid(1, round(grid.h * factor), round(grid.w * factor))
    if native.size != places.shape[1]:
        return None
    frame = TokenGrid(1, grid.h, grid.w)
    return joint_positions(places.float(), native, frame, interpolation=interpolation).to(places.dtype)
