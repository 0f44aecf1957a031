"""AVA's frame mAP: official matching rules, average precision, scores of subsets, and its files.

A row is a box in a key frame with one action. Key frames are integers that ground truth and detections share.
The result does not depend on the order of rows: detections of an action are sorted by score, highest first,
then by key frame, x1, y1, x2, y2, lowest first.
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
    """The boxes to detect: key frames int64 [n], boxes float [n, 4], and action ids int64 [n].

    Boxes are x1, y1, x2, y2 as fractions of the frame, or in any unit that ground truth and detections share.
    """

    frames: np.ndarray
    boxes: np.ndarray
    actions: np.ndarray


@dataclass(frozen=True)
class Detections:
    """Detected boxes: as `GroundTruth`, with scores float [n], higher is better."""

    frames: np.ndarray
    boxes: np.ndarray
    actions: np.ndarray
    scores: np.ndarray

    @classmethod
    def of_box_scores(
        cls, frames: np.ndarray, boxes: np.ndarray, scores: np.ndarray, actions: Sequence[int]
    ) -> Detections:
        """R x L rows from key frames int [R], boxes [R, 4], and scores [R, L] of L actions, box by box."""
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
    """Matched detections of some actions, sorted by action and then in order of precedence.

    Attributes:
        rows, actions: int64 [m], row in the detections, and action (ascending).
        hits: bool [m], True for true positives.
        truths: int64 [m], the ground truth row of the same action and key frame with the largest overlap; -1
            if it is below the threshold. The first detection with a ground truth row is its hit.
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
    """Match the detections of some actions to the ground truth.

    In order of their scores, each detection can match only the box of its action and key frame with the
    largest overlap (the first in order of corners if equal). It is a false positive if that overlap is below
    the threshold, or if the box is already matched.

    Args:
        groundtruth, detections: boxes to detect, and detected boxes.
        actions: unique action ids to match; rows of other actions are ignored.
        iou_threshold: minimum intersection over union, above 0 and at most 1.

    Raises:
        UserError: the threshold is out of range, or a score is not a number.
    """
    if not 0 < iou_threshold <= 1:
        raise UserError(f"iou_threshold={iou_threshold} must be above 0 and at most 1; AVA uses 0.5")
    _check_scores(detections.scores)
    ids = np.unique(np.asarray(actions, dtype=np.int64))
    truths = np.flatnonzero(np.isin(groundtruth.actions, ids))
    rows = np.flatnonzero(np.isin(detections.actions, ids))
    corners, scores = _corners(detections.boxes[rows]), _doubles(detections.scores[rows])
    rows = rows[np.lexsort((*corners, detections.frames[rows], -scores, detections.actions[rows]))]
    _, frames = np.unique(
        np.concatenate([groundtruth.frames[truths], detections.frames[rows]]), return_inverse=True
    )
    # A group is an action in a key frame; only rows of one group can match.
    truth_groups = frames[: len(truths)] * len(ids) + np.searchsorted(ids, groundtruth.actions[truths])
    order = np.lexsort((*_corners(groundtruth.boxes[truths]), truth_groups))
    truths, truth_groups = truths[order], truth_groups[order]
    groups = frames[len(truths) :] * len(ids) + np.searchsorted(ids, detections.actions[rows])
    best = best_overlaps(
        detections.boxes[rows],
        groundtruth.boxes[truths],
        np.searchsorted(truth_groups, groups, side="left"),
        np.searchsorted(truth_groups, groups, side="right"),
        threshold=iou_threshold,
    )
    candidates = np.flatnonzero(best >= 0)
    _, first = np.unique(best[candidates], return_index=True)  # a ground truth row has one action
    hits = np.zeros(len(rows), bool)
    hits[candidates[first]] = True
    matched = np.full(len(rows), -1, np.int64)
    matched[candidates] = truths[best[candidates]]
    return Matches(rows, detections.actions[rows], hits, matched)


def best_rows(detections: Detections, actions: Sequence[int], count: int) -> Detections:
    """The ``count`` rows with the highest scores per key frame, of the given actions; lower actions first.

    Raises:
        UserError: the count is below 1, or a score is not a number.
    """
    if count < 1:
        raise UserError(f"rows_per_frame={count} must be at least 1 (official script: 50)")
    _check_scores(detections.scores)
    rows = np.flatnonzero(np.isin(detections.actions, np.asarray(actions, dtype=np.int64)))
    frames, scores = detections.frames[rows], _doubles(detections.scores[rows])
    order = np.lexsort((*_corners(detections.boxes[rows]), detections.actions[rows], -scores, frames))
    rows, frames = rows[order], frames[order]
    first = np.searchsorted(frames, frames, side="left")  # first row of the key frame
    rows = np.sort(rows[np.arange(len(rows)) - first < count])
    return Detections(
        detections.frames[rows], detections.boxes[rows], detections.actions[rows], detections.scores[rows]
    )


