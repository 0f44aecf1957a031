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


def channel_target(
    clips: Tensor, *, stride: tuple[int, int, int], mean: list[float], std: list[float]
) -> list[list[float]]:
    """VideoMAE's target of normalized clips: pixels in 0..1, each color channel of a position by itself less
    its mean and divided by its unbiased standard deviation plus 1e-6."""
    unit = clips.double() * torch.tensor(std).double()[:, None, None, None]
    unit = unit + torch.tensor(mean).double()[:, None, None, None]
    raw = pixel_target(unit, stride=stride, frames=stride[0], normalized=False)
    rows = []
    for values in raw:
        row = [0.0] * len(values)
        for channel in range(clips.shape[1]):
            own = values[channel :: clips.shape[1]]
            middle = sum(own) / len(own)
            deviation = (sum((value - middle) ** 2 for value in own) / (len(own) - 1)) ** 0.5
            row[channel :: clips.shape[1]] = [(value - middle) / (deviation + 1e-6) for value in own]
        rows.append(row)
    return rows


def _normalized(values: list[float]) -> list[float]:
    """Mean 0 and variance 1 (unbiased, as in torch's ``var``)."""
    exact = torch.tensor(values, dtype=torch.float64)
    mean = exact.sum() / len(values)
    variance = (exact - mean).square().sum() / (len(values) - 1)
    return [float(value) for value in (exact - mean) / (variance + 1e-6).sqrt()]
