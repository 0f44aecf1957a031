"""Sample videos with several independent factors: one handwritten digit that moves over a cloudy background.

A clip has one label per factor. All labels are drawn independently, and every other choice is random. Motion,
speed and the direction of time leave no trace in a single frame: position (in a square around the middle of
the frame), angle and size within a scale are uniform at each instant for every motion, and so is the phase of
the brightness. What leaves its range starts over at the other end.

The factors are readable from a clip of 32x32 pixels: digits have 0.56 to 0.89 of the height of the frame, and
they are brighter than the background.

The digits are the 1,797 pictures of the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin
and C. Kaynak, 1998, UCI Machine Learning Repository, https://doi.org/10.24432/C50P49, CC BY 4.0), stored in
``digits.npz`` in the order of scikit-learn's ``load_digits``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from videomaskfeat.data.sample_scenes import (
    MOTIONS,
    SIZE_PHASES_PER_SECOND,
    SPEED,
    TEXTURE_SIDE,
    TURNS_PER_SECOND,
    Scene,
    Sprite,
    draw_background,
    draw_pattern,
    render_frame,
)
from videomaskfeat.io import whole_file
from videomaskfeat.mp4 import write_mp4

_FACTORS = 5  # tag of the random streams of these videos; sample.py and sample_images.py use others
SCALES = {"small": 0.31, "medium": 0.366, "large": 0.432}  # smallest radius, in sides of the frame
LARGEST_GROWTH = 1.14  # of the radius within a scale; the scales do not overlap
ROOM = 0.24  # side of the square of the digit's centers, in sides of the frame: little of a digit is cut off
SPEEDS = {"slow": 0.6, "medium": 1.0, "fast": 1.6}  # relative to PASSES_PER_SECOND
PASSES_PER_SECOND = 1.0  # through the range of position, angle or size, for steady motions
_PACE_JITTER = 0.1
COLORS = {
    "red": (255, 150, 150),
    "yellow": (250, 250, 140),
    "green": (150, 255, 150),
    "cyan": (140, 250, 250),
    "blue": (150, 160, 255),
    "magenta": (255, 150, 255),
}
POSITIONS = ("upper left", "upper right", "lower left", "lower right")
# The light jumps up and fades, or the same played backward.
DIRECTIONS = ("forward", "backward")
FACTORS: dict[str, tuple[str, ...]] = {
    "motion": tuple(MOTIONS),
    "appearance": tuple("0123456789"),
    "scale": tuple(SCALES),
    "position": POSITIONS,
    "speed": tuple(SPEEDS),
    "color": tuple(COLORS),
    "time": DIRECTIONS,
}
"""Class names of each factor, indexed by label."""
_LARGEST_LEAN = 15.0  # degrees to either side: a 6 stays different from a 9
_PULSE_SECONDS = 2.5
_DARKEST = 0.5  # relative brightness at the end of a fade
_GLYPH_SIDE = 58  # of the sprite's 64 pixels
_HELD_OUT_DIGITS = 5  # one digit in five is only in the videos of val and test


def draw_labels(number: int, *, seed: int) -> dict[str, int]:
    """The label of each factor of video ``number``, drawn independently and uniformly."""
    rng = np.random.default_rng([_FACTORS, seed, number])
    return {name: int(rng.integers(len(classes))) for name, classes in FACTORS.items()}


@dataclass(frozen=True)
class FactorScene:
    """A moving digit in light that changes.

    Attributes:
        scene: the background and one sprite.
        brightness: factor on the colors of each frame, float [T] in 0.5..1.
    """

    scene: Scene
    brightness: np.ndarray

    def render(self, index: int) -> np.ndarray:
        """Frame ``index``, uint8 [S, S, 3]."""
        return np.rint(render_frame(self.scene, index) * self.brightness[index]).astype(np.uint8)

    def frames(self) -> Iterator[np.ndarray]:
        """All frames."""
        return map(self.render, range(len(self.brightness)))


def factor_scene(
    number: int, *, held_out: bool, frames: int, size: int, fps: float, seed: int
) -> FactorScene:
    """The scene of video ``number``, with the labels of `draw_labels`.

    Args:
        number: number of the video.
        held_out: whether the digit is one of the pictures for val and test.
        frames: frames per video.
        size: height and width in pixels.
        fps: frame rate, which scales the speeds.
        seed: seed of all videos.
    """
    labels = draw_labels(number, seed=seed)
    names = {factor: FACTORS[factor][label] for factor, label in labels.items()}
    rng = np.random.default_rng([_FACTORS, seed, number, 1])
    seconds = np.arange(frames) / fps
    centers, turns, radii = _draw_path(names, rng, seconds)
    direction, drift = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.1) * size
    background = draw_background(rng, size, brightness=(15, 40), contrast=40, clouds=3, grain=0)
    shade = 0.9 + 0.1 * draw_pattern(rng)  # [64, 64, 1]
    sprite = Sprite(
        motion=names["motion"],
        texture=np.rint(shade * np.array(COLORS[names["color"]])).astype(np.uint8),
        alpha=_draw_digit(labels["appearance"], rng, held_out=held_out),
        outline=np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / np.sqrt(2),
        centers=centers,
        turns=turns,
        radii=radii,
    )
    moved = seconds[:, None] * drift * np.array([np.cos(direction), np.sin(direction)])  # [T, 2]
    sign = 1 if names["time"] == "forward" else -1
    fade = (sign * seconds / _PULSE_SECONDS + rng.random()) % 1.0
    return FactorScene(Scene(background, moved, (sprite,)), 1 - (1 - _DARKEST) * fade)


def _draw_path(
    names: Mapping[str, str], rng: np.random.Generator, seconds: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centers [T, 2], turns [T] and radii [T] for the named motion, speed, position and scale."""
    pace = SPEEDS[names["speed"]] * rng.uniform(1 - _PACE_JITTER, 1 + _PACE_JITTER)
    motion, phase = MOTIONS[names["motion"]], float(rng.random())
    offsets = motion(pace * seconds, phase)  # [T, 4]
    offsets *= PASSES_PER_SECOND / np.array([SPEED, SPEED, TURNS_PER_SECOND, SIZE_PHASES_PER_SECOND])
    # The position is the quadrant at this moment.
    middle = motion(pace * seconds[-1:] / 2, phase)[0, :2] * PASSES_PER_SECOND / SPEED
    quadrant = np.array([names["position"].endswith("right"), names["position"].startswith("lower")])
    start = (rng.random(2) + quadrant) / 2 - middle
    centers = 0.5 + ROOM * ((start + offsets[:, :2]) % 1.0 - 0.5)
    lean = 2 * ((rng.random() + offsets[:, 2]) % 1.0) - 1
    radii = SCALES[names["scale"]] * LARGEST_GROWTH ** ((rng.random() + offsets[:, 3]) % 1.0)
    return centers, _LARGEST_LEAN / 360 * lean, radii


