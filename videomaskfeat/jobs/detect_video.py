"""``detect``: what each person in a video does, as JSON, as AVA's rows and drawn into the video."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from videomaskfeat import __version__
from videomaskfeat.ava import AVA_ACTIONS
from videomaskfeat.data.reader import VideoReadError
from videomaskfeat.data.readers_seeking import open_timed
from videomaskfeat.errors import UserError
from videomaskfeat.inference.detectors import VideoDetector, load_detector
from videomaskfeat.inference.multiview import Progress
from videomaskfeat.inference.person_boxes import check_boxes, load_box_detector
from videomaskfeat.inference.persons import KeyFrameActions, VideoActions, check_tracking, find_actions
from videomaskfeat.inference.results import describe_weights, write_json
from videomaskfeat.io import file_sha256, free_name, make_folder
from videomaskfeat.metrics.ava_map import Detections, write_detections
from videomaskfeat.viz.labelled import Bar, DrawnPerson, film_rate, write_persons

_COMMONEST = 3  # actions that the text names
_STRETCH = 20.0  # seconds of the video that are read in a row: the reader holds their packets
_SUFFIX = "_actions"  # of every file that is written


@dataclass(frozen=True)
class Detected:
    """The result of ``detect``.

    Attributes:
        found: of each video that could be read, in the given order.
        failures: one error, with path and cause, for each video that could not be read, or whose film could
            not be made.
        files: all files that were written.
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
        boxes: file of boxes; for it and the others up to ``max_gap_seconds`` see
            :func:`~videomaskfeat.inference.persons.find_actions`.
        detector: ``package.module:name``, see
            :func:`~videomaskfeat.inference.person_boxes.load_box_detector`.
        detector_options: its keyword arguments.
        box_score: minimum score of a box.
        every: seconds between key frames.
        start_second: the time of the first picture in the file of boxes.
        threshold: minimum score of an action that is reported, 0..1.
        top: maximum number of actions per person that are drawn.
        smooth_seconds: standard deviation of the average over a track.
        min_iou: minimum overlap of two boxes of a track.
        max_gap_seconds: longest gap in a track.
        film: write the mp4.
        csv: write the CSV file.
        device: auto, cpu, cuda or cuda:N.
        precision: auto (bf16 on a GPU, fp32 on a CPU), fp32 or bf16.
        clips_at_once: clips that go through the network together.
        progress: called after each part of a video's key frames.
        on_video: called with each video's result in words, and its files.

    Raises:
        UserError: the checkpoint or an argument is wrong, the file of boxes lacks a video, or no video could
            be read.
        RunFailed: a score is not finite, or the detector raised an error.
    """
    options = dict(detector_options or {})
    _check(videos, detector, options, threshold=threshold, top=top)
    check_tracking(smooth_seconds=smooth_seconds, min_iou=min_iou, max_gap_seconds=max_gap_seconds)
    loaded = load_detector(checkpoint, device=device, precision=precision, clips_at_once=clips_at_once)
    finder = None if detector is None else load_box_detector(detector, options)
    if boxes is not None:
        check_boxes(boxes, videos, classes=max(AVA_ACTIONS, loaded.recipe.classes))
    make_folder(out)
    loaded.choose_threads()
    find: dict[str, Any] = {
        "every": every,
        "smooth_seconds": smooth_seconds,
        "min_iou": min_iou,
        "max_gap_seconds": max_gap_seconds,
    }
    protocol = {
        **describe_weights(checkpoint),
        "boxes": {"detector": detector, "options": options} if boxes is None else _file(boxes),
        "box_score": loaded.recipe.score_threshold if box_score is None else box_score,
        "threshold": threshold,
        **find,
        **_clips_as_data(loaded),
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
                start_second=start_second,
                progress=progress,
                **find,
            )
        except VideoReadError as error:
            result.failures.append(error)
            continue
        result.found.append(found)
        name = free_name(Path(video).stem + _SUFFIX, names)
        names.add(name)
        gap = 2 * found.every if max_gap_seconds is None else max_gap_seconds
        about = {**protocol, "max_gap_seconds": gap}
        kinds = {"json", *(("csv",) if csv else ()), *(("mp4",) if film else ())}
        files = _write(Path(out) / name, found, result, about, kinds, threshold=threshold, top=top)
        if on_video is not None:
            on_video("\n".join([as_text(found, threshold=threshold), *found.notes]), files)
    if not result.found:
        raise UserError(f"none of the {len(videos)} videos could be read; the first: {result.failures[0]}")
    return result


def _write(
    base: Path,
    found: VideoActions,
    result: Detected,
    protocol: Mapping[str, Any],
    kinds: set[str],
    *,
    threshold: float,
    top: int,
) -> list[Path]:
    """Write the files of one video; a film that breaks off is a failure of the result."""
    files = {kind: base.with_name(f"{base.name}.{kind}") for kind in ("json", "csv", "mp4") if kind in kinds}
    write_json(files["json"], as_data(found, threshold=threshold, protocol=protocol))
    if "csv" in files:
        write_rows(files["csv"], found)
    if "mp4" in files:
        try:
            write_film(files["mp4"], found, threshold=threshold, top=top)
        except VideoReadError as error:  # damaged beyond the frames that the clips needed
            result.failures.append(VideoReadError(error.path, f"no annotated video: {error.cause}"))
            del files["mp4"]
    result.files.extend(files.values())
    return list(files.values())


def as_data(found: VideoActions, *, threshold: float, protocol: Mapping[str, Any]) -> dict[str, Any]:
    """The result as plain data for JSON.

    Args:
        found: persons and actions of a video.
        threshold: minimum score of an action that is reported.
        protocol: what the result depends on.
    """
    return {
        "kind": "actions",
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
                "persons": [_person(found, frame, row, threshold) for row in range(len(frame.boxes))],
            }
            for frame in found.key_frames
        ],
        "notes": list(found.notes),
        "protocol": dict(protocol),
    }


def _person(found: VideoActions, frame: KeyFrameActions, row: int, threshold: float) -> dict[str, Any]:
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


def write_rows(path: str | os.PathLike[str], found: VideoActions) -> None:
    """Write `video,second,x1,y1,x2,y2,action,score`, one row per box and action, with unsmoothed scores.

    The second is that of the file of boxes, so that ``score-ava`` can judge the rows.
    """
    name, actions = Path(found.path).stem, list(found.actions)
    frames = np.repeat(np.arange(len(found.key_frames)), [len(frame.boxes) for frame in found.key_frames])
    scores = np.concatenate([frame.scores for frame in found.key_frames])  # [R, L]
    boxes = np.concatenate([frame.boxes for frame in found.key_frames])
    write_detections(
        path,
        [(name, frame.seconds + found.start_second) for frame in found.key_frames],
        Detections.of_box_scores(frames, boxes, scores[:, [number - 1 for number in actions]], actions),
    )


def as_text(found: VideoActions, *, threshold: float) -> str:
    """A line for people: how many persons, and what most of them do."""
    boxes = sum(len(frame.boxes) for frame in found.key_frames)
    seen: Counter[str] = Counter()
    for frame in found.key_frames:
        for row in range(len(frame.boxes)):
            seen.update(action.name for action in found.actions_of(frame, row, threshold=threshold))
    # Of equally frequent ones the first by name, so that the text does not depend on the order of boxes.
    common = sorted(seen.items(), key=lambda item: (-item[1], item[0]))[:_COMMONEST]
    doing = ", ".join(f"{name} {count}x" for name, count in common)

    def count(number: int, one: str, many: str) -> str:
        return f"{number} {one if number == 1 else many}"

    return (
        f"{found.path}: {count(found.persons, 'person', 'persons')} in "
        f"{count(len(found.key_frames), 'key frame', 'key frames')}, {count(boxes, 'box', 'boxes')}: "
        + (doing or f"no action at a score of {threshold:g} or more")
    )


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

    Args:
        found: persons and actions of a video.
        threshold: minimum score of an action that is drawn.
        top: maximum number of actions per person.
    """

    def __init__(self, found: VideoActions, *, threshold: float, top: int) -> None:
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
        key_frames, every = self._found.key_frames, self._found.every
        seconds = np.array([frame.seconds for frame, _ in rows])
        before = every if rows[0][0] is key_frames[0] else every / 2
        after = every if rows[-1][0] is key_frames[-1] else every / 2
        boxes = np.array([frame.boxes[row] for frame, row in rows], np.float64)
        return _Track(seconds, boxes, rows, float(seconds[0] - before), float(seconds[-1] + after))

    def _person(self, number: int, track: _Track, seconds: float) -> DrawnPerson:
        x1, y1, x2, y2 = (float(np.interp(seconds, track.seconds, track.boxes[:, side])) for side in range(4))
        frame, row = track.rows[int(np.abs(track.seconds - seconds).argmin())]
        actions = self._found.actions_of(frame, row, threshold=self._threshold)[: self._top]
        bars = tuple(Bar(action.name, action.score) for action in actions)
        return DrawnPerson(number, (x1, y1, x2, y2), f"person {number + 1}", bars)


