"""Augmentation of training clips: RandAugment, erasing, mixing, and the order of all."""

from __future__ import annotations

import math
from collections import Counter
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.data.pictures import smooth_frames, still_clip
from tests.reference.mixing import cutmix_shares
from tests.reference.randaugment import pillow_operation
from videomaskfeat.data.augment import OPERATIONS, Augmentation, Mixing, RandAugment, RandomErasing, Step
from videomaskfeat.data.operations import ColorJitter
from videomaskfeat.data.transforms import ClipGeometry, RandomResizedCrop, Rectangle
from videomaskfeat.errors import UserError

RIGHT_HALF = ClipGeometry(Rectangle(0, 40, 60, 40), (60, 40), Rectangle(0, 0, 60, 40))


class Fixed(RandAugment):
    """RandAugment with given steps."""

    def __init__(self, *steps: Step) -> None:
        super().__init__()
        self.steps = list(steps)

    def sample(self, rng: np.random.Generator) -> list[Step]:
        return self.steps


def full_augmentation() -> Augmentation:
    return Augmentation(
        randaugment=RandAugment.from_words("rand-m7-n4-mstd0.5-inc1"),
        color=ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
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


def test_color_jitter_follows_randaugment_and_erasing_follows_the_crop() -> None:
    frames = smooth_frames(2, 60, 80)
    operations = (
        Fixed(Step("Solarize", 128), Step("Rotate", 10.0)),
        ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4),
        RandomErasing(probability=1.0),
    )
    result = Augmentation(randaugment=operations[0], color=operations[1], erasing=operations[2]).apply(
        frames, RIGHT_HALF, np.random.default_rng(7)
    )
    rng = np.random.default_rng(7)
    expected = RIGHT_HALF.apply_clip(operations[1].apply(operations[0].apply(frames, rng), rng))
    touched = (result != expected).any(axis=(0, 3))
    rows, columns = touched.any(1).nonzero()[0], touched.any(0).nonzero()[0]
    share = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1) / touched.size
    assert 0.02 * 0.8 < share < 1 / 3 * 1.2  # a box of the crop, whose sides are rounded
    assert touched.sum() / touched.size > 0.95 * share


@pytest.mark.parametrize("augmentation", [full_augmentation(), Augmentation()])
def test_input_is_not_modified_and_clips_do_not_share_memory(augmentation: Augmentation) -> None:
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


