"""The stem: from a clip to one token a spacetime cube."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import lru_cache
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from videomaskfeat.errors import UserError
from videomaskfeat.grid import TokenGrid
from videomaskfeat.models.kernels.dense import linear

Triple = tuple[int, int, int]


def as_triple(values: Iterable[int]) -> Triple:
    """Three numbers, for time, height and width, as a tuple."""
    t, h, w = values
    return (t, h, w)


class CubeEmbed(nn.Module):
    """One strided convolution: each cube of ``stride`` pixels becomes a token (MViTv2, section 3).

    The kernel may be larger than the stride, as in the published models (3x7x7 over cubes of 2x4x4): a
    token then also sees a rim of its neighbours' pixels.

    Args:
        in_channels: colour channels of the clip, C.
        width: width of a token, D.
        kernel: frames, rows and columns that a token sees.
        stride: frames, rows and columns from one token to the next: the size of a cube.
        padding: zeros before and after each axis.

    Raises:
        UserError: kernel, stride and padding do not give exactly one token a cube.
    """

    def __init__(
        self, in_channels: int, width: int, *, kernel: Triple, stride: Triple, padding: Triple
    ) -> None:
        super().__init__()
        for size, step, pad in zip(kernel, stride, padding, strict=True):
            # n cubes of `step` give floor((n*step + 2*pad - size) / step) + 1 tokens, which must be n.
            if not 0 < size - 2 * pad <= step:
                raise UserError(
                    f"cube_kernel {kernel}, cube_stride {stride}, cube_padding {padding}: an axis does "
                    "not give one token a cube; take padding = (kernel - stride + 1) // 2"
                )
        self.in_channels = in_channels
        self.width = width
        self.stride = stride
        self.proj = nn.Conv3d(in_channels, width, kernel, stride, padding)

    def grid(self, clip_shape: Sequence[int]) -> TokenGrid:
        """The token grid of a clip whose shape ends in (T, H, W)."""
        frames, height, width = clip_shape[-3:]
        return TokenGrid.from_clip(frames=frames, height=height, width=width, stride=self.stride)

    def forward(self, clips: Tensor) -> tuple[Tensor, TokenGrid]:
        """Clips float [B, C, T, H, W] -> tokens [B, N, D] and their grid.

        Raises:
            UserError: the clips are not five-dimensional, have other channels than the stem, or an axis is
                not a multiple of the cube.
        """
        self.check(clips)
        grid = self.grid(clips.shape)
        return self.proj(clips).flatten(2).transpose(1, 2), grid  # [B, D, t, h, w] -> [B, N, D]

    def check(self, clips: Tensor) -> None:
        """Refuse what is not [B, C, T, H, W] with the stem's channels.

        Raises:
            UserError: it is not.
        """
        if clips.ndim != 5 or clips.shape[1] != self.in_channels:
            raise UserError(
                f"clips of shape {tuple(clips.shape)} are not [B, {self.in_channels}, T, H, W]; "
                "put the channels before the frames"
            )

    def embed_cubes(self, cubes: Tensor) -> Tensor:
        """Cubes of :func:`cut_cubes` [..., C*kt*kh*kw] -> tokens [..., D], where the kernel is the cube."""
        return linear(cubes, self.proj.weight.flatten(1), self.proj.bias)


def cut_cubes(clips: Tensor, stride: Triple) -> Tensor:
    """The pixels of each cube.

    Args:
        clips: float [B, C, T, H, W].
        stride: frames, rows and columns of a cube.

    Returns:
        [B, N, C*kt*kh*kw], in the order of a convolution's kernel: channel, frame, row, column.
    """
    cut = clips
    for axis, step in zip((2, 4, 6), stride, strict=True):
        cut = cut.unflatten(axis, (-1, step))  # at the end [B, C, t, kt, h, kh, w, kw]
    return cut.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)


# Positions: relative tables per axis, the index tables that read them, and absolute embeddings.


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


# What all encoders share: a stem that makes tokens of cubes, positions, a row of blocks, and features.
AbsolutePositions = Literal["none", "joint", "separable", "sincos"]


class Encoder(nn.Module):
    """A clip to tokens; the base of :class:`~videomaskfeat.models.mvit.MViT` and
    :class:`~videomaskfeat.models.vit.ViT`, and of everything that has a head on either.

    A kind of encoder adds ``blocks``, each ``(tokens [B, P+N, D], grid) -> (tokens, grid)``, and ``norm``,
    the identity where there is no final norm. An image is a clip of one frame: [B, C, H, W] is taken for
    [B, C, 1, H, W].

    Attributes:
        encoder_name: the named model that is this kind of encoder alone.
        native_grid: token grid of the clip size that the model is made for.
        out_width: width of the tokens that leave the last block.
        out_heads: attention heads of the last block.
        output_stride: frames, rows and columns behind one of these tokens.
        mean_first: pooled features are averaged before the final norm instead of after it.

    Args:
        stem: makes tokens of cubes.
        clip_size: native frames, height and width.
        class_token: prepend a learned token (P = 1).
        absolute_positions: "none", "joint" (one table over time and space), "separable" (a sum of two) or
            "sincos" (fixed, without parameters).
        mean_first: see above.
        checkpoint_blocks: recompute each block in the backward pass instead of storing its activations.

    Raises:
        UserError: a value outside its range, or cubes that do not tile the clip.
    """

    encoder_name: ClassVar[str]
    blocks: nn.ModuleList
    norm: nn.Module
    out_width: int
    out_heads: int
    output_stride: Triple
    cls_token: nn.Parameter | None
    pos_embed: nn.Parameter | None
    pos_embed_spatial: nn.Parameter | None
    pos_embed_temporal: nn.Parameter | None
    pos_embed_class: nn.Parameter | None

    def __init__(
        self,
        stem: CubeEmbed,
        clip_size: Triple,
        *,
        class_token: bool = True,
        absolute_positions: AbsolutePositions = "none",
        mean_first: bool = False,
        checkpoint_blocks: bool = False,
    ) -> None:
        super().__init__()
        self.checkpoint_blocks = checkpoint_blocks
        self.mean_first = mean_first
        self.patch_embed = stem
        self.native_grid = stem.grid(clip_size)
        self.fixed_positions = absolute_positions == "sincos"
        self.cls_token = nn.Parameter(torch.empty(1, 1, stem.width)) if class_token else None
        self._make_absolute_positions(absolute_positions, stem.width, class_token)

    @property
    def prefix(self) -> int:
        """Number of class tokens, P."""
        return int(self.cls_token is not None)

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

    def strides(self) -> list[Triple]:
        """Frames, rows and columns from a token to the next, before the first block and behind each."""
        strides = [self.patch_embed.stride]
        for block in self.blocks:
            pooled = cast(Triple, getattr(block, "q_stride", (1, 1, 1)))
            strides.append(as_triple(step * more for step, more in zip(strides[-1], pooled, strict=True)))
        return strides

    def widths(self) -> list[int]:
        """Width of the tokens behind each block."""
        return [cast(Any, block).mlp.fc2.weight.shape[0] for block in self.blocks]

    def forward(self, clips: Tensor) -> Tensor:
        """Clips float [B, C, T, H, W], normalised -> tokens [B, P+N', D'], the class token (P = 1) first.

        N' is the size of :meth:`output_grid`.
        """
        tokens, grid = self.patch_embed(as_clips(clips))
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
        tokens, grid = self.through_blocks(*self.patch_embed(as_clips(clips)), depth=depth)
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
        return self.run_blocks(self.placed(tokens, grid), grid, depth=depth)

    def placed(self, tokens: Tensor, grid: TokenGrid, *, at: Tensor | None = None) -> Tensor:
        """Stem tokens with class token and absolute positions.

        Args:
            tokens: float [B, N, D].
            grid: where they lie.
            at: int64 [B, V], the places of the tokens [B, V, D] where these are not all.

        Returns:
            [B, P+N, D], or [B, P+V, D].
        """
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        positions = self._absolute_positions(grid)
        if positions is None:
            return tokens
        if at is not None:
            first, rest = positions.split([self.prefix, grid.size], dim=1)
            chosen = F.embedding(at, rest[0])  # [B, V, D]
            positions = torch.cat([first.expand(at.shape[0], -1, -1), chosen], dim=1)
        return tokens + positions

    def run_blocks(
        self, tokens: Tensor, grid: TokenGrid, *, depth: int | None = None
    ) -> tuple[Tensor, TokenGrid]:
        """Placed tokens [B, P+N, D] through the first blocks, or all -> [B, P+N', D'] and grid."""
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
            "sincos": {},
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
        if self.fixed_positions:
            device = self.patch_embed.proj.weight.device
            return sincos_positions(self.patch_embed.width, grid, prefix=self.prefix, device=device)
        if self.pos_embed is not None:
            first, rest = self.pos_embed.split([self.prefix, self.native_grid.size], dim=1)
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


def as_clips(pixels: Tensor) -> Tensor:
    """Clips [B, C, T, H, W] as they are; images [B, C, H, W] as clips of one frame."""
    return pixels[:, :, None] if pixels.ndim == 4 else pixels


def on_grid(tokens: Tensor, grid: TokenGrid) -> Tensor:
    """The grid's tokens alone: [B, P+N, D] -> [B, N, D]."""
    return tokens[:, tokens.shape[1] - grid.size :]
