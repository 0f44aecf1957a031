"""Scenes of the sample videos: textured sprites with one of twelve motions.

The class of a video is the motion. Position (on a torus), angle and size phase of a sprite are uniform at the
start, and motions only shift them, so they are uniform at any time for all classes: a single frame contains
no information about the label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np

# Radius of a sprite (in frame sides) at size phase 0 and 1.
SMALLEST_RADIUS = 0.16
LARGEST_RADIUS = 0.3
SPEED = 0.55  # frame sides per second, for straight motions
TURNS_PER_SECOND = 0.65
SIZE_PHASES_PER_SECOND = 0.7
SWING = 0.13  # amplitude in frame sides, for bounces and circles
SWINGS_PER_SECOND = 1.15
TEXTURE_SIDE = 64
MotionFunction = Callable[[np.ndarray, float], np.ndarray]


def _pose(
    seconds: np.ndarray, *, x: object = 0.0, y: object = 0.0, angle: object = 0.0, size: object = 0.0
) -> np.ndarray:
    columns = [
        np.broadcast_to(np.asarray(value, dtype=np.float64), seconds.shape) for value in (x, y, angle, size)
    ]
    return np.stack(columns, axis=1)


def _triangle(phase: np.ndarray) -> np.ndarray:
    """Triangle wave of period 1 between -1 and 1."""
    return 4 * np.abs((phase % 1.0) - 0.5) - 1


def _swing(seconds: np.ndarray, start: float) -> np.ndarray:
    return SWING * _triangle(SWINGS_PER_SECOND * seconds + start)


def _orbit(seconds: np.ndarray, start: float, sense: int) -> np.ndarray:
    turn = 2 * np.pi * (SWINGS_PER_SECOND * seconds * sense + start)
    return _pose(seconds, x=SWING * np.cos(turn), y=SWING * np.sin(turn))


# (seconds, phase) -> offsets [T, 4] of x, y, angle and size phase. Only periodic motions use the phase, 0..1.
# y points down, so a growing angle is a clockwise rotation.
MOTIONS: dict[str, MotionFunction] = {
    "move left": lambda s, _: _pose(s, x=-SPEED * s),
    "move right": lambda s, _: _pose(s, x=SPEED * s),
    "move up": lambda s, _: _pose(s, y=-SPEED * s),
    "move down": lambda s, _: _pose(s, y=SPEED * s),
    "turn clockwise": lambda s, _: _pose(s, angle=TURNS_PER_SECOND * s),
    "turn anticlockwise": lambda s, _: _pose(s, angle=-TURNS_PER_SECOND * s),
    "grow": lambda s, _: _pose(s, size=SIZE_PHASES_PER_SECOND * s),
    "shrink": lambda s, _: _pose(s, size=-SIZE_PHASES_PER_SECOND * s),
    "bounce sideways": lambda s, phase: _pose(s, x=_swing(s, phase)),
    "bounce up and down": lambda s, phase: _pose(s, y=_swing(s, phase)),
    "circle clockwise": lambda s, phase: _orbit(s, phase, 1),
    "circle anticlockwise": lambda s, phase: _orbit(s, phase, -1),
}


@dataclass(frozen=True)
class Sprite:
    """A textured shape and its pose in each frame.

    Attributes:
        motion: a name in MOTIONS.
        texture: uint8 [64, 64, 3].
        alpha: opacity with soft edges, float32 [64, 64] in 0..1.
        outline: float [corners, 2] (x, y), the farthest corner on the unit circle.
        centers: float [T, 2] (x, y) in frame sides, 0..1 on a torus.
        turns: float [T], clockwise, in full turns.
        radii: float [T] in frame sides.
    """

    motion: str
    texture: np.ndarray
    alpha: np.ndarray
    outline: np.ndarray
    centers: np.ndarray
    turns: np.ndarray
    radii: np.ndarray

    def extent(self, index: int) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) of the outline around its center at a frame, in picture sides."""
        angle = 2 * np.pi * self.turns[index]
        rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        corners = self.radii[index] * self.outline @ rotation  # [corners, 2]
        (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
        return float(left), float(top), float(right), float(bottom)


@dataclass(frozen=True)
class Scene:
    """A drifting background and sprites, the last one in front.

    Attributes:
        background: periodic texture, uint8 [S, S, 3].
        drift: offset of the background, float [T, 2] (x, y) in pixels.
        sprites: the sprites.
    """

    background: np.ndarray
    drift: np.ndarray
    sprites: tuple[Sprite, ...]

    def frames(self) -> Iterator[np.ndarray]:
        """Render the frames, uint8 [S, S, 3] each."""
        return (render_frame(self, index) for index in range(len(self.drift)))


def make_scene(motions: list[str], rng: np.random.Generator, *, frames: int, size: int, fps: float) -> Scene:
    """Build a random scene of ``size`` x ``size`` pixels with one sprite per motion (names in MOTIONS).

    Random numbers do not depend on the motions.
    """
    seconds = np.arange(frames) / fps
    background = draw_background(rng, size)
    direction, speed = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.25) * size
    drift = seconds[:, None] * speed * np.array([np.cos(direction), np.sin(direction)])  # [T, 2]
    sprites = tuple(_make_sprite(motion, rng, seconds, background) for motion in motions)
    return Scene(background, drift, sprites)


