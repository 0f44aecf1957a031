"""Colour jitter: factors as often as they should come, and what they do to known pictures."""

from __future__ import annotations

import functools
from collections import Counter

import numpy as np
import pytest

from tests.data.pictures import smooth_frames, still_clip
from videomaskfeat.data import operations
from videomaskfeat.data.operations import ColourJitter
from videomaskfeat.errors import UserError


def factors(jitter: ColourJitter, frames: np.ndarray, draws: int) -> np.ndarray:
    """How many times as large each draw makes the spread about the mean (contrast) or zero (brightness)."""
    rng = np.random.default_rng(0)
    pixels = frames.astype(float).ravel()
    results = [jitter.apply(frames, rng).astype(float).ravel() for _ in range(draws)]
    return np.array([np.polyfit(pixels, result, 1)[0] for result in results])


@pytest.mark.parametrize("change", ["brightness", "contrast"])
def test_factors_are_even_about_one(change: str) -> None:
    # Grey from 40 to 120: nothing is cut at the ends of the range by a factor of 1.4.
    grey = np.linspace(40, 120, 300).astype(np.uint8).reshape(1, 15, 20, 1).repeat(3, axis=3)
    jitter = ColourJitter(**{"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, change: 0.4})
    found = factors(jitter, grey, 1500)
    quantiles = np.quantile(found, [0.0, 0.25, 0.5, 0.75, 1.0])
    # Five standard errors of the median of 1500 over 0.8 are 0.05.
    assert quantiles == pytest.approx([0.6, 0.8, 1.0, 1.2, 1.4], abs=0.05)


def test_contrast_keeps_each_frames_own_mean() -> None:
    frames = np.stack([np.full((20, 30, 3), 60, np.uint8), np.full((20, 30, 3), 180, np.uint8)])
    frames[:, ::2] += 20
    jitter = ColourJitter(brightness=0.0, contrast=0.5, saturation=0.0)
    rng = np.random.default_rng(0)
    for _ in range(20):
        means = jitter.apply(frames, rng).mean((1, 2, 3))
        assert means == pytest.approx([70, 190], abs=1)  # the fraction is cut off


def test_saturation_scales_the_distance_to_grey() -> None:
    frames = np.zeros((1, 4, 4, 3), np.uint8) + np.array([120, 100, 60], np.uint8)
    grey = 0.299 * 120 + 0.587 * 100 + 0.114 * 60
    jitter = ColourJitter(brightness=0.0, contrast=0.0, saturation=1.0)
    rng = np.random.default_rng(0)
    found = []
    for _ in range(300):
        pixel = jitter.apply(frames, rng)[0, 0, 0].astype(float)
        distance = pixel - grey
        factor = distance[2] / (60 - grey)
        # A fraction is cut off, 0.42 of the grey is rounded off, and both tell on the factor, halved.
        assert distance == pytest.approx(factor * (np.array([120, 100, 60]) - grey), abs=2)
        found.append(factor)
    assert np.quantile(found, [0.0, 0.5, 1.0]) == pytest.approx([0, 1, 2], abs=0.2)


def test_the_changes_come_in_every_order(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def recorded(name: str, frames: np.ndarray, factor: float) -> np.ndarray:
        order.append(name)
        return frames

    monkeypatch.setattr(
        operations, "_CHANGES", {name: functools.partial(recorded, name) for name in operations._CHANGES}
    )
    jitter = ColourJitter(brightness=0.1, contrast=0.2, saturation=0.3)
    rng = np.random.default_rng(0)
    orders: Counter[tuple[str, ...]] = Counter()
    for _ in range(1200):
        order.clear()
        jitter.apply(still_clip(1, 4, 4), rng)
        orders[tuple(order)] += 1
    assert len(orders) == 6
    assert max(orders.values()) < 265  # 200 and five standard errors
    assert min(orders.values()) > 135


def test_a_still_clip_stays_still_and_the_frames_are_left() -> None:
    clip = still_clip()
    before = clip.copy()
    jitter, rng = ColourJitter(brightness=0.4, contrast=0.4, saturation=0.4), np.random.default_rng(0)
    for _ in range(10):
        result = jitter.apply(clip, rng)
        assert (result == result[0]).all()
        assert not np.array_equal(result, clip)
        assert np.array_equal(clip, before)


def test_the_generator_alone_decides() -> None:
    jitter = ColourJitter(brightness=0.4, contrast=0.4, saturation=0.4)
    one, other, third = (jitter.apply(smooth_frames(), np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, other)
    assert not np.array_equal(one, third)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_shares_out_of_range_are_named(share: float) -> None:
    with pytest.raises(UserError, match=f"contrast={share}: the greatest change is a share, 0 to 1"):
        ColourJitter(brightness=0.4, contrast=share, saturation=0.0)
