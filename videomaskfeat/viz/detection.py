"""The page of a detection score: the mAP, each action's average precision and its curve."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from videomaskfeat.viz.charts import recall_chart
from videomaskfeat.viz.page import flattened, render_page, table

_OPEN_CURVES = 12


@dataclass(frozen=True)
class ActionRow:
    """How one action fared; shares of 1.

    Attributes:
        number: of the action.
        name: its name.
        truths: rows of the ground truth.
        detections: rows of it that were judged.
        ap: average precision; NaN without ground truth, like ``found``.
        found: share of the ground truth that was hit, however low the score.
        heights: float [bins], precision in equal steps of recall.
        recall: float [hits], at each hit.
        precision: float [hits], at each hit, as it was measured.
    """

    number: int
    name: str
    truths: int
    detections: int
    ap: float
    found: float
    heights: np.ndarray
    recall: np.ndarray
    precision: np.ndarray


@dataclass(frozen=True)
class DetectionFacts:
    """What scoring found.

    Attributes:
        title: heading of the page.
        mean_ap: mean of the average precisions, share of 1.
        iou_threshold: the least overlap of a hit.
        rows_per_frame: how many rows per key frame were judged at most; None for all.
        key_frames: how many hold ground truth.
        actions: a row per action.
        sides: a row for the ground truth and one for the detections: name, then rows by what became of them.
        notes: sentences on what is odd about the files.
        persons: the score by persons per key frame: ``name``, ``mean_ap`` (share of 1, NaN without ground
            truth), ``actions``, ``truths``, ``detections`` of each part.
        sizes: likewise by the size of the boxes.
        summary: everything that identifies the result; may be nested.
        tested: how the key frames were tested: name, value and note of each fact; none: not known, of a file
            of detections.
    """

    title: str
    mean_ap: float
    iou_threshold: float
    rows_per_frame: int | None
    key_frames: int
    actions: Sequence[ActionRow]
    sides: Sequence[Sequence[str]]
    notes: Sequence[str]
    persons: Sequence[Mapping[str, Any]]
    sizes: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any]
    tested: Sequence[tuple[str, str, str]] = ()


def render_detection(facts: DetectionFacts) -> str:
    """The page as one HTML document without any reference outside itself."""
    return render_page("detection", detection_data(facts))


def detection_data(facts: DetectionFacts) -> dict[str, Any]:
    """What the page shows, as plain data."""
    known = [row for row in facts.actions if row.truths]
    curves = [
        recall_chart(
            f"{row.name}: {percent(row.ap)} of {row.truths}",
            row.heights,
            measured=(row.recall, row.precision),
        )
        for row in sorted(known, key=lambda row: (-row.truths, row.number))
    ]
    truths = sum(row.truths for row in known)
    mean = np.mean([row.heights for row in known], axis=0) if known else np.zeros(1)
    sides = ("File", "Rows", "Scored", "At excluded times", "Without an action", "Of actions not listed")
    return {
        "title": facts.title,
        "iou_threshold": facts.iou_threshold,
        "tested": facts.tested,
        "mean_ap": percent(facts.mean_ap),
        "mean_share": 0.0 if math.isnan(facts.mean_ap) else facts.mean_ap,
        "known": len(known),
        "truths": truths,
        "key_frames": facts.key_frames,
        "detections": sum(row.detections for row in facts.actions),
        "found": sum(round(row.found * row.truths) for row in known) / max(truths, 1),
        "mean": recall_chart("Mean of the actions: the area is the mAP", mean),
        "rows_per_frame": facts.rows_per_frame,
        "sides": table(sides, [tuple(side) for side in facts.sides]),
        "notes": facts.notes,
        "actions": _action_table(facts.actions),
        "curves": curves[:_OPEN_CURVES],
        "more_curves": curves[_OPEN_CURVES:],
        "parts": {
            "By persons in the key frame": _part_table("Key frames with", facts.persons),
            "By size of the box": _part_table("Boxes", facts.sizes),
        },
        "summary": flattened(facts.summary),
        "has_charts": True,
    }


def percent(share: float) -> str:
    """A share of 1 as it is read; a dash for NaN."""
    return "–" if math.isnan(share) else f"{100 * share:.2f} %"


def _action_table(rows: Sequence[ActionRow]) -> dict[str, Any]:
    """The actions, the worst first; those without ground truth last."""
    header = ("Id", "Action", "Ground truth", "AP", "", "Found", "Detections")
    order = sorted(rows, key=lambda row: (not row.truths, row.ap if row.truths else 0.0, row.number))
    return table(
        header,
        [
            (
                row.number,
                row.name,
                row.truths,
                percent(row.ap),
                {"share": row.ap} if row.truths else "",
                percent(row.found),
                row.detections,
            )
            for row in order
        ],
    )


def _part_table(what: str, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    rows = [
        (part["name"], percent(part["mean_ap"]), part["actions"], part["truths"], part["detections"])
        for part in parts
    ]
    return table((what, "mAP", "Actions", "Ground truth", "Detections"), rows)
