"""``detect``: the actions of each person in a video, as JSON, as AVA rows and drawn into the video."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from videomaskfeat import __version__
from videomaskfeat.ava import AVA_ACTIONS
from videomaskfeat.data.reader import VideoReadError
from videomaskfeat.data.readers_seeking import open_timed
from videomaskfeat.data.windows import iter_at_rate
from videomaskfeat.errors import UserError, counted
from videomaskfeat.inference.detectors import VideoDetector, load_detector
from videomaskfeat.inference.multiview import Progress
from videomaskfeat.inference.person_boxes import check_boxes, load_box_detector
from videomaskfeat.inference.persons import KeyFrameActions, VideoActions, check_tracking, find_actions
from videomaskfeat.inference.results import describe_weights, write_json
from videomaskfeat.io import check_outputs, file_sha256, make_folder, output_paths
from videomaskfeat.metrics.ava_map import Detections, write_detections
from videomaskfeat.schemas.detect_video import ActionsConfig, DetectVideoConfig
from videomaskfeat.viz.labeled import Bar, DrawnPerson, film_rate, write_persons

_COMMON_ACTIONS = 3  # number of actions in the summary


@dataclass(frozen=True)
class Detected:
    """The result of ``detect``.

    Attributes:
        videos: the actions in each video that could be read, in the given order.
        failures: one error, with path and cause, for each unreadable video, and for each video that could not
            be annotated.
        files: all files that were written.
    """

    videos: list[VideoActions] = field(default_factory=list)
    failures: list[VideoReadError] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


def detect_videos(
    config: DetectVideoConfig,
    *,
    progress: Progress | None = None,
    on_video: Callable[[str, Sequence[Path]], None] | None = None,
) -> Detected:
    """Find the actions of persons in videos, and write ``NAME_actions.json``, ``.mp4`` and ``.csv`` for each.

    Args:
        config: the files and options of the verb.
        progress: called after each batch of key frames of a video.
        on_video: called with a summary of each video, and its files.

    Raises:
        UserError: the weights or an option is wrong, the boxes file lacks a video, an output exists, or no
            video could be read.
        RunFailed: a score is not finite, or the person detector raised an error.
    """
    files, persons, actions = config.files, config.persons, config.actions
    _check(config)
    tracking: dict[str, Any] = {
        "smooth_seconds": actions.smooth_seconds,
        "min_iou": actions.min_iou,
        "max_gap_seconds": actions.max_gap_seconds,
    }
    check_tracking(**tracking)
    detector = load_detector(files.weights, **vars(config.machine))
    box_detector = None
    if persons.detector is not None:
        box_detector = load_box_detector(persons.detector, persons.detector_options)
    if persons.boxes is not None:
        check_boxes(persons.boxes, files.videos, classes=max(AVA_ACTIONS, detector.recipe.classes))
    outputs = output_paths(files.out, files.videos, "_actions")
    kinds = [".json", *([".mp4"] if actions.film else []), *([".csv"] if actions.csv else [])]
    check_outputs((f"{path}{kind}" for path in outputs for kind in kinds), overwrite=files.overwrite)
    make_folder(files.out)
    detector.choose_threads()
    protocol = _describe_protocol(config, detector)
    result = Detected()
    for path, output in zip(files.videos, outputs, strict=True):
        try:
            video = find_actions(
                detector,
                path,
                boxes=persons.boxes,
                box_detector=box_detector,
                box_score=persons.box_score,
                every=persons.every,
                start_second=persons.start_second,
                progress=progress,
                **tracking,
            )
        except VideoReadError as error:
            result.failures.append(error)
            continue
        result.videos.append(video)
        if actions.max_gap_seconds is None:
            protocol["max_gap_seconds"] = 2 * video.every
        written = _write_video(output, video, result, protocol, actions)
        if on_video is not None:
            on_video("\n".join([format_summary(video, threshold=actions.threshold), *video.notes]), written)
    if not result.videos:
        raise UserError(
            f"none of the {len(files.videos)} videos could be read; the first: {result.failures[0]}"
        )
    return result


def _check(config: DetectVideoConfig) -> None:
    persons, actions = config.persons, config.actions
    if not config.files.videos:
        raise UserError("videos are missing; give at least one file")
    if not 0 <= actions.threshold <= 1:
        raise UserError(f"threshold {actions.threshold:g}: the minimum score of an action is in 0..1")
    if actions.top < 1:
        raise UserError(f"top {actions.top}: must be at least 1 action")
    if persons.detector_options and persons.detector is None:
        names = ", ".join(persons.detector_options)
        raise UserError(f"detector options {names} need a person detector; set it with --detector")


def _describe_protocol(config: DetectVideoConfig, detector: VideoDetector) -> dict[str, Any]:
    persons, actions, recipe = config.persons, config.actions, detector.recipe
    boxes: dict[str, Any] = {"detector": persons.detector, "options": dict(persons.detector_options)}
    if persons.boxes is not None:
        boxes = {"file": os.fspath(persons.boxes), "sha256": file_sha256(persons.boxes)}
    return {
        **describe_weights(config.files.weights),
        "boxes": boxes,
        "box_score": recipe.score_threshold if persons.box_score is None else persons.box_score,
        "threshold": actions.threshold,
        "every": persons.every,
        "smooth_seconds": actions.smooth_seconds,
        "min_iou": actions.min_iou,
        "max_gap_seconds": actions.max_gap_seconds,
        "frames": recipe.clip.frames,
        "stride": recipe.clip.stride,
        "target_fps": recipe.clip.target_fps,
        "short_side": recipe.short_side,
        "area": "whole",
        "mean": recipe.clip.mean,
        "std": recipe.clip.std,
        "precision": detector.machine.precision_used,
        "version": __version__,
    }


def _write_video(
    base: Path, video: VideoActions, result: Detected, protocol: Mapping[str, Any], actions: ActionsConfig
) -> list[Path]:
    """Write the files of one video; a film that cannot be written to its end is a failure."""
    files = [base.with_name(f"{base.name}.json")]
    write_json(files[0], to_plain_data(video, threshold=actions.threshold, protocol=protocol))
    if actions.csv:
        files.append(base.with_name(f"{base.name}.csv"))
        write_rows(files[-1], video)
    if actions.film:
        film = base.with_name(f"{base.name}.mp4")
        try:
            write_film(film, video, threshold=actions.threshold, top=actions.top)
            files.append(film)
        except VideoReadError as error:  # frames outside the clips are damaged
            result.failures.append(VideoReadError(error.path, f"no annotated video: {error.cause}"))
    result.files.extend(files)
    return files


def to_plain_data(video: VideoActions, *, threshold: float, protocol: Mapping[str, Any]) -> dict[str, Any]:
    """The content of the JSON file, with the actions that reach the threshold."""
    return {
        "kind": "actions",
        "path": video.path,
        "width": video.width,
        "height": video.height,
        "fps": video.fps,
        "duration_seconds": video.duration_seconds,
        "start_second": video.start_second,
        "persons": video.persons,
        "key_frames": [
            {
                "seconds": round(frame.seconds, 3),
                "persons": [
                    _describe_person(video, frame, row, threshold) for row in range(len(frame.boxes))
                ],
            }
            for frame in video.key_frames
        ],
        "notes": list(video.notes),
        "protocol": dict(protocol),
    }


def _describe_person(
    video: VideoActions, frame: KeyFrameActions, row: int, threshold: float
) -> dict[str, Any]:
    shares = frame.boxes[row].tolist()
    scale = (video.width, video.height) * 2
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
            for action in video.actions_of(frame, row, threshold=threshold)
        ],
    }


def write_rows(path: str | os.PathLike[str], video: VideoActions) -> None:
    """Write `video,second,x1,y1,x2,y2,action,score`, one row per box and action, with unsmoothed scores.

    Seconds count as in the boxes file, so that ``score-ava`` can read the rows.
    """
    name, actions = Path(video.path).stem, list(video.actions)
    frames = np.repeat(np.arange(len(video.key_frames)), [len(frame.boxes) for frame in video.key_frames])
    scores = np.concatenate([frame.scores for frame in video.key_frames])  # [R, L]
    boxes = np.concatenate([frame.boxes for frame in video.key_frames])
    write_detections(
        path,
        [(name, frame.seconds + video.start_second) for frame in video.key_frames],
        Detections.of_box_scores(frames, boxes, scores[:, [number - 1 for number in actions]], actions),
    )


def format_summary(video: VideoActions, *, threshold: float) -> str:
    """One line: the numbers of persons, key frames and boxes, and the most frequent actions."""
    boxes = sum(len(frame.boxes) for frame in video.key_frames)
    counts = Counter(
        action.name
        for frame in video.key_frames
        for row in range(len(frame.boxes))
        for action in video.actions_of(frame, row, threshold=threshold)
    )
    # Equal counts are sorted by name, so that the order of the boxes does not matter.
    common = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_COMMON_ACTIONS]
    actions = ", ".join(f"{name} {count}x" for name, count in common)
    return (
        f"{video.path}: {counted(video.persons, 'person')} in {counted(len(video.key_frames), 'key frame')}, "
        f"{boxes} {'box' if boxes == 1 else 'boxes'}: "
        + (actions or f"no action at a score of {threshold:g} or more")
    )


@dataclass(frozen=True)
class _Track:
    seconds: np.ndarray  # float64 [m], ascending
    boxes: np.ndarray  # float64 [m, 4]
    rows: list[tuple[KeyFrameActions, int]]  # [m]
    start: float  # seconds between which the track is drawn
    end: float


class Timeline:
    """The persons at any time of a video.

    Between two key frames of a track the box is interpolated linearly, also over key frames without it. The
    actions are those of the nearest key frame. The box is drawn for half of ``video.every`` before the first
    and after the last key frame of its track, and for all of it at the ends of the video.

    Args:
        video: persons and actions of a video.
        threshold: minimum score of an action that is drawn.
        top: maximum number of actions per person.
    """

    def __init__(self, video: VideoActions, *, threshold: float, top: int) -> None:
        self._video, self._threshold, self._top = video, threshold, top
        rows: dict[int, list[tuple[KeyFrameActions, int]]] = {}
        for frame in video.key_frames:
            for row, track in enumerate(frame.tracks.tolist()):
                rows.setdefault(track, []).append((frame, row))
        self._tracks = {track: self._build_track(own) for track, own in rows.items()}

    def at(self, seconds: float) -> list[DrawnPerson]:
        """The persons at a time after the first frame, sorted by track."""
        return [
            self._draw_person(number, track, seconds)
            for number, track in sorted(self._tracks.items())
            if track.start <= seconds <= track.end
        ]

    def _build_track(self, rows: list[tuple[KeyFrameActions, int]]) -> _Track:
        key_frames, every = self._video.key_frames, self._video.every
        seconds = np.array([frame.seconds for frame, _ in rows])
        before = every if rows[0][0] is key_frames[0] else every / 2
        after = every if rows[-1][0] is key_frames[-1] else every / 2
        boxes = np.array([frame.boxes[row] for frame, row in rows], np.float64)
        return _Track(seconds, boxes, rows, float(seconds[0] - before), float(seconds[-1] + after))

    def _draw_person(self, number: int, track: _Track, seconds: float) -> DrawnPerson:
        x1, y1, x2, y2 = (float(np.interp(seconds, track.seconds, track.boxes[:, side])) for side in range(4))
        frame, row = track.rows[int(np.abs(track.seconds - seconds).argmin())]
        actions = self._video.actions_of(frame, row, threshold=self._threshold)[: self._top]
        bars = tuple(Bar(action.name, action.score) for action in actions)
        return DrawnPerson(number, (x1, y1, x2, y2), f"person {number + 1}", bars)


def write_film(path: str | os.PathLike[str], video: VideoActions, *, threshold: float, top: int) -> None:
    """Draw persons and actions into the video, without its sound.

    The film has a constant frame rate, the average rate of the video. Each frame shows what the video shows
    at that time, also if its frames are unevenly spaced.

    Args:
        path: a local mp4 file to write.
        video: persons and actions of a video.
        threshold: minimum score of an action that is drawn.
        top: maximum number of actions per person.

    Raises:
        VideoReadError: the video cannot be read to its end.
    """
    fps = film_rate(video.fps)
    timeline = Timeline(video, threshold=threshold, top=top)
    count = max(round(video.duration_seconds * fps), 1)
    with open_timed(video.path, threads=0) as reader:
        frames = (
            (picture, timeline.at(number / fps)) for number, picture in iter_at_rate(reader, fps, count)
        )
        write_persons(path, frames, fps=fps)