def average_precision_of(hits: np.ndarray, truths: int) -> float:
    """Area under the interpolated precision-recall curve of one action, at all its points.

    ``hits``: bool [m], highest score first; ``truths``: number of boxes to detect, for 0 the result is NaN.
    """
    if not truths:
        return float("nan")
    return float(interpolated_precision(hits)[hits].sum() / truths)  # each hit adds 1/truths to the recall


def precision_by_recall(hits: np.ndarray, truths: int, bins: int) -> np.ndarray:
    """Mean of the interpolated curve in ``bins`` equal intervals of recall 0..1, float64 [bins].

    Arguments as for :func:`average_precision_of`, which equals their mean; ``truths`` is at least 1.
    """
    heights = interpolated_precision(hits)[hits]
    recall = np.append(np.arange(len(heights) + 1) / truths, 1.0)
    area = np.concatenate([[0.0], np.cumsum(heights) / truths])
    area = np.append(area, area[-1])  # precision is 0 after the last hit
    return np.diff(np.interp(np.linspace(0, 1, bins + 1), recall, area)) * bins


def interpolated_precision(hits: np.ndarray) -> np.ndarray:
    """Maximum precision at each detection or later, float64 [m]; see :func:`average_precision_of`."""
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return np.maximum.accumulate(precision[::-1])[::-1]


def _corners(boxes: np.ndarray) -> tuple[np.ndarray, ...]:
    """Sort keys of boxes for `numpy.lexsort`, least important first: y2, x2, y1, x1."""
    return boxes[:, 3], boxes[:, 2], boxes[:, 1], boxes[:, 0]


def _doubles(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float64, copy=False)


def _check_scores(scores: np.ndarray) -> None:
    if np.isnan(scores).any():
        raise UserError(
            f"{np.isnan(scores).sum()} of {len(scores)} detections have a score that is not a number; "
            "check the model"
        )


_ROWS_PER_WRITE = 100_000


@dataclass(frozen=True)
class SideCounts:
    """Number of scored rows of a file, and of the others by reason.

    Attributes:
        rows, used: all rows of the file, and scored rows.
        excluded: rows at excluded times.
        no_action, not_listed: at other times, rows of persons without action, and of actions that are not in
            the label map.
    """

    rows: int
    used: int
    excluded: int
    no_action: int
    not_listed: int


