"""An encoder that may see a mask token in the hidden places, and gives features of the clip and its cells."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from videomaskfeat.errors import UserError
from videomaskfeat.grid import TokenGrid, resize_mask
from videomaskfeat.models.cubes import Triple
from videomaskfeat.models.encoder_base import Encoder, check_choice, on_grid


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
        check_choice("summary", summary, ("token", "mean"))
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
