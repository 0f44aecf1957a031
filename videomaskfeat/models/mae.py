"""Masked autoencoders: the encoder sees the visible tokens only, and a small decoder predicts the rest."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from videomaskfeat.errors import UserError, check_name
from videomaskfeat.grid import TokenGrid, resize_mask
from videomaskfeat.models.encoder_base import on_grid
from videomaskfeat.models.initialization import draw_weights, initialize
from videomaskfeat.models.layers import Linear
from videomaskfeat.models.maskfeat import MaskedModel, make_mask_token
from videomaskfeat.models.norms import LayerNorm, set_norm_eps
from videomaskfeat.models.positions import FIXED, fixed_positions, joint_positions, position_channels
from videomaskfeat.models.vit import Block, ViT

DecoderPositions = Literal["joint", "sincos", "sincos_2d", "sincos_1d"]


class DecoderHead(nn.Module):
    """Transformer blocks, a layer norm and a linear layer, with PySlowFast's parameter names.

    Args:
        depth, width, heads: number of blocks, token width, and attention heads.
        values_per_token: predicted values per token, K.
        mlp_ratio, qkv_bias: see :class:`~videomaskfeat.models.vit.Block`.
        linear_std: standard deviation of the blocks' initial weights; biases start at 0.
        checkpoint_blocks: recompute each block in the backward pass instead of storing its activations. The
            CPU always does so: the decoder's activations would need most of the memory.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        heads: int,
        values_per_token: int,
        *,
        mlp_ratio: float,
        qkv_bias: bool,
        linear_std: float,
        checkpoint_blocks: bool,
    ) -> None:
        super().__init__()
        self.checkpoint_blocks = checkpoint_blocks
        blocks = [Block(width, heads, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias) for _ in range(depth)]
        self.transforms = nn.ModuleList([nn.Sequential(*blocks, LayerNorm(width, eps=1e-6))])
        self.projections = nn.ModuleList([Linear(width, values_per_token)])
        initialize(self.transforms.modules(), std=linear_std)
        initialize(self.projections)

    def forward(self, tokens: Tensor, grid: TokenGrid) -> Tensor:
        """[B, P+N, D] on ``grid`` -> [B, N, K]."""
        *blocks, norm = cast(nn.Sequential, self.transforms[0])
        recompute = torch.is_grad_enabled() and self.checkpoint_blocks
        for block in blocks:
            if recompute:
                tokens, grid = checkpoint(block, tokens, grid, use_reentrant=False)
            else:
                tokens, grid = block(tokens, grid)
        return self.projections[0](norm(on_grid(tokens, grid)))


