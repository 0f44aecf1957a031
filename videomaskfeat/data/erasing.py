"""Random erasing: a box, the same in all frames of a clip, becomes noise (arXiv 1708.04896)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from videomaskfeat.data.transforms import Rectangle
from videomaskfeat.errors import UserError

_TRIES = 100  # PySlowFast's for a cube; timm's for a picture are 10


class RandomErasing:
    """Fills a random box with noise, each pixel, channel and frame with its own ("pixel" mode on a cube).

    As in PySlowFast, the noise is standard normal once pixels are normalised: in levels, normal with mean
    255 ``mean`` and standard deviation 255 ``std``. Deviation: it is whole levels and cut to 0..255, which
    takes what lies beyond -2 and +2.44 standard deviations (2.3 % and 0.7 %) to these ends; a level's
    chance is a whole number of 65536ths.

    Args:
        probability: chance that a clip is erased at all.
        area: least and greatest share of the picture that a box takes, drawn evenly.
        aspect: least and greatest height / width of a box, drawn evenly in its logarithm.
        mean: what is later subtracted from pixels in 0..1: of every channel, or one for each of three.
        std: what divides them after that, likewise.

    Raises:
        UserError: a value out of its range.
    """

    def __init__(
        self,
        *,
        probability: float,
        area: tuple[float, float] = (0.02, 1 / 3),
        aspect: tuple[float, float] = (0.3, 1 / 0.3),
        mean: float | Sequence[float] = 0.45,
        std: float | Sequence[float] = 0.225,
    ) -> None:
        if not 0 <= probability <= 1:
            raise UserError(f"erasing probability={probability}: a chance lies in 0..1")
        if not 0 < area[0] <= area[1] <= 1:
            raise UserError(f"erasing area={area}: must be two shares with 0 < low <= high <= 1")
        if not 0 < aspect[0] <= aspect[1] < math.inf:
            raise UserError(f"erasing aspect={aspect}: must be two ratios with 0 < low <= high")
        means, stds = np.atleast_1d(mean), np.atleast_1d(std)
        numbers = np.isfinite(means).all() and np.isfinite(stds).all() and (stds > 0).all()
        if not (numbers and {means.shape, stds.shape} <= {(1,), (3,)}):
            raise UserError(
                f"erasing mean={mean}, std={std}: each must be one number, or one for each of 3 channels, "
                "and std above 0"
            )
        self.probability = probability
        self.area, self.aspect = area, aspect
        channels = np.broadcast(means, stds)
        self._levels = np.stack([_normal_levels(255 * float(m), 255 * float(s)) for m, s in channels])

    def apply(self, clip: np.ndarray, rng: np.random.Generator) -> None:
        """Erase a box of a clip uint8 [T, H, W, 3], in place, or do nothing."""
        if rng.random() >= self.probability:
            return
        box = self.draw(clip.shape[1], clip.shape[2], rng)
        if box is None:
            return
        size = (len(clip), box.height, box.width, 3)
        places = rng.integers(0, 1 << 16, size, dtype=np.uint16)
        noise = self._levels[np.arange(3) % len(self._levels), places]
        clip[:, box.top : box.top + box.height, box.left : box.left + box.width] = noise

    def draw(self, height: int, width: int, rng: np.random.Generator) -> Rectangle | None:
        """A box inside a picture of this size, smaller than it both ways; None where no try fits."""
        low, high = map(math.log, self.aspect)
        for _ in range(_TRIES):
            area = rng.uniform(*self.area) * height * width
            aspect = math.exp(rng.uniform(low, high))
            box_height, box_width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < box_height < height and 0 < box_width < width:
                top = int(rng.integers(height - box_height, endpoint=True))
                left = int(rng.integers(width - box_width, endpoint=True))
                return Rectangle(top, left, box_height, box_width)
        return None


def _normal_levels(mean: float, std: float) -> np.ndarray:
    """65536 levels, sorted, as frequent as in a rounded and clipped normal distribution: uint8 [65536].

    Drawing places in it takes a tenth of the time that drawing and rounding normal floats does.
    """
    normal = NormalDist(mean, std)
    below = [0, *(round(normal.cdf(level + 0.5) * (1 << 16)) for level in range(255)), 1 << 16]
    return np.repeat(np.arange(256, dtype=np.uint8), np.diff(below))
