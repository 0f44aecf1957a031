"""The page of an evaluation: accuracy, confusion matrix, classes, and pictures of videos."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from videomaskfeat.viz.charts import confusion_section
from videomaskfeat.viz.page import build_table, data_url, finite_interval, finite_number, flatten, render_page

_MAX_FAILURES = 200
_OPEN_ROWS = 30
# Keys of a protocol that have cards; other keys are listed.
_CARD_KEYS = {"views", "crops", "sampling", "frames", "stride", "target_fps", "crop", "short_side"}
_CARD_KEYS |= {"average", "k", "precision", "reader"}
_SHORT_VIDEOS = {  # by ``clip.short_video``
    "clamp": "The last frame of a video that is shorter than a clip is repeated.",
    "loop": "A video that is shorter than a clip starts again from its first frame.",
    "error": "A video that is shorter than a clip counts as unreadable.",
}


@dataclass(frozen=True)
class ClassRow:
    """The result of one class.

    Attributes:
        label: class label.
        name: class name, or a text with the label if the name is unknown.
        videos: number of videos with this label.
        top1: top-1 accuracy [percent]; NaN without videos.
        top5: top-5 accuracy [percent]; NaN without videos.
        confused_with: most frequent wrong prediction; empty if there is no wrong prediction.
        times: number of videos with that prediction.
    """

    label: int
    name: str
    videos: int
    top1: float
    top5: float
    confused_with: str
    times: int


@dataclass(frozen=True)
class ClassPrecision:
    """The result of one class of a multi-label list.

    Attributes:
        label, name: class label and name.
        videos: number of videos with the class.
        ap: average precision [percent]; NaN without videos.
        chance: expected average precision of random scores [percent].
    """

    label: int
    name: str
    videos: int
    ap: float
    chance: float


@dataclass(frozen=True)
class ShownVideo:
    """A video with its picture.

    Attributes:
        path: path of the video.
        label: name of its class.
        label_share: probability of the label, 0..1.
        prediction: name of the predicted class.
        prediction_share: probability of the prediction, 0..1.
        picture: a JPEG file, or None.
    """

    path: str
    label: str
    label_share: float
    prediction: str
    prediction_share: float
    picture: bytes | None


def render_evaluation(
    result: Mapping[str, Any],
    *,
    classes: Sequence[ClassRow],
    precisions: Sequence[ClassPrecision] = (),
    confusion: np.ndarray | None,
    predicted: np.ndarray,
    class_names: Sequence[str],
    worst: Sequence[ShownVideo],
    best: Sequence[ShownVideo],
) -> str:
    """The page as one HTML document without external references.

    Args:
        result: content of result.json.
        classes: one row per class; empty for a list without labels.
        precisions: one row per class of a multi-label list.
        confusion: int [L, L], number of videos by label and prediction; None for a list without labels.
        predicted: int [L], number of videos per predicted class.
        class_names: names indexed by label.
        worst: wrong predictions, the largest margin first.
        best: correct predictions, the largest margin first.
    """
    counts = [(class_names[label], int(count)) for label, count in enumerate(predicted) if count]
    counts.sort(key=lambda row: -row[1])
    videos, listed = int(result["videos"]), int(result["listed"])
    section = None if confusion is None else confusion_section(confusion, class_names)
    chance = 1 / len(class_names)
    data = {
        "title": str(result["title"]),
        "videos": videos,
        "listed": listed,
        "missing": listed - videos,
        "top1": result.get("top1"),
        "accuracy": accuracy_cards(result),
        "interval": interval_text(result),
        "top1_of_listed": (result.get("top1") or 0.0) * videos / max(listed, 1),
        "protocol": result["protocol"],
        "rest": _describe_rest(result["protocol"]),
        "confusion": section,
        "classes": _class_table(classes, chance),
        "map": result.get("map"),
        "precisions": _precision_table(precisions) if precisions else None,
        "predicted": build_table(
            ("Class", "Videos", "Share"), [(*row, f"{100 * row[1] / videos:.1f} %") for row in counts]
        ),
        "open_rows": _OPEN_ROWS,
        "worst": list(map(_describe_video, worst)),
        "best": list(map(_describe_video, best)),
        "failures": build_table(("Video", "Cause"), _failure_rows(result), limit=_MAX_FAILURES),
        "weights": result.get("weights"),
        "list": result.get("list"),
        "summary": flatten(
            {
                key: value
                for key, value in result.items()
                if key not in ("kind", "title", "protocol", "failures", "provenance")
            }
        ),
        "has_charts": section is not None and section["chart"] is not None,
    }
    return render_page("evaluation", data, provenance=result.get("provenance"))


def _describe_rest(protocol: Mapping[str, Any]) -> str:
    """The part of a protocol that has no cards, as sentences."""
    rest = {key: value for key, value in protocol.items() if key not in _CARD_KEYS}
    sentences = []
    if rest.get("short_video") in _SHORT_VIDEOS:
        sentences.append(_SHORT_VIDEOS[rest.pop("short_video")])
    if {"mean", "std"} <= set(rest):
        mean, std = (flatten({"": rest.pop(key)})[""] for key in ("mean", "std"))
        sentences.append(f"Pixels are normalized with mean {mean} and standard deviation {std}.")
    sentences += [f"{key[:1].upper()}{key[1:]}: {value}." for key, value in flatten(rest).items()]
    return " ".join(sentences)


def accuracy_cards(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Cards of top-1, top-5 and mean class accuracy, or of the mAP, with their chance levels.

    A card is green if the lower end of the 95 % confidence interval is above chance.

    Args:
        result: ``top1``, ``top5`` (no card with at most 5 classes), ``mean_class`` [percent], ``classes`` and
            ``videos``; ``map``, ``map_chance`` and the ends ``map_interval`` [percent]; each may be missing.
    """
    classes, videos = finite_number(result.get("classes")), finite_number(result.get("videos"))
    mean_ap, random = finite_number(result.get("map")), finite_number(result.get("map_chance"))
    if mean_ap is not None:
        notes = [] if random is None else [f"chance level {random:.1f} %: random scores"]
        ends = finite_interval(result.get("map_interval"))
        if ends is not None:
            notes.append(f"95 % interval {ends[0]:.1f} to {ends[1]:.1f} %: bootstrap over the videos")
        lowest = mean_ap if ends is None else min(mean_ap, ends[0])
        shown = {"name": "mAP", "value": f"{mean_ap:.2f} %", "share": mean_ap / 100}
        return [{**shown, "note": "; ".join(notes), "good": random is not None and lowest > random}]
    names = {"top1": ("Top-1", 1), "top5": ("Top-5", 5), "mean_class": ("Mean class accuracy", 1)}
    cards = []
    for key, (name, guesses) in names.items():
        value = finite_number(result.get(key))
        card: dict[str, Any] = {"name": name, "value": None}
        if value is not None:
            card |= {"value": f"{value:.2f} %", "share": value / 100}
        if (
            value is not None and guesses > 1 and classes and classes <= guesses
        ):  # every prediction is among the five
            continue
        if value is not None and classes:
            chance = 100 * min(guesses / classes, 1.0)
            low = confidence_interval(value / 100, videos)[0] if videos else value / 100
            card |= {"note": f"chance level {chance:.1f} %", "good": 100 * low > chance}
        cards.append(card)
    return cards


