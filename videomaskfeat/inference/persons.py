"""The actions of each person in a video: boxes and scores in key frames, linked to tracks."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from videomaskfeat.ava import AVA_ACTIONS
from videomaskfeat.boxes import check_linking, check_smoothing, link_boxes, smooth_scores
from videomaskfeat.data.ava import KeyClip, key_clips
from videomaskfeat.data.readers_seeking import open_timed
from videomaskfeat.data.timed_reader import TimedReader
from videomaskfeat.data.transforms import WholeFrame
from videomaskfeat.errors import RunFailed, UserError
from videomaskfeat.inference.detectors import VideoDetector
from videomaskfeat.inference.multiview import Progress
from videomaskfeat.inference.person_boxes import (
    BoxDetector,
    FileBoxes,
    Persons,
    find_boxes,
    load_box_detector,
    read_boxes,
)
from videomaskfeat.io import is_folder


@dataclass(frozen=True)
class Action:
    """An action of a person in a key frame.

    Attributes:
        id: number of the action, from 1.
        name: name in the label map.
        score: 0..1, averaged over the track of the person.
        unsmoothed: 0..1, of this key frame alone.
    """

    id: int
    name: str
    score: float
    unsmoothed: float


@dataclass(frozen=True)
class KeyFrameActions:
    """The persons in a key frame.

    Attributes:
        seconds: time after the first frame of the video.
        boxes: float32 [k, 4], x1, y1, x2, y2 relative to width and height.
        box_scores: float32 [k].
        tracks: int64 [k], track of each box, numbered from 0 over the whole video.
        scores: float32 [k, L], action scores of this key frame alone.
        smoothed: float32 [k, L], action scores averaged over the track.
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
        path: path of the video.
        height: height of a frame as displayed, in pixels.
        width: width of a frame as displayed, in pixels.
        fps: average frame rate; 0 if unknown.
        duration_seconds: time from the first frame to the end of the last one.
        start_second: time of the first frame in the boxes file, else 0.
        every: seconds between key frames; for a boxes file their median if it is larger.
        actions: id to name of the reported actions.
        key_frames: all key frames by time, also those without persons.
        notes: sentences on what was inferred or left out.
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
        """The actions of one person in a key frame that reach a score, in descending order of the score."""
        smoothed, scores = key_frame.smoothed[row], key_frame.scores[row]
        actions = [
            Action(number, name, float(smoothed[number - 1]), float(scores[number - 1]))
            for number, name in self.actions.items()
            if smoothed[number - 1] >= threshold
        ]
        return sorted(actions, key=lambda action: (-action.score, action.id))


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
    """Find the actions of each person in a video, at key frames.

    The detector sees whole frames, resized to the short side of its recipe. Each frame is decoded once, even
    if several clips contain it.

    Args:
        detector: detector of actions.
        video: a video file.
        boxes: boxes file, see :func:`~videomaskfeat.inference.person_boxes.read_boxes`; it also defines the
            key frames. Pass either this or ``box_detector``.
        box_detector: person detector, or its name, see
            :func:`~videomaskfeat.inference.person_boxes.load_box_detector`; the key frames are 0, ``every``,
            ...
        box_score: minimum score of a box; None: that of the recipe.
        every: seconds between key frames; for a boxes file the minimum.
        start_second: time of the first frame in the boxes file; None: inferred.
        smooth_seconds: standard deviation of the Gaussian average over a track; 0: no average.
        min_iou: see :func:`~videomaskfeat.boxes.link_boxes`.
        max_gap_seconds: see ``link_boxes``; None: twice the seconds between key frames.
        clips_at_once: number of clips per forward pass; None: that of the detector.
        progress: called after each forward pass.

    Raises:
        UserError: an argument, the boxes file or the output of the box detector is wrong.
        VideoReadError: the video cannot be read.
        RunFailed: a score is not finite, or the box detector raised an error.
    """
    path, recipe = os.fspath(video), detector.recipe
    check_tracking(smooth_seconds=smooth_seconds, min_iou=min_iou, max_gap_seconds=max_gap_seconds)
    threshold = recipe.score_threshold if box_score is None else box_score
    batch_size = detector.machine.clips_at_once if clips_at_once is None else clips_at_once
    _check_arguments(path, boxes, box_detector, every, threshold, batch_size)
    classes = max(AVA_ACTIONS, recipe.classes)
    with open_timed(path) as reader:
        duration, fps = reader.duration_seconds, reader.fps
        common = {"duration_seconds": duration, "every": every, "score_threshold": threshold}
        source: FileBoxes | _DetectedBoxes
        if boxes is None:
            assert box_detector is not None  # checked above
            source = _DetectedBoxes(box_detector, path, **common)
        else:
            source = read_boxes(boxes, path, classes=classes, start_second=start_second, **common)
        size, persons, scores = _score_video(reader, source, detector, batch_size, path, progress)
    seconds = source.seconds
    interval = max(every, float(np.median(np.diff(seconds)))) if len(seconds) > 1 else every
    gap = 2 * interval if max_gap_seconds is None else max_gap_seconds
    tracks = link_boxes([own for own, _ in persons], seconds, min_iou=min_iou, max_gap_seconds=gap)
    smoothed = smooth_scores(scores, tracks, seconds, sigma_seconds=smooth_seconds)
    ids = sorted(recipe.actions) or range(1, recipe.classes + 1)  # all if no action has a name
    rows = zip(seconds.tolist(), persons, tracks, scores, smoothed, strict=True)
    return VideoActions(
        path=path,
        height=size[0],
        width=size[1],
        fps=fps,
        duration_seconds=duration,
        start_second=source.start_second,
        every=interval,
        actions={number: recipe.name_of(number - 1) for number in ids},
        key_frames=tuple(KeyFrameActions(second, *own, *rest) for second, own, *rest in rows),
        notes=(*source.notes, *_note_empty_frames(persons, threshold)),
    )