def test_augmentation_depends_only_on_the_generator() -> None:
    frames = smooth_frames(2, 60, 80)
    one, other = (full_augmentation().apply(frames, RIGHT_HALF, np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(one, other)
    rest = [
        full_augmentation().apply(frames, RIGHT_HALF, np.random.default_rng(seed)) for seed in range(4, 9)
    ]
    assert all(not np.array_equal(one, third) for third in rest)


def test_frames_of_a_still_clip_stay_equal_without_erasing() -> None:
    clip = still_clip(3, 60, 80)
    augmentation = full_augmentation()
    augmentation.erasing = None
    for seed in range(30):
        result = augmentation.apply(clip, RIGHT_HALF, np.random.default_rng(seed))
        assert (result == result[0]).all()


def test_augmentation_without_steps_only_crops() -> None:
    frames = smooth_frames(2, 60, 80)
    clip = Augmentation().apply(frames, RIGHT_HALF, np.random.default_rng(0))
    assert np.array_equal(clip, RIGHT_HALF.apply_clip(frames))


RECIPE = "rand-m7-n4-mstd0.5-inc1"
DRAWS = 4000


def sample_steps(words: str, draws: int = DRAWS, *, seed: int = 0) -> list[list[Step]]:
    """Sample the operations of many clips."""
    augment, rng = RandAugment.from_words(words), np.random.default_rng(seed)
    return [augment.sample(rng) for _ in range(draws)]


def arguments_of(name: str, clips: list[list[Step]]) -> np.ndarray:
    """The sampled arguments of an operation."""
    return np.array([step.argument for clip in clips for step in clip if step.name == name])


def test_words_are_read() -> None:
    assert RandAugment.from_words(RECIPE) == RandAugment(magnitude=7, layers=4, noise=0.5, increasing=True)
    assert RandAugment.from_words("rand") == RandAugment(
        magnitude=10,
        layers=2,
        noise=0,
        largest=10,
        probability=0.5,
        increasing=False,
        interpolation="bicubic",
    )
    words = RandAugment.from_words("rand-inc0-p0.25-mmax15-m12-mstd101", interpolation="bilinear")
    assert words == RandAugment(
        magnitude=12, noise=math.inf, largest=15, probability=0.25, interpolation="bilinear"
    )
    assert RandAugment.from_words("rand-mstdinf").noise == math.inf


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("augmix-m3", "'augmix-m3' must start with rand, such as rand-m7-n4-mstd0.5-inc1"),
        ("", "'' must start with rand"),
        ("rand-m7-k3", r"'k3' is not a name and a number; names are m \(magnitude\), n \(layers\), mstd"),
        ("rand-m7-inc", "'inc' is not a name and a number"),
        ("rand-m", "'m' is not a name and a number"),
        ("rand-m7-", "'' is not a name and a number"),
        ("rand-M7", "'M7' is not a name and a number"),
        ("rand-m7-w0", r"'w0' \(weighted operations\) is not supported; leave it out"),
        ("rand-m7-tweights", r"'tweights' \(other sets of operations\) is not supported; leave it out"),
        ("rand-m7-m8", "m appears twice; give it once"),
        ("rand-n2.5", "the number of layers n=2.5 must be an integer"),
        ("rand-ninf", "the number of layers n=inf must be an integer"),
        ("rand-n0", "layers n=0 must be at least 1; without RandAugment, leave the string empty"),
        ("rand-inc2", "inc=2 must be 0 or 1"),
        ("rand-m11", r"magnitude m=11 must be in 0\.\.10; set mmax for a larger maximum"),
        ("rand-mmax0", "largest magnitude mmax=0 must be above 0"),
        ("rand-p1.5", r"probability p=1.5 must be in 0\.\.1"),
    ],
)
def test_invalid_words_are_refused(words: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        RandAugment.from_words(words)


@pytest.mark.parametrize("name", ["bicubc", "nearest", "random"])
def test_unknown_interpolation_is_refused(name: str) -> None:
    hint = "; did you mean 'bicubic'" if name == "bicubc" else ""
    with pytest.raises(UserError, match=f"interpolation '{name}' is unknown{hint}"):
        RandAugment.from_words(RECIPE, interpolation=name)


def test_negative_noise_is_refused() -> None:
    with pytest.raises(UserError, match="noise mstd=-1 must be at least 0"):
        RandAugment(noise=-1.0)


# At magnitude 7 of 10, from the definitions: 30 degrees, 0.3, 45 % and 0.9 at most; 4 bits, 256 and 110
# levels at most, cut down to whole ones.
ALWAYS = {
    "Rotate": {21.0, -21.0},
    "ShearX": {0.21, -0.21},
    "ShearY": {0.21, -0.21},
    "TranslateXRel": {0.315, -0.315},
    "TranslateYRel": {0.315, -0.315},
    "SolarizeAdd": {77},
}
INCREASING = {"Posterize": {2}, "Solarize": {77}}
DECREASING = {"Posterize": {2}, "Solarize": {179}}


@pytest.mark.parametrize("increasing", [True, False])
def test_a_magnitude_becomes_the_argument_of_each_operation(increasing: bool) -> None:
    clips = sample_steps(f"rand-m7-n15-p1-inc{int(increasing)}", 200)
    factors = {1.63, 0.37} if increasing else {1.36}
    expected = {
        **ALWAYS,
        **(INCREASING if increasing else DECREASING),
        **dict.fromkeys(("Color", "Contrast", "Brightness", "Sharpness"), factors),
    }
    for name, values in expected.items():
        drawn = arguments_of(name, clips)
        assert set(np.round(drawn, 9)) == values, name
    for name in ("AutoContrast", "Equalize", "Invert"):
        assert set(arguments_of(name, clips)) == {None}
    assert set(expected) | {"AutoContrast", "Equalize", "Invert"} == set(OPERATIONS)


@pytest.mark.parametrize(
    ("name", "inc0", "inc1"),
    [
        ("Posterize", {0: 0, 2.4: 0, 2.6: 1, 10: 4}, {0: 4, 2.4: 4, 2.6: 3, 10: 0, 15: 0}),
        ("Solarize", {0: 0, 5: 128, 10: 256, 15: 256}, {0: 256, 5: 128, 10: 0, 15: 0}),
        ("SolarizeAdd", {0: 0, 5: 55, 10: 110, 15: 128}, {0: 0, 5: 55, 10: 110}),
        ("Color", {0: 0.1, 5: 1.0, 10: 1.9}, {0: 1.0, 5: 1.45, 10: 1.9}),
    ],
)
def test_arguments_run_from_end_to_end(name: str, inc0: dict[float, float], inc1: dict[float, float]) -> None:
    argument = OPERATIONS[name].argument
    assert argument is not None
    for increasing, expected in ((False, inc0), (True, inc1)):
        for magnitude, value in expected.items():
            assert argument(magnitude / 10, 1, increasing) == pytest.approx(value), (increasing, magnitude)


def test_the_recipe_draws_operations_evenly_with_replacement_and_applies_half() -> None:
    clips = sample_steps(RECIPE)
    lengths = Counter(len(clip) for clip in clips)
    for length in range(5):  # binomial of 4 and a half; five standard errors are at most 0.04
        assert lengths[length] / DRAWS == pytest.approx(math.comb(4, length) / 16, abs=0.04)
    names = Counter(step.name for clip in clips for step in clip)
    steps = sum(names.values())
    for name in OPERATIONS:
        assert names[name] / steps == pytest.approx(1 / 15, abs=5 * math.sqrt(1 / 15 * 14 / 15 / steps))
    # Two of a pair are the same once in 15.
    pairs = [clip for clip in clips if len(clip) == 2]
    same = sum(first.name == second.name for first, second in pairs) / len(pairs)
    assert same == pytest.approx(1 / 15, abs=5 * math.sqrt(1 / 15 / len(pairs)))


def test_magnitudes_are_normal_about_seven() -> None:
    clips = sample_steps("rand-m7-n15-p1-mstd0.5-inc1", 2000)
    degrees = arguments_of("Rotate", clips)
    magnitudes = np.abs(degrees) / 3
    error = 5 / math.sqrt(len(degrees))  # five standard errors of a spread of 1
    assert magnitudes.mean() == pytest.approx(7, abs=0.5 * error)
    assert magnitudes.std() == pytest.approx(0.5, abs=0.5 * error)
    assert (degrees > 0).mean() == pytest.approx(0.5, abs=0.5 * error)
    factors = arguments_of("Contrast", clips)
    assert np.abs(factors - 1).mean() == pytest.approx(0.63, abs=0.045 * error)
    assert (factors > 1).mean() == pytest.approx(0.5, abs=0.5 * error)
    # int(0.4 level) bits go: 2 from 5 to 7.5, 3 from there to 10.
    normal = NormalDist(7, 0.5)
    bits = arguments_of("Posterize", clips)
    assert set(bits) <= {1, 2}
    assert (bits == 1).mean() == pytest.approx(1 - normal.cdf(7.5), abs=0.37 * error)
    thresholds = arguments_of("Solarize", clips)
    assert thresholds.mean() == pytest.approx(256 - (179.2 - 0.5), abs=12.8 * error)


def test_noise_is_cut_to_the_range() -> None:
    degrees = np.abs(arguments_of("Rotate", sample_steps("rand-m10-n15-p1-mstd0.5", 1000)))
    assert degrees.max() == 30
    assert (degrees == 30).mean() == pytest.approx(0.5, abs=0.09)  # five standard errors of 1000
    assert np.abs(arguments_of("Rotate", sample_steps("rand-m10-n15-p1-mmax12-mstd0.5", 1000))).max() > 30
    nearly_none = np.abs(arguments_of("Rotate", sample_steps("rand-m0-n15-p1-mstd0.5", 1000)))
    assert (nearly_none == 0).mean() == pytest.approx(0.5, abs=0.09)


def test_infinite_noise_is_uniform_from_0_to_the_magnitude() -> None:
    magnitudes = np.abs(arguments_of("Rotate", sample_steps("rand-m8-n15-p1-mstdinf", 2000))) / 3
    quantiles = np.quantile(magnitudes, [0.0, 0.25, 0.5, 0.75, 1.0])
    assert quantiles == pytest.approx([0, 2, 4, 6, 8], abs=0.45)  # five standard errors: 8 * 2.5 / sqrt(2000)


# Look-ups, which equal Pillow exactly, so that a chain of them does too.
EXACT = {
    "AutoContrast",
    "Equalize",
    "Invert",
    "Posterize",
    "Solarize",
    "SolarizeAdd",
    "Brightness",
    "Contrast",
}


def test_sampled_operations_are_applied_in_order() -> None:
    frames = smooth_frames(2, 40, 50)
    augment = RandAugment.from_words("rand-m7-n3-p0.7-mstd0.5-inc1")
    lengths: Counter[int] = Counter()
    for seed in range(300):
        steps = augment.sample(np.random.default_rng(seed))
        if not {step.name for step in steps} <= EXACT:
            continue
        expected = frames
        for step in steps:
            expected = pillow_operation(expected, step.name, step.argument)
        assert np.array_equal(augment.apply(frames, np.random.default_rng(seed)), expected)
        lengths[len(steps)] += 1
    assert lengths[2] >= 5
    assert lengths[3] >= 3


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_interpolation_reaches_the_operations(interpolation: str) -> None:
    frames = smooth_frames(1, 40, 50)
    augment = RandAugment(interpolation=interpolation)
    for step in (Step("ShearX", 0.2), Step("TranslateYRel", 0.11)):
        ours = augment.change(frames, step).astype(int)
        assert np.abs(ours - pillow_operation(frames, step.name, step.argument, interpolation)).max() <= 1
    turned = augment.change(frames, Step("Rotate", 10.0)).astype(int)
    others = [pillow_operation(frames, "Rotate", 10.0, name) for name in ("bicubic", "bilinear")]
    apart = {
        name: np.abs(turned - other).mean()
        for name, other in zip(("bicubic", "bilinear"), others, strict=True)
    }
    assert min(apart, key=lambda name: apart[name]) == interpolation


def test_operations_depend_only_on_the_generator() -> None:
    frames = smooth_frames(2, 40, 50)
    results = [
        RandAugment.from_words(RECIPE).apply(frames, np.random.default_rng(seed)) for seed in (3, 3, 4, 5, 6)
    ]
    assert np.array_equal(results[0], results[1])
    assert sum(not np.array_equal(results[0], other) for other in results[2:]) >= 2


def test_frames_of_a_still_clip_stay_equal_and_the_input_is_not_modified() -> None:
    clip = still_clip(4, 40, 50)
    before = clip.copy()
    augment, rng = RandAugment.from_words(RECIPE), np.random.default_rng(1)
    changed = 0
    for _ in range(60):
        result = augment.apply(clip, rng)
        assert (result == result[0]).all()
        assert np.array_equal(clip, before)
        changed += not np.array_equal(result, clip)
    assert changed > 45  # nothing is drawn once in 16


def erased(erasing: RandomErasing, *, size: tuple[int, int] = (64, 96), seed: int = 0) -> np.ndarray:
    """The noise of an erased clip, int [4, H, W, 3]; -1 outside the box."""
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


def test_noise_has_the_distribution_of_rounded_and_clamped_normal_floats() -> None:
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


def test_noise_is_independent_per_pixel_channel_and_frame() -> None:
    noise = erased(RandomErasing(probability=1.0, area=(0.3, 0.33)), size=(128, 128), seed=3)
    box = noise[noise >= 0].reshape(4, -1, 3).astype(float)  # [T, pixels, C]
    assert box.shape[1] > 4000
    channels = np.corrcoef(box.transpose(0, 2, 1).reshape(12, -1))
    assert np.abs(channels - np.eye(12)).max() < 0.08  # five standard errors of 4000
    assert abs(np.corrcoef(box[0, 1:, 0], box[0, :-1, 0])[0, 1]) < 0.08


def test_noise_follows_mean_and_std_of_the_normalization() -> None:
    erasing = RandomErasing(probability=1.0, area=(0.3, 0.33), mean=0.5, std=0.1)
    noise = erased(erasing, size=(128, 128))
    values = noise[noise >= 0]
    assert values.mean() == pytest.approx(127.5, abs=0.6)  # five standard errors of 50000
    assert values.std() == pytest.approx(25.5, abs=0.45)


def test_channels_may_have_different_normalization() -> None:
    erasing = RandomErasing(probability=1.0, area=(0.3, 0.33), mean=[0.3, 0.5, 0.6], std=(0.1, 0.05, 0.08))
    noise = erased(erasing, size=(128, 128))
    box = noise[noise >= 0].reshape(-1, 3)
    # Five standard errors of 17000 a channel.
    assert box.mean(0) == pytest.approx([76.5, 127.5, 153.0], abs=1)
    assert box.std(0) == pytest.approx([25.5, 12.75, 20.4], abs=0.7)


def test_areas_are_uniform_and_aspects_log_uniform() -> None:
    erasing, rng = RandomErasing(probability=1.0), np.random.default_rng(0)
    boxes = [erasing.sample(224, 224, rng) for _ in range(4000)]
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
    box = RandomErasing(probability=1.0, aspect=(2.0, 2.0)).sample(224, 224, np.random.default_rng(0))
    assert box is not None
    assert box.height / box.width == pytest.approx(2.0, abs=0.05)


def test_places_reach_both_borders() -> None:
    erasing, rng = RandomErasing(probability=1.0), np.random.default_rng(0)
    boxes = [box for box in (erasing.sample(20, 30, rng) for _ in range(2000)) if box is not None]
    assert min(box.top for box in boxes) == min(box.left for box in boxes) == 0
    assert max(box.top + box.height for box in boxes) == 20
    assert max(box.left + box.width for box in boxes) == 30


def test_clips_are_erased_with_the_given_probability() -> None:
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


def test_box_that_never_fits_is_not_erased() -> None:
    erasing = RandomErasing(probability=1.0, area=(1.0, 1.0), aspect=(1.0, 1.0))
    assert erasing.sample(16, 16, np.random.default_rng(0)) is None
    clip = np.zeros((2, 16, 16, 3), np.uint8)
    erasing.apply(clip, np.random.default_rng(0))
    assert not clip.any()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"probability": 1.2}, r"erasing probability=1.2: must be in 0\.\.1"),
        ({"area": (0.5, 0.2)}, r"erasing area=\(0.5, 0.2\): must be two fractions with 0 < low <= high <= 1"),
        ({"area": (0.0, 0.2)}, r"erasing area=\(0.0, 0.2\)"),
        ({"aspect": (0.0, 1.0)}, r"erasing aspect=\(0.0, 1.0\): must be two ratios with 0 < low <= high"),
        ({"std": 0.0}, "erasing mean=0.45, std=0.0: each must be one number, or one for each of 3 channels"),
        ({"std": math.inf}, "erasing mean=0.45, std=inf: each must be one number"),
        ({"mean": [0.4, 0.5]}, r"erasing mean=\[0.4, 0.5\], std=0.225: each must be one number"),
        ({"mean": math.nan}, "erasing mean=nan, std=0.225: each must be one number"),
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        RandomErasing(**{"probability": 0.25, **wrong})


