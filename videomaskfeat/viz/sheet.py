"""A dark sheet with text, on which panels are pasted pixel by pixel."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text

from videomaskfeat.texts import printable_name

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
        with _quiet_about_glyphs():
            for label in labels:
                text = figure.text(
                    label.x / width,
                    1 - label.y / height,
                    printable_name(label.text),  # matplotlib fails on bytes that are not UTF-8
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
    with _quiet_about_glyphs():
        width, _, _ = renderer.get_text_width_height_descent(printable_name(text), font, ismath=False)
    return math.ceil(width)


@contextmanager
def _quiet_about_glyphs() -> Iterator[None]:
    """The font lacks many scripts; a box in the picture says enough, without a warning per letter."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


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
