"""What the persons in a video do: boxes and actions in key frames, linked from one to the next."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from videomaskfeat.ava import AVA_ACTIONS
from videomaskfeat.data.key_clips import KeyClip, key_clips
from videomaskfeat.data.readers_seeking import open_timed
from videomaskfeat.data.readers_timed import TimedReader
from videomaskfeat.data.transforms import WholeFrame
from videomaskfeat.errors import RunFailed, UserError
from videomaskfeat.io import is_folder
from videomaskfeat.tasks.detection.box_detectors import BoxDetector, find_boxes, load_box_detector
from videomaskfeat.tasks.detection.box_files import FileBoxes, read_boxes
from videomaskfeat.tasks.detection.detectors import LoadedDetector
from videomaskfeat.tracking import check_linking, check_smoothing, link_boxes, smooth_scores

Progress = Callable[[int, int], None]
"""(key frames done, key frames in all)"""
Persons = tuple[np.ndarray, np.ndarray]
"""Boxes float32 [k, 4] in shares of the frame, and their scores float32 [k]."""


@dataclass(frozen=True)
class Action:
    """An action and how sure the detector is of it.

    Attributes:
        id: its number, 1 and up.
        name: as the label map has it.
        score: 0..1, averaged over the person's track.
        unsmoothed: 0..1, of the key frame alone.
    """

    id: int
    name: str
    score: float
    unsmoothed: float


@dataclass(frozen=True)
class KeyFrameActions:
    """The persons in a key frame.

    Attributes:
        seconds: after the video's first picture.
        boxes: float32 [k, 4], x1, y1, x2, y2 in shares of width and height.
        box_scores: float32 [k], how sure the boxes' detector was.
        tracks: int64 [k], persons numbered 0 and up over the whole video.
        scores: float32 [k, L], of each action, from this key frame alone.
        smoothed: float32 [k, L], averaged over the track.
    """

    seconds: float
    boxes: np.ndarray
    box_scores: np.ndarray
    tracks: np.ndarray
    scores: np.ndarray
    smoothed: np.ndarray


@dataclass(frozen=True)
class VideoActions:
    """A video and what the persons in it do.

    Attributes:
        path: of the video.
        height: of its pictures as displayed, pixels.
        width: likewise.
        fps: average frames a second; 0 where the file does not tell.
        duration_seconds: from the first picture to the end of the last.
        start_second: the time that the file of boxes gives to the first picture, else 0.
        every: seconds from one key frame to the next; where a file's are further apart than asked for, their
            median.
        actions: id to name; only these are told of.
        key_frames: by time; those without a person too.
        notes: sentences on what was found out or left out.
    """

    path: str
    height: int
    width: int
    fps: float
    duration_seconds: float
    start_second: float
    every: float
    actions: Mapping[int, str]
    key_frames: tuple[KeyFrameActions, ...]
    notes: tuple[str, ...]

    @property
    def persons(self) -> int:
        """How many tracks there are."""
        return 1 + max((int(frame.tracks.max(initial=-1)) for frame in self.key_frames), default=-1)

    def actions_of(self, key_frame: KeyFrameActions, row: int, *, threshold: float = 0.0) -> list[Action]:
        """The actions of the person in a row of a key frame that reach a score, the surest first."""
        smoothed, scores = key_frame.smoothed[row], key_frame.scores[row]
        found = [
            Action(number, name, float(smoothed[number - 1]), float(scores[number - 1]))
            for number, name in self.actions.items()
            if smoothed[number - 1] >= threshold
        ]
        return sorted(found, key=lambda action: (-action.score, action.id))


def find_actions(
    detector: LoadedDetector,
    video: str | os.PathLike[str],
    *,
    boxes: str | os.PathLike[str] | None = None,
    box_detector: BoxDetector | str | None = None,
    box_score: float | None = None,
    every: float = 1.0,
    start_second: float | None = None,
    smooth_seconds: float = 0.7,
    min_iou: float = 0.3,
    max_gap_seconds: float | None = None,
    clips_at_once: int = 8,
    progress: Progress | None = None,
) -> VideoActions:
    """Say what each person in a video does, at key frames.

    The whole frame is shown to the detector in its own aspect, its short side as in testing. Each picture is
    decoded once, however many clips show it.

    Args:
        detector: of actions, see :func:`~videomaskfeat.tasks.detection.detectors.load_detector`.
        video: a file.
        boxes: a file of boxes, see :func:`~videomaskfeat.tasks.detection.box_files.read_boxes`; the key
            frames are those of the file.
        box_detector: instead, what finds persons in pictures, or its name, see
            :func:`~videomaskfeat.tasks.detection.box_detectors.load_box_detector`; the key frames are 0,
            ``every``, ...
        box_score: the least score of a box; None: as the detector was tested.
        every: seconds from one key frame to the next; of a file of boxes, the least.
        start_second: the time that the file of boxes gives to the first picture; None: found out.
        smooth_seconds: standard deviation of the average over a track; 0 for none.
        min_iou: see :func:`~videomaskfeat.tracking.link_boxes`.
        max_gap_seconds: likewise; None: twice the seconds from one key frame to the next.
        clips_at_once: clips that go through the network together.
        progress: told after each of these.

    Raises:
        UserError: an argument is wrong, or the file of boxes, or what the box detector returns.
        VideoReadError: the video cannot be read.
        RunFailed: a score is not finite, or the box detector raised an error.
    """
    path = os.fspath(video)
    check_told(smooth_seconds=smooth_seconds, min_iou=min_iou, max_gap_seconds=max_gap_seconds)
    threshold = detector.recipe.score_threshold if box_score is None else box_score
    _check(boxes, box_detector, every, threshold, clips_at_once)
    if is_folder(path):
        raise UserError(f"{path}: is a folder, and a video file is needed here")
    with open_timed(path) as reader:
        duration = reader.duration_seconds
        if boxes is not None:
            source = _of_file(
                read_boxes(
                    boxes,
                    path,
                    duration_seconds=duration,
                    every=every,
                    score_threshold=threshold,
                    classes=max(AVA_ACTIONS, detector.recipe.classes),
                    start_second=start_second,
                )
            )
        else:
            assert box_detector is not None  # checked above
            source = _of_detector(box_detector, path, duration, every, threshold)
        size, found = (0, 0), list[Persons]()
        scores: list[np.ndarray] = []
        for clips in _some(_clips(reader, source.seconds, detector), clips_at_once):
            size = (clips[0].picture.shape[0], clips[0].picture.shape[1])
            persons = source.persons(clips)
            found += persons
            scores += _scores(detector, clips, [own for own, _ in persons], path)
            if progress is not None:
                progress(len(found), len(source.seconds))
        step = _step(source.seconds, every)
        gap = 2 * step if max_gap_seconds is None else max_gap_seconds
        tracks = link_boxes([own for own, _ in found], source.seconds, min_iou=min_iou, max_gap_seconds=gap)
        smoothed = smooth_scores(scores, tracks, source.seconds, sigma_seconds=smooth_seconds)
        rows = zip(source.seconds.tolist(), found, tracks, scores, smoothed, strict=True)
        return VideoActions(
            path=path,
            height=size[0],
            width=size[1],
            fps=reader.fps,
            duration_seconds=duration,
            start_second=source.start_second,
            every=step,
            actions=_named(detector),
            key_frames=tuple(
                KeyFrameActions(second, own, sure, numbers, raw, smooth)
                for second, (own, sure), numbers, raw, smooth in rows
            ),
            notes=(*source.notes, *_empty(found, threshold)),
        )


def check_told(*, smooth_seconds: float, min_iou: float, max_gap_seconds: float | None) -> None:
    """Refuse what cannot be told, before the work that it would be told of."""
    check_linking(min_iou, 0.0 if max_gap_seconds is None else max_gap_seconds)
    check_smoothing(smooth_seconds)


@dataclass(frozen=True)
class _Source:
    """Key frames, and who is in them."""

    seconds: np.ndarray
    persons: Callable[[Sequence[KeyClip]], list[Persons]]
    start_second: float = 0.0
    notes: tuple[str, ...] = ()


def _of_file(listed: FileBoxes) -> _Source:
    def persons(clips: Sequence[KeyClip]) -> list[Persons]:
        return [(listed.boxes[clip.number], listed.scores[clip.number]) for clip in clips]

    return _Source(listed.seconds, persons, listed.start_second, listed.notes)


def _of_detector(
    detector: BoxDetector | str, path: str, duration: float, every: float, threshold: float
) -> _Source:
    name = detector if isinstance(detector, str) else _name_of(detector)
    find = load_box_detector(detector) if isinstance(detector, str) else detector

    def persons(clips: Sequence[KeyClip]) -> list[Persons]:
        pictures = np.stack([clip.picture for clip in clips])
        return find_boxes(find, pictures, name=name, score_threshold=threshold, video=path)

    # A time that rounding puts at the very end has no picture of its own.
    count = max(math.ceil(duration / every - 1e-3), 1)
    return _Source(np.arange(count) * every, persons)


def _name_of(detector: BoxDetector) -> str:
    """As one would write it: ``module:name``."""
    named = detector if hasattr(detector, "__qualname__") else type(detector)
    return f"{named.__module__}:{named.__qualname__}"


def _step(seconds: np.ndarray, every: float) -> float:
    """Seconds from one key frame to the next: those asked for, or a file's own where these are more."""
    return max(every, float(np.median(np.diff(seconds)))) if len(seconds) > 1 else every


