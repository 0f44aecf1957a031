"""AVA's frame mAP: matching by its official rules, average precision, the score by parts, and its files.

A row is a box in a key frame, with one action; key frames are numbers that both sides share. The detections
of an action have one total order, so that no result depends on the order of rows: by score, the highest
first; of equal scores by key frame, then by x1, y1, x2, y2, the lowest first.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from videomaskfeat.ava import (
    AVA_ACTIONS,
    FOUND_FORM,
    NO_ACTION,
    TRUTH_FORM,
    AvaRows,
    VideoNames,
    read_detections,
    read_groundtruth,
    read_label_map,
    read_times,
)
from videomaskfeat.boxes import areas, best_overlaps
from videomaskfeat.errors import UserError
from videomaskfeat.io import whole_file


@dataclass(frozen=True)
class GroundTruth:
    """What there is to find.

    Attributes:
        frames: int64 [n], the key frame of each row.
        boxes: float [n, 4], x1, y1, x2, y2 in shares of the frame, or in any unit that both sides have.
        actions: int64 [n], the number of the action.
    """

    frames: np.ndarray
    boxes: np.ndarray
    actions: np.ndarray


@dataclass(frozen=True)
class Detections:
    """What was found: as `GroundTruth`, and scores float [n], higher is better."""

    frames: np.ndarray
    boxes: np.ndarray
    actions: np.ndarray
    scores: np.ndarray

    @classmethod
    def of_box_scores(
        cls, frames: np.ndarray, boxes: np.ndarray, scores: np.ndarray, actions: Sequence[int]
    ) -> Detections:
        """Key frames int [R], boxes [R, 4] and scores [R, L] of the L actions -> R x L rows, box by box."""
        count = len(actions)
        assert scores.shape == (len(frames), count)
        return cls(
            frames=np.repeat(frames, count),
            boxes=np.repeat(boxes, count, axis=0),
            actions=np.tile(np.asarray(actions, dtype=np.int64), len(frames)),
            scores=scores.reshape(-1),
        )


@dataclass(frozen=True)
class Matches:
    """The detections of some actions, action by action, in the order in which they were judged.

    Attributes:
        rows: int64 [m], the row of each among the detections.
        actions: int64 [m], ascending.
        hits: bool [m]; all others are false positives.
        truths: int64 [m], the row of the ground truth, of its action and key frame, that it overlaps most;
            -1 if not enough. Of those with the same truth the first is the hit.
    """

    rows: np.ndarray
    actions: np.ndarray
    hits: np.ndarray
    truths: np.ndarray

    def of(self, action: int) -> slice:
        """The detections of an action."""
        first, last = np.searchsorted(self.actions, [action, action + 1])
        return slice(int(first), int(last))


def match(
    groundtruth: GroundTruth, detections: Detections, actions: Sequence[int], *, iou_threshold: float = 0.5
) -> Matches:
    """Judge every detection of the given actions.

    In the order of their scores, each may take only the one box of its action and key frame that it overlaps
    most (of equal overlaps the first in the order of corners). It is a false positive if that overlap is
    below the threshold, or if that box was taken before.

    Args:
        groundtruth: what there is to find.
        detections: what was found.
        actions: the actions to judge, each once; rows of others have no effect.
        iou_threshold: minimum intersection over union, above 0 and at most 1.

    Raises:
        UserError: the threshold is out of range, or a score is not a number.
    """
    if not 0 < iou_threshold <= 1:
        raise UserError(f"iou_threshold={iou_threshold} is not above 0 and at most 1; AVA is scored at 0.5")
    _check_scores(detections.scores)
    listed = np.unique(np.asarray(actions, dtype=np.int64))
    truths = np.flatnonzero(np.isin(groundtruth.actions, listed))
    rows = np.flatnonzero(np.isin(detections.actions, listed))
    rows = rows[_order(detections, rows, detections.actions[rows])]
    _, frames = np.unique(
        np.concatenate([groundtruth.frames[truths], detections.frames[rows]]), return_inverse=True
    )
    # A group is an action in a key frame: only its members can meet.
    place = np.searchsorted(listed, groundtruth.actions[truths])
    truth_groups = frames[: len(truths)] * len(listed) + place
    order = np.lexsort((*_corners(groundtruth.boxes[truths]), truth_groups))
    truths, truth_groups = truths[order], truth_groups[order]
    groups = frames[len(truths) :] * len(listed) + np.searchsorted(listed, detections.actions[rows])
    best = best_overlaps(
        detections.boxes[rows],
        groundtruth.boxes[truths],
        np.searchsorted(truth_groups, groups, side="left"),
        np.searchsorted(truth_groups, groups, side="right"),
        threshold=iou_threshold,
    )
    candidates = np.flatnonzero(best >= 0)
    _, first = np.unique(best[candidates], return_index=True)  # a box of the truth has one action, one order
    hits = np.zeros(len(rows), bool)
    hits[candidates[first]] = True
    found = np.full(len(rows), -1, np.int64)
    found[candidates] = truths[best[candidates]]
    return Matches(rows, detections.actions[rows], hits, found)


def best_rows(detections: Detections, actions: Sequence[int], count: int) -> Detections:
    """The ``count`` best rows of each key frame, of the given actions; of equal scores the lower action.

    Raises:
        UserError: the count is below 1, or a score is not a number.
    """
    if count < 1:
        raise UserError(f"rows_per_frame={count} leaves nothing; take 1 or more (the official script: 50)")
    _check_scores(detections.scores)
    rows = np.flatnonzero(np.isin(detections.actions, np.asarray(actions, dtype=np.int64)))
    frames, chosen = detections.frames[rows], detections.actions[rows]
    scores = _doubles(detections.scores[rows])
    order = np.lexsort((*_corners(detections.boxes[rows]), chosen, -scores, frames))
    rows, frames = rows[order], frames[order]
    first = np.searchsorted(frames, frames, side="left")  # of the key frame
    rows = np.sort(rows[np.arange(len(rows)) - first < count])
    return Detections(
        detections.frames[rows], detections.boxes[rows], detections.actions[rows], detections.scores[rows]
    )


def average_precision_of(hits: np.ndarray, truths: int) -> float:
    """The area under the interpolated curve of precision over recall, at all its points.

    Args:
        hits: bool [m], of the detections of one action, the best first.
        truths: number of boxes to find; if 0 the result is NaN.
    """
    if not truths:
        return float("nan")
    return float(interpolated_precision(hits)[hits].sum() / truths)  # each hit adds 1/truths to the recall


def precision_by_recall(hits: np.ndarray, truths: int, bins: int) -> np.ndarray:
    """The mean of the interpolated curve in equal steps of recall, float64 [bins]; their mean is the area.

    Args:
        hits: bool [m], of the detections of one action, the best first.
        truths: boxes there are to find, at least 1.
        bins: steps from recall 0 to 1.
    """
    heights = interpolated_precision(hits)[hits]
    recall = np.append(np.arange(len(heights) + 1) / truths, 1.0)
    area = np.concatenate([[0.0], np.cumsum(heights) / truths])
    area = np.append(area, area[-1])  # nothing beyond the last hit
    return np.diff(np.interp(np.linspace(0, 1, bins + 1), recall, area)) * bins


def interpolated_precision(hits: np.ndarray) -> np.ndarray:
    """At each detection the best precision there or later, float64 [m].

    Args:
        hits: bool [m], of one action, the best first.
    """
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return np.maximum.accumulate(precision[::-1])[::-1]


def _order(detections: Detections, rows: np.ndarray, primary: np.ndarray) -> np.ndarray:
    """The total order of some rows, by ``primary`` first."""
    corners = _corners(detections.boxes[rows])
    return np.lexsort((*corners, detections.frames[rows], -_doubles(detections.scores[rows]), primary))


def _corners(boxes: np.ndarray) -> tuple[np.ndarray, ...]:
    """The sort keys of boxes for `numpy.lexsort`, whose last key counts most: x1, y1, x2, y2."""
    return boxes[:, 3], boxes[:, 2], boxes[:, 1], boxes[:, 0]


def _doubles(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float64, copy=False)


def _check_scores(scores: np.ndarray) -> None:
    if np.isnan(scores).any():
        raise UserError(
            f"{np.isnan(scores).sum()} of {len(scores)} detections have a score that is not a number; "
            "their order means nothing"
        )


_WRITTEN_AT_ONCE = 100_000  # rows


@dataclass(frozen=True)
class SideCounts:
    """How many rows of a file count, and why the others do not.

    Attributes:
        rows: in the file.
        used: that count.
        excluded: at excluded times.
        no_action: of persons without an action, at other times.
        not_listed: of actions that the label map does not list, at other times.
    """

    rows: int
    used: int
    excluded: int
    no_action: int
    not_listed: int


@dataclass(frozen=True)
class AvaData:
    """What is scored: rows of the label map's actions at times that are not excluded.

    Attributes:
        groundtruth: what there is to find.
        detections: what was found.
        actions: number to name of the label map's actions.
        person_frames: int64 [f], key frames of the ground truth with persons, ascending.
        persons: int64 [f], different boxes in each, also of actions that are not scored.
        groundtruth_counts: of the ground truth's rows.
        detection_counts: of the detections' rows.
        unknown_videos: names of videos that only the detections have.
        unknown_rows: used detections in these videos, all false positives.
        bare_rows: used detections in other key frames without ground truth, also false positives.
        bare_frames: number of these key frames.
        scored: whether the detections have scores; otherwise each has the score 1.
    """

    groundtruth: GroundTruth
    detections: Detections
    actions: dict[int, str]
    person_frames: np.ndarray
    persons: np.ndarray
    groundtruth_counts: SideCounts
    detection_counts: SideCounts
    unknown_videos: list[str]
    unknown_rows: int
    bare_rows: int
    bare_frames: int
    scored: bool


def read_ava(
    groundtruth: str | os.PathLike[str],
    detections: str | os.PathLike[str],
    labelmap: str | os.PathLike[str],
    exclusions: str | os.PathLike[str] | None = None,
) -> AvaData:
    """Read the files that a score is made of.

    Rows have the columns ``video,second,x1,y1,x2,y2,action,person`` (ground truth) or ``...,action,score``
    (detections), with a line of headings or without. The eighth column may be left out: without scores all
    are 1. Boxes are shares of the frame, 0 to 1. Seconds may be written 902, 0902 or 902.0. An empty action
    is a person without one. A row of the ground truth without a box, such as ``video,second`` alone, is a
    key frame without persons, as in AVA-Kinetics.

    Args:
        groundtruth: CSV file.
        detections: CSV file; it may be empty.
        labelmap: the actions to score, see `read_label_map`.
        exclusions: CSV file of ``video,second`` that are not scored.

    Raises:
        UserError: a file is missing, a row is wrong (with file and line), or there is nothing to find.
    """
    actions = read_label_map(labelmap)
    names, largest = VideoNames(), max(AVA_ACTIONS, *actions)
    truth = read_groundtruth(groundtruth, names, largest=largest)
    known = len(names)
    found = read_detections(detections, names, largest=largest)
    if len(found.actions) and (found.actions == NO_ACTION).all():
        raise UserError(
            f"{os.fspath(detections)}: no row has an action, so this is a list of person boxes; "
            f"detections have a row `{FOUND_FORM}` for each box and action"
        )
    closed = read_times([exclusions] if exclusions else [], names)
    truth_frames, found_frames, closed_frames = (
        names.key_frames(videos, times)
        for videos, times in ((truth.videos, truth.times), (found.videos, found.times), closed)
    )
    truth_open, found_open = (~np.isin(frames, closed_frames) for frames in (truth_frames, found_frames))
    truth_kept, truth_counts = _kept(truth, truth_open, actions)
    found_kept, found_counts = _kept(found, found_open, actions)
    if not truth_counts.used:
        raise UserError(_nothing_to_find(os.fspath(groundtruth), os.fspath(labelmap), truth_counts))
    unknown, texts = found.videos >= known, names.texts()
    # Key frames without persons are part of the ground truth: each detection in them is a false positive.
    known_frames = np.concatenate([truth_frames, names.key_frames(truth.empty_videos, truth.empty_times)])
    bare = found_kept & ~unknown & ~np.isin(found_frames, known_frames)
    person_frames, persons = _persons(truth_frames[truth_open], truth.boxes[truth_open])
    return AvaData(
        groundtruth=GroundTruth(truth_frames[truth_kept], truth.boxes[truth_kept], truth.actions[truth_kept]),
        detections=Detections(
            found_frames[found_kept],
            found.boxes[found_kept],
            found.actions[found_kept],
            found.scores[found_kept],
        ),
        actions=actions,
        person_frames=person_frames,
        persons=persons,
        groundtruth_counts=truth_counts,
        detection_counts=found_counts,
        unknown_videos=[texts[video] for video in np.unique(found.videos[unknown]).tolist()],
        unknown_rows=int((unknown & found_kept).sum()),
        bare_rows=int(bare.sum()),
        bare_frames=len(np.unique(found_frames[bare])),
        scored=found.scored,
    )


def write_detections(
    path: str | os.PathLike[str], key_frames: Sequence[tuple[str, float]], detections: Detections
) -> None:
    """Write detections for the official script: ``video,second,x1,y1,x2,y2,action,score``.

    Numbers have as many digits as reading them back needs, in their own type.

    Args:
        path: of the file.
        key_frames: video and second of each key frame; ``detections.frames`` counts in it.
        detections: boxes in shares of the frame, 0 to 1.
    """
    places = [f"{video},{_second(second)}" for video, second in key_frames]
    with whole_file(path, errors="surrogateescape") as file:
        for first in range(0, len(detections.frames), _WRITTEN_AT_ONCE):
            rows = slice(first, first + _WRITTEN_AT_ONCE)
            columns = [
                [places[frame] for frame in detections.frames[rows].tolist()],
                *(column.astype(str).tolist() for column in detections.boxes[rows].T),
                map(str, detections.actions[rows].tolist()),
                detections.scores[rows].astype(str).tolist(),
            ]
            file.writelines(f"{','.join(row)}\n" for row in zip(*columns, strict=True))


def _kept(rows: AvaRows, open_times: np.ndarray, actions: dict[int, str]) -> tuple[np.ndarray, SideCounts]:
    """Which rows play a part, bool [n], and why the others do not: the first reason that fits."""
    kept = open_times & np.isin(rows.actions, list(actions))
    idle = open_times & (rows.actions == NO_ACTION)
    total, used, excluded = len(kept), int(kept.sum()), int((~open_times).sum())
    no_action = int(idle.sum())
    return kept, SideCounts(total, used, excluded, no_action, total - used - excluded - no_action)


def _persons(frames: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Key frames, ascending, and how many boxes that differ each holds, int64 [f] both."""
    order = np.lexsort((*boxes.T, frames))
    frames, boxes = frames[order], boxes[order]
    new = np.ones(len(frames), bool)
    new[1:] = (frames[1:] != frames[:-1]) | (boxes[1:] != boxes[:-1]).any(axis=1)
    return np.unique(frames[new], return_counts=True)


