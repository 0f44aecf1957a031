"""Clips around key frames: in one pass over a video, for testing with every box, and for training.

No picture is decoded twice in a pass, whatever the number of boxes, views and neighboring clips that show it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from videomaskfeat.data.augment import Augmentation
from videomaskfeat.data.ava_lists import KeyFrames
from videomaskfeat.data.ava_sources import OpenVideos, VideoSource
from videomaskfeat.data.batches import ActionBatch, BoxedClips, Failure, KeyFrameBatch, empty_clips
from videomaskfeat.data.clips import ClipAugmentation, ClipSample, RecordClips, stack_clips
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
from videomaskfeat.data.workers import begin_reading, continue_reading
from videomaskfeat.errors import UserError, check_name

_KEY_FRAMES_PER_PASS = 32  # a pass holds the packets of its stretch: 30 s, where a key frame is a second
Area = Literal["whole", "centre"]
AREAS: tuple[Area, ...] = ("whole", "centre")


def clip_seconds(
    video: TimedReader, key_seconds: np.ndarray, *, frames: int, stride: float, target_fps: float | None
) -> np.ndarray:
    """The times of the clips around key frames, float64 [n, T]; see ``key_frame_seconds``.

    Args:
        video: open; its rate, for which the whole file may be read, is looked at only if ``target_fps`` is
            None.
        key_seconds: float [n] after the first picture.
        frames: in a clip, T; the key frame is number T / 2.
        stride: from one frame of a clip to the next, in frames at ``target_fps``.
        target_fps: the rate in which ``stride`` counts; None counts it in the video's own frames.

    Raises:
        UserError: the clip is empty.
    """
    fps = video.fps if target_fps is None else target_fps
    return key_frame_seconds(fps, seconds=key_seconds, frames=frames, stride=stride, target_fps=target_fps)


def fixed_geometry(transform: ClipTransform, path: str, size: Sequence[int]) -> ClipGeometry:
    """The geometry for a video of this size, (height, width), of a transform that draws nothing at random.

    Raises:
        VideoReadError: the transform does not take pictures of this size.
    """
    try:
        return transform.sample(size[0], size[1], np.random.default_rng(0))
    except ValueError as error:
        raise VideoReadError(path, str(error)) from error


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
    """Cut the clips around key frames, float [n] seconds after the first picture, out of an open video.

    Each picture is resized once, by a transform that draws nothing at random; see ``clip_seconds`` for the
    rest.

    Yields:
        The clips, in order.

    Raises:
        UserError: the clip is empty.
        VideoReadError: a picture cannot be decoded, they differ in size, or the transform does not take it.
    """
    times = clip_seconds(video, key_seconds, frames=frames, stride=stride, target_fps=target_fps)
    wanted = np.column_stack([times, key_seconds])  # [n, T + 1]: the key frame last
    geometry: ClipGeometry | None = None
    size: tuple[int, ...] = ()
    for first in range(0, len(times), _KEY_FRAMES_PER_PASS):
        part = wanted[first : first + _KEY_FRAMES_PER_PASS]
        pending: dict[int, _Pending] = {}
        next_out = 0
        for places, picture in video.iter_frames_at(part.ravel()):
            if geometry is None:
                size = picture.shape[:2]
                geometry = fixed_geometry(transform, video.path, size)
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
            at = times[first + next_out].mean()
            raise VideoReadError(video.path, f"the clip around {at:.2f} s has gaps")


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


@dataclass(eq=False, repr=False)
class KeyFrameViews(Dataset[KeyFrameBatch]):
    """The views of key frames for testing: each scale, and its mirror image after it if asked for.

    Nothing is drawn, every box of a key frame is there in every view, and a key frame that cannot be read is
    a `Failure` that nothing stands in for: a score is of the key frames that were read, and says of how many.

    Attributes:
        key_frames: with the boxes to test on.
        sources: one for each of ``key_frames.videos``.
        frames, stride, target_fps: see ``clip_seconds``.
        area: ``whole`` (the frame in its aspect) or ``centre`` (a square of the short side's length; boxes
            are cut to it, and one that lies outside becomes a pixel at the border).
        short_sides: pixels to which a frame's short side is resized, one for each scale.
        multiple: of which the sides of whole frames become multiples, see `WholeFrame`.
        flip: whether each scale is followed by its mirror image.
        open_videos: that stay open in each process.

    Raises:
        UserError: a number or word that cannot be; sources that are not those of the key frames.
    """

    key_frames: KeyFrames
    sources: Sequence[VideoSource]
    _: KW_ONLY
    frames: int
    stride: float
    target_fps: float | None = 30.0
    area: Area = "whole"
    short_sides: Sequence[int] = (224,)
    multiple: int = 4
    flip: bool = False
    open_videos: int = 2

    def __post_init__(self) -> None:
        check_clips(self.key_frames, self.sources, self.frames, self.stride, self.target_fps)
        check_name("area", self.area, AREAS)
        if not self.short_sides or len(set(self.short_sides)) < len(self.short_sides):
            raise UserError(
                f"short_sides={list(self.short_sides)}: one length in pixels, or several different ones"
            )
        self.scales = len(self.short_sides)
        self._cuts = [
            WholeFrame(side, self.multiple) if self.area == "whole" else UniformCrop(side, side)
            for side in self.short_sides
        ]
        self._open = OpenVideos(self.open_videos)

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

    def tasks(self, per_batch: int, rank: int = 0, world_size: int = 1) -> list[range]:
        """The key frames of each batch of a rank, all of one video, in their order.

        Each rank takes a run of batches, and so videos that follow each other.
        """
        numbers = self.key_frames.video
        if not len(numbers):
            return []
        ends = [*(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
        runs = [
            range(first, min(first + per_batch, end))
            for start, end in zip([0, *ends], ends, strict=False)
            for first in range(start, end, per_batch)
        ]
        return runs[len(runs) * rank // world_size : len(runs) * (rank + 1) // world_size]

    def path_of(self, reading: tuple[int, ...]) -> str:
        """The path that a reading is about."""
        return self.sources[reading[0]].path

    def _read(
        self, source: VideoSource, indices: list[int]
    ) -> tuple[list[int], tuple[BoxedClips, ...], list[Failure]]:
        """The key frames that can be read, all their views, and the others."""
        try:
            # Of a video, since one that stops a worker would otherwise do so for hundreds of key frames.
            begin_reading(source.path, int(self.key_frames.video[indices[0]]))
            return indices, self._views(self._open.get(source), source, indices), []
        except VideoReadError as error:
            self._open.close(source)
            if len(indices) == 1:
                return [], (), [Failure(indices[0], source.path, error.cause)]
        # One of them spoils the pass through the video: each by itself.
        read, parts, failures = list[int](), list[tuple[BoxedClips, ...]](), list[Failure]()
        for index in indices:
            own, views, failed = self._read(source, [index])
            read += own
            parts += [views] if own else []
            failures += failed
        joined = [
            BoxedClips(
                torch.cat([view.clips for view in views]),
                numbered_boxes([view.boxes[:, 1:].numpy() for view in views]),
            )
            for views in zip(*parts, strict=True)
        ]
        return read, tuple(joined), failures

    def _views(self, reader: TimedReader, source: VideoSource, indices: list[int]) -> tuple[BoxedClips, ...]:
        """All views of some key frames, from one pass through the video."""
        key_seconds = self.key_frames.seconds[indices] - source.start_seconds
        seconds = clip_seconds(
            reader, key_seconds, frames=self.frames, stride=self.stride, target_fps=self.target_fps
        )  # [B, T]
        geometries: list[ClipGeometry] = []
        clips: list[Tensor] = []
        for places, picture in reader.iter_frames_at(seconds.reshape(-1)):
            continue_reading()
            if not geometries:
                geometries = [fixed_geometry(cut, source.path, picture.shape[:2]) for cut in self._cuts]
                clips = [empty_clips((seconds.size, *geometry.size, 3)) for geometry in geometries]
            frame = geometries[0].source
            check_size(source.path, picture, (frame.height, frame.width))
            for geometry, clip in zip(geometries, clips, strict=True):
                clip.numpy()[places] = geometry.apply_clip(picture[None])
        views = []
        for geometry, clip in zip(geometries, clips, strict=True):
            frame = geometry.source
            boxes = [
                boxes_in_pixels(self.key_frames[index].boxes, frame.height, frame.width) for index in indices
            ]
            shaped = clip.view(len(indices), self.frames, *clip.shape[1:])  # [B, T, H, W, C]
            views.append(BoxedClips(shaped, numbered_boxes([border_boxes(geometry, own) for own in boxes])))
            if self.flip:
                views.append(mirrored(views[-1]))
        return tuple(views)


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


def check_clips(
    key_frames: KeyFrames,
    sources: Sequence[VideoSource],
    frames: int,
    stride: float,
    target_fps: float | None,
) -> None:
    """A clip is not empty, and every video of the key frames has a source; UserError if not."""
    clip_span(30.0, frames=frames, stride=stride, target_fps=target_fps)  # refuses an empty clip
    if len(sources) != len(key_frames.videos):
        raise UserError(
            f"{len(sources)} sources for the {len(key_frames.videos)} videos of {key_frames.source}; find "
            "them with sources_in_folder or sources_of_lists for the same key frames"
        )


@dataclass(frozen=True, kw_only=True)
class ActionSample(ClipSample):
    """Clips around one key frame.

    boxes: a float32 [R, 4] for each, x1, y1, x2, y2 in pixels of that clip.
    labels: a bool [R, L] for each.
    """

    boxes: tuple[np.ndarray, ...]
    labels: tuple[np.ndarray, ...]


@dataclass(eq=False, repr=False)
class ActionClips(RecordClips[ActionSample, ActionBatch]):
    """Augmented clips around key frames with boxes and labels, to train on.

    Boxes go through the geometry of the crop and are cut to it; those of which it shows too little are left
    out, and a crop without any box is drawn again. Every clip has at least one box.

    Attributes:
        transform, seed, samples_per_video: see `RecordClips`.
        tries: key frames to try for one sample, and crops to draw for one clip.
        key_frames: with the boxes to train on.
        sources: one for each of ``key_frames.videos``.
        frames, stride, target_fps: see ``clip_seconds``.
        augment: changes the pixels of a clip, but not their places (so no RandAugment); None leaves them
            alone.
        visible: a box stays where the crop shows more than this share of it, 0..1: 0 keeps and cuts every box
            that the crop meets (the published way), 1 drops those that leave it.
        open_videos: that stay open in each process.

    Raises:
        UserError: a number that cannot be; sources that are not those of the key frames.
    """

    records: Records = field(init=False)
    key_frames: KeyFrames
    sources: Sequence[VideoSource]
    _: KW_ONLY
    frames: int
    stride: float
    target_fps: float | None = 30.0
    augment: ClipAugmentation | None = None
    visible: float = 0.0
    open_videos: int = 4
    unit: ClassVar[str] = "key frame"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_clips(self.key_frames, self.sources, self.frames, self.stride, self.target_fps)
        if not 0 <= self.visible <= 1:
            raise UserError(f"visible={self.visible:g} is not between 0 and 1; it is a share of a box")
        if isinstance(self.augment, Augmentation) and self.augment.randaugment is not None:
            raise UserError(
                "RandAugment turns and shifts pictures, and boxes do not follow; train a detector without it "
                "(colour and erasing are fine)"
            )
        paths = [self.sources[video].path for video in self.key_frames.video.tolist()]
        self.records = Records.from_paths(paths, None, source=self.key_frames.source)
        self._open = OpenVideos(self.open_videos)

    def _batch(self, samples: Sequence[ActionSample], **parts: Any) -> ActionBatch:
        return ActionBatch(
            boxes=numbered_boxes([part for sample in samples for part in sample.boxes]),
            labels=torch.from_numpy(np.concatenate([part for sample in samples for part in sample.labels])),
            **parts,
        )

    def _load(self, index: int, rng: np.random.Generator) -> ActionSample:
        source = self.sources[self.key_frames.video[index]]
        key_frame = self.key_frames[index]
        try:
            reader = self._open.get(source)
            seconds = clip_seconds(
                reader,
                np.array([key_frame.seconds - source.start_seconds]),
                frames=self.frames,
                stride=self.stride,
                target_fps=self.target_fps,
            )[0]
            pixels, geometries, clips = self._clips(reader, seconds, key_frame.boxes, rng)
        except VideoReadError:
            self._open.close(source)
            raise
        boxes, labels = [], []
        for geometry in geometries:
            cut, rows = visible_boxes(geometry, pixels, visible=self.visible)
            if not len(rows):  # the crop is smaller than the only boxes: what it shows of them
                cut, rows = visible_boxes(geometry, pixels)
            boxes.append(cut.astype(np.float32))
            labels.append(key_frame.labels[rows])
        return ActionSample(clips=stack_clips(clips), boxes=tuple(boxes), labels=tuple(labels), index=index)

    def _clips(
        self, reader: TimedReader, seconds: np.ndarray, boxes: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, list[ClipGeometry], list[np.ndarray]]:
        """The boxes in pixels of the frame, float64 [R, 4], and each crop and its clip uint8 [T, h, w, C]."""
        if self.augment is not None:
            frames = reader.read_at(seconds)
            pixels, geometries = self._crops(frames[0], boxes, rng)
            return pixels, geometries, [self.augment.apply(frames, crop, rng) for crop in geometries]
        geometries, clips = [], []
        # Each picture is cut as it comes: to collect whole frames in fresh memory takes as long as decoding.
        for places, picture in reader.iter_frames_at(seconds):
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
        crops = [
            crop_with_boxes(
                self.transform,
                pixels,
                height=height,
                width=width,
                rng=rng,
                visible=self.visible,
                tries=self.tries,
            )
            for _ in range(self.samples_per_video)
        ]
        return pixels, crops

    def _remedy(self) -> str:
        return "check the folder of the videos or frames, and the second at which they start"
