"""Widths, heads and strides of an encoder's blocks, from where they change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pytorchvideo.layers.drop_path import DropPath
from torch import Tensor, nn

from videomaskfeat.errors import UserError, check_name
from videomaskfeat.grid import TokenGrid
from videomaskfeat.models.attention import PooledAttention
from videomaskfeat.models.encoder_base import (
    AbsolutePositions,
    CubeEmbed,
    Encoder,
    Triple,
    as_triple,
)
from videomaskfeat.models.kernels.dense import Linear, Perceptron

WidenIn = Literal["mlp", "attention"]


class BlockPlan(NamedTuple):
    """One block: widths before and after it, its heads, and the strides of its poolings."""

    in_width: int
    out_width: int
    heads: int
    q_stride: Triple
    kv_stride: Triple


def plan_blocks(
    depth: int,
    width: int,
    heads: int,
    widen_at: Sequence[int],
    widen_in: WidenIn,
    q_pool_at: Sequence[int],
    q_pool_stride: Triple,
    kv_stride: Triple,
) -> list[BlockPlan]:
    """Widths, heads and strides of every block; see :class:`~videomaskfeat.models.mvit.MViT`.

    Raises:
        UserError: a number that cannot be, or a block that is not there.
    """
    if depth < 1 or width < 1 or heads < 1 or width % heads:
        raise UserError(
            f"depth {depth}, width {width}, heads {heads}: all must be positive, heads a divisor of width"
        )
    # The perceptron of the last block may still widen, for a block that a shortened encoder does without.
    last = depth if widen_in == "mlp" else depth - 1
    for name, blocks, limit in (("widen_at", widen_at, last), ("q_pool_at", q_pool_at, depth - 1)):
        outside = [index for index in blocks if not 0 <= index <= limit]
        if outside:
            raise UserError(f"{name} {tuple(blocks)}: a model of depth {depth} has no block {outside[0]}")
    shift = 1 if widen_in == "mlp" else 0  # a change in the perceptron is made by the block before
    plans = []
    for index in range(depth):
        q_stride = q_pool_stride if index in q_pool_at else (1, 1, 1)
        # Keys keep their grid while the queries' shrinks, except within the block that pools.
        kv_stride = as_triple(max(step // q, 1) for step, q in zip(kv_stride, q_stride, strict=True))
        heads = heads * 2 if index in widen_at else heads
        out_width = width * 2 if index + shift in widen_at else width
        plans.append(BlockPlan(width, out_width, heads, q_stride, kv_stride))
        width = out_width
    return plans


# The MViTv2 encoder.


class MultiScaleBlock(nn.Module):
    """Pooled attention, then a two-layer perceptron, each behind a layer norm (MViTv2, figure 2).

    A change of width happens either in the perceptron (``widen_in="mlp"``, the MaskFeat models) or in the
    attention (``"attention"``, the supervised ones); the residual is then projected from the *normalised*
    input of that half. Where the queries are pooled, the residual is max-pooled by the same stride.

    Args:
        in_width: width of the incoming tokens.
        out_width: width of the outgoing tokens.
        heads: attention heads.
        grid: token grid before the block, at the native clip size.
        widen_in: the half in which the width changes.
        mlp_ratio: hidden width of the perceptron over its input width.
        drop_path: chance of dropping each half for a sample in training.
        q_stride, kv_stride, pool_kernel, qkv_bias, relative_space, relative_time, residual_pooling,
            class_token: see :class:`~videomaskfeat.models.attention.PooledAttention`.
    """

    def __init__(
        self,
        in_width: int,
        out_width: int,
        heads: int,
        *,
        grid: TokenGrid,
        widen_in: WidenIn = "mlp",
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        pool_kernel: Triple = (3, 3, 3),
        q_stride: Triple = (1, 1, 1),
        kv_stride: Triple = (1, 1, 1),
        qkv_bias: bool = True,
        relative_space: bool = True,
        relative_time: bool = True,
        residual_pooling: bool = True,
        class_token: bool = True,
    ) -> None:
        super().__init__()
        inner_width = out_width if widen_in == "attention" else in_width
        self.q_stride = q_stride
        self.prefix = int(class_token)
        self.project_attention_input = inner_width != in_width
        self.project_mlp_input = inner_width != out_width
        self.norm1 = nn.LayerNorm(in_width, eps=1e-6)
        self.attn = PooledAttention(
            in_width,
            inner_width,
            heads,
            grid=grid,
            pool_kernel=pool_kernel,
            q_stride=q_stride,
            kv_stride=kv_stride,
            qkv_bias=qkv_bias,
            relative_space=relative_space,
            relative_time=relative_time,
            residual_pooling=residual_pooling,
            class_token=class_token,
        )
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(inner_width, eps=1e-6)
        self.mlp = Perceptron(inner_width, int(inner_width * mlp_ratio), out_width)
        if in_width != out_width:
            self.proj = Linear(in_width, out_width)

    def forward(self, tokens: Tensor, grid: TokenGrid) -> tuple[Tensor, TokenGrid]:
        """Tokens [B, P+N, D] on ``grid`` -> [B, P+N', D'] and the new grid."""
        normed = self.norm1(tokens)
        attended, new_grid = self.attn(normed, grid)
        skip = self.proj(normed) if self.project_attention_input else tokens
        tokens = self._pool_skip(skip, grid) + self.drop_path(attended)
        normed = self.norm2(tokens)
        skip = self.proj(normed) if self.project_mlp_input else tokens
        return skip + self.drop_path(self.mlp(normed)), new_grid

    def _pool_skip(self, tokens: Tensor, grid: TokenGrid) -> Tensor:
        """The residual on the queries' grid, [B, P+N, D] -> [B, P+N', D]."""
        if self.q_stride == (1, 1, 1):
            return tokens
        first, rest = tokens.split([self.prefix, grid.size], dim=1)
        volume = rest.unflatten(1, grid.shape).permute(0, 4, 1, 2, 3)  # [B, D, t, h, w]
        kernel = [step + 1 if step > 1 else 1 for step in self.q_stride]
        with torch.autocast(tokens.device.type, enabled=False):  # on the CPU it would take a float32 copy
            pooled = F.max_pool3d(volume, kernel, self.q_stride, [size // 2 for size in kernel])
        return torch.cat([first, pooled.flatten(2).transpose(1, 2)], dim=1)


class MViT(Encoder):
    """MViTv2 encoder: a clip to tokens, for any clip whose axes are multiples of the cube.

    The defaults are those of MViTv2-S for 16 frames of 224x224 (MViTv2, table 10) in the form used by
    MaskFeat. Parameter names are PySlowFast's.

    Args:
        clip_size: native frames, height and width; sets the lengths of the position tables. Other sizes work,
            the tables are then interpolated.
        in_channels: colour channels.
        depth: number of blocks.
        width: token width D after the stem.
        heads: attention heads of the first block.
        widen_at: blocks that see twice the width and heads of the block before.
        widen_in: "mlp": the block before doubles the width in its perceptron; "attention": the block itself
            doubles it in its attention.
        q_pool_at: blocks that pool their queries by ``q_pool_stride``.
        q_pool_stride: frames, rows, columns.
        kv_stride: pooling stride of keys and values in the first block; each query pooling divides it.
        pool_kernel: kernel of all pooling convolutions.
        cube_kernel, cube_stride, cube_padding: see :class:`~videomaskfeat.models.encoder_base.CubeEmbed`.
        mlp_ratio: hidden width of the perceptrons over their input width.
        qkv_bias: bias in the layer that makes queries, keys and values.
        class_token: prepend a learned token.
        absolute_positions: "none", "joint" (one table over time and space) or "separable" (a sum of two).
        relative_space: relative position tables for height and width.
        relative_time: a relative position table for time.
        residual_pooling: add the pooled queries to the attention's result.
        drop_path: chance of dropping a residual branch in the last block; rises linearly from 0 in the first.
        final_norm: layer norm over the last block's tokens.
        mean_first: pooled :meth:`features` are averaged before that norm instead of after it.
        linear_std: standard deviation of the linear layers' initial weights. The published 0.02 suits widths
            of 96 and more; narrow models start slowly with it.
        checkpoint_blocks: recompute each block in the backward pass instead of storing its activations.

    Raises:
        UserError: a value outside its range, or cubes that do not tile the clip.
    """

    encoder_name = "mvitv2_encoder"

    def __init__(
        self,
        *,
        clip_size: Triple = (16, 224, 224),
        in_channels: int = 3,
        depth: int = 16,
        width: int = 96,
        heads: int = 1,
        widen_at: tuple[int, ...] = (1, 3, 14),
        widen_in: WidenIn = "mlp",
        q_pool_at: tuple[int, ...] = (1, 3, 14),
        q_pool_stride: Triple = (1, 2, 2),
        kv_stride: Triple = (1, 8, 8),
        pool_kernel: Triple = (3, 3, 3),
        cube_kernel: Triple = (3, 7, 7),
        cube_stride: Triple = (2, 4, 4),
        cube_padding: Triple = (1, 3, 3),
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        class_token: bool = True,
        absolute_positions: AbsolutePositions = "none",
        relative_space: bool = True,
        relative_time: bool = True,
        residual_pooling: bool = True,
        drop_path: float = 0.0,
        final_norm: bool = True,
        mean_first: bool = False,
        linear_std: float = 0.02,
        checkpoint_blocks: bool = False,
    ) -> None:
        check_name("widen_in", widen_in, ("mlp", "attention"))
        check_name("absolute_positions", absolute_positions, ("none", "joint", "separable"))
        plans = plan_blocks(depth, width, heads, widen_at, widen_in, q_pool_at, q_pool_stride, kv_stride)
        super().__init__(
            CubeEmbed(in_channels, width, kernel=cube_kernel, stride=cube_stride, padding=cube_padding),
            clip_size,
            class_token=class_token,
            absolute_positions=absolute_positions,
            mean_first=mean_first,
            checkpoint_blocks=checkpoint_blocks,
        )
        self.blocks = nn.ModuleList()
        grid = self.native_grid
        for index, plan in enumerate(plans):
            block = MultiScaleBlock(
                plan.in_width,
                plan.out_width,
                plan.heads,
                grid=grid,
                widen_in=widen_in,
                mlp_ratio=mlp_ratio,
                drop_path=drop_path * index / max(depth - 1, 1),
                pool_kernel=pool_kernel,
                q_stride=plan.q_stride,
                kv_stride=plan.kv_stride,
                qkv_bias=qkv_bias,
                relative_space=relative_space,
                relative_time=relative_time,
                residual_pooling=residual_pooling,
                class_token=class_token,
            )
            self.blocks.append(block)
            grid = grid.pooled(plan.q_stride)
        self.out_width = plans[-1].out_width
        self.out_heads = plans[-1].heads
        self.output_stride = as_triple(
            step * math.prod(plan.q_stride[axis] for plan in plans) for axis, step in enumerate(cube_stride)
        )
        self.norm = nn.LayerNorm(self.out_width, eps=1e-6) if final_norm else nn.Identity()
        self._initialise(linear_std)