def _nothing_to_find(groundtruth: str, labelmap: str, counts: SideCounts) -> str:
    """What is wrong with a ground truth of which no row is left."""
    if not counts.rows:
        return f"{groundtruth}: has no rows; ground truth has a row `{TRUTH_FORM}` for each box and action"
    return (
        f"{groundtruth}: none of its {counts.rows} rows can be scored: {counts.not_listed} are of actions "
        f"that {labelmap} does not list, {counts.no_action} have no action, {counts.excluded} are at "
        "excluded times; take the files of one version and split"
    )


def _second(second: float) -> str:
    """Whole seconds as four digits, as AVA writes them; others as they are; all to a millisecond."""
    second = round(float(second), 3)
    return f"{second:04.0f}" if second.is_integer() else f"{second:.3f}".rstrip("0")


@dataclass(frozen=True)
class AvaResult:
    """The score of a set of detections, in shares of 1.

    Attributes:
        mean_ap: mean of the average precisions that are not NaN.
        ap: average precision by the number of the action; NaN for one without ground truth.
    """

    mean_ap: float
    ap: dict[int, float]


def evaluate_files(
    groundtruth: str | os.PathLike[str],
    detections: str | os.PathLike[str],
    labelmap: str | os.PathLike[str],
    exclusions: str | os.PathLike[str] | None = None,
    *,
    iou_threshold: float = 0.5,
    rows_per_frame: int | None = None,
) -> AvaResult:
    """Score a file of detections; see :func:`read_ava` and, for the rules, :func:`average_precision`.

    Raises:
        UserError: a file is missing, a row is wrong (with file and line), or an option is out of range.
    """
    data = read_ava(groundtruth, detections, labelmap, exclusions)
    return average_precision(
        data.groundtruth,
        data.detections,
        actions=list(data.actions),
        iou_threshold=iou_threshold,
        rows_per_frame=rows_per_frame,
    )


