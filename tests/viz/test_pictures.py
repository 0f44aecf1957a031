"""Pictures: strokes along edges, hidden cubes, positions of panels, colors of tokens."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

from videomaskfeat.errors import UserError
from videomaskfeat.targets.hog import HogTarget
from videomaskfeat.viz.pictures import (
    VISIBLE_STRENGTH,
    ClipDrawing,
    cell_histograms,
    color_strokes,
    draw_film,
    draw_picture,
    draw_reconstructions,
    draw_strokes,
    hidden_error,
    hide_cubes,
    stretch_mask,
    stroke_templates,
    token_colors,
    write_film,
    write_picture,
    write_reconstructions,
)


def stroke_angle(picture: np.ndarray) -> float:
    """Degrees, counter-clockwise from the horizontal as seen, of the brightest direction: by its moments."""
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]] - (np.array(picture.shape)[:, None, None] - 1) / 2
    weight = picture.astype(np.float64) ** 4
    up = -y
    return (
        math.degrees(0.5 * math.atan2(2 * (weight * x * up).sum(), (weight * (x * x - up * up)).sum())) % 180
    )


def edge_clip(degrees: float, size: int = 32) -> torch.Tensor:
    """float [1, 3, 2, size, size] with one straight edge through the middle at this angle as seen."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    angle = math.radians(degrees)
    side = x * math.sin(angle) + y * math.cos(angle)  # signed distance to the line, y down
    frame = cv2.GaussianBlur((side > 0).astype(np.float32), (0, 0), 1.5)
    return torch.from_numpy(np.broadcast_to(frame, (1, 3, 2, size, size)).copy())


@pytest.mark.parametrize("degrees", [30, 45, 50, 70, 90, 110, 130, 135, 150, 170])
def test_strokes_of_an_edge_run_along_it(degrees: float) -> None:
    clip = edge_clip(degrees)
    picture = draw_strokes(HogTarget()(clip)[0].numpy(), cell_pixels=24)[0]
    cells = clip[0, 0, 0].unfold(0, 8, 8).unfold(1, 8, 8).flatten(2)  # [4, 4, 64] pixels of each cell
    row, column = divmod(int(cells.std(dim=2).argmax()), 4)  # the cell that the edge divides best
    cell = picture[row * 24 : row * 24 + 24, column * 24 : column * 24 + 24]
    off = (stroke_angle(cell) - degrees + 90) % 180 - 90
    assert abs(off) <= 11  # a bin is 20 degrees wide and drawn at its middle; 1 for the pixels


def test_vertical_edge_is_one_upright_stroke() -> None:
    values = HogTarget()(edge_clip(90))[0].numpy()
    cell = draw_strokes(values, cell_pixels=24)[0][24:48, 24:48]
    assert (cell[:, :9] == 0).all()
    assert (cell[:, -9:] == 0).all()
    assert (cell[3:-3, 11:13] > 240).all()


@pytest.mark.parametrize("bin_index", range(9))
def test_template_is_at_the_middle_of_its_bin(bin_index: int) -> None:
    assert stroke_angle(stroke_templates(9, 33)[bin_index]) == pytest.approx(20 * bin_index + 10, abs=0.5)


def test_histograms_split_k_into_channel_bin_cell() -> None:
    values = np.zeros((1, 2, 3, 3, 9, 2, 2), dtype=np.float32)
    values[0, 1, 2, :, 5, 0, 1] = 0.75  # lower right position, bin 5, its upper right cell
    values[0, 0, 0, 0, 1, 1, 0] = 0.9  # one channel of three
    values[0, 0, 0, 1, 1, 1, 0] = -5.0  # clipped before the average
    histograms = cell_histograms(values.reshape(1, 2, 3, 108))
    expected = np.zeros((1, 9, 4, 6), dtype=np.float32)
    expected[0, 5, 2, 5] = 0.75
    expected[0, 1, 1, 0] = 0.3
    np.testing.assert_allclose(histograms, expected, atol=1e-7)  # one rounding of float32


def test_strokes_that_cross_add_up_to_the_norm() -> None:
    values = np.full(
        (1, 1, 1, 27), 1 / 3, dtype=np.float32
    )  # nine equal bins of norm 1, one cell per position
    picture = draw_strokes(values, cell_pixels=17)[0]
    assert picture[8, 8] == 255
    assert picture.mean() < 100


def test_values_that_are_not_hog_are_refused() -> None:
    with pytest.raises(UserError, match=r"768 values per token are not HOG, which has 3 channels x 9 bins"):
        draw_strokes(np.zeros((1, 1, 1, 768), dtype=np.float32))


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


