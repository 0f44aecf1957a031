"""AVA's score of parts of the ground truth: by how many persons a key frame holds, and by how large they are.

Detections are judged once, against all of the ground truth; a part then counts those that belong to it. One
that overlaps a box enough belongs where that box does, so that what finds a large box is not held against the
small ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from videomaskfeat.boxes import areas
from videomaskfeat.metrics.ava_matching import (
    Detections,
    GroundTruth,
    Matches,
    average_precision_of,
)

# The least and the most persons of a key frame.
PERSON_PARTS: dict[str, tuple[float, float]] = {
    "1 person": (1, 1),
    "2 persons": (2, 2),
    "3 or 4 persons": (3, 4),
    "5 persons and more": (5, np.inf),
}
# Where a part begins and ends, as shares of the frame's area, the end excluded.
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
        mean_ap: over the actions that have ground truth in it; NaN where none has.
        actions: how many have.
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
    """Key frames of one person, of two, and so on; detections in key frames without a person are in none.

    Args:
        groundtruth: what there is to find.
        detections: what was found.
        matches: of the two.
        actions: numbers of the actions that count.
        person_frames: int64 [f], key frames, ascending, each once.
        persons: int64 [f], how many persons each holds.
    """
    truth_persons = _looked_up(groundtruth.frames, person_frames, persons)
    found_persons = _looked_up(detections.frames[matches.rows], person_frames, persons)

    return [
        _part(
            name,
            groundtruth,
            matches,
            actions,
            (truth_persons >= least) & (truth_persons <= most),
            (found_persons >= least) & (found_persons <= most),
        )
        for name, (least, most) in PERSON_PARTS.items()
    ]


def by_size(
    groundtruth: GroundTruth, detections: Detections, matches: Matches, actions: Sequence[int]
) -> list[Part]:
    """Boxes by their area, which are shares of the frame; a detection that overlaps none by its own.

    Args:
        groundtruth: what there is to find, boxes in shares of the frame.
        detections: what was found.
        matches: of the two.
        actions: numbers of the actions that count.
    """
    truth_areas = areas(groundtruth.boxes.astype(np.float64))
    found_areas = areas(detections.boxes[matches.rows].astype(np.float64))
    matched = matches.truths >= 0
    found_areas[matched] = truth_areas[matches.truths[matched]]
    return [
        _part(
            name,
            groundtruth,
            matches,
            actions,
            (truth_areas >= least) & (truth_areas < end),
            (found_areas >= least) & (found_areas < end),
        )
        for name, (least, end) in SIZE_PARTS.items()
    ]


def _part(
    name: str,
    groundtruth: GroundTruth,
    matches: Matches,
    actions: Sequence[int],
    truths_within: np.ndarray,
    detections_within: np.ndarray,
) -> Part:
    """The score of some rows: of the ground truth (bool [n]) and of the judged detections (bool [m])."""
    ap = []
    truths = 0
    for action in actions:
        own = matches.of(action)
        count = int((truths_within & (groundtruth.actions == action)).sum())
        ap.append(average_precision_of(matches.hits[own][detections_within[own]], count))
        truths += count
    known = [value for value in ap if not np.isnan(value)]
    mean = float(np.mean(known)) if known else float("nan")
    return Part(name, mean, len(known), truths, int(detections_within.sum()))


def _looked_up(frames: np.ndarray, known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """int64 [n]: the value of each key frame, 0 where it is not among the ``known``, which ascend."""
    place = np.minimum(np.searchsorted(known, frames), max(len(known) - 1, 0))
    return np.where(known[place] == frames, values[place], 0) if len(known) else np.zeros_like(frames)
