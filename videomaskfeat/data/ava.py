"""Data sets of action detection: clips around key frames, the boxes of persons in them, and what they do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from videomaskfeat.data.augment import Augmentation
from videomaskfeat.data.ava_sources import (
    OpenVideos,
    VideoSource,
    sources_in_folder,
    sources_of_lists,
)
from videomaskfeat.data.ava_views import KeyFrameLoader, KeyFrameViews, check_clip, numbered_boxes
from videomaskfeat.data.batches import ActionBatch, Failure, SharedClips, join_clips
from videomaskfeat.data.boxed_crops import boxes_in_pixels, crop_with_boxes, visible_boxes
from videomaskfeat.data.clips import RecordClips, stack_clips
from videomaskfeat.data.labelled import ClipAugmentation
from videomaskfeat.data.reader import VideoReadError
from videomaskfeat.data.records import Records
from videomaskfeat.data.records_ava import KeyFrames
from videomaskfeat.data.sampling import key_frame_seconds
from videomaskfeat.data.transforms import ClipTransform
from videomaskfeat.errors import UserError

__all__ = [
    "ActionBatch",
    "ActionClips",
    "ActionSample",
    "KeyFrameLoader",
    "KeyFrameViews",
    "VideoSource",
    "sources_in_folder",
    "sources_of_lists",
]


@dataclass(frozen=True)
class ActionSample:
    """Clips around one key frame.

    clips: uint8 [S, T, H, W, C], S samples of the key frame.
    boxes: a float32 [R, 4] for each, x1, y1, x2, y2 in pixels of that clip.
    labels: a bool [R, L] for each.
    index: the key frame; the asked one, or its replacement.
    failures: the key frames that were tried before.
    """

    clips: np.ndarray
    boxes: tuple[np.ndarray, ...]
    labels: tuple[np.ndarray, ...]
    index: int
    failures: tuple[Failure, ...] = ()


class ActionClips(RecordClips[ActionSample, ActionBatch]):
    """Augmented clips around key frames with boxes and labels, to train on.

    Boxes go through the geometry of the crop and are cut to it; those of which it shows too little are left
    out, and a crop without any box is drawn again. Every clip has at least one box.
    """

    def __init__(
        self,
        key_frames: KeyFrames,
        sources: Sequence[VideoSource],
        *,
        frames: int,
        stride: float,
        target_fps: float | None = 30.0,
        transform: ClipTransform,
        augment: ClipAugmentation | None = None,
        visible: float = 0.0,
        seed: int = 0,
        samples_per_video: int = 1,
        tries: int = 10,
        open_videos: int = 4,
    ) -> None:
        """Keep the parts, as `RecordClips` does.

        Args:
            key_frames: with the boxes to train on.
            sources: one for each of ``key_frames.videos``.
            frames: of a clip, T; the key frame is number T / 2.
            stride: from one frame of a clip to the next, in frames at ``target_fps``.
            target_fps: the rate in which ``stride`` counts; None counts it in the video's own frames.
            transform: draws the crop of a clip.
            augment: changes the pixels of a clip, but not their places (so no RandAugment); None leaves them
                alone.
            visible: a box stays where the crop shows more than this share of it, 0..1: 0 keeps and cuts every
                box that the crop meets (the published way), 1 drops those that leave it.
            seed: of everything drawn, at least 0.
            samples_per_video: clips a key frame, each with its own crop.
            tries: key frames to try for one sample, and crops to draw for one clip.
            open_videos: that stay open in each process.

        Raises:
            UserError: a number that cannot be; sources that are not those of the key frames.
        """
        check_clip(key_frames, sources, frames=frames, stride=stride, target_fps=target_fps)
        if not 0 <= visible <= 1:
            raise UserError(f"visible={visible:g} is not between 0 and 1; it is a share of a box")
        if isinstance(augment, Augmentation) and augment.randaugment is not None:
            raise UserError(
                "RandAugment turns and shifts pictures, and boxes do not follow; train a detector without it "
                "(colour and erasing are fine)"
            )
        paths = [sources[video].path for video in key_frames.video.tolist()]
        super().__init__(
            Records.from_paths(paths, None, source=key_frames.source),
            transform=transform,
            seed=seed,
            samples_per_video=samples_per_video,
            tries=tries,
        )
        self.key_frames, self.sources = key_frames, tuple(sources)
        self._frames, self._stride, self._target_fps = frames, stride, target_fps
        self._augment, self._visible = augment, visible
        self._open = OpenVideos(open_videos)

    def collate(self, samples: Sequence[ActionSample], memory: SharedClips | None = None) -> ActionBatch:
        """Join samples; clips are copied once, in a worker straight into its shared memory."""
        boxes = [part for sample in samples for part in sample.boxes]
        return ActionBatch(
            clips=join_clips([sample.clips for sample in samples], memory),
            boxes=numbered_boxes(boxes),
            labels=torch.from_numpy(np.concatenate([part for sample in samples for part in sample.labels])),
            index=torch.tensor([sample.index for sample in samples for _ in sample.clips]),
            failures=tuple(failure for sample in samples for failure in sample.failures),
        )

    def _read(self, index: int, rng: np.random.Generator) -> list[np.ndarray]:
        """The frames around a key frame, once for all its clips; nothing about them is drawn."""
        source = self.sources[self.key_frames.video[index]]
        at = float(self.key_frames.seconds[index]) - source.start_seconds
        try:
            reader = self._open.get(source)
            seconds = key_frame_seconds(
                reader.fps, seconds=at, frames=self._frames, stride=self._stride, target_fps=self._target_fps
            )
            frames = reader.read_at(seconds)
        except VideoReadError:
            self._open.drop(source)
            raise
        return [frames] * self.samples_per_video

    def _sample(
        self,
        frames: list[np.ndarray],
        index: int,
        failures: tuple[Failure, ...],
        rng: np.random.Generator,
    ) -> ActionSample:
        key_frame = self.key_frames[index]
        height, width = frames[0].shape[1:3]
        pixels = boxes_in_pixels(key_frame.boxes, height, width)
        clips, boxes, labels = [], [], []
        for part in frames:
            geometry = crop_with_boxes(
                self._transform,
                pixels,
                height=height,
                width=width,
                rng=rng,
                visible=self._visible,
                tries=self._tries,
            )
            cut, rows = visible_boxes(geometry, pixels, visible=self._visible)
            if not len(rows):  # the crop is smaller than the only boxes: what it shows of them
                cut, rows = visible_boxes(geometry, pixels)
            if self._augment is None:
                clips.append(geometry.apply_clip(part))
            else:
                clips.append(self._augment.apply(part, geometry, rng))
            boxes.append(cut.astype(np.float32))
            labels.append(key_frame.labels[rows])
        return ActionSample(stack_clips(clips), tuple(boxes), tuple(labels), index, failures)

    def _remedy(self) -> str:
        return "check the folder of the videos or frames, and the second at which they start"
