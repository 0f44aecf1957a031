"""Boxes of persons in a video: from a file of AVA's form, or from a plug-in that finds them in pictures."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from videomaskfeat.ava import AVA_ACTIONS, VideoNames, read_detections
from videomaskfeat.data.ava_lists import detected_key_frames
from videomaskfeat.data.ava_sources import find_start, is_inside, parse_clip_name
from videomaskfeat.errors import PlugInFailed, RunFailed, UserError, nearest

_NAMED = 5  # videos, in a message
BoxDetector = Callable[[np.ndarray], Sequence[Any]]
"""Pictures uint8 [n, H, W, 3] -> n arrays [k, 5]: x1, y1, x2, y2 in pixels, and a score in 0..1."""
_PROMISE = (
    "a detector takes pictures uint8 [n, H, W, 3] and returns n arrays [k, 5], x1, y1, x2, y2 in pixels and "
    "a score"
)


@dataclass(frozen=True)
class FileBoxes:
    """The boxes of persons in a video.

    Attributes:
        seconds: float64 [n], times of key frames after the first picture, ascending.
        start_second: the time that the file gives to the first picture.
        boxes: for each key frame float32 [k, 4], x1, y1, x2, y2 in shares of the frame.
        scores: for each key frame float32 [k].
        notes: sentences on what was found out or left out.
    """

    seconds: np.ndarray
    start_second: float
    boxes: tuple[np.ndarray, ...]
    scores: tuple[np.ndarray, ...]
    notes: tuple[str, ...]


def check_boxes(path: str | os.PathLike[str], videos: Sequence[str], *, classes: int = AVA_ACTIONS) -> None:
    """Refuse a file of boxes that lacks some videos, before the first of them is worked on.

    Args:
        path: as in :func:`read_boxes`.
        videos: paths of the video files.
        classes: the largest action that a row may have.

    Raises:
        UserError: no such file, a row is wrong, or videos, which are named, have no box.
    """
    names = VideoNames()
    read_detections(path, names, largest=classes)
    known = set(names.texts())
    lacking = [video for video in videos if _name_in(known, video) is None]
    if lacking:
        raise UserError(_unknown(os.fspath(path), lacking, sorted(known)))


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
    """The boxes of a video, found by its file's name with or without suffix.

    Args:
        path: rows `video,second,x1,y1,x2,y2,action,score`, the action empty or not.
        video: path of the video file.
        duration_seconds: of the video.
        every: minimum seconds between key frames; those in between are left out.
        score_threshold: minimum score of a box. Key frames without any box are kept.
        classes: the largest action that a row may have; the action has no other effect.
        start_second: the time of the first picture, as the file counts; None: the second in the name of a
            clip of Kinetics (``id_000010_000020.mp4``) if the file names the whole video (``id``); else 900,
            if its times fit the video so and not otherwise (AVA's videos are cut out of films from second
            900 on), else 0.

    Raises:
        UserError: no such file, no box of this video in it, a row is wrong (with file and line), or all key
            frames lie outside the video.
    """
    name = os.fspath(path)
    listed = detected_key_frames([path], classes=classes, score_threshold=score_threshold)
    known = {listed.videos[number] for number in set(listed.video.tolist())}
    known |= {other for other, _ in listed.boxless}
    own = _name_in(known, video)
    if own is None:
        raise UserError(_unknown(name, [video], sorted(known)))
    times: dict[float, int] = {second: -1 for other, second in listed.boxless if other == own}
    for number in np.flatnonzero(listed.video == listed.videos.index(own)) if own in listed.videos else ():
        times[float(listed.seconds[number])] = int(number)
    seconds = np.array(sorted(times))
    notes = []
    clip = parse_clip_name(Path(video).name)
    start = 0.0 if start_second is None else start_second
    if start_second is None and clip and clip[0] == own:
        start = clip[1]
        notes.append(f"The first picture is second {start:g}, as the name of the clip gives.")
    elif start_second is None and (start := find_start(seconds, duration_seconds) or 0.0):
        notes.append(
            f"The times of {name} fit the video only if its first picture is second {start:g}: taken so."
        )
    inside = is_inside(seconds, start, duration_seconds)
    if not inside.any():
        raise UserError(
            f"{name}: all {len(seconds)} key frames of {own}, from {seconds[0]:g} to {seconds[-1]:g} s, lie "
            f"outside {video}, which lasts {duration_seconds:.1f} s and begins at second {start:g}; mend the "
            "times, or give the second at which the video starts (--start-second)"
        )
    if not inside.all():
        notes.append(
            f"{int((~inside).sum())} of the {len(seconds)} key frames of {name} lie outside the video, the "
            f"first at {seconds[~inside][0]:g} s, and are left out: it lasts {duration_seconds:.1f} s and "
            f"begins at second {start:g}."
        )
    kept = _thinned(seconds[inside], every)
    if len(kept) < inside.sum():
        notes.append(
            f"{int(inside.sum()) - len(kept)} of {int(inside.sum())} key frames are left out, as they come "
            f"within {every:g} s of the one before."
        )
    frames = [listed[times[second]] if times[second] >= 0 else None for second in kept.tolist()]
    return FileBoxes(
        seconds=kept - start,
        start_second=start,
        boxes=tuple(np.empty((0, 4), np.float32) if frame is None else frame.boxes for frame in frames),
        scores=tuple(np.empty(0, np.float32) if frame is None else frame.scores for frame in frames),
        notes=tuple(notes),
    )


def _thinned(seconds: np.ndarray, every: float) -> np.ndarray:
    """Ascending times without those too close to the one kept before, to the rounding of a millisecond."""
    kept: list[float] = []
    for second in seconds.tolist():
        if not kept or second - kept[-1] >= every - 1e-3:
            kept.append(second)
    return np.array(kept)


def _name_in(known: set[str], video: str) -> str | None:
    """What a file of boxes calls a video: its file's name, or what a clip of Kinetics was cut from."""
    clip = parse_clip_name(Path(video).name)
    words = (Path(video).name, Path(video).stem, clip[0] if clip else "")
    return next((word for word in words if word in known), None)


