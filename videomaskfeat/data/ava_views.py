"""Testing on key frames: every box of each of them, at one scale or several, as it is and mirrored."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from videomaskfeat.data.ava_sources import OpenVideos, VideoSource
from videomaskfeat.data.batches import BoxedClips, Failure, KeyFrameBatch, empty_clips
from videomaskfeat.data.boxed_crops import border_boxes, boxes_in_pixels
from videomaskfeat.data.key_clips import sample_geometry
from videomaskfeat.data.loader import check_read_seconds
from videomaskfeat.data.reader import VideoReadError
from videomaskfeat.data.readers_timed import TimedReader, check_size
from videomaskfeat.data.reading import begin_reading, continue_reading
from videomaskfeat.data.records_ava import KeyFrames
from videomaskfeat.data.sampling import clip_span, key_frame_seconds
from videomaskfeat.data.transforms import ClipGeometry, UniformCrop, WholeFrame
from videomaskfeat.data.workers import READ_SECONDS, LostReadings, WorkerPool
from videomaskfeat.errors import UserError, nearest

Area = Literal["whole", "centre"]
AREAS: tuple[Area, ...] = ("whole", "centre")


class KeyFrameViews(Dataset[KeyFrameBatch]):
    """The views of key frames: each scale, and its mirror image after it where that is asked for.

    Nothing is drawn, every box of a key frame is there in every view, and a key frame that cannot be read is
    a `Failure` that nothing stands in for: a score is of the key frames that were read, and says of how many.
    A frame is decoded once, whatever the number of boxes, views and neighbouring clips that show it.
    """

    def __init__(
        self,
        key_frames: KeyFrames,
        sources: Sequence[VideoSource],
        *,
        frames: int,
        stride: float,
        target_fps: float | None = 30.0,
        area: Area = "whole",
        short_sides: Sequence[int] = (224,),
        multiple: int = 4,
        flip: bool = False,
        open_videos: int = 2,
    ) -> None:
        """Keep the protocol.

        Args:
            key_frames: with the boxes to test on.
            sources: one for each of ``key_frames.videos``.
            frames: of a clip, T; the key frame is number T / 2.
            stride: from one frame of a clip to the next, in frames at ``target_fps``.
            target_fps: the rate in which ``stride`` counts; None counts it in the video's own frames.
            area: ``whole`` (the frame in its aspect) or ``centre`` (a square of the short side's length;
                boxes are cut to it, and one that lies outside becomes a pixel at the border).
            short_sides: pixels to which a frame's short side is resized, one for each scale.
            multiple: of which the sides of whole frames become multiples, see `WholeFrame`.
            flip: whether each scale is followed by its mirror image.
            open_videos: that stay open in each process.

        Raises:
            UserError: a number or word that cannot be; sources that are not those of the key frames.
        """
        check_clip(key_frames, sources, frames=frames, stride=stride, target_fps=target_fps)
        if area not in AREAS:
            raise UserError(f"area={area!r} is not one of {', '.join(AREAS)}{nearest(area, AREAS)}")
        if not short_sides or len(set(short_sides)) < len(short_sides):
            raise UserError(
                f"short_sides={list(short_sides)}: must be one length in pixels or several different ones"
            )
        self.key_frames, self.sources = key_frames, tuple(sources)
        self.flip, self.scales = flip, len(short_sides)
        self._frames, self._stride, self._target_fps = frames, stride, target_fps
        self._cuts = [
            WholeFrame(side, multiple) if area == "whole" else UniformCrop(side, side) for side in short_sides
        ]
        self._open = OpenVideos(open_videos)

    def __len__(self) -> int:
        return len(self.key_frames)

    def __getitem__(self, index: int) -> KeyFrameBatch:
        """The views of one key frame."""
        return self.batch([index])

    def batch(self, indices: Sequence[int]) -> KeyFrameBatch:
        """The views of some key frames of one video, cut straight into memory (in a worker shared memory).

        Args:
            indices: key frames, numbers from 0, at least one.

        Raises:
            UserError: they are not of one video.
        """
        videos = {int(self.key_frames.video[index]) for index in indices}
        if len(videos) != 1:
            raise UserError(f"key frames {list(indices)} are of {len(videos)} videos; a batch is of one")
        source = self.sources[videos.pop()]
        read, views, failures = self._read(source, list(indices))
        rows = [np.arange(*self.key_frames.starts[index : index + 2]) for index in read]
        return KeyFrameBatch(
            views=views,
            index=torch.tensor(read, dtype=torch.int64),
            rows=torch.from_numpy(np.concatenate([np.empty(0, np.int64), *rows])),
            failures=tuple(failures),
        )

    def batches(self, size: int) -> list[list[int]]:
        """All key frames in their order, in runs of one video, of so many at most."""
        numbers = self.key_frames.video
        ends = [*(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
        runs, start = [], 0
        for end in ends:
            runs += [list(range(first, min(first + size, end))) for first in range(start, end, size)]
            start = end
        return runs

    def _read(
        self, source: VideoSource, indices: list[int]
    ) -> tuple[list[int], tuple[BoxedClips, ...], list[Failure]]:
        """The key frames that can be read, all their views, and the others."""
        try:
            # Of a video, since one that stops a worker would otherwise do so for hundreds of key frames.
            begin_reading(source.path, int(self.key_frames.video[indices[0]]))
            return indices, self._views(self._open.get(source), source, indices), []
        except VideoReadError as error:
            self._open.drop(source)
            if len(indices) == 1:
                return [], (), [Failure(indices[0], source.path, error.cause)]
        # One of them spoils the pass through the video: each by itself.
        read: list[int] = []
        parts: list[tuple[BoxedClips, ...]] = []
        failures: list[Failure] = []
        for index in indices:
            own, views, failed = self._read(source, [index])
            read += own
            parts += [views] if own else []
            failures += failed
        return read, _joined(parts), failures

    def _views(self, reader: TimedReader, source: VideoSource, indices: list[int]) -> tuple[BoxedClips, ...]:
        """All views of some key frames, from one pass through the video."""
        seconds = np.stack(
            [
                key_frame_seconds(
                    reader.fps if self._target_fps is None else self._target_fps,
                    seconds=float(self.key_frames.seconds[index]) - source.start_seconds,
                    frames=self._frames,
                    stride=self._stride,
                    target_fps=self._target_fps,
                )
                for index in indices
            ]
        )  # [B, T]
        geometries: list[ClipGeometry] = []
        clips: list[Tensor] = []
        for places, picture in reader.each_at(seconds.reshape(-1)):
            continue_reading()
            if not geometries:
                geometries = [sample_geometry(cut, source.path, picture.shape[:2]) for cut in self._cuts]
                clips = [empty_clips((seconds.size, *geometry.size, 3)) for geometry in geometries]
            frame = geometries[0].source
            check_size(source.path, picture, (frame.height, frame.width))
            for geometry, clip in zip(geometries, clips, strict=True):
                clip.numpy()[places] = geometry.apply_clip(picture[None])
        views = []
        for geometry, clip in zip(geometries, clips, strict=True):
            shaped = clip.view(len(indices), self._frames, *clip.shape[1:])  # [B, T, H, W, C]
            frame = geometry.source
            boxes = [
                border_boxes(
                    geometry, boxes_in_pixels(self.key_frames[index].boxes, frame.height, frame.width)
                )
                for index in indices
            ]
            views.append(BoxedClips(shaped, numbered_boxes(boxes)))
            if self.flip:
                views.append(mirrored(views[-1]))
        return tuple(views)


def _joined(parts: list[tuple[BoxedClips, ...]]) -> tuple[BoxedClips, ...]:
    """Views of single key frames [1, T, H, W, C] -> of all of them."""
    return tuple(
        BoxedClips(
            torch.cat([view.clips for view in views]),
            numbered_boxes([view.boxes[:, 1:].numpy() for view in views]),
        )
        for views in zip(*parts, strict=True)
    )


def mirrored(view: BoxedClips) -> BoxedClips:
    """A view with left and right exchanged, boxes too."""
    width = view.clips.shape[3]
    boxes = view.boxes.clone()
    boxes[:, 1], boxes[:, 3] = width - view.boxes[:, 3], width - view.boxes[:, 1]
    return BoxedClips(view.clips.flip(3), boxes)


def numbered_boxes(boxes: Sequence[np.ndarray]) -> Tensor:
    """Boxes [R, 4] of each clip in a batch -> float32 [R, 5] of all, the clip's number first."""
    clips = np.repeat(np.arange(len(boxes)), [len(part) for part in boxes])
    return torch.from_numpy(np.column_stack([clips, np.concatenate(boxes)]).astype(np.float32))


