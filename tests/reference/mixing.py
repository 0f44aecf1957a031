"""CutMix boxes in numpy: the box is drawn on a picture and its pixels are counted."""

from __future__ import annotations

import numpy as np


def cutmix_shares(
    *, alpha: float, height: int, width: int, draws: int, rng: np.random.Generator
) -> np.ndarray:
    """Share of a picture outside the box, float [draws]."""
    shares = []
    for _ in range(draws):
        side = np.sqrt(1 - rng.beta(alpha, alpha))
        rows, columns = int(height * side) // 2, int(width * side) // 2
        picture = np.ones((3 * height, 3 * width))  # wide enough for every box to lie inside
        row, column = height + rng.integers(height), width + rng.integers(width)
        picture[row - rows : row + rows, column - columns : column + columns] = 0
        shares.append(picture[height : 2 * height, width : 2 * width].mean())
    return np.array(shares)