def _unknown(name: str, videos: Sequence[str], known: list[str]) -> str:
    if not known:
        return f"{name}: holds no box at all; a row is `video,second,x1,y1,x2,y2,,score`"
    listed = ", ".join(known[:_NAMED]) + (f" and {len(known) - _NAMED} more" if len(known) > _NAMED else "")
    lacking = ", ".join(repr(Path(video).stem) for video in videos)
    return (
        f"{name}: has no box of {lacking}; its videos are {listed}: a row begins with the name of "
        "the video's file without its ending, so rename one of the two"
    )


def load_box_detector(name: str, options: Mapping[str, Any] | None = None) -> BoxDetector:
    """Import a detector of persons by its name.

    The module is an installed one, or in the current folder. A class, or with options also a function, is
    called with the options as keyword arguments, and returns the detector.

    Args:
        name: ``package.module:name``, such as ``my_boxes:find_persons``.
        options: keyword arguments.

    Raises:
        UserError: no such module or name, a module that cannot be imported, wrong options, or the result is
            not callable.
        PlugInFailed: the class or function raised an error.
    """
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        raise UserError(
            f"detector {name!r} is not of the form package.module:name, such as my_boxes:find_persons"
        )
    module = _import(module_name, name)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            known = [word for word in vars(found) if not word.startswith("_")]
            raise UserError(
                f"detector {name!r}: {module_name} has no {attribute}{nearest(part, known)}; {_PROMISE}"
            )
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f"detector {name!r} is {_kind(found)}, which cannot be called; {_PROMISE}")
    if inspect.isclass(found) or options:
        found = _made(found, dict(options or {}), name)
    if not callable(found):
        raise UserError(f"detector {name!r} made {_kind(found)}, which cannot be called; {_PROMISE}")
    return found


