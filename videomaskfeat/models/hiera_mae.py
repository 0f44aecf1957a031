"""A masked autoencoder on Hiera: hidden mask units are dropped, and a decoder predicts at all positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from videomaskfeat.errors import UserError
from videomaskfeat.grid import TokenGrid, resize_mask
from videomaskfeat.models.hiera import Hiera, divide, ungroup_units
from videomaskfeat.models.initialization import draw_weights
from videomaskfeat.models.layers import Linear
from videomaskfeat.models.limits import check_positive
from videomaskfeat.models.mae import DecoderHead, hidden_count, visible_places
from videomaskfeat.models.maskfeat import MaskedModel, make_mask_token
from videomaskfeat.models.norms import LayerNorm
from videomaskfeat.models.positions import joint_positions


class HieraMAE(MaskedModel, Hiera):
    """Masked autoencoder on Hiera (arXiv 2306.00989, section 3.1): the encoder sees the visible units only.

    The pixels of hidden units are 0 for the stem, whose kernel overlaps the cubes, and their tokens are
    dropped. The outputs of all stages are fused: a convolution over each unit brings those of a stage to the
    last resolution, and their sum is normalized. The decoder sees it, with a mask token at hidden positions.
    All samples of a batch must hide the same number of units.

    With the HOG target, this is MaskFeat with a hierarchical encoder of visible tokens only.

    Args:
        values_per_token: predicted values per output position, K: the target's ``values_per_token``. The
            default is one frame of 16x16 pixels.
        q_pool: as for :class:`~videomaskfeat.models.hiera.Hiera`; 2 in pre-training, so that outputs have
            16-pixel positions.
        decoder_depth, decoder_width, decoder_heads: blocks, token width and attention heads of the decoder.
        mlp_ratio: of encoder and decoder.
        encoder: the other arguments of :class:`~videomaskfeat.models.hiera.Hiera`, except ``final_norm``.

    Raises:
        UserError: a value out of range.
    """

    equal_masks = True

    def __init__(
        self,
        *,
        values_per_token: int = 768,
        q_pool: int = 2,
        decoder_depth: int = 8,
        decoder_width: int = 512,
        decoder_heads: int = 16,
        mlp_ratio: float = 4.0,
        **encoder: Any,
    ) -> None:
        if "final_norm" in encoder:
            raise UserError("final_norm cannot be set on a Hiera MAE: it normalizes the fused stages")
        check_positive(values_per_token=values_per_token, decoder_width=decoder_width)
        if decoder_depth < 0 or decoder_heads < 1 or decoder_width % decoder_heads:
            raise UserError(
                f"decoder_depth {decoder_depth} must not be negative, and decoder_heads {decoder_heads} must "
                f"divide decoder_width {decoder_width}"
            )
        super().__init__(**encoder, q_pool=q_pool, mlp_ratio=mlp_ratio, final_norm=False)
        self.values_per_token = values_per_token
        self.final_unit = self.unit_after(len(self.blocks))
        # Later stages have the last resolution already; only the last of them is fused.
        self.fused = (*self.stage_ends[:q_pool], self.stage_ends[-1])
        kernels = [divide(self.unit_after(end + 1), self.final_unit) for end in self.fused[:-1]]
        self.decoder_fusion = nn.ModuleList(
            nn.Conv3d(self.block_widths[end], self.out_width, kernel, kernel)
            for end, kernel in zip(self.fused, kernels, strict=False)
        )
        self.decoder_fusion_norm = LayerNorm(self.out_width, eps=1e-6)
        self.decoder_embed = Linear(self.out_width, decoder_width)
        self.mask_token = make_mask_token(decoder_width, self.initialization)
        self.output_native = self.native_grid.pooled(divide(self.mask_unit, self.final_unit))
        self.decoder_pos_embed = nn.Parameter(torch.empty(1, self.output_native.size, decoder_width))
        nn.init.trunc_normal_(self.decoder_pos_embed, std=0.02)
        self.pred_head = DecoderHead(
            decoder_depth,
            decoder_width,
            decoder_heads,
            values_per_token,
            mlp_ratio=mlp_ratio,
            qkv_bias=True,
            linear_std=self.linear_std,
            checkpoint_blocks=self.checkpoint_blocks,
        )
        if self.initialization != "slowfast":
            draw_weights(self.pred_head, self.initialization)
            draw_weights(self.decoder_embed, self.initialization)

    def mask_grid(self, clip_shape: Sequence[int]) -> TokenGrid:
        """The grid of mask units."""
        return self.unit_grid(self.token_grid(clip_shape))

    def predict(self, clips: Tensor, mask: Tensor, hidden_cells: int | None = None) -> Tensor:
        """See :meth:`~videomaskfeat.models.maskfeat.MaskedModel.predict`.

        Raises:
            UserError: the mask's grid does not divide the grid of units, or the samples hide different
                numbers of units, all of them, or none.
        """
        self.patch_embed.check(clips)
        grid = self.token_grid(clips.shape)
        units = self.unit_grid(grid)
        hidden = resize_mask(mask, units)  # [B, t, h, w] of units
        visible = visible_places(hidden, hidden_count(mask, hidden_cells, units))  # [B, V]
        encoded = self.encode_units(clips, hidden, visible)  # [B, V*u', D]
        tokens = self.decoder_embed(self.decoder_fusion_norm(encoded))
        tokens = tokens.unflatten(1, (visible.shape[1], -1))  # [B, V, u', D']
        everywhere = self.mask_token.to(tokens.dtype)[:, None].expand(
            len(tokens), units.size, tokens.shape[2], -1
        )
        index = visible[..., None, None].expand_as(tokens)
        output = self.output_grid(clips.shape)
        placed = everywhere.scatter(1, index, tokens).flatten(1, 2)  # [B, N', D'], grouped
        placed = ungroup_units(placed, output, self.final_unit)
        placed = placed + joint_positions(self.decoder_pos_embed, self.output_native, output)
        return self.pred_head(placed, output).unflatten(1, output.shape)

    def encode_units(self, clips: Tensor, hidden: Tensor, visible: Tensor) -> Tensor:
        """The fused stages of the visible units.

        Args:
            clips: float [B, C, T, H, W], normalized.
            hidden: bool [B, t, h, w], per mask unit.
            visible: int64 [B, V], visible units.

        Returns:
            [B, V*u', D], grouped by units.
        """
        pixels = resize_mask(hidden, TokenGrid(*clips.shape[2:]))[:, None]  # [B, 1, T, H, W]
        tokens, grid = self.patch_embed(clips.masked_fill(pixels, 0.0))
        tokens = self.placed(tokens, grid).unflatten(1, (hidden[0].numel(), -1))  # [B, U, u, D]
        index = visible[..., None, None].expand(-1, -1, *tokens.shape[2:])
        tokens = tokens.gather(1, index).flatten(1, 2)  # [B, V*u, D]
        fused = []
        for number, block in enumerate(self.blocks):
            tokens, grid = self._run_block(number, block, tokens, grid, None)
            if number in self.fused[:-1]:
                fused.append(self._fuse(tokens, number))
        return sum(fused, tokens)

    def _fuse(self, tokens: Tensor, number: int) -> Tensor:
        """Outputs of block ``number``, [B, V*u, D], at the last resolution, [B, V*u', D']."""
        unit = self.unit_after(number + 1)
        volume = tokens.unflatten(1, (-1, *unit)).flatten(0, 1).permute(0, 4, 1, 2, 3)  # [B*V, D, t, h, w]
        fused = self.decoder_fusion[self.fused.index(number)](volume)  # [B*V, D', t', h', w']
        return fused.flatten(2).transpose(1, 2).reshape(len(tokens), -1, fused.shape[1])
