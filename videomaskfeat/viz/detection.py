"""The page of a detection score: frame mAP, average precision per action, precision-recall curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from videomaskfeat.viz.charts import recall_chart
from videomaskfeat.viz.page import build_table, flatten, render_page

_OPEN_CURVES = 12


@dataclass(frozen=True)
class ActionRow:
    """The result of one action.

    Attributes:
        number: id of the action.
        name: name of the action.
        truths: number of ground-truth rows.
        detections: number of scored detections.
        ap: average precision, 0..1; NaN without ground truth.
        max_recall: share of the ground truth that any detection hits, 0..1; NaN without ground truth.
        heights: float [bins], precision in equal steps of recall.
        recall: float [hits], recall at each hit.
        precision: float [hits], measured precision at each hit.
    """

    number: int
    name: str
    truths: int
    detections: int
    ap: float
    max_recall: float
    heights: np.ndarray
    recall: np.ndarray
    precision: np.ndarray

    @property
    def chance(self) -> float:
        """Expected average precision of the same detections in random order; 0 without ground truth."""
        if not self.truths or not self.detections:
            return 0.0
        return self.max_recall * self.truths / self.detections * self.max_recall


def render_detection(
    result: Mapping[str, Any],
    *,
    actions: Sequence[ActionRow],
    notes: Sequence[str] = (),
    tested: Sequence[tuple[str, str, str]] = (),
) -> str:
    """The page as one HTML document without external references.

    Args:
        result: content of result.json.
        actions: one row per action.
        notes: sentences about unusual rows of the files.
        tested: settings of the test: name, value and note; empty for a file of detections.
    """
    known = [row for row in actions if row.truths]
    chance = mean_chance(actions)
    curves = [
        recall_chart(
            f"{row.name}: {format_percent(row.ap)} of {row.truths}",
            row.heights,
            measured=(row.recall, row.precision),
        )
        for row in sorted(known, key=lambda row: (-row.truths, row.number))
    ]
    truths = sum(row.truths for row in known)
    mean_ap = math.nan if result["mean_ap"] is None else result["mean_ap"]
    elsewhere = ("kind", "title", "actions", "by_persons", "by_size", "provenance")
    data = {
        "title": str(result["title"]),
        "iou_threshold": result["protocol"]["iou_threshold"],
        "rows_per_frame": result["protocol"]["rows_per_frame"],
        "tested": tested,
        "mean_card": mean_card(mean_ap, chance=chance, interval=result.get("mean_ap_interval")),
        "known": len(known),
        "truths": truths,
        "key_frames": result["key_frames"],
        "detections": sum(row.detections for row in actions),
        "found": sum(round(row.max_recall * row.truths) for row in known) / max(truths, 1),
        "mean": recall_chart(
            "Mean over the actions; the area is the mAP",
            np.mean([row.heights for row in known], axis=0) if known else np.zeros(1),
        ),
        "files": _file_table(result),
        "notes": notes,
        "actions": _action_table(actions),
        "curves": curves[:_OPEN_CURVES],
        "more_curves": curves[_OPEN_CURVES:],
        "groups": {
            "By number of persons in the key frame": _group_table("Key frames with", result["by_persons"]),
            "By box size": _group_table("Boxes", result["by_size"]),
        },
        "summary": flatten({key: value for key, value in result.items() if key not in elsewhere}),
        "has_charts": True,
    }
    return render_page("detection", data, provenance=result.get("provenance"))


def mean_chance(actions: Sequence[ActionRow]) -> float:
    """Expected mAP of the same detections in random order, 0..1."""
    known = [row.chance for row in actions if row.truths]
    return sum(known) / max(len(known), 1)


def mean_card(
    mean_ap: float, *, chance: float | None, interval: Sequence[float] | None, name: str = "mAP"
) -> dict[str, Any]:
    """The card of a mAP, 0..1 or NaN; green if the mAP and the lower end of its interval are above chance."""
    notes = (
        [] if chance is None else [f"chance level {100 * chance:.2f} %: the same detections in random order"]
    )
    lowest = mean_ap
    if interval is not None:
        notes.append(f"95 % interval {format_interval(interval)}: bootstrap over the videos")
        lowest = min(mean_ap, interval[0])
    return {
        "name": name,
        "value": format_percent(mean_ap),
        "note": "; ".join(notes),
        "share": 0.0 if math.isnan(mean_ap) else mean_ap,
        "good": chance is not None and lowest > chance,
    }


def format_interval(interval: Sequence[float]) -> str:
    """The ends of an interval of shares, 0..1.

    >>> format_interval((0.2, 0.337))
    '20.0 to 33.7 %'
    """
    low, high = interval
    return f"{100 * low:.1f} to {100 * high:.1f} %"


def format_percent(share: float) -> str:
    """A share 0..1 in percent; a dash for NaN."""
    return "–" if math.isnan(share) else f"{100 * share:.2f} %"


def _file_table(result: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("rows", "used", "excluded", "no_action", "not_listed")
    header = ("File", "Rows", "Scored", "At excluded times", "Without an action", "Of unlisted actions")
    files = {"Ground truth": result["groundtruth"], "Detections": result["detections"]}
    return build_table(header, [(name, *(counts[key] for key in keys)) for name, counts in files.items()])


def _action_table(actions: Sequence[ActionRow]) -> dict[str, Any]:
    """The actions by ascending average precision; actions without ground truth come last."""
    order = sorted(actions, key=lambda row: (not row.truths, row.ap if row.truths else 0.0, row.number))
    rows = [
        (
            row.number,
            row.name,
            row.truths,
            format_percent(row.ap),
            {"share": row.ap, "good": row.ap > row.chance} if row.truths else "",
            format_percent(row.max_recall),
            row.detections,
        )
        for row in order
    ]
    return build_table(("Id", "Action", "Ground truth", "AP", "", "Found", "Detections"), rows)


def _group_table(what: str, groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    rows = [
        (
            group["name"],
            format_percent(math.nan if group["mean_ap"] is None else group["mean_ap"]),
            group["actions"],
            group["truths"],
            group["detections"],
        )
        for group in groups
    ]
    return build_table((what, "mAP", "Actions", "Ground truth", "Detections"), rows)
