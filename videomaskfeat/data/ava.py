"""Clips around many key frames of one video in one pass over it: no picture is decoded or resized twice."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from videomaskfeat.data.augment import Augmentation
from videomaskfeat.data.ava_lists import (
    KeyFrames,
    OpenVideos,
    VideoSource,
    sources_in_folder,
    sources_of_lists,
)
from videomaskfeat.data.batches import (
    ActionBatch,
    BoxedClips,
    Failure,
    KeyFrameBatch,
    SharedClips,
    empty_clips,
    join_clips,
)
from videomaskfeat.data.clips import ClipAugmentation, RecordClips, stack_clips
from videomaskfeat.data.loader import check_read_seconds
from videomaskfeat.data.reader import TimedReader, VideoReadError, check_size
from videomaskfeat.data.records import Records
from videomaskfeat.data.sampling import clip_span, key_frame_seconds
from videomaskfeat.data.transforms import (
    ClipGeometry,
    ClipTransform,
    UniformCrop,
    WholeFrame,
    border_boxes,
    boxes_in_pixels,
    crop_with_boxes,
    visible_boxes,
)
from videomaskfeat.data.workers import READ_SECONDS, LostReadings, WorkerPool, begin_reading, continue_reading
from videomaskfeat.errors import UserError, check_name

_KEY_FRAMES_A_PASS = 32  # a pass holds the packets of its stretch: some 30 s, where a key frame is a second


@dataclass(frozen=True)
class KeyClip:
    """A key frame and the clip around it.

    Attributes:
        number: which of the key frames it is.
        clip: uint8 [T, h, w, 3].
        picture: the key frame as displayed, uint8 [H, W, 3].
        geometry: from pixels of the picture to those of the clip.
    """

    number: int
    clip: np.ndarray
    picture: np.ndarray
    geometry: ClipGeometry


def key_clips(
    video: TimedReader,
    key_seconds: np.ndarray,
    *,
    frames: int,
    stride: float,
    target_fps: float | None = 30.0,
    transform: ClipTransform,
) -> Iterator[KeyClip]:
    """Cut the clips around key frames out of a video.

    Args:
        video: open.
        key_seconds: float [n] after the first picture, ascending.
        frames: in a clip, T.
        stride: from one picture of a clip to the next, in frames at ``target_fps``.
        target_fps: None counts the stride in the video's own frames.
        transform: gives the geometry of all clips; it draws nothing at random.

    Yields:
        The clips, in order.

    Raises:
        UserError: the clip is empty.
        VideoReadError: a picture cannot be decoded, they differ in size, or their sides do in a way that the
            transform does not take.
    """
    fps = video.fps if target_fps is None else target_fps
    times = np.array(
        [
            key_frame_seconds(fps, seconds=second, frames=frames, stride=stride, target_fps=target_fps)
            for second in key_seconds.tolist()
        ]
    )
    geometry: ClipGeometry | None = None
    size: tuple[int, ...] = ()
    for first in range(0, len(times), _KEY_FRAMES_A_PASS):
        part = times[first : first + _KEY_FRAMES_A_PASS]
        wanted = np.column_stack(
            [part, key_seconds[first : first + len(part)]]
        )  # [n, T + 1]: the key frame last
        pending: dict[int, _Pending] = {}
        next_out = 0
        for places, picture in video.each_at(wanted.ravel()):
            if geometry is None:
                size = picture.shape[:2]
                geometry = sample_geometry(transform, video.path, size)
            check_size(video.path, picture, size)
            resized = geometry.apply_clip(picture[None])[0]
            for number, place in zip(*np.divmod(places, frames + 1), strict=True):
                if number not in pending:
                    pending[number] = _Pending(frames, resized.shape)
                pending[number].put(int(place), resized, picture)
            while next_out in pending and pending[next_out].left == 0:
                done = pending.pop(next_out)
                assert done.picture is not None  # put last of all places, like any other
                yield KeyClip(first + next_out, done.clip, done.picture, geometry)
                next_out += 1
        if next_out < len(part):
            raise VideoReadError(video.path, f"the clip around {part[next_out].mean():.2f} s has gaps")


def sample_geometry(transform: ClipTransform, path: str, size: Sequence[int]) -> ClipGeometry:
    """The geometry for a video of this size, (height, width), of a transform that draws nothing at random.

    Raises:
        VideoReadError: the transform does not take pictures of this size.
    """
    try:
        return transform.sample(size[0], size[1], np.random.default_rng(0))
    except ValueError as error:
        raise VideoReadError(path, str(error)) from error


class _Pending:
    """A clip of which not all pictures have come."""

    def __init__(self, frames: int, shape: tuple[int, ...]) -> None:
        self.clip = np.empty((frames, *shape), np.uint8)
        self.picture: np.ndarray | None = None
        self.left = frames + 1

    def put(self, place: int, resized: np.ndarray, picture: np.ndarray) -> None:
        if place < len(self.clip):
            self.clip[place] = resized
        else:
            self.picture = picture.copy()  # the reader's own memory
        self.left -= 1


# Testing on key frames: every box of each of them, at one scale or several, as it is and mirrored.
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
        check_name("area", area, AREAS)
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


# Data sets of action detection: clips around key frames, the boxes of persons in them, and what they do.
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