def _clips(reader: TimedReader, seconds: np.ndarray, detector: LoadedDetector) -> Iterator[KeyClip]:
    clip = detector.recipe.clip
    multiple = max(detector.model.patch_embed.stride[1:])
    return key_clips(
        reader,
        seconds,
        frames=clip.frames,
        stride=clip.stride,
        target_fps=clip.target_fps,
        transform=WholeFrame(detector.recipe.short_side, multiple),
    )


def _some(clips: Iterator[KeyClip], count: int) -> Iterator[list[KeyClip]]:
    while part := list(islice(clips, count)):
        yield part


def _scores(
    detector: LoadedDetector, clips: Sequence[KeyClip], boxes: Sequence[np.ndarray], path: str
) -> list[np.ndarray]:
    """Of each clip float32 [k, L]; clips without a box do not go through the network."""
    shown = [place for place, own in enumerate(boxes) if len(own)]
    parts = [np.empty((0, detector.recipe.classes), np.float32) for _ in clips]
    if not shown:
        return parts
    numbered = []
    for number, place in enumerate(shown):
        height, width = clips[place].picture.shape[:2]
        pixels = clips[place].geometry.apply_boxes(boxes[place] * np.array([width, height] * 2, np.float32))
        numbered.append(np.column_stack([np.full(len(pixels), number, np.float32), pixels]))
    pictures = torch.from_numpy(np.stack([clips[place].clip for place in shown]))
    scores = detector.scores(pictures, torch.from_numpy(np.concatenate(numbered)))
    if not scores.isfinite().all():
        raise RunFailed(
            f"{path}: the scores are not finite; the weights are damaged, or their training went wrong"
        )
    ends = np.cumsum([len(boxes[place]) for place in shown])[:-1]
    for place, part in zip(shown, np.split(scores.numpy(), ends), strict=True):
        parts[place] = part
    return parts


