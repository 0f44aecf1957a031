"""The moving pictures of the sample data: textured sprites that follow one of twelve motions.

The class of a clip is its motion alone. Position (on a torus), angle and size phase of every sprite start
uniform and every motion only shifts them, so at each instant, the first and the last included, they are
uniform again for every class: a single frame holds no trace of the label.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import cv2
import numpy as np

from videomaskfeat.errors import UserError
from videomaskfeat.io import make_folder, whole_file
from videomaskfeat.mp4 import write_mp4

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
    """A scene with one sprite for each motion, everything else random.

    Args:
        motions: names in MOTIONS, one a sprite.
        rng: draws appearance, positions and phases; never looks at the motions.
        frames: length.
        size: side of the square picture in pixels.
        fps: frames a second; speeds are given a second.
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
    base = far_colour(rng, background[None], 110)
    accent = far_colour(rng, np.stack([background, base]), 90)
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


def far_colour(rng: np.random.Generator, others: np.ndarray, distance: float) -> np.ndarray:
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


# The pictures of the sample: a light shape on a dark ground, both striped; the shape is the class.
_IMAGE = 4  # tag of the pictures' streams; those of the videos are in sample.py
_VALIDATES = 5  # one picture in so many is held out
_SMALLEST_RADIUS, _LARGEST_RADIUS = 0.2, 0.3  # of a disc of a shape's area, in picture sides
_LARGEST_TURN = 30.0  # degrees, to either side
_DARK, _LIGHT = (40, 110), (145, 215)  # levels of the ground's and of the shape's colour, before stripes
_STRIPE_DEPTH = 35  # levels, to either side
_SHORTEST_STRIPE, _LONGEST_STRIPE = 0.08, 0.14  # in picture sides; at 64 pixels at most a HOG cell and a bit
_FINE = 4  # points a pixel and axis, whose mean is the opacity: soft edges
_GRID = 400  # points an axis on which a shape's area is measured
Inside = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _polygon(x: np.ndarray, y: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Whether points lie in a polygon, corners [n, 2]: a ray to the right meets an odd number of edges."""
    inside = np.zeros(x.shape, np.bool_)
    for (x1, y1), (x2, y2) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y1 != y2:
            inside ^= ((y1 > y) != (y2 > y)) & (x < (x2 - x1) * (y - y1) / (y2 - y1) + x1)
    return inside


def _spikes(*lengths: float) -> np.ndarray:
    """Corners around the centre at equal angles, the first at the top, [n, 2]."""
    angles = 2 * np.pi * np.arange(len(lengths)) / len(lengths)
    return np.array(lengths)[:, None] * np.stack([np.sin(angles), -np.cos(angles)], axis=1)


# Whether points (x, y) lie in the shape, which fills about -1..1; y points down. Sorted, so that the place is
# the label in class folders as well.
SHAPES: dict[str, Inside] = {
    "bar": lambda x, y: (abs(x) < 1) & (abs(y) < 0.28),
    "corner": lambda x, y: (np.maximum(abs(x), abs(y)) < 1) & ((x < -0.35) | (y > 0.35)),
    "crescent": lambda x, y: (x**2 + y**2 < 1) & ((x - 0.5) ** 2 + y**2 > 0.64),
    "cross": lambda x, y: (np.maximum(abs(x), abs(y)) < 1) & (np.minimum(abs(x), abs(y)) < 0.3),
    "disc": lambda x, y: x**2 + y**2 < 1,
    "heart": lambda x, y: (1.44 * (x**2 + y**2) - 1) ** 3 + 2.5 * x**2 * y**3 < 0,
    "ring": lambda x, y: abs(x**2 + y**2 - 0.7) < 0.3,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) < 1,
    "star": lambda x, y: _polygon(x, y, _spikes(*(1.0, 0.42) * 5)),
    "triangle": lambda x, y: _polygon(x, y, _spikes(1.0, 1.0, 1.0)),
}


def sample_image(number: int, *, size: int, seed: int) -> np.ndarray:
    """Picture ``number``, uint8 [size, size, 3], RGB; its class is ``number`` modulo 10."""
    rng = np.random.default_rng([_IMAGE, seed, number])
    radius = rng.uniform(_SMALLEST_RADIUS, _LARGEST_RADIUS) * size
    room = 1.3 * radius  # the farthest corners of most shapes stay inside
    centre = rng.uniform(room, size - room, size=2)
    turn = np.deg2rad(rng.uniform(-_LARGEST_TURN, _LARGEST_TURN))
    name = list(SHAPES)[number % len(SHAPES)]
    points = (np.arange(size * _FINE) + 0.5) / _FINE  # pixels of the picture
    x, y = np.meshgrid(points - centre[0], points - centre[1])
    scale = _disc_over_shape(name) * radius
    across = (x * np.cos(turn) + y * np.sin(turn)) / scale
    down = (y * np.cos(turn) - x * np.sin(turn)) / scale
    inside = SHAPES[name](across, down).astype(np.float32)
    alpha = cv2.resize(inside, (size, size), interpolation=cv2.INTER_AREA)[..., None]
    ground = rng.uniform(*_DARK, size=3) + _stripes(rng, size)
    cover = rng.uniform(*_LIGHT, size=3) + _stripes(rng, size)
    return np.rint(ground + alpha * (cover - ground)).astype(np.uint8)


def _stripes(rng: np.random.Generator, size: int) -> np.ndarray:
    """Waves of brightness along a random line, of random length and phase, [size, size, 1].

    Their direction is the same all over, so the HOG of a hidden part can be told from the parts beside it.
    """
    angle = rng.uniform(0, np.pi)
    length = rng.uniform(_SHORTEST_STRIPE, _LONGEST_STRIPE) * size
    points = np.arange(size) + 0.5
    along = points * np.cos(angle) + points[:, None] * np.sin(angle)
    wave = np.sin(2 * np.pi * (along / length + rng.uniform()))
    return _STRIPE_DEPTH * wave[..., None]


def write_image(folder: Path, number: int, *, images: int, size: int, seed: int) -> None:
    """Write picture ``number`` of ``images`` as a PNG into its class folder, which exists."""
    picture = cv2.cvtColor(sample_image(number, size=size, seed=seed), cv2.COLOR_RGB2BGR)
    with whole_file(folder / _path(number, images), "wb") as file:
        file.write(cv2.imencode(".png", picture)[1].tobytes())


def check_images(images: int) -> None:
    """Raise UserError if there are too few pictures for one of each class in each split."""
    least = _VALIDATES * len(SHAPES)
    if images < least:
        raise UserError(
            f"images={images}: each of the {len(SHAPES)} classes needs a picture in the validation split, "
            f"which takes one in {_VALIDATES}; take at least {least}, or 0 for none"
        )


def make_image_folders(folder: str | os.PathLike[str], images: int) -> None:
    """Create the class folders of both splits.

    Raises:
        UserError: too few pictures, see :func:`check_images`.
    """
    check_images(images)
    for split in ("train", "val"):
        for name in SHAPES:
            make_folder(Path(folder, split, name))


def write_image_lists(folder: Path, images: int, *, few: int) -> None:
    """The lists `path label` of both splits and of ``few`` training pictures a class; the classes' names."""
    for split in ("train", "val"):
        rows = [
            f"{_path(number, images)} {number % len(SHAPES)}\n"
            for number in range(images)
            if _split(number, images) == split
        ]
        with whole_file(folder / f"{split}.csv") as file:
            file.writelines(rows)
        if split == "train":  # the labels of its rows go round and round
            with whole_file(folder / "train_few.csv") as file:
                file.writelines(rows[: few * len(SHAPES)])
    with whole_file(folder / "classes.txt") as file:
        file.writelines(f"{name}\n" for name in SHAPES)


@cache
def _disc_over_shape(name: str) -> float:
    """The radius at which a shape covers as much as a disc of radius 1."""
    points = (np.arange(_GRID) + 0.5) * 2.4 / _GRID - 1.2
    area = SHAPES[name](*np.meshgrid(points, points)).mean() * 2.4**2
    return float(np.sqrt(np.pi / area))


def _split(number: int, images: int) -> str:
    """Labels go round and round, so both parts are balanced."""
    return "train" if number < images - images // _VALIDATES else "val"


def _path(number: int, images: int) -> str:
    """Of a picture, from the folder of the pictures on."""
    name = list(SHAPES)[number % len(SHAPES)]
    return os.path.join(_split(number, images), name, f"{number:06d}.png")


# The built-in sample data set: small H.264 videos whose class is their motion, and lists in three forms; and
# What a generator draws, beside the user's seed and the video's number: a tag keeps the streams apart.
_CLIP, _ACTORS, _DETECTOR = 1, 2, 3
_HELD_OUT = 10  # one video in ten validates and one in ten tests
_FEW = 20  # labelled videos or pictures a class in train_few.csv
_DENSE = 5  # times a second at which ava_val_tracked_boxes.csv has boxes: actors travel far within a second
AVA_FIRST_SECOND = (
    900  # AVA's cut videos begin at second 900 of the film, and its times count from the film's start
)
_VISIBLE_SHARE = 0.4  # an actor cut by the border counts while this share of its box is in the picture
_README = """Sample data, made by `videomaskfeat sample-data`.
{videos} videos of {frames} frames, {size}x{size} pixels, {fps:g} frames a second, seed {seed}.
The class is the motion alone: a single frame holds no trace of it. Left and right, up and down and the
senses of turning are classes, so never flip or rotate when training on labels.

  videos/                       the videos that both kinds of lists below name
  train.csv val.csv test.csv    Kinetics form, `path label`; paths count from this folder
  train_few.csv                 the first {few} videos of each class in train.csv
  classes.txt                   the class names, one a line, in the order of the labels
  something-something-v2-*.json Something-Something-v2 form; ids are file names in videos/ (prefix: videos)
  ava/                          {ava_videos} longer videos with several actors, an action each, in AVA's form
    videos/                     file time 0 is second {first_second} of the annotations
    annotations/ava_{{train,val}}_v2.2.csv                      video,second,x1,y1,x2,y2,action,person
    annotations/ava_{{train,val}}_predicted_boxes.csv           video,second,x1,y1,x2,y2,,score
    annotations/ava_val_tracked_boxes.csv                       the true boxes, {dense} times a second
    annotations/ava_{{train,val}}_excluded_timestamps_v2.2.csv  video,second: not scored
    annotations/ava_action_list_v2.2.pbtxt                    the actions
  images/                       {images} pictures whose class is a shape; flip and turn them as you like
    train/star/000008.png ...   class folders, as ImageNet has them (data.train=images/train), and val/
    train.csv val.csv           the same as lists, `path label`; classes.txt: the names in their order
    train_few.csv               the first {few} pictures of each class in train.csv
"""


@dataclass(frozen=True)
class _Actor:
    """A box of one actor at one moment, corners as fractions of the picture."""

    video: str
    second: float
    box: tuple[float, float, float, float]
    action: int
    person: int


_Job = Callable[[], list[_Actor]]


def write_sample_data(
    directory: str | os.PathLike[str],
    *,
    videos: int = 400,
    frames: int = 32,
    size: int = 96,
    fps: float = 30.0,
    seed: int = 0,
    ava_videos: int = 12,
    ava_seconds: int = 8,
    images: int = 0,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the sample data set. The same arguments give the same bytes, whatever the number of workers.

    Args:
        directory: created where needed; files of an earlier call are replaced.
        videos: number of classified clips; the label of number i is i modulo 12.
        frames: frames a clip.
        size: side of the square frames and pictures in pixels, even and at least 32.
        fps: frames a second.
        seed: of everything random.
        ava_videos: longer videos with several actors, for detection; 0 leaves ``ava/`` out.
        ava_seconds: length of each of them; every second but the first and the last is a key frame.
        images: pictures with classes of their own, one in five held out; 0 leaves ``images/`` out.
        workers: threads that draw and encode (both leave Python's lock); default the number of CPUs.
        progress: called with (videos written, videos in all) after each video.

    Raises:
        UserError: a size or count that cannot be.
    """
    _check(videos=videos, frames=frames, size=size, fps=fps, ava_videos=ava_videos, ava_seconds=ava_seconds)
    if images:
        check_images(images)
    root = Path(directory)
    make_folder(root / "videos")
    jobs: list[_Job] = [
        partial(_write_clip, root, number, frames=frames, size=size, fps=fps, seed=seed)
        for number in range(videos)
    ]
    if ava_videos:
        make_folder(root / "ava" / "videos")
        make_folder(root / "ava" / "annotations")
        jobs += [
            partial(_write_actors, root, number, seconds=ava_seconds, size=size, fps=fps, seed=seed)
            for number in range(ava_videos)
        ]
    if images:
        make_image_folders(root / "images", images)
        jobs += [
            partial(_write_image, root / "images", number, images=images, size=size, seed=seed)
            for number in range(images)
        ]
    results = _run_all(jobs, workers or os.cpu_count() or 1, progress)
    _write_kinetics_lists(root, videos)
    _write_ssv2_lists(root, videos)
    if ava_videos:
        _write_ava_lists(
            root / "ava" / "annotations", results[videos : videos + ava_videos], ava_seconds, seed
        )
    if images:
        write_image_lists(root / "images", images, few=_FEW)
    text = _README.format(
        videos=videos, frames=frames, size=size, fps=fps, seed=seed, ava_videos=ava_videos,
        first_second=AVA_FIRST_SECOND, few=_FEW, images=images, dense=_DENSE,
    )  # fmt: skip
    _write_text(root / "README.txt", text)


def sample_scene(number: int, *, frames: int, size: int, fps: float, seed: int) -> Scene:
    """The scene behind clip ``number``: two or three sprites, all with the motion of its label."""
    rng = np.random.default_rng([_CLIP, seed, number])
    motion = list(MOTIONS)[number % len(MOTIONS)]
    return make_scene([motion] * int(rng.integers(2, 4)), rng, frames=frames, size=size, fps=fps)


def _check(*, videos: int, frames: int, size: int, fps: float, ava_videos: int, ava_seconds: int) -> None:
    if size < 32 or size % 2:
        raise UserError(
            f"size={size}: sample videos need an even side of at least 32 pixels; "
            f"take {max(32, size + size % 2)}"
        )
    if videos < len(MOTIONS):
        raise UserError(
            f"videos={videos}: each of the {len(MOTIONS)} classes needs a video; take at least {len(MOTIONS)}"
        )
    if frames < 1:
        raise UserError(f"frames={frames}: a video needs at least one frame")
    if not 1 <= fps <= 240:
        raise UserError(f"fps={fps:g}: take a rate between 1 and 240 frames a second")
    if ava_videos and (ava_videos < 2 or ava_seconds < 3):
        raise UserError(
            f"ava_videos={ava_videos}, ava_seconds={ava_seconds}: take 0 videos, or at least 2 (one is held "
            "out) of at least 3 seconds (the first and the last second hold no key frame)"
        )


def _run_all(
    jobs: list[_Job], workers: int, progress: Callable[[int, int], None] | None
) -> list[list[_Actor]]:
    """The jobs' results in their order; the first error is raised after the rest was called off."""
    with ThreadPoolExecutor(max_workers=workers) as pool:
        futures = [pool.submit(job) for job in jobs]
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                if progress is not None:
                    progress(done, len(jobs))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        return [future.result() for future in futures]


def _write_clip(root: Path, number: int, *, frames: int, size: int, fps: float, seed: int) -> list[_Actor]:
    scene = sample_scene(number, frames=frames, size=size, fps=fps, seed=seed)
    write_mp4(root / "videos" / f"{number:06d}.mp4", scene.frames(), fps=fps)
    return []


def _write_image(folder: Path, number: int, *, images: int, size: int, seed: int) -> list[_Actor]:
    write_image(folder, number, images=images, size=size, seed=seed)
    return []


def _write_actors(root: Path, number: int, *, seconds: int, size: int, fps: float, seed: int) -> list[_Actor]:
    """Write a video of two to four actors with an action each, and give the boxes of its key frames."""
    rng = np.random.default_rng([_ACTORS, seed, number])
    names = list(MOTIONS)
    actions = rng.permutation(len(names))[: int(rng.integers(2, 5))]
    frames = round(seconds * fps)
    scene = make_scene([names[action] for action in actions], rng, frames=frames, size=size, fps=fps)
    video = f"actors_{number:03d}"
    write_mp4(root / "ava" / "videos" / f"{video}.mp4", scene.frames(), fps=fps)
    boxes: list[_Actor] = []
    for moment in range(_DENSE, (seconds - 2) * _DENSE + 1):
        second = moment / _DENSE
        boxes += _actors_at(scene, video, second, min(round(second * fps), frames - 1))
    return boxes


def _actors_at(scene: Scene, video: str, second: float, frame: int) -> list[_Actor]:
    """The boxes at one moment; an actor that shows at two borders of the torus counts as two persons."""
    names = list(MOTIONS)
    found = []
    for person, sprite in enumerate(scene.sprites):
        left, top, right, bottom = sprite.extent(frame)
        for copy, (x, y) in enumerate(copies_in_view(sprite, frame)):
            whole = np.array([x + left, y + top, x + right, y + bottom])
            box = np.clip(whole, 0, 1)
            if np.prod(box[2:] - box[:2]) < _VISIBLE_SHARE * np.prod(whole[2:] - whole[:2]):
                continue
            x1, y1, x2, y2 = (round(float(value), 3) for value in box)
            action = names.index(sprite.motion) + 1
            found.append(
                _Actor(
                    video,
                    AVA_FIRST_SECOND + second,
                    (x1, y1, x2, y2),
                    action,
                    person + copy * len(scene.sprites),
                )
            )
    return found


def _splits(videos: int) -> dict[str, list[int]]:
    """Video numbers of each split. Labels go round and round, so contiguous parts are balanced."""
    held_out = max(videos // _HELD_OUT, 1)
    numbers = list(range(videos))
    return {
        "train": numbers[: videos - 2 * held_out],
        "val": numbers[videos - 2 * held_out : videos - held_out],
        "test": numbers[videos - held_out :],
    }


def _write_kinetics_lists(root: Path, videos: int) -> None:
    for split, numbers in _splits(videos).items():
        rows = [f"videos/{number:06d}.mp4 {number % len(MOTIONS)}\n" for number in numbers]
        _write_text(root / f"{split}.csv", "".join(rows))
        if split == "train":  # the labels of its rows go round and round
            _write_text(root / "train_few.csv", "".join(rows[: _FEW * len(MOTIONS)]))
    _write_text(root / "classes.txt", "".join(f"{name}\n" for name in MOTIONS))


def _write_ssv2_lists(root: Path, videos: int) -> None:
    """The JSON files as Something-Something-v2 has them: no label in the test list, indices are strings."""
    templates = [f"Making [something] {name}" for name in MOTIONS]
    plain = [template.replace("[", "").replace("]", "") for template in templates]
    for split, numbers in _splits(videos).items():
        rows = []
        for number in numbers:
            row = {"id": f"{number:06d}"}
            if split != "test":
                label = number % len(MOTIONS)
                row |= {"label": plain[label].replace("something", "shapes"), "template": templates[label]}
                row |= {"placeholders": ["shapes"]}  # type: ignore[dict-item]
            rows.append(row)
        name = {"val": "validation"}.get(split, split)
        _write_json(root / f"something-something-v2-{name}.json", rows)
    labels = {template: str(index) for index, template in enumerate(plain)}
    _write_json(root / "something-something-v2-labels.json", labels)


def _write_ava_lists(folder: Path, actors: list[list[_Actor]], seconds: int, seed: int) -> None:
    """The annotation files; one video in four validates."""
    rng = np.random.default_rng([_DETECTOR, seed])
    val = max(len(actors) // 4, 1)
    for split, parts in {"train": actors[:-val], "val": actors[-val:]}.items():
        everywhere = [actor for part in parts for actor in part]
        boxes = [actor for actor in everywhere if actor.second.is_integer()]  # in the key frames
        rows = [f"{_place(a)},{_corners(a.box)},{a.action},{a.person}\n" for a in boxes]
        _write_text(folder / f"ava_{split}_v2.2.csv", "".join(rows))
        detected = [row for actor in boxes for row in _detections(actor, rng)]
        _write_text(folder / f"ava_{split}_predicted_boxes.csv", "".join(detected))
        # The first key frame of every second video: excluded times must appear in the lists to mean anything.
        excluded = sorted({a.video for a in boxes})[::2]
        text = "".join(f"{video},{AVA_FIRST_SECOND + 1:04d}\n" for video in excluded)
        _write_text(folder / f"ava_{split}_excluded_timestamps_v2.2.csv", text)
        if split == "val":
            every = [f"{_place(a)},{_corners(a.box)},,1.000000\n" for a in everywhere]
            _write_text(folder / "ava_val_tracked_boxes.csv", "".join(every))
    items = [
        f'item {{\n  name: "{name}"\n  id: {number}\n}}\n' for number, name in enumerate(MOTIONS, start=1)
    ]
    _write_text(folder / "ava_action_list_v2.2.pbtxt", "".join(items))


def _detections(actor: _Actor, rng: np.random.Generator) -> list[str]:
    """What a detector would give for an actor: a shifted box, now and then none, or a false one besides."""
    rows = []
    if rng.random() < 0.95:
        box = np.clip(np.array(actor.box) + rng.normal(0, 0.008, size=4), 0, 1)
        rows.append(f"{_place(actor)},{_corners(tuple(box))},,{rng.uniform(0.85, 1.0):.6f}\n")
    if rng.random() < 0.15:
        x, y = rng.uniform(0, 0.7, size=2)
        rows.append(f"{_place(actor)},{_corners((x, y, x + 0.3, y + 0.3))},,{rng.uniform(0.1, 0.8):.6f}\n")
    return rows


def _place(actor: _Actor) -> str:
    second = f"{actor.second:04.0f}" if actor.second.is_integer() else f"{actor.second:.1f}"
    return f"{actor.video},{second}"


def _corners(box: tuple[float, ...]) -> str:
    return ",".join(f"{value:.3f}" for value in box)


def _write_text(path: Path, text: str) -> None:
    with whole_file(path) as file:
        file.write(text)


def _write_json(path: Path, value: object) -> None:
    _write_text(path, json.dumps(value, indent=1) + "\n")
