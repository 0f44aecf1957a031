"""Pooled multi-head attention with decomposed relative positions, fused."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from videomaskfeat.grid import TokenGrid
from videomaskfeat.models.encoder_base import Triple, axis_offsets, key_codes, table_length
from videomaskfeat.models.kernels.assembly import split_tokens, widen_queries
from videomaskfeat.models.kernels.dense import Linear, attention
from videomaskfeat.models.kernels.pooling import depthwise_conv3d


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

    Queries, keys and values each go through a depthwise convolution and a layer norm over the head width.
    The relative bias of a pair is ``q.Rt[t_q, t_k] + q.Rh[h_q, h_k] + q.Rw[w_q, w_k]``. It depends on the key
    through three small indices only, so each query carries its three bias vectors and each key three one-hot
    vectors: their dot product is the bias, and no attention matrix is ever stored. The class token's row and
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
        first, q, k, v = self._pooled_heads(tokens, grid)
        places = q.unflatten(1, q_grid.shape)  # [B, t', h', w', M, d]
        wide_q = widen_queries(first, places, self._offsets(q_grid, k_grid))  # [B, P+N', M, d + keys]
        codes = key_codes(k_grid, self.axes, prefix=self.prefix, like=k)
        codes = codes[:, None].expand(k.shape[0], -1, self.heads, -1)
        wide_k = torch.cat([k * self.head_width**-0.5, codes], dim=-1)
        result = attention(wide_q, wide_k, v)  # [B, P+N', M, d]
        if self.residual_pooling:
            first, rest = result.split([self.prefix, q_grid.size], dim=1)
            result = torch.cat([first, rest + q], dim=1)
        return self.proj(result.flatten(2)), q_grid

    def _pooled_heads(self, tokens: Tensor, grid: TokenGrid) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pooled and normalised: the class token's queries [B, P, M, d], the others' [B, N', M, d], and
        keys and values [B, P+N", M, d]."""
        heads = (self.heads, self.head_width)
        first, q, kv = split_tokens(self.qkv(tokens), self.prefix, self.width)
        q_weight = self.pool_q.weight.repeat(self.heads, 1, 1, 1, 1)  # [D, 1, kt, kh, kw]
        kv_weights = (self.pool_k.weight,) * self.heads + (self.pool_v.weight,) * self.heads
        q = depthwise_conv3d(q.unflatten(1, grid.shape), q_weight, self.q_stride)  # [B, t', h', w', D]
        kv = depthwise_conv3d(kv.unflatten(1, grid.shape), torch.cat(kv_weights), self.kv_stride)
        q_first, kv_first = first.split([self.width, 2 * self.width], dim=-1)
        kv = torch.cat([kv_first, kv.flatten(1, 3)], dim=1)  # [B, P+N", 2D]
        k, v = kv.unflatten(-1, (2, *heads)).unbind(2)
        q_first, q = (self.norm_q(x.unflatten(-1, heads)) for x in (q_first, q.flatten(1, 3)))
        return q_first, q, self.norm_k(k), self.norm_v(v)

    def _offsets(self, q_grid: TokenGrid, k_grid: TokenGrid) -> list[Tensor | None]:
        """The relative vectors of time, height and width, [queries, keys, d] each; None without a table."""
        return [
            axis_offsets(self.get_parameter(f"rel_pos_{axis}"), getattr(q_grid, axis), getattr(k_grid, axis))
            if axis in self.axes
            else None
            for axis in "thw"
        ]
