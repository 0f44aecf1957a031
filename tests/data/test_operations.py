"""Changes of color and shape against Pillow, and color jitter."""

from __future__ import annotations

import colorsys
import functools
from collections import Counter
from collections.abc import Callable

import cv2
import numpy as np
import pytest

from tests.data.pictures import noisy_frames, smooth_frames, still_clip
from tests.reference.randaugment import pillow_operation
from videomaskfeat.data import operations
from videomaskfeat.data.augment import OPERATIONS
from videomaskfeat.data.operations import ColorJitter
from videomaskfeat.errors import UserError

# Arguments as the recipes draw them, and the ends of what can be drawn.
FACTORS = (0.1, 0.37, 1.0, 1.63, 1.9)
EXACT: dict[str, tuple[float | None, ...]] = {
    "AutoContrast": (None,),
    "Equalize": (None,),
    "Invert": (None,),
    "Posterize": (1, 2, 4, 7, 8),
    "Solarize": (0, 77, 179, 256),
    "SolarizeAdd": (0, 77, 110),
    "Brightness": FACTORS,
    "Contrast": FACTORS,
}
MOVES = {
    "ShearX": (0.21, -0.21, 0.3, -0.013),
    "ShearY": (0.21, -0.21, 0.3, -0.013),
    "TranslateXRel": (0.315, -0.315, 0.45, -0.002, 0.7, -0.999),
    "TranslateYRel": (0.315, -0.315, 0.45, -0.002, 0.7, -0.999),
}


def ours(frames: np.ndarray, name: str, *arguments: object) -> np.ndarray:
    """Frames after one operation of ours."""
    return OPERATIONS[name].change(frames, *arguments)


