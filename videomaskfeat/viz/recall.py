"""Curves of precision over recall as inline SVG, both axes from 0 to 1, so that areas compare at sight."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

_WIDTH, _HEIGHT = 260, 220  # of the view box; the page scales it
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 8, 34
_POINTS = 200  # of a measured curve, at most


def recall_chart(
    heights: np.ndarray, *, title: str, measured: tuple[np.ndarray, np.ndarray] | None = None
) -> str:
    """Draw a curve as one ``<svg>`` element, with the area below it: the average precision.

    Args:
        heights: float [bins], the mean precision in equal steps of recall from 0 to 1.
        title: what a screen reader says first.
        measured: recall and precision, float [n] each, of what the curve was interpolated from.
    """
    said = ", ".join(
        f"{heights[min(int(recall * len(heights)), len(heights) - 1)]:.2f} at recall {recall:g}"
        for recall in (0.1, 0.5, 0.9)
    )
    spoken = escape(f"{title}. Area {heights.mean():.3f}; precision {said}.", quote=True)
    outline = _steps(heights)
    parts = [
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{spoken}">',
        _axes(),
        f'<path class="spread c0" d="{outline}V{_y(0.0)}H{_x(0.0)}Z"/>',
    ]
    if measured is not None and len(measured[0]):
        parts.append(f'<path class="measured" d="{_thinned(*measured)}"/>')
    parts.append(f'<path class="line c0" d="{outline}"/></svg>')
    return "".join(parts)


def _x(recall: float) -> str:
    return f"{_LEFT + recall * (_WIDTH - _LEFT - _RIGHT):.1f}"


def _y(precision: float) -> str:
    return f"{_HEIGHT - _BOTTOM - precision * (_HEIGHT - _TOP - _BOTTOM):.1f}"


def _steps(heights: np.ndarray) -> str:
    """A step for each height; equal neighbours make one."""
    places = [_y(float(height)) for height in heights]
    path = [f"M{_x(0.0)} {places[0]}"]
    for number, (here, after) in enumerate(zip(places, [*places[1:], ""], strict=True), start=1):
        if after != here:
            path.append(f"H{_x(number / len(places))}" + (f"V{after}" if after else ""))
    return "".join(path)


def _thinned(recall: np.ndarray, precision: np.ndarray) -> str:
    """Some of the points, the first and the last among them."""
    chosen = np.unique(np.linspace(0, len(recall) - 1, min(_POINTS, len(recall))).round().astype(int))
    return "M" + "L".join(
        f"{_x(x)} {_y(y)}" for x, y in zip(recall[chosen].tolist(), precision[chosen].tolist(), strict=True)
    )


def _axes() -> str:
    """Grid, numbers and names."""
    parts = []
    for mark in (0.0, 0.5, 1.0):
        x, y = _x(mark), _y(mark)
        parts.append(
            f'<path class="grid" d="M{_LEFT} {y}H{_WIDTH - _RIGHT}M{x} {_TOP}V{_HEIGHT - _BOTTOM}"/>'
        )
        parts.append(f'<text x="{_LEFT - 6}" y="{float(y) + 4:.1f}" text-anchor="end">{mark:g}</text>')
        parts.append(f'<text x="{x}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{mark:g}</text>')
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(f'<text x="{_x(0.5)}" y="{_HEIGHT - 4}" text-anchor="middle">recall</text>')
    turned = f'x="12" y="{middle:g}" transform="rotate(-90 12 {middle:g})"'
    parts.append(f'<text {turned} text-anchor="middle">precision</text>')
    return "".join(parts)


def mean_heights(curves: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of curves of equal steps, float [bins]; its area is the mean of theirs."""
    return np.mean(np.stack(list(curves)), axis=0)
