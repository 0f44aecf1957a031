"""Sheets: text of any script is drawn without errors and warnings."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from videomaskfeat.viz import sheet
from videomaskfeat.viz.sheet import Label, Sheet, choose_fonts, measure_text


def draw(text: str, *, bold: bool = False) -> np.ndarray:
    return Sheet(32, 240, [Label(4, 20, text, bold=bold, width=230)]).pixels


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
def test_letters_that_no_font_has_are_escaped(name: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheet, "_find_family", lambda letter: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(draw(name), draw(shown))
        assert measure_text(name, size=14) == measure_text(shown, size=14)


@pytest.mark.parametrize("bold", [False, True])
def test_other_installed_fonts_draw_what_the_default_font_lacks(
    monkeypatch: pytest.MonkeyPatch, bold: bool
) -> None:
    """DejaVu Serif has letters that DejaVu Sans lacks; matplotlib brings both."""
    letter = next(chr(code) for code in sorted(_serif_only()) if chr(code).isprintable())
    monkeypatch.setattr(sheet, "_find_family", sheet._find_family.__wrapped__)
    monkeypatch.setattr(sheet, "_other_families", lambda: ["STIXGeneral", "DejaVu Serif"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text, families = choose_fonts(f"a{letter}")
        assert text == f"a{letter}"
        assert families[1:] in (["STIXGeneral"], ["DejaVu Serif"])
        assert (draw(text, bold=bold) != draw("a", bold=bold)).any()
        assert measure_text(text, size=14, bold=bold) > measure_text("a", size=14, bold=bold)


def _serif_only() -> frozenset[int]:
    return sheet._letters_of("DejaVu Serif") - sheet._default_letters()


def test_placeholder_fonts_are_not_used() -> None:
    assert not [name for name in sheet._other_families() if "Resort" in name]
    assert "DejaVu Sans" in sheet._other_families()
    assert sheet._letters_of("DejaVu Sans") == sheet._default_letters()


@pytest.mark.parametrize("width", [57, 115, 229, 1131])  # width / 100 * 100 is less than these in floats
def test_sheet_has_its_size(width: int) -> None:
    assert Sheet(width + 1, width, []).pixels.shape == (width + 1, width, 3)


def test_long_text_is_cut_to_its_width() -> None:
    pixels = Sheet(40, 300, [Label(10, 25, "a very long title " * 10, width=200)]).pixels
    lit = (pixels != pixels[0, 0]).any(axis=(0, 2))
    assert lit[10:200].any()
    assert not lit[215:].any()
