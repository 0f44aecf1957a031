"""Data of charts; ``templates/<kind>.json`` turns it into Vega-Lite specifications."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from videomaskfeat.texts import printable_name
from videomaskfeat.viz.page import build_table, data_url

COLORS = 12
"""Number of curve colors in the style sheet, ``--c0`` to ``--c11``; further curves start over."""
_MAX_POINTS = 400  # per curve
_SMOOTHING = 40  # the moving mean covers 1/40 of a curve
_MAX_ROWS = 25  # of a table of numbers
_MAX_VALUE = 1e100  # sums and ranges of larger values overflow
_MAX_NUMBERED_CLASSES = 40  # cells of larger confusion matrices are too small for numbers
_FREQUENT_CONFUSIONS = 12
_ACCENT_RGB = (47, 111, 222)
# Heights of whole charts in pixels, which pages reserve until a chart is drawn.
_LINE_HEIGHT, _LEGEND_ROW, _RECALL_HEIGHT = 250, 16, 220
_CELL, _PADDING, _AXIS_TITLE = 30, 10, 16
_LONGEST_LABEL = 160


@dataclass(frozen=True)
class Curve:
    """Values over steps.

    Attributes:
        name: shown in the legend.
        x: float [n], ascending.
        y: float [n]; values that are not finite are left out.
        color: index of the color; None: the curve's index in its chart.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    color: int | None = None


