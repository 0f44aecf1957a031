"""Dark pictures of text and panels."""

from __future__ import annotations

import functools
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.text import Text

from videomaskfeat.io import make_parent, whole_file
from videomaskfeat.texts import printable_name

# It warns of each family without a bold face.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)

GAP = 8
"""Pixels between panels."""
_BACKGROUND = "#12141c"
_INK = "#e8eaf2"
_FAINT = "#9aa1b5"
_DPI = 128  # a power of two, so that a size in inches times it is the size in pixels exactly


@dataclass(frozen=True)
class Label:
    """A line of text: ``x`` of its left end, ``y`` of its baseline from the top, and its size, in pixels."""

    x: int
    y: int
    text: str
    size: float = 14.0
    bold: bool = False
    faint: bool = False
    width: int | None = None
    """Maximum width [pixels]: longer text becomes smaller, down to 70 %, and is then cut."""


class Sheet:
    """A picture with text on a dark background.

    Attributes:
        pixels: uint8 [height, width, 3], RGB.
    """

    def __init__(self, height: int, width: int, labels: Sequence[Label]) -> None:
        figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor=_BACKGROUND)
        canvas = FigureCanvasAgg(figure)
        for label in labels:
            content, families = choose_fonts(label.text)
            text = figure.text(
                label.x / width,
                1 - label.y / height,
                content,
                fontfamily=families,
                fontsize=label.size * 72 / _DPI,
                fontweight="bold" if label.bold else "normal",
                color=_FAINT if label.faint else _INK,
                va="baseline",
                parse_math=False,  # a file name may contain dollar signs
            )
            if label.width is not None:
                _fit(text, label.width, canvas)
        canvas.draw()
        self.pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()

    def paste(self, panel: np.ndarray, top: int, left: int) -> None:
        """Copy a panel uint8 [h, w, 3] to (top, left)."""
        height, width = panel.shape[:2]
        self.pixels[top : top + height, left : left + width] = panel


def measure_text(text: str, *, size: float, bold: bool = False) -> int:
    """Width of a line of text on a sheet [pixels], rounded up."""
    content, families = choose_fonts(text)
    font = FontProperties(family=families, size=size * 72 / _DPI, weight="bold" if bold else "normal")
    renderer = _measuring_canvas().get_renderer()
    width, _, _ = renderer.get_text_width_height_descent(content, font, ismath=False)
    return math.ceil(width)


def choose_fonts(text: str) -> tuple[str, list[str]]:
    """A text of any script, and the font families that draw it.

    Letters that no installed font has become ``\\u89c6``, and bytes that are not UTF-8 ``\\xe9``.
    """
    letters, families = [], [FontProperties().get_family()[0]]
    for letter in printable_name(text):
        family = "" if ord(letter) in _default_letters() else _find_family(letter)
        if family is None:
            letter = letter.encode("unicode_escape").decode()
        elif family and family not in families:
            families.append(family)
        letters.append(letter)
    return "".join(letters), families


@functools.lru_cache(maxsize=1)
def _default_letters() -> frozenset[int]:
    return _letters_of(FontProperties().get_family()[0])


@functools.lru_cache(maxsize=4096)
def _find_family(letter: str) -> str | None:
    """An installed font family with a letter; None if no font has it."""
    return next((family for family in _other_families() if ord(letter) in _letters_of(family)), None)


def _other_families() -> list[str]:
    """Installed font families, without fonts of placeholders for all letters."""
    names = {entry.name for entry in fontManager.ttflist}
    return sorted(name for name in names if "lastresort" not in name.lower().replace(" ", ""))


@functools.lru_cache(maxsize=4096)
def _letters_of(family: str) -> frozenset[int]:
    """Code points that a family has in both normal and bold weight; empty for bitmap fonts."""
    try:
        fonts = [
            get_font(findfont(FontProperties(family=family, weight=weight))) for weight in ("normal", "bold")
        ]
    except (OSError, RuntimeError, ValueError):
        return frozenset()
    return frozenset.intersection(*(frozenset(font.get_charmap()) for font in fonts))


def fit_frame(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize a frame uint8 [H, W, 3]; one of this size is returned unchanged."""
    if frame.shape[:2] == (height, width):
        return frame
    interpolation = cv2.INTER_AREA if height < frame.shape[0] else cv2.INTER_CUBIC
    return cv2.resize(frame, (width, height), interpolation=interpolation)


def round_up_to_even(length: int) -> int:
    """The next even number; H.264 needs even heights and widths."""
    return length + length % 2


def write_png(path: str | os.PathLike[str], picture: np.ndarray) -> None:
    """Write a picture uint8 [H, W, 3], RGB; creates the folder."""
    success, png = cv2.imencode(".png", picture[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 5])
    assert success, "a uint8 picture can always be encoded"
    make_parent(path)
    with whole_file(path, "wb") as file:
        file.write(png.tobytes())


@dataclass(frozen=True)
class Row:
    """A row of a picture: name, note below the name, and panels uint8 [t, H, W, 3] over time."""

    name: str
    note: str
    panels: np.ndarray


def row_sheet(
    rows: Sequence[Row], *, left: int, top: int, right: int, bottom: int, labels: Sequence[Label] = ()
) -> Sheet:
    """Rows of panels with their names to the left.

    Args:
        rows: rows of the same size and number of panels, from top to bottom.
        left: margin with the names [pixels], like the other margins ``top``, ``right`` and ``bottom``.
        labels: further text.
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
    size = float(text.get_fontsize())

    def excess() -> float:
        return float(text.get_window_extent(canvas.get_renderer()).width) / width

    if excess() > 1:
        text.set_fontsize(size * max(0.7, 1 / excess()))
    while excess() > 1.005 and len(text.get_text()) > 4:
        content = text.get_text().removesuffix("…")
        text.set_text(content[: int(len(content) / max(excess(), 1.02))] + "…")