@dataclass(frozen=True)
class AvaData:
    """The data to score: rows of the label map's actions at times that are not excluded.

    Attributes:
        groundtruth, detections: boxes to detect, and detected boxes.
        actions: names of the label map's actions, by id.
        person_frames, persons: int64 [f], key frames with persons in the ground truth, ascending, and the
            number of distinct boxes in each, also of actions that are not scored.
        groundtruth_counts, detection_counts: counts of the rows of each file.
        unknown_videos, unknown_rows: names of videos that only the detections have, and the number of scored
            detections in them, all false positives.
        bare_rows, bare_frames: scored detections in other key frames without ground truth, all false
            positives, and the number of these key frames.
        scored: whether the detections have scores; otherwise all are 1.
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
    """Read ground truth, detections, label map (see `read_label_map`) and excluded times.

    Rows have the columns ``video,second,x1,y1,x2,y2,action,person`` (ground truth) or ``...,action,score``
    (detections), with or without a header line. The eighth column is optional; without it all scores are 1.
    Boxes are fractions of the frame, 0 to 1. Seconds may be written 902, 0902 or 902.0. An empty action is a
    person without action. A ground truth row without a box, such as ``video,second``, is a key frame without
    persons, as in AVA-Kinetics. Detections may be empty. Rows of ``exclusions`` are ``video,second``.

    Raises:
        UserError: a file is missing, a row is invalid (with file and line), or no ground truth can be scored.
    """
    actions = read_label_map(labelmap)
    names, largest = VideoNames(), max(AVA_ACTIONS, *actions)
    truth = read_groundtruth(groundtruth, names, largest=largest)
    known = len(names)
    detected = read_detections(detections, names, largest=largest)
    if len(detected.actions) and (detected.actions == NO_ACTION).all():
        raise UserError(
            f"{os.fspath(detections)}: no row has an action, so this is a list of person boxes; "
            f"detections have a row `{FOUND_FORM}` for each box and action"
        )
    excluded = read_times([exclusions] if exclusions else [], names)
    truth_frames, found_frames, excluded_frames = (
        names.key_frames(videos, times)
        for videos, times in ((truth.videos, truth.times), (detected.videos, detected.times), excluded)
    )
    truth_times, found_times = (~np.isin(frames, excluded_frames) for frames in (truth_frames, found_frames))
    truth_used, truth_counts = _select_rows(truth, truth_times, actions)
    found_used, found_counts = _select_rows(detected, found_times, actions)
    if not truth_counts.used:
        raise UserError(_no_ground_truth(os.fspath(groundtruth), os.fspath(labelmap), truth_counts))
    unknown, texts = detected.videos >= known, names.texts()
    # Key frames without persons are part of the ground truth: each detection in them is a false positive.
    known_frames = np.concatenate([truth_frames, names.key_frames(truth.empty_videos, truth.empty_times)])
    bare = found_used & ~unknown & ~np.isin(found_frames, known_frames)
    person_frames, persons = _count_persons(truth_frames[truth_times], truth.boxes[truth_times])
    return AvaData(
        groundtruth=GroundTruth(truth_frames[truth_used], truth.boxes[truth_used], truth.actions[truth_used]),
        detections=Detections(
            found_frames[found_used],
            detected.boxes[found_used],
            detected.actions[found_used],
            detected.scores[found_used],
        ),
        actions=actions,
        person_frames=person_frames,
        persons=persons,
        groundtruth_counts=truth_counts,
        detection_counts=found_counts,
        unknown_videos=[texts[video] for video in np.unique(detected.videos[unknown]).tolist()],
        unknown_rows=int((unknown & found_used).sum()),
        bare_rows=int(bare.sum()),
        bare_frames=len(np.unique(found_frames[bare])),
        scored=detected.scored,
    )


def write_detections(
    path: str | os.PathLike[str], key_frames: Sequence[tuple[str, float]], detections: Detections
) -> None:
    """Write detections for the official script: ``video,second,x1,y1,x2,y2,action,score``.

    ``key_frames`` are video and second by ``detections.frames``; boxes are fractions of the frame, 0 to 1.
    Numbers have the digits needed to read them back exactly.
    """
    prefixes = [f"{video},{_format_second(second)}" for video, second in key_frames]
    with whole_file(path, errors="surrogateescape") as file:
        for first in range(0, len(detections.frames), _ROWS_PER_WRITE):
            rows = slice(first, first + _ROWS_PER_WRITE)
            columns = [
                [prefixes[frame] for frame in detections.frames[rows].tolist()],
                *(column.astype(str).tolist() for column in detections.boxes[rows].T),
                map(str, detections.actions[rows].tolist()),
                detections.scores[rows].astype(str).tolist(),
            ]
            file.writelines(f"{','.join(row)}\n" for row in zip(*columns, strict=True))


def _select_rows(
    rows: AvaRows, scored_times: np.ndarray, actions: dict[int, str]
) -> tuple[np.ndarray, SideCounts]:
    """Which rows are scored, bool [n], and counts of the others by the first reason that applies."""
    selected = scored_times & np.isin(rows.actions, list(actions))
    total, used, excluded = len(selected), int(selected.sum()), int((~scored_times).sum())
    no_action = int((scored_times & (rows.actions == NO_ACTION)).sum())
    return selected, SideCounts(total, used, excluded, no_action, total - used - excluded - no_action)


def _count_persons(frames: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Key frames, ascending, and the number of distinct boxes in each, int64 [f] both."""
    order = np.lexsort((*boxes.T, frames))
    frames, boxes = frames[order], boxes[order]
    new = np.ones(len(frames), bool)
    new[1:] = (frames[1:] != frames[:-1]) | (boxes[1:] != boxes[:-1]).any(axis=1)
    return np.unique(frames[new], return_counts=True)


def _no_ground_truth(groundtruth: str, labelmap: str, counts: SideCounts) -> str:
    """Error message for a ground truth without scored rows."""
    if not counts.rows:
        return f"{groundtruth} has no rows; ground truth has a row `{TRUTH_FORM}` for each box and action"
    return (
        f"{groundtruth}: none of its {counts.rows} rows can be scored: {counts.not_listed} have actions that "
        f"{labelmap} does not list, {counts.no_action} have no action, {counts.excluded} are at excluded "
        "times; use files of one version and split"
    )


def _format_second(second: float) -> str:
    """Whole seconds as four digits, as in AVA's files; others with up to three decimals."""
    second = round(float(second), 3)
    return f"{second:04.0f}" if second.is_integer() else f"{second:.3f}".rstrip("0")


