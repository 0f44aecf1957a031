"""A classifier small enough to compute by hand; at module level, so that other processes can build it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ToyClassifier(nn.Module):
    """Logits from the mean color of each frame; it records the batch sizes."""

    def __init__(self, *, frames: int = 2, classes: int = 7, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.frozen = nn.Dropout(0.5).eval()  # a part that stays in evaluation mode while the rest trains
        self.dropout = nn.Dropout(0.5)
        self.weight = nn.Parameter(8 * torch.randn(classes, 3 * frames, generator=generator))
        self.batches: list[int] = []

    def features(self, clips: Tensor) -> Tensor:
        """Clips float [B, C, T, H, W] -> [B, C*T]."""
        self.batches.append(len(clips))
        return clips.mean(dim=(3, 4)).flatten(1)

    def forward(self, clips: Tensor) -> Tensor:
        """Clips float [B, C, T, H, W] -> logits [B, L]."""
        return self.dropout(self.frozen(self.features(clips))) @ self.weight.T