def average_precision(
    groundtruth: GroundTruth,
    detections: Detections,
    *,
    actions: Sequence[int],
    iou_threshold: float = 0.5,
    rows_per_frame: int | None = None,
) -> AvaResult:
    """Score detections in memory; the order of rows does not change a bit of the result.

    Args:
        groundtruth: what there is to find, each row once.
        detections: what was found, each row once; may be empty.
        actions: numbers of the actions that count.
        iou_threshold: minimum intersection over union of a hit, above 0 and at most 1.
        rows_per_frame: judge only so many rows per key frame, the best; None for all (the official script:
            50).

    Raises:
        UserError: no ground truth of these actions, a score that is not a number, or an option out of range.
    """
    if rows_per_frame is not None:
        detections = best_rows(detections, actions, rows_per_frame)
    matches = match(groundtruth, detections, actions, iou_threshold=iou_threshold)
    return result_of(groundtruth, matches, actions)


def result_of(groundtruth: GroundTruth, matches: Matches, actions: Sequence[int]) -> AvaResult:
    """The score of detections that have been judged; raises UserError without ground truth."""
    truths = {action: int((groundtruth.actions == action).sum()) for action in actions}
    if not any(truths.values()):
        raise UserError(f"none of the {len(truths)} actions has ground truth, so there is nothing to score")
    ap = {action: average_precision_of(matches.hits[matches.of(action)], truths[action]) for action in truths}
    return AvaResult(float(np.nanmean(list(ap.values()))), ap)