class MAE(MaskedModel, ViT):
    """Masked autoencoder (arXiv 2111.06377; for video 2205.09113): a ViT that sees the visible cubes only.

    Hidden cubes are removed before the stem, so a mask ratio of 90 % leaves a tenth of the encoder's work.
    The decoder sees the encoded tokens at their positions and a mask token at all others, and predicts at all
    positions. All samples of a batch must hide the same number of cubes. Parameter names are PySlowFast's.

    Args:
        values_per_token: predicted values per cube, K: the target's ``values_per_token``. The default is one
            frame of 16x16 pixels.
        decoder_depth, decoder_width, decoder_heads: blocks (8 in MAE for images), token width and attention
            heads of the decoder.
        decoder_positions: "joint" (one learned table), or "sincos", "sincos_2d" or "sincos_1d" (fixed).
        mlp_ratio, qkv_bias, norm_eps, linear_std: of encoder and decoder; see
            :class:`~videomaskfeat.models.vit.ViT`.
        encoder: the other arguments of :class:`~videomaskfeat.models.vit.ViT`, except ``final_norm`` and
            ``relative_bias``.

    Raises:
        UserError: a value out of range.
    """

    equal_masks = True
    decoder_pos_embed: nn.Parameter | None

    def __init__(
        self,
        *,
        values_per_token: int = 768,
        decoder_depth: int = 4,
        decoder_width: int = 512,
        decoder_heads: int = 8,
        decoder_positions: DecoderPositions = "joint",
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        norm_eps: float = 1e-6,
        linear_std: float = 0.02,
        **encoder: Any,
    ) -> None:
        if "final_norm" in encoder:
            raise UserError("final_norm cannot be set on an MAE model: its encoder always has one")
        if encoder.get("relative_bias"):
            raise UserError(
                "relative_bias cannot be set on an MAE model: its encoder sees only a part of the grid; use "
                "absolute positions"
            )
        check_name("decoder_positions", decoder_positions, ("joint", *FIXED))
        if values_per_token < 1 or decoder_depth < 0:
            raise UserError(
                f"values_per_token {values_per_token} must be positive and decoder_depth {decoder_depth} "
                "must not be negative"
            )
        if decoder_width < 1 or decoder_heads < 1 or decoder_width % decoder_heads:
            raise UserError(
                f"decoder_width {decoder_width}, decoder_heads {decoder_heads}: both must be positive, and "
                "the heads must divide the width"
            )
        if decoder_positions in FIXED and decoder_width % position_channels(decoder_positions):
            raise UserError(
                f"decoder_positions {decoder_positions!r}: decoder_width {decoder_width} must be a multiple "
                f"of {position_channels(decoder_positions)}"
            )
        shared: dict[str, Any] = {"mlp_ratio": mlp_ratio, "qkv_bias": qkv_bias, "linear_std": linear_std}
        super().__init__(**encoder, **shared, norm_eps=norm_eps)
        nn.init.zeros_(cast(nn.LayerNorm, self.norm).bias)  # PySlowFast creates it after initialization
        self.values_per_token = values_per_token
        self.decoder_width = decoder_width
        self.decoder_heads = decoder_heads
        self.decoder_positions = decoder_positions
        self.decoder_pos_embed = None
        if decoder_positions == "joint":
            length = self.prefix + self.native_grid.size
            self.decoder_pos_embed = nn.Parameter(torch.empty(1, length, decoder_width))
            nn.init.trunc_normal_(self.decoder_pos_embed, std=0.02)
        self.mask_token = make_mask_token(decoder_width, self.initialization)
        self.pred_head = DecoderHead(
            decoder_depth,
            decoder_width,
            decoder_heads,
            values_per_token,
            **shared,
            checkpoint_blocks=self.checkpoint_blocks,
        )
        set_norm_eps(self.pred_head, norm_eps)
        self.decoder_embed = Linear(self.out_width, decoder_width)
        if self.initialization != "slowfast":
            draw_weights(self.pred_head, self.initialization)
            draw_weights(self.decoder_embed, self.initialization)

    def predict(self, clips: Tensor, mask: Tensor, hidden_cells: int | None = None) -> Tensor:
        """See :meth:`~videomaskfeat.models.maskfeat.MaskedModel.predict`.

        Raises:
            UserError: the samples hide different numbers of cubes, all cubes, or none.
        """
        self.patch_embed.check(clips)
        grid = self.token_grid(clips.shape)
        visible = visible_places(resize_mask(mask, grid), hidden_count(mask, hidden_cells, grid))  # [B, V]
        encoded = self.encode_visible(clips, visible)  # [B, P+V, D]
        return self.decode(encoded, visible, grid).unflatten(1, grid.shape)

    def decode(self, encoded: Tensor, visible: Tensor, grid: TokenGrid) -> Tensor:
        """Encoded tokens [B, P+V, D] at positions [B, V] of ``grid`` -> predictions [B, N, K]."""
        tokens = self.decoder_embed(encoded)
        first, seen = tokens.split([self.prefix, visible.shape[1]], dim=1)
        everywhere = self.mask_token.to(seen.dtype).expand(seen.shape[0], grid.size, -1)
        placed = everywhere.scatter(1, visible[..., None].expand_as(seen), seen)  # [B, N, D']
        tokens = torch.cat([first, placed], dim=1) + self._decoder_positions(grid)
        return self.pred_head(tokens, grid)

    def _decoder_positions(self, grid: TokenGrid) -> Tensor:
        """[1, P+N, D'] on ``grid``."""
        if self.decoder_pos_embed is None:
            width, device = self.decoder_width, self.mask_token.device
            return fixed_positions(self.decoder_positions, width, grid, prefix=self.prefix, device=device)
        first, rest = self.decoder_pos_embed.split([self.prefix, self.native_grid.size], dim=1)
        return torch.cat([first, joint_positions(rest, self.native_grid, grid)], dim=1)


def hidden_count(mask: Tensor, hidden_cells: int | None, grid: TokenGrid) -> int | None:
    """Number of hidden positions of each sample on ``grid``, if that of the mask's cells is known.

    Args:
        mask: bool [B, t', h', w'].
        hidden_cells: number of its hidden cells per sample.
        grid: a multiple of the mask's grid.
    """
    return None if hidden_cells is None else hidden_cells * (grid.size // mask[0].numel())


def visible_places(hidden: Tensor, count: int | None = None) -> Tensor:
    """Positions of the visible tokens, ascending: hidden bool [B, t, h, w] -> int64 [B, V].

    Args:
        hidden: the mask.
        count: number of hidden positions of every sample. None: they are counted, and on a GPU the host waits
            for that.

    Raises:
        UserError: the count is unknown, and the samples hide different numbers of cubes, all cubes, or none.
    """
    hidden = hidden.flatten(1)
    if count is not None:
        return _first_visible(hidden, hidden.shape[1] - count)
    counts, total = hidden.sum(dim=1).tolist(), hidden.shape[1]
    if min(counts) != max(counts):
        raise UserError(
            f"the masks of a batch hide {min(counts)} to {max(counts)} of {total} cubes; an encoder of "
            "visible cubes needs the same number of them per clip: use a mask that hides a fixed number, "
            "such as mask.kind 'random'"
        )
    if counts[0] in (0, total):
        problem = "no cube is hidden" if counts[0] == 0 else "no cube is visible to the encoder"
        raise UserError(f"{problem}, of {total} cubes; change mask.ratio")
    return _first_visible(hidden, total - counts[0])


def _first_visible(hidden: Tensor, count: int) -> Tensor:
    # A stable sort puts visible positions first and keeps their order.
    return hidden.to(torch.uint8).argsort(dim=1, stable=True)[:, :count]
