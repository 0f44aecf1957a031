"""Overlaps and tracks of boxes [n, 4]: x1, y1, x2, y2 in any unit, x1 <= x2 and y1 <= y2."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from videomaskfeat.errors import UserError

_PAIRS = 1 << 20  # boxes compared at a time


def areas(boxes: np.ndarray) -> np.ndarray:
    """Areas of boxes float [n, 4]: float [n]."""
    return (boxes[:, 3] - boxes[:, 1]) * (boxes[:, 2] - boxes[:, 0])


def overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of pairs of boxes, float64 [n, 4] both: float64 [n]."""
    left, top = np.maximum(boxes[:, 0], others[:, 0]), np.maximum(boxes[:, 1], others[:, 1])
    right, bottom = np.minimum(boxes[:, 2], others[:, 2]), np.minimum(boxes[:, 3], others[:, 3])
    shared = np.maximum(bottom - top, 0.0) * np.maximum(right - left, 0.0)
    union = areas(boxes) + areas(others) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def best_overlaps(
    boxes: np.ndarray, others: np.ndarray, first: np.ndarray, last: np.ndarray, *, threshold: float
) -> np.ndarray:
    """For each box the index of the box in ``others[first:last]`` with the largest overlap, int64 [n].

    The first of several largest overlaps is used; -1: the overlap is below the threshold. Pairs are compared
    in chunks of a million, so that crowded frames do not need more memory.
    """
    best = np.full(len(boxes), -1, np.int64)
    with_others = np.flatnonzero(last > first)
    chunks = np.cumsum(last[with_others] - first[with_others]) // _PAIRS
    for rows in np.split(with_others, np.flatnonzero(np.diff(chunks)) + 1):
        if not len(rows):
            continue
        counts = last[rows] - first[rows]
        starts = np.cumsum(counts) - counts  # first pair of each row
        box_of_pair = np.repeat(np.arange(len(rows)), counts)
        other_of_pair = np.arange(int(counts.sum())) + np.repeat(first[rows] - starts, counts)
        ious = overlaps(boxes[rows].astype(np.float64)[box_of_pair], others[other_of_pair].astype(np.float64))
        largest = np.maximum.reduceat(ious, starts)
        equal = np.flatnonzero(ious == largest[box_of_pair])
        _, earliest = np.unique(box_of_pair[equal], return_index=True)
        best[rows] = np.where(largest >= threshold, other_of_pair[equal[earliest]], -1)
    return best


_ROUNDING = 1e-6  # seconds, tolerance of the maximum gap


def link_boxes(
    boxes: Sequence[np.ndarray], seconds: np.ndarray, *, min_iou: float = 0.3, max_gap_seconds: float = 2.0
) -> list[np.ndarray]:
    """Link boxes of successive key frames to tracks.

    Args:
        boxes: boxes of each key frame, float [k, 4] in any unit; k may be 0.
        seconds: ascending times of the key frames, float [n].
        min_iou: minimum intersection over union, in (0, 1], of a box and the last box of its track.
        max_gap_seconds: maximum time between two boxes of a track.

    Returns:
        Track numbers of the boxes of each key frame, int64 [k], from 0 in the order in which tracks start.

    Raises:
        UserError: an argument is out of range, or times do not ascend.
    """
    check_linking(min_iou, max_gap_seconds)
    if len(boxes) != len(seconds) or (np.diff(seconds) <= 0).any():
        raise UserError(f"{len(boxes)} key frames need {len(boxes)} times in ascending order")
    tracks: list[np.ndarray] = []
    last_boxes, last_times = np.empty((0, 4)), np.empty(0)  # by track
    for now, new_boxes in zip(np.asarray(seconds, np.float64), boxes, strict=True):
        new_boxes = np.asarray(new_boxes, np.float64).reshape(-1, 4)
        open_tracks = np.flatnonzero(now - last_times <= max_gap_seconds + _ROUNDING)
        numbers = np.full(len(new_boxes), -1)
        ious = pairwise_overlaps(last_boxes[open_tracks], new_boxes)
        ious[ious < min_iou] = 0.0
        for row, column in best_pairs(ious):
            numbers[column] = open_tracks[row]
        starting = np.flatnonzero(numbers < 0)
        numbers[starting] = len(last_boxes) + np.arange(len(starting))
        last_boxes = np.concatenate([last_boxes, new_boxes[starting]])
        last_times = np.concatenate([last_times, np.full(len(starting), now)])
        last_boxes[numbers], last_times[numbers] = new_boxes, now
        tracks.append(numbers.astype(np.int64))
    return tracks


