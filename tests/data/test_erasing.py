"""Random erasing: where the box lies, how large it is, what fills it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from videomaskfeat.data.augment import RandomErasing
from videomaskfeat.errors import UserError


def erased(erasing: RandomErasing, *, size: tuple[int, int] = (64, 96), seed: int = 0) -> np.ndarray:
    """A clip of 3 in int, which no noise holds: -1 where it was not erased, int [4, H, W, 3]."""
    clip = np.zeros((4, *size, 3), np.uint8)
    other = np.full_like(clip, 255)
    erasing.apply(clip, np.random.default_rng(seed))
    erasing.apply(other, np.random.default_rng(seed))
    return np.where(clip == other, clip.astype(int), -1)


def test_one_box_in_all_frames_and_nothing_else_changes() -> None:
    erasing = RandomErasing(probability=1.0)
    boxes = set()
    for seed in range(30):
        noise = erased(erasing, seed=seed)
        touched = noise >= 0
        assert (touched == touched[:1, :, :, :1]).all()  # in all frames and channels alike
        rows, columns = touched[0, :, :, 0].any(1).nonzero()[0], touched[0, :, :, 0].any(0).nonzero()[0]
        inside = touched[0, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert inside.all()
        assert touched.sum() == 4 * inside.size
        boxes.add((rows[0], columns[0]))
    assert len(boxes) > 20


def test_noise_is_what_rounded_and_clipped_normal_floats_are() -> None:
    erasing = RandomErasing(probability=1.0, area=(0.3, 0.33))
    noise = np.concatenate([values[values >= 0] for values in (erased(erasing, seed=s) for s in range(20))])
    slow = 255 * (0.45 + 0.225 * np.random.default_rng(9).standard_normal(len(noise)))
    slow = np.clip(np.round(slow), 0, 255)
    # Two samples of n: their distributions are never 2 sqrt(2 / n) apart, but once in 1500.
    ours, theirs = (np.bincount(sample.astype(int), minlength=256).cumsum() for sample in (noise, slow))
    assert np.abs(ours - theirs).max() / len(noise) < 2 * math.sqrt(2 / len(noise))
    # Ends: -2 and 2.44 standard deviations.
    assert (noise == 0).mean() == pytest.approx(0.0232, abs=0.002)
    assert (noise == 255).mean() == pytest.approx(0.0073, abs=0.001)


def test_each_pixel_channel_and_frame_has_noise_of_its_own() -> None:
    noise = erased(RandomErasing(probability=1.0, area=(0.3, 0.33)), size=(128, 128), seed=3)
    box = noise[noise >= 0].reshape(4, -1, 3).astype(float)  # [T, pixels, C]
    assert box.shape[1] > 4000
    channels = np.corrcoef(box.transpose(0, 2, 1).reshape(12, -1))
    assert np.abs(channels - np.eye(12)).max() < 0.08  # five standard errors of 4000
    assert abs(np.corrcoef(box[0, 1:, 0], box[0, :-1, 0])[0, 1]) < 0.08


def test_noise_follows_mean_and_spread_of_the_normalisation() -> None:
    erasing = RandomErasing(probability=1.0, area=(0.3, 0.33), mean=0.5, std=0.1)
    noise = erased(erasing, size=(128, 128))
    values = noise[noise >= 0]
    assert values.mean() == pytest.approx(127.5, abs=0.6)  # five standard errors of 50000
    assert values.std() == pytest.approx(25.5, abs=0.45)


def test_each_channel_may_have_its_own_normalisation() -> None:
    erasing = RandomErasing(probability=1.0, area=(0.3, 0.33), mean=[0.3, 0.5, 0.6], std=(0.1, 0.05, 0.08))
    noise = erased(erasing, size=(128, 128))
    box = noise[noise >= 0].reshape(-1, 3)
    # Five standard errors of 17000 a channel.
    assert box.mean(0) == pytest.approx([76.5, 127.5, 153.0], abs=1)
    assert box.std(0) == pytest.approx([25.5, 12.75, 20.4], abs=0.7)


def test_areas_are_even_and_aspects_even_in_logarithm() -> None:
    erasing, rng = RandomErasing(probability=1.0), np.random.default_rng(0)
    boxes = [erasing.draw(224, 224, rng) for _ in range(4000)]
    sides = np.array([(box.height, box.width) for box in boxes if box is not None])
    assert len(sides) == 4000
    areas = sides.prod(1) / 224**2
    # Quantiles of 4000 even draws over 0.31: five standard errors are 0.0125; whole pixels add less.
    expected = 0.02 + np.array([0.1, 0.5, 0.9]) * (1 / 3 - 0.02)
    assert np.quantile(areas, [0.1, 0.5, 0.9]) == pytest.approx(expected, abs=0.015)
    # Where no box is too long for the picture (area below 0.3), height / width is log-uniform.
    aspects = np.log(sides[areas < 0.25, 0] / sides[areas < 0.25, 1]) / math.log(1 / 0.3)
    assert np.quantile(aspects, [0.1, 0.5, 0.9]) == pytest.approx([-0.8, 0.0, 0.8], abs=0.1)
    assert sides.max() < 224


def test_aspect_is_height_over_width() -> None:
    box = RandomErasing(probability=1.0, aspect=(2.0, 2.0)).draw(224, 224, np.random.default_rng(0))
    assert box is not None
    assert box.height / box.width == pytest.approx(2.0, abs=0.05)


def test_places_reach_both_borders() -> None:
    erasing, rng = RandomErasing(probability=1.0), np.random.default_rng(0)
    boxes = [box for box in (erasing.draw(20, 30, rng) for _ in range(2000)) if box is not None]
    assert min(box.top for box in boxes) == min(box.left for box in boxes) == 0
    assert max(box.top + box.height for box in boxes) == 20
    assert max(box.left + box.width for box in boxes) == 30


def test_clips_are_erased_as_often_as_asked() -> None:
    erasing, rng = RandomErasing(probability=0.25), np.random.default_rng(0)
    count = 0
    for _ in range(2000):
        clip = np.zeros((1, 8, 8, 3), np.uint8)
        erasing.apply(clip, rng)
        count += bool(clip.any())
    assert count / 2000 == pytest.approx(0.25, abs=0.05)  # five standard errors
    untouched = np.zeros((1, 8, 8, 3), np.uint8)
    RandomErasing(probability=0.0).apply(untouched, rng)
    assert not untouched.any()


def test_a_box_that_never_fits_is_left_out() -> None:
    erasing = RandomErasing(probability=1.0, area=(1.0, 1.0), aspect=(1.0, 1.0))
    assert erasing.draw(16, 16, np.random.default_rng(0)) is None
    clip = np.zeros((2, 16, 16, 3), np.uint8)
    erasing.apply(clip, np.random.default_rng(0))
    assert not clip.any()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"probability": 1.2}, r"erasing probability=1.2: a chance lies in 0\.\.1"),
        ({"area": (0.5, 0.2)}, r"erasing area=\(0.5, 0.2\): must be two shares with 0 < low <= high <= 1"),
        ({"area": (0.0, 0.2)}, r"erasing area=\(0.0, 0.2\)"),
        ({"aspect": (0.0, 1.0)}, r"erasing aspect=\(0.0, 1.0\): must be two ratios with 0 < low <= high"),
        ({"std": 0.0}, "erasing mean=0.45, std=0.0: each must be one number, or one for each of 3 channels"),
        ({"std": math.inf}, "erasing mean=0.45, std=inf: each must be one number"),
        ({"mean": [0.4, 0.5]}, r"erasing mean=\[0.4, 0.5\], std=0.225: each must be one number"),
        ({"mean": math.nan}, "erasing mean=nan, std=0.225: each must be one number"),
    ],
)
def test_values_out_of_range_are_named(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        RandomErasing(**{"probability": 0.25, **wrong})
