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
from videomaskfeat.data.readers_timed import TimedReader, check_size
from videomaskfeat.data.records import Records
from videomaskfeat.data.records_ava import KeyFrames
from videomaskfeat.data.sampling import key_frame_seconds
from videomaskfeat.data.transforms import ClipGeometry, ClipTransform
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

    unit = "key frame"

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

    def _load(self, index: int, failures: tuple[Failure, ...], rng: np.random.Generator) -> ActionSample:
        source = self.sources[self.key_frames.video[index]]
        key_frame = self.key_frames[index]
        try:
            reader = self._open.get(source)
            seconds = key_frame_seconds(
                reader.fps if self._target_fps is None else self._target_fps,
                seconds=key_frame.seconds - source.start_seconds,
                frames=self._frames,
                stride=self._stride,
                target_fps=self._target_fps,
            )
            pixels, geometries, clips = self._clips(reader, seconds, key_frame.boxes, rng)
        except VideoReadError:
            self._open.drop(source)
            raise
        boxes, labels = [], []
        for geometry in geometries:
            cut, rows = visible_boxes(geometry, pixels, visible=self._visible)
            if not len(rows):  # the crop is smaller than the only boxes: what it shows of them
                cut, rows = visible_boxes(geometry, pixels)
            boxes.append(cut.astype(np.float32))
            labels.append(key_frame.labels[rows])
        return ActionSample(stack_clips(clips), tuple(boxes), tuple(labels), index, failures)

    def _clips(
        self, reader: TimedReader, seconds: np.ndarray, boxes: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, list[ClipGeometry], list[np.ndarray]]:
        """The boxes in pixels of the frame, float64 [R, 4], and each crop and its clip uint8 [T, h, w, C]."""
        if self._augment is not None:
            frames = reader.read_at(seconds)
            pixels, geometries = self._crops(frames[0], boxes, rng)
            return pixels, geometries, [self._augment.apply(frames, crop, rng) for crop in geometries]
        geometries, clips = [], []
        # Each picture is cut as it comes: to collect whole frames in fresh memory takes as long as decoding.
        for places, picture in reader.each_at(seconds):
            if not geometries:
                size = picture.shape[:2]
                pixels, geometries = self._crops(picture, boxes, rng)
                clips = [np.empty((len(seconds), *crop.size, 3), np.uint8) for crop in geometries]
            check_size(reader.path, picture, size)
            for crop, clip in zip(geometries, clips, strict=True):
                clip[places] = crop.apply_clip(picture[None])
        return pixels, geometries, clips

    def _crops(
        self, picture: np.ndarray, boxes: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, list[ClipGeometry]]:
        """The boxes in pixels of a frame, and a crop that shows some of them for each clip."""
        height, width = picture.shape[:2]
        pixels = boxes_in_pixels(boxes, height, width)
        return pixels, [
            crop_with_boxes(
                self._transform,
                pixels,
                height=height,
                width=width,
                rng=rng,
                visible=self._visible,
                tries=self._tries,
            )
            for _ in range(self.samples_per_video)
        ]

    def _remedy(self) -> str:
        return "check the folder of the videos or frames, and the second at which they start"
