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


class RandomColour:
    """Colour jitter for some clips, and grey for some: what makes two views of a video differ in colour.

    BYOL's colours (arXiv 2006.07733, appendix B) but for hue, blur and solarisation, of which there are none
    here.

    Args:
        jitter: what changes.
        chance: of a jitter at all, 0..1.
        grey: chance that a clip loses its colours, 0..1.

    Raises:
        UserError: a chance out of its range.
    """

    def __init__(self, jitter: ColourJitter, *, chance: float = 0.8, grey: float = 0.2) -> None:
        for name, value in (("chance", chance), ("grey", grey)):
            if not 0 <= value <= 1:
                raise UserError(f"{name}={value}: a chance lies in 0..1")
        self.jitter, self.chance, self.grey = jitter, chance, grey

    def apply(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Frames uint8 [T, H, W, 3], which stay as they are -> changed ones, or themselves."""
        if rng.random() < self.chance:
            frames = self.jitter.apply(frames, rng)
        return saturation(frames, 0.0) if rng.random() < self.grey else frames