def line_chart(
    title: str,
    curves: Sequence[Curve],
    *,
    log: bool = False,
    from_zero: bool = False,
    smooth: bool = True,
    reference_lines: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Curves over steps: the range of the values, and their moving mean.

    Args:
        title: shown above the chart.
        curves: curves without a finite value are left out.
        log: logarithmic vertical axis; values of 0 and below are left out.
        from_zero: start the vertical axis at 0.
        smooth: draw the moving mean over 1/40 of a curve; False draws the values themselves.
        reference_lines: horizontal dashed lines by name, such as a loss to compare with.

    Returns:
        ``title``; ``data`` to draw, None if there are no values; ``label`` for screen readers; ``table`` with
        some of the numbers.
    """
    drawn_curves = []
    for index, curve in enumerate(curves):
        valid = np.isfinite(curve.x) & (np.abs(curve.y) < _MAX_VALUE) & ((curve.y > 0) | (not log))
        if valid.any():
            color = (index if curve.color is None else curve.color) % COLORS
            x, y = curve.x[valid].astype(float), curve.y[valid].astype(float)
            drawn_curves.append(Curve(printable_name(curve.name), x, y, color))
    if not drawn_curves:
        return {"title": title, "data": None}
    lines = [
        {"name": printable_name(f"{name} {format_number(float(f'{level:.3g}'))}"), "level": level}
        for name, level in (reference_lines or {}).items()
        if abs(level) < _MAX_VALUE and (level > 0 or not log)
    ]
    values = np.concatenate([*(curve.y for curve in drawn_curves), [line["level"] for line in lines]])
    return {
        "title": title,
        "data": {
            "kind": "line",
            "height": _LINE_HEIGHT
            + (_LEGEND_ROW * math.ceil(len(drawn_curves) / 2) if len(drawn_curves) > 1 else 0),
            "curves": [_thin_out(curve, smooth) for curve in drawn_curves],
            "levels": lines,
            "domain": _vertical_range(float(values.min()), float(values.max()), log, from_zero),
            "log": log,
        },
        "label": f"{title}. " + " ".join(map(_describe_curve, drawn_curves)),
        "table": _tabulate(drawn_curves),
    }


def recall_chart(
    title: str, heights: np.ndarray, *, measured: tuple[np.ndarray, np.ndarray] | None = None
) -> dict[str, Any]:
    """Precision over recall, both from 0 to 1; the area below the curve is the average precision.

    Args:
        title: shown above the chart.
        heights: float [bins], mean precision in equal steps of recall from 0 to 1.
        measured: recall and precision before interpolation, float [n] each.

    Returns:
        Like :func:`line_chart`.
    """
    bins = len(heights)
    steps = np.flatnonzero(np.diff(heights)) + 1  # equal neighbors make one step
    starts, ends = np.array([0, *steps]), np.array([*steps, bins])
    recall, precision = measured if measured is not None else (np.empty(0), np.empty(0))
    chosen = np.linspace(0, len(recall) - 1, min(_MAX_POINTS // 2, len(recall))).round().astype(int)
    rows = [(mark, f"{heights[min(int(mark * bins), bins - 1)]:.2f}") for mark in (0.1, 0.3, 0.5, 0.7, 0.9)]
    description = ", ".join(f"{value} at recall {mark:g}" for mark, value in rows)
    return {
        "title": title,
        "data": {
            "kind": "recall",
            "height": _RECALL_HEIGHT,
            "curve": {
                "recall": _round(np.column_stack([starts, ends]).ravel() / bins),
                "precision": _round(heights[starts].repeat(2)),
            },
            "measured": {"recall": _round(recall[chosen]), "precision": _round(precision[chosen])},
        },
        "label": f"{title}. Area {heights.mean():.3f}; precision {description}.",
        "table": build_table(("Recall", "Precision"), rows),
    }


def confusion_section(confusion: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """A confusion matrix as a chart, or as an image if there are more than 40 classes.

    Args:
        confusion: int [L, L], number of videos by label (row) and prediction (column).
        names: class names, indexed by label.

    Returns:
        ``classes``, L; ``chart`` or None; ``image``, the address of a PNG, or None; ``frequent``: a table of
        the most frequent wrong predictions.
    """
    small = len(confusion) <= _MAX_NUMBERED_CLASSES
    rows = [
        (label, prediction, count, f"{percent:.0f} %")
        for label, prediction, count, percent in frequent_confusions(confusion, names, _FREQUENT_CONFUSIONS)
    ]
    return {
        "classes": len(confusion),
        "chart": confusion_chart("Labels and predictions", confusion, names) if small else None,
        "image": None if small else data_url("image/png", encode_confusion(confusion)),
        "frequent": build_table(("Label", "Wrong prediction", "Videos", "Share of the class"), rows),
    }


def confusion_chart(title: str, confusion: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """A chart like :func:`line_chart` with a number in each cell; arguments of :func:`confusion_section`."""
    names = list(map(printable_name, names))
    cells = [
        {
            "label": label,
            "prediction": prediction,
            "videos": int(confusion[label, prediction]),
            "share": round(float(share), 4),
        }
        for (label, prediction), share in np.ndenumerate(_row_shares(confusion))
    ]
    # Labels at 60 degrees, 7 pixels per character.
    top = math.ceil(0.87 * min(_LONGEST_LABEL, 7 * max(map(len, names), default=0))) + 12
    correct = 100 * confusion.trace() / max(confusion.sum(), 1)
    rows = [(name, *row) for name, row in zip(names, confusion.tolist(), strict=True)]
    return {
        "title": title,
        "data": {
            "kind": "confusion",
            "height": _PADDING + top + _AXIS_TITLE + _CELL * len(names),
            "top": top,
            "names": names,
            "cells": cells,
        },
        "label": f"Confusion matrix of {len(names)} classes; {correct:.1f} % of the videos on the diagonal.",
        "table": build_table(("Label", *names), rows),
    }


def encode_confusion(confusion: np.ndarray) -> bytes:
    """A PNG, one pixel per cell; its opacity is the root of the share of the row, to show rare ones."""
    image = np.empty((*confusion.shape, 4), np.uint8)
    image[..., :3] = _ACCENT_RGB[::-1]
    image[..., 3] = np.round(255 * np.sqrt(_row_shares(confusion)))
    success, png = cv2.imencode(".png", image)
    assert success, "a uint8 image can always be encoded"
    return png.tobytes()


def frequent_confusions(
    confusion: np.ndarray, names: Sequence[str], count: int
) -> list[tuple[str, str, int, float]]:
    """The most frequent wrong predictions: label, prediction, number of videos, percentage of the class."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    shares = _row_shares(confusion)
    return [
        (names[row], names[column], int(wrong[row, column]), 100 * float(shares[row, column]))
        for row, column in zip(*np.unravel_index(order, wrong.shape), strict=True)
        if wrong[row, column]
    ]


def format_number(value: float) -> str:
    """A number in few characters: 12.5k, 0.031, 1e-4."""
    size = abs(value)
    if value == 0:
        return "0"
    if size >= 1e4:  # below, 2000 reads better than 2k
        unit, letter = next((u, n) for u, n in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if size >= u)
        return f"{value / unit:.4g}{letter}"
    if size >= 1e-3:
        return f"{value:.4g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Centered moving mean float [n] over ``window`` values, over fewer at the ends."""
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    center = np.arange(len(values))
    first = np.maximum(center - window // 2, 0)
    last = np.maximum(np.minimum(center + (window + 1) // 2, len(values)), first + 1)
    return (total[last] - total[first]) / (last - first)


def _row_shares(confusion: np.ndarray) -> np.ndarray:
    return confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)


def _thin_out(curve: Curve, smooth: bool) -> dict[str, Any]:
    """Mean, minimum and maximum over equal intervals of a curve, as columns."""
    bounds = np.unique(np.linspace(0, len(curve.y), min(_MAX_POINTS, len(curve.y)) + 1).astype(int))[:-1]
    count = np.diff(np.append(bounds, len(curve.y)))
    mean = np.add.reduceat(curve.y, bounds) / count
    return {
        "curve": curve.name,
        "color": curve.color,
        "step": _round(np.add.reduceat(curve.x, bounds) / count),
        "value": _round(moving_mean(mean, max(1, len(mean) // _SMOOTHING)) if smooth else mean),
        "low": _round(np.minimum.reduceat(curve.y, bounds)),
        "high": _round(np.maximum.reduceat(curve.y, bounds)),
    }


def _round(values: np.ndarray) -> list[float]:
    """To 6 digits, more than a screen shows, so that pages are small."""
    return [float(f"{value:.6g}") for value in values.tolist()]


def _vertical_range(low: float, high: float, log: bool, from_zero: bool) -> tuple[float, float]:
    """A range with a margin; a logarithmic one covers whole powers of ten, at least one."""
    if log:  # 1e-9 absorbs the rounding of log10
        bottom = math.floor(math.log10(low) + 1e-9)
        return 10.0**bottom, 10.0 ** max(math.ceil(math.log10(high) - 1e-9), bottom + 1)
    low = min(low, 0.0) if from_zero else low
    margin = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
    return (low if from_zero else low - margin), high + margin


def _tabulate(curves: Sequence[Curve]) -> dict[str, Any]:
    """All curves at some of their steps; if there are too many, at those of the curve with the fewest."""
    columns = [dict(zip(curve.x.tolist(), curve.y.tolist(), strict=True)) for curve in curves]
    steps = np.unique(np.concatenate([curve.x for curve in curves]))
    if len(steps) > _MAX_ROWS:
        fewest = min((curve.x for curve in curves), key=len)
        steps = np.unique([steps[0], *(fewest if len(fewest) > 1 else steps), steps[-1]])
        steps = steps[np.linspace(0, len(steps) - 1, min(_MAX_ROWS, len(steps))).round().astype(int)]
    rows = [
        (f"{step:g}", *(format_number(column[step]) if step in column else "" for column in columns))
        for step in steps.tolist()
    ]
    return build_table(("Step", *(curve.name for curve in curves)), rows)


def _describe_curve(curve: Curve) -> str:
    first, last, low, high = map(format_number, (curve.y[0], curve.y[-1], curve.y.min(), curve.y.max()))
    return (
        f"{curve.name}: {first} at step {curve.x[0]:.0f}, {last} at step {curve.x[-1]:.0f}, "
        f"minimum {low}, maximum {high}."
    )
