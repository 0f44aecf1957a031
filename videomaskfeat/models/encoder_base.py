"""The base of all encoders: stem, positions, blocks, and features at any depth."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from videomaskfeat import import_object
from videomaskfeat.errors import UserError, check_name
from videomaskfeat.grid import TokenGrid
from videomaskfeat.models.initialization import Initialization, draw_token, draw_weights
from videomaskfeat.models.kernels.dense import linear
from videomaskfeat.models.norms import LayerNorm
from videomaskfeat.models.positions import (
    CLASS,
    FIXED,
    SPACE,
    TABLE,
    TABLES,
    TIME,
    AbsolutePositions,
    Interpolation,
    fixed_positions,
    joint_positions,
    resize_absolute,
    separable_positions,
)

Triple = tuple[int, int, int]
_HUB = "videomaskfeat.inference.hub"  # imported on first use: it needs this module


def as_triple(values: Iterable[int]) -> Triple:
    """Three integers (time, height, width) as a tuple."""
    t, h, w = values
    return (t, h, w)


class CubeEmbed(nn.Module):
    """A strided convolution that turns each cube of ``stride`` pixels into a token (MViTv2, section 3).

    The kernel may be larger than the stride, as in the published models (3x7x7 for cubes of 2x4x4): a token
    then also sees the edge pixels of neighboring cubes.

    Args:
        in_channels, width: number of color channels, C, and token width, D.
        kernel, stride, padding: frames, rows and columns of the kernel, of a cube, and of padding per side.

    Raises:
        UserError: kernel, stride and padding do not give exactly one token per cube.
    """

    def __init__(
        self, in_channels: int, width: int, *, kernel: Triple, stride: Triple, padding: Triple
    ) -> None:
        super().__init__()
        for size, step, pad in zip(kernel, stride, padding, strict=True):
            # n cubes of `step` give floor((n*step + 2*pad - size) / step) + 1 tokens, which must be n.
            if not 0 < size - 2 * pad <= step:
                raise UserError(
                    f"cube_kernel {kernel}, cube_stride {stride}, cube_padding {padding}: an axis does not "
                    "give one token per cube; use padding = (kernel - stride + 1) // 2"
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
            UserError: wrong shape (see :meth:`check`), or an axis is not a multiple of the cube.
        """
        self.check(clips)
        grid = self.grid(clips.shape)
        return self.proj(clips).flatten(2).transpose(1, 2), grid  # [B, D, t, h, w] -> [B, N, D]

    def check(self, clips: Tensor) -> None:
        """Raise UserError unless the clips are [B, C, T, H, W] with the stem's channels."""
        if clips.ndim != 5 or clips.shape[1] != self.in_channels:
            raise UserError(
                f"clips of shape {tuple(clips.shape)} are not [B, {self.in_channels}, T, H, W]; "
                "put the channels before the frames"
            )

    def embed_cubes(self, cubes: Tensor) -> Tensor:
        """Cubes of :func:`cut_cubes` [..., C*kt*kh*kw] -> tokens [..., D]; the kernel must equal the cube."""
        return linear(cubes, self.proj.weight.flatten(1), self.proj.bias)


def cut_cubes(clips: Tensor, stride: Triple) -> Tensor:
    """Cut clips float [B, C, T, H, W] into cubes of ``stride`` frames, rows and columns.

    Returns:
        [B, N, C*kt*kh*kw], in the order of a convolution kernel: channel, frame, row, column.
    """
    cubes = clips
    for axis, step in zip((2, 4, 6), stride, strict=True):
        cubes = cubes.unflatten(axis, (-1, step))  # after the loop [B, C, t, kt, h, kh, w, kw]
    return cubes.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)