MIXED: dict[str, Any] = {
    "classes": 5,
    "mixup": 0.8,
    "cutmix": 1.0,
    "probability": 1.0,
    "switch": 0.5,
    "smoothing": 0.0,
}


def numbered(batch: int, height: int = 12, width: int = 20) -> torch.Tensor:
    """Clips whose pixels are all equal to the index of the clip, float [B, 3, 2, H, W]."""
    numbers = torch.arange(batch, dtype=torch.float32)
    return numbers[:, None, None, None, None].expand(batch, 3, 2, height, width).contiguous()


@pytest.mark.parametrize("batch", [2, 4, 7])
def test_mixup_blends_clips_and_labels_with_one_weight(batch: int) -> None:
    torch.manual_seed(0)
    mixing = Mixing(**{**MIXED, "cutmix": 0.0})
    labels = torch.arange(batch) % 5
    for _ in range(20):
        clips, targets = mixing(numbered(batch), labels)
        # The first clip holds 0 and its partner batch - 1, so its pixels give the partner's share.
        other = float(clips[0, 0, 0, 0, 0]) / (batch - 1)
        assert 0 < other < 1
        partners = torch.arange(batch - 1, -1, -1)
        values = ((1 - other) * torch.arange(batch) + other * partners)[:, None, None, None, None]
        # float32 on numbers up to 6.
        torch.testing.assert_close(clips, values.expand_as(clips), atol=1e-5, rtol=0)
        expected = (1 - other) * F.one_hot(labels, 5) + other * F.one_hot(labels[partners], 5)
        torch.testing.assert_close(targets, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("batch", [2, 5])
def test_cutmix_fills_one_box_in_all_frames_and_counts_its_pixels(batch: int) -> None:
    torch.manual_seed(1)
    mixing = Mixing(**{**MIXED, "mixup": 0.0})
    labels = torch.arange(batch)
    sizes = set()
    for _ in range(50):
        before = numbered(batch)
        clips, targets = mixing(before, labels)
        partner = clips[0, 0, 0] == batch - 1  # [H, W]
        rows, columns = partner.any(1).nonzero(), partner.any(0).nonzero()
        if len(rows):
            box = partner[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert box.all()
        sizes.add(int(partner.sum()))
        assert torch.equal(clips, torch.where(partner, before.flip(0), before))
        own = 1 - partner.float().mean()
        expected = own * F.one_hot(labels, 5) + (1 - own) * F.one_hot(labels.flip(0), 5)
        torch.testing.assert_close(targets, expected, atol=1e-6, rtol=0)
    assert len(sizes) > 10


def test_weights_of_cutmix_match_the_reference() -> None:
    torch.manual_seed(2)
    mixing = Mixing(**{**MIXED, "mixup": 0.0})
    ours = np.array([mixing.sample(20, 32).weight for _ in range(3000)])
    slow = cutmix_shares(alpha=1.0, height=20, width=32, draws=3000, rng=np.random.default_rng(2))
    # Means of 3000 draws of a spread of 0.27: four standard errors of the difference are 0.028.
    assert abs(ours.mean() - slow.mean()) < 0.028
    assert np.abs(np.quantile(ours, [0.2, 0.5, 0.8]) - np.quantile(slow, [0.2, 0.5, 0.8])).max() < 0.05


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 4.0])
def test_weights_of_mixup_follow_the_beta_distribution(alpha: float) -> None:
    torch.manual_seed(3)
    mixing = Mixing(**{**MIXED, "mixup": alpha, "cutmix": 0.0})
    shares = np.array([mixing.sample(8, 8).weight for _ in range(4000)])
    # Beta(a, a): mean 1/2, variance 1 / (4 (2a + 1)). Both to within five standard errors.
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(shares.mean() - 0.5) < 5 * np.sqrt(variance / 4000)
    spread = ((shares - 0.5) ** 2).std() / np.sqrt(4000)
    assert abs(shares.var() - variance) < 5 * spread