def check_linking(min_iou: float, max_gap_seconds: float) -> None:
    """Raise UserError if an argument of :func:`link_boxes` is out of range."""
    if not 0 < min_iou <= 1:
        raise UserError(f"min_iou={min_iou:g} must be above 0 and at most 1")
    if not max_gap_seconds >= 0:
        raise UserError(f"max_gap_seconds={max_gap_seconds:g} must be at least 0")


def check_smoothing(sigma_seconds: float) -> None:
    """Raise UserError if an argument of :func:`smooth_scores` is out of range."""
    if not 0 <= sigma_seconds < np.inf:
        raise UserError(f"the smoothing of {sigma_seconds:g} seconds must be at least 0")


def pairwise_overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of all pairs of ``boxes`` [n, 4] and ``others`` [m, 4]: [n, m]."""
    rows, columns = np.repeat(boxes, len(others), axis=0), np.tile(others, (len(boxes), 1))
    return overlaps(rows, columns).reshape(len(boxes), len(others))


def best_pairs(gains: np.ndarray) -> list[tuple[int, int]]:
    """Assign rows to columns with the largest sum of gains.

    The Hungarian algorithm with potentials: rows are assigned one by one, each along the shortest augmenting
    path (Kuhn 1955; O(n^2 m) as in Jonker and Volgenant 1987).

    Args:
        gains: float [n, m], at least 0.

    Returns:
        Pairs (row, column) sorted by row, without pairs of gain 0.
    """
    if gains.shape[0] > gains.shape[1]:
        return sorted((row, column) for column, row in best_pairs(gains.T))
    n, m = gains.shape
    row_price, column_price = np.zeros(n), np.zeros(m)
    row_of = np.full(m, -1)  # row of each column
    for start in range(n):
        shortest, before = np.full(m, np.inf), np.full(m, -1)  # length of the path to a column, last column
        done = np.zeros(m, bool)
        row, column, length = start, -1, 0.0
        while True:
            costs = length - gains[row] - row_price[row] - column_price
            better = ~done & (costs < shortest)
            shortest[better], before[better] = costs[better], column
            column = int(np.where(done, np.inf, shortest).argmin())
            length = float(shortest[column])
            if row_of[column] < 0:
                break
            done[column] = True
            row = row_of[column]
        visited = np.flatnonzero(done)
        row_price[start] += length
        row_price[row_of[visited]] += length - shortest[visited]
        column_price[visited] -= length - shortest[visited]
        while column >= 0:  # back along the path, each column gets the row of the one before
            previous = before[column]
            row_of[column] = start if previous < 0 else row_of[previous]
            column = int(previous)
    pairs = [(int(row), column) for column, row in enumerate(row_of) if row >= 0 and gains[row, column] > 0]
    return sorted(pairs)


def smooth_scores(
    scores: Sequence[np.ndarray], tracks: Sequence[np.ndarray], seconds: np.ndarray, *, sigma_seconds: float
) -> list[np.ndarray]:
    """Average scores over each track, weighted by a Gaussian of the time difference.

    The weights are normalized, so scores that sum to 1 still do.

    Args:
        scores: scores of each key frame, float [k, L]; the result has the same form.
        tracks: track numbers of each key frame, int [k], from :func:`link_boxes`.
        seconds: times of the key frames, float [n].
        sigma_seconds: standard deviation, at least 0; 0: no smoothing.
    """
    check_smoothing(sigma_seconds)
    smooth = [np.array(frame_scores) for frame_scores in scores]
    if sigma_seconds == 0:
        return smooth
    numbers = np.concatenate([np.empty(0, np.int64), *tracks])
    positions = [(step, row) for step, track in enumerate(tracks) for row in range(len(track))]
    for number in np.unique(numbers):
        own = [positions[index] for index in np.flatnonzero(numbers == number)]
        times = np.asarray(seconds, np.float64)[[step for step, _ in own]]
        weights = np.exp(-0.5 * ((times[:, None] - times) / sigma_seconds) ** 2)
        values = np.stack([scores[step][row] for step, row in own])  # [m, L]
        means = weights @ values / weights.sum(axis=1, keepdims=True)
        for (step, row), mean in zip(own, means, strict=True):
            smooth[step][row] = mean
    return smooth
