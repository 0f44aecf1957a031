"""All that is done to the pixels of a training clip, from whole frames to the erased crop."""

from __future__ import annotations

import numpy as np

from videomaskfeat.data.colour import ColourJitter
from videomaskfeat.data.erasing import RandomErasing
from videomaskfeat.data.randaugment import RandAugment
from videomaskfeat.data.transforms import ClipGeometry


class Augmentation:
    """RandAugment and colour jitter on whole frames, the crop, then erasing: PySlowFast's order.

    A part that is None is left out. All frames of a clip are treated alike.

    Args:
        randaugment: what is drawn anew for each clip.
        colour: changes of colour after that.
        erasing: the box that becomes noise in the finished crop.
    """

    def __init__(
        self,
        *,
        randaugment: RandAugment | None = None,
        colour: ColourJitter | None = None,
        erasing: RandomErasing | None = None,
    ) -> None:
        self.randaugment, self.colour, self.erasing = randaugment, colour, erasing

    def apply(self, frames: np.ndarray, geometry: ClipGeometry, rng: np.random.Generator) -> np.ndarray:
        """Augment and cut a clip.

        Args:
            frames: uint8 [T, H, W, 3], RGB, whole frames as decoded; not changed.
            geometry: the cut, drawn for frames of this size.
            rng: the sample's own generator; draws everything.

        Returns:
            uint8 [T, h, w, 3], memory of its own.
        """
        if self.randaugment is not None:
            frames = self.randaugment.apply(frames, rng)
        if self.colour is not None:
            frames = self.colour.apply(frames, rng)
        clip = geometry.apply_clip(frames)
        if self.erasing is not None:
            self.erasing.apply(clip, rng)
        return clip
