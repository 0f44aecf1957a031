"""Person boxes in a video: from a file in AVA's format, or from a plug-in that detects them in frames."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from videomaskfeat.ava import AVA_ACTIONS, VideoNames, read_detections
from videomaskfeat.data.ava import KeyClip
from videomaskfeat.data.ava_lists import detected_key_frames
from videomaskfeat.data.ava_sources import find_start, is_inside, parse_clip_name
from videomaskfeat.errors import PlugInFailed, RunFailed, UserError
from videomaskfeat.plugins import import_plugin

_NAMED_VIDEOS = 5  # number of videos in a message
Persons = tuple[np.ndarray, np.ndarray]
"""Boxes float32 [k, 4], x1, y1, x2, y2 relative to the frame size, and their scores float32 [k]."""
BoxDetector = Callable[[np.ndarray], Sequence[Any]]
"""Frames uint8 [n, H, W, 3] -> n arrays [k, 5]: x1, y1, x2, y2 in pixels, and a score in 0..1."""
_CONTRACT = (
    "a detector is called with frames uint8 [n, H, W, 3] and returns n arrays [k, 5]: x1, y1, x2, y2 in "
    "pixels and a score"
)


@dataclass(frozen=True)
class FileBoxes:
    """Person boxes of a video, read from a file.

    Attributes:
        seconds: float64 [n], times of key frames after the first frame, ascending.
        start_second: time of the first frame in the file.
        persons: for each key frame its boxes and their scores.
        notes: sentences on what was inferred or left out.
    """

    seconds: np.ndarray
    start_second: float
    persons: tuple[Persons, ...]
    notes: tuple[str, ...]

    def find_persons(self, clips: Sequence[KeyClip]) -> list[Persons]:
        """The persons in the key frames of clips."""
        return [self.persons[clip.number] for clip in clips]


def check_boxes(path: str | os.PathLike[str], videos: Sequence[str], *, classes: int = AVA_ACTIONS) -> None:
    """Check that a boxes file has boxes of all videos, before the first video is read.

    Args:
        path: as in :func:`read_boxes`.
        videos: paths of the video files.
        classes: the largest valid action id.

    Raises:
        UserError: the file or the boxes of a video are missing, or a row is wrong.
    """
    names = VideoNames()
    read_detections(path, names, largest=classes)
    known = set(names.texts())
    missing = [video for video in videos if _find_name(known, video) is None]
    if missing:
        raise _missing_boxes(os.fspath(path), missing, sorted(known))


def read_boxes(
    path: str | os.PathLike[str],
    video: str,
    *,
    duration_seconds: float,
    every: float,
    score_threshold: float,
    classes: int = AVA_ACTIONS,
    start_second: float | None = None,
) -> FileBoxes:
    """The boxes of a video, which the file lists by file name, with or without suffix.

    Args:
        path: rows `video,second,x1,y1,x2,y2,action,score`; the action may be empty.
        video: path of the video file.
        duration_seconds: duration of the video.
        every: minimum seconds between key frames; key frames in between are left out.
        score_threshold: minimum score of a box. Key frames without boxes remain.
        classes: the largest valid action id; actions have no other effect.
        start_second: time of the first frame in the file. None: for a Kinetics clip
            (``id_000010_000020.mp4``) of a video that the file lists as ``id``, the second in its name; else
            900 if the times fit the video only then (AVA's videos start at second 900 of a film), else 0.

    Raises:
        UserError: the file is missing, it has no box of this video, a row is wrong (with file and line), or
            all key frames are outside the video.
    """
    name = os.fspath(path)
    listed = detected_key_frames([path], classes=classes, score_threshold=score_threshold)
    known = {listed.videos[number] for number in set(listed.video.tolist())}
    known |= {other for other, _ in listed.boxless}
    own = _find_name(known, video)
    if own is None:
        raise _missing_boxes(name, [video], sorted(known))
    rows: dict[float, int] = {second: -1 for other, second in listed.boxless if other == own}
    for row in np.flatnonzero(listed.video == listed.videos.index(own)) if own in listed.videos else ():
        rows[float(listed.seconds[row])] = int(row)
    seconds = np.array(sorted(rows))
    start, notes = start_second, list[str]()
    if start is None:
        start, notes = _find_first_second(seconds, duration_seconds, video=video, listed=own, file=name)
    inside = is_inside(seconds, start, duration_seconds)
    if not inside.any():
        raise UserError(
            f"{name}: all {len(seconds)} key frames of {own}, from {seconds[0]:g} to {seconds[-1]:g} s, are "
            f"outside {video}, which lasts {duration_seconds:.1f} s and starts at second {start:g}; correct "
            "the times, or set the second at which the video starts (--start-second)"
        )
    if not inside.all():
        notes.append(
            f"{int((~inside).sum())} of the {len(seconds)} key frames of {name} are outside the video and "
            f"left out, the first at {seconds[~inside][0]:g} s: the video lasts {duration_seconds:.1f} s and "
            f"starts at second {start:g}."
        )
    used = _drop_close_times(seconds[inside], every)
    if len(used) < inside.sum():
        notes.append(
            f"{int(inside.sum()) - len(used)} of {int(inside.sum())} key frames are left out: they follow "
            f"within {every:g} s of the one before."
        )
    persons: list[Persons] = []
    for second in used.tolist():
        frame = listed[rows[second]] if rows[second] >= 0 else None
        empty = np.empty((0, 4), np.float32), np.empty(0, np.float32)
        persons.append(empty if frame is None else (frame.boxes, frame.scores))
    return FileBoxes(used - start, start, tuple(persons), tuple(notes))


def _find_first_second(
    seconds: np.ndarray, duration_seconds: float, *, video: str, listed: str, file: str
) -> tuple[float, list[str]]:
    """The time of a video's first frame in a boxes file, and a note about it unless it is 0.

    Args:
        seconds: times of the key frames in the file.
        duration_seconds: duration of the video.
        video: path of the video.
        listed: its name in the file.
        file: name of the file, for the note.
    """
    clip = parse_clip_name(Path(video).name)
    if clip and clip[0] == listed:
        return clip[1], [f"The first frame is at second {clip[1]:g}, according to the name of the clip."]
    start = find_start(seconds, duration_seconds) or 0.0
    if not start:
        return 0.0, []
    return start, [f"The first frame is at second {start:g}: otherwise the times of {file} do not fit."]


def _drop_close_times(seconds: np.ndarray, every: float) -> np.ndarray:
    """Ascending times that are at least ``every`` seconds apart, rounded to milliseconds."""
    used: list[float] = []
    for second in seconds.tolist():
        if not used or second - used[-1] >= every - 1e-3:
            used.append(second)
    return np.array(used)


def _find_name(known: set[str], video: str) -> str | None:
    """The name of a video in a boxes file: its file name, or the name of the video of a Kinetics clip."""
    clip = parse_clip_name(Path(video).name)
    names = (Path(video).name, Path(video).stem, clip[0] if clip else "")
    return next((name for name in names if name in known), None)


def _missing_boxes(name: str, videos: Sequence[str], known: list[str]) -> UserError:
    if not known:
        return UserError(f"{name} contains no boxes; a row is `video,second,x1,y1,x2,y2,,score`")
    listed = ", ".join(known[:_NAMED_VIDEOS])
    if len(known) > _NAMED_VIDEOS:
        listed += f" and {len(known) - _NAMED_VIDEOS} more"
    missing = ", ".join(repr(Path(video).stem) for video in videos)
    return UserError(
        f"{name} has no box of {missing}; its videos are {listed}: a row starts with the file name of the "
        "video without its suffix; rename the video or the rows"
    )


def load_box_detector(name: str, options: Mapping[str, Any] | None = None) -> BoxDetector:
    """Import a person detector by its name.

    The module is an installed one, or in the current folder. A class, and with options also a function, is
    called with the options as keyword arguments and returns the detector.

    Args:
        name: ``package.module:name``, such as ``my_boxes:find_persons``.
        options: keyword arguments.

    Raises:
        UserError: the module or name is missing, the import fails, the options are wrong, or the result is
            not callable.
        PlugInFailed: the class or function raised an error.
    """
    detector = import_plugin("detector", name, example="my_boxes:find_persons", rule=_CONTRACT)
    if callable(detector) and (inspect.isclass(detector) or options):
        detector = _build_detector(detector, dict(options or {}), name)
    if not callable(detector):
        raise UserError(f"detector {name!r}: {_type_name(detector)} is not callable; {_CONTRACT}")
    return detector


def find_boxes(
    detector: BoxDetector,
    frames: np.ndarray,
    *,
    name: str,
    score_threshold: float,
    video: str = "frames",
) -> list[Persons]:
    """Call a person detector, and check its output.

    Boxes are clipped to the frame. Those below the threshold or outside the frame are dropped.

    Args:
        detector: see :data:`BoxDetector`.
        frames: uint8 [n, H, W, 3].
        name: name of the detector, for messages.
        score_threshold: minimum score.
        video: name of the video, for messages.

    Returns:
        For each frame its boxes in descending order of the score, and the scores.

    Raises:
        UserError: the detector returned something else.
        PlugInFailed: the detector raised an error.
    """
    try:
        outputs = detector(frames)
    except (UserError, RunFailed):
        raise
    except Exception as error:  # the user's own code can raise anything
        raise PlugInFailed(f"detector {name!r} failed on {video}: {type(error).__name__}: {error}") from error
    if not isinstance(outputs, Sequence | np.ndarray) or len(outputs) != len(frames):
        count = f"{len(outputs)} results" if hasattr(outputs, "__len__") else _type_name(outputs)
        raise UserError(f"detector {name!r} returned {count} for {len(frames)} frames; {_CONTRACT}")
    height, width = frames.shape[1:3]
    return [_check_output(rows, height, width, name, score_threshold) for rows in outputs]


def _build_detector(builder: Any, options: dict[str, Any], name: str) -> Any:
    try:
        signature = inspect.signature(builder)
    except ValueError:  # written in C; the call itself reports wrong options
        signature = None
    if signature is not None:
        try:
            signature.bind(**options)
        except TypeError as error:
            known = ", ".join(signature.parameters) or "none"
            raise UserError(
                f"detector {name!r}: wrong options ({error}); the valid options are: {known}"
            ) from error
    try:
        return builder(**options)
    except (UserError, RunFailed):
        raise
    except Exception as error:  # the user's own code can raise anything
        raise PlugInFailed(
            f"detector {name!r} could not be built: {type(error).__name__}: {error}"
        ) from error


def _check_output(rows: Any, height: int, width: int, name: str, score_threshold: float) -> Persons:
    def wrong(output: str, rule: str = _CONTRACT) -> UserError:
        return UserError(f"detector {name!r} returned {output}; {rule}")

    try:
        table = np.asarray(rows, np.float64)
    except (TypeError, ValueError) as error:
        raise wrong(f"{_type_name(rows)} for a frame, which is not an array") from error
    if table.size == 0:
        table = table.reshape(0, 5)
    if table.ndim != 2 or table.shape[1] != 5:
        raise wrong(f"an array {list(table.shape)} for a frame")
    boxes, scores = table[:, :4], table[:, 4]
    if not np.isfinite(table).all():
        raise wrong("a number that is not finite")
    outside = (scores < 0) | (scores > 1)
    if outside.any():
        raise wrong(
            f"the score {scores[outside][0]:g}",
            "scores are between 0 and 1, after the softmax or sigmoid",
        )
    inverted = (boxes[:, 2:] < boxes[:, :2]).any(axis=1)
    if inverted.any():
        raise wrong(
            f"the box {np.round(boxes[inverted][0], 2).tolist()}, which ends before it starts",
            "a box is x1, y1, x2, y2 (left, top, right, bottom), not width and height",
        )
    if len(boxes) and boxes.max() <= 1.0 and min(height, width) > 2:
        raise wrong(f"boxes within 0..1 for frames of {width}x{height}", "boxes must be in pixels")
    boxes = np.clip(boxes, 0, [width, height, width, height]) / [width, height, width, height]
    used = (scores >= score_threshold) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    order = np.flatnonzero(used)[np.argsort(-scores[used], kind="stable")]
    return boxes[order].astype(np.float32), scores[order].astype(np.float32)


def _type_name(value: Any) -> str:
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
