"""What all pre-training models share: they are called with clips and masks, and predict on the whole grid."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from videomaskfeat.errors import UserError, check_name
from videomaskfeat.grid import TokenGrid, resize_mask
from videomaskfeat.models.encoder_base import Encoder, Triple, as_clips, on_grid
from videomaskfeat.models.mvit import MViT
from videomaskfeat.models.vit import ViT


class MaskedModel(Encoder, ABC):
    """An encoder with a head that predicts the target of hidden places; the base of
    :class:`~videomaskfeat.models.maskfeat.MaskFeat` and :class:`~videomaskfeat.models.mae.MAE`.

    Attributes:
        values_per_token: predicted values an output position, K.
    """

    values_per_token: int

    def forward(self, clips: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        """Predict the target everywhere.

        Args:
            clips: float [B, C, T, H, W], normalised; or images [B, C, H, W].
            mask: bool [B, t', h', w'] or for images [B, h', w'], True = hidden; its grid divides the token
                grid.

        Returns:
            [B, t, h, w, K] on :meth:`output_grid`; for images [B, h, w, K].

        Raises:
            UserError: the clip is not a multiple of the cube, or the mask's grid does not divide the token
                grid.
        """
        if clips.ndim == 4:
            return self.predict(as_clips(clips), mask[:, None])[:, 0]
        return self.predict(clips, mask)

    @abstractmethod
    def predict(self, clips: Tensor, mask: Tensor) -> Tensor:
        """As :meth:`forward`, for clips alone."""


# An encoder that may see a mask token in the hidden places, and gives features of the clip and its cells.


class Encoded(NamedTuple):
    """What an encoder makes of clips.

    clip: one feature a clip, [B, D'].
    cells: one feature a cell of the output grid, [B, t, h, w, D'].
    """

    clip: Tensor
    cells: Tensor


class ClipEncoder(nn.Module):
    """An encoder without a head.

    Args:
        encoder: any of the project's; it should have a final norm.
        summary: the clip's feature: "token" (the class token) or "mean" (over the grid's tokens).

    Raises:
        UserError: no such summary, or a class token asked of an encoder without.
    """

    def __init__(self, encoder: Encoder, *, summary: str) -> None:
        super().__init__()
        check_name("summary", summary, ("token", "mean"))
        if summary == "token" and encoder.cls_token is None:
            raise UserError("summary 'token' needs an encoder with class_token true; else take 'mean'")
        self.summary = summary
        self.encoder = encoder

    def forward(self, clips: Tensor) -> Encoded:
        """Encode clips float [B, C, T, H, W], normalised.

        Raises:
            UserError: the clip is not a multiple of the cube.
        """
        tokens, grid = self.encoder.patch_embed(clips)
        return self._encode(tokens, grid, clips)

    def _encode(self, tokens: Tensor, grid: TokenGrid, clips: Tensor) -> Encoded:
        """Stem tokens [B, N, D] of clips -> their features."""
        encoded = self.encoder.encode(tokens, grid)  # [B, P+N', D']
        out_grid = self.encoder.output_grid(clips.shape)
        cells = on_grid(encoded, out_grid)
        clip = encoded[:, 0] if self.summary == "token" else cells.mean(dim=1)
        return Encoded(clip, cells.unflatten(1, out_grid.shape))


class MaskedEncoder(ClipEncoder):
    """Hides tokens behind a learnt one, as :class:`~videomaskfeat.models.maskfeat.MaskFeat`, without a head.

    Args:
        encoder, summary: see :class:`ClipEncoder`.
    """

    def __init__(self, encoder: Encoder, *, summary: str) -> None:
        super().__init__(encoder, summary=summary)
        self.mask_token = nn.Parameter(torch.empty(1, 1, encoder.patch_embed.width))
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, clips: Tensor, mask: Tensor | None = None) -> Encoded:
        """Encode clips.

        Args:
            clips: float [B, C, T, H, W], normalised.
            mask: bool [B, t', h', w'], True = hidden, its grid divides the token grid; None hides nothing.

        Raises:
            UserError: the clip is not a multiple of the cube, or the mask's grid does not divide the tokens'.
        """
        tokens, grid = self.encoder.patch_embed(clips)
        if mask is not None:
            hidden = resize_mask(mask, grid).flatten(1)[..., None]  # [B, N, 1]
            tokens = torch.where(hidden, self.mask_token.to(tokens.dtype), tokens)
        return self._encode(tokens, grid, clips)


def last_blocks(encoder: Encoder, clips: Tensor, count: int) -> list[Tensor]:
    """What each of an encoder's last blocks gives, before any final norm.

    Args:
        encoder: all of these blocks are on its output grid (see :func:`check_last_blocks`).
        clips: float [B, C, T, H, W], normalised.
        count: how many blocks, from the last one back.

    Returns:
        A tensor [B, t, h, w, D'] a block, the last block's at the end.
    """
    first = len(encoder.blocks) - count
    tokens, grid = encoder.through_blocks(*encoder.patch_embed(clips), depth=first)
    outputs = []
    for block in encoder.blocks[first:]:
        tokens, grid = block(tokens, grid)
        outputs.append(on_grid(tokens, grid).unflatten(1, grid.shape))
    return outputs


def check_last_blocks(encoder: Encoder, count: int, clip_size: Triple) -> None:
    """Refuse blocks whose features are not of the size of the last one's.

    Args:
        encoder: to be asked; it is not changed.
        count: how many blocks, from the last one back.
        clip_size: frames, height and width.

    Raises:
        UserError: more blocks than there are, or one of another grid or width; it says how many fit.
    """
    depth = len(encoder.blocks)
    if not 1 <= count <= depth:
        raise UserError(f"blocks {count}: the encoder has {depth}, and at least 1 must be taken")
    if count == 1:
        return
    frames, height, width = clip_size
    grids = [
        TokenGrid.from_clip(frames=frames, height=height, width=width, stride=stride)
        for stride in encoder.strides()[1:]
    ]
    sizes = [f"{grid} cells of {values} values" for grid, values in zip(grids, encoder.widths(), strict=True)]
    fit = next((n for n in range(depth) if sizes[depth - 1 - n] != sizes[-1]), depth)
    if fit < count:
        raise UserError(
            f"blocks {count}: the last block gives {sizes[-1]}, and the one {count} from the end "
            f"{sizes[-count]}; take at most {fit}"
        )


# MaskFeat: an encoder that sees a mask token where the clip is hidden, and a head that predicts.


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
