"""Clips around key frames: from an open video, for testing with all boxes, and for training.

A pass over a video decodes each frame once, for any number of boxes, views and overlapping clips.
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
from videomaskfeat.data.batches import Failure, Movable, empty_clips
from videomaskfeat.data.box_transforms import border_boxes, boxes_in_pixels, crop_with_boxes, visible_boxes
from videomaskfeat.data.clips import ClipSample, RecordClips, stack_clips
from videomaskfeat.data.reader import VideoReadError
from videomaskfeat.data.records import Records
from videomaskfeat.data.sampling import check_clip, key_frame_seconds
from videomaskfeat.data.timed_reader import TimedReader, check_size
from videomaskfeat.data.transforms import ClipGeometry, ClipTransform, UniformCrop, WholeFrame
from videomaskfeat.data.uncropped import DrawnAugmentation, UncroppedClip
from videomaskfeat.data.workers import begin_reading, continue_reading
from videomaskfeat.errors import UserError, check_name

_KEY_FRAMES_PER_PASS = 32  # a pass stores the packets between its first and last frame
Area = Literal["whole", "center"]
AREAS: tuple[Area, ...] = ("whole", "center")


@dataclass(frozen=True)
class ActionBatch(Movable):
    """A micro-batch of one rank: clips around key frames, with persons' boxes and actions.

    clips: uint8 [B, T, H, W, C].
    boxes: float32 [R, 5], of all clips: number of the clip in the batch, x1, y1, x2, y2 in its pixels.
    labels: bool [R, L]; column i is the action with id i + 1; a row may have no action.
    """

    clips: Tensor
    boxes: Tensor
    labels: Tensor
    index: Tensor
    failures: tuple[Failure, ...] = ()
    device_fields = ("clips", "boxes", "labels")


@dataclass(frozen=True)
class BoxedClips(Movable):
    """One view of some key frames.

    clips: uint8 [B, T, H, W, C].
    boxes: float32 [R, 5], of all clips: number of the clip in the batch, x1, y1, x2, y2 in its pixels.
    """

    clips: Tensor
    boxes: Tensor
    device_fields = ("clips", "boxes")


@dataclass(frozen=True)
class KeyFrameBatch(Movable):
    """All views of some key frames of one video, for testing; unreadable key frames are missing.

    views: a `BoxedClips` for each scale and mirror image, of equal B and R: row r is the same box in all.
    rows: int64 [R], row of each box in ``KeyFrames.boxes``, ``.scores`` and ``.labels``, which contain it as
        in the file; stays on the CPU.
    index: int64 [B], number of each key frame; B is 0, and there is no view, if no key frame could be read.
    """

    views: tuple[BoxedClips, ...]
    index: Tensor
    rows: Tensor
    failures: tuple[Failure, ...] = ()
    device_fields = ("views",)


def clip_seconds(
    video: TimedReader, key_seconds: np.ndarray, *, frames: int, stride: float, target_fps: float | None
) -> np.ndarray:
    """The times of the clips around key frames, float64 [n, T]; see ``key_frame_seconds``.

    The frame rate of the video is used only if ``target_fps`` is None, since it may require reading the file.
    """
    fps = video.fps if target_fps is None else target_fps
    return key_frame_seconds(fps, seconds=key_seconds, frames=frames, stride=stride, target_fps=target_fps)


def fixed_geometry(transform: ClipTransform, path: str, size: Sequence[int]) -> ClipGeometry:
    """The geometry of a transform without randomness for a video of this size, (height, width).

    Raises:
        VideoReadError: the transform does not support the size.
    """
    try:
        return transform.sample(size[0], size[1], np.random.default_rng(0))
    except ValueError as error:
        raise VideoReadError(path, str(error)) from error


@dataclass(frozen=True)
class KeyClip:
    """A key frame and the clip around it.

    Attributes:
        number: index of the key frame.
        clip: uint8 [T, h, w, 3].
        picture: the key frame as displayed, uint8 [H, W, 3].
        geometry: maps pixels of the picture to pixels of the clip.
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
    """Yield the clips around key frames of an open video, in order.

    Args:
        video: the open video.
        key_seconds: float [n], times of the key frames after the first frame of the video.
        frames: frames per clip, T; the key frame has index T / 2.
        stride: frame stride, in frames at ``target_fps``.
        target_fps: frame rate for ``stride``; None: the video's own.
        transform: crop without randomness.

    Raises:
        UserError: the clip is empty.
        VideoReadError: a frame cannot be decoded, frames differ in size, or the transform does not support
            their size.
    """
    times = clip_seconds(video, key_seconds, frames=frames, stride=stride, target_fps=target_fps)
    all_times = np.column_stack([times, key_seconds])  # [n, T + 1]: the key frame last
    geometry: ClipGeometry | None = None
    size: tuple[int, ...] = ()
    for first in range(0, len(times), _KEY_FRAMES_PER_PASS):
        pass_times = all_times[first : first + _KEY_FRAMES_PER_PASS]
        pending: dict[int, _PendingClip] = {}
        next_number = 0
        for positions, picture in video.iter_frames_at(pass_times.ravel()):
            if geometry is None:
                size = picture.shape[:2]
                geometry = fixed_geometry(transform, video.path, size)
            check_size(video.path, picture, size)
            resized = geometry.apply_clip(picture[None])[0]
            for number, position in zip(*np.divmod(positions, frames + 1), strict=True):
                if number not in pending:
                    pending[number] = _PendingClip(frames, resized.shape)
                pending[number].add(int(position), resized, picture)
            while next_number in pending and pending[next_number].missing == 0:
                done = pending.pop(next_number)
                assert done.picture is not None  # no position is missing
                yield KeyClip(first + next_number, done.clip, done.picture, geometry)
                next_number += 1
        if next_number < len(pass_times):
            seconds = times[first + next_number].mean()
            raise VideoReadError(video.path, f"the clip around {seconds:.2f} s has gaps")