def _make_sprite(
    motion: str, rng: np.random.Generator, seconds: np.ndarray, background: np.ndarray
) -> Sprite:
    start = rng.random(4)
    pace = rng.uniform(0.85, 1.15)
    offsets = MOTIONS[motion](seconds * pace, float(rng.random()))
    x, y, turns, size_phase = (start + offsets).T
    radii = SMALLEST_RADIUS * (LARGEST_RADIUS / SMALLEST_RADIUS) ** (size_phase % 1.0)
    centers = np.stack([x, y], axis=1) % 1.0
    texture = _sprite_texture(rng, background.reshape(-1, 3).mean(axis=0))
    outline = _outline(rng)
    return Sprite(motion, texture, _fill(outline), outline, centers, turns, radii)


def render_frame(scene: Scene, index: int) -> np.ndarray:
    """Render one frame of a scene, uint8 [S, S, 3]."""
    size = scene.background.shape[0]
    x, y = scene.drift[index]
    shift = np.array([[1, 0, x], [0, 1, y]], dtype=np.float64)
    picture = cv2.warpAffine(
        scene.background, shift, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
    )
    for sprite in scene.sprites:
        for center in copies_in_view(sprite, index):
            _paste(picture, sprite, index, center)
    return picture


def copies_in_view(sprite: Sprite, index: int) -> list[tuple[float, float]]:
    """Centers (in frame sides) of the visible copies of a sprite on the torus: 1, 2 or 4."""
    x, y = sprite.centers[index]
    reach = sprite.radii[index]
    return [
        (x + dx, y + dy)
        for dx in (-1, 0, 1)
        for dy in (-1, 0, 1)
        if -reach < x + dx < 1 + reach and -reach < y + dy < 1 + reach
    ]


