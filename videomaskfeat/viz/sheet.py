"""A dark sheet with text, on which panels are pasted pixel by pixel."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.text import Text

from videomaskfeat.io import make_parent, whole_file
from videomaskfeat.texts import printable_name

GAP = 8
"""Pixels between panels."""
_BACKGROUND = "#12141c"
_INK = "#e8eaf2"
_FAINT = "#9aa1b5"
_DPI = 128  # a power of two, so that a size in inches times it is the size in pixels exactly


@dataclass(frozen=True)
class Label:
    """A line of text: ``x`` of its left end, ``y`` of its base line from the top, its size; all in pixels."""

    x: int
    y: int
    text: str
    size: float = 14.0
    bold: bool = False
    faint: bool = False
    width: int | None = None
    """Pixels that the text may take: a longer one is set smaller, down to 70 %, and then cut."""


class Sheet:
    """A picture that begins as text on a dark ground.

    Attributes:
        pixels: uint8 [height, width, 3], RGB.
    """

    def __init__(self, height: int, width: int, labels: Sequence[Label]) -> None:
        figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor=_BACKGROUND)
        canvas = FigureCanvasAgg(figure)
        for label in labels:
            text = figure.text(
                label.x / width,
                1 - label.y / height,
                drawable(label.text),
                fontsize=label.size * 72 / _DPI,
                fontweight="bold" if label.bold else "normal",
                color=_FAINT if label.faint else _INK,
                va="baseline",
                parse_math=False,  # a file name may hold dollar signs
            )
            if label.width is not None:
                _fit(text, label.width, canvas)
        canvas.draw()
        self.pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()

    def paste(self, panel: np.ndarray, top: int, left: int) -> None:
        """Put a panel uint8 [h, w, 3] with its upper left corner at (top, left)."""
        height, width = panel.shape[:2]
        self.pixels[top : top + height, left : left + width] = panel


def text_width(text: str, *, size: float, bold: bool = False) -> int:
    """Pixels that a line of text takes on a sheet, rounded up."""
    font = FontProperties(size=size * 72 / _DPI, weight="bold" if bold else "normal")
    renderer = _measuring_canvas().get_renderer()
    width, _, _ = renderer.get_text_width_height_descent(drawable(text), font, ismath=False)
    return math.ceil(width)


def drawable(text: str) -> str:
    """A text of any script in letters that the font has: others become ``\\u89c6``, bytes ``\\xe9``."""
    return "".join(
        letter if ord(letter) in _letters() else letter.encode("unicode_escape").decode()
        for letter in printable_name(text)
    )


@functools.lru_cache(maxsize=1)
def _letters() -> frozenset[int]:
    """What both of the fonts can draw, the plain and the bold one."""
    fonts = (get_font(findfont(FontProperties(weight=weight))) for weight in ("normal", "bold"))
    return frozenset.intersection(*(frozenset(font.get_charmap()) for font in fonts))


def fit_frame(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """A frame uint8 [H, W, 3] at another size; one that has it is returned as it is."""
    if frame.shape[:2] == (height, width):
        return frame
    shrinks = height < frame.shape[0]
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def even(length: int) -> int:
    """The next even number, as H.264 needs it of both sides of a film."""
    return length + length % 2


def write_png(path: str | os.PathLike[str], picture: np.ndarray) -> None:
    """Write a picture uint8 [H, W, 3], RGB; its folder is made."""
    done, png = cv2.imencode(".png", picture[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 5])
    assert done, "a uint8 picture can always be encoded"
    make_parent(path)
    with whole_file(path, "wb") as file:
        file.write(png.tobytes())


@dataclass(frozen=True)
class Row:
    """One line of a picture: a name, a note under it, and uint8 [t, H, W, 3] panels over time."""

    name: str
    note: str
    panels: np.ndarray


def row_sheet(
    rows: Sequence[Row], *, left: int, top: int, right: int, bottom: int, labels: Sequence[Label] = ()
) -> Sheet:
    """Rows of panels of one size below each other, their names to the left.

    Args:
        rows: from the top down, of one size and number of panels.
        left: pixels beside the panels, like ``right``, ``top`` and ``bottom``.
        labels: what else is written.
    """
    count, height, width = rows[0].panels.shape[:3]
    labels = list(labels)
    for line, row in enumerate(rows):
        middle = top + line * (height + GAP) + height // 2
        labels.append(Label(16, middle - 4, row.name, bold=True, width=left - 24))
        labels.append(Label(16, middle + 16, row.note, size=12, faint=True, width=left - 24))
    sheet = Sheet(top + len(rows) * (height + GAP) + bottom, left + count * (width + GAP) + right, labels)
    for line, row in enumerate(rows):
        for column, panel in enumerate(row.panels):
            sheet.paste(panel, top + line * (height + GAP), left + column * (width + GAP))
    return sheet


@functools.lru_cache(maxsize=1)
def _measuring_canvas() -> FigureCanvasAgg:
    return FigureCanvasAgg(Figure(figsize=(1, 1), dpi=_DPI))


def _fit(text: Text, width: int, canvas: FigureCanvasAgg) -> None:
    """Make a text no wider than ``width`` pixels."""
    size = float(text.get_fontsize())

    def excess() -> float:
        return float(text.get_window_extent(canvas.get_renderer()).width) / width

    if excess() > 1:
        text.set_fontsize(size * max(0.7, 1 / excess()))
    while excess() > 1.005 and len(text.get_text()) > 4:
        content = text.get_text().removesuffix("…")
        text.set_text(content[: int(len(content) / max(excess(), 1.02))] + "…")
