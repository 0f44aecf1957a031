"""RoIAlign by its definition: a loop over bins, samples and corners."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def plain_roi_align(
    features: Tensor,
    boxes: Tensor,
    output_size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """features [B, C, H, W], boxes [R, 5] -> [R, C, height, width]."""
    height, width = output_size
    result = []
    for place, x1, y1, x2, y2 in boxes.tolist():
        shift = 0.5 if aligned else 0.0
        left, top, right, bottom = (value * spatial_scale - shift for value in (x1, y1, x2, y2))
        box_width, box_height = right - left, bottom - top
        if not aligned:
            box_width, box_height = max(box_width, 1.0), max(box_height, 1.0)
        bin_height, bin_width = box_height / height, box_width / width
        rows = sampling_ratio if sampling_ratio > 0 else math.ceil(bin_height)
        columns = sampling_ratio if sampling_ratio > 0 else math.ceil(bin_width)
        for i in range(height):
            for j in range(width):
                total = torch.zeros_like(features[0, :, 0, 0])
                for row in range(rows):
                    for column in range(columns):
                        y = top + (i + (row + 0.5) / rows) * bin_height
                        x = left + (j + (column + 0.5) / columns) * bin_width
                        total = total + _sample(features[int(place)], y, x)
                result.append(total / max(rows * columns, 1))
    channels = features.shape[1]
    if not result:
        return features.new_zeros(0, channels, height, width)
    return torch.stack(result).view(len(boxes), height, width, channels).permute(0, 3, 1, 2)


def _sample(picture: Tensor, y: float, x: float) -> Tensor:
    """Bilinear value of [C, H, W] at a point, [C]: the border value up to one cell outside, then 0."""
    high, wide = picture.shape[1:]
    if not (-1 <= y <= high and -1 <= x <= wide):
        return torch.zeros_like(picture[:, 0, 0])
    y, x = min(max(y, 0.0), high - 1.0), min(max(x, 0.0), wide - 1.0)
    row, column = min(int(y), max(high - 2, 0)), min(int(x), max(wide - 2, 0))
    below, right = min(row + 1, high - 1), min(column + 1, wide - 1)
    down, along = y - row, x - column
    upper = (1 - along) * picture[:, row, column] + along * picture[:, row, right]
    lower = (1 - along) * picture[:, below, column] + along * picture[:, below, right]
    return (1 - down) * upper + down * lower