def _named(detector: LoadedDetector) -> dict[int, str]:
    """The actions that are told of: those with a name, or all where none has one."""
    recipe = detector.recipe
    numbers = sorted(recipe.actions) or range(1, recipe.classes + 1)
    return {number: recipe.name_of(number - 1) for number in numbers}


def _empty(found: Sequence[Persons], threshold: float) -> list[str]:
    empty = sum(not len(boxes) for boxes, _ in found)
    if not empty:
        return []
    where = "any of the" if empty == len(found) else f"{empty} of"
    return [f"There is no person in {where} {len(found)} key frames, at a score of {threshold:g} or more."]


def _check(
    boxes: object | None, box_detector: object | None, every: float, box_score: float, clips_at_once: int
) -> None:
    if (boxes is None) == (box_detector is None):
        raise UserError(
            f"{'no boxes and no' if boxes is None else 'boxes and a'} detector of persons: give a file of "
            "boxes (--boxes), or a detector that finds them (--detector), and not both"
        )
    if not 0 < every < math.inf:
        raise UserError(f"every {every:g} must be a number of seconds above 0")
    if not 0 <= box_score <= 1:
        raise UserError(f"box score {box_score:g} is not between 0 and 1")
    if clips_at_once < 1:
        raise UserError(f"clips at once {clips_at_once}: there must be at least 1")
