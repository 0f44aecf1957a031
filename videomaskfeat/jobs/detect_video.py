"""What is found in a video as JSON, as rows of AVA's form, and in a few words."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import simplejson

from videomaskfeat import __version__
from videomaskfeat.ava import AVA_ACTIONS
from videomaskfeat.data.reader import VideoReadError
from videomaskfeat.data.readers_seeking import open_timed
from videomaskfeat.engine.distributed import choose_device, uses_bf16
from videomaskfeat.errors import UserError
from videomaskfeat.inference.detectors import LoadedDetector, load_detector
from videomaskfeat.inference.persons import (
    KeyFrameActions,
    Progress,
    VideoActions,
    check_boxes,
    check_told,
    find_actions,
    load_box_detector,
)
from videomaskfeat.inference.scores import file_sha256
from videomaskfeat.io import make_folder, whole_file
from videomaskfeat.jobs.visualize import free_name
from videomaskfeat.metrics.ava_map import Detections, write_detections
from videomaskfeat.viz.labelled import Bar, DrawnPerson, film_rate, write_persons

_COMMONEST = 3  # actions that the closing words name


def as_data(found: VideoActions, *, threshold: float, protocol: Mapping[str, Any]) -> dict[str, Any]:
    """What was found, as plain data for JSON.

    Args:
        found: see :class:`~videomaskfeat.inference.persons.VideoActions`.
        threshold: the least score of an action that is told of.
        protocol: what the result depends on.
    """
    return {
        "path": found.path,
        "width": found.width,
        "height": found.height,
        "fps": found.fps,
        "duration_seconds": found.duration_seconds,
        "start_second": found.start_second,
        "persons": found.persons,
        "key_frames": [
            {
                "seconds": round(frame.seconds, 3),
                "persons": [
                    _person(found, frame, row, threshold=threshold) for row in range(len(frame.boxes))
                ],
            }
            for frame in found.key_frames
        ],
        "notes": list(found.notes),
        "protocol": dict(protocol),
    }


def write_json(
    path: str | os.PathLike[str], found: VideoActions, *, threshold: float, protocol: Mapping[str, Any]
) -> None:
    """Write :func:`as_data`."""
    with whole_file(path) as file:
        data = as_data(found, threshold=threshold, protocol=protocol)
        file.write(simplejson.dumps(data, indent=2, ignore_nan=True) + "\n")


def write_rows(path: str | os.PathLike[str], found: VideoActions) -> None:
    """Write `video,second,x1,y1,x2,y2,action,score`, a row a box and action, of scores that are not smoothed.

    The second is that of the file of boxes, so that ``score-ava`` can judge the rows.
    """
    name, actions = Path(found.path).stem, list(found.actions)
    frames = np.repeat(np.arange(len(found.key_frames)), [len(frame.boxes) for frame in found.key_frames])
    scores = np.concatenate([frame.scores for frame in found.key_frames])  # [R, L]
    write_detections(
        path,
        [(name, frame.seconds + found.start_second) for frame in found.key_frames],
        Detections.of_box_scores(
            frames,
            np.concatenate([frame.boxes for frame in found.key_frames]),
            scores[:, [number - 1 for number in actions]],
            actions,
        ),
    )


def closing_words(found: VideoActions, *, threshold: float) -> str:
    """A line for people: how many persons, and what most of them do."""
    boxes = sum(len(frame.boxes) for frame in found.key_frames)
    seen: Counter[str] = Counter()
    for frame in found.key_frames:
        for row in range(len(frame.boxes)):
            seen.update(action.name for action in found.actions_of(frame, row, threshold=threshold))
    # Of equally frequent ones the first by name, so that the words do not depend on the order of boxes.
    common = sorted(seen.items(), key=lambda item: (-item[1], item[0]))[:_COMMONEST]
    doing = ", ".join(f"{name} {count}x" for name, count in common)
    said = doing or f"no action at a score of {threshold:g} or more"
    return (
        f"{found.path}: {_count(found.persons, 'person')} in {_count(len(found.key_frames), 'key frame')}, "
        f"{_count(boxes, 'box', 'boxes')}: {said}"
    )


def _person(found: VideoActions, frame: KeyFrameActions, row: int, *, threshold: float) -> dict[str, Any]:
    shares = frame.boxes[row].tolist()
    scale = (found.width, found.height) * 2
    return {
        "track": int(frame.tracks[row]) + 1,
        "box": [round(share, 5) for share in shares],
        "box_pixels": [round(share * side, 2) for share, side in zip(shares, scale, strict=True)],
        "box_score": round(float(frame.box_scores[row]), 5),
        "actions": [
            {
                "id": action.id,
                "name": action.name,
                "score": round(action.score, 5),
                "unsmoothed_score": round(action.unsmoothed, 5),
            }
            for action in found.actions_of(frame, row, threshold=threshold)
        ],
    }


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


# The film of a video with what its persons do: boxes that move smoothly between key frames.
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
            found: see :class:`~videomaskfeat.inference.persons.VideoActions`.
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
        found: see :class:`~videomaskfeat.inference.persons.VideoActions`.
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


# ``detect``: who does what in anybody's videos, as JSON, as AVA's rows and drawn into the video.
_SUFFIX = "_actions"  # of every file that is written


@dataclass(frozen=True)
class Detected:
    """What ``detect`` did.

    Attributes:
        found: of each video that could be read, in the order asked for.
        failures: one error, with path and cause, for each that could not, or whose film could not be made.
        files: all that was written.
    """

    found: list[VideoActions] = field(default_factory=list)
    failures: list[VideoReadError] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


def detect_videos(
    checkpoint: str | os.PathLike[str],
    videos: Sequence[str],
    out: str | os.PathLike[str] = ".",
    *,
    boxes: str | os.PathLike[str] | None = None,
    detector: str | None = None,
    detector_options: Mapping[str, Any] | None = None,
    box_score: float | None = None,
    every: float = 1.0,
    start_second: float | None = None,
    threshold: float = 0.4,
    top: int = 3,
    smooth_seconds: float = 0.7,
    min_iou: float = 0.3,
    max_gap_seconds: float | None = None,
    film: bool = True,
    csv: bool = False,
    device: str = "auto",
    precision: str = "auto",
    clips_at_once: int = 8,
    progress: Progress | None = None,
    on_video: Callable[[str, Sequence[Path]], None] | None = None,
) -> Detected:
    """Find persons' actions in videos, and write them down.

    Args:
        checkpoint: weights (safetensors) of a detector of actions.
        videos: files, at least one.
        out: folder for ``NAME_actions.json``, ``NAME_actions.mp4`` and ``NAME_actions.csv`` of each.
        boxes: see :func:`~videomaskfeat.inference.persons.find_actions`, and so are the others up
            to ``clips_at_once`` that do not stand here.
        detector: ``package.module:name``, see :mod:`~videomaskfeat.inference.persons`.
        detector_options: its keyword arguments.
        box_score: least score of a box.
        every: seconds between key frames.
        start_second: the time of the first picture in the file of boxes.
        threshold: the least score of an action that is told of, 0..1.
        top: actions a person that are drawn, at most.
        smooth_seconds: standard deviation of the average over a track.
        min_iou: least overlap of two boxes of a track.
        max_gap_seconds: that a track may miss.
        film: write the mp4.
        csv: write the CSV file.
        device: auto, cpu, cuda or cuda:N.
        precision: auto (bf16 on a GPU, fp32 on a CPU), fp32 or bf16.
        clips_at_once: clips that go through the network together.
        progress: told of the key frames of each video.
        on_video: told of each video in words, with its files.

    Raises:
        UserError: the checkpoint or an argument is wrong, the file of boxes lacks a video, or no video could
            be read.
        RunFailed: a score is not finite, or the detector raised an error.
    """
    options = dict(detector_options or {})
    _check(videos, detector, options, threshold=threshold, top=top)
    check_told(smooth_seconds=smooth_seconds, min_iou=min_iou, max_gap_seconds=max_gap_seconds)
    place = choose_device(device)
    loaded = load_detector(checkpoint, device=place, bf16=uses_bf16(precision, place))
    finder = None if detector is None else load_box_detector(detector, options)
    if boxes is not None:
        check_boxes(boxes, videos, classes=max(AVA_ACTIONS, loaded.recipe.classes))
    make_folder(out)
    loaded.choose_threads()
    about = {
        **_files_of(checkpoint, boxes, detector, options),
        "box_score": loaded.recipe.score_threshold if box_score is None else box_score,
        "every": every,
        "threshold": threshold,
        "smooth_seconds": smooth_seconds,
        "min_iou": min_iou,
        **_sight_of(loaded),
        "version": __version__,
    }
    result, names = Detected(), set[str]()
    for video in videos:
        try:
            found = find_actions(
                loaded,
                video,
                boxes=boxes,
                box_detector=finder,
                box_score=box_score,
                every=every,
                start_second=start_second,
                smooth_seconds=smooth_seconds,
                min_iou=min_iou,
                max_gap_seconds=max_gap_seconds,
                clips_at_once=clips_at_once,
                progress=progress,
            )
        except VideoReadError as error:
            result.failures.append(error)
            continue
        result.found.append(found)
        name = free_name(Path(video).stem + _SUFFIX, names)
        names.add(name)
        gap = 2 * found.every if max_gap_seconds is None else max_gap_seconds
        protocol = {**about, "max_gap_seconds": gap}
        files = _write(
            found, Path(out) / name, result, protocol, threshold=threshold, top=top, film=film, csv=csv
        )
        result.files.extend(files)
        if on_video is not None:
            on_video("\n".join([closing_words(found, threshold=threshold), *found.notes]), files)
    if not result.found:
        raise UserError(f"none of the {len(videos)} videos could be read; the first: {result.failures[0]}")
    return result


def _write(
    found: VideoActions,
    base: Path,
    result: Detected,
    about: Mapping[str, Any],
    *,
    threshold: float,
    top: int,
    film: bool,
    csv: bool,
) -> list[Path]:
    """The files of one video; a film that breaks off is a failure of the result."""
    files = [base.with_name(f"{base.name}.json")]
    write_json(files[0], found, threshold=threshold, protocol=about)
    if csv:
        files.append(base.with_name(f"{base.name}.csv"))
        write_rows(files[-1], found)
    if film:
        target = base.with_name(f"{base.name}.mp4")
        try:
            write_film(target, found, threshold=threshold, top=top)
        except VideoReadError as error:  # damaged beyond what the clips needed
            result.failures.append(VideoReadError(error.path, f"no annotated video: {error.cause}"))
        else:
            files.append(target)
    return files


def _check(
    videos: Sequence[str], detector: str | None, options: Mapping[str, Any], *, threshold: float, top: int
) -> None:
    """Refuse what cannot be before anything is read."""
    if not videos:
        raise UserError("no video: give at least one file")
    if not 0 <= threshold <= 1:
        raise UserError(f"threshold {threshold:g} is not between 0 and 1; it is an action's least score")
    if top < 1:
        raise UserError(f"top {top}: ask for at least 1 action")
    if options and detector is None:
        raise UserError(
            f"options {', '.join(options)}: without a detector of persons nothing takes them; name it"
        )


def _files_of(
    checkpoint: str | os.PathLike[str],
    boxes: str | os.PathLike[str] | None,
    detector: str | None,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Whose weights are used, and who says where the persons are."""
    found_by: dict[str, Any] = {"detector": detector, "options": dict(options)}
    if boxes is not None:
        found_by = {"file": os.fspath(boxes), "sha256": file_sha256(boxes)}
    return {
        "weights": os.fspath(checkpoint),
        "weights_sha256": file_sha256(checkpoint),
        "boxes": found_by,
    }


def _sight_of(detector: LoadedDetector) -> dict[str, Any]:
    """How the detector is shown the videos."""
    clip = detector.recipe.clip
    return {
        "frames": clip.frames,
        "stride": clip.stride,
        "target_fps": clip.target_fps,
        "short_side": detector.recipe.short_side,
        "area": "whole",
        "mean": clip.mean,
        "std": clip.std,
        "precision": "bf16" if detector.bf16 else "fp32",
    }