# Persons per key frame, and shares of the frame's area; the end of a range is excluded.
PERSON_PARTS: dict[str, tuple[float, float]] = {
    "1 person": (1, 2),
    "2 persons": (2, 3),
    "3 or 4 persons": (3, 5),
    "5 persons and more": (5, np.inf),
}
SIZE_PARTS: dict[str, tuple[float, float]] = {
    "small: below 5 % of the frame": (0.0, 0.05),
    "medium: 5 % to 20 %": (0.05, 0.2),
    "large: 20 % and more": (0.2, np.inf),
}


@dataclass(frozen=True)
class Part:
    """The score of a part.

    Attributes:
        name: what it holds.
        mean_ap: over the actions with ground truth in it; NaN if none has any.
        actions: number of actions with ground truth in it.
        truths: rows of the ground truth in it.
        detections: that belong to it.
    """

    name: str
    mean_ap: float
    actions: int
    truths: int
    detections: int


def by_persons(
    groundtruth: GroundTruth,
    detections: Detections,
    matches: Matches,
    actions: Sequence[int],
    *,
    person_frames: np.ndarray,
    persons: np.ndarray,
) -> list[Part]:
    """The score by persons per key frame; detections in key frames without a person belong to no part.

    Args:
        groundtruth: what there is to find.
        detections: what was found.
        matches: of the two.
        actions: numbers of the actions that count.
        person_frames: int64 [f], key frames, ascending, each once.
        persons: int64 [f], number of persons in each.
    """
    truth_persons = _looked_up(groundtruth.frames, person_frames, persons)
    found_persons = _looked_up(detections.frames[matches.rows], person_frames, persons)
    return _parts_of(PERSON_PARTS, groundtruth, matches, actions, truth_persons, found_persons)


