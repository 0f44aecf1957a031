"""Testing: every view of a video from one opening, each frame decoded and resized once."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from videomaskfeat.data.batches import Failure, ViewsBatch, empty_clips
from videomaskfeat.data.loader import check_read_seconds
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
from videomaskfeat.data.workers import READ_SECONDS, LostReadings, WorkerPool, begin_reading, continue_reading
from videomaskfeat.errors import UserError, check_name

__all__ = ["EvaluationViews", "Failure", "VideoViews", "ViewLoader", "ViewsBatch"]

Sampling = Literal["clip", "segments"]
SAMPLINGS: tuple[Sampling, ...] = ("clip", "segments")
_CROPS = {1: (1,), 3: (0, 1, 2)}  # how many -> which, as `UniformCrop` counts them
# The same pictures from every reader; PyAV takes half the time for frames all over a video, because it
# converts to RGB only those that are asked for (benchmarks/bench_views.py).
_READERS = {"auto": "pyav"}


@dataclass(frozen=True)
class VideoViews:
    """All views of one video.

    clips: uint8 [V*S, T, H, W, C], clip v of crop s at v*S + s; none of them where the video failed.
    index: the record.
    label: its class, -1 for none.
    failure: why the video could not be read.
    """

    clips: np.ndarray
    index: int
    label: int
    failure: Failure | None = None


class EvaluationViews(Dataset[VideoViews]):
    """The views of the videos in a list: V clips spread over the time x S crops along the longer side.

    Nothing is drawn, and a video that cannot be read is a `Failure` that nothing stands in for: a score is of
    the videos that were read, and says of how many.
    """

    def __init__(
        self,
        records: Records,
        *,
        frames: int,
        stride: float,
        target_fps: float | None = 30.0,
        short: ShortVideo = "clamp",
        sampling: Sampling = "clip",
        views: int,
        crops: int,
        crop: int,
        short_side: int,
        offset: bool = True,
        reader: str = "auto",
    ) -> None:
        """Keep the protocol.

        Args:
            records: the list.
            frames: of a clip, T.
            stride: from one frame of a clip to the next, in frames at ``target_fps``.
            target_fps: the rate in which ``stride`` counts; None counts it in the video's own frames.
            short: what becomes of a video shorter than a clip: clamp, loop or error (then it is a failure).
            sampling: ``clip`` (runs of frames, as Kinetics is tested) or ``segments`` (the middle frame of
                each of T equal segments, as Something-Something-v2 is; one clip a video, and ``stride``,
                ``target_fps`` and ``short`` play no part).
            views: clips a video, V.
            crops: square cuts of each clip, S: 1 (the centre) or 3 (left, centre, right; of an upright video
                top, centre, bottom).
            crop: pixels of a cut's side.
            short_side: pixels to which a frame's short side is resized before it is cut. The published
                figures are of 256 for 1 crop of 224, and of the crop's own side for 3.
            offset: as in ``clip_indices_view``.
            reader: of video files: auto (here PyAV), decord or pyav.

        Raises:
            UserError: views or crops that do not fit, or pictures where clips have more than one frame.
        """
        if views < 1 or crops not in _CROPS:
            raise UserError(
                f"views={views}, crops={crops}: there must be at least 1 view, and 1 crop (centre) or 3 "
                "(left, centre, right)"
            )
        check_name("sampling", sampling, SAMPLINGS)
        if sampling == "segments" and views > 1:
            raise UserError(
                f"views={views} with sampling=segments: the segments cover the whole video, so there is one "
                "view; take views=1 (more crops are fine), or sampling=clip"
            )
        check_name("short", short, SHORT_VIDEO_POLICIES)
        clip_span(30.0, frames=frames, stride=stride, target_fps=target_fps)  # refuses an empty clip
        check_frames(records, frames)
        self.records = records
        self.views, self.crops = views, crops
        self.frames, self.crop, self.short_side = frames, crop, short_side
        self._stride, self._target_fps, self._short = stride, target_fps, short
        self._sampling, self._offset, self._reader = sampling, offset, reader
        self._cuts = [UniformCrop(crop, short_side, number) for number in _CROPS[crops]]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> VideoViews:
        """All views of a record."""
        return self._view(index, np.empty(self._shape(1), np.uint8))

    def frame_indices(self, num_frames: int, fps: float) -> np.ndarray:
        """The frames of each clip, int64 [V, T].

        Raises:
            ShortVideoError: the video is too short and ``short`` is ``error``.
        """
        if self._sampling == "segments":
            return segment_indices(num_frames, frames=self.frames)[None]
        return np.stack(
            [
                clip_indices_view(
                    num_frames,
                    fps,
                    frames=self.frames,
                    stride=self._stride,
                    view=view,
                    views=self.views,
                    offset=self._offset,
                    target_fps=self._target_fps,
                    short=self._short,
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
        read: list[VideoViews] = []
        failures: list[Failure] = []
        for row in rows:
            # One that fails leaves its place to the next.
            video = self._view(row, joined.numpy()[len(read) * self.views * self.crops :])
            if video.failure is None:
                read.append(video)
            else:
                failures.append(video.failure)
        return ViewsBatch(
            clips=joined[: len(read) * self.views * self.crops],
            index=torch.tensor([video.index for video in read], dtype=torch.int64),
            labels=torch.tensor([video.label for video in read], dtype=torch.int64),
            failures=tuple(failures),
        )

    def _shape(self, videos: int) -> tuple[int, ...]:
        """Of the clips of some videos."""
        return videos * self.views * self.crops, self.frames, self.crop, self.crop, 3

    def _view(self, index: int, clips: np.ndarray) -> VideoViews:
        """All views of a record, in the first V*S of ``clips``; none of them where it cannot be read."""
        record = self.records[index]
        label = -1 if record.label is None else record.label
        try:
            begin_reading(record.path, index)
            with open_video(record.path, _READERS.get(self._reader, self._reader)) as video:
                self._fill(clips[: self.views * self.crops], video)
        except VideoReadError as error:
            return VideoViews(clips[:0], index, label, Failure(index, record.path, error.cause))
        except ShortVideoError as error:
            return VideoViews(clips[:0], index, label, Failure(index, record.path, str(error)))
        return VideoViews(clips[: self.views * self.crops], index, label)

    def _fill(self, clips: np.ndarray, video: VideoReader) -> None:
        """Cut the views of a video, uint8 [V*S, T, crop, crop, C]; each frame is decoded and resized once."""
        indices = self.frame_indices(video.frames, video.fps)  # [V, T]
        clips = clips.reshape(self.views, self.crops, *clips.shape[1:])
        geometries: list[ClipGeometry] = []  # of the crops; they differ in their windows alone
        for number, picture in video.each(np.unique(indices)):
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


class ViewLoader:
    """All views of a list's videos, a few videos a batch, in the list's order.

    Rank r takes rows r, r + world_size, ...: every row is taken exactly once, whatever the number of ranks,
    and ranks may have one batch more or less than others. Iterate as often as you like.
    """

    def __init__(
        self,
        dataset: EvaluationViews,
        *,
        videos_per_batch: int,
        workers: int,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
        prefetch_batches: int = 2,
        read_seconds: float = READ_SECONDS,
    ) -> None:
        """Check the sizes; workers start with each iteration and end with it.

        Args:
            dataset: makes the views of a video.
            videos_per_batch: videos a batch; the last batch may hold fewer.
            workers: processes of this rank; 0 reads videos in the calling process.
            rank: of this process, 0..world_size-1.
            world_size: processes that share the list.
            pin_memory: hand out page-locked batches, for fast copies to a GPU.
            prefetch_batches: batches that each worker makes ahead.
            read_seconds: time that a worker may spend on one video without progress before it is replaced.

        Raises:
            UserError: a number that cannot be.
        """
        for argument, value, least in (("videos_per_batch", videos_per_batch, 1), ("workers", workers, 0)):
            if value < least:
                raise UserError(f"{argument}={value}: must be at least {least}")
        check_read_seconds(read_seconds)
        rows = range(rank, len(dataset), world_size)
        self.dataset = dataset
        self._batches = [
            rows[start : start + videos_per_batch] for start in range(0, len(rows), videos_per_batch)
        ]
        self._options: dict[str, Any] = {
            "workers": workers,
            "ahead": prefetch_batches,
            "read_seconds": read_seconds,
            "pin_memory": pin_memory,
            "lost": LostReadings(),
        }

    def __len__(self) -> int:
        """Batches of this rank."""
        return len(self._batches)

    def __iter__(self) -> Generator[ViewsBatch, None, None]:
        """The batches of this rank.

        Raises:
            UserError: the reader is unknown or not installed.
            RunFailed: worker processes end again and again.
        """
        pool = WorkerPool(
            self.dataset.batch,
            iter(self._batches),
            path_of=lambda reading: self.dataset.records[reading[0]].path,
            **self._options,
        )
        try:
            while (batch := pool.take()) is not None:
                yield batch
        finally:
            pool.close()
