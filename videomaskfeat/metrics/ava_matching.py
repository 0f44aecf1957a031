"""Which detections hit: AVA's rules of matching, and the average precision of what they give.

Everything here is about rows: a box in a key frame, with one action. Key frames are numbers that both sides
share. The detections of an action have one total order, so that no result depends on how rows are sorted or
in how many parts they were gathered: by score, the highest first; of equal scores by key frame, then by x1,
y1, x2, y2, the lowest first. (Rows that agree in all of that are one detection twice, and may change places.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from videomaskfeat.boxes import best_overlaps
from videomaskfeat.errors import UserError


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
    """What was found: as `GroundTruth`, and how sure that is.

    Attributes:
        frames: int64 [n].
        boxes: float [n, 4].
        actions: int64 [n].
        scores: float [n], higher is better.
    """

    frames: np.ndarray
    boxes: np.ndarray
    actions: np.ndarray
    scores: np.ndarray

    @classmethod
    def of_box_scores(
        cls, frames: np.ndarray, boxes: np.ndarray, scores: np.ndarray, actions: Sequence[int]
    ) -> Detections:
        """A row for each box and each action.

        Args:
            frames: int [R], the key frame of each box.
            boxes: float [R, 4].
            scores: float [R, L].
            actions: the numbers of the L actions.

        Returns:
            R x L rows, the actions of a box one after the other.
        """
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
    """The detections of some actions, action by action, each in the order in which they were judged.

    Attributes:
        rows: int64 [m], the row of each among the detections.
        actions: int64 [m], ascending.
        hits: bool [m], whether it is right; all others are false positives.
        truths: int64 [m], the row of the ground truth, of its action and key frame, that it overlaps most;
            -1 where that is not enough. Of those with one truth the first is the hit.
    """

    rows: np.ndarray
    actions: np.ndarray
    hits: np.ndarray
    truths: np.ndarray

    def of(self, action: int) -> slice:
        """Where the detections of an action lie."""
        first, last = np.searchsorted(self.actions, [action, action + 1])
        return slice(int(first), int(last))


def match(
    groundtruth: GroundTruth, detections: Detections, actions: Sequence[int], *, iou_threshold: float = 0.5
) -> Matches:
    """Judge every detection of the given actions.

    In the order of their scores, each may take only the one box of its action and key frame that it overlaps
    most (of equal overlaps the first in the order of corners), and it is a false positive where that overlap
    is below the threshold or that box was taken before.

    Args:
        groundtruth: what there is to find.
        detections: what was found.
        actions: the actions to judge, each once; rows of others play no part.
        iou_threshold: the least intersection over union, above 0 and at most 1.

    Raises:
        UserError: a threshold out of its range, or a score that is not a number.
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
        UserError: a count below 1, or a score that is not a number.
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
        truths: boxes there are to find; NaN comes back where there are none.
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
