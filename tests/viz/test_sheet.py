"""Sheets: text of any file name is drawn, without errors and without warnings."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from videomaskfeat.viz.sheet import Label, Sheet, text_width


def draw(text: str) -> np.ndarray:
    return Sheet(32, 240, [Label(4, 20, text, width=230)]).pixels


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("caf\udce9.mp4", "caf\\xe9.mp4"),
        ("\x1b[31mred.mp4", "\\x1b[31mred.mp4"),
        ("two\nlines.mp4", "two\\nlines.mp4"),
        ("\u89c6\u9891.mp4", "\\u89c6\\u9891.mp4"),
        ("\uac00\U0001f3ac.mp4", "\\uac00\\U0001f3ac.mp4"),
    ],
)
def test_names_that_no_font_can_draw_are_spelled_out(name: str, shown: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(draw(name), draw(shown))
        assert text_width(name, size=14) == text_width(shown, size=14)


@pytest.mark.parametrize("width", [57, 115, 229, 1131])  # of these, width / 100 * 100 falls short in floats
def test_sheet_is_as_large_as_asked(width: int) -> None:
    assert Sheet(width + 1, width, []).pixels.shape == (width + 1, width, 3)


def test_long_text_is_cut_to_its_width() -> None:
    sheet = Sheet(40, 300, [Label(10, 25, "a very long title " * 10, width=200)])
    lit = (sheet.pixels != sheet.pixels[0, 0]).any(axis=(0, 2))
    assert lit[10:200].any()
    assert not lit[215:].any()
