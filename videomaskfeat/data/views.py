"""Testing: every view of a video from one opening, each frame decoded and resized once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from videomaskfeat.data.batches import Failure, ViewsBatch, empty_clips
from videomaskfeat.data.reader import VideoReader, VideoReadError
from videomaskfeat.data.records import Records, check_frames
from videomaskfeat.data.sampling import (
    SHORT_VIDEO_POLICIES,
    ShortVideo,
    ShortVideoError,
    clip_indices_view,
    clip_span,
    segment_indices,
)
from videomaskfeat.data.transforms import ClipGeometry, Rectangle, UniformCrop, resize_frame
from videomaskfeat.data.video import open_video
from videomaskfeat.data.workers import begin_reading, continue_reading
from videomaskfeat.errors import UserError, check_name

Sampling = Literal["clip", "segments"]
SAMPLINGS: tuple[Sampling, ...] = ("clip", "segments")
_CROPS = {1: (1,), 3: (0, 1, 2)}  # how many -> which, as `UniformCrop` counts them
# The same pictures from every reader; PyAV takes half the time for frames all over a video, because it
# converts to RGB only those that are asked for (benchmarks/bench_views.py).
_READERS = {"auto": "pyav"}


@dataclass(eq=False, repr=False)
class EvaluationViews(Dataset[ViewsBatch]):
    """The views of the videos in a list: V clips spread over the time x S crops along the longer side.

    Nothing is drawn, and a video that cannot be read is a `Failure` that nothing stands in for: a score is of
    the videos that were read, and says of how many.

    Attributes:
        records: the list.
        frames: of a clip, T.
        stride: from one frame of a clip to the next, in frames at ``target_fps``.
        target_fps: the rate in which ``stride`` counts; None counts it in the video's own frames.
        short: what becomes of a video shorter than a clip: clamp, loop or error (then it is a failure).
        sampling: ``clip`` (runs of frames, as Kinetics is tested) or ``segments`` (the middle frame of each
            of T equal segments, as Something-Something-v2 is; one clip per video, and ``stride``,
            ``target_fps`` and ``short`` play no part).
        views: clips per video, V.
        crops: square cuts of each clip, S: 1 (the centre) or 3 (left, centre, right; of an upright video top,
            centre, bottom).
        crop: pixels of a cut's side.
        short_side: pixels to which a frame's short side is resized before it is cut. The published figures
            are of 256 for 1 crop of 224, and of the crop's own side for 3.
        reader: of video files: auto (here PyAV), decord or pyav.

    Raises:
        UserError: views or crops that do not fit, or pictures where clips have more than one frame.
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
    crop: int
    short_side: int
    reader: str = "auto"

    def __post_init__(self) -> None:
        if self.views < 1 or self.crops not in _CROPS:
            raise UserError(
                f"views={self.views}, crops={self.crops}: there must be at least 1 view, and 1 crop (centre) "
                "or 3 (left, centre, right)"
            )
        check_name("sampling", self.sampling, SAMPLINGS)
        if self.sampling == "segments" and self.views > 1:
            raise UserError(
                f"views={self.views} with sampling=segments: the segments cover the whole video, so there is "
                "one view; take views=1 (more crops are fine), or sampling=clip"
            )
        check_name("short", self.short, SHORT_VIDEO_POLICIES)
        clip_span(
            30.0, frames=self.frames, stride=self.stride, target_fps=self.target_fps
        )  # an empty clip is refused
        check_frames(self.records, self.frames)
        self._cuts = [UniformCrop(self.crop, self.short_side, number) for number in _CROPS[self.crops]]

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
        return np.stack(
            [
                clip_indices_view(
                    num_frames,
                    fps,
                    frames=self.frames,
                    stride=self.stride,
                    view=view,
                    views=self.views,
                    target_fps=self.target_fps,
                    short=self.short,
                )
                for view in range(self.views)
            ]
        )

    def clips(self, video: VideoReader) -> np.ndarray:
        """The views of any open video, in the list or not: uint8 [V*S, T, crop, crop, C].

        Raises:
            VideoReadError: a frame cannot be decoded.
            ShortVideoError: the video is too short and ``short`` is ``error``.
        """
        clips = np.empty(self._shape(1), np.uint8)
        self._fill(clips, video)
        return clips

    def batch(self, rows: Sequence[int]) -> ViewsBatch:
        """All views of some records, cut straight into the batch's memory (in a worker shared memory)."""
        joined = empty_clips(self._shape(len(rows)))
        views = self.views * self.crops
        index, labels = list[int](), list[int]()
        failures: list[Failure] = []
        for row in rows:
            record, done = self.records[row], len(index) * views
            try:
                begin_reading(record.path, row)
                with open_video(record.path, _READERS.get(self.reader, self.reader)) as video:
                    self._fill(joined.numpy()[done : done + views], video)
            except VideoReadError as error:  # it leaves its place to the next
                failures.append(Failure(row, record.path, error.cause))
            except ShortVideoError as error:
                failures.append(Failure(row, record.path, str(error)))
            else:
                index.append(row)
                labels.append(-1 if record.label is None else record.label)
        return ViewsBatch(
            clips=joined[: len(index) * views],
            index=torch.tensor(index, dtype=torch.int64),
            labels=torch.tensor(labels, dtype=torch.int64),
            failures=tuple(failures),
        )

    def tasks(self, per_batch: int, rank: int, world_size: int) -> list[range]:
        """The rows of each batch of a rank: rank r takes rows r, r + world_size, ..."""
        rows = range(rank, len(self), world_size)
        return [rows[start : start + per_batch] for start in range(0, len(rows), per_batch)]

    def path_of(self, reading: tuple[int, ...]) -> str:
        """The path that a reading is about."""
        return self.records[reading[0]].path

    def _shape(self, videos: int) -> tuple[int, ...]:
        """Of the clips of some videos."""
        return videos * self.views * self.crops, self.frames, self.crop, self.crop, 3

    def _fill(self, clips: np.ndarray, video: VideoReader) -> None:
        """Cut the views of a video, uint8 [V*S, T, crop, crop, C]; each frame is decoded and resized once."""
        indices = self.frame_indices(video.frames, video.fps)  # [V, T]
        clips = clips.reshape(self.views, self.crops, *clips.shape[1:])
        geometries: list[ClipGeometry] = []  # of the crops; they differ in their windows alone
        for number, picture in video.iter_frames(np.unique(indices)):
            continue_reading()
            height, width = picture.shape[:2]
            if not geometries:
                geometries = [cut.sample(height, width) for cut in self._cuts]
            whole = geometries[0].source
            if (height, width) != (whole.height, whole.width):
                others = f"{whole.width}x{whole.height}"
                raise VideoReadError(video.path, f"frame {number} is {width}x{height}, others are {others}")
            if geometries[0].resized != (height, width):
                picture = resize_frame(picture, geometries[0].resized)
            cuts = [picture[_rows_and_columns(geometry.window)] for geometry in geometries]
            for view, place in zip(*np.nonzero(indices == number), strict=True):
                for crop, cut in enumerate(cuts):
                    clips[view, crop, place] = cut


def _rows_and_columns(window: Rectangle) -> tuple[slice, slice]:
    return (
        slice(window.top, window.top + window.height),
        slice(window.left, window.left + window.width),
    )
