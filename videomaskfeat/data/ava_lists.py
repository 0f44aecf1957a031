"""AVA's annotations as arrays: the key frames to train or test on, their boxes, and what each box does.

All of AVA's training boxes, those of a detector included, take some 20 MB.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

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
        video: its name in the files.
        seconds: as the files count them (AVA: of the original video).
        boxes: float32 [R, 4], x1, y1, x2, y2 in shares of the frame's width and height.
        labels: bool [R, L]; column i is the action with the id i + 1.
        scores: float32 [R], how sure a detector was of a person; 1 for ground truth.
    """

    video: str
    seconds: float
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


class KeyFrames(Sequence[KeyFrame]):
    """Key frames by video and time, each with at least one box.

    Attributes:
        source: the files, for messages.
        classes: L, columns of the labels.
        videos: names, sorted.
        video: int32 [n], which of them each key frame is of.
        seconds: float64 [n].
        starts: int64 [n + 1], where the boxes of each begin, and the number of all.
        boxes: float32 [R, 4], of all key frames one after the other.
        scores: float32 [R].
        boxless: video and second of key frames that the files name, and that are left with no box: no box
            scores enough, or the row has none, as AVA-Kinetics writes that nobody is there.
        files: that they come from; none: not known.
        origin: int32 [n, 2], in which of ``files`` and at which line each is named first.
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
        """Keep the arrays, see the attributes; ``labels`` is bool [R, L]."""
        self.source, self.classes, self.videos = source, labels.shape[1], tuple(videos)
        self.video, self.seconds, self.starts = video.astype(np.int32), seconds, starts
        self.boxes, self.scores = boxes.astype(np.float32), scores.astype(np.float32)
        self.boxless, self.files = tuple(boxless), tuple(files)
        self.origin = np.zeros((len(video), 2), np.int32) if origin is None else origin
        self._labels = np.packbits(labels, axis=1)

    def __len__(self) -> int:
        return len(self.video)

    def __getitem__(self, index: int) -> KeyFrame:  # type: ignore[override]
        """Key frame ``index``, an integer from 0 (or from -1 backwards); no slices."""
        video, seconds = self.videos[self.video[index]], float(self.seconds[index])
        index %= len(self)
        rows = slice(int(self.starts[index]), int(self.starts[index + 1]))
        return KeyFrame(video, seconds, self.boxes[rows], self._unpacked(rows), self.scores[rows])

    @property
    def labels(self) -> np.ndarray:
        """bool [R, L], of all boxes."""
        return self._unpacked(slice(None))

    def select(self, kept: np.ndarray) -> KeyFrames:
        """Those key frames where ``kept``, bool [n], is true: a part of the seconds, of the videos, ..."""
        counts = np.diff(self.starts)
        rows = np.repeat(kept, counts)
        own = ("source", "videos", "boxless", "files")
        return KeyFrames(
            **{name: getattr(self, name) for name in own},
            **{name: getattr(self, name)[kept] for name in ("video", "seconds", "origin")},
            **{name: getattr(self, name)[rows] for name in ("boxes", "labels", "scores")},
            starts=np.concatenate([[0], np.cumsum(counts[kept])]),
        )

    def of_videos(self, videos: Sequence[str]) -> KeyFrames:
        """Those of the given videos, sorted by name, which become its ``videos`` even where it lacks some."""
        places = {name: place for place, name in enumerate(videos)}
        video = np.array([places.get(name, -1) for name in self.videos], np.int32)[self.video]
        result = self.select(video >= 0)
        result.video, result.videos = video[video >= 0], tuple(videos)
        result.boxless = tuple(moment for moment in self.boxless if moment[0] in places)
        return result

    def place(self, index: int) -> str:
        """Where key frame ``index`` stands, ``file:line``, for messages."""
        file, line = self.origin[index].tolist()
        return f"{self.files[file]}:{line}" if self.files else self.source

    def absent_from(self, other: KeyFrames) -> list[tuple[str, float]]:
        """Video and second of the key frames that ``other`` lacks, as those where nobody was detected."""
        there = set(other.moments())
        return [moment for moment in self.moments() if moment not in there]

    def moments(self) -> list[tuple[str, float]]:
        """Video and second of each key frame."""
        names = [self.videos[video] for video in self.video.tolist()]
        return list(zip(names, self.seconds.tolist(), strict=True))

    def _unpacked(self, rows: slice) -> np.ndarray:
        return np.unpackbits(self._labels[rows], axis=1, count=self.classes).astype(bool)

    def __repr__(self) -> str:
        return f"KeyFrames({len(self)} with {len(self.boxes)} boxes of {self.source}, {self.classes} classes)"


def truth_key_frames(groundtruth: Files, *, classes: int, exclusions: Files = ()) -> KeyFrames:
    """Ground-truth boxes with their actions; see `training_key_frames`."""
    return training_key_frames(groundtruth, classes=classes, exclusions=exclusions)


def detected_key_frames(
    detections: Files, *, classes: int, score_threshold: float = 0.8, exclusions: Files = ()
) -> KeyFrames:
    """Boxes of a detector, to be tested on; there may be none. See `training_key_frames` for the arguments.

    PySlowFast's AVA configs have a score threshold of 0.8, its default is 0.9. Actions of the file are kept.
    """
    _check_shares(score_threshold=score_threshold)
    names = VideoNames()
    found = [_read_found(path, names, classes) for path in detections]
    closed = _excluded(exclusions, names)
    table = _merged([_grouped(rows, names, classes, score_threshold) for rows in found], classes)
    return _key_frames(table, found, names, closed, score_threshold)


def training_key_frames(
    groundtruth: Files,
    detections: Files = (),
    *,
    classes: int,
    score_threshold: float = 0.9,
    iou_threshold: float = 0.9,
    exclusions: Files = (),
) -> KeyFrames:
    """Ground-truth boxes, and a detector's with the actions of those.

    A detected box takes the actions of the ground-truth box of its key frame that it overlaps most, where
    that is enough; one that overlaps none enough stays as a negative. A file of detections that has actions
    of its own, as the published lists do, keeps them instead. The same box in several files is one box with
    the actions of all.

    Args:
        groundtruth: files of `video,second,x1,y1,x2,y2,action,person`; boxes without an action stay.
        detections: files of `video,second,x1,y1,x2,y2,action,score`, the action empty or not.
        classes: L; actions count from 1 to this.
        score_threshold: the least score of a detected box (default: PySlowFast's
            ``AVA.DETECTION_SCORE_THRESH``).
        iou_threshold: the least intersection over union at which it takes actions (default: that of the
            published lists).
        exclusions: files of `video,second` to leave out.

    Raises:
        UserError: a file is missing; or, with file and line, a row is wrong; or no box is left; or detected
            boxes without actions are all of other videos.
    """
    _check_shares(score_threshold=score_threshold, iou_threshold=iou_threshold)
    names = VideoNames()
    truth = [read_groundtruth(path, names, largest=classes) for path in groundtruth]
    true_videos = len(names)
    for rows in truth:
        if not len(rows.videos):
            raise UserError(
                f"{rows.source}: has no rows{' with a box' if len(rows.empty_lines) else ''}; ground truth "
                f"has a row `{TRUTH_FORM}` for each box and action"
            )
    found = [_read_found(path, names, classes) for path in detections]
    for rows in found if truth else ():
        _tell_of_other_videos(rows, names, true_videos)
    closed = _excluded(exclusions, names)
    known = _merged([_grouped(rows, names, classes) for rows in truth], classes)
    parts = [known]
    for rows in found:
        part = _grouped(rows, names, classes, score_threshold)
        if (rows.actions == NO_ACTION).all():
            part = _with_labels(part, known, iou_threshold)
        parts.append(part)
    key_frames = _key_frames(_merged(parts, classes), [*truth, *found], names, closed, score_threshold)
    if not len(key_frames):
        raise UserError(
            f"{key_frames.source}: no box is left; look at the exclusions"
            + (f", and lower the score threshold ({score_threshold:g})" if found else "")
        )
    if not key_frames.labels.any():
        raise UserError(f"{key_frames.source}: no box has an action; give the ground truth with its actions")
    return key_frames


@dataclass(frozen=True)
class _Table:
    """Boxes that all differ, by key frame and then by corners."""

    keys: np.ndarray  # int64 [n], `VideoNames.key_frames`
    boxes: np.ndarray  # float64 [n, 4]
    labels: np.ndarray  # bool [n, L]
    scores: np.ndarray  # float64 [n]


def _read_found(path: str | os.PathLike[str], names: VideoNames, classes: int) -> AvaRows:
    rows = read_detections(path, names, largest=classes)
    wrong = (rows.scores < 0) | (rows.scores > 1)
    if wrong.any():
        row = int(wrong.argmax())
        raise UserError(
            f"{rows.source}:{rows.lines[row]}: the score {rows.scores[row]:g} is not in 0..1; is this "
            "a file of ground truth, whose last column counts persons?"
        )
    return rows


def _tell_of_other_videos(rows: AvaRows, names: VideoNames, true_videos: int) -> None:
    """Warn of detected boxes of videos that the ground truth lacks: without actions they all are negatives.

    Raises:
        UserError: all are.
    """
    other = rows.videos >= true_videos
    if not other.any():
        return
    videos = np.unique(rows.videos[other])
    first, idle = names.texts()[videos[0]], (rows.actions == NO_ACTION).all()
    if idle and other.all():
        raise UserError(
            f"{rows.source}: all its boxes are of videos that the ground truth does not have ({first}, ...), "
            "so nobody in them would do anything; give the boxes of the same split and version"
        )
    logger.warning(
        "%s: %d boxes are of %d videos that the ground truth does not have (%s, ...)%s",
        rows.source,
        int(other.sum()),
        len(videos),
        first,
        ": they are trained on as persons who do nothing" if idle else "",
    )


def _excluded(files: Files, names: VideoNames) -> tuple[np.ndarray, np.ndarray]:
    """Videos and milliseconds of all files, int64 [n] each."""
    parts = [(np.empty(0, np.int64),) * 2, *(read_times(path, names) for path in files)]
    videos, times = zip(*parts, strict=True)
    return np.concatenate(videos), np.concatenate(times)


def _grouped(rows: AvaRows, names: VideoNames, classes: int, score_threshold: float = 0.0) -> _Table:
    """The boxes of a file that score enough, each once with all its actions and its best score."""
    kept = rows.scores >= score_threshold
    keys, boxes = names.key_frames(rows.videos[kept], rows.times[kept]), rows.boxes[kept]
    order, first = _groups(keys, boxes)
    group = np.cumsum(first) - 1
    actions = rows.actions[kept][order]
    labels = np.zeros((int(first.sum()), classes), bool)
    acting = actions != NO_ACTION
    labels[group[acting], actions[acting] - 1] = True
    scores = _reduced(np.maximum, rows.scores[kept][order], first)
    return _Table(keys[order][first], boxes[order][first], labels, scores)


def _merged(parts: Sequence[_Table], classes: int) -> _Table:
    """The boxes of all parts, each once with the actions of all and its best score."""
    none = _Table(np.empty(0, np.int64), np.empty((0, 4)), np.empty((0, classes), bool), np.empty(0))
    keys, boxes, labels, scores = (
        np.concatenate([getattr(part, name) for part in (none, *parts)])
        for name in ("keys", "boxes", "labels", "scores")
    )
    order, first = _groups(keys, boxes)
    return _Table(
        keys[order][first],
        boxes[order][first],
        _reduced(np.logical_or, labels[order], first),
        _reduced(np.maximum, scores[order], first),
    )


def _groups(keys: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An order by key frame and corners, int64 [n], and where in it another box begins, bool [n]."""
    order = np.lexsort((*boxes.T[::-1], keys))
    keys, boxes = keys[order], boxes[order]
    first = np.ones(len(keys), bool)
    first[1:] = (keys[1:] != keys[:-1]) | (boxes[1:] != boxes[:-1]).any(axis=1)
    return order, first


