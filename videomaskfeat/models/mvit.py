"""The MViTv2 encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pytorchvideo.layers.drop_path import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from videomaskfeat.errors import UserError, nearest
from videomaskfeat.grid import TokenGrid
from videomaskfeat.models.attention import PooledAttention
from videomaskfeat.models.block_plan import WidenIn, plan_blocks
from videomaskfeat.models.cubes import CubeEmbed, Triple, as_triple
from videomaskfeat.models.dense import GeluLinear, Linear
from videomaskfeat.models.positions import joint_positions, separable_positions

AbsolutePositions = Literal["none", "joint", "separable"]


class Perceptron(nn.Module):
    """Linear, GELU, linear.

    Args:
        in_width: width of the incoming tokens.
        hidden_width: width between the two layers.
        out_width: width of the outgoing tokens.
    """

    def __init__(self, in_width: int, hidden_width: int, out_width: int) -> None:
        super().__init__()
        self.fc1 = Linear(in_width, hidden_width)
        self.fc2 = GeluLinear(hidden_width, out_width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D']."""
        return self.fc2(self.fc1(x))


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


class MViT(nn.Module):
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
        cube_kernel, cube_stride, cube_padding: see :class:`~videomaskfeat.models.cubes.CubeEmbed`.
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

    cls_token: nn.Parameter | None
    pos_embed: nn.Parameter | None
    pos_embed_spatial: nn.Parameter | None
    pos_embed_temporal: nn.Parameter | None
    pos_embed_class: nn.Parameter | None

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
        super().__init__()
        _check_choice("widen_in", widen_in, ("mlp", "attention"))
        _check_choice("absolute_positions", absolute_positions, ("none", "joint", "separable"))
        plans = plan_blocks(depth, width, heads, widen_at, widen_in, q_pool_at, q_pool_stride, kv_stride)
        self.checkpoint_blocks = checkpoint_blocks
        self.mean_first = mean_first
        self.patch_embed = CubeEmbed(
            in_channels, width, kernel=cube_kernel, stride=cube_stride, padding=cube_padding
        )
        self.native_grid = self.patch_embed.grid(clip_size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width)) if class_token else None
        self._make_absolute_positions(absolute_positions, width, class_token)

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

    def token_grid(self, clip_shape: Sequence[int]) -> TokenGrid:
        """The grid of cubes of a clip whose shape ends in (T, H, W).

        Raises:
            UserError: an axis is not a positive multiple of the cube.
        """
        return self.patch_embed.grid(clip_shape)

    def output_grid(self, clip_shape: Sequence[int]) -> TokenGrid:
        """The grid of the tokens that leave the last block, for a clip whose shape ends in (T, H, W)."""
        grid = self.token_grid(clip_shape)
        steps = zip(self.output_stride, self.patch_embed.stride, strict=True)
        return grid.pooled(as_triple(whole // cube for whole, cube in steps))

    def forward(self, clips: Tensor) -> Tensor:
        """Clips float [B, C, T, H, W], normalised -> tokens [B, P+N', D'], the class token (P = 1) first.

        N' is the size of :meth:`output_grid`.
        """
        tokens, grid = self.patch_embed(clips)
        return self.encode(tokens, grid)

    def encode(self, tokens: Tensor, grid: TokenGrid) -> Tensor:
        """The encoder after the stem: tokens [B, N, D] on ``grid`` -> [B, P+N', D']."""
        tokens, _ = self.through_blocks(tokens, grid)
        return self.norm(tokens)

    def features(self, clips: Tensor, *, depth: int | None = None, pooled: bool = True) -> Tensor:
        """What the encoder makes of clips, without a head; the class token is left out.

        Args:
            clips: float [B, C, T, H, W], normalised.
            depth: after how many blocks, 1..number of blocks; None: after the last, with the final norm.
            pooled: the mean over the grid's tokens instead of the tokens.

        Returns:
            [B, D'], or on the grid [B, t, h, w, D'].

        Raises:
            UserError: no such depth, or the clip is not a multiple of the cube.
        """
        if depth is not None and not 1 <= depth <= len(self.blocks):
            raise UserError(f"depth {depth}: the encoder has blocks 1..{len(self.blocks)}")
        tokens, grid = self.through_blocks(*self.patch_embed(clips), depth=depth)
        tokens = on_grid(tokens, grid)  # [B, N', D']
        if pooled:
            return tokens.mean(dim=1) if depth is not None else self.pool(tokens)
        tokens = tokens if depth is not None else self.norm(tokens)
        return tokens.unflatten(1, grid.shape)

    def pool(self, tokens: Tensor) -> Tensor:
        """The last block's tokens [B, N, D] -> normalised and averaged [B, D]."""
        return self.norm(tokens.mean(dim=1)) if self.mean_first else self.norm(tokens).mean(dim=1)

    def through_blocks(
        self, tokens: Tensor, grid: TokenGrid, *, depth: int | None = None
    ) -> tuple[Tensor, TokenGrid]:
        """Stem tokens [B, N, D] on ``grid`` through the first blocks, or all -> [B, P+N', D'] and grid."""
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        positions = self._absolute_positions(grid)
        if positions is not None:
            tokens = tokens + positions
        for block in self.blocks[:depth]:
            if self.checkpoint_blocks and self.training and torch.is_grad_enabled():
                tokens, grid = checkpoint(block, tokens, grid, use_reentrant=False)
            else:
                tokens, grid = block(tokens, grid)
        return tokens, grid

    def _make_absolute_positions(self, kind: AbsolutePositions, width: int, class_token: bool) -> None:
        """Create the position parameters under PySlowFast's names; absent ones are None."""
        grid = self.native_grid
        lengths = {
            "none": {},
            "joint": {"pos_embed": class_token + grid.size},
            "separable": {
                "pos_embed_spatial": grid.h * grid.w,
                "pos_embed_temporal": grid.t,
                "pos_embed_class": int(class_token),
            },
        }[kind]
        for name in ("pos_embed", "pos_embed_spatial", "pos_embed_temporal", "pos_embed_class"):
            length = lengths.get(name, 0)
            self.register_parameter(name, nn.Parameter(torch.empty(1, length, width)) if length else None)

    def _absolute_positions(self, grid: TokenGrid) -> Tensor | None:
        """Absolute positions [1, P+N, D] on ``grid``, or None for a model without."""
        if self.pos_embed is not None:
            prefix = self.pos_embed.shape[1] - self.native_grid.size
            first, rest = self.pos_embed.split([prefix, self.native_grid.size], dim=1)
            return torch.cat([first, joint_positions(rest, self.native_grid, grid)], dim=1)
        if self.pos_embed_spatial is None or self.pos_embed_temporal is None:
            return None
        rest = separable_positions(self.pos_embed_spatial, self.pos_embed_temporal, self.native_grid, grid)
        return rest if self.pos_embed_class is None else torch.cat([self.pos_embed_class, rest], dim=1)

    def _initialise(self, linear_std: float) -> None:
        """Draw the initial weights from torch's global generator (seed it first), as PySlowFast does."""
        for parameter in self.parameters(recurse=False):
            nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv3d):
                std = linear_std if isinstance(module, nn.Linear) else 0.02
                nn.init.trunc_normal_(module.weight, std=std)
            if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
                nn.init.constant_(module.bias, 0.02)


def on_grid(tokens: Tensor, grid: TokenGrid) -> Tensor:
    """The grid's tokens alone: [B, P+N, D] -> [B, N, D]."""
    return tokens[:, tokens.shape[1] - grid.size :]


def _check_choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UserError(f"{name} {value!r} is not one of {', '.join(known)}{nearest(value, known)}")
