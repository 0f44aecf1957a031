"""Strokes: the angle of an edge in a frame is the angle of its stroke in the picture."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch

from videomaskfeat.errors import UserError
from videomaskfeat.targets.hog import HogTarget
from videomaskfeat.viz.pictures import cell_histograms, draw_strokes, stroke_templates


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
def test_template_lies_at_the_middle_of_its_bin(bin_index: int) -> None:
    assert stroke_angle(stroke_templates(9, 33)[bin_index]) == pytest.approx(20 * bin_index + 10, abs=0.5)


def test_histograms_take_k_apart_as_channel_bin_cell() -> None:
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
    values = np.full((1, 1, 1, 27), 1 / 3, dtype=np.float32)  # nine equal bins of norm 1, one cell a position
    picture = draw_strokes(values, cell_pixels=17)[0]
    assert picture[8, 8] == 255
    assert picture.mean() < 100


def test_values_that_are_not_hog_are_refused() -> None:
    with pytest.raises(UserError, match=r"768 values a token cannot be drawn as HOG.*3 channels x 9 bins"):
        draw_strokes(np.zeros((1, 1, 1, 768), dtype=np.float32))
