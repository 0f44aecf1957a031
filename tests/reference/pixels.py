"""The pixel target, one position at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def pixel_target(
    clips: Tensor, *, stride: tuple[int, int, int], frames: int, normalized: bool
) -> list[list[float]]:
    """Clips [B, C, T, H, W] -> the K values of each position, in the order sample, t, h, w."""
    batch, channels, total, height, width = clips.shape
    rows = []
    for sample in range(batch):
        for first in range(0, total, stride[0]):
            for top in range(0, height, stride[1]):
                for left in range(0, width, stride[2]):
                    values = [
                        clips[sample, channel, first + frame, top + row, left + column].item()
                        for frame in range(frames)
                        for row in range(stride[1])
                        for column in range(stride[2])
                        for channel in range(channels)
                    ]
                    rows.append(_normalized(values) if normalized else values)
    return rows


def _normalized(values: list[float]) -> list[float]:
    """Mean 0 and variance 1 (unbiased, as in torch's ``var``)."""
    exact = torch.tensor(values, dtype=torch.float64)
    mean = exact.sum() / len(values)
    variance = (exact - mean).square().sum() / (len(values) - 1)
    return [float(value) for value in (exact - mean) / (variance + 1e-6).sqrt()]
