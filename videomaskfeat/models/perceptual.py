"""How alike two pictures are to a frozen encoder of this framework."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from videomaskfeat.errors import UserError
from videomaskfeat.models.encoder_base import Encoder
from videomaskfeat.models.tokenizers import channel_levels


class PerceptualDistance(nn.Module):
    """The mean squared difference of an encoder's features of two pictures (PeCo, arXiv 2111.12710).

    A picture is shown as a clip of one cube that stands still, at the size that the encoder was trained on.
    The features of each depth are normalized per token (layer norm without weights), so that depths weigh
    alike and the distance is about 2 for pictures that have nothing in common. The encoder is frozen; the
    gradient passes through it to the picture.

    Args:
        encoder: an :class:`~videomaskfeat.models.encoder_base.Encoder`, or a module with its ``features``,
            ``blocks`` and ``output_stride``. It is put into evaluation mode and loses its gradients.
        depths: blocks after which features are compared; each costs the encoder up to there.
        size: height and width at which pictures are shown; None keeps theirs.
        mean: that the encoder's clips were normalized with: one number, or one per channel.
        std: likewise.

    Raises:
        UserError: no depths, or the encoder has no such depth or gives no features.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        *,
        depths: Sequence[int],
        size: int | None = None,
        mean: float | Sequence[float] = 0.45,
        std: float | Sequence[float] = 0.225,
    ) -> None:
        super().__init__()
        if not hasattr(encoder, "features") or not hasattr(encoder, "output_stride"):
            raise UserError(
                f"a {type(encoder).__name__} gives no features at a depth; take an encoder of this framework"
            )
        blocks = len(cast(Encoder, encoder).blocks)
        if not depths or not all(1 <= depth <= blocks for depth in depths):
            raise UserError(
                f"perceptual depths {list(depths)}: name one or more of the encoder's blocks 1..{blocks}"
            )
        self.encoder = encoder.eval().requires_grad_(False)
        self.depths = tuple(depths)
        self.size = size
        self.frames = cast(Encoder, encoder).output_stride[0]
        self.register_buffer("mean", channel_levels(mean), persistent=False)
        self.register_buffer("std", channel_levels(std), persistent=False)

    def forward(self, pictures: Tensor, reconstructions: Tensor) -> Tensor:
        """Both float32 [B, C, H, W], in 0..1 -> float32 [], the mean over depths, tokens and values."""
        clips = self._clips(reconstructions)
        with torch.no_grad():
            true_clips = self._clips(pictures)
        distances = []
        for depth in self.depths:
            with torch.no_grad():
                truth = self._features(true_clips, depth)
            distances.append(F.mse_loss(self._features(clips, depth), truth))
        return torch.stack(distances).mean()

    def train(self, mode: bool = True) -> PerceptualDistance:
        """The encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def _clips(self, pictures: Tensor) -> Tensor:
        """Pictures [B, C, H, W] in 0..1 -> clips [B, C, T, size, size] that stand still, normalized."""
        if self.size is not None and pictures.shape[-2:] != (self.size, self.size):
            pictures = F.interpolate(pictures, (self.size, self.size), mode="bilinear", antialias=True)
        normalized = (pictures - self.mean) / self.std
        return normalized[:, :, None].expand(-1, -1, self.frames, -1, -1)

    def _features(self, clips: Tensor, depth: int) -> Tensor:
        features = cast(Encoder, self.encoder).features(clips, depth=depth, pooled=False).float()
        return F.layer_norm(features, features.shape[-1:])
