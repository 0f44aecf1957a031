"""Features of 64 boxes from 8 maps [768, 14, 19], forward and backward, against one box at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Row, alternate
from videomaskfeat.models.roi_align import roi_align

BINS, STRIDE = 7, 16


def plain_roi_align(features: Tensor, boxes: Tensor) -> Tensor:
    """Aligned, adaptive pooling: sample a grid per box with `grid_sample`, and average the bins."""
    maps = features.unbind(0)  # so that the gradient of a box has the size of one map, not of all maps
    pooled = []
    for place, *corners in boxes.tolist():
        left, top, right, bottom = (corner / STRIDE - 0.5 for corner in corners)
        rows, columns = math.ceil((bottom - top) / BINS), math.ceil((right - left) / BINS)
        y = _places(top, bottom, rows * BINS, features)
        x = _places(left, right, columns * BINS, features)
        high, wide = features.shape[2:]
        inside = ((y >= -1) & (y <= high))[:, None] & ((x >= -1) & (x <= wide))
        y, x = 2 * y / (high - 1) - 1, 2 * x / (wide - 1) - 1  # grid_sample counts from -1 to 1
        grid = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=2)
        samples = F.grid_sample(maps[int(place)][None], grid[None], padding_mode="border", align_corners=True)
        pooled.append(F.avg_pool2d(samples * inside, (rows, columns)))
    return torch.cat(pooled)  # [R, C, 7, 7]


def _places(start: float, end: float, count: int, like: Tensor) -> Tensor:
    """The centers of ``count`` equal intervals, [count]."""
    return start + (torch.arange(count, device=like.device) + 0.5) * ((end - start) / count)


def run(*, device: str, dry: bool = False) -> list[Row]:
    """Check that both results are equal, then time them, for maps in image layout and in token layout."""
    channels, rounds = (16, 1) if dry else (768, 9 if device == "cpu" else 30)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(8, channels, 14, 19, generator=generator).to(device)
    # Persons: height 25 to 100 % of a frame of 224 x 304, width 33 to 67 % of their height.
    height = 224 * (0.25 + 0.75 * torch.rand(64, generator=generator))
    width = height * (0.33 + 0.33 * torch.rand(64, generator=generator))
    left = (304 - width) * torch.rand(64, generator=generator)
    top = (224 - height) * torch.rand(64, generator=generator)
    places = torch.arange(64) % 8
    boxes = torch.stack([places, left, top, left + width, top + height], dim=1).to(device)

    def step(function: Callable[[Tensor], Tensor], maps: Tensor) -> Callable[[], object]:
        return lambda: torch.autograd.grad(function(maps), maps, upstream)

    def ours(maps: Tensor) -> Tensor:
        return roi_align(maps, boxes, BINS, 1 / STRIDE, 0, True)

    def plain(maps: Tensor) -> Tensor:
        return plain_roi_align(maps, boxes)

    torch.testing.assert_close(ours(features), plain(features), atol=1e-4, rtol=1e-4)
    upstream = torch.randn(64, channels, BINS, BINS, generator=generator).to(device)
    rows = []
    for name, layout in (("contiguous", torch.contiguous_format), ("channels last", torch.channels_last)):
        maps = features.contiguous(memory_format=layout).requires_grad_()
        functions = {"ours": step(ours, maps), "baseline": step(plain, maps)}
        seconds = alternate(functions, rounds=rounds, warmup=2, device=device)
        rows.append(
            Row(
                f"RoIAlign, 64 boxes on [8, {channels}, 14, 19], {name}, forward and backward",
                1e3 * seconds["ours"],
                1e3 * seconds["baseline"],
                "ms",
                target=">= 3x faster",
            )
        )
    return rows
