"""What each person in a video does: boxes and actions in key frames, linked from one to the next."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from videomaskfeat.ava import AVA_ACTIONS
from videomaskfeat.boxes import check_linking, check_smoothing, link_boxes, smooth_scores
from videomaskfeat.data.ava import KeyClip, key_clips
from videomaskfeat.data.reader import TimedReader
from videomaskfeat.data.readers_seeking import open_timed
from videomaskfeat.data.transforms import WholeFrame
from videomaskfeat.errors import RunFailed, UserError
from videomaskfeat.inference.detectors import VideoDetector
from videomaskfeat.inference.multiview import Progress
from videomaskfeat.inference.person_boxes import BoxDetector, find_boxes, load_box_detector, read_boxes
from videomaskfeat.io import is_folder

Persons = tuple[np.ndarray, np.ndarray]
"""Boxes float32 [k, 4] in shares of the frame, and their scores float32 [k]."""


@dataclass(frozen=True)
class Action:
    """An action of a person in a key frame.

    Attributes:
        id: its number, 1 and up.
        name: as in the label map.
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
        box_scores: float32 [k], scores of the boxes.
        tracks: int64 [k], persons of the whole video, numbered from 0.
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
    """The persons in a video and their actions.

    Attributes:
        path: of the video.
        height: of its pictures as displayed, pixels.
        width: likewise.
        fps: average frames per second; 0 if unknown.
        duration_seconds: from the first picture to the end of the last.
        start_second: the time that the file of boxes gives to the first picture, else 0.
        every: seconds between key frames; for those of a file of boxes their median, if that is longer.
        actions: id to name of the actions that are reported.
        key_frames: by time, also those without a person.
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
        """Number of tracks."""
        return 1 + max((int(frame.tracks.max(initial=-1)) for frame in self.key_frames), default=-1)

    def actions_of(self, key_frame: KeyFrameActions, row: int, *, threshold: float = 0.0) -> list[Action]:
        """The actions of the person in a row of a key frame that reach a score, the highest first."""
        smoothed, scores = key_frame.smoothed[row], key_frame.scores[row]
        found = [
            Action(number, name, float(smoothed[number - 1]), float(scores[number - 1]))
            for number, name in self.actions.items()
            if smoothed[number - 1] >= threshold
        ]
        return sorted(found, key=lambda action: (-action.score, action.id))


def find_actions(
    detector: VideoDetector,
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
    clips_at_once: int | None = None,
    progress: Progress | None = None,
) -> VideoActions:
    """Find what each person in a video does, at key frames.

    The detector sees the whole frame in its own aspect, with the short side of its recipe. Each picture is
    decoded once, however many clips show it.

    Args:
        detector: of actions.
        video: a file.
        boxes: a file of boxes, see :func:`~videomaskfeat.inference.person_boxes.read_boxes`; the key frames
            are those of the file.
        box_detector: instead, what finds persons in pictures, or its name, see
            :func:`~videomaskfeat.inference.person_boxes.load_box_detector`; the key frames are 0, ``every``,
            ...
        box_score: minimum score of a box; None: as the detector was tested.
        every: seconds between key frames; for a file of boxes, the minimum.
        start_second: the time that the file of boxes gives to the first picture; None: found out.
        smooth_seconds: standard deviation of the average over a track; 0: none.
        min_iou: see :func:`~videomaskfeat.boxes.link_boxes`.
        max_gap_seconds: see ``link_boxes``; None: twice the seconds between key frames.
        clips_at_once: clips that go through the network together; None: as the detector was loaded.
        progress: called after each of these.

    Raises:
        UserError: an argument is wrong, or the file of boxes, or the output of the box detector.
        VideoReadError: the video cannot be read.
        RunFailed: a score is not finite, or the box detector raised an error.
    """
    path = os.fspath(video)
    check_tracking(smooth_seconds=smooth_seconds, min_iou=min_iou, max_gap_seconds=max_gap_seconds)
    threshold = detector.recipe.score_threshold if box_score is None else box_score
    at_once = detector.machine.clips_at_once if clips_at_once is None else clips_at_once
    _check(boxes, box_detector, every, threshold, at_once)
    if is_folder(path):
        raise UserError(f"{path}: is a folder, and a video file is needed here")
    with open_timed(path) as reader:
        duration, fps = reader.duration_seconds, reader.fps
        if boxes is not None:
            source = _from_file(boxes, path, duration, every, threshold, start_second, detector)
        else:
            assert box_detector is not None  # checked above
            source = _from_detector(box_detector, path, duration, every, threshold)
        size, found = (0, 0), list[Persons]()
        scores: list[np.ndarray] = []
        clips = _clips(reader, source.seconds, detector)
        while part := list(islice(clips, at_once)):
            size = (part[0].picture.shape[0], part[0].picture.shape[1])
            persons = source.persons(part)
            found += persons
            scores += _scores(detector, part, [own for own, _ in persons], path)
            if progress is not None:
                progress(len(found), len(source.seconds))
    seconds = source.seconds
    step = max(every, float(np.median(np.diff(seconds)))) if len(seconds) > 1 else every
    gap = 2 * step if max_gap_seconds is None else max_gap_seconds
    tracks = link_boxes([own for own, _ in found], seconds, min_iou=min_iou, max_gap_seconds=gap)
    smoothed = smooth_scores(scores, tracks, seconds, sigma_seconds=smooth_seconds)
    recipe = detector.recipe
    ids = sorted(recipe.actions) or range(1, recipe.classes + 1)  # all if none has a name
    rows = zip(seconds.tolist(), found, tracks, scores, smoothed, strict=True)
    return VideoActions(
        path=path,
        height=size[0],
        width=size[1],
        fps=fps,
        duration_seconds=duration,
        start_second=source.start_second,
        every=step,
        actions={number: recipe.name_of(number - 1) for number in ids},
        key_frames=tuple(
            KeyFrameActions(second, own, sure, numbers, raw, smooth)
            for second, (own, sure), numbers, raw, smooth in rows
        ),
        notes=(*source.notes, *_note_on_empty(found, threshold)),
    )


def check_tracking(*, smooth_seconds: float, min_iou: float, max_gap_seconds: float | None) -> None:
    """Refuse arguments of :func:`find_actions` before the work.

    Raises:
        UserError: a value is out of range.
    """
    check_linking(min_iou, 0.0 if max_gap_seconds is None else max_gap_seconds)
    check_smoothing(smooth_seconds)


@dataclass(frozen=True)
class _Source:
    """Key frames, and who is in them."""

    seconds: np.ndarray
    persons: Callable[[Sequence[KeyClip]], list[Persons]]
    start_second: float = 0.0
    notes: tuple[str, ...] = ()


def _from_file(
    boxes: str | os.PathLike[str],
    path: str,
    duration: float,
    every: float,
    threshold: float,
    start_second: float | None,
    detector: VideoDetector,
) -> _Source:
    listed = read_boxes(
        boxes,
        path,
        duration_seconds=duration,
        every=every,
        score_threshold=threshold,
        classes=max(AVA_ACTIONS, detector.recipe.classes),
        start_second=start_second,
    )

    def persons(clips: Sequence[KeyClip]) -> list[Persons]:
        return [(listed.boxes[clip.number], listed.scores[clip.number]) for clip in clips]

    return _Source(listed.seconds, persons, listed.start_second, listed.notes)


def _from_detector(
    detector: BoxDetector | str, path: str, duration: float, every: float, threshold: float
) -> _Source:
    if isinstance(detector, str):
        name, find = detector, load_box_detector(detector)
    else:
        named = detector if hasattr(detector, "__qualname__") else type(detector)
        name, find = f"{named.__module__}:{named.__qualname__}", detector

    def persons(clips: Sequence[KeyClip]) -> list[Persons]:
        pictures = np.stack([clip.picture for clip in clips])
        return find_boxes(find, pictures, name=name, score_threshold=threshold, video=path)

    # A time that rounding puts at the very end has no picture of its own.
    count = max(math.ceil(duration / every - 1e-3), 1)
    return _Source(np.arange(count) * every, persons)


def _clips(reader: TimedReader, seconds: np.ndarray, detector: VideoDetector) -> Iterator[KeyClip]:
    clip = detector.recipe.clip
    return key_clips(
        reader,
        seconds,
        frames=clip.frames,
        stride=clip.stride,
        target_fps=clip.target_fps,
        transform=WholeFrame(detector.recipe.short_side, detector.multiple),
    )


def _scores(
    detector: VideoDetector, clips: Sequence[KeyClip], boxes: Sequence[np.ndarray], path: str
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


def _note_on_empty(found: Sequence[Persons], threshold: float) -> list[str]:
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