class Encoder(nn.Module):
    """Base of all encoders and of all models with a head: from a clip to tokens.

    A subclass passes its stem and clip size to this class and its blocks to :meth:`set_blocks`; see "Add an
    encoder" in docs/extending.md. Images [B, C, H, W] are treated as clips of one frame [B, C, 1, H, W].

    A subclass may override :meth:`layer_of` and :attr:`layer_count` (layer decay), :meth:`is_table` and
    :meth:`resize_table` (parameters whose length depends on the clip size), and :attr:`width_weight`.

    Attributes:
        encoder_name: named model of this encoder without a head.
        grid_argument: argument that changes the output grid, for error messages; empty without one.
        width_weight: name, within a block, of the weight whose shape identifies a named model.
        blocks: modules ``(tokens [B, P+N, D], grid) -> (tokens, grid)``.
        norm: final norm of the last block's tokens; the identity in models without a final norm.
        native_grid: token grid of the native clip size.
        out_width, out_heads: token width and number of attention heads of the last block.
        output_stride: frames, rows and columns per token after the last block.

    Args:
        stem: turns cubes into tokens.
        clip_size: native frames, height and width.
        class_token: prepend a learned token (P = 1).
        absolute_positions: "none", "joint" (one table over time and space), "separable" (the sum of two
            tables), or "sincos", "sincos_2d" or "sincos_1d" (fixed, without parameters; see
            :func:`~videomaskfeat.models.positions.fixed_positions`).
        interpolation: "linear" or "bicubic", of learned positions to other clip sizes; see
            :func:`~videomaskfeat.models.positions.joint_positions`.
        final_norm: apply a layer norm after the last block.
        mean_first: average pooled features before the final norm instead of after it.
        initialization: method whose initial weights are drawn: "slowfast" (PySlowFast's), or for a ViT
            "mae", "beit", "simmim", "ibot" or "jepa"; see :mod:`videomaskfeat.models.initialization`.
        linear_std: standard deviation of the linear layers' initial weights for "slowfast".
        checkpoint_blocks: recompute each block in the backward pass instead of storing its activations.

    Raises:
        UserError: the clip size is not a multiple of the cube.
    """

    encoder_name: ClassVar[str]
    grid_argument: ClassVar[str] = ""
    width_weight: ClassVar[str] = "attn.qkv.weight"
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
        interpolation: Interpolation = "linear",
        final_norm: bool = True,
        mean_first: bool = False,
        initialization: Initialization = "slowfast",
        linear_std: float = 0.02,
        checkpoint_blocks: bool = False,
    ) -> None:
        super().__init__()
        self.checkpoint_blocks = checkpoint_blocks
        self.recomputed_blocks: frozenset[int] = frozenset()  # indices, besides ``checkpoint_blocks``
        check_name("interpolation", interpolation, get_args(Interpolation))
        self.interpolation: Interpolation = interpolation
        self.final_norm = final_norm
        self.mean_first = mean_first
        self.initialization = initialization
        self.linear_std = linear_std
        self.patch_embed = stem
        self.native_grid = grid = stem.grid(clip_size)
        self.fixed_positions = absolute_positions if absolute_positions in FIXED else None
        self.cls_token = nn.Parameter(torch.empty(1, 1, stem.width)) if class_token else None
        # Position parameters have PySlowFast's names; absent ones are None.
        lengths = {
            "joint": {TABLE: class_token + grid.size},
            "separable": {SPACE: grid.h * grid.w, TIME: grid.t, CLASS: int(class_token)},
        }.get(absolute_positions, {})
        for name in TABLES:
            length = lengths.get(name, 0)
            table = nn.Parameter(torch.empty(1, length, stem.width)) if length else None
            self.register_parameter(name, table)

    def set_blocks(
        self,
        blocks: Iterable[nn.Module],
        *,
        widths: Sequence[int],
        heads: int,
        strides: Sequence[Triple] | None = None,
    ) -> None:
        """Set the blocks and the norm, and draw the initial weights.

        Args:
            blocks, heads: see the class; attention heads of the last block.
            widths: token width after each block.
            strides: frames, rows and columns by which each block pools its tokens; None for no pooling.
        """
        self.blocks = nn.ModuleList(blocks)
        self.block_widths = tuple(widths)
        self.block_strides = tuple(strides or [(1, 1, 1)] * len(self.blocks))
        self.out_width, self.out_heads = widths[-1], heads
        self.output_stride = self.strides()[-1]
        self.norm = LayerNorm(self.out_width, eps=1e-6) if self.final_norm else nn.Identity()
        if self.initialization != "slowfast":
            for parameter in self.parameters(recurse=False):
                draw_token(parameter, self.initialization)
            draw_weights(self, self.initialization)
            return
        for parameter in self.parameters(recurse=False):
            nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv3d):
                std = self.linear_std if isinstance(module, nn.Linear) else 0.02
                nn.init.trunc_normal_(module.weight, std=std)
            if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
                nn.init.constant_(module.bias, 0.02)

    @property
    def prefix(self) -> int:
        """Number of class tokens, P."""
        return int(self.cls_token is not None)

    @property
    def clip_size(self) -> Triple:
        """Native frames, height and width."""
        return as_triple(
            math.prod(axis) for axis in zip(self.native_grid.shape, self.patch_embed.stride, strict=True)
        )

    @property
    def layer_count(self) -> int:
        """Number of layers for layer decay: the stem, each block, and everything after the blocks."""
        return len(self.blocks) + 2

    def save_pretrained(self, folder: str | os.PathLike[str], **options: Any) -> Path:
        """Write the model as a folder; see :func:`videomaskfeat.inference.hub.save_pretrained`."""
        path: Path = import_object(f"{_HUB}:save_pretrained")(self, folder, **options)
        return path

    def push_to_hub(self, repository: str, **options: Any) -> str:
        """Upload the model to the Hugging Face Hub; see :func:`videomaskfeat.inference.hub.push_to_hub`."""
        address: str = import_object(f"{_HUB}:push_to_hub")(self, repository, **options)
        return address

    def layer_of(self, name: str) -> int:
        """Index of a parameter's layer: 0 for the stem, i + 1 for block i, the last index for the rest.

        Class token, mask token and absolute positions belong to the stem.
        """
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        stem = name.startswith(("patch_embed.", "cls_token", "mask_token", "pos_embed"))
        return 0 if stem else self.layer_count - 1

    def is_table(self, name: str) -> bool:
        """Whether a parameter is a position table, whose length depends on the clip size."""
        return name in TABLES

    def resize_table(self, name: str, table: Tensor) -> Tensor | None:
        """A saved position table in this model's length; None if its original grid is unknown."""
        return resize_absolute(name, table, self.native_grid, self.prefix, interpolation=self.interpolation)

    def token_grid(self, clip_shape: Sequence[int]) -> TokenGrid:
        """The grid of cubes of a clip whose shape ends in (T, H, W).

        Raises:
            UserError: an axis is not a positive multiple of the cube.
        """
        return self.patch_embed.grid(clip_shape)

    def output_grid(self, clip_shape: Sequence[int]) -> TokenGrid:
        """The token grid after the last block, for a clip whose shape ends in (T, H, W)."""
        grid = self.token_grid(clip_shape)
        strides = zip(self.output_stride, self.patch_embed.stride, strict=True)
        return grid.pooled(as_triple(output // cube for output, cube in strides))

    def strides(self) -> list[Triple]:
        """Frames, rows and columns per token before the first block and after each block."""
        strides = [self.patch_embed.stride]
        for pooling in self.block_strides:
            strides.append(as_triple(a * b for a, b in zip(strides[-1], pooling, strict=True)))
        return strides

    def forward(self, clips: Tensor) -> Tensor:
        """Clips float [B, C, T, H, W], normalized -> :meth:`forward_features`."""
        return self.forward_features(clips)

    def forward_features(self, clips: Tensor) -> Tensor:
        """Tokens after the final norm, the class token first if there is one (the name of timm).

        Args:
            clips: float [B, C, T, H, W], normalized.

        Returns:
            [B, P+N', D']; the N' tokens are on :meth:`output_grid`.
        """
        return self.norm(self.through_blocks(*self.patch_embed(as_clips(clips)))[0])

    def features(self, clips: Tensor, *, depth: int | None = None, pooled: bool = True) -> Tensor:
        """Features of clips, without head and class token.

        Args:
            clips: float [B, C, T, H, W], normalized.
            depth: number of blocks to run, 1..number of blocks; None for all, with the final norm.
            pooled: average over the grid's tokens.

        Returns:
            [B, D'], or on the grid [B, t, h, w, D'].

        Raises:
            UserError: no such depth, or the clip is not a multiple of the cube.
        """
        if depth is not None:
            self._check_depths([depth])
        tokens, grid = self.through_blocks(*self.patch_embed(as_clips(clips)), depth=depth)
        tokens = on_grid(tokens, grid)  # [B, N', D']
        if pooled:
            return tokens.mean(dim=1) if depth is not None else self.pool(tokens)
        tokens = tokens if depth is not None else self.norm(tokens)
        return tokens.unflatten(1, grid.shape)  # [B, t, h, w, D']

    def features_at(self, clips: Tensor, depths: Sequence[int]) -> list[Tensor]:
        """The grids of :meth:`features` after several blocks, in one pass.

        Args:
            clips: float [B, C, T, H, W], normalized.
            depths: numbers of blocks, each 1..number of blocks, at least one.

        Returns:
            [B, t, h, w, D'] per depth; models with pooling have several grids and widths.

        Raises:
            UserError: as :meth:`features`.
        """
        self._check_depths(depths)
        tokens, grid = self.patch_embed(as_clips(clips))
        outputs = self.outputs_at(self.placed(tokens, grid), grid, depths)
        return [on_grid(tokens, grid).unflatten(1, grid.shape) for tokens, grid in outputs]

    def _check_depths(self, depths: Sequence[int]) -> None:
        for depth in depths:
            if not 1 <= depth <= len(self.blocks):
                raise UserError(f"depth {depth}: the encoder has blocks 1..{len(self.blocks)}")

    def pool(self, tokens: Tensor) -> Tensor:
        """The last block's tokens [B, N, D] -> normalized and averaged [B, D]."""
        return self.norm(tokens.mean(dim=1)) if self.mean_first else self.norm(tokens).mean(dim=1)

    def through_blocks(
        self, tokens: Tensor, grid: TokenGrid, *, depth: int | None = None
    ) -> tuple[Tensor, TokenGrid]:
        """Stem tokens [B, N, D] on ``grid`` through the first ``depth`` blocks -> [B, P+N', D'], grid."""
        return self.run_blocks(self.placed(tokens, grid), grid, depth=depth)

    def placed(self, tokens: Tensor, grid: TokenGrid, *, at: Tensor | None = None) -> Tensor:
        """Add class token and absolute positions to stem tokens.

        Args:
            tokens: float [B, N, D].
            grid: their token grid.
            at: int64 [B, V], grid positions of tokens [B, V, D] that are only a part of the grid.

        Returns:
            [B, P+N, D] or [B, P+V, D].
        """
        if self.cls_token is not None:
            first = self.cls_token.expand(tokens.shape[0], -1, -1)  # [B, 1, D]
            tokens = torch.cat([first, tokens], dim=1)  # [B, P+N, D]
        positions = self._absolute_positions(grid)
        if positions is None:
            return tokens
        if at is not None:
            first, rest = positions.split([self.prefix, grid.size], dim=1)
            visible = F.embedding(at, rest[0])  # [B, V, D]
            positions = torch.cat([first.expand(at.shape[0], -1, -1), visible], dim=1)  # [B, P+V, D]
        return tokens + positions

    def in_grid_order(self, tokens: Tensor, grid: TokenGrid, depth: int) -> Tensor:
        """Tokens [B, P+N, D] that leave block number ``depth`` in the order of their grid, as most do."""
        return tokens

    def run_blocks(
        self, tokens: Tensor, grid: TokenGrid, *, depth: int | None = None, at: Tensor | None = None
    ) -> tuple[Tensor, TokenGrid]:
        """Tokens [B, P+N, D] of :meth:`placed` through the first ``depth`` blocks -> [B, P+N', D'], grid.

        ``at``: see :meth:`placed`; only blocks of a ViT accept a part of the grid.
        """
        for index, block in enumerate(self.blocks[:depth]):
            tokens, grid = self._run_block(index, block, tokens, grid, at)
        return tokens, grid

    def outputs_at(
        self, tokens: Tensor, grid: TokenGrid, depths: Sequence[int], *, at: Tensor | None = None
    ) -> list[tuple[Tensor, TokenGrid]]:
        """The results of :meth:`run_blocks` for each of several depths, in one pass."""
        outputs = {}
        for depth, block in enumerate(self.blocks[: max(depths)], start=1):
            tokens, grid = self._run_block(depth - 1, block, tokens, grid, at)
            outputs[depth] = (tokens, grid)
        return [outputs[depth] for depth in depths]

    def _run_block(
        self, index: int, block: nn.Module, tokens: Tensor, grid: TokenGrid, at: Tensor | None
    ) -> tuple[Tensor, TokenGrid]:
        inputs = (tokens, grid) if at is None else (tokens, grid, at)
        recompute = self.checkpoint_blocks or index in self.recomputed_blocks
        if recompute and self.training and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def _absolute_positions(self, grid: TokenGrid) -> Tensor | None:
        """Absolute positions [1, P+N, D] on ``grid``; None for a model without."""
        if self.fixed_positions is not None:
            device = self.patch_embed.proj.weight.device
            width, prefix = self.patch_embed.width, self.prefix
            return fixed_positions(self.fixed_positions, width, grid, prefix=prefix, device=device)
        if self.pos_embed is not None:
            first, rest = self.pos_embed.split([self.prefix, self.native_grid.size], dim=1)
            rest = joint_positions(rest, self.native_grid, grid, interpolation=self.interpolation)
            return torch.cat([first, rest], dim=1)  # [1, P+N, D]
        if self.pos_embed_spatial is None or self.pos_embed_temporal is None:
            return None
        rest = separable_positions(
            self.pos_embed_spatial,
            self.pos_embed_temporal,
            self.native_grid,
            grid,
            interpolation=self.interpolation,
        )
        return rest if self.pos_embed_class is None else torch.cat([self.pos_embed_class, rest], dim=1)


def as_clips(pixels: Tensor) -> Tensor:
    """Images [B, C, H, W] as clips of one frame; clips [B, C, T, H, W] unchanged."""
    return pixels[:, :, None] if pixels.ndim == 4 else pixels


def on_grid(tokens: Tensor, grid: TokenGrid) -> Tensor:
    """Remove the class token: [B, P+N, D] -> [B, N, D]."""
    return tokens[:, tokens.shape[1] - grid.size :]
