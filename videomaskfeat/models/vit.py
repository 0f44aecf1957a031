"""The plain vision transformer, for clips and for images."""

from __future__ import annotations

import math
from typing import Any, get_args

import torch
import torch.nn.functional as F
from pytorchvideo.layers.drop_path import DropPath
from torch import Tensor, nn

from videomaskfeat.errors import UserError, check_name
from videomaskfeat.grid import TokenGrid
from videomaskfeat.models.encoder_base import CubeEmbed, Encoder, Triple, cut_cubes
from videomaskfeat.models.initialization import Initialization
from videomaskfeat.models.kernels.attention import attention, attention_weights, biased_attention
from videomaskfeat.models.layers import Linear, Perceptron, apply_linear
from videomaskfeat.models.limits import check_transformer
from videomaskfeat.models.norms import LayerNorm, set_norm_eps
from videomaskfeat.models.positions import FIXED, AbsolutePositions, constant_table, position_channels

BIAS = "rel_pos_bias.table"


class RelativeBias(nn.Module):
    """A learned number per head and offset between two tokens, added to the attention scores of all blocks.

    BEiT's and SimMIM's shared relative position bias (arXiv 2106.08254, published code), with time as a third
    axis. The table starts at 0. Its rows are offsets query - key in the order time, row, column, then: class
    token to token, token to class token, class token to itself. For other grids, offsets are interpolated.

    Args:
        heads: number of attention heads, M.
        grid: native token grid.
        prefix: number of class tokens, P, 0 or 1.
    """

    def __init__(self, heads: int, grid: TokenGrid, *, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix
        self.offsets = _offsets(grid)
        self.table = nn.Parameter(torch.zeros(math.prod(self.offsets) + 3, heads))

    def forward(self, grid: TokenGrid) -> Tensor:
        """The bias of each query and key, [M, P+N, P+N]."""
        table = resize_bias(self.table, self.offsets, _offsets(grid))
        index = constant_table(_bias_index, grid, self.prefix, device=table.device)
        return F.embedding(index, table).permute(2, 0, 1)


def _offsets(grid: TokenGrid) -> Triple:
    return (2 * grid.t - 1, 2 * grid.h - 1, 2 * grid.w - 1)


def resize_bias(table: Tensor, native: Triple, offsets: Triple) -> Tensor:
    """Interpolate a table of :class:`RelativeBias`, [L, M], to other numbers of offsets."""
    if native == offsets:
        return table
    volume = table[:-3].t().unflatten(1, native)[None]  # [1, M, 2t-1, 2h-1, 2w-1]
    resized = F.interpolate(volume, size=offsets, mode="trilinear", align_corners=True)
    return torch.cat([resized[0].flatten(1).t(), table[-3:]])


def _bias_index(grid: TokenGrid, prefix: int, *, device: torch.device) -> Tensor:
    """Row of the table per query and key, int64 [P+N, P+N]."""
    rows = torch.zeros((), dtype=torch.int64, device=device)
    for axis, length in enumerate(grid.shape):
        place = torch.arange(length, device=device)
        shape = [1, 1, 1]
        shape[axis] = length
        places = place.reshape(shape).expand(grid.shape).flatten()  # [N]
        rows = rows * (2 * length - 1) + places[:, None] - places + length - 1
    if not prefix:
        return rows
    last = math.prod(_offsets(grid)) + 2
    rows = F.pad(rows, (1, 0, 0, 0), value=last - 1)
    rows = F.pad(rows, (0, 0, 1, 0), value=last - 2)
    rows[0, 0] = last
    return rows


def rotary_table(
    grid: TokenGrid, head_width: int, *, prefix: int, device: torch.device, repeated: bool = False
) -> Tensor:
    """Cosines and sines of rotary positions, float32 [2, P+N, d].

    A third of a head's d channels, rounded down to an even number n, belongs to each of time, row and column;
    the others, and the class token, are not rotated. Pair i of an axis turns by the index times
    10000^(-2i/n) (RoFormer, arXiv 2104.09864; split of V-JEPA 2, 2506.09985). The published code of V-JEPA 2
    gives the two channels of a pair different angles, which its authors call a bug; here they are equal,
    unless ``repeated``: then channel c of an axis has the angle of pair c mod n/2, as its weights need.
    """
    return constant_table(_rotary_table, grid, head_width, prefix, repeated, device=device)


def _rotary_table(
    grid: TokenGrid, head_width: int, prefix: int, repeated: bool, *, device: torch.device
) -> Tensor:
    channels = rotary_channels(head_width)
    rates = 10000.0 ** -(torch.arange(channels // 2, dtype=torch.float64, device=device) * 2 / channels)
    columns = []
    for axis, length in enumerate(grid.shape):
        angles = torch.arange(length, dtype=torch.float64, device=device)[:, None] * rates
        shape = [1, 1, 1, channels]
        shape[axis] = length
        angles = torch.cat([angles, angles], dim=1) if repeated else angles.repeat_interleave(2, dim=1)
        columns.append(angles.reshape(shape).expand(*grid.shape, -1))
    angles = torch.cat(columns, dim=-1).flatten(0, 2)  # [N, 3 n]
    angles = F.pad(angles, (0, head_width - angles.shape[1], prefix, 0))
    return torch.stack([angles.cos(), angles.sin()]).float()


def rotary_channels(head_width: int) -> int:
    """Rotated channels of a head per axis."""
    return 2 * (head_width // 3 // 2)


def check_rotary(width: int, heads: int, *, prefix: str = "") -> None:
    """Raise UserError unless a head has channels for each axis; ``prefix`` of the names."""
    if not rotary_channels(width // heads):
        raise UserError(
            f"rotary positions: {prefix}width {width} with {prefix}heads {heads} leaves {width // heads} "
            "values per head, but time, row and column need 2 each; use at least 6 per head"
        )


def rotate(vectors: Tensor, table: Tensor) -> Tensor:
    """Rotate queries or keys float [B, N, M, d] by a table, [2, N, d] or [2, B, N, d].

    See :func:`rotary_table`.
    """
    cosines, sines = table.unsqueeze(-2)  # [N, 1, d] or [B, N, 1, d] each
    first, second = vectors.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-second, first], dim=-1).flatten(-2)
    return (vectors * cosines + turned * sines).to(vectors.dtype)


class Attention(nn.Module):
    """Fused multi-head attention of all tokens to all tokens; arguments as for :class:`Block`."""

    def __init__(self, width: int, heads: int, *, qkv_bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.qkv = Linear(width, 3 * width, bias=qkv_bias)
        self.proj = Linear(width, width)

    def forward(
        self,
        tokens: Tensor,
        bias: Tensor | None = None,
        rotary: Tensor | None = None,
        norm: nn.LayerNorm | None = None,
    ) -> Tensor:
        """Attend, after the norm if there is one.

        Tokens [B, N, D], a bias [M, N, N] of the scores, and a table of :func:`rotate` -> [B, N, D].
        """
        q, k, v = self._heads(tokens, rotary, norm)
        if bias is None:
            return self.proj(attention(q, k, v).flatten(2))
        return self.proj(biased_attention(q, k, v, bias).flatten(2))

    def weights(
        self, tokens: Tensor, bias: Tensor | None, rotary: Tensor | None, norm: nn.LayerNorm
    ) -> Tensor:
        """The softmax of :meth:`forward`, [B, M, N, N]."""
        q, k, _ = self._heads(tokens, rotary, norm)
        return attention_weights(q, k, bias=bias)

    def _heads(
        self, tokens: Tensor, rotary: Tensor | None, norm: nn.LayerNorm | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, scaled, keys and values, [B, N, M, d] each."""
        q, k, v = apply_linear(self.qkv, tokens, norm).unflatten(-1, (3, self.heads, -1)).unbind(2)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        return q * self.scale, k, v


class Block(nn.Module):
    """Attention and a perceptron, each after a layer norm and with a residual connection.

    Args:
        width, heads: token width, D, and number of attention heads.
        mlp_ratio, qkv_bias: see :class:`ViT`.
        drop_path: probability of dropping each residual branch per sample.
        layer_scale: initial value of a learned factor per channel on each branch (CaiT, arXiv 2103.17239);
            None for no factor.
        relative_bias: bias of the attention scores, which another module owns; None for no bias.
        rotary, rotary_repeated: rotate queries and keys by their positions; see :func:`rotary_table`.
    """

    gamma_1: nn.Parameter | None
    gamma_2: nn.Parameter | None

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        relative_bias: RelativeBias | None = None,
        rotary: bool = False,
        rotary_repeated: bool = False,
    ) -> None:
        super().__init__()
        self.rotary, self.rotary_repeated = rotary, rotary_repeated
        self._relative_bias = (relative_bias,)  # in a tuple: no submodule, since all blocks share it
        self.norm1 = LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, qkv_bias=qkv_bias)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = LayerNorm(width, eps=1e-6)
        self.mlp = Perceptron(width, int(width * mlp_ratio), width)
        for name in ("gamma_1", "gamma_2"):
            gamma = None if layer_scale is None else nn.Parameter(torch.full((width,), layer_scale))
            self.register_parameter(name, gamma)

    def forward(self, tokens: Tensor, grid: TokenGrid, at: Tensor | None = None) -> tuple[Tensor, TokenGrid]:
        """Tokens [B, P+N, D] on ``grid`` -> the same shape, and ``grid``.

        ``at``: int64 [B, V], grid positions of tokens [B, P+V, D] that are only a part of the grid.
        """
        bias, rotary = self._positions(tokens, grid, at)
        attended = self.attn(tokens, bias, rotary, self.norm1)
        tokens = tokens + self.drop_path(_scaled(attended, self.gamma_1))
        return tokens + self.drop_path(_scaled(self.mlp(tokens, self.norm2), self.gamma_2)), grid

    def attention_weights(self, tokens: Tensor, grid: TokenGrid) -> tuple[Tensor, TokenGrid, TokenGrid]:
        """Shares [B, M, P+N, P+N] for tokens [B, P+N, D] on ``grid``; grids of queries and keys."""
        return self.attn.weights(tokens, *self._positions(tokens, grid, None), self.norm1), grid, grid

    def _positions(
        self, tokens: Tensor, grid: TokenGrid, at: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """The bias and the rotary table of the attention; None without."""
        (relative_bias,) = self._relative_bias
        bias = None if relative_bias is None else relative_bias(grid)
        return bias, self._rotary_table(tokens, grid, at) if self.rotary else None

    def _rotary_table(self, tokens: Tensor, grid: TokenGrid, at: Tensor | None) -> Tensor:
        """[2, P+N, d], or for a part of the grid [2, B, P+V, d]."""
        prefix = tokens.shape[1] - (grid.size if at is None else at.shape[1])
        width = tokens.shape[2] // self.attn.heads
        repeated = self.rotary_repeated
        table = rotary_table(grid, width, prefix=prefix, device=tokens.device, repeated=repeated)
        if at is None:
            return table
        first = table[:, None, :prefix].expand(-1, len(at), -1, -1)
        return torch.cat([first, table[:, prefix:][:, at]], dim=2)


def _scaled(tokens: Tensor, gamma: nn.Parameter | None) -> Tensor:
    return tokens if gamma is None else tokens * gamma


class ViT(Encoder):
    """Vision transformer (arXiv 2010.11929): from a clip or an image to tokens.

    The defaults are ViT-B for 16 frames of 224x224, as in MAE for video (arXiv 2205.09113). For images, use
    ``cube_stride=(1, 16, 16)`` and a clip size of one frame. Parameter names are PySlowFast's.

    Args:
        clip_size: native frames, height and width, which determine the lengths of the position tables. For
            other clip sizes, learned tables are interpolated.
        in_channels, depth: number of color channels, and of blocks.
        width, heads: token width, D, and number of attention heads.
        cube_stride: frames, rows and columns of a cube; also the stem's kernel.
        mlp_ratio: hidden width of the perceptrons divided by D.
        qkv_bias: use a bias in the query, key and value projections.
        absolute_positions: "joint" (one learned table over time and space), "separable" (the sum of two),
            "sincos", "sincos_2d" and "sincos_1d" (fixed: see
            :func:`~videomaskfeat.models.positions.fixed_positions`) or "none".
        layer_scale: see :class:`Block`; 0.1 in BEiT and SimMIM.
        relative_bias: add a learned relative position bias to the attention scores; see
            :class:`RelativeBias`. An MAE, whose encoder sees a part of the grid, cannot have one.
        rotary: rotate queries and keys by their positions in time, row and column; see :func:`rotary_table`.
            V-JEPA 2 has no absolute positions beside it (``absolute_positions="none"``).
        rotary_repeated: repeat the angles of an axis as V-JEPA 2's code does, for its weights.
        norm_eps: number that layer norms add to the variance; 1e-12 in some models of transformers.
        drop_path: probability of dropping a residual branch of the last block; increases linearly from 0.
        shared: the other keyword arguments of :class:`~videomaskfeat.models.encoder_base.Encoder`.

    Raises:
        UserError: a value out of range, or the clip size is not a multiple of the cube.
    """

    encoder_name = "vit_encoder"

    def __init__(
        self,
        *,
        clip_size: Triple = (16, 224, 224),
        in_channels: int = 3,
        depth: int = 12,
        width: int = 768,
        heads: int = 12,
        cube_stride: Triple = (2, 16, 16),
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        absolute_positions: AbsolutePositions = "separable",
        layer_scale: float | None = None,
        relative_bias: bool = False,
        rotary: bool = False,
        rotary_repeated: bool = False,
        norm_eps: float = 1e-6,
        drop_path: float = 0.0,
        **shared: Any,
    ) -> None:
        check_name("absolute_positions", absolute_positions, ("none", "joint", "separable", *FIXED))
        check_name("initialization", shared.get("initialization", "slowfast"), get_args(Initialization))
        check_transformer(depth, width, heads)
        if absolute_positions in FIXED and width % position_channels(absolute_positions):
            raise UserError(
                f"absolute_positions {absolute_positions!r}: width {width} must be a multiple of "
                f"{position_channels(absolute_positions)}; change it, or use learned positions ('joint', "
                "'separable')"
            )
        if rotary:
            check_rotary(width, heads)
        super().__init__(
            CubeEmbed(in_channels, width, kernel=cube_stride, stride=cube_stride, padding=(0, 0, 0)),
            clip_size,
            absolute_positions=absolute_positions,
            **shared,
        )
        self.rotary = rotary
        self.rel_pos_bias = (
            RelativeBias(heads, self.native_grid, prefix=self.prefix) if relative_bias else None
        )
        blocks = (
            Block(
                width,
                heads,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                drop_path=drop_path * index / max(depth - 1, 1),
                layer_scale=layer_scale,
                relative_bias=self.rel_pos_bias,
                rotary=rotary,
                rotary_repeated=rotary_repeated,
            )
            for index in range(depth)
        )
        self.set_blocks(blocks, widths=[width] * depth, heads=heads)
        set_norm_eps(self, norm_eps)

    def is_table(self, name: str) -> bool:
        """See :meth:`Encoder.is_table`; the relative position bias is also a position table."""
        return super().is_table(name) or name == BIAS

    def resize_table(self, name: str, table: Tensor) -> Tensor | None:
        """See :meth:`Encoder.resize_table`; the bias of square pictures is interpolated."""
        if name != BIAS:
            return super().resize_table(name, table)
        grid, side = self.native_grid, math.isqrt(max(len(table) - 3, 0))
        if grid.t != 1 or grid.h != grid.w or side % 2 == 0 or side**2 + 3 != len(table):
            return None
        return resize_bias(table.float(), (1, side, side), _offsets(grid)).to(table.dtype)

    def encode_visible(self, clips: Tensor, visible: Tensor) -> Tensor:
        """Encode the visible cubes only.

        Args:
            clips: float [B, C, T, H, W], normalized.
            visible: int64 [B, V], positions on the token grid, such as
                :func:`~videomaskfeat.models.mae.visible_places`.

        Returns:
            Normalized tokens [B, P+V, D].

        Raises:
            UserError: the encoder has a relative position bias, which needs the whole grid.
        """
        if self.rel_pos_bias is not None:
            raise UserError(
                "relative_bias true needs all tokens, but this method encodes the visible ones only; use "
                "absolute positions"
            )
        grid = self.token_grid(clips.shape)
        return self.norm(self.run_blocks(self.place_visible(clips, visible), grid, at=visible)[0])

    def place_visible(self, clips: Tensor, visible: Tensor) -> Tensor:
        """The tokens [B, P+V, D] of :meth:`encode_visible` before the first block."""
        cubes = cut_cubes(clips, self.patch_embed.stride)  # [B, N, values of a cube]
        cubes = cubes.gather(1, visible[..., None].expand(-1, -1, cubes.shape[2]))
        return self.placed(self.patch_embed.embed_cubes(cubes), self.token_grid(clips.shape), at=visible)
