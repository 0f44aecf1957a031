"""The data of charts, of which ``templates/<kind>.json`` make Vega-Lite specifications."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from videomaskfeat.texts import printable_name
from videomaskfeat.viz.page import table

COLORS = 12
"""Colors of curves in the style sheet, ``--c0`` to ``--c11``; a chart of more curves begins again."""
_POINTS = 400  # per curve, at most
_SMOOTHING = 40  # the moving mean is over 1/40 of the curve
_ROWS = 25  # of a table of numbers, at most
_LARGEST = 1e100  # beyond it sums and ranges overflow


@dataclass(frozen=True)
class Curve:
    """Values over steps.

    Attributes:
        name: shown in the legend.
        x: float [n], ascending.
        y: float [n]; values that are not finite are left out.
        color: its place among the page's colors; None: the curve's place in its chart.
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
    levels: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Curves over steps: the spread of the values, and their moving mean.

    Args:
        title: above the chart.
        curves: those without a finite value are left out.
        log: logarithmic vertical axis; values of 0 and below are left out.
        from_zero: the vertical axis begins at 0.
        smooth: draw the moving mean over 1/40 of a curve; False draws the values themselves.
        levels: horizontal dashed lines with their names, such as a loss to compare with.

    Returns:
        ``title``; ``data`` to draw, None if there is nothing; ``label``, for screen readers; ``table``: some
        of the numbers.
    """
    kept = []
    for place, curve in enumerate(curves):
        good = np.isfinite(curve.x) & (np.abs(curve.y) < _LARGEST) & ((curve.y > 0) | (not log))
        if good.any():
            color = (place if curve.color is None else curve.color) % COLORS
            name = printable_name(curve.name)
            kept.append(Curve(name, curve.x[good].astype(float), curve.y[good].astype(float), color))
    if not kept:
        return {"title": title, "data": None}
    shown = [
        {"name": printable_name(f"{name} {short_number(level)}"), "level": level}
        for name, level in (levels or {}).items()
        if abs(level) < _LARGEST and (level > 0 or not log)
    ]
    ends = [end for curve in kept for end in (curve.y.min(), curve.y.max())] + [one["level"] for one in shown]
    return {
        "title": title,
        "data": {
            "kind": "line",
            "curves": [_thinned(curve, smooth) for curve in kept],
            "levels": shown,
            "domain": _vertical_range(float(min(ends)), float(max(ends)), log, from_zero),
            "log": log,
        },
        "label": f"{title}. " + " ".join(map(_spoken, kept)),
        "table": _numbers(kept),
    }


def recall_chart(
    title: str, heights: np.ndarray, *, measured: tuple[np.ndarray, np.ndarray] | None = None
) -> dict[str, Any]:
    """Precision over recall, both from 0 to 1; the area below the curve is the average precision.

    Args:
        title: above the chart.
        heights: float [bins], the mean precision in equal steps of recall from 0 to 1.
        measured: recall and precision, float [n] each, of what the curve was interpolated from.

    Returns:
        Like :func:`line_chart`.
    """
    bins = len(heights)
    steps = np.flatnonzero(np.diff(heights)) + 1  # equal neighbors make one step
    starts, ends = np.array([0, *steps]), np.array([*steps, bins])
    points = measured if measured is not None else (np.empty(0), np.empty(0))
    chosen = np.linspace(0, len(points[0]) - 1, min(_POINTS // 2, len(points[0]))).round().astype(int)
    recall = np.column_stack([starts, ends]).ravel() / bins
    marks = [(mark, f"{heights[min(int(mark * bins), bins - 1)]:.2f}") for mark in (0.1, 0.3, 0.5, 0.7, 0.9)]
    said = ", ".join(f"{precision} at recall {mark:g}" for mark, precision in marks)
    return {
        "title": title,
        "data": {
            "kind": "recall",
            "curve": {"recall": _rounded(recall), "precision": _rounded(heights[starts].repeat(2))},
            "measured": {
                "recall": _rounded(points[0][chosen]),
                "precision": _rounded(points[1][chosen]),
            },
        },
        "label": f"{title}. Area {heights.mean():.3f}; precision {said}.",
        "table": table(("Recall", "Precision"), marks),
    }


def confusion_chart(title: str, confusion: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """A confusion matrix with a number in each cell.

    Args:
        title: above the chart.
        confusion: int [L, L]: a row per class of the videos, a column per class that was said.
        names: a text per class.

    Returns:
        Like :func:`line_chart`.
    """
    names = list(map(printable_name, names))
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    cells = [
        {"label": label, "said": said, "videos": int(confusion[label, said]), "share": round(float(share), 4)}
        for (label, said), share in np.ndenumerate(shares)
    ]
    right = 100 * confusion.trace() / max(confusion.sum(), 1)
    rows = [(name, *row) for name, row in zip(names, confusion.tolist(), strict=True)]
    return {
        "title": title,
        "data": {"kind": "confusion", "names": names, "cells": cells},
        "label": f"Confusion matrix of {len(names)} classes; {right:.1f} % of the videos on its diagonal.",
        "table": table(("Videos of", *names), rows),
    }


def short_number(value: float) -> str:
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


def smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """Centered moving mean float [n] over ``window`` values, over fewer at the ends."""
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    center = np.arange(len(values))
    first = np.maximum(center - window // 2, 0)
    last = np.maximum(np.minimum(center + (window + 1) // 2, len(values)), first + 1)
    return (total[last] - total[first]) / (last - first)


def _thinned(curve: Curve, smooth: bool) -> dict[str, Any]:
    """Means, least and most over equal parts of a curve, as columns."""
    bounds = np.unique(np.linspace(0, len(curve.y), min(_POINTS, len(curve.y)) + 1).astype(int))[:-1]
    count = np.diff(np.append(bounds, len(curve.y)))
    mean = np.add.reduceat(curve.y, bounds) / count
    return {
        "curve": curve.name,
        "color": curve.color,
        "step": _rounded(np.add.reduceat(curve.x, bounds) / count),
        "value": _rounded(smoothed(mean, max(1, len(mean) // _SMOOTHING)) if smooth else mean),
        "low": _rounded(np.minimum.reduceat(curve.y, bounds)),
        "high": _rounded(np.maximum.reduceat(curve.y, bounds)),
    }


def _rounded(values: np.ndarray) -> list[float]:
    """To 6 digits, more than a screen shows, for small pages."""
    return [float(f"{value:.6g}") for value in values.tolist()]


def _vertical_range(low: float, high: float, log: bool, from_zero: bool) -> tuple[float, float]:
    """Some room around the values; a logarithmic axis covers whole powers of ten, one apart at least."""
    if log:  # 1e-9 forgives the rounding of log10
        bottom = math.floor(math.log10(low) + 1e-9)
        return 10.0**bottom, 10.0 ** max(math.ceil(math.log10(high) - 1e-9), bottom + 1)
    low = min(low, 0.0) if from_zero else low
    room = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
    return (low if from_zero else low - room), high + room


def _numbers(curves: Sequence[Curve]) -> dict[str, Any]:
    """All curves at some of their steps; of many, at those of the curve that has the fewest."""
    columns = [dict(zip(curve.x.tolist(), curve.y.tolist(), strict=True)) for curve in curves]
    steps = np.unique(np.concatenate([curve.x for curve in curves]))
    if len(steps) > _ROWS:
        fewest = min((curve.x for curve in curves), key=len)
        steps = np.unique([steps[0], *(fewest if len(fewest) > 1 else steps), steps[-1]])
        steps = steps[np.linspace(0, len(steps) - 1, min(_ROWS, len(steps))).round().astype(int)]
    rows = [
        (f"{step:g}", *(short_number(column[step]) if step in column else "" for column in columns))
        for step in steps.tolist()
    ]
    return table(("Step", *(curve.name for curve in curves)), rows)


def _spoken(curve: Curve) -> str:
    first, last = short_number(float(curve.y[0])), short_number(float(curve.y[-1]))
    return (
        f"{curve.name}: {first} at step {curve.x[0]:.0f}, {last} at step {curve.x[-1]:.0f}, "
        f"least {short_number(float(curve.y.min()))}, most {short_number(float(curve.y.max()))}."
    )