def interval_text(result: Mapping[str, Any]) -> str:
    """The confidence interval of top-1 as a sentence; empty if it is unknown."""
    top1, videos = finite_number(result.get("top1")), finite_number(result.get("videos"))
    if top1 is None or not videos:
        return ""
    low, high = confidence_interval(top1 / 100, videos)
    return f"95 % confidence interval: {100 * low:.0f} to {100 * high:.0f} %."


def accuracy_text(percent: float, videos: float, classes: float, *, guesses: int = 1) -> str:
    """An accuracy with its chance level and 95 % interval.

    >>> accuracy_text(50.0, 8, 4)
    '50.00 % (chance 25.0 %, 95 % interval 22 to 78 %)'

    Args:
        percent: accuracy [percent].
        videos: number of videos.
        classes: number of classes.
        guesses: classes that count as right per video: 5 for top-5.
    """
    notes = []
    if classes:
        notes.append(f"chance {100 * min(guesses / classes, 1.0):.1f} %")
    if videos:
        low, high = confidence_interval(percent / 100, videos)
        notes.append(f"95 % interval {100 * low:.0f} to {100 * high:.0f} %")
    return f"{percent:.2f} %" + (f" ({', '.join(notes)})" if notes else "")


def accuracy_lines(top1: float, top5: float, mean_class: float, *, videos: int, classes: int) -> list[str]:
    """Accuracies in percent as lines; top-5 only with more than five classes."""
    lines = [f"top-1       {accuracy_text(top1, videos, classes)}"]
    if classes > 5:
        lines.append(f"top-5       {accuracy_text(top5, videos, classes, guesses=5)}")
    return [*lines, f"mean class  {accuracy_text(mean_class, 0, classes)}"]