def test_batches_are_mixed_with_the_given_probabilities() -> None:
    torch.manual_seed(4)
    mixing = Mixing(**{**MIXED, "probability": 0.6, "switch": 0.25})
    draws = [mixing.sample(64, 64) for _ in range(4000)]
    mixed = [draw for draw in draws if draw.weight != 1]
    # Shares of 4000: five standard errors are at most 0.04 (a box without a pixel counts as not mixed).
    assert len(mixed) / 4000 == pytest.approx(0.6, abs=0.04)
    assert sum(draw.box is not None for draw in mixed) / len(mixed) == pytest.approx(0.25, abs=0.045)


@pytest.mark.parametrize("off", [{"probability": 0.0}, {"mixup": 0.0, "cutmix": 0.0}])
def test_labels_are_smoothed_without_mixing(off: dict[str, float]) -> None:
    mixing = Mixing(**{**MIXED, "smoothing": 0.1, **off})
    clips, labels = torch.randn(3, 3, 2, 4, 4), torch.tensor([4, 0, 0])
    for _ in range(20):
        mixed, targets = mixing(clips, labels)
        assert torch.equal(mixed, clips)
        # Off s/L = 0.02, on 1 - s + s/L = 0.92.
        expected = torch.full((3, 5), 0.02).scatter_(1, labels[:, None], 0.92)
        torch.testing.assert_close(targets, expected, atol=1e-7, rtol=0)


