"""Overlaps and tracks of boxes [n, 4]: x1, y1, x2, y2 in any unit, with x1 <= x2 and y1 <= y2."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from videomaskfeat.errors import UserError

_PAIRS = 1 << 20  # boxes compared at a time


def areas(boxes: np.ndarray) -> np.ndarray:
    """float [n] of boxes float [n, 4]."""
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
    """For each box [n, 4] the place of the one among ``others[first:last]`` that it overlaps most, int64 [n].

    -1 where the overlap is below the threshold. Of equal overlaps the first one counts. Pairs are compared a
    million at a time, so that memory does not grow with crowded frames.
    """
    best = np.full(len(boxes), -1, np.int64)
    where = np.flatnonzero(last > first)
    counts = last[where] - first[where]
    chunk = np.cumsum(counts) // _PAIRS
    for rows in np.split(where, np.flatnonzero(np.diff(chunk)) + 1):
        if not len(rows):
            continue
        count = last[rows] - first[rows]
        starts = np.cumsum(count) - count  # of each row's pairs
        mine = np.repeat(np.arange(len(rows)), count)
        theirs = np.arange(int(count.sum())) + np.repeat(first[rows] - starts, count)
        shares = overlaps(boxes[rows].astype(np.float64)[mine], others[theirs].astype(np.float64))
        most = np.maximum.reduceat(shares, starts)
        equal = np.flatnonzero(shares == most[mine])
        _, earliest = np.unique(mine[equal], return_index=True)
        best[rows] = np.where(most >= threshold, theirs[equal[earliest]], -1)
    return best


_ROUNDING = 1e-6  # seconds by which times may miss a gap that they are meant to reach


def link_boxes(
    boxes: Sequence[np.ndarray], seconds: np.ndarray, *, min_iou: float = 0.3, max_gap_seconds: float = 2.0
) -> list[np.ndarray]:
    """The track of each box: of each key frame int64 [k], numbered from 0 in the order in which tracks begin.

    Args:
        boxes: of each key frame, float [k, 4] in any unit; k may be 0.
        seconds: float [n], when each key frame is, ascending.
        min_iou: least intersection over union, in (0, 1], of a box and the last one of its track.
        max_gap_seconds: how long after its last box a track may go on.

    Raises:
        UserError: an argument out of range, or times that do not ascend.
    """
    check_linking(min_iou, max_gap_seconds)
    if len(boxes) != len(seconds) or (np.diff(seconds) <= 0).any():
        raise UserError(f"{len(boxes)} key frames need as many times, each later than the one before")
    tracks: list[np.ndarray] = []
    last = np.empty((0, 4))  # the last box of each track, by number
    seen = np.empty(0)  # and when that was
    for now, found in zip(np.asarray(seconds, np.float64), boxes, strict=True):
        found = np.asarray(found, np.float64).reshape(-1, 4)
        open_tracks = np.flatnonzero(now - seen <= max_gap_seconds + _ROUNDING)
        numbers = np.full(len(found), -1)
        shares = pairwise_overlaps(last[open_tracks], found)
        shares[shares < min_iou] = 0.0
        for row, column in best_pairs(shares):
            numbers[column] = open_tracks[row]
        new = np.flatnonzero(numbers < 0)
        numbers[new] = len(last) + np.arange(len(new))
        last = np.concatenate([last, found[new]])
        seen = np.concatenate([seen, np.full(len(new), now)])
        last[numbers], seen[numbers] = found, now
        tracks.append(numbers.astype(np.int64))
    return tracks


def check_linking(min_iou: float, max_gap_seconds: float) -> None:
    """Refuse numbers that :func:`link_boxes` would, before there are boxes."""
    if not 0 < min_iou <= 1:
        raise UserError(f"min IoU {min_iou:g} must be above 0, and at most 1")
    if not max_gap_seconds >= 0:
        raise UserError(f"max gap {max_gap_seconds:g} must be a number of seconds, 0 or more")


def check_smoothing(sigma_seconds: float) -> None:
    """Refuse what :func:`smooth_scores` would, before there are scores."""
    if not 0 <= sigma_seconds < np.inf:
        raise UserError(f"smoothing over {sigma_seconds:g} must be a number of seconds, 0 or more")


def pairwise_overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of each of ``boxes`` [n, 4] with each of ``others`` [m, 4]: [n, m]."""
    rows, columns = np.repeat(boxes, len(others), axis=0), np.tile(others, (len(boxes), 1))
    return overlaps(rows, columns).reshape(len(boxes), len(others))


def best_pairs(gains: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of a row and a column, each in one pair at most, with the largest sum of gains.

    The Hungarian method with potentials: rows are taken up one by one, each along the cheapest path of
    changes to what was chosen before (Kuhn 1955; in O(n^2 m) after Jonker and Volgenant 1987).

    Args:
        gains: float [n, m], at least 0; pairs that gain nothing are left out.

    Returns:
        Pairs by row.
    """
    if gains.shape[0] > gains.shape[1]:
        return sorted((row, column) for column, row in best_pairs(gains.T))
    n, m = gains.shape
    row_price, column_price = np.zeros(n), np.zeros(m)
    row_of = np.full(m, -1)  # which row each column is paired with
    for start in range(n):
        shortest, before = np.full(m, np.inf), np.full(m, -1)  # length of the path to a column; via which
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
        while column >= 0:  # back along the path, each column taking the row of the one before
            previous = before[column]
            row_of[column] = start if previous < 0 else row_of[previous]
            column = int(previous)
    pairs = [(int(row), column) for column, row in enumerate(row_of) if row >= 0 and gains[row, column] > 0]
    return sorted(pairs)


def smooth_scores(
    scores: Sequence[np.ndarray], tracks: Sequence[np.ndarray], seconds: np.ndarray, *, sigma_seconds: float
) -> list[np.ndarray]:
    """Scores averaged over the key frames of the same track, weighted by a Gaussian of the time between them.

    The weights sum to 1 over the track: scores that sum to 1 still do.

    Args:
        scores: of each key frame, float [k, L]; the result has the same form.
        tracks: of each key frame, int [k], as :func:`link_boxes` returns them.
        seconds: float [n], when each key frame is.
        sigma_seconds: standard deviation; 0 changes nothing. UserError if negative or infinite.
    """
    check_smoothing(sigma_seconds)
    smooth = [np.array(part) for part in scores]
    if sigma_seconds == 0:
        return smooth
    numbers = np.concatenate([np.empty(0, np.int64), *tracks])
    steps = np.repeat(np.arange(len(tracks)), [len(part) for part in tracks])
    rows = np.concatenate([np.empty(0, np.int64), *(np.arange(len(part)) for part in tracks)])
    for number in np.unique(numbers):
        places = np.flatnonzero(numbers == number)
        times = np.asarray(seconds, np.float64)[steps[places]]
        weights = np.exp(-0.5 * ((times[:, None] - times) / sigma_seconds) ** 2)
        own = np.stack([scores[steps[place]][rows[place]] for place in places])  # [m, L]
        for place, values in zip(places, weights @ own / weights.sum(axis=1, keepdims=True), strict=True):
            smooth[steps[place]][rows[place]] = values
    return smooth
