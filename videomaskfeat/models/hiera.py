"""Hiera: a hierarchical vision transformer whose first stages attend within mask units."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from pytorchvideo.layers.drop_path import DropPath
from torch import Tensor, nn

from videomaskfeat.errors import UserError, check_name
from videomaskfeat.grid import TokenGrid
from videomaskfeat.models.encoder_base import CubeEmbed, Encoder, Triple, as_triple
from videomaskfeat.models.kernels.attention import attention, attention_weights
from videomaskfeat.models.layers import Linear, Perceptron, apply_linear
from videomaskfeat.models.limits import check_positive
from videomaskfeat.models.norms import LayerNorm
from videomaskfeat.models.positions import AbsolutePositions


def divide(axes: Sequence[int], by: Sequence[int]) -> Triple:
    """Axes (time, height, width) divided by others."""
    return as_triple(a // b for a, b in zip(axes, by, strict=True))


def group_units(tokens: Tensor, grid: TokenGrid, unit: Triple) -> Tensor:
    """Tokens [B, N, D] in the order of ``grid`` -> in the order of units of ``unit`` tokens, then within."""
    (t, h, w), (a, b, c) = grid.shape, unit
    split = tokens.unflatten(1, (t // a, a, h // b, b, w // c, c))  # [B, t', a, h', b, w', c, D]
    return split.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(1, 6)


def ungroup_units(tokens: Tensor, grid: TokenGrid, unit: Triple) -> Tensor:
    """The inverse of :func:`group_units`."""
    units = divide(grid.shape, unit)
    split = tokens.unflatten(1, (*units, *unit))  # [B, t', h', w', a, b, c, D]
    return split.permute(0, 1, 4, 2, 5, 3, 6, 7).flatten(1, 6)


def pool_units(tokens: Tensor, unit: Triple, pool: Triple) -> Tensor:
    """Maximum over each ``pool`` tokens of a unit: grouped tokens [B, U*u, D] -> [B, U*u', D]."""
    if pool == (1, 1, 1):
        return tokens
    (t, h, w), (a, b, c) = unit, pool
    split = tokens.unflatten(1, (-1, t // a, a, h // b, b, w // c, c))  # [B, U, t', a, h', b, w', c, D]
    return split.amax(dim=(3, 5, 7)).flatten(1, 4)


class UnitAttention(nn.Module):
    """Attention within each mask unit, or of all tokens, with pooled queries.

    Args:
        in_width, out_width: token width before and after.
        heads: attention heads.
        unit: tokens of a unit (t, h, w) before the pooling.
        pool: pooling of the queries.
        within: attend within each unit.
    """

    def __init__(
        self, in_width: int, out_width: int, heads: int, *, unit: Triple, pool: Triple, within: bool
    ) -> None:
        super().__init__()
        self.heads, self.unit, self.pool, self.within = heads, unit, pool, within
        self.scale = (out_width // heads) ** -0.5
        self.qkv = Linear(in_width, 3 * out_width)
        self.proj = Linear(out_width, out_width)

    def forward(self, tokens: Tensor, norm: nn.LayerNorm | None = None) -> Tensor:
        """Grouped tokens [B, U*u, D], after the norm if there is one -> [B, U*u', D']."""
        q, k, v = self._project(tokens, norm)
        attended = attention(q * self.scale, k, v).flatten(2)
        return self.proj(attended.reshape(len(tokens), -1, attended.shape[2]))

    def weights(self, tokens: Tensor, norm: nn.LayerNorm | None = None) -> Tensor:
        """Shares [B, G, M, n', n] for grouped tokens [B, G*n, D]: G units, or G = 1 for all tokens."""
        q, k, _ = self._project(tokens, norm)
        return attention_weights(q * self.scale, k).unflatten(0, (len(tokens), -1))

    def _project(self, tokens: Tensor, norm: nn.LayerNorm | None = None) -> list[Tensor]:
        """Queries, keys and values [B or B*U, N, M, d] of grouped tokens [B, U*u, D]."""
        q, k, v = apply_linear(self.qkv, tokens, norm).chunk(3, dim=-1)
        q = pool_units(q, self.unit, self.pool)
        if self.within:
            size = math.prod(self.unit)
            pooled = size // math.prod(self.pool)
            q, k, v = q.reshape(-1, pooled, q.shape[2]), *(x.reshape(-1, size, x.shape[2]) for x in (k, v))
        return [x.unflatten(-1, (self.heads, -1)) for x in (q, k, v)]


class HieraBlock(nn.Module):
    """Attention and a perceptron, each after a layer norm and with a residual connection.

    If the width changes, the residual is projected from the normalized input and pooled like the queries.

    Args:
        in_width, out_width, heads, unit, pool, within: see :class:`UnitAttention`.
        mlp_ratio: hidden width of the perceptron divided by ``out_width``.
        drop_path: probability of dropping each residual branch per sample.
    """

    def __init__(
        self,
        in_width: int,
        out_width: int,
        heads: int,
        *,
        unit: Triple,
        pool: Triple,
        within: bool,
        mlp_ratio: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.unit, self.pool, self.project = unit, pool, in_width != out_width
        self.norm1 = LayerNorm(in_width, eps=1e-6)
        self.attn = UnitAttention(in_width, out_width, heads, unit=unit, pool=pool, within=within)
        self.norm2 = LayerNorm(out_width, eps=1e-6)
        self.mlp = Perceptron(out_width, int(out_width * mlp_ratio), out_width)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        if self.project:
            self.proj = Linear(in_width, out_width)

    def forward(self, tokens: Tensor, grid: TokenGrid) -> tuple[Tensor, TokenGrid]:
        """Grouped tokens [B, U*u, D] of all or some units of ``grid`` -> [B, U*u', D'] and the new grid."""
        if self.project:
            normalized = self.norm1(tokens)
            skip = pool_units(self.proj(normalized), self.unit, self.pool)
            tokens = skip + self.drop_path(self.attn(normalized))
        else:
            tokens = tokens + self.drop_path(self.attn(tokens, self.norm1))
        return tokens + self.drop_path(self.mlp(tokens, self.norm2)), self.query_grid(grid)

    def query_grid(self, grid: TokenGrid) -> TokenGrid:
        """The grid of the queries and of the output."""
        return grid.pooled(self.pool)

    def attention_weights(self, tokens: Tensor, grid: TokenGrid) -> tuple[Tensor, TokenGrid, TokenGrid]:
        """Shares [B, M, N', N] for grouped tokens [B, N, D] of all units; grids of queries and keys.

        Queries and keys are in the order of their grids. If the block attends within units, all shares
        between two units are 0; :meth:`attend_shares` needs less memory.
        """
        queries, units = self.query_grid(grid), self.attn.weights(tokens, self.norm1)
        batch, groups, heads, pooled, size = units.shape
        weights = units.new_zeros(batch, heads, groups, pooled, groups, size)
        weights.diagonal(dim1=2, dim2=4).copy_(units.permute(0, 2, 3, 4, 1))
        weights = weights.flatten(4, 5).flatten(2, 3)
        rows, columns = self._orders(grid, device=tokens.device)
        return weights[:, :, rows][..., columns], queries, grid

    def attend_shares(self, tokens: Tensor, grid: TokenGrid, shares: Tensor) -> Tensor:
        """Shares of the queries [B, N'] times the weights, averaged over heads -> shares of the keys [B, N].

        Args:
            tokens, grid: as for :meth:`attention_weights`.
            shares: in the order of :meth:`query_grid`; the result is in the order of ``grid``.
        """
        units = self.attn.weights(tokens, self.norm1).float().mean(dim=2)  # [B, G, n', n]
        pooled = divide(self.unit, self.pool)
        grouped = group_units(shares[..., None], self.query_grid(grid), pooled)  # [B, N', 1]
        attended = grouped.view(len(units), units.shape[1], 1, -1) @ units
        return ungroup_units(attended.flatten(1)[..., None], grid, self.unit)[..., 0]

    def _orders(self, grid: TokenGrid, *, device: torch.device) -> tuple[Tensor, Tensor]:
        """Places of the queries and of the keys among the grouped ones, int64 [N'] and [N], in grid order."""
        units = ((self.query_grid(grid), divide(self.unit, self.pool)), (grid, self.unit))
        queries, keys = (
            ungroup_units(torch.arange(own.size, device=device).view(1, -1, 1), own, unit).flatten()
            for own, unit in units
        )
        return queries, keys


def _check_pooling(
    stages: Sequence[int], q_pool: int, stride: Sequence[int], mask_unit: Sequence[int]
) -> None:
    whole = [step**q_pool for step in stride]
    if not 0 <= q_pool < len(stages) or any(a < 1 or a % b for a, b in zip(mask_unit, whole, strict=True)):
        raise UserError(
            f"q_pool {q_pool} must be 0..{len(stages) - 1}, and a mask_unit of {list(mask_unit)} tokens "
            f"must be a multiple of q_pool_stride {list(stride)} to that power"
        )


class Hiera(Encoder):
    """Hiera (arXiv 2306.00989): width and heads double at each stage, and queries are pooled.

    The defaults are Hiera-B for 16 frames of 224x224. For images, use one frame, ``cube_stride=(1, 4, 4)``,
    ``cube_kernel=(1, 7, 7)``, ``cube_padding=(0, 3, 3)`` and joint positions. Parameter names are those
    of the published code. Within the blocks, tokens are ordered by mask units, so that a part of the units
    can be encoded; see :class:`~videomaskfeat.models.hiera_mae.HieraMAE`.

    Args:
        clip_size: native frames, height and width, a multiple of the mask unit (2x32x32 pixels). For other
            clip sizes, positions are interpolated.
        in_channels: number of color channels.
        stages: blocks of each stage.
        width, heads: token width, D, and attention heads of the first stage.
        q_pool, q_pool_stride: number of stages that pool, and the stride (t, h, w). The first block of a
            stage pools.
        mask_unit: tokens of a mask unit (t, h, w); attention is within units, and masks hide whole units.
        unit_attention: whether each stage attends within mask units. As in the published code, the first
            block of a stage attends like the stage before.
        cube_kernel, cube_stride, cube_padding: see :class:`~videomaskfeat.models.encoder_base.CubeEmbed`.
        mlp_ratio: hidden width of the perceptrons divided by their width.
        class_token: must be False.
        absolute_positions: "separable" (published for videos), "joint" (for images) or "none".
        drop_path: probability of dropping a residual branch of the last block; increases linearly from 0.
        shared: the other keyword arguments of :class:`~videomaskfeat.models.encoder_base.Encoder`;
            ``initialization`` is "slowfast" (that of the published code) or "mae".

    Raises:
        UserError: a value out of range, or the clip size is not a multiple of the mask unit.
    """

    encoder_name = "hiera_encoder"
    grid_argument = "q_pool"

    def __init__(
        self,
        *,
        clip_size: Triple = (16, 224, 224),
        in_channels: int = 3,
        stages: tuple[int, ...] = (2, 3, 16, 3),
        width: int = 96,
        heads: int = 1,
        q_pool: int = 3,
        q_pool_stride: Triple = (1, 2, 2),
        mask_unit: Triple = (1, 8, 8),
        unit_attention: tuple[bool, ...] = (True, True, False, False),
        cube_kernel: Triple = (3, 7, 7),
        cube_stride: Triple = (2, 4, 4),
        cube_padding: Triple = (1, 3, 3),
        mlp_ratio: float = 4.0,
        class_token: bool = False,
        absolute_positions: AbsolutePositions = "separable",
        drop_path: float = 0.0,
        **shared: Any,
    ) -> None:
        check_name("absolute_positions", absolute_positions, ("none", "joint", "separable"))
        check_name("initialization", shared.get("initialization", "slowfast"), ("slowfast", "mae"))
        check_positive(width=width, heads=heads)
        if class_token:
            raise UserError("class_token true: a Hiera has no class token; remove the argument")
        if width % heads or not stages or min(stages) < 1 or len(unit_attention) != len(stages):
            raise UserError(
                f"stages {list(stages)}, unit_attention {list(unit_attention)}, width {width}, "
                f"heads {heads}: "
                "each stage needs a block and a value of unit_attention, and heads must divide the width"
            )
        _check_pooling(stages, q_pool, q_pool_stride, mask_unit)
        super().__init__(
            CubeEmbed(in_channels, width, kernel=cube_kernel, stride=cube_stride, padding=cube_padding),
            clip_size,
            class_token=False,
            absolute_positions=absolute_positions,
            **shared,
        )
        self.mask_unit = as_triple(mask_unit)
        self.unit_grid(self.native_grid)  # checks the clip size
        starts = set(itertools.accumulate(stages[:-1]))
        pooling = sorted(starts)[:q_pool]
        blocks, widths, strides, unit, stage, depth = [], [], [], self.mask_unit, 0, sum(stages)
        for index in range(depth):
            within, in_width, pool = unit_attention[stage], width, as_triple((1, 1, 1))
            if index in starts:
                stage, width, heads = stage + 1, 2 * width, 2 * heads
                pool = as_triple(q_pool_stride) if index in pooling else pool
            block = HieraBlock(
                in_width,
                width,
                heads,
                unit=unit,
                pool=pool,
                within=within,
                mlp_ratio=mlp_ratio,
                drop_path=drop_path * index / max(depth - 1, 1),
            )
            unit = divide(unit, pool)
            blocks.append(block)
            widths.append(width)
            strides.append(pool)
        self.stage_ends = tuple(end - 1 for end in itertools.accumulate(stages))
        self.set_blocks(blocks, widths=widths, heads=heads, strides=strides)

    def unit_grid(self, grid: TokenGrid) -> TokenGrid:
        """The grid of mask units of a token grid.

        Raises:
            UserError: an axis is not a multiple of the unit.
        """
        if any(length % size for length, size in zip(grid.shape, self.mask_unit, strict=True)):
            pixels = [a * b for a, b in zip(self.mask_unit, self.patch_embed.stride, strict=True)]
            raise UserError(
                f"a grid of {grid} tokens is not a multiple of the mask unit, {list(self.mask_unit)} tokens; "
                f"frames, height and width of a clip must be multiples of {pixels}"
            )
        return TokenGrid(*divide(grid.shape, self.mask_unit))

    def unit_after(self, depth: int) -> Triple:
        """Tokens of a mask unit after ``depth`` blocks."""
        unit = self.mask_unit
        for pool in self.block_strides[:depth]:
            unit = divide(unit, pool)
        return unit

    def placed(self, tokens: Tensor, grid: TokenGrid, *, at: Tensor | None = None) -> Tensor:
        """Add positions to stem tokens [B, N, D], and order them by mask units; ``at`` must be None."""
        assert at is None
        self.unit_grid(grid)
        return group_units(super().placed(tokens, grid), grid, self.mask_unit)

    def run_blocks(
        self, tokens: Tensor, grid: TokenGrid, *, depth: int | None = None, at: Tensor | None = None
    ) -> tuple[Tensor, TokenGrid]:
        """Tokens of :meth:`placed` through the first ``depth`` blocks, in the order of the new grid."""
        tokens, grid = super().run_blocks(tokens, grid, depth=depth, at=at)
        return self.in_grid_order(tokens, grid, len(self.blocks) if depth is None else depth), grid

    def in_grid_order(self, tokens: Tensor, grid: TokenGrid, depth: int) -> Tensor:
        """Tokens that leave block number ``depth``, grouped by units, in the order of their grid."""
        return ungroup_units(tokens, grid, self.unit_after(depth))

    def outputs_at(
        self, tokens: Tensor, grid: TokenGrid, depths: Sequence[int], *, at: Tensor | None = None
    ) -> list[tuple[Tensor, TokenGrid]]:
        """The results of :meth:`run_blocks` for each of several depths, in one pass."""
        outputs = super().outputs_at(tokens, grid, depths, at=at)
        return [
            (self.in_grid_order(tokens, grid, depth), grid)
            for depth, (tokens, grid) in zip(depths, outputs, strict=True)
        ]
