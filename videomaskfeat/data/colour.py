"""Colour jitter: brightness, contrast and saturation of a clip, changed at random."""

from __future__ import annotations

import numpy as np

from videomaskfeat.data.operations import brightness, contrast, saturation
from videomaskfeat.errors import UserError

_CHANGES = {"brightness": brightness, "contrast": contrast, "saturation": saturation}


class ColourJitter:
    """Changes brightness, contrast and saturation, in random order, all frames of a clip alike.

    Each by a factor drawn evenly from 1 - x to 1 + x, as PySlowFast's ``color_jitter`` draws it; contrast is
    measured from each frame's own mean grey. Deviation: pixels stay uint8 after each of the three, so they
    are cut to 0..255 and to whole levels where PySlowFast goes on in floats.

    Args:
        brightness: greatest change, a share, 0 (none) to 1.
        contrast: the same of contrast.
        saturation: the same of saturation.

    Raises:
        UserError: a share out of its range.
    """

    def __init__(self, *, brightness: float, contrast: float, saturation: float) -> None:
        self.greatest = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
        for name, share in self.greatest.items():
            if not 0 <= share <= 1:
                raise UserError(f"{name}={share}: the greatest change is a share, 0 to 1")

    def apply(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Frames uint8 [T, H, W, 3], which stay as they are -> changed ones."""
        wanted = [name for name, share in self.greatest.items() if share]
        for place in rng.permutation(len(wanted)):
            share = self.greatest[wanted[place]]
            frames = _CHANGES[wanted[place]](frames, rng.uniform(1 - share, 1 + share))
        return frames
