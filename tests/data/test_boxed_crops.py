"""Crops that keep boxes: against pixel counting, and when draws run out."""

from __future__ import annotations

import numpy as np
import pytest

from videomaskfeat.data.transforms import (
    ClipGeometry,
    ClipTransform,
    RandomResizedCrop,
    Rectangle,
    ShortSideJitterCrop,
    UniformCrop,
    border_boxes,
    boxes_in_pixels,
    crop_with_boxes,
    visible_boxes,
)

WHOLE = ClipGeometry(Rectangle(0, 0, 100, 200), (100, 200), Rectangle(0, 0, 100, 200))


def test_shares_become_pixels_of_each_axis() -> None:
    boxes = boxes_in_pixels(np.array([[0.25, 0.5, 0.75, 1.0]], np.float32), 100, 200)
    assert boxes.dtype == np.float64
    assert boxes.tolist() == [[50, 50, 150, 100]]


@pytest.mark.parametrize("visible", [0.0, 0.3, 0.7, 1.0])
def test_share_of_a_box_is_what_its_pixels_say(visible: float) -> None:
    """Whole-pixel boxes and crops without resizing: the pixels of each are counted one by one."""
    rng = np.random.default_rng(0)
    kept = 0
    for _ in range(100):
        cut = Rectangle(int(rng.integers(40)), int(rng.integers(80)), 60, 120)
        geometry = ClipGeometry(cut, (60, 120), Rectangle(0, 0, 60, 120), bool(rng.integers(2)))
        low = rng.integers(0, (180, 80), (4, 2))
        boxes = np.concatenate([low, low + rng.integers(1, 20, (4, 2))], axis=1).astype(float)
        expected = {}
        for row, (left, top, right, bottom) in enumerate(boxes.astype(int)):
            picture = np.zeros((1, 100, 200, 3), np.uint8)
            picture[:, top:bottom, left:right] = 255
            rows, columns = np.nonzero(geometry.apply_clip(picture)[0, :, :, 0])
            share = len(rows) / (picture > 0).sum() * 3
            if share > visible or share == 1:
                expected[row] = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        found, rows = visible_boxes(geometry, boxes, visible=visible)
        assert rows.tolist() == list(expected)
        assert found.tolist() == list(expected.values())
        kept += len(rows)
    assert 50 < kept < 390  # all four kinds of share occur


def test_sliver_of_a_box_goes_and_a_small_whole_box_stays() -> None:
    geometry = ClipGeometry(Rectangle(0, 0, 100, 100), (50, 50), Rectangle(0, 0, 50, 50))
    boxes = np.array([[99.0, 10, 150, 50], [20, 20, 21, 21], [98, 10, 150, 50]])
    found, rows = visible_boxes(geometry, boxes)
    assert rows.tolist() == [1, 2]  # half a pixel of the clip is left of the first; the second is that small
    assert found.tolist() == [[10, 10, 10.5, 10.5], [49, 5, 50, 25]]


def test_boxes_outside_become_a_pixel_at_the_border() -> None:
    geometry = ClipGeometry(Rectangle(0, 50, 100, 100), (100, 100), Rectangle(0, 0, 100, 100))
    boxes = np.array([[0.0, 10, 40, 50], [170, 10, 200, 99.8], [60, 20, 180, 30], [149.7, 0, 160, 0.2]])
    assert border_boxes(geometry, boxes).tolist() == [
        [0, 10, 1, 50],
        [99, 10, 100, 99.8],
        [10, 20, 100, 30],
        [99, 0, 100, 1],
    ]


TRANSFORMS: list[ClipTransform] = [
    RandomResizedCrop(32, area=(0.02, 0.05)),
    ShortSideJitterCrop(32, (100, 160)),
    UniformCrop(32, 64),
]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("tries", [1, 10])
def test_every_crop_shows_a_box(transform: ClipTransform, tries: int) -> None:
    """Crops so small that draws run out, and one that is always in the middle."""
    rng = np.random.default_rng(0)
    moved = 0
    for _ in range(200):
        low = rng.uniform(0, (180, 85), (2, 2))
        boxes = np.concatenate([low, low + rng.uniform(4, 15, (2, 2))], axis=1)
        same = np.random.default_rng(1)
        geometry = crop_with_boxes(
            transform, boxes, height=100, width=200, rng=np.random.default_rng(1), tries=tries
        )
        first = transform.sample(100, 200, same)
        if len(visible_boxes(first, boxes)[1]):
            assert geometry == first  # nothing is drawn again without need
        elif tries == 1:
            moved += 1
            shown, _ = visible_boxes(geometry, boxes, visible=1.0 if transform is not TRANSFORMS[0] else 0.0)
            assert len(shown)  # moved until the whole box is in, where it fits
        assert len(visible_boxes(geometry, boxes)[1])
        assert geometry.size == (32, 32)
        cut = geometry.source
        assert 0 <= cut.top <= cut.top + cut.height <= 100
        assert 0 <= cut.left <= cut.left + cut.width <= 200
    assert moved > 20 or tries > 1


def test_crop_smaller_than_every_box_shows_the_middle_of_one() -> None:
    transform = RandomResizedCrop(16, area=(0.01, 0.01), aspect=(1.0, 1.0), flip=0.0)
    boxes = np.array([[120.0, 20, 180, 80]])
    rng = np.random.default_rng(0)
    geometry = crop_with_boxes(transform, boxes, height=100, width=200, rng=rng, visible=1.0)
    cut = geometry.source
    assert abs(cut.left + cut.width / 2 - 150) <= 0.5
    assert abs(cut.top + cut.height / 2 - 50) <= 0.5
