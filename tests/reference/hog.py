"""HOG with one histogram per pixel, in float64: slow, and without code of the package."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def scatter_hog(frames: Tensor, bins: int = 9, cell: int = 8, dead_zone: float = 5e-6) -> Tensor:
    """Frames [B, C, H, W] -> [B, C, bins, H/cell, W/cell]; gradients up to ``dead_zone`` in x count as 0."""
    batch, channels, height, width = frames.shape
    sobel = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]], dtype=torch.float64)
    kernels = torch.stack([sobel, sobel.t()])[:, None]
    padded = F.pad(frames.double().reshape(-1, 1, height, width), (1, 1, 1, 1), mode="reflect")
    gx, gy = F.conv2d(padded, kernels).reshape(batch, channels, 2, height, width).unbind(2)
    gx = torch.where(gx.abs() <= dead_zone, 0.0, gx)
    index = torch.floor(torch.atan2(gx, gy) / math.pi * bins).long().remainder(bins)
    per_pixel = torch.zeros(batch, channels, bins, height, width, dtype=torch.float64)
    per_pixel.scatter_add_(2, index[:, :, None], torch.hypot(gx, gy)[:, :, None])
    cells = per_pixel.unfold(3, cell, cell).unfold(4, cell, cell).sum((-1, -2))
    return F.normalize(cells, dim=2, eps=1e-12)
