"""Dataset of test views: a video is opened once, and each frame is decoded and resized once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from videomaskfeat.data.batches import Failure, ViewsBatch, empty_clips
from videomaskfeat.data.memory import VideoMemory
from videomaskfeat.data.reader import VideoReader, VideoReadError
from videomaskfeat.data.records import Records, check_frames
from videomaskfeat.data.sampling import (
    SHORT_VIDEO_POLICIES,
    ShortVideo,
    ShortVideoError,
    check_clip,
    clip_indices_view,
    segment_indices,
)
from videomaskfeat.data.transforms import ClipGeometry, Size, resize_frame, sides_of, uniform_crops
from videomaskfeat.data.video import open_from
from videomaskfeat.data.workers import begin_reading, continue_reading
from videomaskfeat.errors import UserError, check_name

Sampling = Literal["clip", "segments"]
SAMPLINGS: tuple[Sampling, ...] = ("clip", "segments")
# All readers return the same frames; PyAV is twice as fast for frames all over a video, since it converts
# only these to RGB (benchmarks/bench_views.py).
_READERS = {"auto": "pyav"}


@dataclass(eq=False, repr=False)
class EvaluationViews(Dataset[ViewsBatch]):
    """The views of the videos in a list: V evenly spaced clips x S crops along the longer side.

    There is no randomness. A video that cannot be read is a `Failure` and has no replacement.

    Attributes:
        records: the list.
        frames: frames per clip, T.
        stride: frame stride, in frames at ``target_fps``.
        target_fps: frame rate for ``stride``; None: the video's own.
        short: policy for videos shorter than a clip: clamp, loop or error (the video is a failure).
        sampling: ``clip`` (frames at a stride, as for Kinetics) or ``segments`` (the middle frame of each of
            T equal segments, as for Something-Something-v2; there is one clip per video, and ``stride``,
            ``target_fps`` and ``short`` have no effect).
        views: clips per video, V.
        crops: crops per clip, S: 1 (center) or 3 (left, center, right; top, center, bottom if the
            video is upright).
        crop: side of a crop, or its height and width, in pixels.
        short_side: length in pixels of the resized short side. Published results use 256 for 1 crop of 224,
            and the side of the crop for 3 crops.
        reader: reader of video files, see `open_video`; auto is PyAV.
        memory: decoded videos, which are not read from their files.

    Raises:
        UserError: views or crops are invalid, or clips of several frames are requested from pictures.
    """

    records: Records
    _: KW_ONLY
    frames: int
    stride: float
    target_fps: float | None = 30.0
    short: ShortVideo = "clamp"
    sampling: Sampling = "clip"
    views: int
    crops: int
    crop: Size
    short_side: int
    reader: str = "auto"
    memory: VideoMemory | None = None

    def __post_init__(self) -> None:
        if self.views < 1 or self.crops not in (1, 3):
            raise UserError(
                f"views={self.views}, crops={self.crops}: there must be at least 1 view, and 1 crop (center) "
                "or 3 (left, center, right)"
            )
        check_name("sampling", self.sampling, SAMPLINGS)
        if self.sampling == "segments" and self.views > 1:
            raise UserError(
                f"views={self.views} with sampling=segments: the segments cover the whole video, so there is "
                "one view; use views=1 (crops may be 3), or sampling=clip"
            )
        check_name("short", self.short, SHORT_VIDEO_POLICIES)
        check_clip(self.frames, self.stride)
        check_frames(self.records, self.frames)
        self._crops = uniform_crops(self.crop, self.short_side, self.crops)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> ViewsBatch:
        """All views of a record."""
        return self.batch([index])

    def frame_indices(self, num_frames: int, fps: float) -> np.ndarray:
        """The frames of each clip, int64 [V, T].

        Raises:
            ShortVideoError: the video is too short and ``short`` is ``error``.
        """
        if self.sampling == "segments":
            return segment_indices(num_frames, frames=self.frames)[None]
        sample_view = partial(
            clip_indices_view,
            num_frames,
            fps,
            frames=self.frames,
            stride=self.stride,
            views=self.views,
            target_fps=self.target_fps,
            short=self.short,
        )
        return np.stack([sample_view(view=view) for view in range(self.views)])

    def clips(self, video: VideoReader) -> np.ndarray:
        """The views of an open video, which need not be in the list: uint8 [V*S, T, crop, crop, C].

        Raises:
            VideoReadError: a frame cannot be decoded.
            ShortVideoError: the video is too short and ``short`` is ``error``.
        """
        clips = np.empty(self._shape(1), np.uint8)
        self._fill(clips, video)
        return clips

    def batch(self, rows: Sequence[int]) -> ViewsBatch:
        """All views of several records, written directly into the memory of the batch."""
        clips = empty_clips(self._shape(len(rows)))
        views = self.views * self.crops
        index, labels = list[int](), list[int]()
        failures: list[Failure] = []
        for row in rows:
            record, start = self.records[row], len(index) * views
            try:
                begin_reading(record.path, row)
                with open_from(self.memory, record.path, _READERS.get(self.reader, self.reader)) as video:
                    self._fill(clips.numpy()[start : start + views], video)
            except VideoReadError as error:  # the next video overwrites its clips
                failures.append(Failure(row, record.path, error.cause))
            except ShortVideoError as error:
                failures.append(Failure(row, record.path, str(error)))
            else:
                index.append(row)
                labels.append(-1 if record.label is None else record.label)
        return ViewsBatch(
            clips=clips[: len(index) * views],
            index=torch.tensor(index, dtype=torch.int64),
            labels=torch.tensor(labels, dtype=torch.int64),
            failures=tuple(failures),
        )

    def tasks(self, per_batch: int, rank: int, world_size: int) -> list[range]:
        """The rows of each batch of a rank: rank r reads rows r, r + world_size, ..."""
        rows = range(rank, len(self), world_size)
        return [rows[start : start + per_batch] for start in range(0, len(rows), per_batch)]

    def path_of(self, reading: tuple[int, ...]) -> str:
        """The path of a reading."""
        return self.records[reading[0]].path

    def _shape(self, videos: int) -> tuple[int, ...]:
        return videos * self.views * self.crops, self.frames, *sides_of(self.crop), 3

    def _fill(self, clips: np.ndarray, video: VideoReader) -> None:
        """Write the views of a video, uint8 [V*S, T, crop, crop, C]."""
        indices = self.frame_indices(video.frames, video.fps)  # [V, T]
        clips = clips.reshape(self.views, self.crops, *clips.shape[1:])
        geometries: list[ClipGeometry] = []  # of the crops; only their windows differ
        for number, frame in video.iter_frames(np.unique(indices)):
            continue_reading()
            height, width = frame.shape[:2]
            if not geometries:
                geometries = [crop.sample(height, width) for crop in self._crops]
            source = geometries[0].source
            if (height, width) != (source.height, source.width):
                others = f"{source.width}x{source.height}"
                raise VideoReadError(video.path, f"frame {number} is {width}x{height}, others are {others}")
            if geometries[0].resized != (height, width):
                frame = resize_frame(frame, geometries[0].resized)
            for view, position in zip(*np.nonzero(indices == number), strict=True):
                for crop, geometry in enumerate(geometries):
                    clips[view, crop, position] = frame[geometry.window.slices]