def write_film(
    path: str | os.PathLike[str], found: VideoActions, *, threshold: float = 0.4, top: int = 3
) -> None:
    """Draw persons and actions into the video, without its sound.

    The film has a steady rate, the video's average, and at each of its moments the picture that the video
    shows then: one whose pictures come at uneven times plays at its own pace.

    Args:
        path: a local file to write, mp4.
        found: persons and actions of a video.
        threshold: minimum score of an action that is drawn.
        top: maximum number of actions per person.

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
            early: dict[int, np.ndarray] = {}  # come before their turn, if the reader had to go back
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


def _check(
    videos: Sequence[str], detector: str | None, options: Mapping[str, Any], *, threshold: float, top: int
) -> None:
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


def _clips_as_data(detector: VideoDetector) -> dict[str, Any]:
    clip = detector.recipe.clip
    return {
        "frames": clip.frames,
        "stride": clip.stride,
        "target_fps": clip.target_fps,
        "short_side": detector.recipe.short_side,
        "area": "whole",
        "mean": clip.mean,
        "std": clip.std,
        "precision": detector.machine.precision_used,
        "version": __version__,
    }


def _file(path: str | os.PathLike[str]) -> dict[str, str]:
    return {"file": os.fspath(path), "sha256": file_sha256(path)}
