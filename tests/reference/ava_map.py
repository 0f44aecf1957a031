"""AVA's frame mAP row by row in plain Python, from the files, without code of the package."""

from __future__ import annotations

import csv
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple


class Row(NamedTuple):
    """A box with an action, and its score."""

    frame: tuple[str, float]
    box: tuple[float, ...]
    action: int
    score: float


def frame_map(
    groundtruth: str,
    detections: str,
    labelmap: str,
    exclusions: str | None = None,
    *,
    keep: int | None = None,
) -> tuple[float, dict[int, float]]:
    """Mean AP and AP per action with ground truth; ``keep``: maximum number of rows per key frame."""
    with open(labelmap, encoding="utf-8") as file:
        actions = [int(number) for number in re.findall(r"\b(?:label_)?id:\s*(\d+)", file.read())]
    excluded = set()
    if exclusions is not None:
        with open(exclusions, encoding="utf-8", newline="") as file:
            excluded = {(video, float(second)) for video, second in csv.reader(file)}
    truth = [row for row in read_rows(groundtruth) if row.frame not in excluded]
    detected = [row for row in read_rows(detections) if row.frame not in excluded]
    return rows_map(truth, detected, actions, keep=keep)


def read_rows(path: str) -> list[Row]:
    """All rows with an action."""
    with open(path, encoding="utf-8", newline="") as file:
        return [
            Row(
                frame=(row[0], float(row[1])),
                box=tuple(float(value) for value in row[2:6]),
                action=int(row[6]),
                score=float(row[7]) if len(row) > 7 else 1.0,
            )
            for row in csv.reader(file)
            if len(row) > 2 and row[6]
        ]


def rows_map(
    truth: Sequence[Row],
    detected: Sequence[Row],
    actions: Sequence[int],
    *,
    keep: int | None = None,
    threshold: float = 0.5,
) -> tuple[float, dict[int, float]]:
    """`frame_map` of rows; equal scores are sorted by key frame and corners."""
    detected = [row for row in detected if row.action in actions]
    if keep is not None:
        frames = defaultdict(list)
        for row in detected:
            frames[row.frame].append(row)
        detected = [
            row
            for rows in frames.values()
            for row in sorted(rows, key=lambda row: (-row.score, row.action, row.box))[:keep]
        ]
    ap = {}
    for action in actions:
        boxes = defaultdict(list)
        for row in sorted((row for row in truth if row.action == action), key=lambda row: row.box):
            boxes[row.frame].append(row.box)
        total = sum(map(len, boxes.values()))
        if total:
            own = sorted(
                (row for row in detected if row.action == action),
                key=lambda row: (-row.score, row.frame, row.box),
            )
            ap[action] = area(judged(own, boxes, threshold), total)
    return sum(ap.values()) / len(ap), ap


def judged(
    detected: Sequence[Row], boxes: dict[tuple[str, float], list[tuple[float, ...]]], threshold: float
) -> list[bool]:
    """Whether each detection, in order, matches a box that is not matched yet."""
    matched = set()
    hits = []
    for row in detected:
        shares = [overlap(row.box, box) for box in boxes.get(row.frame, [])]
        place = shares.index(max(shares)) if shares else -1
        hit = bool(shares) and shares[place] >= threshold and (row.frame, place) not in matched
        if hit:
            matched.add((row.frame, place))
        hits.append(hit)
    return hits


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    shared = height * width
    return shared / ((a[3] - a[1]) * (a[2] - a[0]) + (b[3] - b[1]) * (b[2] - b[0]) - shared)


def area(hits: Sequence[bool], total: int) -> float:
    """Area under the precision-recall curve with the maximum precision at or after each point."""
    points = []
    count = 0
    for rank, hit in enumerate(hits, start=1):
        count += hit
        points.append((count / total, count / rank))
    best, steps = 0.0, []
    for recall, precision in reversed(points):
        best = max(best, precision)
        steps.append((recall, best))
    before, areas = 0.0, []
    for recall, precision in reversed(steps):
        areas.append((recall - before) * precision)
        before = recall
    return math.fsum(areas)
