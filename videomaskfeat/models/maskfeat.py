"""MaskFeat: an encoder that sees a mask token where the clip is hidden, and a head that predicts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from videomaskfeat.errors import UserError
from videomaskfeat.grid import TokenGrid, resize_mask
from videomaskfeat.models.encoder_base import on_grid
from videomaskfeat.models.masked import MaskedModel
from videomaskfeat.models.mvit import MViT
from videomaskfeat.models.vit import ViT


class PredictionHead(nn.Module):
    """Layer norm, then one linear layer, on each token (MaskFeat, section 3.1).

    The two containers of one element each carry PySlowFast's parameter names.

    Args:
        width: width of the tokens.
        values_per_token: predicted values a token, K.
    """

    def __init__(self, width: int, values_per_token: int) -> None:
        super().__init__()
        self.transforms = nn.ModuleList([nn.Sequential(nn.LayerNorm(width, eps=1e-6))])
        projection = nn.Linear(width, values_per_token)
        nn.init.trunc_normal_(projection.weight, std=0.02)
        nn.init.zeros_(projection.bias)
        self.projections = nn.ModuleList([projection])

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., D] -> [..., K]."""
        return self.projections[0](self.transforms[0](tokens))


class MaskFeat(MaskedModel):
    """Masked prediction by an encoder that sees a mask token in hidden places (MaskFeat, arXiv 2112.09133).

    Every token is computed, hidden or not: the shapes are static, and the mask decides in the loss what
    counts. The encoder, which the classes below name, has no final norm, as the head brings its own.
    Parameter names are PySlowFast's.

    Args:
        values_per_token: predicted values an output position, K: the target's ``values_per_token``.
        blank_hidden: set the pixels of hidden cubes to 0 before the stem. Where its kernel overlaps the
            cubes, as MViTv2's does, a visible token without this sees a rim of its hidden neighbours, as in
            the published method (False).
        encoder: the arguments of the encoder, except ``final_norm``.

    Raises:
        UserError: see the encoder.
    """

    def __init__(self, *, values_per_token: int = 108, blank_hidden: bool = False, **encoder: Any) -> None:
        if "final_norm" in encoder:
            raise UserError("final_norm cannot be set on a MaskFeat model: its head normalises by itself")
        super().__init__(**{**encoder, "final_norm": False})
        if values_per_token < 1:
            raise UserError(f"values_per_token {values_per_token} must be positive")
        self.blank_hidden = blank_hidden
        self.values_per_token = values_per_token
        self.mask_token = nn.Parameter(torch.empty(1, 1, self.patch_embed.width))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.pred_head = PredictionHead(self.out_width, values_per_token)

    def predict(self, clips: Tensor, mask: Tensor) -> Tensor:
        """As :meth:`forward`, for clips alone."""
        tokens, grid = self.masked_tokens(clips, mask)
        encoded = self.encode(tokens, grid)
        out_grid = self.output_grid(clips.shape)
        predictions = self.pred_head(on_grid(encoded, out_grid))
        return predictions.unflatten(1, out_grid.shape)

    def masked_tokens(self, clips: Tensor, mask: Tensor) -> tuple[Tensor, TokenGrid]:
        """The stem's tokens [B, N, D], the mask token where the clip is hidden, and their grid."""
        hidden = resize_mask(mask, self.token_grid(clips.shape))  # [B, t, h, w]
        if self.blank_hidden:
            clips = clips.masked_fill(self._pixels(hidden, clips), 0.0)
        tokens, grid = self.patch_embed(clips)
        return torch.where(hidden.flatten(1)[..., None], self.mask_token.to(tokens.dtype), tokens), grid

    def _pixels(self, hidden: Tensor, clips: Tensor) -> Tensor:
        """A mask of cubes [B, t, h, w] as a mask of pixels [B, 1, T, H, W]."""
        return resize_mask(hidden, TokenGrid(*clips.shape[2:]))[:, None]


class MViTMaskFeat(MaskFeat, MViT):
    """:class:`MaskFeat` on an MViTv2 encoder."""


class ViTMaskFeat(MaskFeat, ViT):
    """:class:`MaskFeat` on a plain vision transformer."""