def test_mixed_targets_are_smoothed_as_in_the_reference() -> None:
    torch.manual_seed(5)
    mixing = Mixing(**{**MIXED, "smoothing": 0.2})
    labels = torch.tensor([0, 3])
    own = mixing.sample(12, 20).weight
    torch.manual_seed(5)
    _, targets = mixing(numbered(2), labels)
    off, on = 0.2 / 5, 1 - 0.2 + 0.2 / 5
    hard = torch.full((2, 5), off).scatter_(1, labels[:, None], on)
    torch.testing.assert_close(targets, own * hard + (1 - own) * hard.flip(0), atol=1e-6, rtol=0)
    torch.testing.assert_close(targets.sum(1), torch.ones(2))
    assert targets.dtype == torch.float32


def test_a_batch_of_one_is_its_own_partner() -> None:
    torch.manual_seed(6)
    mixing = Mixing(**MIXED)
    clips = torch.randn(1, 3, 2, 8, 8)
    for _ in range(10):
        mixed, targets = mixing(clips, torch.tensor([2]))
        torch.testing.assert_close(mixed, clips, atol=1e-6, rtol=0)
        torch.testing.assert_close(targets, torch.tensor([[0.0, 0, 1, 0, 0]]), atol=1e-6, rtol=0)


def test_mixing_does_not_modify_the_input() -> None:
    torch.manual_seed(7)
    mixing = Mixing(**MIXED)
    clips = torch.randn(4, 3, 2, 8, 8)
    before = clips.clone()
    for _ in range(10):
        mixing(clips, torch.arange(4))
        assert torch.equal(clips, before)


