"""The MViTv2 encoder: attention on pooled queries, keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pytorchvideo.layers.drop_path import DropPath
from torch import Tensor, nn
from torch.compiler import is_exporting

from videomaskfeat.errors import UserError, check_name
from videomaskfeat.grid import TokenGrid
from videomaskfeat.models.encoder_base import CubeEmbed, Encoder, Triple, as_triple
from videomaskfeat.models.kernels.attention import Relative, attention, attention_weights
from videomaskfeat.models.kernels.normed import normed_linear
from videomaskfeat.models.kernels.pooling import Pool, find_read_positions, leaves_gaps, pool_tokens
from videomaskfeat.models.layers import Linear, Perceptron, apply_linear
from videomaskfeat.models.limits import check_transformer
from videomaskfeat.models.norms import LayerNorm
from videomaskfeat.models.positions import AbsolutePositions, constant_table, resize_table

WidenIn = Literal["mlp", "attention"]


def table_length(queries: int, keys: int) -> int:
    """Rows of a relative table for axes of these lengths: one per offset on the finer axis."""
    return 2 * max(queries, keys) - 1


def axis_offsets(table: Tensor, queries: int, keys: int) -> Tensor:
    """Relative vectors R[q, k] of one axis, float [queries, keys, d].

    If the lengths differ, indices are stretched to the finer axis (MViTv2, appendix; truncated as in
    PySlowFast).

    Args:
        table: float [L, d]; interpolated unless L is ``table_length(queries, keys)``.
        queries: number of query positions on the axis.
        keys: number of key positions on the axis.
    """
    table = resize_table(table, table_length(queries, keys))
    return F.embedding(constant_table(_relative_index, queries, keys, device=table.device), table)


def _relative_index(queries: int, keys: int, *, device: torch.device) -> Tensor:
    """Row indices of the relative table, int64 [queries, keys]."""
    query_step, key_step = max(keys / queries, 1.0), max(queries / keys, 1.0)
    query = torch.arange(queries, device=device)[:, None] * query_step
    key = torch.arange(keys, device=device)[None, :] * key_step
    # Row 0 is the offset from the first query to the last key.
    return (query - key + (keys - 1) * key_step).long()


def _key_codes(grid: TokenGrid, axes: str, prefix: int, *, device: torch.device) -> Tensor:
    """One-hot vectors of each key's position on the given axes, [prefix + N, sum of the axis lengths]."""
    columns = []
    for dim, axis in enumerate("thw"):
        if axis in axes:
            length = grid.shape[dim]
            shape = [1, 1, 1, length]
            shape[dim] = length
            columns.append(torch.eye(length, device=device).reshape(shape).expand(*grid.shape, -1))
    codes = torch.cat(columns, dim=-1).flatten(0, 2) if columns else torch.empty(grid.size, 0, device=device)
    return F.pad(codes, (0, 0, prefix, 0))


class TokenPool(nn.Module):
    """Weight [d, 1, kt, kh, kw] of a depthwise pooling convolution that all heads share."""

    def __init__(self, head_width: int, kernel: Triple) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(head_width, 1, *kernel))
        nn.init.trunc_normal_(self.weight, std=0.02)


