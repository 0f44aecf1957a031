"""Pairs: two random clips of each video, perhaps masked, and small local crops of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from videomaskfeat.data.batches import Failure, PairBatch, SharedClips, join_clips
from videomaskfeat.data.clips import FrameSampler, MaskDraw, VideoClips, stack_clips
from videomaskfeat.data.colour import RandomColour
from videomaskfeat.data.records import Records
from videomaskfeat.data.transforms import ClipTransform
from videomaskfeat.errors import UserError


@dataclass(frozen=True)
class PairSample:
    """Two clips of one video.

    clips: uint8 [2, T, H, W, C], each with its own frames and crop.
    masks: bool [2, t, h, w], True = hidden, or None.
    local: uint8 [L, T, H', W', C], small crops of the same frames, by turns of the first and the second clip;
        or None.
    index: the record they come from; the asked one, or its replacement.
    failures: the records that were tried before.
    """

    clips: np.ndarray
    masks: np.ndarray | None
    local: np.ndarray | None
    index: int
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True)
class LocalCrops:
    """How many small crops a video gives besides its two clips, and how they are cut.

    Attributes:
        count: crops a video, L.
        transform: draws the crop of each; smaller than the clips'.
    """

    count: int
    transform: ClipTransform

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"local crops {self.count}: must be at least 1, or leave them out")


class PairClips(VideoClips[PairSample, PairBatch]):
    """Two clips of each video in a list, for methods that compare views (BYOL, iBOT).

    A sample is the same whichever worker or rank makes it: its own generator draws the frames of both clips,
    then crop and colours of each, then the masks, then the local crops.
    """

    def __init__(
        self,
        records: Records,
        *,
        sampler: FrameSampler,
        transform: ClipTransform,
        colour: RandomColour | None = None,
        mask: MaskDraw | None = None,
        local: LocalCrops | None = None,
        reader: str = "auto",
        seed: int = 0,
        tries: int = 10,
    ) -> None:
        """Keep the parts, as `VideoClips` does.

        Args:
            records, sampler, transform, reader, seed, tries: see `VideoClips`.
            colour: changes the colours of a finished crop; None leaves them alone.
            mask: draws the mask of a clip, each its own; None: nothing is hidden.
            local: the small crops; None: none.

        Raises:
            UserError: a number that cannot be.
        """
        super().__init__(
            records,
            sampler=sampler,
            transform=transform,
            reader=reader,
            seed=seed,
            samples_per_video=2,
            tries=tries,
        )
        self._colour, self._mask, self._local = colour, mask, local

    def collate(self, samples: Sequence[PairSample], memory: SharedClips | None = None) -> PairBatch:
        """Join samples; clips are copied once, in a worker straight into its shared memory."""
        masks = [sample.masks for sample in samples if sample.masks is not None]
        local = [sample.local for sample in samples if sample.local is not None]
        return PairBatch(
            clips=join_clips([sample.clips for sample in samples], memory),
            mask=torch.from_numpy(np.concatenate(masks)) if masks else None,
            local=join_clips(local) if local else None,  # in memory of its own, which nothing is written over
            index=torch.tensor([sample.index for sample in samples for _ in sample.clips]),
            failures=tuple(failure for sample in samples for failure in sample.failures),
        )

    def _sample(
        self,
        frames: list[np.ndarray],
        index: int,
        failures: tuple[Failure, ...],
        rng: np.random.Generator,
    ) -> PairSample:
        clips = [self._cut(part, self._transform, rng) for part in frames]
        masks = None if self._mask is None else stack_clips([self._mask(rng=rng) for _ in clips])
        local = None
        if self._local is not None:
            turns = [frames[number % len(frames)] for number in range(self._local.count)]
            local = stack_clips([self._cut(part, self._local.transform, rng) for part in turns])
        return PairSample(stack_clips(clips), masks, local, index, failures)

    def _cut(self, frames: np.ndarray, transform: ClipTransform, rng: np.random.Generator) -> np.ndarray:
        """A random crop of whole frames uint8 [T, H, W, C], its colours changed."""
        clip = transform.sample(frames.shape[1], frames.shape[2], rng).apply_clip(frames)
        return clip if self._colour is None else self._colour.apply(clip, rng)
