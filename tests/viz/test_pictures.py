"""Pictures: hidden cubes covered, visible strokes dimmed, panels in their places."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from videomaskfeat.errors import UserError
from videomaskfeat.viz.pictures import (
    VISIBLE_STRENGTH,
    ClipDrawing,
    color_strokes,
    draw_film,
    draw_picture,
    hidden_error,
    hide_cubes,
    stretch_mask,
    write_film,
    write_picture,
)
from videomaskfeat.viz.sheet import Label, Sheet


@pytest.fixture
def drawing() -> ClipDrawing:
    rng = np.random.default_rng(0)
    mask = np.zeros((4, 2, 2), dtype=bool)
    mask[1, 0, 1] = mask[2, 1, 0] = True
    target = rng.random((4, 2, 2, 108), dtype=np.float32)
    return ClipDrawing(
        title="clip $1_a$ <b>",
        frames=rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8),
        mask=mask,
        target=target,
        prediction=target + 0.5,
        constant=target.mean(axis=(0, 1, 2)),
    )


def test_hidden_cubes_are_chequered_and_the_rest_untouched(drawing: ClipDrawing) -> None:
    covered = hide_cubes(drawing.frames, drawing.mask, square=4)
    expected = drawing.frames.copy()
    for frame in (2, 3):
        for y in range(0, 16):
            for x in range(16, 32):
                expected[frame, y, x] = (42, 46, 60) if (y // 4 + x // 4) % 2 == 0 else (62, 67, 84)
    for frame in (4, 5):
        for y in range(16, 32):
            for x in range(0, 16):
                expected[frame, y, x] = (42, 46, 60) if (y // 4 + x // 4) % 2 == 0 else (62, 67, 84)
    np.testing.assert_array_equal(covered, expected)


def test_stretched_mask_repeats_its_cells() -> None:
    mask = np.array([[[True, False]], [[False, False]]])
    stretched = stretch_mask(mask, (4, 3, 6))
    assert stretched.sum() == 2 * 3 * 3
    assert stretched[:2, :, :3].all()


def test_visible_strokes_are_dimmed_and_hidden_ones_full() -> None:
    strokes = np.full((1, 1, 2), 255, dtype=np.uint8)
    hidden = np.array([[[True, False]]])
    colored = color_strokes(strokes, hidden, (250, 200, 100))
    assert tuple(colored[0, 0, 0]) == (250, 200, 100)
    dark = np.array([9, 10, 14])
    expected = dark + VISIBLE_STRENGTH * (np.array([250, 200, 100]) - dark)
    np.testing.assert_allclose(colored[0, 0, 1], expected, atol=0.5)  # rounded to whole levels


def test_hidden_error_counts_hidden_positions_only(drawing: ClipDrawing) -> None:
    prediction = drawing.target + 100
    prediction[1, 0, 1] = drawing.target[1, 0, 1] + 0.5
    prediction[2, 1, 0] = drawing.target[2, 1, 0] - 0.1
    error = hidden_error(drawing, prediction)
    assert error == pytest.approx((0.25 + 0.01) / 2, rel=1e-5)  # float32 inputs
    assert np.isnan(hidden_error(replace(drawing, mask=np.zeros_like(drawing.mask)), prediction))


def test_picture_holds_its_panels_pixel_by_pixel(drawing: ClipDrawing) -> None:
    picture = draw_picture(drawing, cell_pixels=8)  # panels of 32 pixels: the frames at their own size
    assert picture.dtype == np.uint8
    covered = hide_cubes(drawing.frames, drawing.mask, square=4)
    for column, frame in enumerate((0, 2, 4, 6)):  # the first frame of each cube of two
        left = 150 + column * 40
        np.testing.assert_array_equal(picture[76:108, left : left + 32], drawing.frames[frame])
        np.testing.assert_array_equal(picture[116:148, left : left + 32], covered[frame])


def test_film_shows_every_frame_and_has_even_sides(drawing: ClipDrawing) -> None:
    film = list(draw_film(drawing, cell_pixels=8))
    assert len(film) == 8
    assert film[0].shape[0] % 2 == film[0].shape[1] % 2 == 0
    for frame, picture in enumerate(film):
        np.testing.assert_array_equal(picture[84:116, 8:40], drawing.frames[frame])


def test_written_files_can_be_read(drawing: ClipDrawing, tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", drawing, columns=2)
    write_film(tmp_path / "a.mp4", drawing)
    assert cv2.imread(str(tmp_path / "a.png")).shape == (*draw_picture(drawing, columns=2).shape[:2], 3)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 8


def test_parts_that_do_not_fit_are_named(drawing: ClipDrawing) -> None:
    with pytest.raises(UserError, match="a mask of 3x2x2 does not divide a clip of 8x32x32"):
        replace(drawing, mask=np.zeros((3, 2, 2), dtype=bool))
    with pytest.raises(UserError, match="a prediction of 4x2x2x27 for a target of 4x2x2x108"):
        replace(drawing, prediction=np.zeros((4, 2, 2, 27), dtype=np.float32))
    with pytest.raises(UserError, match="7 frame labels for 8 frames"):
        replace(drawing, frame_labels=("0",) * 7)


@pytest.mark.parametrize("width", [57, 115, 229, 1131])  # of these, width / 100 * 100 falls short in floats
def test_sheet_is_as_large_as_asked(width: int) -> None:
    assert Sheet(width + 1, width, []).pixels.shape == (width + 1, width, 3)


def test_long_text_is_cut_to_its_width() -> None:
    sheet = Sheet(40, 300, [Label(10, 25, "a very long title " * 10, width=200)])
    lit = (sheet.pixels != sheet.pixels[0, 0]).any(axis=(0, 2))
    assert lit[10:200].any()
    assert not lit[215:].any()