def test_mixing_depends_only_on_the_global_generator() -> None:
    mixing = Mixing(**MIXED)
    clips, labels = torch.randn(4, 3, 2, 8, 8), torch.arange(4)
    torch.manual_seed(8)
    mixing(clips, labels)
    state = torch.get_rng_state()
    first = [mixing(clips, labels) for _ in range(5)]
    torch.set_rng_state(state)
    # Another object, as a resumed run has.
    second = [Mixing(**MIXED)(clips, labels) for _ in range(5)]
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
    assert not torch.equal(first[0][1], first[1][1])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"classes": 0}, "classes=0: there must be at least 1"),
        ({"mixup": -0.1}, "mixup=-0.1: alpha must be finite and at least 0; 0 disables it"),
        ({"cutmix": float("inf")}, "cutmix=inf: alpha must be finite"),
        ({"probability": 1.5}, r"probability=1.5: must be in 0\.\.1"),
        ({"switch": -1.0}, r"switch=-1.0: must be in 0\.\.1"),
        ({"smoothing": 1.0}, "smoothing=1.0: must be at least 0 and below 1"),
        ({"smoothing": float("nan")}, "smoothing=nan: must be at least 0"),
    ],
)
def test_mixing_out_of_range_is_refused(wrong: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Mixing(**{**MIXED, **wrong})
