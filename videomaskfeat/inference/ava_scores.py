"""The AVA score of detections, its breakdown, and its files."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejson

from videomaskfeat.ava import VideoNames, read_label_map
from videomaskfeat.errors import counted
from videomaskfeat.inference.detectors import BoxScores, build_detections
from videomaskfeat.inference.key_frames import EvaluationFrames, shorten_names
from videomaskfeat.inference.results import hash_files, write_page, write_result, write_table
from videomaskfeat.io import check_outputs, make_folder, whole_file
from videomaskfeat.metrics.ava_map import (
    AvaData,
    AvaResult,
    Matches,
    Part,
    best_rows,
    by_persons,
    by_size,
    match,
    precision_by_recall,
    read_ava,
    result_of,
    write_detections,
)
from videomaskfeat.metrics.bootstrap import mean_ap_interval
from videomaskfeat.viz.detection import (
    ActionRow,
    format_interval,
    format_percent,
    mean_chance,
    render_detection,
)

_BINS = 200  # steps of recall in the curves
_LISTED_FAILURES = 100  # unreadable key frames in result.json; failures.jsonl lists all


@dataclass(frozen=True)
class ScoredFiles:
    """The input files of a detection score.

    Attributes:
        groundtruth: CSV file of the ground truth.
        label_map: the actions that are scored.
        exclusions: CSV file of times that are not scored; empty: none.
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
    """How detections are scored.

    Attributes:
        iou_threshold: minimum IoU of a hit.
        rows_per_frame: score only this number of rows per key frame, the best ones; None: all (the official
            script: 50).
    """

    iou_threshold: float = 0.5
    rows_per_frame: int | None = None


@dataclass(frozen=True)
class ScoredDetections:
    """Detections, their score and its breakdown.

    Attributes:
        data: ground truth and detections.
        rules: how they were scored.
        result: the score.
        interval: 95 % confidence interval of the mAP, 0..1, by a bootstrap over videos; None for one video.
        actions: one row per action, in the order of the label map.
        persons: the score by persons per key frame.
        sizes: the score by the size of the boxes.
    """

    data: AvaData
    rules: ScoringRules
    result: AvaResult
    interval: tuple[float, float] | None
    actions: list[ActionRow]
    persons: list[Part]
    sizes: list[Part]

    @property
    def chance(self) -> float:
        """Expected mAP of the same detections in random order, 0..1."""
        return mean_chance(self.actions)

    @property
    def judged(self) -> int:
        """Number of detections that were scored."""
        return sum(row.detections for row in self.actions)

    def notes(self) -> list[str]:
        """Sentences on rows without effect, and on probable mistakes in the detections."""
        return list(_find_notes(self))

    def text(self, folder: Path | None) -> str:
        """The score, a line per action, notes, and the path of the report in a folder."""
        known = [row for row in self.actions if row.truths]
        limits = f"chance {format_percent(self.chance)}"
        if self.interval is not None:
            limits += f", 95 % interval {format_interval(self.interval)}"
        lines = [
            f"mAP {format_percent(self.result.mean_ap)} ({limits}) at IoU "
            f"{self.rules.iou_threshold:g}: the mean of "
            f"{len(known)} of {len(self.actions)} actions, {sum(row.truths for row in known)} rows to find, "
            f"{self.judged} detections",
            f"{'AP':>9}{'to find':>10}{'found':>10}{'detections':>12}  action",
        ]
        lines += [
            f"{format_percent(row.ap):>9}{row.truths:>10}{format_percent(row.max_recall):>10}"
            f"{row.detections:>12}  {row.number} {row.name}"
            for row in self.actions
        ]
        lines += self.notes()
        return "\n".join(lines if folder is None else [*lines, str(folder / "report.html")])


def score_detections(data: AvaData, rules: ScoringRules) -> ScoredDetections:
    """Score detections, and break the score down by action, persons per key frame and box size.

    Raises:
        UserError: a rule is out of range.
    """
    actions = list(data.actions)
    truth, detections = data.groundtruth, data.detections
    if rules.rows_per_frame is not None:
        detections = best_rows(detections, actions, rules.rows_per_frame)
    matches = match(truth, detections, actions, iou_threshold=rules.iou_threshold)
    result = result_of(truth, matches, actions)
    return ScoredDetections(
        data=data,
        rules=rules,
        result=result,
        interval=mean_ap_interval(
            VideoNames.videos_of(truth.frames),
            truth.actions,
            VideoNames.videos_of(detections.frames[matches.rows]),
            matches.actions,
            matches.hits,
        ),
        actions=[_action_row(data, matches, result, action) for action in actions],
        persons=by_persons(
            truth, detections, matches, actions, person_frames=data.person_frames, persons=data.persons
        ),
        sizes=by_size(truth, detections, matches, actions),
    )


def check_result_folder(folder: str | os.PathLike[str], *more: str, overwrite: bool) -> None:
    """Refuse a folder with files of a result, or with the files ``more``, unless ``overwrite`` is set."""
    names = ("result.json", "per_class.csv", "report.html", *more)
    check_outputs((os.path.join(folder, name) for name in names), overwrite=overwrite)


def write_detection_result(folder: Path, scored: ScoredDetections, about: Mapping[str, Any]) -> None:
    """Write result.json, per_class.csv and report.html into an existing folder; only rank 0 calls it.

    Args:
        folder: the folder.
        scored: the score.
        about: ``title`` and inputs of the result, as plain data.
    """
    result = write_result(folder, "detection", _summarize(scored, about))
    header = ("action", "name", "groundtruth", "detections", "ap", "found")
    rows = [
        (row.number, row.name, row.truths, row.detections)
        + ((f"{row.ap:.6f}", f"{row.max_recall:.6f}") if row.truths else ("", ""))
        for row in scored.actions
    ]
    write_table(folder / "per_class.csv", [header, *rows])
    html = render_detection(
        result,
        actions=scored.actions,
        notes=scored.notes(),
        tested=_list_settings(result["seen"]) if "seen" in result else [],
    )
    write_page(folder / "report.html", html)