def find_boxes(
    detector: BoxDetector,
    pictures: np.ndarray,
    *,
    name: str,
    score_threshold: float,
    video: str = "pictures",
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Call a detector of persons, and check its output.

    Boxes are cut to the picture; those below the score or outside the picture are left out.

    Args:
        detector: see :data:`BoxDetector`.
        pictures: uint8 [n, H, W, 3].
        name: of the detector, for messages.
        score_threshold: minimum score.
        video: of the pictures, for messages.

    Returns:
        For each picture boxes float32 [k, 4], x1, y1, x2, y2 in shares of its width and height, and scores
        float32 [k], in descending order.

    Raises:
        UserError: the detector's output is not as promised.
        PlugInFailed: the detector raised an error.
    """
    try:
        found = detector(pictures)
    except (UserError, RunFailed):
        raise
    except Exception as error:  # whatever the user's own code does
        raise PlugInFailed(f"detector {name!r} failed on {video}: {_told(error)}") from error
    if not isinstance(found, Sequence | np.ndarray) or len(found) != len(pictures):
        many = f"{len(found)} results" if hasattr(found, "__len__") else _kind(found)
        raise UserError(f"detector {name!r} returned {many} for {len(pictures)} pictures; {_PROMISE}")
    height, width = pictures.shape[1:3]
    return [_checked(rows, height, width, name, score_threshold) for rows in found]


def _import(module_name: str, name: str) -> Any:
    here = os.getcwd()
    added = here not in sys.path and "" not in sys.path
    if added:  # an installed command does not look there, and `python -m` does
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module_name)
    except UserError:
        raise
    except ModuleNotFoundError as error:
        parts = module_name.split(".")
        if error.name in {".".join(parts[: count + 1]) for count in range(len(parts))}:
            raise UserError(
                f"detector {name!r}: there is no module {error.name}, neither installed nor in {here}"
            ) from error
        raise UserError(
            f"detector {name!r}: {module_name} needs the module {error.name}, which is not installed"
        ) from error
    except Exception as error:  # whatever the user's own module does when it is run
        raise UserError(
            f"detector {name!r}: importing {module_name} failed: {type(error).__name__}: {error}"
        ) from error
    finally:
        if added:
            sys.path.remove(here)


def _made(maker: Any, options: dict[str, Any], name: str) -> Any:
    """What a class, or a function that makes detectors, gives for these options."""
    try:
        signature = inspect.signature(maker)
    except ValueError:  # written in C: it will say itself what is wrong
        signature = None
    if signature is not None:
        try:
            signature.bind(**options)
        except TypeError as error:
            known = ", ".join(signature.parameters) or "none"
            raise UserError(
                f"detector {name!r}: its options do not fit ({error}); it takes: {known}"
            ) from error
    try:
        return maker(**options)
    except (UserError, RunFailed):
        raise
    except Exception as error:  # whatever the user's own code does
        raise PlugInFailed(f"detector {name!r} could not be made: {_told(error)}") from error


def _checked(
    rows: Any, height: int, width: int, name: str, score_threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    try:
        table = np.asarray(rows, np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"detector {name!r} returned {_kind(rows)} for a picture, which is no array; {_PROMISE}"
        ) from error
    if table.size == 0:
        table = table.reshape(0, 5)
    if table.ndim != 2 or table.shape[1] != 5:
        shape = list(table.shape)
        raise UserError(f"detector {name!r} returned an array {shape} for a picture; {_PROMISE}")
    boxes, scores = table[:, :4], table[:, 4]
    if not np.isfinite(table).all():
        raise UserError(f"detector {name!r} returned a number that is not finite; {_PROMISE}")
    if ((scores < 0) | (scores > 1)).any():
        wrong = scores[(scores < 0) | (scores > 1)][0]
        raise UserError(
            f"detector {name!r} returned the score {wrong:g}; scores are between 0 and 1, after the softmax "
            "or sigmoid"
        )
    if (boxes[:, 2:] < boxes[:, :2]).any():
        wrong_box = boxes[(boxes[:, 2:] < boxes[:, :2]).any(axis=1)][0]
        raise UserError(
            f"detector {name!r} returned the box {np.round(wrong_box, 2).tolist()}, which ends before it "
            "begins; a box is x1, y1, x2, y2 (left, top, right, bottom), and not width and height"
        )
    if len(boxes) and boxes.max() <= 1.0 and min(height, width) > 2:
        raise UserError(
            f"detector {name!r} returned boxes within 0..1 for pictures of {width}x{height}; give pixels, "
            "and not shares of the picture"
        )
    boxes = np.clip(boxes, 0, [width, height, width, height]) / [width, height, width, height]
    kept = (scores >= score_threshold) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    order = np.flatnonzero(kept)[np.argsort(-scores[kept], kind="stable")]
    return boxes[order].astype(np.float32), scores[order].astype(np.float32)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _kind(thing: Any) -> str:
    name = type(thing).__name__
    return "None" if thing is None else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
