"""The film of a video with what its persons do: boxes that move smoothly between key frames."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from videomaskfeat.data.readers_seeking import open_timed
from videomaskfeat.tasks.detection.video_actions import KeyFrameActions, VideoActions
from videomaskfeat.viz.detected import DrawnPerson, write_persons
from videomaskfeat.viz.labelled import Bar, film_rate

_STRETCH = 20.0  # seconds of the video that are read in a row: the reader holds their packets


@dataclass(frozen=True)
class _Track:
    seconds: np.ndarray  # float64 [m], ascending
    boxes: np.ndarray  # float64 [m, 4]
    rows: list[tuple[KeyFrameActions, int]]  # [m]
    first: float  # second from which it is shown
    last: float


class Timeline:
    """Who is where at any time of a video.

    Between two key frames of a track the box moves in a straight line, over key frames without it too; the
    actions are those of the nearer key frame, so that they can be read. Before the first and after the last
    key frame of a track the box stands still for half of ``found.every``, and for all of it before the
    video's first key frame and after its last.
    """

    def __init__(self, found: VideoActions, *, threshold: float, top: int) -> None:
        """Take the tracks apart.

        Args:
            found: see :class:`~videomaskfeat.tasks.detection.video_actions.VideoActions`.
            threshold: the least score of an action that is told of.
            top: actions a person, at most.
        """
        self._found, self._threshold, self._top = found, threshold, top
        rows: dict[int, list[tuple[KeyFrameActions, int]]] = {}
        for frame in found.key_frames:
            for row, track in enumerate(frame.tracks.tolist()):
                rows.setdefault(track, []).append((frame, row))
        self._tracks = {track: self._track(own) for track, own in rows.items()}

    def at(self, seconds: float) -> list[DrawnPerson]:
        """The persons at a time after the first picture, by number."""
        return [
            self._person(number, track, seconds)
            for number, track in sorted(self._tracks.items())
            if track.first <= seconds <= track.last
        ]

    def _track(self, rows: list[tuple[KeyFrameActions, int]]) -> _Track:
        seconds = np.array([frame.seconds for frame, _ in rows])
        first, last = seconds[0] - self._found.every / 2, seconds[-1] + self._found.every / 2
        if rows[0][0] is self._found.key_frames[0]:
            first = seconds[0] - self._found.every
        if rows[-1][0] is self._found.key_frames[-1]:
            last = seconds[-1] + self._found.every
        boxes = np.array([frame.boxes[row] for frame, row in rows], np.float64)
        return _Track(seconds, boxes, rows, float(first), float(last))

    def _person(self, number: int, track: _Track, seconds: float) -> DrawnPerson:
        x1, y1, x2, y2 = (float(np.interp(seconds, track.seconds, track.boxes[:, side])) for side in range(4))
        frame, row = track.rows[int(np.abs(track.seconds - seconds).argmin())]
        actions = self._found.actions_of(frame, row, threshold=self._threshold)[: self._top]
        bars = tuple(Bar(action.name, action.score) for action in actions)
        return DrawnPerson(number, (x1, y1, x2, y2), f"person {number + 1}", bars)


def write_film(
    path: str | os.PathLike[str], found: VideoActions, *, threshold: float = 0.4, top: int = 3
) -> None:
    """Draw what was found into the video, without its sound.

    The film has a steady rate, the video's average, and at each of its moments the picture that the video
    shows then: one whose pictures come at uneven times plays at its own pace.

    Args:
        path: a local file to write, mp4.
        found: see :class:`~videomaskfeat.tasks.detection.video_actions.VideoActions`.
        threshold: the least score of an action that is drawn.
        top: actions a person, at most.

    Raises:
        VideoReadError: the video cannot be read to its end.
    """
    fps = film_rate(found.fps)
    timeline = Timeline(found, threshold=threshold, top=top)
    count = max(round(found.duration_seconds * fps), 1)
    pictures = ((picture, timeline.at(number / fps)) for number, picture in _pictures(found.path, fps, count))
    write_persons(path, pictures, fps=fps)


def _pictures(path: str, fps: float, count: int) -> Iterator[tuple[int, np.ndarray]]:
    """The pictures nearest to 0, 1 / fps, ... seconds, in order, with their numbers."""
    stretch = max(math.floor(_STRETCH * fps), 1)
    with open_timed(path, threads=0) as video:
        for start in range(0, count, stretch):
            numbers = np.arange(start, min(start + stretch, count))
            early: dict[int, np.ndarray] = {}  # come before their turn, where the reader had to go back
            turn = 0
            for places, picture in video.each_at(numbers / fps):
                for place in sorted(places.tolist()):
                    if place != turn:
                        early[place] = picture.copy()
                        continue
                    yield start + place, picture
                    turn += 1
                    while turn in early:
                        yield start + turn, early.pop(turn)
                        turn += 1