class _PendingClip:
    def __init__(self, frames: int, shape: tuple[int, ...]) -> None:
        self.clip = np.empty((frames, *shape), np.uint8)
        self.picture: np.ndarray | None = None
        self.missing = frames + 1

    def add(self, position: int, resized: np.ndarray, picture: np.ndarray) -> None:
        if position < len(self.clip):
            self.clip[position] = resized
        else:
            self.picture = picture.copy()  # the reader reuses its memory
        self.missing -= 1


@dataclass(eq=False, repr=False)
class KeyFrameViews(Dataset[KeyFrameBatch]):
    """The views of key frames for testing: each scale, followed by its flipped copy if ``flip``.

    There is no randomness, and every view has all boxes of a key frame. A key frame that cannot be read is a
    `Failure` and has no replacement.

    Attributes:
        key_frames: key frames with the boxes to test.
        sources: one for each of ``key_frames.videos``.
        frames, stride, target_fps: see ``key_clips``.
        area: ``whole`` (the whole frame) or ``center`` (a center crop as high as the short side; boxes are
            clipped to it, and a box outside becomes a pixel at the border).
        short_sides: lengths in pixels of the resized short side, one for each scale.
        multiple: the sides of whole frames are rounded to multiples of this, see `WholeFrame`.
        flip: whether to add a horizontally flipped view for each scale.
        open_videos: maximum number of open videos per process.

    Raises:
        UserError: a value is out of range, or the sources do not match the key frames.
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
        check_clip(self.frames, self.stride)
        _check_sources(self.key_frames, self.sources)
        check_name("area", self.area, AREAS)
        if not self.short_sides or len(set(self.short_sides)) < len(self.short_sides):
            raise UserError(
                f"short_sides={list(self.short_sides)}: give one length in pixels, or several different ones"
            )
        self.scales = len(self.short_sides)
        self._transforms = [
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
        """The views of several key frames of one video.

        Args:
            indices: indices of the key frames, at least one.

        Raises:
            UserError: the key frames are of several videos.
        """
        videos = {int(self.key_frames.video[index]) for index in indices}
        if len(videos) != 1:
            raise UserError(
                f"key frames {list(indices)} belong to {len(videos)} videos; the key frames of "
                f"a batch must belong to one"
            )
        read, views, failures = self._read(self.sources[videos.pop()], list(indices))
        rows = [np.arange(*self.key_frames.starts[index : index + 2]) for index in read]
        return KeyFrameBatch(
            views=views,
            index=torch.tensor(read, dtype=torch.int64),
            rows=torch.from_numpy(np.concatenate([np.empty(0, np.int64), *rows])),
            failures=tuple(failures),
        )

    def tasks(self, per_batch: int, rank: int = 0, world_size: int = 1) -> list[range]:
        """The key frames of each batch of a rank; a batch has one video, and a rank has adjacent batches."""
        numbers = self.key_frames.video
        if not len(numbers):
            return []
        ends = [*(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
        batches = [
            range(first, min(first + per_batch, end))
            for start, end in zip([0, *ends], ends, strict=False)
            for first in range(start, end, per_batch)
        ]
        return batches[len(batches) * rank // world_size : len(batches) * (rank + 1) // world_size]

    def path_of(self, reading: tuple[int, ...]) -> str:
        """The path of a reading."""
        return self.sources[reading[0]].path

    def _read(
        self, source: VideoSource, indices: list[int]
    ) -> tuple[list[int], tuple[BoxedClips, ...], list[Failure]]:
        """The key frames that can be read, their views, and the failures."""
        try:
            # A reading is a video: if it stops a worker, its other key frames are not read either.
            begin_reading(source.path, int(self.key_frames.video[indices[0]]))
            return indices, self._views(self._open.get(source), source, indices), []
        except VideoReadError as error:
            self._open.close(source)
            if len(indices) == 1:
                return [], (), [Failure(indices[0], source.path, error.cause)]
        # One key frame makes the pass over the video fail: read each by itself.
        results = [self._read(source, [index]) for index in indices]
        joined = [
            BoxedClips(
                torch.cat([view.clips for view in views]),
                numbered_boxes([view.boxes[:, 1:].numpy() for view in views]),
            )
            for views in zip(*(views for read, views, _ in results if read), strict=True)
        ]
        all_read = [index for read, _, _ in results for index in read]
        return all_read, tuple(joined), [failure for _, _, failures in results for failure in failures]

    def _views(self, reader: TimedReader, source: VideoSource, indices: list[int]) -> tuple[BoxedClips, ...]:
        """All views of several key frames, from one pass over the video."""
        key_seconds = self.key_frames.seconds[indices] - source.start_seconds
        seconds = clip_seconds(
            reader, key_seconds, frames=self.frames, stride=self.stride, target_fps=self.target_fps
        )  # [B, T]
        geometries: list[ClipGeometry] = []
        clips: list[Tensor] = []
        for positions, picture in reader.iter_frames_at(seconds.reshape(-1)):
            continue_reading()
            if not geometries:
                size = picture.shape[:2]
                geometries = [fixed_geometry(transform, source.path, size) for transform in self._transforms]
                clips = [empty_clips((seconds.size, *geometry.size, 3)) for geometry in geometries]
            check_size(source.path, picture, size)
            for geometry, clip in zip(geometries, clips, strict=True):
                clip.numpy()[positions] = geometry.apply_clip(picture[None])
        boxes = [boxes_in_pixels(self.key_frames[index].boxes, *size) for index in indices]
        views = []
        for geometry, clip in zip(geometries, clips, strict=True):
            shaped = clip.view(len(indices), self.frames, *clip.shape[1:])  # [B, T, H, W, C]
            views.append(BoxedClips(shaped, numbered_boxes([border_boxes(geometry, own) for own in boxes])))
            if self.flip:
                views.append(flip_view(views[-1]))
        return tuple(views)


def flip_view(view: BoxedClips) -> BoxedClips:
    """Flip the clips and boxes of a view horizontally."""
    width = view.clips.shape[3]
    boxes = view.boxes.clone()
    boxes[:, 1], boxes[:, 3] = width - view.boxes[:, 3], width - view.boxes[:, 1]
    return BoxedClips(view.clips.flip(3), boxes)


def numbered_boxes(boxes: Sequence[np.ndarray]) -> Tensor:
    """Join the boxes [R, 4] of each clip in a batch: float32 [R, 5], the number of the clip first."""
    clips = np.repeat(np.arange(len(boxes)), [len(clip_boxes) for clip_boxes in boxes])
    return torch.from_numpy(np.column_stack([clips, np.concatenate(boxes)]).astype(np.float32))


def _check_sources(key_frames: KeyFrames, sources: Sequence[VideoSource]) -> None:
    if len(sources) != len(key_frames.videos):
        raise UserError(
            f"{len(sources)} sources for the {len(key_frames.videos)} videos of {key_frames.source}; find "
            "them with sources_in_folder or sources_of_lists for the same key frames"
        )


@dataclass(frozen=True, kw_only=True)
class ActionSample(ClipSample):
    """Clips around one key frame.

    Attributes:
        boxes: for each clip float32 [R, 4], x1, y1, x2, y2 in its pixels.
        labels: for each clip bool [R, L].
    """

    boxes: tuple[np.ndarray, ...]
    labels: tuple[np.ndarray, ...]


@dataclass(eq=False, repr=False)
class ActionClips(RecordClips[ActionSample, ActionBatch]):
    """Augmented clips around key frames with boxes and labels, for training.

    Boxes are transformed with the crop and clipped to it. Boxes with a small visible fraction are left out,
    and a crop without boxes is sampled again. Every clip has at least one box.

    Attributes:
        transform, seed, samples_per_video: see `RecordClips`.
        tries: maximum number of key frames per sample, and of crops per clip.
        key_frames: key frames with boxes and labels.
        sources: one for each of ``key_frames.videos``.
        frames, stride, target_fps: see ``key_clips``.
        augment: changes the colors of a clip (no RandAugment, which moves pixels); None: no change.
        visible: a box is kept if more than this fraction of it is visible: 0 keeps and clips every box that
            overlaps the crop (as in the published recipes), 1 keeps only whole boxes.
        open_videos: maximum number of open videos per process.
        uncropped: whether batches have `UncroppedClips`, which the device crops and augments. Boxes are those
            of the crops in any case.

    Raises:
        UserError: a value is out of range, or the sources do not match the key frames.
    """

    records: Records = field(init=False)
    key_frames: KeyFrames
    sources: Sequence[VideoSource]
    _: KW_ONLY
    frames: int
    stride: float
    target_fps: float | None = 30.0
    augment: DrawnAugmentation | None = None
    visible: float = 0.0
    open_videos: int = 4
    uncropped: bool = False
    unit: ClassVar[str] = "key frame"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_clip(self.frames, self.stride)
        _check_sources(self.key_frames, self.sources)
        if not 0 <= self.visible <= 1:
            raise UserError(
                f"visible={self.visible:g} must be between 0 and 1; it is the minimum visible "
                f"fraction of a box"
            )
        if isinstance(self.augment, Augmentation) and self.augment.randaugment is not None:
            raise UserError(
                "RandAugment moves pixels without the boxes; train a detector without it (color jitter and "
                "erasing are supported)"
            )
        paths = [self.sources[video].path for video in self.key_frames.video.tolist()]
        self.records = Records.from_paths(paths, None, source=self.key_frames.source)
        self._open = OpenVideos(self.open_videos)

    def _batch(self, samples: Sequence[ActionSample], **common: Any) -> ActionBatch:
        labels = [clip_labels for sample in samples for clip_labels in sample.labels]
        return ActionBatch(
            boxes=numbered_boxes([clip_boxes for sample in samples for clip_boxes in sample.boxes]),
            labels=torch.from_numpy(np.concatenate(labels)),
            **common,
        )

    def open(self, index: int) -> TimedReader:
        """The video of a key frame, which stays open for others; raises VideoReadError."""
        return self._open.get(self.sources[self.key_frames.video[index]])

    def _load(self, index: int, rng: np.random.Generator) -> ActionSample:
        source = self.sources[self.key_frames.video[index]]
        key_frame = self.key_frames[index]
        try:
            reader = self.open(index)
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
            clipped, rows = visible_boxes(geometry, pixels, visible=self.visible)
            if not len(rows):  # the crop is smaller than the only boxes: keep their visible parts
                clipped, rows = visible_boxes(geometry, pixels)
            boxes.append(clipped.astype(np.float32))
            labels.append(key_frame.labels[rows])
        return ActionSample(
            clips=clips if self.uncropped else stack_clips(clips),
            boxes=tuple(boxes),
            labels=tuple(labels),
            index=index,
        )

    def _clips(
        self, reader: TimedReader, seconds: np.ndarray, boxes: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, list[ClipGeometry], list[Any]]:
        """The boxes in pixels of the frame, float64 [R, 4], and each crop and its clip uint8 [T, h, w, C]."""
        if self.augment is not None or self.uncropped:
            frames = reader.read_at(seconds)
            pixels, geometries = self._sample_crops(frames[0], boxes, rng)
        if self.uncropped:
            uncropped = [UncroppedClip.draw(frames, crop, self.augment, rng) for crop in geometries]
            return pixels, geometries, uncropped
        if self.augment is not None:
            return pixels, geometries, [self.augment.apply(frames, crop, rng) for crop in geometries]
        geometries, clips = [], []
        # Frames are cropped one by one: copying whole frames into new memory is as slow as decoding.
        for positions, picture in reader.iter_frames_at(seconds):
            if not geometries:
                size = picture.shape[:2]
                pixels, geometries = self._sample_crops(picture, boxes, rng)
                clips = [np.empty((len(seconds), *crop.size, 3), np.uint8) for crop in geometries]
            check_size(reader.path, picture, size)
            for crop, clip in zip(geometries, clips, strict=True):
                clip[positions] = crop.apply_clip(picture[None])
        return pixels, geometries, clips

    def _sample_crops(
        self, picture: np.ndarray, boxes: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, list[ClipGeometry]]:
        """The boxes in pixels of a frame, and a crop with visible boxes for each clip."""
        height, width = picture.shape[:2]
        pixels = boxes_in_pixels(boxes, height, width)
        size: dict[str, Any] = {"height": height, "width": width}
        crops = [
            crop_with_boxes(self.transform, pixels, **size, rng=rng, visible=self.visible, tries=self.tries)
            for _ in range(self.samples_per_video)
        ]
        return pixels, crops

    def _remedy(self) -> str:
        return "check the folder of the videos or frames, and the second at which they start"