def by_size(
    groundtruth: GroundTruth, detections: Detections, matches: Matches, actions: Sequence[int]
) -> list[Part]:
    """The score by the size of boxes, shares of the frame; a detection without a match counts by its own."""
    truth_areas = areas(groundtruth.boxes.astype(np.float64))
    found_areas = areas(detections.boxes[matches.rows].astype(np.float64))
    matched = matches.truths >= 0
    found_areas[matched] = truth_areas[matches.truths[matched]]
    return _parts_of(SIZE_PARTS, groundtruth, matches, actions, truth_areas, found_areas)


def _parts_of(
    parts: Mapping[str, tuple[float, float]],
    groundtruth: GroundTruth,
    matches: Matches,
    actions: Sequence[int],
    truth_values: np.ndarray,
    found_values: np.ndarray,
) -> list[Part]:
    """The score of each part: ground truth [n] and judged detections [m] with values in its range."""
    results = []
    for name, (least, end) in parts.items():
        truths_within = (truth_values >= least) & (truth_values < end)
        found_within = (found_values >= least) & (found_values < end)
        counts, ap = [], []
        for action in actions:
            own = matches.of(action)
            counts.append(int((truths_within & (groundtruth.actions == action)).sum()))
            ap.append(average_precision_of(matches.hits[own][found_within[own]], counts[-1]))
        known = [value for value in ap if not np.isnan(value)]
        mean = float(np.mean(known)) if known else float("nan")
        results.append(Part(name, mean, len(known), sum(counts), int(found_within.sum())))
    return results


def _looked_up(frames: np.ndarray, known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """int64 [n]: the value of each key frame, 0 where it is not among the ``known``, which ascend."""
    place = np.minimum(np.searchsorted(known, frames), max(len(known) - 1, 0))
    return np.where(known[place] == frames, values[place], 0) if len(known) else np.zeros_like(frames)