def mean_ap_text(percent: float, chance: float, interval: Sequence[float] | None) -> str:
    """A mAP of a multi-label list with the mAP of random scores and its 95 % interval, all in percent.

    >>> mean_ap_text(40.0, 12.5, (31.04, 52.0))
    '40.00 % (random scores 12.5 %, 95 % interval 31.0 to 52.0 %)'
    """
    ends = "" if interval is None else f", 95 % interval {interval[0]:.1f} to {interval[1]:.1f} %"
    return f"{percent:.2f} % (random scores {chance:.1f} %{ends})"


def chance_advice(summary: Mapping[str, Any], chance: float, low: float) -> list[str]:
    """What to try if the lower end of the interval of a run's score is not above chance.

    Args:
        summary: content of summary.json: ``initial_weights`` unless the run started from scratch.
        chance, low: chance level and lower end, in the same unit.
    """
    if low > chance:
        return []
    start = "" if "initial_weights" in summary else "start from pre-trained weights (model.weights), "
    return [
        f"advice      the interval includes chance: {start}train longer (optim.epochs), try "
        "optim.layer_decay=1 or another optim.learning_rate, or hold out more videos"
    ]


def confidence_interval(share: float, count: float) -> tuple[float, float]:
    """Wilson's 95 % confidence interval of a share 0..1 of ``count`` independent trials."""
    z = 1.96
    share = min(max(share, 0.0), 1.0)
    center = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2) / (1 + z * z / count)
    return max(center - half, 0.0), min(center + half, 1.0)


def _failure_rows(result: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    return [(entry["path"], entry["cause"]) for entry in result["failures"]] + [
        (entry["path"], f"{entry['cause']} (training list)") for entry in result.get("train_failures", ())
    ]


def _class_table(rows: Sequence[ClassRow], chance: float) -> dict[str, Any]:
    """The classes by ascending accuracy; classes without videos come last."""
    lines: list[tuple[Any, ...]] = []
    for row in sorted(rows, key=lambda row: (not row.videos, row.top1 if row.videos else 0.0, row.label)):
        accuracies: tuple[Any, ...] = ("", "", "")
        if row.videos:
            bar = {"share": row.top1 / 100, "good": row.top1 / 100 > chance}
            accuracies = (f"{row.top1:.1f} %", bar, f"{row.top5:.1f} %")
        confused_with = f"{row.confused_with} ({row.times})" if row.times else ""
        lines.append((row.label, row.name, row.videos, *accuracies, confused_with))
    return build_table(("Label", "Class", "Videos", "Top-1", "", "Top-5", "Most often confused with"), lines)


def _precision_table(rows: Sequence[ClassPrecision]) -> dict[str, Any]:
    """The classes of a multi-label list by ascending average precision; classes without videos come last."""
    lines: list[tuple[Any, ...]] = []
    for row in sorted(rows, key=lambda row: (not row.videos, row.ap if row.videos else 0.0, row.label)):
        cells: tuple[Any, ...] = ("", "")
        if row.videos:
            bar = {"share": row.ap / 100, "good": row.ap > row.chance}
            cells = (f"{row.ap:.1f} %", bar)
        lines.append((row.label, row.name, row.videos, *cells))
    return build_table(("Label", "Class", "Videos", "Average precision", ""), lines)


def _describe_video(video: ShownVideo) -> dict[str, Any]:
    return {
        "path": video.path,
        "name": os.path.basename(video.path),
        "picture": None if video.picture is None else data_url("image/jpeg", video.picture),
        "label": video.label,
        "label_share": f"{100 * video.label_share:.0f} %",
        "prediction": "" if video.prediction == video.label else video.prediction,
        "prediction_share": f"{100 * video.prediction_share:.0f} %",
    }
