"""What is found in a video as JSON, as rows of AVA's form, and in a few words."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import simplejson

from videomaskfeat.io import whole_file
from videomaskfeat.metrics.ava_files import write_detections
from videomaskfeat.metrics.ava_matching import Detections
from videomaskfeat.tasks.detection.video_actions import KeyFrameActions, VideoActions

_COMMONEST = 3  # actions that the closing words name


def as_data(found: VideoActions, *, threshold: float, protocol: Mapping[str, Any]) -> dict[str, Any]:
    """What was found, as plain data for JSON.

    Args:
        found: see :class:`~videomaskfeat.tasks.detection.video_actions.VideoActions`.
        threshold: the least score of an action that is told of.
        protocol: what the result depends on.
    """
    return {
        "path": found.path,
        "width": found.width,
        "height": found.height,
        "fps": found.fps,
        "duration_seconds": found.duration_seconds,
        "start_second": found.start_second,
        "persons": found.persons,
        "key_frames": [
            {
                "seconds": round(frame.seconds, 3),
                "persons": [
                    _person(found, frame, row, threshold=threshold) for row in range(len(frame.boxes))
                ],
            }
            for frame in found.key_frames
        ],
        "notes": list(found.notes),
        "protocol": dict(protocol),
    }


def write_json(
    path: str | os.PathLike[str], found: VideoActions, *, threshold: float, protocol: Mapping[str, Any]
) -> None:
    """Write :func:`as_data`."""
    with whole_file(path) as file:
        data = as_data(found, threshold=threshold, protocol=protocol)
        file.write(simplejson.dumps(data, indent=2, ignore_nan=True) + "\n")


def write_rows(path: str | os.PathLike[str], found: VideoActions) -> None:
    """Write `video,second,x1,y1,x2,y2,action,score`, a row a box and action, of scores that are not smoothed.

    The second is that of the file of boxes, so that ``score-ava`` can judge the rows.
    """
    name, actions = Path(found.path).stem, list(found.actions)
    frames = np.repeat(np.arange(len(found.key_frames)), [len(frame.boxes) for frame in found.key_frames])
    scores = np.concatenate([frame.scores for frame in found.key_frames])  # [R, L]
    write_detections(
        path,
        [(name, frame.seconds + found.start_second) for frame in found.key_frames],
        Detections.of_box_scores(
            frames,
            np.concatenate([frame.boxes for frame in found.key_frames]),
            scores[:, [number - 1 for number in actions]],
            actions,
        ),
    )


def closing_words(found: VideoActions, *, threshold: float) -> str:
    """A line for people: how many persons, and what most of them do."""
    boxes = sum(len(frame.boxes) for frame in found.key_frames)
    seen: Counter[str] = Counter()
    for frame in found.key_frames:
        for row in range(len(frame.boxes)):
            seen.update(action.name for action in found.actions_of(frame, row, threshold=threshold))
    # Of equally frequent ones the first by name, so that the words do not depend on the order of boxes.
    common = sorted(seen.items(), key=lambda item: (-item[1], item[0]))[:_COMMONEST]
    doing = ", ".join(f"{name} {count}x" for name, count in common)
    said = doing or f"no action at a score of {threshold:g} or more"
    return (
        f"{found.path}: {_count(found.persons, 'person')} in {_count(len(found.key_frames), 'key frame')}, "
        f"{_count(boxes, 'box', 'boxes')}: {said}"
    )


def _person(found: VideoActions, frame: KeyFrameActions, row: int, *, threshold: float) -> dict[str, Any]:
    shares = frame.boxes[row].tolist()
    scale = (found.width, found.height) * 2
    return {
        "track": int(frame.tracks[row]) + 1,
        "box": [round(share, 5) for share in shares],
        "box_pixels": [round(share * side, 2) for share, side in zip(shares, scale, strict=True)],
        "box_score": round(float(frame.box_scores[row]), 5),
        "actions": [
            {
                "id": action.id,
                "name": action.name,
                "score": round(action.score, 5),
                "unsmoothed_score": round(action.unsmoothed, 5),
            }
            for action in found.actions_of(frame, row, threshold=threshold)
        ],
    }


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
