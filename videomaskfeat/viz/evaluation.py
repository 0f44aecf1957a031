"""The page of an evaluation: accuracy, confusions, classes, and the videos at both ends."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from videomaskfeat.viz.charts import confusion_chart
from videomaskfeat.viz.page import data_url, flattened, render_page, table

_NUMBERED = 40  # classes, at most, whose cells are large enough for numbers
_CONFUSIONS = 12
_FAILURES_SHOWN = 200
# What of a protocol the template says in words; the rest is listed.
_IN_WORDS = (
    "views", "crops", "sampling", "frames", "stride", "target_fps", "crop", "short_side", "average", "k",
    "precision", "reader",
)  # fmt: skip
_INK = (47, 111, 222)  # the page's accent, RGB; how much of it shows is a cell's share


@dataclass(frozen=True)
class ClassRow:
    """How one class fared.

    Attributes:
        label: its number.
        name: its name, or a text with its number.
        videos: how many the list has of it.
        top1: percent of them that were right; NaN without videos, like ``top5``.
        top5: percent of them whose class was among the 5 best.
        taken_for: the class that was said most often of those that were wrong; empty if none was.
        times: how often.
    """

    label: int
    name: str
    videos: int
    top1: float
    top5: float
    taken_for: str
    times: int


@dataclass(frozen=True)
class ShownVideo:
    """A video of which the report shows a picture.

    Attributes:
        path: of the video.
        label: what it shows.
        label_share: how probable that was found, 0..1.
        prediction: what was said.
        prediction_share: how probable that was found.
        picture: a JPEG file, or None.
    """

    path: str
    label: str
    label_share: float
    prediction: str
    prediction_share: float
    picture: bytes | None


@dataclass(frozen=True)
class EvaluationFacts:
    """What an evaluation found; the accuracies are in percent, and None for a list without labels.

    Attributes:
        title: heading of the page.
        videos: how many were scored.
        listed: of how many in the list.
        top1: share of the videos whose class has the highest score.
        top5: whose class is among the 5 highest.
        mean_class: mean of the classes' own top-1.
        protocol: how the videos were cut and scored, by name.
        summary: everything that identifies the result; may be nested.
        classes: a row per class; none for a list without labels.
        confusion: int [L, L]: class of the videos, class that was said; None for a list without labels.
        said: int [L], how often each class was said.
        class_texts: a text per class.
        worst: the videos that were most surely wrong.
        best: the videos that were most surely right.
        failures: path and cause of each video that could not be read.
    """

    title: str
    videos: int
    listed: int
    top1: float | None
    top5: float | None
    mean_class: float | None
    protocol: Mapping[str, Any]
    summary: Mapping[str, Any]
    classes: Sequence[ClassRow]
    confusion: np.ndarray | None
    said: np.ndarray
    class_texts: Sequence[str]
    worst: Sequence[ShownVideo]
    best: Sequence[ShownVideo]
    failures: Sequence[tuple[str, str]]


def render_evaluation(facts: EvaluationFacts) -> str:
    """The page as one HTML document without any reference outside itself."""
    return render_page("evaluation", evaluation_data(facts))


def evaluation_data(facts: EvaluationFacts) -> dict[str, Any]:
    """What the page shows, as plain data."""
    confusion, texts = facts.confusion, facts.class_texts
    chart, pixels, confusions = None, None, None
    if confusion is not None:
        if len(confusion) <= _NUMBERED:
            chart = confusion_chart("Classes of the videos, and what was said", confusion, texts)
        else:
            pixels = data_url("image/png", confusion_pixels(confusion))
        frequent = frequent_confusions(confusion, texts, _CONFUSIONS)
        confusions = table(
            ("Most often, videos of", "said to be", "Videos", "Of the class"),
            [(label, said, times, f"{percent:.0f} %") for label, said, times, percent in frequent],
        )
    share = (facts.top1 or 0.0) / 100
    said = [
        (texts[label], int(facts.said[label]), f"{100 * facts.said[label] / facts.videos:.1f} %")
        for label in np.argsort(-facts.said, kind="stable").tolist()
        if facts.said[label]
    ]
    return {
        "title": facts.title,
        "videos": facts.videos,
        "listed": facts.listed,
        "missing": facts.listed - facts.videos,
        "top1": facts.top1,
        "top5": facts.top5,
        "mean_class": facts.mean_class,
        "top1_of_listed": 100 * share * facts.videos / max(facts.listed, 1),
        "spread": 196 * math.sqrt(max(share * (1 - share), 0.0) / max(facts.videos, 1)),
        "protocol": facts.protocol,
        "rest": flattened({key: value for key, value in facts.protocol.items() if key not in _IN_WORDS}),
        "confusion": chart,
        "pixels": pixels,
        "confusions": confusions,
        "classes": _class_table(facts.classes),
        "said": table(("Class", "Videos", "Of all"), said),
        "worst": list(map(_video, facts.worst)),
        "best": list(map(_video, facts.best)),
        "failures": table(("Video", "Cause"), list(facts.failures), limit=_FAILURES_SHOWN),
        "about": {
            name: facts.summary[name.lower()] for name in ("Weights", "List") if name.lower() in facts.summary
        },
        "summary": flattened(facts.summary),
        "has_charts": chart is not None,
    }


def confusion_pixels(confusion: np.ndarray) -> bytes:
    """A PNG of the matrix with a pixel per cell, whose opacity is the share of its row.

    It suits a light and a dark page; the root lifts rare confusions into sight.
    """
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    picture = np.empty((*confusion.shape, 4), np.uint8)
    picture[..., :3] = _INK[::-1]
    picture[..., 3] = np.round(255 * np.sqrt(shares))
    done, data = cv2.imencode(".png", picture)
    assert done, "a uint8 picture can always be encoded"
    return data.tobytes()


def frequent_confusions(
    confusion: np.ndarray, names: Sequence[str], count: int
) -> list[tuple[str, str, int, float]]:
    """The most frequent wrong answers: (the videos' class, what was said, how often, percent of its row)."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    return [
        (
            names[label],
            names[said],
            int(wrong[label, said]),
            100 * wrong[label, said] / confusion[label].sum(),
        )
        for label, said in zip(*np.unravel_index(order, wrong.shape), strict=True)
        if wrong[label, said]
    ]


def _class_table(rows: Sequence[ClassRow]) -> dict[str, Any]:
    """The classes, the worst first; those without a video last."""
    header = ("Class", "Name", "Videos", "Top-1", "", "Top-5", "Most often taken for")
    lines: list[tuple[Any, ...]] = []
    for row in sorted(rows, key=lambda row: (not row.videos, row.top1 if row.videos else 0.0, row.label)):
        shares: tuple[Any, ...] = ("", "", "")
        if row.videos:
            shares = (f"{row.top1:.1f} %", {"share": row.top1 / 100}, f"{row.top5:.1f} %")
        taken = f"{row.taken_for} ({row.times})" if row.times else ""
        lines.append((row.label, row.name, row.videos, *shares, taken))
    return table(header, lines)


def _video(video: ShownVideo) -> dict[str, Any]:
    return {
        "path": video.path,
        "name": os.path.basename(video.path),
        "picture": None if video.picture is None else data_url("image/jpeg", video.picture),
        "label": video.label,
        "label_share": f"{100 * video.label_share:.0f} %",
        "said": "" if video.prediction == video.label else video.prediction,
        "said_share": f"{100 * video.prediction_share:.0f} %",
    }
