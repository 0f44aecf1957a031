"""AVA's annotations as arrays: key frames for training or testing, with their boxes and labels.

All training boxes of AVA, including a detector's, use about 20 MB.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from videomaskfeat.ava import (
    NO_ACTION,
    TRUTH_FORM,
    AvaRows,
    VideoNames,
    read_detections,
    read_groundtruth,
    read_times,
)
from videomaskfeat.boxes import best_overlaps
from videomaskfeat.errors import UserError

logger = logging.getLogger(__name__)

Files = Sequence[str | os.PathLike[str]]


@dataclass(frozen=True)
class KeyFrame:
    """One moment of one video.

    Attributes:
        video: name of the video in the files.
        seconds: time as in the files (AVA: in the original video).
        boxes: float32 [R, 4], x1, y1, x2, y2 as fractions of the frame's width and height.
        labels: bool [R, L]; column i is the action with id i + 1.
        scores: float32 [R], person scores of a detector; 1 for ground truth.
    """

    video: str
    seconds: float
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


class KeyFrames(Sequence[KeyFrame]):
    """Key frames sorted by video and time, each with at least one box.

    Attributes:
        source: file names, for messages.
        classes: number of actions, L.
        videos: sorted video names.
        video: int32 [n], index into ``videos`` for each key frame.
        seconds: float64 [n].
        starts: int64 [n + 1], offset of the first box of each key frame, and the number of boxes.
        boxes: float32 [R, 4], boxes of all key frames.
        scores: float32 [R].
        boxless: video and second of key frames in the files without a box: no box has a sufficient score, or
            the row has no box (AVA-Kinetics: no person).
        files: file names; empty if unknown.
        origin: int32 [n, 2], index into ``files`` and line of the first row of each key frame.
    """

    def __init__(
        self,
        *,
        source: str,
        videos: Sequence[str],
        video: np.ndarray,
        seconds: np.ndarray,
        starts: np.ndarray,
        boxes: np.ndarray,
        labels: np.ndarray,
        scores: np.ndarray,
        boxless: Sequence[tuple[str, float]] = (),
        files: Sequence[str] = (),
        origin: np.ndarray | None = None,
    ) -> None:
        """See the attributes; ``labels`` is bool [R, L]."""
        self.source, self.classes, self.videos = source, labels.shape[1], tuple(videos)
        self.video, self.seconds, self.starts = video.astype(np.int32), seconds, starts
        self.boxes, self.scores = boxes.astype(np.float32), scores.astype(np.float32)
        self.boxless, self.files = tuple(boxless), tuple(files)
        self.origin = np.zeros((len(video), 2), np.int32) if origin is None else origin
        self._packed_labels = np.packbits(labels, axis=1)

    def __len__(self) -> int:
        return len(self.video)

    def __getitem__(self, index: int) -> KeyFrame:  # type: ignore[override]
        """Key frame ``index``, which may be negative; slices are not supported."""
        video, seconds = self.videos[self.video[index]], float(self.seconds[index])
        index %= len(self)
        rows = slice(int(self.starts[index]), int(self.starts[index + 1]))
        return KeyFrame(video, seconds, self.boxes[rows], self._unpack_labels(rows), self.scores[rows])

    @property
    def labels(self) -> np.ndarray:
        """Labels of all boxes, bool [R, L]."""
        return self._unpack_labels(slice(None))

    def select(self, mask: np.ndarray) -> KeyFrames:
        """The key frames for which ``mask``, bool [n], is True."""
        counts = np.diff(self.starts)
        box_mask = np.repeat(mask, counts)
        return KeyFrames(
            **{name: getattr(self, name) for name in ("source", "videos", "boxless", "files")},
            **{name: getattr(self, name)[mask] for name in ("video", "seconds", "origin")},
            **{name: getattr(self, name)[box_mask] for name in ("boxes", "labels", "scores")},
            starts=np.concatenate([[0], np.cumsum(counts[mask])]),
        )

    def of_videos(self, videos: Sequence[str]) -> KeyFrames:
        """The key frames of these sorted ``videos``; a video may have no key frames."""
        indices = {name: index for index, name in enumerate(videos)}
        video = np.array([indices.get(name, -1) for name in self.videos], np.int32)[self.video]
        result = self.select(video >= 0)
        result.video, result.videos = video[video >= 0], tuple(videos)
        result.boxless = tuple(moment for moment in self.boxless if moment[0] in indices)
        return result

    def location(self, index: int) -> str:
        """The first row of key frame ``index`` as ``file:line``, for messages."""
        file, line = self.origin[index].tolist()
        return f"{self.files[file]}:{line}" if self.files else self.source

    def absent_from(self, other: KeyFrames) -> list[tuple[str, float]]:
        """Video and second of the key frames that are not in ``other``."""
        moments = set(other.moments())
        return [moment for moment in self.moments() if moment not in moments]

    def moments(self) -> list[tuple[str, float]]:
        """Video and second of each key frame."""
        names = [self.videos[video] for video in self.video.tolist()]
        return list(zip(names, self.seconds.tolist(), strict=True))

    def _unpack_labels(self, rows: slice) -> np.ndarray:
        return np.unpackbits(self._packed_labels[rows], axis=1, count=self.classes).astype(bool)

    def __repr__(self) -> str:
        return f"KeyFrames({len(self)} with {len(self.boxes)} boxes of {self.source}, {self.classes} classes)"


def detected_key_frames(
    detections: Files, *, classes: int, score_threshold: float = 0.8, exclusions: Files = ()
) -> KeyFrames:
    """Read detected boxes for testing; there may be none. See `training_key_frames` for the arguments.

    PySlowFast's AVA configs use a score threshold of 0.8; its default is 0.9. Actions in the files are kept.
    """
    _check_fraction("score_threshold", score_threshold)
    names = VideoNames()
    detected = [_read_detections(path, names, classes) for path in detections]
    excluded = read_times(exclusions, names)
    table = _merge([_group(rows, names, classes, score_threshold) for rows in detected], classes)
    return _key_frames(table, detected, names, excluded, score_threshold)


def training_key_frames(
    groundtruth: Files,
    detections: Files = (),
    *,
    classes: int,
    score_threshold: float = 0.9,
    iou_threshold: float = 0.9,
    exclusions: Files = (),
) -> KeyFrames:
    """Read ground-truth boxes, and detected boxes with labels from the ground truth.

    A detected box gets the actions of the ground-truth box of its key frame with the largest overlap, if the
    overlap reaches ``iou_threshold``; otherwise it is a negative. Detections from a file with actions, such
    as the published lists, keep those instead. Equal boxes in several files become one box with all actions.

    Args:
        groundtruth: files of `video,second,x1,y1,x2,y2,action,person`; boxes without an action are kept.
        detections: files of `video,second,x1,y1,x2,y2,action,score`; the action may be empty.
        classes: number of actions, L; ids count from 1 to this.
        score_threshold: minimum score of a detected box (default: PySlowFast's
            ``AVA.DETECTION_SCORE_THRESH``).
        iou_threshold: minimum intersection over union for labels from the ground truth (default: that of the
            published lists).
        exclusions: files of `video,second` to leave out.

    Raises:
        UserError: a file is missing, a row is wrong, no box is left, or a file of detections without actions
            has only videos without ground truth.
    """
    _check_fraction("score_threshold", score_threshold)
    _check_fraction("iou_threshold", iou_threshold)
    names = VideoNames()
    truth = [read_groundtruth(path, names, largest=classes) for path in groundtruth]
    truth_videos = len(names)
    for rows in truth:
        if not len(rows.videos):
            raise UserError(
                f"{rows.source} has no rows{' with a box' if len(rows.empty_lines) else ''}; ground truth "
                f"has a row `{TRUTH_FORM}` for each box and action"
            )
    detected = [_read_detections(path, names, classes) for path in detections]
    for rows in detected if truth else ():
        _check_videos(rows, names, truth_videos)
    excluded = read_times(exclusions, names)
    truth_table = _merge([_group(rows, names, classes) for rows in truth], classes)
    tables = [truth_table]
    for rows in detected:
        table = _group(rows, names, classes, score_threshold)
        if (rows.actions == NO_ACTION).all():
            table = _with_labels(table, truth_table, iou_threshold)
        tables.append(table)
    key_frames = _key_frames(_merge(tables, classes), [*truth, *detected], names, excluded, score_threshold)
    if not len(key_frames):
        raise UserError(
            f"{key_frames.source}: no box is left; check the exclusions"
            + (f", and lower the score threshold ({score_threshold:g})" if detected else "")
        )
    if not key_frames.labels.any():
        raise UserError(f"{key_frames.source}: no box has an action; give the ground truth with its actions")
    return key_frames


@dataclass(frozen=True)
class _Table:
    """Distinct boxes, sorted by key frame and corners."""

    keys: np.ndarray  # int64 [n], `VideoNames.key_frames`
    boxes: np.ndarray  # float64 [n, 4]
    labels: np.ndarray  # bool [n, L]
    scores: np.ndarray  # float64 [n]


def _read_detections(path: str | os.PathLike[str], names: VideoNames, classes: int) -> AvaRows:
    rows = read_detections(path, names, largest=classes)
    wrong = (rows.scores < 0) | (rows.scores > 1)
    if wrong.any():
        row = int(wrong.argmax())
        raise UserError(
            f"{rows.source}:{rows.lines[row]}: the score {rows.scores[row]:g} is not in 0..1; is this "
            "a file of ground truth, whose last column counts persons?"
        )
    return rows


def _check_videos(rows: AvaRows, names: VideoNames, truth_videos: int) -> None:
    """Warn about detections in videos without ground truth; UserError if all of them would be negatives."""
    other = rows.videos >= truth_videos
    if not other.any():
        return
    videos = np.unique(rows.videos[other])
    first, no_actions = names.texts()[videos[0]], (rows.actions == NO_ACTION).all()
    if no_actions and other.all():
        raise UserError(
            f"{rows.source}: no box belongs to a video of the ground truth (the first is of {first}), so "
            f"all would be negatives; give the boxes of the same split and version"
        )
    logger.warning(
        "%s: %d boxes belong to %d videos without ground truth (%s, ...)%s",
        rows.source,
        int(other.sum()),
        len(videos),
        first,
        ": training uses them as persons without an action" if no_actions else "",
    )


def _group(rows: AvaRows, names: VideoNames, classes: int, score_threshold: float = 0.0) -> _Table:
    """The boxes of a file with sufficient scores, each once with all its actions and its best score."""
    mask = rows.scores >= score_threshold
    keys, boxes = names.key_frames(rows.videos[mask], rows.times[mask]), rows.boxes[mask]
    order, first = _sort_boxes(keys, boxes)
    group = np.cumsum(first) - 1
    actions = rows.actions[mask][order]
    labels = np.zeros((int(first.sum()), classes), bool)
    has_action = actions != NO_ACTION
    labels[group[has_action], actions[has_action] - 1] = True
    scores = _reduce_groups(np.maximum, rows.scores[mask][order], first)
    return _Table(keys[order][first], boxes[order][first], labels, scores)


def _merge(tables: Sequence[_Table], classes: int) -> _Table:
    """The boxes of all tables, each once with all its actions and its best score."""
    empty = _Table(np.empty(0, np.int64), np.empty((0, 4)), np.empty((0, classes), bool), np.empty(0))
    keys, boxes, labels, scores = (
        np.concatenate([getattr(table, column.name) for table in (empty, *tables)])
        for column in fields(_Table)
    )
    order, first = _sort_boxes(keys, boxes)
    return _Table(
        keys[order][first],
        boxes[order][first],
        _reduce_groups(np.logical_or, labels[order], first),
        _reduce_groups(np.maximum, scores[order], first),
    )


def _sort_boxes(keys: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The order by key frame and corners, int64 [n], and where in it a new box begins, bool [n]."""
    order = np.lexsort((*boxes.T[::-1], keys))
    keys, boxes = keys[order], boxes[order]
    first = np.ones(len(keys), bool)
    first[1:] = (keys[1:] != keys[:-1]) | (boxes[1:] != boxes[:-1]).any(axis=1)
    return order, first


