"""Perceptual distance of pictures: the difference of their features in a frozen encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from videomaskfeat.errors import UserError
from videomaskfeat.models.encoder_base import Encoder
from videomaskfeat.models.layers import per_channel


class PerceptualDistance(nn.Module):
    """Mean squared difference of an encoder's features of two pictures (PeCo, arXiv 2111.12710).

    A picture is repeated to a clip of one cube, at the encoder's training size. Features are normalized per
    token (layer norm without weights), so all depths have the same weight and the distance of unrelated
    pictures is about 2. The encoder is frozen; gradients pass through it to the picture.

    Args:
        encoder: an :class:`~videomaskfeat.models.encoder_base.Encoder`, or a module with its ``features``,
            ``blocks`` and ``output_stride``. It is put into evaluation mode and frozen.
        depths: numbers of blocks after which features are compared.
        size: height and width to which pictures are resized; None keeps their size.
        mean: mean of the encoder's normalization, one number or one per channel.
        std: standard deviation, likewise.

    Raises:
        UserError: no depths, a depth that the encoder does not have, or an encoder without features.
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
                f"a {type(encoder).__name__} has no features per depth; use an encoder of this framework"
            )
        blocks = len(cast(Encoder, encoder).blocks)
        if not depths or not all(1 <= depth <= blocks for depth in depths):
            raise UserError(
                f"perceptual depths {list(depths)} must be one or more of the encoder's blocks 1..{blocks}"
            )
        self.encoder = encoder.eval().requires_grad_(False)
        self.depths = tuple(depths)
        self.size = size
        self.frames = cast(Encoder, encoder).output_stride[0]
        self.register_buffer("mean", per_channel(mean), persistent=False)
        self.register_buffer("std", per_channel(std), persistent=False)

    def forward(self, pictures: Tensor, reconstructions: Tensor) -> Tensor:
        """Both float32 [B, C, H, W] in 0..1 -> float32 [], the mean over depths, tokens and values."""
        clips = self._clips(reconstructions)
        with torch.no_grad():
            target_clips = self._clips(pictures)
        distances = []
        for depth in self.depths:
            with torch.no_grad():
                target = self._features(target_clips, depth)
            distances.append(F.mse_loss(self._features(clips, depth), target))
        return torch.stack(distances).mean()

    def train(self, mode: bool = True) -> PerceptualDistance:
        """Keep the encoder in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def _clips(self, pictures: Tensor) -> Tensor:
        """Pictures [B, C, H, W] in 0..1 -> normalized clips [B, C, T, size, size] of identical frames."""
        if self.size is not None and pictures.shape[-2:] != (self.size, self.size):
            pictures = F.interpolate(pictures, (self.size, self.size), mode="bilinear", antialias=True)
        normalized = (pictures - self.mean) / self.std
        return normalized[:, :, None].expand(-1, -1, self.frames, -1, -1)

    def _features(self, clips: Tensor, depth: int) -> Tensor:
        features = cast(Encoder, self.encoder).features(clips, depth=depth, pooled=False).float()
        return F.layer_norm(features, features.shape[-1:])
