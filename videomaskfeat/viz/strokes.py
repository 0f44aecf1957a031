"""HOG histograms drawn as oriented strokes: what a target or a prediction says, made visible."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from videomaskfeat.errors import UserError


def cell_histograms(values: np.ndarray, *, bins: int = 9, channels: int = 3) -> np.ndarray:
    """Take HOG values apart into one histogram a cell, averaged over the colour channels.

    Args:
        values: float [t, h, w, K], a target or a prediction; K holds the colour channel slowest, then the
            bin, then the cells of the output position row by row.
        bins: orientations in half a turn.
        channels: colour channels.

    Returns:
        float32 [t, bins, R, C] with R x C cells a frame; negative values, which a prediction may hold, are
        clipped to 0 before the average.

    Raises:
        UserError: K is not channels x bins x a square number.
    """
    t, h, w, K = values.shape
    side = math.isqrt(K // (channels * bins))
    if side == 0 or side * side * channels * bins != K:
        raise UserError(
            f"{K} values a token cannot be drawn as HOG: it takes {channels} channels x {bins} bins x a "
            "square number of cells; draw only checkpoints whose target is HOG"
        )
    cells = values.astype(np.float32).reshape(t, h, w, channels, bins, side, side)
    cells = np.maximum(cells, 0.0).mean(axis=3)  # [t, h, w, bins, side, side]
    return cells.transpose(0, 3, 1, 4, 2, 5).reshape(t, bins, h * side, w * side)


@lru_cache(maxsize=8)
def stroke_templates(bins: int, size: int) -> np.ndarray:
    """One anti-aliased stroke a bin, float32 [bins, size, size] in 0..1.

    The target's phase is atan2(gx, gy), so the gradient of phase p points along (sin p, cos p) with x to the
    right and y *down*, and the edge, perpendicular to it, along (cos p, -sin p): as seen, p counted
    counter-clockwise from the horizontal. The kernels' sign turns both gradients round, which leaves an
    unsigned orientation as it is. Bin k covers [k, k + 1) * pi / bins and is drawn at its middle. With 9
    bins a vertical edge is the middle of bin 4 and is drawn upright; a horizontal one lies on the border of
    bins 8 and 0 and is drawn 10 degrees off, as the histogram knows no better.
    """
    offsets = np.arange(size, dtype=np.float32) - (size - 1) / 2
    x, y = offsets[None, :, None], offsets[:, None, None]
    angles = (np.arange(bins, dtype=np.float32) + 0.5) * (math.pi / bins)
    along = x * np.cos(angles) - y * np.sin(angles)  # [size, size, bins]
    across = x * np.sin(angles) + y * np.cos(angles)
    half_length, half_width = 0.46 * size, max(0.6, 0.055 * size)
    beyond = np.maximum(np.abs(along) - (half_length - half_width), 0.0)
    distance = np.hypot(beyond, across)  # to the stroke's centre line, so that its ends are round
    templates = np.clip(half_width + 0.5 - distance, 0.0, 1.0).transpose(2, 0, 1)
    templates.setflags(write=False)
    return templates


def draw_strokes(
    values: np.ndarray, *, bins: int = 9, channels: int = 3, cell_pixels: int = 16
) -> np.ndarray:
    """Draw HOG values as strokes along the edges, one stroke a bin, as bright as the bin is heavy.

    Strokes that cross add up as the root of the sum of their squares: the middle of a cell then shows the L2
    norm of its histogram, which normalisation makes 1, instead of a saturated blob.

    Args:
        values: float [t, h, w, K], see :func:`cell_histograms`.
        bins: orientations in half a turn.
        channels: colour channels.
        cell_pixels: height and width of a drawn cell, in pixels.

    Returns:
        uint8 [t, R * cell_pixels, C * cell_pixels], 255 where a stroke of weight 1 passes.

    Raises:
        UserError: the values are not HOG's, see :func:`cell_histograms`.
    """
    histograms = cell_histograms(values, bins=bins, channels=channels)
    t, _, rows, columns = histograms.shape
    templates = stroke_templates(bins, cell_pixels).reshape(bins, -1)
    energy = np.square(histograms).transpose(0, 2, 3, 1).reshape(-1, bins) @ np.square(templates)
    brightness = np.sqrt(np.minimum(energy, 1.0)).reshape(t, rows, columns, cell_pixels, cell_pixels)
    picture = brightness.transpose(0, 1, 3, 2, 4).reshape(t, rows * cell_pixels, columns * cell_pixels)
    return np.rint(picture * 255).astype(np.uint8)
