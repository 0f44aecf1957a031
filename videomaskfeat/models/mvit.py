"""The MViTv2 encoder: attention on pooled queries, keys and values, and blocks that widen the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pytorchvideo.layers.drop_path import DropPath
from torch import Tensor, nn

from videomaskfeat.errors import UserError, check_name
from videomaskfeat.grid import TokenGrid
from videomaskfeat.models.encoder_base import CubeEmbed, Encoder, Triple, as_triple
from videomaskfeat.models.kernels.attention import Relative, attention
from videomaskfeat.models.kernels.pooling import Pool, pool_tokens
from videomaskfeat.models.layers import Linear, Perceptron
from videomaskfeat.models.positions import AbsolutePositions, constant_table, resize_table

WidenIn = Literal["mlp", "attention"]


def table_length(queries: int, keys: int) -> int:
    """Rows of a relative table between axes of these lengths: every offset on the finer of the two."""
    return 2 * max(queries, keys) - 1


def axis_offsets(table: Tensor, queries: int, keys: int) -> Tensor:
    """Relative vectors R[q, k] of one axis.

    If queries and keys differ in number their indices are first stretched to the finer of the two (MViTv2,
    appendix; the truncation of PySlowFast).

    Args:
        table: float [L, d], interpolated if L is not ``table_length(queries, keys)``.
        queries: number of query positions on the axis.
        keys: number of key positions on the axis.

    Returns:
        float [queries, keys, d].
    """
    table = resize_table(table, table_length(queries, keys))
    return F.embedding(constant_table(_relative_index, queries, keys, device=table.device), table)


def _relative_index(queries: int, keys: int, *, device: torch.device) -> Tensor:
    """Rows of the relative table, int64 [queries, keys]."""
    query_step, key_step = max(keys / queries, 1.0), max(queries / keys, 1.0)
    query = torch.arange(queries, device=device)[:, None] * query_step
    key = torch.arange(keys, device=device)[None, :] * key_step
    # The last key as seen from the first query is row 0.
    return (query - key + (keys - 1) * key_step).long()


def _key_codes(grid: TokenGrid, axes: str, prefix: int, *, device: torch.device) -> Tensor:
    """For each key the one-hot vectors of its place on the given axes, side by side; zeros for class tokens.

    Returns:
        [prefix + N, the axes' lengths together].
    """
    parts = []
    for dim, axis in enumerate("thw"):
        if axis in axes:
            length = grid.shape[dim]
            shape = [1, 1, 1, length]
            shape[dim] = length
            parts.append(torch.eye(length, device=device).reshape(shape).expand(*grid.shape, -1))
    codes = torch.cat(parts, dim=-1).flatten(0, 2) if parts else torch.empty(grid.size, 0, device=device)
    return F.pad(codes, (0, 0, prefix, 0))


class TokenPool(nn.Module):
    """The weights of a depthwise pooling convolution that all heads share: ``weight`` [d, 1, kt, kh, kw]."""

    def __init__(self, head_width: int, kernel: Triple) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(head_width, 1, *kernel))
        nn.init.trunc_normal_(self.weight, std=0.02)


class HeadNorm(nn.LayerNorm):
    """Layer norm over the head width, in float32 on the CPU.

    There, torch sums the gradients of weight and bias in the type of the input: over the 25,000 tokens of a
    first block in bfloat16 the gradient of the bias is wrong by its whole size.
    """

    def __init__(self, head_width: int) -> None:
        super().__init__(head_width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., d], in the type of ``x``."""
        if x.dtype in (torch.float32, torch.float64) or x.device.type != "cpu":
            return super().forward(x)
        return super().forward(x.float()).to(x.dtype)


class PooledAttention(nn.Module):
    """Multi-head pooling attention (MViTv2, section 3.1), equal to PySlowFast's to rounding.

    Queries, keys and values each go through a depthwise convolution and a layer norm over the head width. The
    relative bias of a pair is ``q.Rt[t_q, t_k] + q.Rh[h_q, h_k] + q.Rw[w_q, w_k]``. The class token's row and
    column have no bias, and it is neither pooled nor added back by the residual pooling.

    Args:
        in_width: width of the incoming tokens.
        width: width of queries, keys, values and of the result.
        heads: number of heads, M; the head width is d = width / heads.
        grid: the token grid at the native clip size; it sets the lengths of the relative tables.
        pool_kernel: kernel of the pooling convolutions; odd, padded by half.
        q_stride: pooling stride of the queries.
        kv_stride: pooling stride of keys and values.
        qkv_bias: whether the first linear layer has a bias.
        relative_space: learn relative tables for height and width.
        relative_time: learn a relative table for time.
        residual_pooling: add the pooled queries to the result.
        class_token: whether the first token is the class token.
    """

    def __init__(
        self,
        in_width: int,
        width: int,
        heads: int,
        *,
        grid: TokenGrid,
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
        head_width = width // heads
        self.width = width
        self.heads = heads
        self.head_width = head_width
        self.q_stride = q_stride
        self.kv_stride = kv_stride
        self.residual_pooling = residual_pooling
        self.prefix = int(class_token)
        self.axes = "t" * relative_time + "hw" * relative_space

        queries, keys = grid.pooled(q_stride), grid.pooled(kv_stride)
        for axis in sorted(self.axes):
            length = table_length(getattr(queries, axis), getattr(keys, axis))
            self.register_parameter(f"rel_pos_{axis}", nn.Parameter(torch.empty(length, head_width)))
            nn.init.trunc_normal_(self.get_parameter(f"rel_pos_{axis}"), std=0.02)
        self.qkv = Linear(in_width, 3 * width, bias=qkv_bias)
        self.proj = Linear(width, width)
        self.pool_q = TokenPool(head_width, pool_kernel)
        self.norm_q = HeadNorm(head_width)
        self.pool_k = TokenPool(head_width, pool_kernel)
        self.norm_k = HeadNorm(head_width)
        self.pool_v = TokenPool(head_width, pool_kernel)
        self.norm_v = HeadNorm(head_width)

    def forward(self, tokens: Tensor, grid: TokenGrid) -> tuple[Tensor, TokenGrid]:
        """Tokens [B, P+N, D] on ``grid`` (P = 1 with a class token) -> [B, P+N', width] and the new grid."""
        q_grid, k_grid = grid.pooled(self.q_stride), grid.pooled(self.kv_stride)
        q_first, q, k, v = self._pooled_heads(tokens, grid)
        offsets = self._offsets(q_grid, k_grid)  # of each axis [queries, keys, d]
        codes = constant_table(_key_codes, k_grid, self.axes, self.prefix, device=k.device)  # [P+N", keys]
        relative = Relative(q_first, offsets, codes.to(k.dtype))
        places = q.unflatten(1, q_grid.shape)  # [B, t', h', w', M, d]
        result = attention(places, k * self.head_width**-0.5, v, relative)  # [B, P+N', M, d]
        if self.residual_pooling:
            first, rest = result.split([self.prefix, q_grid.size], dim=1)  # [B, P, M, d], [B, N', M, d]
            result = torch.cat([first, rest + q], dim=1)  # [B, P+N', M, d]
        return self.proj(result.flatten(2)), q_grid  # [B, P+N', width]

    def _pooled_heads(self, tokens: Tensor, grid: TokenGrid) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pooled and normalized: the class token's queries [B, P, M, d], the others' [B, N', M, d], and
        keys and values [B, P+N", M, d]."""
        heads = (self.heads, self.head_width)
        q_weight = self.pool_q.weight.repeat(self.heads, 1, 1, 1, 1)  # [D, 1, kt, kh, kw]
        kv_weight = torch.cat((self.pool_k.weight,) * self.heads + (self.pool_v.weight,) * self.heads)
        pools = [
            Pool(q_weight, self.width, self.q_stride),
            Pool(kv_weight, 2 * self.width, self.kv_stride),
        ]
        first, q, kv = pool_tokens(  # [B, P, 3D], [B, t', h', w', D], [B, t", h", w", 2D]
            self.qkv(tokens), self.prefix, grid.shape, pools
        )
        q_first, kv_first = first.split([self.width, 2 * self.width], dim=-1)
        kv = torch.cat([kv_first, kv.flatten(1, 3)], dim=1)  # [B, P+N", 2D]
        k, v = kv.unflatten(-1, (2, *heads)).unbind(2)  # [B, P+N", M, d] each
        q_first, q = (self.norm_q(x.unflatten(-1, heads)) for x in (q_first, q.flatten(1, 3)))
        return q_first, q, self.norm_k(k), self.norm_v(v)

    def _offsets(self, q_grid: TokenGrid, k_grid: TokenGrid) -> list[Tensor | None]:
        """The relative vectors of time, height and width, [queries, keys, d] each; None: no table."""
        return [
            axis_offsets(self.get_parameter(f"rel_pos_{axis}"), getattr(q_grid, axis), getattr(k_grid, axis))
            if axis in self.axes
            else None
            for axis in "thw"
        ]


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
        UserError: a number out of range, or a block that does not exist.
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


class MultiScaleBlock(nn.Module):
    """Pooled attention, then a two-layer perceptron, each behind a layer norm (MViTv2, figure 2).

    The width changes either in the perceptron (``widen_in="mlp"``, the MaskFeat models) or in the attention
    (``"attention"``, the supervised ones); the residual is then projected from the *normalized* input of that
    half. If the queries are pooled, the residual is max-pooled by the same stride.

    Args:
        in_width: width of the incoming tokens.
        out_width: width of the outgoing tokens.
        heads: attention heads.
        grid: token grid before the block, at the native clip size.
        widen_in: the half in which the width changes.
        mlp_ratio: hidden width of the perceptron over its input width.
        drop_path: chance of dropping each half for a sample in training.
        q_stride: pooling stride of the queries.
        class_token: whether the first token is the class token.
        attention_arguments: the others of :class:`PooledAttention`.
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
        q_stride: Triple = (1, 1, 1),
        class_token: bool = True,
        **attention_arguments: Any,
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
            q_stride=q_stride,
            class_token=class_token,
            **attention_arguments,
        )
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(inner_width, eps=1e-6)
        self.mlp = Perceptron(inner_width, int(inner_width * mlp_ratio), out_width)
        if in_width != out_width:
            self.proj = Linear(in_width, out_width)

    def forward(self, tokens: Tensor, grid: TokenGrid) -> tuple[Tensor, TokenGrid]:
        """Tokens [B, P+N, D] on ``grid`` -> [B, P+N', D'] and the new grid."""
        normed = self.norm1(tokens)
        attended, new_grid = self.attn(normed, grid)  # [B, P+N', inner]
        skip = self.proj(normed) if self.project_attention_input else tokens  # [B, P+N, inner]
        tokens = self._pool_skip(skip, grid) + self.drop_path(attended)  # [B, P+N', inner]
        normed = self.norm2(tokens)
        skip = self.proj(normed) if self.project_mlp_input else tokens
        return skip + self.drop_path(self.mlp(normed)), new_grid

    def _pool_skip(self, tokens: Tensor, grid: TokenGrid) -> Tensor:
        """The residual on the queries' grid, [B, P+N, D] -> [B, P+N', D]."""
        if self.q_stride == (1, 1, 1):
            return tokens
        first, rest = tokens.split([self.prefix, grid.size], dim=1)  # [B, P, D], [B, N, D]
        volume = rest.unflatten(1, grid.shape).permute(0, 4, 1, 2, 3)  # [B, D, t, h, w]
        kernel = [step + 1 if step > 1 else 1 for step in self.q_stride]
        with torch.autocast(tokens.device.type, enabled=False):  # on the CPU it would take a float32 copy
            pooled = F.max_pool3d(volume, kernel, self.q_stride, [size // 2 for size in kernel])
        return torch.cat([first, pooled.flatten(2).transpose(1, 2)], dim=1)  # [B, D, t', h', w'] -> tokens


class MViT(Encoder):
    """MViTv2 encoder: a clip to tokens, for any clip whose axes are multiples of the cube.

    The defaults are those of MViTv2-S for 16 frames of 224x224 (MViTv2, table 10) in the form used by
    MaskFeat. Parameter names are PySlowFast's.

    Args:
        clip_size: native frames, height and width; sets the lengths of the position tables. Other sizes work,
            the tables are then interpolated.
        in_channels: color channels.
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
        absolute_positions: "none", "joint" (one table over time and space) or "separable" (a sum of two).
        relative_space: relative position tables for height and width.
        relative_time: a relative position table for time.
        residual_pooling: add the pooled queries to the attention's result.
        drop_path: chance of dropping a residual branch in the last block; rises linearly from 0 in the first.
        shared: the other keyword arguments of :class:`~videomaskfeat.models.encoder_base.Encoder`.

    Raises:
        UserError: a value outside its range, or cubes that do not tile the clip.
    """

    encoder_name = "mvitv2_encoder"
    grid_argument = "q_pool_at"

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
        absolute_positions: AbsolutePositions = "none",
        relative_space: bool = True,
        relative_time: bool = True,
        residual_pooling: bool = True,
        drop_path: float = 0.0,
        **shared: Any,
    ) -> None:
        check_name("widen_in", widen_in, ("mlp", "attention"))
        check_name("absolute_positions", absolute_positions, ("none", "joint", "separable"))
        plans = plan_blocks(depth, width, heads, widen_at, widen_in, q_pool_at, q_pool_stride, kv_stride)
        super().__init__(
            CubeEmbed(in_channels, width, kernel=cube_kernel, stride=cube_stride, padding=cube_padding),
            clip_size,
            absolute_positions=absolute_positions,
            **shared,
        )
        blocks = []
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
                class_token=bool(self.prefix),
            )
            blocks.append(block)
            grid = grid.pooled(plan.q_stride)
        self.set_blocks(
            blocks,
            widths=[plan.out_width for plan in plans],
            heads=plans[-1].heads,
            strides=[plan.q_stride for plan in plans],
        )

    def is_table(self, name: str) -> bool:
        """See :class:`~videomaskfeat.models.encoder_base.Encoder`; the relative tables are such, too."""
        return super().is_table(name) or name.rpartition(".")[2].startswith("rel_pos_")

    def resize_table(self, name: str, table: Tensor) -> Tensor | None:
        """As the base class; relative tables are interpolated, as for another clip size."""
        if super().is_table(name):
            return super().resize_table(name, table)
        return resize_table(table.float(), len(self.get_parameter(name))).to(table.dtype)
