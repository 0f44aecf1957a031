"""Linking boxes by trying all assignments, without arrays."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

Box = tuple[float, float, float, float]


def overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / both if both > 0 else 0.0


def best_sum(gains: Sequence[Sequence[float]]) -> float:
    """The maximum sum over all assignments of rows to columns."""
    n, m = len(gains), len(gains[0]) if gains else 0
    if n > m:
        gains, n, m = [[gains[row][column] for row in range(n)] for column in range(m)], m, n
    return max(
        sum(gains[row][column] for row, column in enumerate(columns))
        for columns in itertools.permutations(range(m), n)
    )


def link(steps: Sequence[Sequence[Box]], seconds: Sequence[float], min_iou: float, gap: float) -> list[list]:
    """The tracks of the boxes of each step; ties between assignments are not handled."""
    last: dict[int, tuple[Box, float]] = {}
    result = []
    for now, boxes in zip(seconds, steps, strict=True):
        live = [number for number, (_, when) in last.items() if now - when <= gap]
        # Each box takes one of the live tracks, or none.
        choices = itertools.product([None, *live], repeat=len(boxes))
        best, chosen = -1.0, tuple([None] * len(boxes))
        for choice in choices:
            columns_used = [number for number in choice if number is not None]
            if len(set(columns_used)) < len(columns_used):
                continue
            gains = [overlap(last[t][0], b) for t, b in zip(choice, boxes, strict=True) if t is not None]
            if all(gain >= min_iou for gain in gains) and sum(gains) > best:
                best, chosen = sum(gains), choice
        numbers = []
        for number, box in zip(chosen, boxes, strict=True):
            numbers.append(len(last) if number is None else number)
            last[numbers[-1]] = (box, now)
        result.append(numbers)
    return result