def _reduce_groups(function: np.ufunc, values: np.ndarray, first: np.ndarray) -> np.ndarray:
    return function.reduceat(values, np.flatnonzero(first), axis=0) if len(values) else values


def _with_labels(detected: _Table, truth: _Table, iou_threshold: float) -> _Table:
    """Detected boxes with the labels of the ground-truth boxes that they overlap most."""
    first, last = (np.searchsorted(truth.keys, detected.keys, side=side) for side in ("left", "right"))
    best = best_overlaps(detected.boxes, truth.boxes, first, last, threshold=iou_threshold)
    labels = np.zeros_like(detected.labels)
    labels[best >= 0] = truth.labels[best[best >= 0]]
    return replace(detected, labels=labels)


def _key_frames(
    table: _Table,
    files: Sequence[AvaRows],
    names: VideoNames,
    excluded: tuple[np.ndarray, np.ndarray],
    score_threshold: float,
) -> KeyFrames:
    """The boxes of key frames that are not excluded; logs the counts, and key frames without a box."""
    excluded_keys = names.key_frames(*excluded)
    mask = ~np.isin(table.keys, excluded_keys)
    keys, starts = np.unique(table.keys[mask], return_index=True)
    all_keys = np.concatenate([np.empty(0, np.int64), *(_row_keys(rows, names) for rows in files)])
    boxless = names.moments(np.setdiff1d(all_keys, np.concatenate([keys, excluded_keys])))
    moments = names.moments(keys)
    videos = sorted({video for video, _ in moments})
    indices = {video: index for index, video in enumerate(videos)}
    result = KeyFrames(
        source=", ".join(rows.source for rows in files),
        videos=videos,
        video=np.array([indices[video] for video, _ in moments], np.int32),
        seconds=np.array([seconds for _, seconds in moments], np.float64),
        starts=np.append(starts, mask.sum()),
        boxes=table.boxes[mask],
        labels=table.labels[mask],
        scores=table.scores[mask],
        boxless=boxless,
        files=[rows.source for rows in files],
        origin=_origin(keys, all_keys, files),
    )
    logger.info(
        "%s: %d boxes, %d of them with an action, in %d key frames of %d videos",
        result.source,
        len(result.boxes),
        int(result.labels.any(axis=1).sum()),
        len(result),
        len(videos),
    )
    if boxless:
        logger.warning(
            "%s: %d of %d key frames have no box%s, and are left out (%s at %g s, ...)",
            result.source,
            len(boxless),
            len(boxless) + len(result),
            f" with a score of {score_threshold:g} or more" if any(rows.scored for rows in files) else "",
            *boxless[0],
        )
    return result


def _row_keys(rows: AvaRows, names: VideoNames) -> np.ndarray:
    """The key frames of all rows of a file, int64 [n + k]: rows with a box first."""
    videos, times = [rows.videos, rows.empty_videos], [rows.times, rows.empty_times]
    return names.key_frames(np.concatenate(videos), np.concatenate(times))


def _origin(keys: np.ndarray, all_keys: np.ndarray, files: Sequence[AvaRows]) -> np.ndarray:
    """File and line, int32 [n, 2], of the first row of each key frame; ``all_keys`` are those of all rows."""
    file_lines = [np.concatenate([rows.lines, rows.empty_lines]) for rows in files]
    file_numbers = np.repeat(np.arange(len(files)), np.array([len(lines) for lines in file_lines], int))
    lines = np.concatenate([np.empty(0, np.int64), *file_lines])
    unique, first = np.unique(all_keys, return_index=True)
    rows = first[np.searchsorted(unique, keys)]
    return np.column_stack([file_numbers[rows], lines[rows]]).astype(np.int32)


def _check_fraction(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UserError(f"{name}={value:g} is not in 0..1")
