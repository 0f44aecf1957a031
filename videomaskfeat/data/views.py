"""Testing: every view of a video from one opening, each frame decoded and resized once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from videomaskfeat.data.batches import Failure, ViewsBatch, join_clips
from videomaskfeat.data.loader import end_workers, set_up_worker, start_method
from videomaskfeat.data.reader import VideoReader, VideoReadError
from videomaskfeat.data.records import Records
from videomaskfeat.data.sampling import (
    SHORT_VIDEO_POLICIES,
    ShortVideo,
    ShortVideoError,
    clip_indices_view,
    clip_span,
    segment_indices,
)
from videomaskfeat.data.transforms import UniformCrop, resize_frame
from videomaskfeat.data.video import open_video
from videomaskfeat.errors import UserError, nearest

__all__ = ["EvaluationViews", "Failure", "VideoViews", "ViewLoader", "ViewsBatch"]

Sampling = Literal["clip", "segments"]
SAMPLINGS: tuple[Sampling, ...] = ("clip", "segments")
_CROPS = {1: (1,), 3: (0, 1, 2)}  # how many -> which, as `UniformCrop` counts them
_READ_AT_ONCE, _READ_BYTES = 64, 512 << 20  # decoded frames held at a time


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
            reader: of video files: auto, decord or pyav.

        Raises:
            UserError: views or crops that do not fit.
        """
        if views < 1 or crops not in _CROPS:
            raise UserError(
                f"views={views}, crops={crops}: there must be at least 1 view, and 1 crop (centre) or 3 "
                "(left, centre, right)"
            )
        if sampling not in SAMPLINGS:
            raise UserError(
                f"sampling={sampling!r} is not one of {', '.join(SAMPLINGS)}{nearest(sampling, SAMPLINGS)}"
            )
        if sampling == "segments" and views > 1:
            raise UserError(
                f"views={views} with sampling=segments: the segments cover the whole video, so there is one "
                "view; take views=1 (more crops are fine), or sampling=clip"
            )
        if short not in SHORT_VIDEO_POLICIES:
            raise UserError(f"short={short!r} is not one of {', '.join(SHORT_VIDEO_POLICIES)}")
        clip_span(30.0, frames=frames, stride=stride, target_fps=target_fps)  # refuses an empty clip
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
        record = self.records[index]
        label = -1 if record.label is None else record.label
        try:
            with open_video(record.path, self._reader) as video:
                return VideoViews(self.clips(video), index, label)
        except VideoReadError as error:
            cause = error.cause
        except ShortVideoError as error:
            cause = str(error)
        clips = np.empty((0, self.frames, self.crop, self.crop, 3), np.uint8)
        return VideoViews(clips, index, label, Failure(index, record.path, cause))

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
        indices = self.frame_indices(video.frames, video.fps)  # [V, T]
        clips = np.empty((self.views, self.crops, self.frames, self.crop, self.crop, 3), np.uint8)
        for number, picture in _read_each(video, np.unique(indices)):
            places = np.argwhere(indices == number)
            geometries = [cut.sample(*picture.shape[:2]) for cut in self._cuts]
            # The crops differ in their windows alone.
            if geometries[0].resized != picture.shape[:2]:
                picture = resize_frame(picture, geometries[0].resized)
            for crop, geometry in enumerate(geometries):
                window = geometry.window
                cut = picture[window.top :, window.left :][: window.height, : window.width]
                for view, place in places:
                    clips[view, crop, place] = cut
        return clips.reshape(-1, *clips.shape[2:])


def _read_each(video: VideoReader, wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The frames ``wanted`` (ascending), one by one: (number, uint8 [H, W, C]).

    They are read at once, unless there are many and large ones: then the first tells how large they are.
    Decoding goes on where it stopped (in PyAV, from the key frame before).
    """
    step = len(wanted) if len(wanted) <= _READ_AT_ONCE else 1
    start = 0
    while start < len(wanted):
        numbers = wanted[start : start + step]
        frames = video.read(numbers)
        yield from zip(numbers.tolist(), frames, strict=True)
        start += step
        step = max(_READ_BYTES // frames[0].nbytes, 1)


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

        Raises:
            UserError: a number that cannot be.
        """
        for argument, value, least in (("videos_per_batch", videos_per_batch, 1), ("workers", workers, 0)):
            if value < least:
                raise UserError(f"{argument}={value}: must be at least {least}")
        rows = range(rank, len(dataset), world_size)
        self.dataset = dataset
        self._batches = [
            rows[start : start + videos_per_batch] for start in range(0, len(rows), videos_per_batch)
        ]
        self._loader: DataLoader[ViewsBatch | UserError] = DataLoader(
            _ViewsMaker(dataset),
            batch_size=None,  # the sampler gives the rows of whole batches
            sampler=self._batches,
            num_workers=workers,
            prefetch_factor=prefetch_batches if workers else None,
            pin_memory=pin_memory and torch.cuda.is_available(),
            worker_init_fn=set_up_worker,
            multiprocessing_context=start_method() if workers else None,
            # Without a generator of its own, it would draw from torch's global one at every start.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        """Batches of this rank."""
        return len(self._batches)

    def __iter__(self) -> Iterator[ViewsBatch]:
        """The batches of this rank.

        Raises:
            UserError: the reader is unknown or not installed.
        """
        stream = iter(self._loader)
        try:
            for result in stream:
                if isinstance(result, UserError):
                    raise result
                yield result
        finally:
            end_workers(stream)


class _ViewsMaker(Dataset["ViewsBatch | UserError"]):
    """Makes a whole batch from its rows; a user's mistake comes back as a value, as in `ClipLoader`."""

    def __init__(self, dataset: EvaluationViews) -> None:
        self._dataset = dataset

    def __getitem__(self, rows: Sequence[int]) -> ViewsBatch | UserError:
        try:
            return collate([self._dataset[row] for row in rows])
        except UserError as error:
            return error


def collate(videos: Sequence[VideoViews]) -> ViewsBatch:
    """Join the videos that could be read; clips are copied once, in a worker straight into shared memory."""
    read = [video for video in videos if video.failure is None]
    return ViewsBatch(
        clips=join_clips([video.clips for video in videos]),
        index=torch.tensor([video.index for video in read], dtype=torch.int64),
        labels=torch.tensor([video.label for video in read], dtype=torch.int64),
        failures=tuple(video.failure for video in videos if video.failure is not None),
    )
