"""The augmentation as a whole: its order, its one generator, and frames that stay as they are."""

from __future__ import annotations

import numpy as np
import pytest

from tests.data.pictures import smooth_frames, still_clip
from videomaskfeat.data.augment import Augmentation, RandAugment, RandomErasing, Step
from videomaskfeat.data.operations import ColourJitter
from videomaskfeat.data.transforms import ClipGeometry, RandomResizedCrop, Rectangle

RIGHT_HALF = ClipGeometry(Rectangle(0, 40, 60, 40), (60, 40), Rectangle(0, 0, 60, 40))


class Fixed(RandAugment):
    """RandAugment that always draws the same."""

    def __init__(self, *steps: Step) -> None:
        super().__init__()
        self.steps = list(steps)

    def draw(self, rng: np.random.Generator) -> list[Step]:
        """The steps."""
        return self.steps


def everything() -> Augmentation:
    """All parts at once."""
    return Augmentation(
        randaugment=RandAugment.from_words("rand-m7-n4-mstd0.5-inc1"),
        colour=ColourJitter(brightness=0.2, contrast=0.2, saturation=0.2),
        erasing=RandomErasing(probability=0.5),
    )


def test_operations_see_the_whole_frame_before_the_cut() -> None:
    frames = np.zeros((2, 60, 80, 3), np.uint8)
    frames[:, :, 40:] = np.linspace(100, 150, 40).astype(np.uint8)[:, None]
    rng = np.random.default_rng(0)
    stretched = Augmentation(randaugment=Fixed(Step("AutoContrast", None))).apply(frames, RIGHT_HALF, rng)
    # 0..150 over the whole frame becomes 0..255; the right half alone would start at 0.
    assert stretched.min() == int(100 * 255 / 150)
    assert stretched.max() == 255
    # What moves in from outside the cut was there before the cut.
    moved = Augmentation(randaugment=Fixed(Step("TranslateXRel", -0.25))).apply(frames, RIGHT_HALF, rng)
    assert (moved[:, :, :20] == 0).all()
    assert np.array_equal(moved[:, :, 20:], frames[:, :, 40:60])


def test_colour_comes_after_randaugment_and_erasing_after_the_cut() -> None:
    frames = smooth_frames(2, 60, 80)
    parts = (
        Fixed(Step("Solarize", 128), Step("Rotate", 10.0)),
        ColourJitter(brightness=0.4, contrast=0.4, saturation=0.4),
        RandomErasing(probability=1.0),
    )
    result = Augmentation(randaugment=parts[0], colour=parts[1], erasing=parts[2]).apply(
        frames, RIGHT_HALF, np.random.default_rng(7)
    )
    rng = np.random.default_rng(7)
    expected = RIGHT_HALF.apply_clip(parts[1].apply(parts[0].apply(frames, rng), rng))
    touched = (result != expected).any(axis=(0, 3))
    rows, columns = touched.any(1).nonzero()[0], touched.any(0).nonzero()[0]
    share = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1) / touched.size
    assert 0.02 * 0.8 < share < 1 / 3 * 1.2  # a box of the crop, whose sides are rounded
    assert touched.sum() / touched.size > 0.95 * share


@pytest.mark.parametrize("augmentation", [everything(), Augmentation()])
def test_frames_stay_as_they_are_and_clips_have_their_own_memory(augmentation: Augmentation) -> None:
    frames = smooth_frames(2, 60, 80)
    before = frames.copy()
    crop = RandomResizedCrop(32, area=(0.3, 1.0))
    for seed in range(40):
        rng = np.random.default_rng(seed)
        clip = augmentation.apply(frames, crop.sample(60, 80, rng), rng)
        assert clip.shape == (2, 32, 32, 3)
        assert clip.dtype == np.uint8
        assert not np.shares_memory(clip, frames)
        assert np.array_equal(frames, before)


def test_the_generator_alone_decides() -> None:
    frames = smooth_frames(2, 60, 80)
    one, other = (everything().apply(frames, RIGHT_HALF, np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(one, other)
    rest = [everything().apply(frames, RIGHT_HALF, np.random.default_rng(seed)) for seed in range(4, 9)]
    assert all(not np.array_equal(one, third) for third in rest)


def test_a_still_clip_stays_still_but_for_noise() -> None:
    clip = still_clip(3, 60, 80)
    augmentation = everything()
    augmentation.erasing = None
    for seed in range(30):
        result = augmentation.apply(clip, RIGHT_HALF, np.random.default_rng(seed))
        assert (result == result[0]).all()


def test_no_parts_are_the_crop_alone() -> None:
    frames = smooth_frames(2, 60, 80)
    clip = Augmentation().apply(frames, RIGHT_HALF, np.random.default_rng(0))
    assert np.array_equal(clip, RIGHT_HALF.apply_clip(frames))