def test_hidden_cubes_are_checkered_and_the_rest_is_unchanged(drawing: ClipDrawing) -> None:
    covered = hide_cubes(drawing.frames, drawing.mask, square=4)
    expected = drawing.frames.copy()
    for frame, top, left in ((2, 0, 16), (3, 0, 16), (4, 16, 0), (5, 16, 0)):
        for y in range(top, top + 16):
            for x in range(left, left + 16):
                expected[frame, y, x] = (42, 46, 60) if (y // 4 + x // 4) % 2 == 0 else (62, 67, 84)
    np.testing.assert_array_equal(covered, expected)


def test_stretched_mask_repeats_its_cells() -> None:
    mask = np.array([[[True, False]], [[False, False]]])
    stretched = stretch_mask(mask, (4, 3, 6))
    assert stretched.sum() == 2 * 3 * 3
    assert stretched[:2, :, :3].all()


def test_visible_strokes_are_dim_and_hidden_strokes_bright() -> None:
    strokes = np.full((1, 1, 2), 255, dtype=np.uint8)
    hidden = np.array([[[True, False]]])
    colored = color_strokes(strokes, hidden, (250, 200, 100))
    assert tuple(colored[0, 0, 0]) == (250, 200, 100)
    dark = np.array([9, 10, 14])
    expected = dark + VISIBLE_STRENGTH * (np.array([250, 200, 100]) - dark)
    np.testing.assert_allclose(colored[0, 0, 1], expected, atol=0.5)  # rounded to whole levels


def test_hidden_error_is_over_hidden_positions_only(drawing: ClipDrawing) -> None:
    prediction = drawing.target + 100
    prediction[1, 0, 1] = drawing.target[1, 0, 1] + 0.5
    prediction[2, 1, 0] = drawing.target[2, 1, 0] - 0.1
    error = hidden_error(drawing, prediction)
    assert error == pytest.approx((0.25 + 0.01) / 2, rel=1e-5)  # float32 inputs
    assert np.isnan(hidden_error(replace(drawing, mask=np.zeros_like(drawing.mask)), prediction))


def test_picture_contains_its_panels_pixel_by_pixel(drawing: ClipDrawing) -> None:
    picture = draw_picture(drawing, cell_pixels=8)  # panels of 32 pixels: the frames at their own size
    assert picture.dtype == np.uint8
    covered = hide_cubes(drawing.frames, drawing.mask, square=4)
    for column, frame in enumerate((0, 2, 4, 6)):  # the first frame of each cube of two
        left = 150 + column * 40
        np.testing.assert_array_equal(picture[76:108, left : left + 32], drawing.frames[frame])
        np.testing.assert_array_equal(picture[116:148, left : left + 32], covered[frame])


def test_film_has_every_frame_and_even_sides(drawing: ClipDrawing) -> None:
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


def test_shapes_that_do_not_fit_are_refused(drawing: ClipDrawing) -> None:
    with pytest.raises(UserError, match="a mask of 3x2x2 does not divide a clip of 8x32x32"):
        replace(drawing, mask=np.zeros((3, 2, 2), dtype=bool))
    with pytest.raises(UserError, match="a prediction of 4x2x2x27 for a target of 4x2x2x108"):
        replace(drawing, prediction=np.zeros((4, 2, 2, 27), dtype=np.float32))
    with pytest.raises(UserError, match="7 frame labels for 8 frames"):
        replace(drawing, frame_labels=("0",) * 7)


def test_equal_tokens_have_equal_colors_and_others_others() -> None:
    colors = token_colors(np.arange(256))
    assert colors.shape == (256, 3)
    assert len(np.unique(colors, axis=0)) > 250
    np.testing.assert_array_equal(token_colors(np.array([[7, 9]])), colors[[7, 9]][None])


def test_reconstructions_contain_their_pixels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames, decoded = rng.integers(0, 256, (2, 3, 160, 160, 3), dtype=np.uint8)
    tokens = np.arange(12).reshape(3, 2, 2)
    picture = draw_reconstructions(frames=frames, reconstructions=decoded, tokens=tokens)
    for number in range(3):
        left = 170 + number * 168
        np.testing.assert_array_equal(picture[16:176, left : left + 160], frames[number])
        np.testing.assert_array_equal(picture[352:512, left : left + 160], decoded[number])
        np.testing.assert_array_equal(picture[184, left], token_colors(tokens[number, 0, 0]))
        np.testing.assert_array_equal(picture[343, left + 159], token_colors(tokens[number, 1, 1]))
    path = tmp_path / "pictures" / "x.png"
    write_reconstructions(path, frames=frames, reconstructions=decoded, tokens=tokens)
    written = cv2.imread(str(path))
    assert written is not None
    np.testing.assert_array_equal(written[..., ::-1], picture)
