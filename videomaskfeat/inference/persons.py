"""The boxes of one video out of a file of AVA's form."""

from __future__ import annotations

import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from videomaskfeat.ava import AVA_ACTIONS, VideoNames, read_detections
from videomaskfeat.boxes import check_linking, check_smoothing, link_boxes, smooth_scores
from videomaskfeat.data.ava import KeyClip, key_clips
from videomaskfeat.data.ava_lists import detected_key_frames
from videomaskfeat.data.ava_sources import LENGTH_SLACK, clip_name, start_of
from videomaskfeat.data.reader import TimedReader
from videomaskfeat.data.readers_seeking import open_timed
from videomaskfeat.data.transforms import WholeFrame
from videomaskfeat.errors import PlugInFailed, RunFailed, UserError, nearest
from videomaskfeat.inference.detectors import LoadedDetector
from videomaskfeat.io import is_folder

_NAMED = 5  # videos, in a message


@dataclass(frozen=True)
class FileBoxes:
    """Where the persons of a video are.

    Attributes:
        seconds: float64 [n], key frames after the first picture, ascending.
        start_second: the time that the file gives to the first picture.
        boxes: of each, float32 [k, 4], x1, y1, x2, y2 in shares of the frame.
        scores: of each, float32 [k].
        notes: sentences on what was found out or left out.
    """

    seconds: np.ndarray
    start_second: float
    boxes: tuple[np.ndarray, ...]
    scores: tuple[np.ndarray, ...]
    notes: tuple[str, ...]


def check_boxes(path: str | os.PathLike[str], videos: Sequence[str], *, classes: int = AVA_ACTIONS) -> None:
    """See that a file of boxes has all of some videos, before the first of them is worked on.

    Args:
        path: as in :func:`read_boxes`, and so are the others.
        videos: paths of the video files.
        classes: the largest action that a row may have.

    Raises:
        UserError: no such file, a row that is wrong, or no box of some of the videos, which are named.
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
    """The boxes of a video, told by its file's name with or without its ending.

    Args:
        path: rows `video,second,x1,y1,x2,y2,action,score`, the action empty or not.
        video: path of the video file.
        duration_seconds: of it.
        every: seconds from one key frame to the next, at least; those in between are left out.
        score_threshold: the least score of a box. A key frame that is left without any stays.
        classes: the largest action that a row may have; nothing else is made of it.
        start_second: the time of the first picture, as the file counts; None: the second in the name of a
            clip of Kinetics (``id_000010_000020.mp4``) if the file names the whole video (``id``); else 900,
            if its times fit the video so and not otherwise (AVA's videos are cut out of films from second
            900 on), else 0.

    Raises:
        UserError: no such file, or no box of this video in it; with file and line a row that is wrong; or all
            key frames lie outside the video.
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
    clip = clip_name(Path(video).name)
    start = 0.0 if start_second is None else start_second
    if start_second is None and clip and clip[0] == own:
        start = clip[1]
        notes.append(f"The first picture is second {start:g}, as the name of the clip gives.")
    elif start_second is None and (start := start_of(seconds, duration_seconds) or 0.0):
        notes.append(
            f"The times of {name} fit the video only if its first picture is second {start:g}: taken so."
        )
    inside = (seconds >= start - LENGTH_SLACK) & (seconds - start <= duration_seconds + LENGTH_SLACK)
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
    clip = clip_name(Path(video).name)
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


# Detectors of persons as plug-ins: any Python callable from pictures to boxes, given by name.
BoxDetector = Callable[[np.ndarray], Sequence[Any]]
_PROMISE = (
    "a detector takes pictures uint8 [n, H, W, 3] and returns n arrays [k, 5], x1, y1, x2, y2 in pixels and "
    "a score"
)


def load_box_detector(name: str, options: Mapping[str, Any] | None = None) -> BoxDetector:
    """The callable that ``package.module:name`` names.

    The module is looked for among the installed packages and in the current folder. A class is called first,
    with the options as keyword arguments, and so is anything else where there are options: what it returns is
    the detector.

    Args:
        name: such as ``my_boxes:find_persons``.
        options: keyword arguments of the class, or of a function that makes a detector.

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
    """The persons in pictures, checked.

    Boxes are cut to the picture; those below the score, and those of which nothing lies in it, are left out.

    Args:
        detector: see the module.
        pictures: uint8 [n, H, W, 3].
        name: of the detector, for messages.
        score_threshold: the least score.
        video: that the pictures are of, for messages.

    Returns:
        Of each picture float32 [k, 4], x1, y1, x2, y2 in shares of its width and height, and float32 [k],
        scores, the surest first.

    Raises:
        UserError: the detector returns something else than it should.
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


# What the persons in a video do: boxes and actions in key frames, linked from one to the next.
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
        detector: of actions, see :func:`~videomaskfeat.inference.detectors.load_detector`.
        video: a file.
        boxes: a file of boxes, see :func:`~videomaskfeat.inference.persons.read_boxes`; the key
            frames are those of the file.
        box_detector: instead, what finds persons in pictures, or its name, see
            :func:`~videomaskfeat.inference.persons.load_box_detector`; the key frames are 0,
            ``every``, ...
        box_score: the least score of a box; None: as the detector was tested.
        every: seconds from one key frame to the next; of a file of boxes, the least.
        start_second: the time that the file of boxes gives to the first picture; None: found out.
        smooth_seconds: standard deviation of the average over a track; 0 for none.
        min_iou: see :func:`~videomaskfeat.boxes.link_boxes`.
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
