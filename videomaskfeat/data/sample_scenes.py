"""The moving pictures of the sample data: textured sprites that follow one of twelve motions.

The class of a clip is its motion alone. Position (on a torus), angle and size phase of every sprite start
uniform and every motion only shifts them, so at each instant, the first and the last included, they are
uniform again for every class: a single frame holds no trace of the label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np

# A sprite's radius runs through this range (in picture sides) as its size phase goes from 0 to 1.
SMALLEST_RADIUS = 0.16
LARGEST_RADIUS = 0.3
SPEED = 0.55  # picture sides a second, for the straight motions
TURNS_PER_SECOND = 0.65
SIZE_PHASES_PER_SECOND = 0.7
SWING = 0.13  # picture sides to each side of the middle, for bounce and orbit
SWINGS_PER_SECOND = 1.15
_TEXTURE_SIDE = 64
MotionFunction = Callable[[np.ndarray, float], np.ndarray]


def _pose(
    seconds: np.ndarray, *, x: object = 0.0, y: object = 0.0, angle: object = 0.0, size: object = 0.0
) -> np.ndarray:
    columns = [
        np.broadcast_to(np.asarray(value, dtype=np.float64), seconds.shape) for value in (x, y, angle, size)
    ]
    return np.stack(columns, axis=1)


def _triangle(phase: np.ndarray) -> np.ndarray:
    """A triangle wave of period 1 between -1 and 1."""
    return 4 * np.abs((phase % 1.0) - 0.5) - 1


def _swing(seconds: np.ndarray, start: float) -> np.ndarray:
    return SWING * _triangle(SWINGS_PER_SECOND * seconds + start)


def _orbit(seconds: np.ndarray, start: float, sense: int) -> np.ndarray:
    turn = 2 * np.pi * (SWINGS_PER_SECOND * seconds * sense + start)
    return _pose(seconds, x=SWING * np.cos(turn), y=SWING * np.sin(turn))


# Offsets [T, 4] of (x, y, angle, size phase) at given seconds. The second argument is a phase in 0..1 that
# only the periodic motions use. y points down, so a growing angle turns clockwise on the screen.
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
    """A textured shape and where it is at each frame.

    motion: a name in MOTIONS.
    texture: uint8 [64, 64, 3].
    alpha: float32 [64, 64] in 0..1, with soft edges.
    outline: float [corners, 2] (x, y), the farthest corner on the unit circle.
    centres: float [T, 2] (x, y) in picture sides, 0..1 on a torus.
    turns: float [T], in full turns, clockwise.
    radii: float [T] in picture sides.
    """

    motion: str
    texture: np.ndarray
    alpha: np.ndarray
    outline: np.ndarray
    centres: np.ndarray
    turns: np.ndarray
    radii: np.ndarray

    def extent(self, index: int) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) of the outline around its centre at a frame, in picture sides."""
        angle = 2 * np.pi * self.turns[index]
        rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        corners = self.radii[index] * self.outline @ rotation  # [corners, 2]
        (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
        return float(left), float(top), float(right), float(bottom)


@dataclass(frozen=True)
class Scene:
    """A background texture that drifts, and the sprites in front of it, the last one in front of all.

    background: uint8 [S, S, 3], periodic; drift: float [T, 2] (x, y) pixels.
    """

    background: np.ndarray
    drift: np.ndarray
    sprites: tuple[Sprite, ...]

    def frames(self) -> Iterator[np.ndarray]:
        """The pictures, uint8 [S, S, 3] each."""
        return (render_frame(self, index) for index in range(len(self.drift)))


def make_scene(motions: list[str], rng: np.random.Generator, *, frames: int, size: int, fps: float) -> Scene:
    """A scene with one sprite for each motion (names in MOTIONS), everything else random.

    The generator never looks at the motions. The picture is a square of ``size`` pixels; ``fps`` scales
    speeds.
    """
    seconds = np.arange(frames) / fps
    background = _background(rng, size)
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
    centres = np.stack([x, y], axis=1) % 1.0
    texture = _sprite_texture(rng, background.reshape(-1, 3).mean(axis=0))
    outline = _outline(rng)
    return Sprite(motion, texture, _fill(outline), outline, centres, turns, radii)


def render_frame(scene: Scene, index: int) -> np.ndarray:
    """One picture of a scene, uint8 [S, S, 3]."""
    size = scene.background.shape[0]
    x, y = scene.drift[index]
    shift = np.array([[1, 0, x], [0, 1, y]], dtype=np.float64)
    picture = cv2.warpAffine(
        scene.background, shift, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
    )
    for sprite in scene.sprites:
        for centre in copies_in_view(sprite, index):
            _paste(picture, sprite, index, centre)
    return picture


def copies_in_view(sprite: Sprite, index: int) -> list[tuple[float, float]]:
    """Centres (picture sides) of the sprite's copies on the torus that reach into the picture: 1, 2 or 4."""
    x, y = sprite.centres[index]
    reach = sprite.radii[index]
    return [
        (x + dx, y + dy)
        for dx in (-1, 0, 1)
        for dy in (-1, 0, 1)
        if -reach < x + dx < 1 + reach and -reach < y + dy < 1 + reach
    ]


def _paste(picture: np.ndarray, sprite: Sprite, index: int, centre: tuple[float, float]) -> None:
    """Blend one copy of the sprite into the picture, in place."""
    size = picture.shape[0]
    radius = sprite.radii[index] * size
    left, top = (max(int(np.floor(c * size - radius)) - 1, 0) for c in centre)
    right, bottom = (min(int(np.ceil(c * size + radius)) + 2, size) for c in centre)
    if right <= left or bottom <= top:
        return
    scale = 2 * radius / _TEXTURE_SIDE
    angle = 2 * np.pi * sprite.turns[index]
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    middle = (_TEXTURE_SIDE - 1) / 2
    x, y = (c * size - 0.5 for c in centre)  # pixel centres sit at half integers of the picture's own measure
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
    """Periodic noise in 0..1, float32 [side, side], with features of side / cells pixels."""
    coarse = rng.random((cells, cells), dtype=np.float32)
    pad = 2
    tiled = np.pad(coarse, pad, mode="wrap")
    step = side / cells
    fine = cv2.resize(tiled, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
    margin = round(pad * step)
    return fine[margin : margin + side, margin : margin + side]


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Soft clouds and a little fine noise around a random dim colour, uint8 [size, size, 3].

    The clouds have contrast enough to carry gradients that survive compression: HOG is normalised a cell, so
    in a fainter background it would be made of noise, which nobody can predict.
    """
    colour = rng.uniform(80, 150, size=3).astype(np.float32)
    clouds = _smooth_noise(rng, size, 5) - 0.5
    fine = _smooth_noise(rng, size, 14) - 0.5
    tint = rng.uniform(0.6, 1.0, size=3).astype(np.float32)
    picture = colour + (160 * clouds + 20 * fine)[..., None] * tint
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _sprite_texture(rng: np.random.Generator, background: np.ndarray) -> np.ndarray:
    """Stripes, checks or blotches of two colours far from the background's, uint8 [64, 64, 3]."""
    base = far_color(rng, background[None], 110)
    accent = far_color(rng, np.stack([background, base]), 90)
    axis = np.linspace(-1, 1, _TEXTURE_SIDE, dtype=np.float32)
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
        wave = 2 * (_smooth_noise(rng, _TEXTURE_SIDE, 4) - 0.5)
    share = 1 / (1 + np.exp(-8 * wave[..., None]))  # soft steps: no aliasing when the sprite is drawn small
    return np.clip(np.rint(base + share * (accent - base)), 0, 255).astype(np.uint8)


def far_color(rng: np.random.Generator, others: np.ndarray, distance: float) -> np.ndarray:
    """A colour, float [3], at least ``distance`` from each of ``others`` [n, 3], or the farthest of 20."""
    draws = rng.uniform(0, 255, size=(20, 3))
    gaps = np.linalg.norm(draws[:, None] - others[None], axis=2).min(axis=1)  # [20]
    far = np.flatnonzero(gaps >= distance)
    return draws[far[0] if len(far) else int(gaps.argmax())]


def _outline(rng: np.random.Generator) -> np.ndarray:
    """Corners of a polygon without rotational symmetry, float [3..8, 2], the farthest on the unit circle."""
    corners = int(rng.integers(3, 9))
    angles = (np.arange(corners) + rng.uniform(-0.3, 0.3, size=corners)) * 2 * np.pi / corners
    lengths = rng.uniform(0.6, 1.0, size=corners)
    lengths /= lengths.max()
    return lengths[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _fill(outline: np.ndarray) -> np.ndarray:
    """The polygon's opacity with soft edges, float32 [64, 64] in 0..1."""
    reach = _TEXTURE_SIDE / 2 - 1.5  # the soft rim stays inside the texture
    points = reach * outline + (_TEXTURE_SIDE - 1) / 2
    alpha = np.zeros((_TEXTURE_SIDE, _TEXTURE_SIDE), np.uint8)
    cv2.fillPoly(alpha, [np.rint(points * 16).astype(np.int32)], 255, lineType=cv2.LINE_AA, shift=4)
    return alpha.astype(np.float32) / 255