def check_tracking(*, smooth_seconds: float, min_iou: float, max_gap_seconds: float | None) -> None:
    """Check arguments of :func:`find_actions` before the model is loaded.

    Raises:
        UserError: a value is out of range.
    """
    check_linking(min_iou, 0.0 if max_gap_seconds is None else max_gap_seconds)
    check_smoothing(smooth_seconds)


def _check_arguments(
    path: str,
    boxes: object | None,
    box_detector: object | None,
    every: float,
    box_score: float,
    clips_at_once: int,
) -> None:
    if (boxes is None) == (box_detector is None):
        count = "neither" if boxes is None else "both"
        raise UserError(
            f"boxes and person detector: {count} given; give either a boxes file (--boxes) or a person "
            "detector (--detector)"
        )
    if not 0 < every < math.inf:
        raise UserError(f"every={every:g} must be above 0 (seconds)")
    if not 0 <= box_score <= 1:
        raise UserError(f"box_score={box_score:g} must be in 0..1")
    if clips_at_once < 1:
        raise UserError(f"clips_at_once={clips_at_once}: must be at least 1")
    if is_folder(path):
        raise UserError(f"{path} is a folder; give a video file")


class _DetectedBoxes:
    """Boxes that a person detector finds at key frames 0, ``every``, ..., as :class:`FileBoxes`."""

    start_second = 0.0
    notes = ()

    def __init__(
        self,
        detector: BoxDetector | str,
        path: str,
        *,
        duration_seconds: float,
        every: float,
        score_threshold: float,
    ) -> None:
        if isinstance(detector, str):
            self._name, self._detector = detector, load_box_detector(detector)
        else:
            named = detector if hasattr(detector, "__qualname__") else type(detector)
            self._name, self._detector = f"{named.__module__}:{named.__qualname__}", detector
        self._path, self._threshold = path, score_threshold
        # There is no frame at the very end, where rounding may put the last time.
        self.seconds = np.arange(max(math.ceil(duration_seconds / every - 1e-3), 1)) * every

    def find_persons(self, clips: Sequence[KeyClip]) -> list[Persons]:
        frames = np.stack([clip.picture for clip in clips])
        return find_boxes(
            self._detector, frames, name=self._name, score_threshold=self._threshold, video=self._path
        )


def _score_video(
    reader: TimedReader,
    source: FileBoxes | _DetectedBoxes,
    detector: VideoDetector,
    batch_size: int,
    path: str,
    progress: Progress | None,
) -> tuple[tuple[int, int], list[Persons], list[np.ndarray]]:
    """Height and width of a frame, and for each key frame its persons and their scores."""
    size, recipe = (0, 0), detector.recipe
    persons: list[Persons] = []
    scores: list[np.ndarray] = []
    clip = recipe.clip
    clips = key_clips(
        reader,
        source.seconds,
        frames=clip.frames,
        stride=clip.stride,
        target_fps=clip.target_fps,
        transform=WholeFrame(recipe.short_side, detector.multiple),
    )
    while batch := list(islice(clips, batch_size)):
        size = (batch[0].picture.shape[0], batch[0].picture.shape[1])
        batch_persons = source.find_persons(batch)
        persons += batch_persons
        scores += _score_clips(detector, batch, [frame_boxes for frame_boxes, _ in batch_persons], path)
        if progress is not None:
            progress(len(persons), len(source.seconds))
    return size, persons, scores


def _score_clips(
    detector: VideoDetector, clips: Sequence[KeyClip], boxes: Sequence[np.ndarray], path: str
) -> list[np.ndarray]:
    """Scores float32 [k, L] of each clip; clips without boxes skip the network."""
    result = [np.empty((0, detector.recipe.classes), np.float32) for _ in clips]
    places = [place for place, own in enumerate(boxes) if len(own)]
    if not places:
        return result
    rows = []
    for number, place in enumerate(places):
        height, width = clips[place].picture.shape[:2]
        pixels = clips[place].geometry.apply_boxes(boxes[place] * np.array([width, height] * 2, np.float32))
        rows.append(np.column_stack([np.full(len(pixels), number, np.float32), pixels]))
    frames = torch.from_numpy(np.stack([clips[place].clip for place in places]))
    scores = detector.scores(frames, torch.from_numpy(np.concatenate(rows)))
    if not scores.isfinite().all():
        raise RunFailed(f"{path}: the scores are not finite; the weights are damaged, or training diverged")
    ends = np.cumsum([len(boxes[place]) for place in places])[:-1]
    for place, own in zip(places, np.split(scores.numpy(), ends), strict=True):
        result[place] = own
    return result


def _note_empty_frames(persons: Sequence[Persons], threshold: float) -> list[str]:
    empty = sum(not len(boxes) for boxes, _ in persons)
    if not empty:
        return []
    count = "any of the" if empty == len(persons) else f"{empty} of"
    return [f"There is no person in {count} {len(persons)} key frames, at a score of {threshold:g} or more."]
