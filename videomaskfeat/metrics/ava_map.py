"""AVA's score: frame mAP at IoU 0.5, the mean over the actions of their average precisions.

The rules are those of the official script (Evaluation/get_ava_performance.py of
github.com/activitynet/ActivityNet), which differ from other detection scores: a detection may take only the
box that it overlaps most, the curve is interpolated at all its points, and actions without ground truth leave
the mean. What the script leaves to chance, the order of equal scores, is fixed here (`ava_matching`). It
keeps the 50 best rows a key frame, here an option; and it drops boxes with x2 <= x1 without a word, which
`evaluate_files` refuses.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from videomaskfeat.errors import UserError
from videomaskfeat.metrics.ava_files import read_ava
from videomaskfeat.metrics.ava_matching import (
    Detections,
    GroundTruth,
    Matches,
    average_precision_of,
    best_rows,
    match,
)


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
    """Score a file of detections; for the files see :func:`~videomaskfeat.metrics.ava_files.read_ava`.

    Args:
        groundtruth: CSV file of what there is to find.
        detections: CSV file of what was found, in any order of its rows.
        labelmap: protocol buffer's text; only its actions count.
        exclusions: CSV file of times that do not count, on either side.
        iou_threshold: the least intersection over union of a hit.
        rows_per_frame: judge only so many rows a key frame, the best; None for all (the official script: 50).

    Raises:
        UserError: a file that is not there; a row that is wrong, with file and line; an option out of range.
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
    """Score detections in memory.

    Parts that several processes hold may be put together in any order: the result is the same to the bit.

    Args:
        groundtruth: what there is to find, each row once.
        detections: what was found, each row once; none is fine.
        actions: numbers of the actions that count.
        iou_threshold: the least intersection over union of a hit, above 0 and at most 1.
        rows_per_frame: judge only so many rows a key frame, the best; None for all.

    Raises:
        UserError: no ground truth of these actions, a score that is not a number, or an option out of range.
    """
    if rows_per_frame is not None:
        detections = best_rows(detections, actions, rows_per_frame)
    matches = match(groundtruth, detections, actions, iou_threshold=iou_threshold)
    return result_of(groundtruth, matches, actions)


def result_of(groundtruth: GroundTruth, matches: Matches, actions: Sequence[int]) -> AvaResult:
    """The score of detections that have been judged.

    Raises:
        UserError: no ground truth of these actions.
    """
    truths = {action: int((groundtruth.actions == action).sum()) for action in actions}
    if not any(truths.values()):
        raise UserError(f"none of the {len(truths)} actions has ground truth, so there is nothing to score")
    ap = {action: average_precision_of(matches.hits[matches.of(action)], truths[action]) for action in truths}
    return AvaResult(float(np.nanmean(list(ap.values()))), ap)
