"""The boxes of one video out of a file of AVA's form."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from videomaskfeat.ava import AVA_ACTIONS, VideoNames, read_detections
from videomaskfeat.data.ava_sources import LENGTH_SLACK, clip_name, start_of
from videomaskfeat.data.records_ava import detected_key_frames
from videomaskfeat.errors import UserError

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
