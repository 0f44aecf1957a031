"""Clips that are cropped and augmented on the device (``data.augment_on=device``).

A worker decodes a clip and draws its random changes from the generator of the sample, as for clips that it
changes itself. The frames cross to the device as uint8, with the parameters of the changes, which are the
same as in the worker. Random erasing is the exception: the device draws the noise of the erased box. If a
sample has several clips (``clip.samples_per_video``), the clips after an erased one therefore have other
random numbers, from the same distribution. A resumed run draws the same parameters and the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from videomaskfeat.data.clips import ClipAugmentation, RecordClips, VideoClips
from videomaskfeat.data.operations import Step
from videomaskfeat.data.tensor_operations import RESAMPLING, TENSOR_OPERATIONS, crop_frames, erase
from videomaskfeat.data.transforms import ClipGeometry, Rectangle
from videomaskfeat.errors import UserError


@dataclass(frozen=True)
class Erasure:
    """A box of a clip that is filled with normal noise; means and stds are in levels, one or per channel."""

    box: Rectangle
    means: tuple[float, ...]
    stds: tuple[float, ...]
    seed: int


@dataclass(frozen=True, kw_only=True)
class ClipChange:
    """The crop of a clip and its random augmentations, in the order in which they are applied.

    Attributes:
        steps: operations on whole frames.
        geometry: the crop.
        later_steps: operations on the crop.
        erasure: the erased box; None: nothing is erased.
        interpolation: bicubic or bilinear, for rotations, shears and translations.
    """

    geometry: ClipGeometry
    steps: tuple[Step, ...] = ()
    later_steps: tuple[Step, ...] = ()
    erasure: Erasure | None = None
    interpolation: str = "bicubic"

    def apply(self, frames: Tensor) -> Tensor:
        """Change frames uint8 [T, H, W, 3] -> clip uint8 [T, h, w, 3] on their device."""
        for step in self.steps:
            frames = self._change(frames, step)
        clip = crop_frames(frames, self.geometry)
        for step in self.later_steps:
            clip = self._change(clip, step)
        if self.erasure is not None:
            one = self.erasure
            erase(clip, one.box, means=one.means, stds=one.stds, seed=one.seed)
        return clip

    def _change(self, frames: Tensor, step: Step) -> Tensor:
        arguments: list[float | str] = [] if step.argument is None else [step.argument]
        if step.name in RESAMPLING:
            arguments.append(self.interpolation)
        return TENSOR_OPERATIONS[step.name](frames, *arguments)


class DrawnAugmentation(ClipAugmentation, Protocol):
    """An augmentation that another device can apply, too."""

    def draw(self, geometry: ClipGeometry, rng: np.random.Generator) -> ClipChange:
        """Draw the augmentations of a clip, with the random numbers of ``apply`` except those of noise."""
        ...


@dataclass(frozen=True, eq=False)
class UncroppedClip:
    """Frames uint8 [T, H, W, 3] of a video and their changes; the frames may be a view."""

    frames: np.ndarray
    change: ClipChange

    @classmethod
    def draw(
        cls,
        frames: np.ndarray,
        geometry: ClipGeometry,
        augment: DrawnAugmentation | None,
        rng: np.random.Generator,
    ) -> UncroppedClip:
        """Frames with their crop and the random changes of an augmentation."""
        return cls.of(frames, augment.draw(geometry, rng) if augment else ClipChange(geometry=geometry))

    @classmethod
    def of(cls, frames: np.ndarray, change: ClipChange) -> UncroppedClip:
        """Leave out the pixels that the crop does not use, unless an operation on whole frames reads them."""
        one = change.geometry
        source = one.source
        if not change.steps:
            rows, columns = source.slices
            frames = frames[:, rows, columns]
            source = Rectangle(0, 0, source.height, source.width)
        # Of this class itself, since the geometry of a measured data set has a clock.
        geometry = ClipGeometry(source, one.resized, one.window, one.flip)
        return cls(frames, replace(change, geometry=geometry))


@dataclass(frozen=True)
class UncroppedClips:
    """Uncropped clips of a batch; `to` returns the changed clips.

    Attributes:
        pixels: uint8 [bytes], the frames of one clip after the other.
        shapes: (T, H, W, 3) of each.
        changes: of each.
    """

    pixels: Tensor
    shapes: tuple[tuple[int, ...], ...]
    changes: tuple[ClipChange, ...]

    @classmethod
    def join(
        cls, clips: Sequence[UncroppedClip], allocate: Callable[[tuple[int, ...]], Tensor]
    ) -> UncroppedClips:
        """Copy the frames into one tensor; ``allocate`` returns memory of a shape."""
        pixels = allocate((sum(clip.frames.size for clip in clips),))
        rest = pixels.numpy()
        for clip in clips:
            own, rest = np.split(rest, [clip.frames.size])
            own.reshape(clip.frames.shape)[:] = clip.frames
        return cls(pixels, tuple(clip.frames.shape for clip in clips), tuple(clip.change for clip in clips))

    def __len__(self) -> int:
        return len(self.shapes)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Tensor:
        """Copy the frames to a device, and change them there: clips uint8 [B, T, h, w, 3]."""
        return replace(self, pixels=self.pixels.to(device, non_blocking=non_blocking)).apply()

    @torch.no_grad()
    def apply(self) -> Tensor:
        """The changed clips uint8 [B, T, h, w, 3], on the device of the frames."""
        clips, start = [], 0
        for shape, change in zip(self.shapes, self.changes, strict=True):
            size = int(np.prod(shape))
            clips.append(change.apply(self.pixels[start : start + size].view(shape)))
            start += size
        return torch.stack(clips)

    def pin_memory(self) -> UncroppedClips:
        """With page-locked frames."""
        return replace(self, pixels=self.pixels.pin_memory())

    def is_shared(self) -> bool:
        """Whether the frames are in the shared memory of a worker."""
        return self.pixels.is_shared()

    def clone(self) -> UncroppedClips:
        """With frames in memory of their own."""
        return replace(self, pixels=self.pixels.clone())


def crop_later(frames: Sequence[np.ndarray], geometries: Sequence[ClipGeometry]) -> list[UncroppedClip]:
    """Clips whose only change is the crop."""
    return [
        UncroppedClip.of(one, ClipChange(geometry=geometry))
        for one, geometry in zip(frames, geometries, strict=True)
    ]


def leave_uncropped(dataset: RecordClips[Any, Any]) -> None:
    """Let a data set make batches of `UncroppedClips`.

    Raises:
        UserError: it cannot.
    """
    if not isinstance(dataset, VideoClips):
        raise UserError(
            f"data.augment_on=device: clips of {type(dataset).__name__} are cropped by their workers; set "
            "data.augment_on=workers"
        )
    dataset.uncropped = True