def check_clip(
    key_frames: KeyFrames,
    sources: Sequence[VideoSource],
    *,
    frames: int,
    stride: float,
    target_fps: float | None,
) -> None:
    """A clip is not empty, and every video of the key frames has a source.

    Raises:
        UserError: it is not so.
    """
    clip_span(30.0, frames=frames, stride=stride, target_fps=target_fps)  # refuses an empty clip
    if len(sources) != len(key_frames.videos):
        raise UserError(
            f"{len(sources)} sources for the {len(key_frames.videos)} videos of {key_frames.source}; find "
            "them with sources_in_folder or sources_of_lists for the same key frames"
        )


class KeyFrameLoader:
    """All views of all key frames, some of one video a batch, in their order.

    Each rank takes a run of batches, and so videos that follow each other: every key frame is taken exactly
    once, whatever the number of ranks, and ranks may have one batch more or less than others. Iterate as
    often as you like.
    """

    def __init__(
        self,
        dataset: KeyFrameViews,
        *,
        key_frames_per_batch: int,
        workers: int,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
        prefetch_batches: int = 2,
        read_seconds: float = READ_SECONDS,
    ) -> None:
        """Check the sizes; workers start with each iteration and end with it.

        Args:
            dataset: makes the views.
            key_frames_per_batch: at most, B; the last batch of a video holds what is left of it.
            workers: processes of this rank; 0 reads videos in the calling process.
            rank: of this process, 0..world_size-1.
            world_size: processes that share the key frames.
            pin_memory: hand out page-locked batches, for fast copies to a GPU.
            prefetch_batches: batches that each worker makes ahead.
            read_seconds: time that a worker may spend on one video without progress before it is replaced.

        Raises:
            UserError: a number that cannot be.
        """
        for argument, value, least in (
            ("key_frames_per_batch", key_frames_per_batch, 1),
            ("workers", workers, 0),
        ):
            if value < least:
                raise UserError(f"{argument}={value}: must be at least {least}")
        check_read_seconds(read_seconds)
        self.dataset = dataset
        every = dataset.batches(key_frames_per_batch) if len(dataset) else []
        first, last = (len(every) * part // world_size for part in (rank, rank + 1))
        self._batches = every[first:last]
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

    def __iter__(self) -> Generator[KeyFrameBatch, None, None]:
        """The batches of this rank.

        Raises:
            UserError: a reader is not installed.
            RunFailed: worker processes end again and again.
        """
        pool = WorkerPool(
            self.dataset.batch,
            iter(self._batches),
            path_of=lambda reading: self.dataset.sources[reading[0]].path,
            **self._options,
        )
        try:
            while (batch := pool.take()) is not None:
                yield batch
        finally:
            pool.close()