@dataclass(frozen=True)
class AvaResult:
    """Mean average precision, and average precision by action id (NaN without ground truth), in 0..1."""

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
    """Score a file of detections; see :func:`read_ava` and :func:`average_precision`.

    Raises:
        UserError: a file is missing, a row is invalid (with file and line), or an option is out of range.
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
    """Score detections in memory; the order of rows does not affect the result.

    Args:
        groundtruth, detections: boxes to detect and detected boxes, without duplicates; detections may be
            empty.
        actions: action ids to score.
        iou_threshold: minimum intersection over union of a hit, above 0 and at most 1.
        rows_per_frame: maximum number of detections per key frame, those with the highest scores; None for no
            limit (official script: 50).

    Raises:
        UserError: no ground truth of these actions, a score that is not a number, or an option out of range.
    """
    if rows_per_frame is not None:
        detections = best_rows(detections, actions, rows_per_frame)
    matches = match(groundtruth, detections, actions, iou_threshold=iou_threshold)
    return result_of(groundtruth, matches, actions)


def result_of(groundtruth: GroundTruth, matches: Matches, actions: Sequence[int]) -> AvaResult:
    """The score of matched detections; raises UserError without ground truth."""
    truths = {action: int((groundtruth.actions == action).sum()) for action in actions}
    if not any(truths.values()):
        raise UserError(f"none of the {len(truths)} actions has ground truth; check the action ids")
    ap = {action: average_precision_of(matches.hits[matches.of(action)], truths[action]) for action in truths}
    return AvaResult(float(np.nanmean(list(ap.values()))), ap)


# Persons per key frame, and box areas as fractions of the frame; the upper end of a range is excluded.
PERSON_PARTS: dict[str, tuple[float, float]] = {
    "1 person": (1, 2),
    "2 persons": (2, 3),
    "3 or 4 persons": (3, 5),
    "5 or more persons": (5, np.inf),
}
SIZE_PARTS: dict[str, tuple[float, float]] = {
    "small: below 5 % of the frame": (0.0, 0.05),
    "medium: 5 % to 20 %": (0.05, 0.2),
    "large: 20 % or more": (0.2, np.inf),
}


@dataclass(frozen=True)
class Part:
    """The score of a subset.

    Attributes:
        name: description of the subset.
        mean_ap: mean over the actions with ground truth in it; NaN without such actions.
        actions, truths, detections: number of these actions, of ground truth rows, and of detections in it.
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
    """Scores by persons per key frame; detections in key frames without persons are in no subset.

    ``person_frames``, ``persons``: int64 [f], unique key frames, ascending, and their number of persons.
    """
    truth_persons = _look_up(groundtruth.frames, person_frames, persons)
    found_persons = _look_up(detections.frames[matches.rows], person_frames, persons)
    return _score_subsets(PERSON_PARTS, groundtruth, matches, actions, truth_persons, found_persons)


def by_size(
    groundtruth: GroundTruth, detections: Detections, matches: Matches, actions: Sequence[int]
) -> list[Part]:
    """Scores by box area as a fraction of the frame; a detection without a match counts by its own area."""
    truth_areas = areas(groundtruth.boxes.astype(np.float64))
    found_areas = areas(detections.boxes[matches.rows].astype(np.float64))
    matched = matches.truths >= 0
    found_areas[matched] = truth_areas[matches.truths[matched]]
    return _score_subsets(SIZE_PARTS, groundtruth, matches, actions, truth_areas, found_areas)


def _score_subsets(
    ranges: Mapping[str, tuple[float, float]],
    groundtruth: GroundTruth,
    matches: Matches,
    actions: Sequence[int],
    truth_values: np.ndarray,
    found_values: np.ndarray,
) -> list[Part]:
    """Scores of subsets: ground truth values [n] and values of matched detections [m] in each range."""
    results = []
    for name, (start, end) in ranges.items():
        truths_within = (truth_values >= start) & (truth_values < end)
        found_within = (found_values >= start) & (found_values < end)
        counts, ap = [], []
        for action in actions:
            own = matches.of(action)
            counts.append(int((truths_within & (groundtruth.actions == action)).sum()))
            ap.append(average_precision_of(matches.hits[own][found_within[own]], counts[-1]))
        known = [value for value in ap if not np.isnan(value)]
        mean = float(np.mean(known)) if known else float("nan")
        results.append(Part(name, mean, len(known), sum(counts), int(found_within.sum())))
    return results


def _look_up(frames: np.ndarray, known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Value of each key frame, int64 [n]; 0 if it is not in ``known``, which ascends."""
    index = np.minimum(np.searchsorted(known, frames), max(len(known) - 1, 0))
    return np.where(known[index] == frames, values[index], 0) if len(known) else np.zeros_like(frames)