class PooledAttention(nn.Module):
    """Multi-head pooling attention (MViTv2, section 3.1), equal to PySlowFast's up to rounding.

    Queries, keys and values each pass a depthwise convolution and a layer norm over the head width. The
    relative bias of a pair is ``q.Rt[t_q, t_k] + q.Rh[h_q, h_k] + q.Rw[w_q, w_k]``. The class token has no
    bias, is not pooled, and is not part of the residual pooling.

    Args:
        in_width, width: input width; width of queries, keys, values and the output.
        heads: number of heads, M; the head width is d = width / heads.
        grid: input token grid at the native clip size, which determines the lengths of the relative tables.
        class_token: whether the first token is the class token.
        q_stride, kv_stride: pooling strides of the queries, and of keys and values.
        pool_kernel, qkv_bias, relative_space, relative_time, residual_pooling: see :class:`MViT`.
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
        self.pool_kernel = pool_kernel
        self.reads_a_part = leaves_gaps(pool_kernel, kv_stride)
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
        self.pool_q, self.norm_q = TokenPool(head_width, pool_kernel), LayerNorm(head_width, eps=1e-6)
        self.pool_k, self.norm_k = TokenPool(head_width, pool_kernel), LayerNorm(head_width, eps=1e-6)
        self.pool_v, self.norm_v = TokenPool(head_width, pool_kernel), LayerNorm(head_width, eps=1e-6)

    def forward(
        self, tokens: Tensor, grid: TokenGrid, norm: nn.LayerNorm | None = None
    ) -> tuple[Tensor, TokenGrid]:
        """Tokens [B, P+N, D] on ``grid`` (P = 1 with a class token) -> [B, P+N', width] and the new grid.

        ``norm``, if there is one, is applied to the tokens first.
        """
        q_grid = grid.pooled(self.q_stride)
        q_first, q, k, v = self._pooled_heads(tokens, grid, norm)
        queries = q.unflatten(1, q_grid.shape)  # [B, t', h', w', M, d]
        relative = self._relative(q_first, grid, k)
        result = attention(queries, k * self.head_width**-0.5, v, relative)  # [B, P+N', M, d]
        if self.residual_pooling:
            first, rest = result.split([self.prefix, q_grid.size], dim=1)  # [B, P, M, d], [B, N', M, d]
            result = torch.cat([first, rest + q], dim=1)  # [B, P+N', M, d]
        return self.proj(result.flatten(2)), q_grid  # [B, P+N', width]

    def weights(
        self, tokens: Tensor, grid: TokenGrid, norm: nn.LayerNorm | None
    ) -> tuple[Tensor, TokenGrid, TokenGrid]:
        """The softmax of :meth:`forward`, [B, M, P+N', P+N"], and the grids of its queries and keys."""
        q_grid, k_grid = grid.pooled(self.q_stride), grid.pooled(self.kv_stride)
        q_first, q, k, _ = self._pooled_heads(tokens, grid, norm)
        queries, relative = q.unflatten(1, q_grid.shape), self._relative(q_first, grid, k)
        return attention_weights(queries, k * self.head_width**-0.5, relative), q_grid, k_grid

    def _relative(self, q_first: Tensor, grid: TokenGrid, k: Tensor) -> Relative:
        q_grid, k_grid = grid.pooled(self.q_stride), grid.pooled(self.kv_stride)
        offsets = self._offsets(q_grid, k_grid)  # of each axis [queries, keys, d]
        codes = constant_table(_key_codes, k_grid, self.axes, self.prefix, device=k.device)  # [P+N", keys]
        return Relative(q_first, offsets, codes.to(k.dtype))

    def _pooled_heads(
        self, tokens: Tensor, grid: TokenGrid, norm: nn.LayerNorm | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Class token queries [B, P, M, d], grid queries [B, N', M, d], keys and values [B, P+N", M, d]."""
        heads = (self.heads, self.head_width)
        q_weight = self.pool_q.weight.repeat(self.heads, 1, 1, 1, 1)  # [D, 1, kt, kh, kw]
        kv_weight = torch.cat((self.pool_k.weight,) * self.heads + (self.pool_v.weight,) * self.heads)
        q_pool = Pool(q_weight, self.width, self.q_stride)
        kv_pool = Pool(kv_weight, 2 * self.width, self.kv_stride)
        # Elsewhere not measured; LoRA replaces layers.
        if self.reads_a_part and tokens.device.type == "cpu" and type(self.qkv) is Linear:
            bias = self.qkv.bias
            part, part_grid = self._take_read_tokens(tokens, grid)
            kv_pool = kv_pool._replace(stride=(self.kv_stride[0], *self.pool_kernel[1:]))
            q_all, kv_all = (
                normed_linear(x, norm, self.qkv.weight[rows], None if bias is None else bias[rows])
                for x, rows in ((tokens, slice(self.width)), (part, slice(self.width, None)))
            )
            q_first, q = pool_tokens(q_all, self.prefix, grid.shape, [q_pool])
            kv_first, kv = pool_tokens(kv_all, self.prefix, part_grid, [kv_pool])
        else:
            first, q, kv = pool_tokens(  # [B, P, 3D], [B, t', h', w', D], [B, t", h", w", 2D]
                apply_linear(self.qkv, tokens, norm), self.prefix, grid.shape, [q_pool, kv_pool]
            )
            q_first, kv_first = first.split([self.width, 2 * self.width], dim=-1)
        kv = torch.cat([kv_first, kv.flatten(1, 3)], dim=1)  # [B, P+N", 2D]
        k, v = kv.unflatten(-1, (2, *heads)).unbind(2)  # [B, P+N", M, d] each
        q_first, q = (self.norm_q(x.unflatten(-1, heads)) for x in (q_first, q.flatten(1, 3)))
        return q_first, q, self.norm_k(k), self.norm_v(v)

    def _take_read_tokens(self, tokens: Tensor, grid: TokenGrid) -> tuple[Tensor, Triple]:
        """The tokens that the windows of keys and values contain, [B, P+n, D], and their grid."""
        rows, columns = (
            constant_table(find_read_positions, length, size, step, device=tokens.device)
            for length, size, step in zip(
                grid.shape[1:], self.pool_kernel[1:], self.kv_stride[1:], strict=True
            )
        )
        first, rest = tokens.split([self.prefix, grid.size], dim=1)
        part = rest.unflatten(1, grid.shape).index_select(2, rows).index_select(3, columns)
        return torch.cat([first, part.flatten(1, 3)], dim=1), (grid.t, len(rows), len(columns))

    def _offsets(self, q_grid: TokenGrid, k_grid: TokenGrid) -> list[Tensor | None]:
        """Relative vectors [queries, keys, d] of time, height and width; None for an axis without table."""
        return [
            axis_offsets(self.get_parameter(f"rel_pos_{axis}"), getattr(q_grid, axis), getattr(k_grid, axis))
            if axis in self.axes
            else None
            for axis in "thw"
        ]


def plan_blocks(
    depth: int,
    width: int,
    heads: int,
    widen_at: Sequence[int],
    widen_in: WidenIn,
    q_pool_at: Sequence[int],
    q_pool_stride: Triple,
    kv_stride: Triple,
) -> list[dict[str, Any]]:
    """Widths, heads and strides of all blocks, as arguments of :class:`MultiScaleBlock`; see :class:`MViT`.

    Raises:
        UserError: a number out of range, or a block index that does not exist.
    """
    check_transformer(depth, width, heads)
    # The perceptron of the last block may widen for a next block, which a shortened encoder lacks.
    last = depth if widen_in == "mlp" else depth - 1
    for name, indices, limit in (("widen_at", widen_at, last), ("q_pool_at", q_pool_at, depth - 1)):
        outside = [index for index in indices if not 0 <= index <= limit]
        if outside:
            raise UserError(f"{name} {tuple(indices)}: a model of depth {depth} has no block {outside[0]}")
    shift = 1 if widen_in == "mlp" else 0  # the perceptron of the block before changes the width
    blocks = []
    for index in range(depth):
        q_stride = q_pool_stride if index in q_pool_at else (1, 1, 1)
        # The key grid stays the same while the query grid shrinks, except within the pooling block.
        kv_stride = as_triple(max(step // q, 1) for step, q in zip(kv_stride, q_stride, strict=True))
        heads = heads * 2 if index in widen_at else heads
        out_width = width * 2 if index + shift in widen_at else width
        widths = {"in_width": width, "out_width": out_width}
        blocks.append({**widths, "heads": heads, "q_stride": q_stride, "kv_stride": kv_stride})
        width = out_width
    return blocks


class MultiScaleBlock(nn.Module):
    """Pooled attention and a perceptron, each after a layer norm (MViTv2, figure 2).

    The width changes either in the perceptron (``widen_in="mlp"``, the MaskFeat models) or in the attention
    (``"attention"``, the supervised models). The residual is then projected from the *normalized* input of
    that half. If the queries are pooled, the residual is max-pooled with the same stride.

    Args:
        in_width, out_width: input and output token width.
        heads, grid, q_stride, class_token: see :class:`PooledAttention`.
        widen_in: half in which the width changes.
        mlp_ratio: hidden width of the perceptron divided by its input width.
        drop_path: probability of dropping each residual branch per sample.
        attention_arguments: other arguments of :class:`PooledAttention`.
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
        self.norm1 = LayerNorm(in_width, eps=1e-6)
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
        self.norm2 = LayerNorm(inner_width, eps=1e-6)
        self.mlp = Perceptron(inner_width, int(inner_width * mlp_ratio), out_width)
        if in_width != out_width:
            self.proj = Linear(in_width, out_width)

    def forward(self, tokens: Tensor, grid: TokenGrid) -> tuple[Tensor, TokenGrid]:
        """Tokens [B, P+N, D] on ``grid`` -> [B, P+N', D'] and the new grid."""
        if self.project_attention_input:
            normalized = self.norm1(tokens)
            attended, new_grid = self.attn(normalized, grid)  # [B, P+N', inner]
            skip = self.proj(normalized)  # [B, P+N, inner]
        else:
            attended, new_grid = self.attn(tokens, grid, self.norm1)
            skip = tokens
        tokens = self._pool_skip(skip, grid) + self.drop_path(attended)  # [B, P+N', inner]
        if self.project_mlp_input:
            normalized = self.norm2(tokens)
            return self.proj(normalized) + self.drop_path(self.mlp(normalized)), new_grid
        return tokens + self.drop_path(self.mlp(tokens, self.norm2)), new_grid

    def attention_weights(self, tokens: Tensor, grid: TokenGrid) -> tuple[Tensor, TokenGrid, TokenGrid]:
        """Shares [B, M, P+N', P+N"] for tokens [B, P+N, D] on ``grid``; grids of queries and keys."""
        return self.attn.weights(tokens, grid, self.norm1)

    def _pool_skip(self, tokens: Tensor, grid: TokenGrid) -> Tensor:
        """The residual on the query grid, [B, P+N, D] -> [B, P+N', D]."""
        if self.q_stride == (1, 1, 1):
            return tokens
        first, rest = tokens.split([self.prefix, grid.size], dim=1)  # [B, P, D], [B, N, D]
        with torch.autocast(tokens.device.type, enabled=False):  # on the CPU it would copy to float32
            pooled = max_pool(rest.unflatten(1, grid.shape), self.q_stride)  # [B, t', h', w', D]
        return torch.cat([first, pooled.flatten(1, 3)], dim=1)


def max_pool(tokens: Tensor, stride: Triple) -> Tensor:
    """Maximum over windows of stride + 1, or 1 where the stride is 1: [B, t, h, w, D] -> [B, t', h', w', D].

    Without a stride over time, it pools each frame: only torch's 2-d pooling works on channels-last tensors
    without copies.
    """
    kernel = [step + 1 if step > 1 else 1 for step in stride]
    padding = [size // 2 for size in kernel]
    if kernel[0] > 1:
        volume = tokens.permute(0, 4, 1, 2, 3)  # [B, D, t, h, w]
        return F.max_pool3d(volume, kernel, stride, padding).permute(0, 2, 3, 4, 1)
    frames = tokens.flatten(0, 1).permute(0, 3, 1, 2)  # [B*t, D, h, w]
    window = kernel[1:], list(stride[1:]), padding[1:]
    pooled = F.max_pool2d(frames, *window) if is_exporting() else _MaxPool.apply(frames, *window)
    return pooled.permute(0, 2, 3, 1).unflatten(0, tokens.shape[:2])  # [B, t, h', w', D]


class _MaxPool(torch.autograd.Function):
    """``max_pool2d`` that stores int32 indices only, where torch stores int64 indices and the input."""

    @staticmethod
    def forward(ctx: Any, frames: Tensor, *window: list[int]) -> Tensor:
        pooled, indices = torch.ops.aten.max_pool2d_with_indices(frames, *window)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(indices.int())
        ctx.shape, ctx.strides, ctx.window = frames.shape, frames.stride(), window
        return pooled

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (indices,) = ctx.saved_tensors
        # The operator needs shape and layout of the input, not its values.
        frames = torch.empty_strided(ctx.shape, ctx.strides, dtype=grad.dtype, device=grad.device)
        arguments = (grad, frames, *ctx.window, [1, 1], False, indices.long())
        return torch.ops.aten.max_pool2d_with_indices_backward(*arguments), None, None, None


class MViT(Encoder):
    """MViTv2 encoder: from a clip to tokens, for any clip size that is a multiple of the cube.

    The defaults are MaskFeat's MViTv2-S for 16 frames of 224x224 (MViTv2, table 10). Parameter names are
    PySlowFast's.

    Args:
        clip_size: native frames, height and width, which determine the lengths of the position tables. For
            other clip sizes, the tables are interpolated.
        in_channels, depth: number of color channels, and of blocks.
        width, heads: token width D and attention heads of the first block.
        widen_at: indices of blocks with twice the width and heads of the block before.
        widen_in: "mlp": the block before doubles the width in its perceptron; "attention": the block itself
            doubles it in its attention.
        q_pool_at, q_pool_stride: indices of blocks that pool their queries, and the stride (t, h, w).
        kv_stride: pooling stride of keys and values in the first block; each query pooling divides it.
        pool_kernel: kernel of all pooling convolutions; odd, padded by half.
        cube_kernel, cube_stride, cube_padding: see :class:`~videomaskfeat.models.encoder_base.CubeEmbed`.
        mlp_ratio: hidden width of the perceptrons divided by their input width.
        qkv_bias: use a bias in the query, key and value projections.
        absolute_positions: "none", "joint" (one table over time and space) or "separable" (the sum of two).
        relative_space, relative_time: use relative position tables for height and width, and for time.
        residual_pooling: add the pooled queries to the attention output.
        drop_path: probability of dropping a residual branch of the last block; increases linearly from 0.
        shared: the other keyword arguments of :class:`~videomaskfeat.models.encoder_base.Encoder`.

    Raises:
        UserError: a value out of range, or the clip size is not a multiple of the cube.
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
        check_name("initialization", shared.get("initialization", "slowfast"), ("slowfast",))
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
                **plan,
                grid=grid,
                widen_in=widen_in,
                mlp_ratio=mlp_ratio,
                drop_path=drop_path * index / max(depth - 1, 1),
                pool_kernel=pool_kernel,
                qkv_bias=qkv_bias,
                relative_space=relative_space,
                relative_time=relative_time,
                residual_pooling=residual_pooling,
                class_token=bool(self.prefix),
            )
            blocks.append(block)
            grid = grid.pooled(plan["q_stride"])
        widths, strides = ([plan[name] for plan in plans] for name in ("out_width", "q_stride"))
        self.set_blocks(blocks, widths=widths, heads=plans[-1]["heads"], strides=strides)

    def is_table(self, name: str) -> bool:
        """See :meth:`Encoder.is_table`; relative tables are also position tables."""
        return super().is_table(name) or name.rpartition(".")[2].startswith("rel_pos_")

    def resize_table(self, name: str, table: Tensor) -> Tensor | None:
        """See :meth:`Encoder.resize_table`; relative tables are interpolated."""
        if super().is_table(name):
            return super().resize_table(name, table)
        return resize_table(table.float(), len(self.get_parameter(name))).to(table.dtype)