def _reduced(function: np.ufunc, values: np.ndarray, first: np.ndarray) -> np.ndarray:
    """``function`` over the rows of each group."""
    return function.reduceat(values, np.flatnonzero(first), axis=0) if len(values) else values


def _with_labels(found: _Table, truth: _Table, iou_threshold: float) -> _Table:
    """Detected boxes with the labels of the ground-truth box that each overlaps most, if enough."""
    first, last = (np.searchsorted(truth.keys, found.keys, side=side) for side in ("left", "right"))
    best = best_overlaps(found.boxes, truth.boxes, first, last, threshold=iou_threshold)
    labels = np.zeros_like(found.labels)
    labels[best >= 0] = truth.labels[best[best >= 0]]
    return _Table(found.keys, found.boxes, labels, found.scores)


def _key_frames(
    table: _Table,
    rows: Sequence[AvaRows],
    names: VideoNames,
    closed: tuple[np.ndarray, np.ndarray],
    score_threshold: float,
) -> KeyFrames:
    """The boxes at times that are not excluded; logs what was read, and key frames without a box."""
    excluded = names.key_frames(*closed)
    kept = ~np.isin(table.keys, excluded)
    keys, starts = np.unique(table.keys[kept], return_index=True)
    named = np.concatenate([np.empty(0, np.int64), *(_named(part, names) for part in rows)])
    gone = np.setdiff1d(named, np.concatenate([keys, excluded]))
    boxless = names.moments(gone)
    moments = names.moments(keys)
    videos = sorted({video for video, _ in moments})
    places = {video: place for place, video in enumerate(videos)}
    result = KeyFrames(
        source=", ".join(part.source for part in rows),
        videos=videos,
        video=np.array([places[video] for video, _ in moments], np.int32),
        seconds=np.array([seconds for _, seconds in moments], np.float64),
        starts=np.append(starts, kept.sum()),
        boxes=table.boxes[kept],
        labels=table.labels[kept],
        scores=table.scores[kept],
        boxless=boxless,
        files=[part.source for part in rows],
        origin=_origin(keys, named, rows),
    )
    acting = int(result.labels.any(axis=1).sum())
    logger.info(
        "%s: %d boxes, %d of them with an action, in %d key frames of %d videos",
        result.source,
        len(result.boxes),
        acting,
        len(result),
        len(videos),
    )
    if boxless:
        scored = any(part.scored for part in rows)
        logger.warning(
            "%s: %d of %d key frames have no box%s, and are left out (%s at %g s, ...)",
            result.source,
            len(boxless),
            len(boxless) + len(result),
            f" that scores {score_threshold:g} or more" if scored else "",
            *boxless[0],
        )
    return result


def _named(rows: AvaRows, names: VideoNames) -> np.ndarray:
    """The key frame of every row of a file, int64 [n + k]: those with a box first."""
    videos, times = [rows.videos, rows.empty_videos], [rows.times, rows.empty_times]
    return names.key_frames(np.concatenate(videos), np.concatenate(times))


def _origin(keys: np.ndarray, named: np.ndarray, rows: Sequence[AvaRows]) -> np.ndarray:
    """File and line, int32 [n, 2], of the first row of each key frame; ``named`` has those of all rows."""
    own_lines = [np.concatenate([part.lines, part.empty_lines]) for part in rows]
    files = np.repeat(np.arange(len(rows)), np.array([len(part) for part in own_lines], int))
    lines = np.concatenate([np.empty(0, np.int64), *own_lines])
    known, first = np.unique(named, return_index=True)
    own = first[np.searchsorted(known, keys)]
    return np.column_stack([files[own], lines[own]]).astype(np.int32)


def _check_shares(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise UserError(f"{name}={value:g} is not in 0..1")
