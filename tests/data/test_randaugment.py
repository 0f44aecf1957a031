"""RandAugment: its words, what magnitudes mean, how often what is drawn, and whole chains against Pillow."""

from __future__ import annotations

import math
from collections import Counter
from statistics import NormalDist

import numpy as np
import pytest

from tests.data.pictures import smooth_frames, still_clip
from tests.reference.randaugment import pillow_operation
from videomaskfeat.data.augment import OPERATIONS, RandAugment, Step
from videomaskfeat.errors import UserError

RECIPE = "rand-m7-n4-mstd0.5-inc1"
DRAWS = 4000


def drawn(words: str, draws: int = DRAWS, *, seed: int = 0) -> list[list[Step]]:
    """The operations of so many clips."""
    augment, rng = RandAugment.from_words(words), np.random.default_rng(seed)
    return [augment.draw(rng) for _ in range(draws)]


def arguments_of(name: str, clips: list[list[Step]]) -> np.ndarray:
    """The arguments with which an operation was drawn."""
    return np.array([step.argument for clip in clips for step in clip if step.name == name])


def settings(augment: RandAugment) -> tuple[float, int, float, float, float, bool, str]:
    """All that the words decide."""
    return (
        augment.magnitude,
        augment.layers,
        augment.noise,
        augment.largest,
        augment.probability,
        augment.increasing,
        augment.interpolation,
    )


def test_words_are_read() -> None:
    assert settings(RandAugment.from_words(RECIPE)) == (7, 4, 0.5, 10, 0.5, True, "bicubic")
    assert settings(RandAugment.from_words("rand")) == (10, 2, 0, 10, 0.5, False, "bicubic")
    words = "rand-inc0-p0.25-mmax15-m12-mstd101"
    assert settings(RandAugment.from_words(words, interpolation="bilinear")) == (
        *(12, 2, math.inf, 15, 0.25, False),
        "bilinear",
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
        ("rand-m7-m8", "m is given twice"),
        ("rand-n2.5", "the layers n=2.5 must be a whole number"),
        ("rand-ninf", "the layers n=inf must be a whole number"),
        ("rand-n0", "layers n=0 must be at least 1; leave it out to have none"),
        ("rand-inc2", "inc=2 must be 0 or 1"),
        ("rand-m11", r"magnitude m=11 must lie in 0\.\.10; mmax raises the upper end"),
        ("rand-mmax0", "largest magnitude mmax=0 must be above 0"),
        ("rand-p1.5", r"chance of each operation p=1.5 must lie in 0\.\.1"),
    ],
)
def test_words_that_cannot_be_are_named(words: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        RandAugment.from_words(words)


@pytest.mark.parametrize("name", ["bicubc", "nearest", "random"])
def test_an_unknown_interpolation_is_named(name: str) -> None:
    hint = "; did you mean 'bicubic'" if name == "bicubc" else ""
    with pytest.raises(UserError, match=f"interpolation '{name}' is unknown{hint}"):
        RandAugment.from_words(RECIPE, interpolation=name)


def test_noise_below_nothing_is_named() -> None:
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
    clips = drawn(f"rand-m7-n15-p1-inc{int(increasing)}", 200)
    factors = {1.63, 0.37} if increasing else {1.36}
    expected = {
        **ALWAYS,
        **(INCREASING if increasing else DECREASING),
        **dict.fromkeys(("Color", "Contrast", "Brightness", "Sharpness"), factors),
    }
    for name, values in expected.items():
        found = arguments_of(name, clips)
        assert set(np.round(found, 9)) == values, name
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
    clips = drawn(RECIPE)
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
    clips = drawn("rand-m7-n15-p1-mstd0.5-inc1", 2000)
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
    degrees = np.abs(arguments_of("Rotate", drawn("rand-m10-n15-p1-mstd0.5", 1000)))
    assert degrees.max() == 30
    assert (degrees == 30).mean() == pytest.approx(0.5, abs=0.09)  # five standard errors of 1000
    assert np.abs(arguments_of("Rotate", drawn("rand-m10-n15-p1-mmax12-mstd0.5", 1000))).max() > 30
    nearly_none = np.abs(arguments_of("Rotate", drawn("rand-m0-n15-p1-mstd0.5", 1000)))
    assert (nearly_none == 0).mean() == pytest.approx(0.5, abs=0.09)


def test_infinite_noise_is_even_from_nothing_to_the_magnitude() -> None:
    magnitudes = np.abs(arguments_of("Rotate", drawn("rand-m8-n15-p1-mstdinf", 2000))) / 3
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


def test_chains_are_the_drawn_operations_in_their_order() -> None:
    frames = smooth_frames(2, 40, 50)
    augment = RandAugment.from_words("rand-m7-n3-p0.7-mstd0.5-inc1")
    lengths: Counter[int] = Counter()
    for seed in range(300):
        steps = augment.draw(np.random.default_rng(seed))
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


def test_the_generator_alone_decides() -> None:
    frames = smooth_frames(2, 40, 50)
    results = [
        RandAugment.from_words(RECIPE).apply(frames, np.random.default_rng(seed)) for seed in (3, 3, 4, 5, 6)
    ]
    assert np.array_equal(results[0], results[1])
    assert sum(not np.array_equal(results[0], other) for other in results[2:]) >= 2


def test_a_still_clip_stays_still_and_the_frames_are_left() -> None:
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
