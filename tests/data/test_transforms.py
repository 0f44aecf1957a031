"""Crops, resizes and flips: PySlowFast's crops, slow versions, and boxes that follow the pixels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from videomaskfeat.data.box_transforms import border_boxes, boxes_in_pixels, crop_with_boxes, visible_boxes
from videomaskfeat.data.transforms import (
    ClipGeometry,
    ClipTransform,
    RandomResizedCrop,
    Rectangle,
    ShortSideJitterCrop,
    UniformCrop,
    WholeFrame,
    clip_boxes,
    uniform_crop_corner,
)
from videomaskfeat.errors import UserError

TRANSFORMS: list[ClipTransform] = [
    RandomResizedCrop(96),
    RandomResizedCrop(64, area=(0.08, 1.0), flip=1.0),
    ShortSideJitterCrop(96, (100, 140)),
    ShortSideJitterCrop(96, (100, 140), inverse_uniform=True, flip=0.0),
    UniformCrop(96, 120, 0),
    UniformCrop(96, 96, 1),
    UniformCrop(96, 120, 2),
    WholeFrame(90),
    WholeFrame(100, multiple=32),
]
SIZES = [(120, 160), (241, 135), (90, 90), (97, 301)]


def test_uniform_crops_equal_the_reference(golden: Path) -> None:
    cases = json.loads((golden / "protocol.json").read_text(encoding="utf-8"))["uniform_crops"]
    for case in cases:
        corner = uniform_crop_corner(case["height"], case["width"], size=case["size"], crop=case["index"])
        assert corner == (case["top"], case["left"]), case


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_boxes_follow_the_pixels(transform: ClipTransform, size: tuple[int, int]) -> None:
    height, width = size
    rng = np.random.default_rng(3)
    for _ in range(20):
        box = np.array([[0.30 * width, 0.35 * height, 0.65 * width, 0.70 * height]]).round()
        left, top, right, bottom = box[0].astype(int)
        frames = np.zeros((1, height, width, 3), np.uint8)
        frames[:, top:bottom, left:right] = 255
        geometry = transform.sample(height, width, rng)
        clip = geometry.apply_clip(frames)
        x1, y1, x2, y2 = clip_boxes(geometry.apply_boxes(box), *geometry.size)[0]
        rows, columns = np.nonzero(clip[0, :, :, 0] >= 128)
        if not len(rows):  # the crop missed the object: then its box is outside too
            assert (x2 - x1) <= 1 or (y2 - y1) <= 1
            continue
        # The edge of a resized object is blurred over a pixel of the coarser of the two pictures.
        tolerance = max(1.0, 0.51 * geometry.resized[0] / geometry.source.height)
        extent = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert np.abs(extent - [x1, y1, x2, y2]).max() <= tolerance


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
def test_clip_matches_the_slow_float_version(transform: ClipTransform) -> None:
    rng = np.random.default_rng(4)
    frames = rng.integers(0, 256, (2, 130, 170, 3), dtype=np.uint8)
    for _ in range(5):
        geometry = transform.sample(130, 170, rng)
        cut, window = geometry.source, geometry.window
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
        pixels = pixels[:, :, cut.top : cut.top + cut.height, cut.left : cut.left + cut.width]
        pixels = torch.nn.functional.interpolate(pixels, geometry.resized, mode="bilinear")
        pixels = pixels[
            :, :, window.top : window.top + window.height, window.left : window.left + window.width
        ]
        if geometry.flip:
            pixels = pixels.flip(3)
        expected = pixels.permute(0, 2, 3, 1).numpy()
        # cv2 weighs in 11-bit fixed point and rounds once: within a level.
        assert np.abs(geometry.apply_clip(frames) - expected).max() <= 1.0


def test_source_frames_are_not_modified_or_shared() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)
    before = frames.copy()
    clip = UniformCrop(96, 96, 1).sample(96, 96).apply_clip(frames)
    assert (clip == frames).all()
    clip[:] = 0
    assert (frames == before).all()


def test_random_resized_crop_samples_areas_and_aspects() -> None:
    transform = RandomResizedCrop(224, area=(0.5, 1.0), aspect=(3 / 4, 4 / 3))
    rng = np.random.default_rng(0)
    cuts = [transform.sample(1000, 1000, rng).source for _ in range(2000)]
    areas = np.array([cut.height * cut.width for cut in cuts]) / 1e6
    aspects = np.array([cut.width / cut.height for cut in cuts])
    assert areas.min() > 0.499
    assert areas.max() < 1.0
    # Log-uniform, and cuts that do not fit are refused symmetrically: the median aspect is 1.
    assert abs(np.log(np.median(aspects))) < 0.02
    assert aspects.min() > 0.74
    assert aspects.max() < 1.35


def test_crop_that_never_fits_falls_back_to_the_largest_centered_one() -> None:
    # In a strip of 20 x 400 a cut of at least half the area is at least 10 times wider than high.
    geometry = RandomResizedCrop(32, area=(0.9, 1.0)).sample(20, 400, np.random.default_rng(0))
    assert (geometry.source.height, geometry.source.width) == (20, 27)
    assert geometry.source.left == (400 - 27) // 2
    geometry = RandomResizedCrop(32, area=(0.9, 1.0)).sample(400, 20, np.random.default_rng(0))
    assert (geometry.source.height, geometry.source.width) == (27, 20)


def test_inverse_uniform_favors_short_sides() -> None:
    # The mean of 1/uniform(1/b, 1/a) is ab/(b-a) ln(b/a): 138.6 on 100..200, where the uniform one is 150.
    def mean_short_side(inverse: bool) -> float:
        transform = ShortSideJitterCrop(100, (100, 200), inverse_uniform=inverse)
        rng = np.random.default_rng(0)
        cuts = [transform.sample(1000, 1000, rng).source for _ in range(3000)]
        return float(np.mean([100 * 1000 / cut.height for cut in cuts]))

    assert abs(mean_short_side(True) - 138.6) < 2
    assert abs(mean_short_side(False) - 150.0) < 2


def test_flip_probability_is_kept() -> None:
    rng = np.random.default_rng(0)
    for flip in (0.0, 1.0):
        transform = RandomResizedCrop(32, flip=flip)
        assert {transform.sample(64, 64, rng).flip for _ in range(50)} == {bool(flip)}
    flips = [RandomResizedCrop(32).sample(64, 64, rng).flip for _ in range(1000)]
    assert 440 < sum(flips) < 560  # four standard deviations of 15.8


def test_invalid_transforms_are_refused() -> None:
    with pytest.raises(UserError, match=r"short side \(100, 140\) must be .* neither below the crop 224"):
        ShortSideJitterCrop(224, (100, 140))
    with pytest.raises(UserError, match="short side 200 is smaller than the crop 224"):
        UniformCrop(224, 200)
    with pytest.raises(UserError, match=r"crop area \(0, 1\)"):
        RandomResizedCrop(224, area=(0, 1))
    with pytest.raises(UserError, match=r"flip 1.5 must be a probability"):
        RandomResizedCrop(224, flip=1.5)
    with pytest.raises(UserError, match="crop 3 is not 0"):
        UniformCrop(224, 224, 3)


def test_whole_frame_keeps_its_aspect_to_a_multiple() -> None:
    def size(transform: WholeFrame, height: int, width: int) -> tuple[int, int]:
        return transform.sample(height, width).size

    assert size(WholeFrame(224), 480, 854) == (224, 400)  # 398.5 -> 398, and 99.5 fours are 100
    assert size(WholeFrame(312), 854, 480) == (556, 312)  # 555.1
    assert size(WholeFrame(256), 360, 640) == (256, 456)  # 455.1
    assert size(WholeFrame(312, multiple=32), 480, 640) == (320, 416)  # 9.75 and 13 times 32
    assert size(WholeFrame(64), 64, 64) == (64, 64)
    for height, width in SIZES:
        rows, columns = size(WholeFrame(100), height, width)
        assert (rows % 4, columns % 4) == (0, 0)
        scale = 100 / min(height, width)
        assert abs(rows - scale * height) < 3  # half a multiple, and the pixel that the reference cuts off
        assert abs(columns - scale * width) < 3
    assert size(WholeFrame(64), 1600, 100) == (1024, 64)
    with pytest.raises(ValueError, match=r"frames of 100x1601; the long side .* at most 16 times"):
        size(WholeFrame(64), 1601, 100)
    with pytest.raises(UserError, match=r"short side 16 must be at least 32: both sides .* multiples of 32"):
        WholeFrame(16, multiple=32)


WHOLE_FRAME = ClipGeometry(Rectangle(0, 0, 100, 200), (100, 200), Rectangle(0, 0, 100, 200))


def test_fractions_are_converted_to_pixels() -> None:
    boxes = boxes_in_pixels(np.array([[0.25, 0.5, 0.75, 1.0]], np.float32), 100, 200)
    assert boxes.dtype == np.float64
    assert boxes.tolist() == [[50, 50, 150, 100]]


@pytest.mark.parametrize("visible", [0.0, 0.3, 0.7, 1.0])
def test_visible_fraction_matches_the_count_of_pixels(visible: float) -> None:
    """Whole-pixel boxes and crops without resizing: the pixels of each are counted one by one."""
    rng = np.random.default_rng(0)
    visible_count = 0
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
        clipped, rows = visible_boxes(geometry, boxes, visible=visible)
        assert rows.tolist() == list(expected)
        assert clipped.tolist() == list(expected.values())
        visible_count += len(rows)
    assert 50 < visible_count < 390  # all four kinds of share occur


def test_thin_rest_of_a_box_is_dropped_and_a_small_whole_box_is_kept() -> None:
    geometry = ClipGeometry(Rectangle(0, 0, 100, 100), (50, 50), Rectangle(0, 0, 50, 50))
    boxes = np.array([[99.0, 10, 150, 50], [20, 20, 21, 21], [98, 10, 150, 50]])
    clipped, rows = visible_boxes(geometry, boxes)
    assert rows.tolist() == [1, 2]  # half a pixel of the clip is left of the first; the second is that small
    assert clipped.tolist() == [[10, 10, 10.5, 10.5], [49, 5, 50, 25]]


def test_boxes_outside_become_a_pixel_at_the_border() -> None:
    geometry = ClipGeometry(Rectangle(0, 50, 100, 100), (100, 100), Rectangle(0, 0, 100, 100))
    boxes = np.array([[0.0, 10, 40, 50], [170, 10, 200, 99.8], [60, 20, 180, 30], [149.7, 0, 160, 0.2]])
    assert border_boxes(geometry, boxes).tolist() == [
        [0, 10, 1, 50],
        [99, 10, 100, 99.8],
        [10, 20, 100, 30],
        [99, 0, 100, 1],
    ]


CROPS: list[ClipTransform] = [
    RandomResizedCrop(32, area=(0.02, 0.05)),
    ShortSideJitterCrop(32, (100, 160)),
    UniformCrop(32, 64),
]


@pytest.mark.parametrize("transform", CROPS, ids=str)
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
            shown, _ = visible_boxes(geometry, boxes, visible=1.0 if transform is not CROPS[0] else 0.0)
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
