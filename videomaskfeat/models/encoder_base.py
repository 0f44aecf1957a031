"""What all encoders share: a stem that makes tokens of cubes, positions, a row of blocks, and features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from videomaskfeat.errors import UserError, nearest
from videomaskfeat.grid import TokenGrid
from videomaskfeat.models.cubes import CubeEmbed, Triple, as_triple
from videomaskfeat.models.positions import joint_positions, separable_positions, sincos_positions

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


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Refuse a word that is not one of those known.

    Raises:
        UserError: it is none of them.
    """
    if value not in known:
        raise UserError(f"{name} {value!r} is not one of {', '.join(known)}{nearest(value, known)}")