def write_key_frame_score(
    folder: Path,
    files: ScoredFiles,
    frames: EvaluationFrames,
    box_scores: BoxScores,
    about: Mapping[str, Any],
    *,
    rules: ScoringRules = ScoringRules(),
) -> ScoredDetections:
    """Write detections.csv, score it by the official rules, and write the result; only rank 0 calls it.

    Ground truth in key frames that could not be read counts as not found.

    Args:
        folder: created if missing.
        files: input files of the score.
        frames: key frames of the evaluation.
        box_scores: scores of the tested boxes.
        about: ``title`` and further inputs of the result, as plain data.
        rules: how detections are scored.
    """
    make_folder(folder)
    path = folder / "detections.csv"
    actions = read_label_map(files.label_map)
    tested = frames.tested
    write_detections(path, tested.moments(), build_detections(tested, box_scores, actions))
    scored = score_detections(
        read_ava(files.groundtruth, path, files.label_map, files.exclusions or None), rules
    )
    unreadable = [{"path": failure.path, "cause": failure.cause} for failure in box_scores.failures]
    facts = {
        "undetected_key_frames": len(frames.truth.absent_from(tested)),
        "left_out": asdict(frames.ignored),
        "files": files.hashes(),
        "tested": {
            "key_frames": box_scores.read,
            "listed": box_scores.listed,
            "boxes": int(box_scores.scored.sum()),
            "without_boxes": len(tested.boxless),
            "unreadable": unreadable[:_LISTED_FAILURES],
        },
    }
    write_detection_result(folder, scored, {**about, **facts})
    with whole_file(folder / "failures.jsonl") as file:
        file.writelines(simplejson.dumps(row) + "\n" for row in unreadable)
    return scored


def _summarize(scored: ScoredDetections, about: Mapping[str, Any]) -> dict[str, Any]:
    """The content of result.json; scores are in 0..1, null without ground truth."""
    data = scored.data
    return {
        "mean_ap": scored.result.mean_ap,
        "mean_ap_chance": scored.chance,
        "mean_ap_interval": scored.interval,
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
                "found": row.max_recall,
            }
            for row in scored.actions
        ],
        "by_persons": [asdict(part) for part in scored.persons],
        "by_size": [asdict(part) for part in scored.sizes],
    }


def _find_notes(scored: ScoredDetections) -> Iterator[str]:
    data = scored.data
    for side, counts in (("ground truth", data.groundtruth_counts), ("detections", data.detection_counts)):
        causes = (
            (counts.excluded, "at excluded times"),
            (counts.no_action, "without an action"),
            (counts.not_listed, "of actions that the label map does not list"),
        )
        if unused := ", ".join(f"{count} {cause}" for count, cause in causes if count):
            ignored = counts.rows - counts.used
            yield f"{ignored} of the {counts.rows} rows of the {side} are ignored: {unused}."
    if data.unknown_videos:
        yield (
            f"{_count_detections(data.unknown_rows)} of {counted(len(data.unknown_videos), 'video')} without "
            f"ground truth ({shorten_names(data.unknown_videos)}) and count as false positives; compare the "
            "videos of the two files."
        )
    if data.bare_rows:
        yield (
            f"{_count_detections(data.bare_rows)} in {counted(data.bare_frames, 'key frame')} without ground "
            "truth, of videos that have some elsewhere, and count as false positives; compare the times of "
            "the two files."
        )
    if not data.detection_counts.rows:
        yield "There are no detections, so every action with ground truth scores 0."
    if not data.scored:
        yield "The detections have no scores, so all are ranked equally."
    if scored.judged < data.detection_counts.used:
        yield (
            f"{_count_detections(data.detection_counts.used - scored.judged)} not among the "
            f"{scored.rules.rows_per_frame} best rows of their key frames."
        )


def _count_detections(number: int) -> str:
    return f"{counted(number, 'detection')} {'is' if number == 1 else 'are'}"


def _action_row(data: AvaData, matches: Matches, result: AvaResult, action: int) -> ActionRow:
    hits = matches.hits[matches.of(action)]
    truths = int((data.groundtruth.actions == action).sum())
    ranks = np.flatnonzero(hits)
    hit_counts = np.arange(1, len(ranks) + 1)
    return ActionRow(
        number=action,
        name=data.actions[action],
        truths=truths,
        detections=len(hits),
        ap=result.ap[action],
        max_recall=len(ranks) / truths if truths else math.nan,
        heights=precision_by_recall(hits, truths, _BINS) if truths else np.zeros(_BINS),
        recall=hit_counts / max(truths, 1),
        precision=hit_counts / (ranks + 1),
    )


def _list_settings(seen: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value and note of the evaluation settings that may differ between two scores of a model."""
    sides = [str(side) for side in seen["short_sides"]]
    threshold = f"with a score of {seen['score_threshold']:g} or more" if "score_threshold" in seen else ""
    several = len(sides) > 1
    return [
        ("Boxes", f"{seen['boxes']} {threshold}".rstrip(), "boxes of persons that are scored"),
        ("Frames", "whole" if seen["area"] == "whole" else "center crop", "area that the network sees"),
        (f"Short side{'s' * several}", ", ".join(sides), "pixels" + ", averaged" * several),
        ("Flip", "yes" if seen["flip"] else "no", "averaged with the mirror image" if seen["flip"] else ""),
    ]