def _paste(picture: np.ndarray, sprite: Sprite, index: int, center: tuple[float, float]) -> None:
    """Blend one copy of a sprite into a frame in place."""
    size = picture.shape[0]
    radius = sprite.radii[index] * size
    left, top = (max(int(np.floor(c * size - radius)) - 1, 0) for c in center)
    right, bottom = (min(int(np.ceil(c * size + radius)) + 2, size) for c in center)
    if right <= left or bottom <= top:
        return
    scale = 2 * radius / TEXTURE_SIDE
    angle = 2 * np.pi * sprite.turns[index]
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    middle = (TEXTURE_SIDE - 1) / 2
    x, y = (c * size - 0.5 for c in center)  # pixel centers are at half integers
    matrix = np.array([[cos, -sin, x - left], [sin, cos, y - top]])
    matrix[:, 2] -= matrix[:, :2] @ np.array([middle, middle])
    target = (right - left, bottom - top)
    texture = cv2.warpAffine(
        sprite.texture, matrix, target, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    alpha = cv2.warpAffine(sprite.alpha, matrix, target, flags=cv2.INTER_LINEAR)[..., None]
    window = picture[top:bottom, left:right]
    window[:] = np.rint(window + alpha * (texture.astype(np.float32) - window))


def _smooth_noise(rng: np.random.Generator, side: int, cells: int) -> np.ndarray:
    """Periodic noise in 0..1 with features of side / cells pixels, float32 [side, side]."""
    coarse = rng.random((cells, cells), dtype=np.float32)
    pad = 2
    tiled = np.pad(coarse, pad, mode="wrap")
    step = side / cells
    fine = cv2.resize(tiled, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
    margin = round(pad * step)
    return fine[margin : margin + side, margin : margin + side]


def draw_background(
    rng: np.random.Generator,
    size: int,
    *,
    brightness: tuple[float, float] = (80, 150),
    contrast: float = 160,
    clouds: int = 5,
    grain: float = 20,
) -> np.ndarray:
    """Clouds and fine noise around a random color, uint8 [size, size, 3].

    The contrast is high enough for gradients to survive compression: HOG is normalized per cell, so in a
    fainter background it would be unpredictable noise.

    Args:
        rng: source of randomness.
        size: height and width in pixels.
        brightness: range of each channel of the color, in 0..255.
        contrast: range of the clouds, in levels.
        clouds: number of clouds per side.
        grain: range of the fine noise, in levels.
    """
    color = rng.uniform(*brightness, size=3).astype(np.float32)
    cloudy = _smooth_noise(rng, size, clouds) - 0.5
    fine = _smooth_noise(rng, size, 14) - 0.5
    tint = rng.uniform(0.6, 1.0, size=3).astype(np.float32)
    picture = color + (contrast * cloudy + grain * fine)[..., None] * tint
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _sprite_texture(rng: np.random.Generator, background: np.ndarray) -> np.ndarray:
    """Stripes, checks or blotches of two colors that differ from the background, uint8 [64, 64, 3]."""
    base = far_color(rng, background[None], 110)
    accent = far_color(rng, np.stack([background, base]), 90)
    return np.clip(np.rint(base + draw_pattern(rng) * (accent - base)), 0, 255).astype(np.uint8)


def draw_pattern(rng: np.random.Generator) -> np.ndarray:
    """Random stripes, checks or blotches with soft edges, float [64, 64, 1] in 0..1."""
    axis = np.linspace(-1, 1, TEXTURE_SIDE, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    angle = rng.uniform(0, np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = -x * np.sin(angle) + y * np.cos(angle)
    frequency, phase = rng.uniform(4, 7), rng.uniform(0, 2 * np.pi)
    kind = rng.integers(3)
    if kind == 0:
        wave = np.sin(frequency * along + phase)
    elif kind == 1:
        wave = np.sin(frequency * along + phase) * np.sin(frequency * across + phase)
    else:
        wave = 2 * (_smooth_noise(rng, TEXTURE_SIDE, 4) - 0.5)
    return 1 / (1 + np.exp(-8 * wave[..., None]))  # soft steps against aliasing


def far_color(rng: np.random.Generator, others: np.ndarray, distance: float) -> np.ndarray:
    """Sample a color, float [3], with a distance to all ``others`` [n, 3]; or the farthest of 20 colors."""
    colors = rng.uniform(0, 255, size=(20, 3))
    distances = np.linalg.norm(colors[:, None] - others[None], axis=2).min(axis=1)  # [20]
    far = np.flatnonzero(distances >= distance)
    return colors[far[0] if len(far) else int(distances.argmax())]


def _outline(rng: np.random.Generator) -> np.ndarray:
    """Corners of an asymmetric polygon, float [3..8, 2], the farthest on the unit circle."""
    corners = int(rng.integers(3, 9))
    angles = (np.arange(corners) + rng.uniform(-0.3, 0.3, size=corners)) * 2 * np.pi / corners
    lengths = rng.uniform(0.6, 1.0, size=corners)
    lengths /= lengths.max()
    return lengths[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _fill(outline: np.ndarray) -> np.ndarray:
    """Opacity of a polygon with soft edges, float32 [64, 64] in 0..1."""
    reach = TEXTURE_SIDE / 2 - 1.5  # the soft edge is inside the texture
    points = reach * outline + (TEXTURE_SIDE - 1) / 2
    alpha = np.zeros((TEXTURE_SIDE, TEXTURE_SIDE), np.uint8)
    cv2.fillPoly(alpha, [np.rint(points * 16).astype(np.int32)], 255, lineType=cv2.LINE_AA, shift=4)
    return alpha.astype(np.float32) / 255
