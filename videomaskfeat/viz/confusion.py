"""A confusion matrix as a picture: cells with numbers for a few classes, a pixel a cell for many."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

import cv2
import numpy as np

_NUMBERED = 40  # classes, at most, whose cells are large enough for numbers
_CELL, _NAME, _TOP = 30, 190, 34  # pixels of the drawing
_LETTERS = 26  # of a name, at most
_INK = (47, 111, 222)  # the page's accent, RGB; how much of it shows is a cell's share


def draw_confusion(confusion: np.ndarray, names: Sequence[str]) -> str:
    """HTML of the matrix: a row a class of the videos, a column a class that was said.

    The ink of a cell is its share of its row, so that rare classes show as well as frequent ones.

    Args:
        confusion: int [L, L].
        names: a text a class.
    """
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    if len(confusion) <= _NUMBERED:
        return _cells(confusion, shares, names)
    return _pixels(shares)


def frequent_confusions(
    confusion: np.ndarray, names: Sequence[str], count: int
) -> list[tuple[str, str, int, float]]:
    """The most frequent wrong answers: (the videos' class, what was said, how often, percent of its row)."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    found = []
    for label, said in zip(*np.unravel_index(order, wrong.shape), strict=True):
        times = int(wrong[label, said])
        if times:
            found.append((names[label], names[said], times, 100 * times / int(confusion[label].sum())))
    return found


def _cells(confusion: np.ndarray, shares: np.ndarray, names: Sequence[str]) -> str:
    size = len(confusion)
    width, height = _NAME + size * _CELL, _TOP + size * _CELL
    right = 100 * confusion.trace() / max(confusion.sum(), 1)
    spoken = escape(f"Confusion matrix of {size} classes; {right:.1f} % of the videos on its diagonal.")
    parts = [
        f'<svg class="matrix" viewBox="0 0 {width} {height}" style="max-width:{width}px" role="img" '
        f'aria-label="{spoken}">'
    ]
    for label, name in enumerate(names):
        y = _TOP + label * _CELL
        text = name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…"
        parts.append(f'<text x="{_NAME - 8}" y="{y + 20}" text-anchor="end">{escape(text)}</text>')
        middle = _NAME + label * _CELL + _CELL / 2
        parts.append(f'<text x="{middle:g}" y="{_TOP - 10}" text-anchor="middle">{label}</text>')
        for said, share in enumerate(shares[label]):
            x, count = _NAME + said * _CELL, int(confusion[label, said])
            kind = "cell own" if said == label else "cell"
            hint = escape(f"{name}, said to be {names[said]}: {count} ({100 * share:.0f} %)")
            parts.append(
                f'<rect class="{kind}" x="{x}" y="{y}" width="{_CELL - 1}" height="{_CELL - 1}" '
                f'style="fill-opacity:{share:.3f}"><title>{hint}</title></rect>'
            )
            if count:
                shade = "count light" if share > 0.55 else "count"
                parts.append(
                    f'<text class="{shade}" x="{x + _CELL / 2:g}" y="{y + 19}" text-anchor="middle">'
                    f"{count}</text>"
                )
    return f'<div class="scroll">{"".join(parts)}</svg></div>'


def _pixels(shares: np.ndarray) -> str:
    """A PNG with a pixel a cell, whose opacity is the share: it suits a light and a dark page."""
    size = len(shares)
    picture = np.empty((size, size, 4), np.uint8)
    picture[..., :3] = _INK[::-1]
    picture[..., 3] = np.round(255 * np.sqrt(shares))  # the root lifts rare confusions into sight
    done, data = cv2.imencode(".png", picture)
    assert done
    content = base64.b64encode(data.tobytes()).decode("ascii")
    return (
        f'<img class="matrix" alt="Confusion matrix of {size} classes, a pixel a cell" '
        f'src="data:image/png;base64,{content}">'
    )
