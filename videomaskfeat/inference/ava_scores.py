"""The AVA score of detections, what explains it, and the files that it leaves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejson

from videomaskfeat.ava import read_label_map
from videomaskfeat.data.ava_lists import KeyFrames
from videomaskfeat.errors import counted
from videomaskfeat.inference.detectors import BoxScores, build_detections
from videomaskfeat.inference.results import hash_files, write_page, write_result, write_table
from videomaskfeat.io import make_folder, whole_file
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
    read_ava,
    result_of,
    write_detections,
)
from videomaskfeat.viz.detection import ActionRow, DetectionFacts, percent, render_detection

_BINS = 200  # steps of recall in the pictures
_NAMED_VIDEOS = 5
_NAMED = 100  # unreadable key frames that a result lists; failures.jsonl has all


@dataclass(frozen=True)
class ScoredFiles:
    """The files that a score is made of.

    Attributes:
        groundtruth: CSV file of what there is to find.
        label_map: the actions that count.
        exclusions: CSV file of times that do not count; empty: none.
        boxes: CSV files of detected boxes; empty: those of the ground truth.
    """

    groundtruth: str
    label_map: str
    exclusions: str = ""
    boxes: tuple[str, ...] = ()

    def hashes(self) -> dict[str, dict[str, str]]:
        """Path and hash of each file."""
        named = {"groundtruth": self.groundtruth, "labels": self.label_map, "exclusions": self.exclusions}
        return hash_files(
            named | {f"boxes {number}": path for number, path in enumerate(self.boxes, start=1)}
        )


@dataclass(frozen=True)
class ScoringRules:
    """How detections are judged.

    Attributes:
        iou_threshold: minimum overlap of a hit.
        rows_per_frame: judge only so many rows per key frame, the best; None for all (the official script:
            50).
    """

    iou_threshold: float = 0.5
    rows_per_frame: int | None = None


@dataclass(frozen=True)
class ScoredDetections:
    """A set of detections, its score and what explains it.

    Attributes:
        data: ground truth and detections.
        rules: how they were judged.
        result: the score.
        actions: one row per action, in the order of the label map.
        persons: the score by persons per key frame.
        sizes: the score by the size of the boxes.
    """

    data: AvaData
    rules: ScoringRules
    result: AvaResult
    actions: list[ActionRow]
    persons: list[Part]
    sizes: list[Part]

    @property
    def judged(self) -> int:
        """Number of detections that were judged."""
        return sum(row.detections for row in self.actions)

    def notes(self) -> list[str]:
        """Sentences on rows without effect, and on detections that look like a mistake."""
        return list(_notes(self))

    def text(self, folder: Path | None) -> str:
        """For people: the score, a line per action, notes, and where the report is."""
        known = [row for row in self.actions if row.truths]
        lines = [
            f"mAP {percent(self.result.mean_ap)} at IoU {self.rules.iou_threshold:g}: the mean of "
            f"{len(known)} of {len(self.actions)} actions, {sum(row.truths for row in known)} rows to find, "
            f"{self.judged} detections",
            f"{'AP':>9}{'to find':>10}{'found':>10}{'detections':>12}  action",
        ]
        lines += [
            f"{percent(row.ap):>9}{row.truths:>10}{percent(row.found):>10}{row.detections:>12}  "
            f"{row.number} {row.name}"
            for row in self.actions
        ]
        lines += self.notes()
        return "\n".join(lines if folder is None else [*lines, str(folder / "report.html")])


def score_detections(data: AvaData, rules: ScoringRules) -> ScoredDetections:
    """Score detections, and find what explains the score.

    Raises:
        UserError: a rule is out of range.
    """
    actions = list(data.actions)
    truth, found = data.groundtruth, data.detections
    if rules.rows_per_frame is not None:
        found = best_rows(found, actions, rules.rows_per_frame)
    matches = match(truth, found, actions, iou_threshold=rules.iou_threshold)
    result = result_of(truth, matches, actions)
    return ScoredDetections(
        data=data,
        rules=rules,
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
        about: what else it depends on, as plain data; has a ``title``.
    """
    result = write_result(folder, "detection", _summary(scored, about))
    header = ("action", "name", "groundtruth", "detections", "ap", "found")
    rows = [
        (row.number, row.name, row.truths, row.detections)
        + ((f"{row.ap:.6f}", f"{row.found:.6f}") if row.truths else ("", ""))
        for row in scored.actions
    ]
    write_table(folder / "per_class.csv", [header, *rows])
    write_page(folder / "report.html", render_detection(_facts(scored, result)))


