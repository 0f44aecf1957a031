"""Datasets of pairs of clips of one video, for methods that compare views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import numpy as np
import torch

from videomaskfeat.data.batches import PairBatch, join_clips
from videomaskfeat.data.clips import ClipSample, MaskDraw, VideoClips, stack_clips
from videomaskfeat.data.operations import RandomColor
from videomaskfeat.data.transforms import ClipTransform
from videomaskfeat.data.uncropped import ClipChange, UncroppedClip
from videomaskfeat.errors import UserError


@dataclass(frozen=True, kw_only=True)
class PairSample(ClipSample):
    """Two clips of one video, each with its own frames and crop.

    Attributes:
        masks: bool [2, t, h, w], True = hidden, or None.
        local: small crops of the frames of the first and the second clip in turn, uint8 [L, T, H', W', C], or
            None; or L uncropped clips.
    """

    masks: np.ndarray | None
    local: np.ndarray | Sequence[UncroppedClip] | None


@dataclass(frozen=True)
class LocalCrops:
    """Number of small crops per video, L, the transform that samples them, and their colors."""

    count: int
    transform: ClipTransform
    color: RandomColor | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"local crops {self.count}: must be at least 1, or leave them out")


@dataclass(eq=False, repr=False)
class PairClips(VideoClips[PairSample, PairBatch]):
    """Two clips of each video in a list, for methods that compare views (BYOL, iBOT); see `VideoClips`.

    Random numbers are used for the frames of both clips, the crop and colors of each, the masks, and the
    local crops, in this order.

    Attributes:
        colors: changes of the colors of the first and of the second clip; None: no change.
        mask: samples the mask of each clip; None: no masks.
        local: local crops; None: no local crops.
    """

    _: KW_ONLY
    samples_per_video: int = field(default=2, init=False)
    colors: tuple[RandomColor | None, RandomColor | None] = (None, None)
    mask: MaskDraw | None = None
    local: LocalCrops | None = None

    def _batch(self, samples: Sequence[PairSample], **common: Any) -> PairBatch:
        masks = [sample.masks for sample in samples if sample.masks is not None]
        local = [sample.local for sample in samples if sample.local is not None]
        return PairBatch(
            mask=torch.from_numpy(np.concatenate(masks)) if masks else None,
            local=join_clips(local) if local else None,  # not in the shared memory of the clips
            **common,
        )

    def _sample(self, frames: list[np.ndarray], index: int, rng: np.random.Generator) -> PairSample:
        clips = [
            self._crop(clip, self.transform, color, rng)
            for clip, color in zip(frames, self.colors, strict=True)
        ]
        masks = None if self.mask is None else stack_clips([self.mask(rng=rng) for _ in clips])
        local = None
        if self.local is not None:
            crops = [
                self._crop(frames[number % len(frames)], self.local.transform, self.local.color, rng)
                for number in range(self.local.count)
            ]
            local = crops if self.uncropped else stack_clips(crops)
        return PairSample(
            clips=clips if self.uncropped else stack_clips(clips), masks=masks, local=local, index=index
        )

    def _crop(
        self,
        frames: np.ndarray,
        transform: ClipTransform,
        color: RandomColor | None,
        rng: np.random.Generator,
    ) -> Any:
        """A crop, or an uncropped clip."""
        geometry = transform.sample(frames.shape[1], frames.shape[2], rng)
        if self.uncropped:
            steps = () if color is None else tuple(color.sample(rng))
            return UncroppedClip.of(frames, ClipChange(geometry=geometry, later_steps=steps))
        clip = geometry.apply_clip(frames)
        return clip if color is None else color.apply(clip, rng)
