"""Torch forms of the operations and of the crop against OpenCV's."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch

from tests.data.pictures import noisy_frames, smooth_frames
from tests.data.test_operations import EXACT, FACTORS, MOVES, differences
from videomaskfeat.data import operations
from videomaskfeat.data.augment import OPERATIONS
from videomaskfeat.data.tensor_operations import RESAMPLING, TENSOR_OPERATIONS, crop_frames, erase
from videomaskfeat.data.transforms import (
    ClipGeometry,
    ClipTransform,
    RandomResizedCrop,
    Rectangle,
    ShortSideJitterCrop,
    UniformCrop,
)

NEAR = {
    **{"Color": (0.0, *FACTORS), "Sharpness": (0.0, *FACTORS)},
    **{"Hue": (-0.5, -0.1, 0.03, 0.1, 0.5), "Blur": (0.1, 0.5, 1.3, 2.0)},
}
CPU = {name: one.change for name, one in OPERATIONS.items()} | {
    "Hue": operations.hue,
    "Blur": operations.blur,
}
# OpenCV 4 rounds the positions of a rotation to 1/32 pixel: 1/64 pixel, two axes, 255 levels and overshoot.
ROTATION = 1 if int(cv2.__version__.split(".")[0]) >= 5 else 12


def apart(frames: np.ndarray, name: str, *arguments: object) -> np.ndarray:
    """Differences in levels between both forms; the frames of the caller do not change."""
    expected, before = CPU[name](frames, *arguments), torch.from_numpy(frames.copy())
    changed = TENSOR_OPERATIONS[name](torch.from_numpy(frames), *arguments)
    assert changed.dtype == torch.uint8
    assert torch.equal(torch.from_numpy(frames), before)
    return differences(changed.numpy(), expected)


def test_there_is_a_form_of_every_operation() -> None:
    assert TENSOR_OPERATIONS.keys() == CPU.keys()
    assert set(RESAMPLING) == {name for name, one in OPERATIONS.items() if one.resamples}


@pytest.mark.parametrize("make", [noisy_frames, smooth_frames])
@pytest.mark.parametrize("name", EXACT)
def test_look_ups_are_equal(name: str, make: Callable[[], np.ndarray]) -> None:
    for argument in (*EXACT[name], *((0,) if name == "Posterize" else ())):
        arguments = () if argument is None else (argument,)
        assert not apart(make(), name, *arguments).any()


def test_histograms_of_flat_dark_and_small_frames_are_equal() -> None:
    frames = smooth_frames(3)
    frames[0, ..., 0] = 77
    frames[1] //= 4
    frames[2, ..., 2] = np.where(frames[2, ..., 2] < 128, 10, 11)
    for name in ("AutoContrast", "Equalize"):
        assert not apart(frames, name).any()
        assert not apart(noisy_frames(1, 9, 11), name).any()
        assert not apart(np.zeros((1, 40, 40, 3), np.uint8), name).any()


@pytest.mark.parametrize("make", [noisy_frames, smooth_frames])
@pytest.mark.parametrize("name", NEAR)
def test_blends_hues_and_blurs_are_within_a_level(name: str, make: Callable[[], np.ndarray]) -> None:
    for argument in NEAR[name]:
        apart_levels = apart(make(), name, argument)
        assert apart_levels.max() <= 1
        # OpenCV's blur has weights of 8 bits, and so rounds differently in a quarter of the pixels.
        assert (apart_levels > 0).mean() < (0.3 if name == "Blur" else 0.01)


def test_sharpness_of_frames_without_an_interior_is_equal() -> None:
    for size in ((2, 9), (9, 1), (3, 3)):
        assert apart(noisy_frames(2, *size), "Sharpness", 1.63).max() <= 1


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("make", [noisy_frames, smooth_frames])
@pytest.mark.parametrize("name", MOVES)
def test_shears_and_shifts_are_within_a_level(
    name: str, make: Callable[[], np.ndarray], interpolation: str
) -> None:
    for argument in MOVES[name]:
        apart_levels = apart(make(), name, argument, interpolation)
        assert apart_levels.max() <= 1
        assert (apart_levels > 0).mean() < 1e-3  # sums in another order


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_rotations_are_within_the_rounding_of_positions(interpolation: str) -> None:
    for make in (noisy_frames, smooth_frames):
        for degrees in (21.0, -21.0, 30.0, -3.3, 0.0):
            assert apart(make(), "Rotate", degrees, interpolation).max() <= ROTATION


@pytest.mark.parametrize(
    "transform",
    [
        RandomResizedCrop(32, area=(0.08, 1.0)),
        RandomResizedCrop((40, 72)),
        RandomResizedCrop(200, area=(0.08, 0.3)),
        ShortSideJitterCrop(48, (50, 80)),
        UniformCrop(50, 60),
    ],
)
def test_crops_are_within_a_level(transform: ClipTransform) -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        frames, geometry = noisy_frames(), transform.sample(90, 121, rng)
        clip = crop_frames(torch.from_numpy(frames), geometry)
        assert clip.is_contiguous()
        # OpenCV has weights of 11 bits: its sums are rounded differently near half levels.
        apart_levels = differences(clip.numpy(), geometry.apply_clip(frames))
        assert apart_levels.max() <= 1
        assert (apart_levels > 0).mean() < 0.2


def test_crop_without_resizing_is_equal_and_no_view() -> None:
    frames = noisy_frames()
    for flip in (False, True):
        geometry = ClipGeometry(Rectangle(3, 5, 40, 50), (40, 50), Rectangle(7, 9, 20, 30), flip)
        clip = crop_frames(torch.from_numpy(frames), geometry)
        assert np.array_equal(clip.numpy(), geometry.apply_clip(frames))
        clip.zero_()
    assert np.array_equal(frames, noisy_frames())


def test_noise_is_normal_in_the_box_only_and_depends_on_the_seed() -> None:
    clip = torch.full((8, 64, 64, 3), 7, dtype=torch.uint8)
    box = Rectangle(10, 4, 50, 40)
    means, stds = (115.0, 120.0, 100.0), (20.0, 30.0, 25.0)
    noise = {seed: clip.clone() for seed in (1, 2)}
    for seed, filled in noise.items():
        erase(filled, box, means=means, stds=stds, seed=seed)
    again = clip.clone()
    erase(again, box, means=means, stds=stds, seed=1)
    assert torch.equal(again, noise[1])
    assert (noise[1] != noise[2]).float().mean() > 0.4
    rows, columns = box.slices
    inside = noise[1][:, rows, columns].double()  # 16,000 values per channel
    # Four standard errors; clamping has no effect at these levels, and rounding adds 1/12 to the variance.
    torch.testing.assert_close(inside.mean((0, 1, 2)), torch.tensor(means).double(), rtol=0, atol=1.0)
    torch.testing.assert_close(inside.std((0, 1, 2)), torch.tensor(stds).double(), rtol=0.03, atol=0)
    noise[1][:, rows, columns] = 7
    assert torch.equal(noise[1], clip)
