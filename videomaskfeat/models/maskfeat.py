"""MaskFeat, and the modules that other pre-training methods share with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from videomaskfeat.errors import UserError, check_name
from videomaskfeat.grid import TokenGrid, resize_mask
from videomaskfeat.models.encoder_base import Encoder, Triple, as_clips, on_grid
from videomaskfeat.models.initialization import Initialization, draw_head, draw_mask_token, initialize
from videomaskfeat.models.limits import check_positive
from videomaskfeat.models.norms import LayerNorm


class MaskedModel(Encoder, ABC):
    """An encoder with a head that predicts the target at hidden positions.

    Attributes:
        values_per_token: predicted values per output position, K.
        equal_masks: whether all samples of a batch must hide the same number of cubes.
    """

    values_per_token: int
    equal_masks = False

    def forward(  # type: ignore[override]
        self, clips: Tensor, mask: Tensor, hidden_cells: int | None = None
    ) -> Tensor:
        """Predict the target at all positions.

        Args:
            clips: float [B, C, T, H, W], normalized; or images [B, C, H, W].
            mask: bool [B, t', h', w'], for images [B, h', w'], True = hidden; its grid divides the token
                grid.
            hidden_cells: number of hidden cells of each mask, if known. Models with ``equal_masks`` count
                them otherwise, and on a GPU the host waits for that; others do not use it.

        Returns:
            [B, t, h, w, K] on :meth:`output_grid`; for images [B, h, w, K].

        Raises:
            UserError: the clip is not a multiple of the cube, or the mask's grid does not divide its tokens.
        """
        known = () if hidden_cells is None else (hidden_cells,)
        if clips.ndim == 4:
            return self.predict(as_clips(clips), mask[:, None], *known)[:, 0]
        return self.predict(clips, mask, *known)

    def mask_grid(self, clip_shape: Sequence[int]) -> TokenGrid:
        """The finest grid of masks, for a clip whose shape ends in (T, H, W): what is hidden as a whole."""
        return self.output_grid(clip_shape)

    @abstractmethod
    def predict(self, clips: Tensor, mask: Tensor, hidden_cells: int | None = None) -> Tensor:
        """:meth:`forward` for clips only."""


def make_mask_token(width: int, initialization: Initialization) -> nn.Parameter:
    """A learned token [1, 1, D] for hidden positions, with its initial value."""
    token = nn.Parameter(torch.empty(1, 1, width))
    if initialization == "slowfast":
        nn.init.trunc_normal_(token, std=0.02)
    else:
        draw_mask_token(token, initialization)
    return token


def hide_tokens(tokens: Tensor, mask: Tensor, grid: TokenGrid, mask_token: Tensor) -> Tensor:
    """Replace tokens [B, N, D] by the mask token [1, 1, D] where the mask, bool [B, t', h', w'], is True.

    Raises:
        UserError: the mask's grid does not divide the token grid.
    """
    hidden = resize_mask(mask, grid).flatten(1)[..., None]  # [B, N, 1]
    return torch.where(hidden, mask_token.to(tokens.dtype), tokens)


class PredictionHead(nn.Module):
    """Layer norm and one linear layer per token (MaskFeat, section 3.1).

    The two containers of one element each give the parameters PySlowFast's names.
    """

    def __init__(self, width: int, values_per_token: int) -> None:
        super().__init__()
        self.transforms = nn.ModuleList([nn.Sequential(LayerNorm(width, eps=1e-6))])
        self.projections = nn.ModuleList([nn.Linear(width, values_per_token)])
        initialize(self.projections)

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., D] -> [..., K]."""
        return self.projections[0](self.transforms[0](tokens))


class MaskFeat(MaskedModel):
    """An encoder that sees a mask token at hidden positions, with a prediction head (arXiv 2112.09133).

    All tokens are computed, so shapes are static; the mask selects positions in the loss.
    :func:`~videomaskfeat.models.zoo.with_head` combines this class with an encoder. Parameter names are
    PySlowFast's.

    Args:
        values_per_token: predicted values per output position, K: the target's ``values_per_token``.
        blank_hidden: set the pixels of hidden cubes to 0 before the stem. Without it, a stem whose kernel
            overlaps the cubes shows visible tokens the edge pixels of hidden neighbors, as in the published
            method.
        encoder: arguments of the encoder, except ``final_norm``.
    """

    def __init__(self, *, values_per_token: int = 108, blank_hidden: bool = False, **encoder: Any) -> None:
        if "final_norm" in encoder:
            raise UserError("final_norm cannot be set on a MaskFeat model: its head has its own norm")
        super().__init__(**{**encoder, "final_norm": False})
        check_positive(values_per_token=values_per_token)
        self.blank_hidden = blank_hidden
        self.values_per_token = values_per_token
        self.mask_token = make_mask_token(self.patch_embed.width, self.initialization)
        self.pred_head = PredictionHead(self.out_width, values_per_token)
        if self.initialization != "slowfast":
            draw_head(self.pred_head, self.initialization)

    def predict(self, clips: Tensor, mask: Tensor, hidden_cells: int | None = None) -> Tensor:
        if self.blank_hidden:
            hidden = resize_mask(mask, self.token_grid(clips.shape))  # [B, t, h, w]
            pixels = resize_mask(hidden, TokenGrid(*clips.shape[2:]))[:, None]  # [B, 1, T, H, W]
            clips = clips.masked_fill(pixels, 0.0)
        tokens, grid = self.patch_embed(clips)  # [B, N, D]
        tokens, out_grid = self.through_blocks(hide_tokens(tokens, mask, grid, self.mask_token), grid)
        predictions = self.pred_head(on_grid(tokens, out_grid))  # [B, P+N', D'] -> [B, N', K]
        return predictions.unflatten(1, out_grid.shape)  # [B, t', h', w', K]


class Encoded(NamedTuple):
    """Output of :class:`ClipEncoder`.

    clip: one feature per clip, [B, D'].
    cells: one feature per cell of the output grid, [B, t, h, w, D'].
    """

    clip: Tensor
    cells: Tensor


class ClipEncoder(nn.Module):
    """An encoder, which should have a final norm, without a head.

    ``summary`` is the feature of the clip: "token" (the class token) or "mean" (over the grid's tokens).

    Raises:
        UserError: an unknown summary, or "token" for an encoder without class token.
    """

    def __init__(self, encoder: Encoder, *, summary: str) -> None:
        super().__init__()
        check_name("summary", summary, ("token", "mean"))
        if summary == "token" and encoder.cls_token is None:
            raise UserError("summary 'token' needs an encoder with class_token true; otherwise use 'mean'")
        self.summary = summary
        self.encoder = encoder

    def forward(self, clips: Tensor) -> Encoded:
        """Encode clips float [B, C, T, H, W], normalized."""
        return self._encode(*self.encoder.patch_embed(clips))

    def _encode(self, tokens: Tensor, grid: TokenGrid) -> Encoded:
        tokens, out_grid = self.encoder.through_blocks(tokens, grid)
        encoded = self.encoder.norm(tokens)  # [B, P+N', D']
        cells = on_grid(encoded, out_grid)
        clip = encoded[:, 0] if self.summary == "token" else cells.mean(dim=1)
        return Encoded(clip, cells.unflatten(1, out_grid.shape))


class MaskedEncoder(ClipEncoder):
    """A :class:`ClipEncoder` that replaces hidden tokens by a mask token, as :class:`MaskFeat` does."""

    def __init__(self, encoder: Encoder, *, summary: str) -> None:
        super().__init__(encoder, summary=summary)
        self.mask_token = make_mask_token(encoder.patch_embed.width, encoder.initialization)

    @property
    def layer_count(self) -> int:
        return self.encoder.layer_count

    def layer_of(self, name: str) -> int:
        """The encoder's layer of a parameter; the mask token belongs to the stem."""
        return self.encoder.layer_of(name.removeprefix("encoder."))

    def forward(self, clips: Tensor, mask: Tensor | None = None) -> Encoded:
        """Encode clips; arguments as for :meth:`MaskedModel.forward`, but a mask of None hides nothing."""
        tokens, grid = self.encoder.patch_embed(clips)
        if mask is not None:
            tokens = hide_tokens(tokens, mask, grid, self.mask_token)
        return self._encode(tokens, grid)

    def hide(self, clips: Tensor, mask: Tensor) -> tuple[Tensor, TokenGrid]:
        """The tokens [B, P+N, D] of masked clips before the first block, and their grid."""
        tokens, grid = self.encoder.patch_embed(clips)
        return self.encoder.placed(hide_tokens(tokens, mask, grid, self.mask_token), grid), grid


def last_blocks(encoder: Encoder, clips: Tensor, count: int) -> list[Tensor]:
    """Outputs [B, t, h, w, D'] of each of an encoder's last ``count`` blocks, before the final norm.

    :func:`check_last_blocks` must accept the count. Clips are float [B, C, T, H, W], normalized.
    """
    depth = len(encoder.blocks)
    return encoder.features_at(clips, range(depth - count + 1, depth + 1))


def check_last_blocks(encoder: Encoder, count: int, clip_size: Triple) -> None:
    """Check that the last ``count`` blocks of an encoder have outputs of the same size.

    Raises:
        UserError: the encoder has fewer blocks, or a block has another grid or width; the message gives the
            maximum count.
    """
    depth = len(encoder.blocks)
    if not 1 <= count <= depth:
        raise UserError(f"blocks {count} must be between 1 and {depth}, the encoder's number of blocks")
    if count == 1:
        return
    frames, height, width = clip_size
    grids = [
        TokenGrid.from_clip(frames=frames, height=height, width=width, stride=stride)
        for stride in encoder.strides()[1:]
    ]
    sizes = [
        f"{grid} cells of {values} values" for grid, values in zip(grids, encoder.block_widths, strict=True)
    ]
    maximum = next((n for n in range(depth) if sizes[depth - 1 - n] != sizes[-1]), depth)
    if maximum < count:
        raise UserError(
            f"blocks {count}: the last block outputs {sizes[-1]}, the block {count} from the end "
            f"{sizes[-count]}; use at most {maximum}"
        )