def _draw_digit(label: int, rng: np.random.Generator, *, held_out: bool) -> np.ndarray:
    """The opacity of a random handwritten digit of a class, float32 [64, 64] in 0..1."""
    pictures, labels = load_digits()
    numbers = np.flatnonzero(
        (labels == label) & ((np.arange(len(labels)) % _HELD_OUT_DIGITS == 0) == held_out)
    )
    picture = pictures[rng.choice(numbers)].astype(np.float32) / 16
    glyph = cv2.resize(picture, (_GLYPH_SIDE, _GLYPH_SIDE), interpolation=cv2.INTER_CUBIC)
    margin = (TEXTURE_SIDE - _GLYPH_SIDE) // 2
    # A steeper edge than the interpolation's: strokes are opaque, and their rim covers few pixels.
    return np.pad(np.clip(1.8 * glyph - 0.3, 0, 1), margin).astype(np.float32)


@cache
def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """The handwritten digits uint8 [1797, 8, 8] with values 0..16, and their labels uint8 [1797]."""
    with np.load(Path(__file__).parent / "digits.npz") as file:
        return file["pictures"], file["labels"]


def write_factor_video(
    folder: Path, number: int, *, held_out: bool, frames: int, size: int, fps: float, seed: int
) -> None:
    """Write video ``number`` into ``folder/videos``, which exists."""
    scene = factor_scene(number, held_out=held_out, frames=frames, size=size, fps=fps, seed=seed)
    write_mp4(folder / "videos" / f"{number:06d}.mp4", scene.frames(), fps=fps)


def write_factor_lists(folder: Path, splits: Mapping[str, Sequence[int]], *, few: int, seed: int) -> None:
    """Write a list ``path label`` per factor and split, the first ``few`` training videos of each class, and
    the class names of each factor."""
    for factor, classes in FACTORS.items():
        files = {f"classes_{factor}.txt": [f"{name}\n" for name in classes]}
        for split, numbers in splits.items():
            labels = [draw_labels(number, seed=seed)[factor] for number in numbers]
            rows = [
                f"videos/{number:06d}.mp4 {label}\n" for number, label in zip(numbers, labels, strict=True)
            ]
            files[f"{split}_{factor}.csv"] = rows
            if split == "train":
                chosen = [row for i, row in enumerate(rows) if labels[: i + 1].count(labels[i]) <= few]
                files[f"train_few_{factor}.csv"] = chosen
        for name, lines in files.items():
            with whole_file(folder / name) as file:
                file.writelines(lines)
