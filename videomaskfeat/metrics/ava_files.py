"""What is scored, from AVA's files of ground truth, detections, actions and times; detections written."""

from __future__ import annotations

import os
from collections.abc import Sequence
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
from videomaskfeat.errors import UserError
from videomaskfeat.io import whole_file
from videomaskfeat.metrics.ava_matching import Detections, GroundTruth

_WRITTEN_AT_ONCE = 100_000  # rows


@dataclass(frozen=True)
class SideCounts:
    """How many rows of a file play a part, and why the others do not.

    Attributes:
        rows: in the file.
        used: that play a part.
        excluded: at excluded times.
        no_action: of persons without an action, at other times.
        not_listed: of actions that the label map does not list, at other times.
    """

    rows: int
    used: int
    excluded: int
    no_action: int
    not_listed: int


@dataclass(frozen=True)
class AvaData:
    """What is scored: rows of the label map's actions at times that are not excluded.

    Attributes:
        groundtruth: what there is to find.
        detections: what was found.
        actions: number to name of the label map's actions.
        person_frames: int64 [f], key frames of the ground truth that hold persons, ascending.
        persons: int64 [f], boxes that differ in each, those of actions that are not scored included.
        groundtruth_counts: of the ground truth's rows.
        detection_counts: of the detections' rows.
        unknown_videos: names of videos that the detections have and the ground truth has not.
        unknown_rows: their detections among those used: they are false positives all.
        bare_rows: detections among those used in other key frames without a row of the ground truth: they are
            false positives as well.
        bare_frames: how many such key frames there are.
        scored: whether the detections came with scores; else each has the score 1.
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
    """Read all that a score is made of.

    Rows have the columns ``video,second,x1,y1,x2,y2,action,person`` (ground truth) or ``...,action,score``
    (detections), with a line of headings or without. The eighth column may be left out: without scores all
    are 1. Boxes are shares of the frame, 0 to 1. Seconds may be written 902, 0902 or 902.0. An empty action
    is a person without one. A row of the ground truth without a box, such as ``video,second`` alone, is a
    key frame without persons, as in AVA-Kinetics.

    Args:
        groundtruth: CSV file.
        detections: CSV file; it may be empty.
        labelmap: the actions to score, see `read_label_map`.
        exclusions: CSV file of ``video,second`` that are not scored.

    Raises:
        UserError: a file that is not there, or a row that is wrong, with file and line; or nothing to find.
    """
    actions = read_label_map(labelmap)
    names, largest = VideoNames(), max(AVA_ACTIONS, *actions)
    truth = read_groundtruth(groundtruth, names, largest=largest)
    known = len(names)
    found = read_detections(detections, names, largest=largest)
    if len(found.actions) and (found.actions == NO_ACTION).all():
        raise UserError(
            f"{os.fspath(detections)}: no row has an action, so this is a list of person boxes; "
            f"detections have a row `{FOUND_FORM}` for each box and action"
        )
    closed = read_times(exclusions, names) if exclusions else (np.empty(0, np.int64),) * 2
    truth_frames, found_frames, closed_frames = (
        names.key_frames(videos, times)
        for videos, times in ((truth.videos, truth.times), (found.videos, found.times), closed)
    )
    truth_open, found_open = (~np.isin(frames, closed_frames) for frames in (truth_frames, found_frames))
    truth_kept, truth_counts = _kept(truth, truth_open, actions)
    found_kept, found_counts = _kept(found, found_open, actions)
    if not truth_counts.used:
        raise UserError(_nothing_to_find(os.fspath(groundtruth), os.fspath(labelmap), truth_counts))
    unknown, texts = found.videos >= known, names.texts()
    # Key frames without persons are part of the ground truth: each detection in them is a false positive.
    known_frames = np.concatenate([truth_frames, names.key_frames(truth.empty_videos, truth.empty_times)])
    bare = found_kept & ~unknown & ~np.isin(found_frames, known_frames)
    person_frames, persons = _persons(truth_frames[truth_open], truth.boxes[truth_open])
    return AvaData(
        groundtruth=GroundTruth(truth_frames[truth_kept], truth.boxes[truth_kept], truth.actions[truth_kept]),
        detections=Detections(
            found_frames[found_kept],
            found.boxes[found_kept],
            found.actions[found_kept],
            found.scores[found_kept],
        ),
        actions=actions,
        person_frames=person_frames,
        persons=persons,
        groundtruth_counts=truth_counts,
        detection_counts=found_counts,
        unknown_videos=[texts[video] for video in np.unique(found.videos[unknown]).tolist()],
        unknown_rows=int((unknown & found_kept).sum()),
        bare_rows=int(bare.sum()),
        bare_frames=len(np.unique(found_frames[bare])),
        scored=found.scored,
    )


def write_detections(
    path: str | os.PathLike[str], key_frames: Sequence[tuple[str, float]], detections: Detections
) -> None:
    """Write detections as the official script takes them: ``video,second,x1,y1,x2,y2,action,score``.

    Numbers have as many digits as they need to be read back as they are, in their own type.

    Args:
        path: of the file.
        key_frames: video and second of each key frame; ``detections.frames`` counts in it.
        detections: boxes in shares of the frame, 0 to 1.
    """
    places = [f"{video},{_second(second)}" for video, second in key_frames]
    with whole_file(path, errors="surrogateescape") as file:
        for first in range(0, len(detections.frames), _WRITTEN_AT_ONCE):
            rows = slice(first, first + _WRITTEN_AT_ONCE)
            columns = [
                [places[frame] for frame in detections.frames[rows].tolist()],
                *(column.astype(str).tolist() for column in detections.boxes[rows].T),
                map(str, detections.actions[rows].tolist()),
                detections.scores[rows].astype(str).tolist(),
            ]
            file.writelines(f"{','.join(row)}\n" for row in zip(*columns, strict=True))


def _kept(rows: AvaRows, open_times: np.ndarray, actions: dict[int, str]) -> tuple[np.ndarray, SideCounts]:
    """Which rows play a part, bool [n], and why the others do not: the first reason that fits."""
    kept = open_times & np.isin(rows.actions, list(actions))
    idle = open_times & (rows.actions == NO_ACTION)
    total, used, excluded = len(kept), int(kept.sum()), int((~open_times).sum())
    no_action = int(idle.sum())
    return kept, SideCounts(total, used, excluded, no_action, total - used - excluded - no_action)


def _persons(frames: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Key frames, ascending, and how many boxes that differ each holds, int64 [f] both."""
    order = np.lexsort((*boxes.T, frames))
    frames, boxes = frames[order], boxes[order]
    new = np.ones(len(frames), bool)
    new[1:] = (frames[1:] != frames[:-1]) | (boxes[1:] != boxes[:-1]).any(axis=1)
    return np.unique(frames[new], return_counts=True)


def _nothing_to_find(groundtruth: str, labelmap: str, counts: SideCounts) -> str:
    """What is wrong with a ground truth of which no row is left."""
    if not counts.rows:
        return f"{groundtruth}: has no rows; ground truth has a row `{TRUTH_FORM}` for each box and action"
    return (
        f"{groundtruth}: none of its {counts.rows} rows can be scored: {counts.not_listed} are of actions "
        f"that {labelmap} does not list, {counts.no_action} have no action, {counts.excluded} are at "
        "excluded times; take the files of one version and split"
    )


def _second(second: float) -> str:
    """Whole seconds as four digits, as AVA writes them; others as they are; all to a millisecond."""
    second = round(float(second), 3)
    return f"{second:04.0f}" if second.is_integer() else f"{second:.3f}".rstrip("0")
