"""Arithmetic of boxes, [n, 4]: x1, y1, x2, y2 in any unit, with x1 <= x2 and y1 <= y2."""

from __future__ import annotations

import numpy as np

_PAIRS = 1 << 20  # boxes compared at a time


def areas(boxes: np.ndarray) -> np.ndarray:
    """float [n] of boxes float [n, 4]."""
    return (boxes[:, 3] - boxes[:, 1]) * (boxes[:, 2] - boxes[:, 0])


def overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of pairs of boxes, float64 [n].

    Args:
        boxes: float64 [n, 4].
        others: float64 [n, 4].
    """
    left, top = np.maximum(boxes[:, 0], others[:, 0]), np.maximum(boxes[:, 1], others[:, 1])
    right, bottom = np.minimum(boxes[:, 2], others[:, 2]), np.minimum(boxes[:, 3], others[:, 3])
    shared = np.maximum(bottom - top, 0.0) * np.maximum(right - left, 0.0)
    union = areas(boxes) + areas(others) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def best_overlaps(
    boxes: np.ndarray, others: np.ndarray, first: np.ndarray, last: np.ndarray, *, threshold: float
) -> np.ndarray:
    """For each box the place of the one among ``others[first:last]`` that it overlaps most; -1: not enough.

    Of equal overlaps the first one counts. Pairs are compared a million at a time, so that memory does not
    grow with crowded frames.

    Args:
        boxes: float [n, 4].
        others: float [m, 4].
        first: int [n], where in ``others`` the candidates of each box begin.
        last: int [n], and where they end.
        threshold: the least intersection over union that is enough.

    Returns:
        int64 [n].
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