def differences(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """How many levels pixels are apart, int [T, H, W, 3]."""
    return np.abs(one.astype(int) - other.astype(int))


@pytest.mark.parametrize("make", [noisy_frames, smooth_frames])
@pytest.mark.parametrize("name", EXACT)
def test_look_ups_equal_pillow(name: str, make: Callable[[], np.ndarray]) -> None:
    frames = make()
    for argument in EXACT[name]:
        arguments = () if argument is None else (argument,)
        assert np.array_equal(ours(frames, name, *arguments), pillow_operation(frames, name, argument))


def test_contrast_and_histogram_are_computed_per_frame_and_channel() -> None:
    frames = smooth_frames(3)
    frames[0, ..., 0] = 77  # a flat channel stays
    frames[1] //= 4
    frames[2, ..., 2] = np.where(frames[2, ..., 2] < 128, 10, 11)  # two levels
    for name in ("AutoContrast", "Equalize"):
        result = ours(frames, name)
        assert np.array_equal(result, pillow_operation(frames, name))
        assert (result[0, ..., 0] == 77).all()
    stretched = operations.auto_contrast(frames)
    assert stretched[1].min() == 0
    assert stretched[1].max() == 255


def test_equalize_does_not_change_pictures_with_few_pixels() -> None:
    frames = noisy_frames(1, 9, 11)  # a step of 99 pixels in 255 levels is below one pixel
    assert np.array_equal(operations.equalize(frames), frames)
    assert np.array_equal(pillow_operation(frames, "Equalize"), frames)


def test_posterize_to_0_bits_is_black() -> None:
    # The strongest posterize; older Pillow gave this, the present one refuses it.
    assert not operations.posterize(noisy_frames(), 0).any()


@pytest.mark.parametrize("name", ["Color", "Sharpness"])
@pytest.mark.parametrize("make", [noisy_frames, smooth_frames])
def test_blends_with_a_picture_are_within_a_level_of_pillow(
    name: str, make: Callable[[], np.ndarray]
) -> None:
    frames = make()
    for factor in FACTORS:
        apart = differences(ours(frames, name, factor), pillow_operation(frames, name, factor))
        # The sums differ by a 64th of a level where fractions are truncated, and in the rounding of grays.
        assert apart.max() <= 1
        assert (apart > 0).mean() < 0.03
    assert np.array_equal(ours(frames, name, 1.0), frames)


def test_gray_pixels_stay_gray_at_any_saturation() -> None:
    gray = np.repeat(noisy_frames()[..., :1], 3, axis=-1)
    for factor in FACTORS:
        assert np.array_equal(operations.saturation(gray, factor), gray)


def test_borders_keep_their_pixels_when_sharpened() -> None:
    frames = noisy_frames()
    changed = operations.sharpness(frames, 1.63)
    border = np.ones(frames.shape[1:3], bool)
    border[1:-1, 1:-1] = False
    assert np.array_equal(changed[:, border], frames[:, border])
    assert (changed[:, ~border] != frames[:, ~border]).mean() > 0.9


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("make", [noisy_frames, smooth_frames])
@pytest.mark.parametrize("name", MOVES)
def test_shears_and_shifts_are_within_a_level_of_pillow_to_the_border(
    name: str, make: Callable[[], np.ndarray], interpolation: str
) -> None:
    frames = make()
    for argument in MOVES[name]:
        moved = ours(frames, name, argument, interpolation)
        apart = differences(moved, pillow_operation(frames, name, argument, interpolation))
        # The sums differ in the order of floats, and by a 64th of a level where fractions are truncated.
        assert apart.max() <= 1
        assert (apart > 0).mean() < 0.06
    assert np.array_equal(ours(frames, name, 0.0, interpolation), frames)


def test_whole_pixels_move_without_change() -> None:
    frames = noisy_frames(1, 8, 10)
    moved = operations.translate_x(frames, 0.3, "bicubic")
    assert np.array_equal(moved[:, :, :7], frames[:, :, 3:])
    assert (moved[:, :, 7:] == 128).all()
    moved = operations.translate_y(frames, -0.25, "bilinear")
    assert np.array_equal(moved[:, 2:], frames[:, :6])
    assert (moved[:, :2] == 128).all()


@pytest.mark.parametrize("share", [1.0, 1.6, -1.6])
def test_a_shift_beyond_the_frame_leaves_the_fill(share: float) -> None:
    assert (operations.translate_x(noisy_frames(), share, "bicubic") == 128).all()
    assert (operations.translate_y(noisy_frames(), share, "bicubic") == 128).all()


@pytest.mark.parametrize("degrees", [21.0, -21.0, 30.0, 3.3, 0.0])
def test_rotations_are_near_pillow_away_from_the_border(degrees: float) -> None:
    frames = smooth_frames(2)
    inside = pillow_operation(np.full_like(frames, 255), "Rotate", degrees, "bilinear")[0, ..., 0] == 255
    # The turned border fades over two pixels.
    around = np.ones((7, 7), np.uint8)
    inside = cv2.erode(inside.astype(np.uint8), around, borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0
    assert inside.mean() > 0.4
    apart = differences(
        ours(frames, "Rotate", degrees, "bilinear"), pillow_operation(frames, "Rotate", degrees, "bilinear")
    )[:, inside]
    # Rounded where Pillow cuts off, and places to a 32nd of a pixel: at most 1/64 of what neighbors differ.
    # OpenCV before 5 also rounds the weights.
    assert apart.max() <= (1 if int(cv2.__version__.split(".")[0]) >= 5 else 2)
    apart = differences(
        ours(frames, "Rotate", degrees, "bicubic"), pillow_operation(frames, "Rotate", degrees, "bicubic")
    )[:, inside]
    # A softer kernel (a = -0.75, Pillow -1): 3 levels at most here, and half a level on average from the
    # rounding, which in Pillow cuts off.
    assert apart.max() <= 4
    assert apart.mean() < 0.75


def test_rotation_goes_counter_clockwise() -> None:
    frames = np.zeros((1, 101, 101, 3), np.uint8)
    frames[0, 50, 80:95] = 255  # a bar to the right of the center
    turned = operations.rotate(frames, 30.0, "bilinear")[0, ..., 0]
    rows, columns = np.nonzero((turned > 100) & (turned != 128))
    angle = np.degrees(np.arctan2(50 - rows.mean(), columns.mean() - 50))
    assert angle == pytest.approx(30, abs=1)


@pytest.mark.parametrize("name", OPERATIONS)
def test_frames_are_changed_alike_and_the_input_is_not_modified(name: str) -> None:
    clip = still_clip()
    before = clip.copy()
    operation = OPERATIONS[name]
    arguments: list[object] = [] if operation.argument is None else [operation.argument(0.7, 1, True)]
    if operation.resamples:
        arguments.append("bicubic")
    changed = operation.change(clip, *arguments)
    assert changed.shape == clip.shape
    assert changed.dtype == np.uint8
    assert np.array_equal(clip, before)
    assert not np.shares_memory(changed, clip)
    assert not np.array_equal(changed, clip)
    for frame in changed[1:]:
        assert np.array_equal(frame, changed[0])


def factors(jitter: ColorJitter, frames: np.ndarray, draws: int) -> np.ndarray:
    """How many times as large each draw makes the spread about the mean (contrast) or zero (brightness)."""
    rng = np.random.default_rng(0)
    pixels = frames.astype(float).ravel()
    results = [jitter.apply(frames, rng).astype(float).ravel() for _ in range(draws)]
    return np.array([np.polyfit(pixels, result, 1)[0] for result in results])


@pytest.mark.parametrize("change", ["brightness", "contrast"])
def test_factors_are_uniform_around_1(change: str) -> None:
    # Gray from 40 to 120: nothing is cut at the ends of the range by a factor of 1.4.
    gray = np.linspace(40, 120, 300).astype(np.uint8).reshape(1, 15, 20, 1).repeat(3, axis=3)
    jitter = ColorJitter(**{"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, change: 0.4})
    measured = factors(jitter, gray, 1500)
    quantiles = np.quantile(measured, [0.0, 0.25, 0.5, 0.75, 1.0])
    # Five standard errors of the median of 1500 over 0.8 are 0.05.
    assert quantiles == pytest.approx([0.6, 0.8, 1.0, 1.2, 1.4], abs=0.05)


def test_contrast_keeps_each_frames_own_mean() -> None:
    frames = np.stack([np.full((20, 30, 3), 60, np.uint8), np.full((20, 30, 3), 180, np.uint8)])
    frames[:, ::2] += 20
    jitter = ColorJitter(brightness=0.0, contrast=0.5, saturation=0.0)
    rng = np.random.default_rng(0)
    for _ in range(20):
        means = jitter.apply(frames, rng).mean((1, 2, 3))
        assert means == pytest.approx([70, 190], abs=1)  # the fraction is cut off


def test_saturation_scales_the_distance_to_gray() -> None:
    frames = np.zeros((1, 4, 4, 3), np.uint8) + np.array([120, 100, 60], np.uint8)
    gray = 0.299 * 120 + 0.587 * 100 + 0.114 * 60
    jitter = ColorJitter(brightness=0.0, contrast=0.0, saturation=1.0)
    rng = np.random.default_rng(0)
    measured = []
    for _ in range(300):
        pixel = jitter.apply(frames, rng)[0, 0, 0].astype(float)
        distance = pixel - gray
        factor = distance[2] / (60 - gray)
        # Truncation and the rounding of the gray (0.42) change the measured factor by half as much.
        assert distance == pytest.approx(factor * (np.array([120, 100, 60]) - gray), abs=2)
        measured.append(factor)
    assert np.quantile(measured, [0.0, 0.5, 1.0]) == pytest.approx([0, 1, 2], abs=0.2)


@pytest.mark.parametrize("turn", [-0.1, 0.0, 0.07, 0.5])
def test_hue_turns_the_color_circle(turn: float) -> None:
    """Against the standard library's conversion; within 1 level (rounding of float32 and to whole levels)."""
    frames = np.random.default_rng(0).integers(0, 256, (2, 6, 7, 3), dtype=np.uint8)
    frames[0, 0, :, :] = 90  # gray has no hue
    changed = operations.hue(frames, turn)
    for before, after in zip(frames.reshape(-1, 3) / 255, changed.reshape(-1, 3), strict=True):
        h, s, v = colorsys.rgb_to_hsv(*before)
        expected = 255 * np.array(colorsys.hsv_to_rgb((h + turn) % 1, s, v))
        assert after == pytest.approx(expected, abs=0.51)
    if turn == 0:
        assert np.array_equal(changed, frames)


def test_hue_of_the_jitter_is_uniform_on_both_sides() -> None:
    """Pure red turned by x of the circle has 6 |x| of green (x > 0) or of blue; x of 1000 draws, 5 sigma."""
    jitter = ColorJitter(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.1)
    red, rng = np.array([[[[255, 0, 0]]]], np.uint8), np.random.default_rng(0)
    pixels = np.array([jitter.apply(red, rng)[0, 0, 0] for _ in range(1000)]) / 255
    turns = (pixels[:, 1] - pixels[:, 2]) / 6
    assert np.quantile(turns, [0.0, 0.25, 0.5, 0.75, 1.0]) == pytest.approx(
        [-0.1, -0.05, 0, 0.05, 0.1], abs=0.016
    )
    with pytest.raises(UserError, match=r"hue=0\.6: the maximum change must be in 0\.\.0\.5"):
        ColorJitter(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.6)


@pytest.mark.parametrize(("size", "taps"), [(20, 3), (64, 7), (224, 23)])
@pytest.mark.parametrize("sigma", [0.1, 0.8, 2.0])
def test_blur_is_a_sampled_gaussian(size: int, taps: int, sigma: float) -> None:
    """Against sums over shifted frames in float64; within 1.5 levels, 0.4 on average (OpenCV has 8 bits
    per weight, and rounds to whole levels)."""
    frames = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    offsets = np.arange(taps) - taps // 2
    weights = np.exp(-(offsets**2) / (2 * sigma**2))
    weights /= weights.sum()
    expected = frames.astype(np.float64)
    for axis in (1, 2):
        rows = [np.clip(np.arange(size) + offset, 0, size - 1) for offset in offsets]
        expected = sum(weight * expected.take(row, axis) for weight, row in zip(weights, rows, strict=True))
    errors = np.abs(operations.blur(frames, sigma) - expected)
    assert errors.max() <= 1.5
    assert errors.mean() <= 0.4


def test_changes_are_applied_in_all_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def recorded(name: str, frames: np.ndarray, factor: float) -> np.ndarray:
        order.append(name)
        return frames

    monkeypatch.setattr(
        operations, "_CHANGES", {name: functools.partial(recorded, name) for name in operations._CHANGES}
    )
    jitter = ColorJitter(brightness=0.1, contrast=0.2, saturation=0.3)  # hue is off
    rng = np.random.default_rng(0)
    orders: Counter[tuple[str, ...]] = Counter()
    for _ in range(1200):
        order.clear()
        jitter.apply(still_clip(1, 4, 4), rng)
        orders[tuple(order)] += 1
    assert len(orders) == 6
    assert max(orders.values()) < 265  # 200 and five standard errors
    assert min(orders.values()) > 135


def test_frames_of_a_still_clip_stay_equal_and_the_input_is_not_modified() -> None:
    clip = still_clip()
    before = clip.copy()
    jitter, rng = ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4), np.random.default_rng(0)
    for _ in range(10):
        result = jitter.apply(clip, rng)
        assert (result == result[0]).all()
        assert not np.array_equal(result, clip)
        assert np.array_equal(clip, before)


def test_color_jitter_depends_only_on_the_generator() -> None:
    jitter = ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4)
    one, other, third = (jitter.apply(smooth_frames(), np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, other)
    assert not np.array_equal(one, third)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_changes_out_of_range_are_refused(share: float) -> None:
    with pytest.raises(UserError, match=f"contrast={share}: the maximum change must be in 0..1"):
        ColorJitter(brightness=0.4, contrast=share, saturation=0.0)
