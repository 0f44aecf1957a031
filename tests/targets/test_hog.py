"""The HOG target."""

from __future__ import annotations

import torch

from videomaskfeat.targets.hog import hog_features


def test_channels_last_frames_give_the_same() -> None:
    """Clips arrive as uint8 [B, T, H, W, C] and are only permuted on the way."""
    frames = torch.randn(2, 3, 32, 40, generator=torch.Generator().manual_seed(5))
    channels_last = frames.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(hog_features(channels_last), hog_features(frames))