def write_key_frame_score(
    folder: Path,
    files: ScoredFiles,
    key_frames: KeyFrames,
    found: BoxScores,
    about: Mapping[str, Any],
    rules: ScoringRules = ScoringRules(),
) -> ScoredDetections:
    """Write detections.csv, score that file by the official rules, and write the result; rank 0 alone.

    Ground truth in key frames that could not be read counts as not found.

    Args:
        folder: made if it is not there.
        files: what the score is made of.
        key_frames: whose boxes were scored.
        found: their scores.
        about: what else the result depends on; has a ``title``.
        rules: how detections are judged.
    """
    make_folder(folder)
    path = folder / "detections.csv"
    actions = read_label_map(files.label_map)
    write_detections(path, key_frames.moments(), build_detections(key_frames, found, actions))
    scored = score_detections(
        read_ava(files.groundtruth, path, files.label_map, files.exclusions or None), rules
    )
    unreadable = [{"path": failure.path, "cause": failure.cause} for failure in found.failures]
    tested = {
        "key_frames": found.read,
        "listed": found.listed,
        "boxes": int(found.scored.sum()),
        "without_boxes": len(key_frames.boxless),
        "unreadable": unreadable[:_NAMED],
    }
    write_detection_result(folder, scored, {**about, "tested": tested})
    with whole_file(folder / "failures.jsonl") as file:
        file.writelines(simplejson.dumps(row) + "\n" for row in unreadable)
    return scored


def _summary(scored: ScoredDetections, about: Mapping[str, Any]) -> dict[str, Any]:
    """The content of result.json; scores are shares of 1, null without ground truth."""
    data = scored.data
    return {
        "mean_ap": scored.result.mean_ap,
        "protocol": {
            "score": "AVA frame mAP",
            "iou_threshold": scored.rules.iou_threshold,
            "interpolation": "all points",
            "rows_per_frame": scored.rules.rows_per_frame,
        },
        **about,
        "groundtruth": asdict(data.groundtruth_counts),
        "detections": {
            **asdict(data.detection_counts),
            "judged": scored.judged,
            "of_unknown_videos": data.unknown_rows,
            "unknown_videos": data.unknown_videos,
            "in_key_frames_without_groundtruth": data.bare_rows,
        },
        "key_frames": len(np.unique(data.groundtruth.frames)),
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
    }


def _notes(scored: ScoredDetections) -> Iterator[str]:
    data = scored.data
    for side, counts in (("ground truth", data.groundtruth_counts), ("detections", data.detection_counts)):
        if left := _left_out(counts):
            yield f"Of the {counts.rows} rows of the {side} {counts.rows - counts.used} play no part: {left}."
    if data.unknown_videos:
        names = ", ".join(data.unknown_videos[:_NAMED_VIDEOS])
        more = len(data.unknown_videos) - _NAMED_VIDEOS
        names += f" and {more} more" if more > 0 else ""
        yield (
            f"{_are(data.unknown_rows)} of {counted(len(data.unknown_videos), 'video')} that the ground "
            f"truth does not have ({names}): false positives all; compare the two files' videos."
        )
    if data.bare_rows:
        yield (
            f"{_are(data.bare_rows)} in {counted(data.bare_frames, 'key frame')} without ground truth, of "
            "videos that have some elsewhere: false positives all; compare the two files' times."
        )
    if not data.detection_counts.rows:
        yield "There are no detections, so every action with ground truth scores 0."
    if not data.scored:
        yield "The detections have no scores, so all are equally sure."
    if scored.judged < data.detection_counts.used:
        yield (
            f"{_are(data.detection_counts.used - scored.judged)} not among the "
            f"{scored.rules.rows_per_frame} best rows of their key frames."
        )


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


def _facts(scored: ScoredDetections, result: Mapping[str, Any]) -> DetectionFacts:
    """What the report shows."""
    sides = {"Ground truth": scored.data.groundtruth_counts, "Detections": scored.data.detection_counts}
    shown_elsewhere = ("kind", "title", "actions", "by_persons", "by_size")
    return DetectionFacts(
        title=str(result["title"]),
        mean_ap=scored.result.mean_ap,
        iou_threshold=scored.rules.iou_threshold,
        rows_per_frame=scored.rules.rows_per_frame,
        key_frames=int(result["key_frames"]),
        actions=scored.actions,
        sides=[[name, *map(str, asdict(counts).values())] for name, counts in sides.items()],
        notes=scored.notes(),
        persons=result["by_persons"],
        sizes=result["by_size"],
        summary={key: value for key, value in result.items() if key not in shown_elsewhere},
        tested=_tested(result["seen"]) if "seen" in result else (),
    )


def _tested(seen: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """How key frames were tested: name, value and note of what may differ between two scores of a model."""
    sides = [str(side) for side in seen["short_sides"]]
    threshold = f"of score {seen['score_threshold']:g} and up" if "score_threshold" in seen else ""
    return [
        ("Boxes", f"{seen['boxes']} {threshold}".rstrip(), "of the persons that were tested"),
        ("Frames", "whole" if seen["area"] == "whole" else "centre crop", "what of them the network saw"),
        (f"Short side{'s' * (len(sides) > 1)}", ", ".join(sides), "pixels" + ", averaged" * (len(sides) > 1)),
        ("Flip", "yes" if seen["flip"] else "no", "averaged with the mirror image" if seen["flip"] else ""),
    ]
