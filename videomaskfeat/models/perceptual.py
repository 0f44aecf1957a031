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
    """Squared difference of an encoder's features of two pictures, summed over depths (PeCo).

    The term of a depth is the mean over tokens and values, as in the paper (arXiv 2111.12710), which sums
    over the depths with weight 1. Features are normalized per token (layer norm without weights), so the term
    of unrelated pictures is about 2; this kind of normalization is ours. A picture is repeated to a clip of
    one cube, at the encoder's training size. The encoder is frozen; gradients pass through it to the picture.

    Args:
        encoder: an :class:`~videomaskfeat.models.encoder_base.Encoder`, or a module with its ``features``,
            ``blocks`` and ``output_stride``. It is put into evaluation mode and frozen.
        depths: numbers of blocks after which features are compared; 3, 6, 9 and 12 of a ViT-B in the paper.
        weights: weight of each depth, 0 or more; None for 1.
        size: height and width to which pictures are resized; None keeps their size.
        mean: mean of the encoder's normalization, one number or one per channel.
        std: standard deviation, likewise.

    Raises:
        UserError: no depths, a depth that the encoder does not have, weights that do not fit the depths, or
            an encoder without features.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        *,
        depths: Sequence[int],
        weights: Sequence[float] | None = None,
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
        weights = [1.0] * len(depths) if weights is None else weights
        if len(weights) != len(depths) or min(weights) < 0:
            raise UserError(
                f"perceptual weights {list(weights)} of the depths {list(depths)} must be one number of at "
                "least 0 per depth"
            )
        self.encoder = encoder.eval().requires_grad_(False)
        self.depths, self.weights = tuple(depths), tuple(weights)
        self.size = size
        self.frames = cast(Encoder, encoder).output_stride[0]
        self.register_buffer("mean", per_channel(mean), persistent=False)
        self.register_buffer("std", per_channel(std), persistent=False)

    def forward(self, pictures: Tensor, reconstructions: Tensor) -> Tensor:
        """Both float32 [B, C, H, W] in 0..1 -> float32 []."""
        with torch.no_grad():
            targets = self._features(self._clips(pictures))
        distances = [
            weight * F.mse_loss(features, target)
            for weight, features, target in zip(
                self.weights, self._features(self._clips(reconstructions)), targets, strict=True
            )
        ]
        return torch.stack(distances).sum()

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

    def _features(self, clips: Tensor) -> list[Tensor]:
        """Normalized features [B, t, h, w, D'] of each depth."""
        outputs = cast(Encoder, self.encoder).features_at(clips, self.depths)
        return [F.layer_norm(features.float(), features.shape[-1:]) for features in outputs]
