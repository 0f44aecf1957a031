"""What a detection score leaves in its folder: the result with its protocol, a table, and the report."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejson

from videomaskfeat import __version__
from videomaskfeat.errors import counted
from videomaskfeat.io import whole_file
from videomaskfeat.metrics.ava_map import (
    AvaData,
    AvaResult,
    Matches,
    Part,
    SideCounts,
    best_rows,
    by_persons,
    by_size,
    match,
    precision_by_recall,
    result_of,
)
from videomaskfeat.viz.detection import ActionRow, DetectionFacts, PartRow, percent, render_detection

_BINS = 200  # steps of recall in the pictures
_NAMED_VIDEOS = 5


@dataclass(frozen=True)
class ScoredDetections:
    """A set of detections and all that is said of it.

    Attributes:
        data: ground truth and detections; with ``rows_per_frame`` these are the best alone.
        iou_threshold: the least overlap of a hit.
        rows_per_frame: how many rows a key frame were judged at most; None for all.
        result: the score.
        actions: a row an action, in the order of the label map.
        persons: the score by persons a key frame.
        sizes: the score by the size of the boxes.
    """

    data: AvaData
    iou_threshold: float
    rows_per_frame: int | None
    result: AvaResult
    actions: list[ActionRow]
    persons: list[Part]
    sizes: list[Part]


def score_detections(
    data: AvaData, *, iou_threshold: float = 0.5, rows_per_frame: int | None = None
) -> ScoredDetections:
    """Score detections, and find what explains the score.

    Raises:
        UserError: an option out of range.
    """
    actions = list(data.actions)
    truth, found = data.groundtruth, data.detections
    if rows_per_frame is not None:
        found = best_rows(found, actions, rows_per_frame)
    matches = match(truth, found, actions, iou_threshold=iou_threshold)
    result = result_of(truth, matches, actions)
    return ScoredDetections(
        data=data,
        iou_threshold=iou_threshold,
        rows_per_frame=rows_per_frame,
        result=result,
        actions=[_action_row(data, matches, result, action) for action in actions],
        persons=by_persons(
            truth, found, matches, actions, person_frames=data.person_frames, persons=data.persons
        ),
        sizes=by_size(truth, found, matches, actions),
    )


def write_detection_result(folder: Path, scored: ScoredDetections, about: Mapping[str, Any]) -> None:
    """Write result.json, per_class.csv and report.html; only rank 0 calls it.

    Args:
        folder: exists.
        scored: the score.
        about: what it depends on besides, as plain data: ``title``, ``files`` and what else identifies it.
    """
    summary = summary_of(scored, about)
    with whole_file(folder / "result.json") as file:
        file.write(simplejson.dumps(summary, indent=2, ignore_nan=True) + "\n")
    with whole_file(folder / "per_class.csv", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(_class_lines(scored.actions))
    with whole_file(folder / "report.html") as file:
        file.write(render_detection(_facts(scored, summary)))


def summary_of(scored: ScoredDetections, about: Mapping[str, Any]) -> dict[str, Any]:
    """The content of result.json; every score is a share of 1, and null where there is no ground truth."""
    return {
        "mean_ap": scored.result.mean_ap,
        "protocol": {
            "score": "AVA frame mAP",
            "iou_threshold": scored.iou_threshold,
            "interpolation": "all points",
            "rows_per_frame": scored.rows_per_frame,
        },
        **about,
        "groundtruth": asdict(scored.data.groundtruth_counts),
        "detections": {
            **asdict(scored.data.detection_counts),
            "judged": sum(row.detections for row in scored.actions),
            "of_unknown_videos": scored.data.unknown_rows,
            "unknown_videos": scored.data.unknown_videos,
            "in_key_frames_without_groundtruth": scored.data.bare_rows,
        },
        "key_frames": len(np.unique(scored.data.groundtruth.frames)),
        "actions": [
            {
                "id": row.number,
                "name": row.name,
                "ap": row.ap,
                "groundtruth": row.truths,
                "detections": row.detections,
                "found": row.found,
            }
            for row in scored.actions
        ],
        "by_persons": [asdict(part) for part in scored.persons],
        "by_size": [asdict(part) for part in scored.sizes],
        "version": __version__,
    }


def closing_words(scored: ScoredDetections, folder: Path | None) -> str:
    """What the user reads: the score, a line an action, and what is odd."""
    known = [row for row in scored.actions if row.truths]
    lines = [
        f"mAP {percent(scored.result.mean_ap)} at IoU {scored.iou_threshold:g}: the mean of {len(known)} of "
        f"{len(scored.actions)} actions, {sum(row.truths for row in known)} rows to find, "
        f"{sum(row.detections for row in scored.actions)} detections",
        f"{'AP':>9}{'to find':>10}{'found':>10}{'detections':>12}  action",
    ]
    lines += [
        f"{percent(row.ap):>9}{row.truths:>10}{percent(row.found):>10}{row.detections:>12}  "
        f"{row.number} {row.name}"
        for row in scored.actions
    ]
    lines += notes(scored)
    if folder is not None:
        lines.append(str(folder / "report.html"))
    return "\n".join(lines)


def notes(scored: ScoredDetections) -> list[str]:
    """Sentences on rows that play no part, and on detections that look like a mistake."""
    data = scored.data
    found = []
    for side, counts in (("ground truth", data.groundtruth_counts), ("detections", data.detection_counts)):
        left = _left_out(counts)
        if left:
            idle = counts.rows - counts.used
            found.append(f"Of the {counts.rows} rows of the {side} {idle} play no part: {left}.")
    if data.unknown_videos:
        names = ", ".join(data.unknown_videos[:_NAMED_VIDEOS])
        more = len(data.unknown_videos) - _NAMED_VIDEOS
        names += f" and {more} more" if more > 0 else ""
        found.append(
            f"{_are(data.unknown_rows)} of {counted(len(data.unknown_videos), 'video')} that the ground "
            f"truth does not have ({names}): false positives all; compare the two files' videos."
        )
    if data.bare_rows:
        found.append(
            f"{_are(data.bare_rows)} in {counted(data.bare_frames, 'key frame')} without ground truth, of "
            "videos that have some elsewhere: false positives all; compare the two files' times."
        )
    if not data.detection_counts.rows:
        found.append("There are no detections, so every action with ground truth scores 0.")
    if not data.scored:
        found.append("The detections have no scores, so all are equally sure.")
    judged = sum(row.detections for row in scored.actions)
    if judged < data.detection_counts.used:
        found.append(
            f"{_are(data.detection_counts.used - judged)} not among the {scored.rows_per_frame} "
            "best rows of their key frames."
        )
    return found


def _are(detections: int) -> str:
    return f"{counted(detections, 'detection')} {'is' if detections == 1 else 'are'}"


def _left_out(counts: SideCounts) -> str:
    parts = (
        (counts.excluded, "at excluded times"),
        (counts.no_action, "without an action"),
        (counts.not_listed, "of actions that the label map does not list"),
    )
    return ", ".join(f"{count} {why}" for count, why in parts if count)


def _action_row(data: AvaData, matches: Matches, result: AvaResult, action: int) -> ActionRow:
    hits = matches.hits[matches.of(action)]
    truths = int((data.groundtruth.actions == action).sum())
    where = np.flatnonzero(hits)
    right = np.arange(1, len(where) + 1)
    return ActionRow(
        number=action,
        name=data.actions[action],
        truths=truths,
        detections=len(hits),
        ap=result.ap[action],
        found=len(where) / truths if truths else math.nan,
        heights=precision_by_recall(hits, truths, _BINS) if truths else np.zeros(_BINS),
        recall=right / max(truths, 1),
        precision=right / (where + 1),
    )


def _class_lines(rows: Sequence[ActionRow]) -> list[Sequence[object]]:
    lines: list[Sequence[object]] = [("action", "name", "groundtruth", "detections", "ap", "found")]
    for row in rows:
        shares = (f"{row.ap:.6f}", f"{row.found:.6f}") if row.truths else ("", "")
        lines.append((row.number, row.name, row.truths, row.detections, *shares))
    return lines


def _facts(scored: ScoredDetections, summary: Mapping[str, Any]) -> DetectionFacts:
    """What the report shows."""
    sides = [
        [name, *(str(value) for value in asdict(counts).values())]
        for name, counts in (
            ("Ground truth", scored.data.groundtruth_counts),
            ("Detections", scored.data.detection_counts),
        )
    ]
    shown_elsewhere = ("title", "actions", "by_persons", "by_size")
    return DetectionFacts(
        title=str(summary["title"]),
        mean_ap=scored.result.mean_ap,
        iou_threshold=scored.iou_threshold,
        rows_per_frame=scored.rows_per_frame,
        key_frames=int(summary["key_frames"]),
        actions=scored.actions,
        sides=sides,
        notes=notes(scored),
        persons=[PartRow(**asdict(part)) for part in scored.persons],
        sizes=[PartRow(**asdict(part)) for part in scored.sizes],
        summary={key: value for key, value in summary.items() if key not in shown_elsewhere},
        tested=_tested(summary["seen"]) if "seen" in summary else (),
    )


def _tested(seen: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """How key frames were tested: name, value and note of what tells two scores of a model apart."""
    sides = [str(side) for side in seen["short_sides"]]
    threshold = f"of score {seen['score_threshold']:g} and up" if "score_threshold" in seen else ""
    return [
        ("Boxes", f"{seen['boxes']} {threshold}".rstrip(), "of the persons that were tested"),
        ("Frames", "whole" if seen["area"] == "whole" else "centre crop", "what of them the network saw"),
        (f"Short side{'s' * (len(sides) > 1)}", ", ".join(sides), "pixels" + ", averaged" * (len(sides) > 1)),
        ("Flip", "yes" if seen["flip"] else "no", "averaged with the mirror image" if seen["flip"] else ""),
    ]
