"""AVA's training boxes, row by row into dictionaries."""

from __future__ import annotations

import csv
from pathlib import Path

Box = tuple[float, float, float, float]
Boxes = dict[tuple[str, float], dict[Box, tuple[set[int], float]]]


def plain_training_boxes(
    groundtruth: list[Path],
    detections: list[Path],
    exclusions: list[Path],
    *,
    score_threshold: float,
    iou_threshold: float,
) -> Boxes:
    """Actions and score of each box in each key frame."""
    excluded = {(video, float(second)) for path in exclusions for video, second in _rows(path)}
    truth: Boxes = {}
    for path in groundtruth:
        for row in _rows(path):
            _add(truth, row, 1.0)
    boxes: Boxes = {
        moment: {box: (set(a), s) for box, (a, s) in inside.items()} for moment, inside in truth.items()
    }
    for path in detections:
        rows = _rows(path)
        labeled = any(row[6] for row in rows)
        for row in rows:
            if float(row[7]) < score_threshold:
                continue
            actions = _add(boxes, row, float(row[7]))
            if labeled:
                continue
            box = _box(row)
            shares = {other: _overlap(box, other) for other in truth.get(_moment(row), {})}
            best = max(sorted(shares), key=lambda other: shares[other], default=None)
            if best is not None and shares[best] >= iou_threshold:
                actions |= truth[_moment(row)][best][0]
    return {moment: inside for moment, inside in boxes.items() if moment not in excluded}


def _rows(path: Path) -> list[list[str]]:
    with path.open() as file:
        return list(csv.reader(file))


def _moment(row: list[str]) -> tuple[str, float]:
    return row[0], float(row[1])


def _box(row: list[str]) -> Box:
    x1, y1, x2, y2 = map(float, row[2:6])
    return x1, y1, x2, y2


def _add(boxes: Boxes, row: list[str], score: float) -> set[int]:
    inside = boxes.setdefault(_moment(row), {})
    actions, best = inside.get(_box(row), (set(), 0.0))
    if row[6]:
        actions.add(int(row[6]))
    inside[_box(row)] = actions, max(best, score)
    return actions


def _overlap(box: Box, other: Box) -> float:
    wide = min(box[2], other[2]) - max(box[0], other[0])
    high = min(box[3], other[3]) - max(box[1], other[1])
    shared = max(wide, 0.0) * max(high, 0.0)
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)]
    return shared / (sum(areas) - shared)
