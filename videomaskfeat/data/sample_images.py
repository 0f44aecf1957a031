"""Pictures of the sample data: a light shape on a dark background, both striped; the shape is the class."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from videomaskfeat.errors import UserError
from videomaskfeat.io import make_folder, whole_file

_IMAGE = 4  # tag of the random streams of pictures; sample.py has others
_HELD_OUT = 5  # one picture in five is in the validation list
_SMALLEST_RADIUS, _LARGEST_RADIUS = 0.2, 0.3  # radius of a disc with the area of the shape, in picture sides
_LARGEST_TURN = 30.0  # degrees in both directions
_DARK, _LIGHT = (40, 110), (145, 215)  # levels of the background and of the shape, without stripes
_STRIPE_AMPLITUDE = 35  # levels
_SHORTEST_STRIPE, _LONGEST_STRIPE = 0.08, 0.14  # in picture sides; about one HOG cell of a 64-pixel picture
_FINE = 4  # points per pixel along each axis; opacity is their mean
_GRID = 400  # points along each axis to measure the area of a shape
Inside = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _polygon(x: np.ndarray, y: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Whether points are in a polygon, corners [n, 2]: rays to the right cross an odd number of edges."""
    inside = np.zeros(x.shape, np.bool_)
    for (x1, y1), (x2, y2) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y1 != y2:
            inside ^= ((y1 > y) != (y2 > y)) & (x < (x2 - x1) * (y - y1) / (y2 - y1) + x1)
    return inside


def _spikes(*lengths: float) -> np.ndarray:
    """Corners [n, 2] at equal angles around the center, the first at the top."""
    angles = 2 * np.pi * np.arange(len(lengths)) / len(lengths)
    return np.array(lengths)[:, None] * np.stack([np.sin(angles), -np.cos(angles)], axis=1)


# (x, y) -> whether points are in the shape, which fills about -1..1; y points down. Sorted by name, so that
# labels equal those of class folders.
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
    """Draw picture ``number`` of class ``number`` modulo 10, uint8 [size, size, 3], RGB."""
    rng = np.random.default_rng([_IMAGE, seed, number])
    radius = rng.uniform(_SMALLEST_RADIUS, _LARGEST_RADIUS) * size
    margin = 1.3 * radius  # most shapes are completely inside
    center = rng.uniform(margin, size - margin, size=2)
    turn = np.deg2rad(rng.uniform(-_LARGEST_TURN, _LARGEST_TURN))
    name = list(SHAPES)[number % len(SHAPES)]
    points = (np.arange(size * _FINE) + 0.5) / _FINE  # pixels of the picture
    x, y = np.meshgrid(points - center[0], points - center[1])
    scale = _disc_over_shape(name) * radius
    across = (x * np.cos(turn) + y * np.sin(turn)) / scale
    down = (y * np.cos(turn) - x * np.sin(turn)) / scale
    inside = SHAPES[name](across, down).astype(np.float32)
    alpha = cv2.resize(inside, (size, size), interpolation=cv2.INTER_AREA)[..., None]
    ground = rng.uniform(*_DARK, size=3) + _stripes(rng, size)
    cover = rng.uniform(*_LIGHT, size=3) + _stripes(rng, size)
    return np.rint(ground + alpha * (cover - ground)).astype(np.uint8)


def _stripes(rng: np.random.Generator, size: int) -> np.ndarray:
    """Waves of brightness with random direction, length and phase, [size, size, 1].

    The direction is constant, so the HOG of hidden cells can be predicted from visible ones.
    """
    angle = rng.uniform(0, np.pi)
    length = rng.uniform(_SHORTEST_STRIPE, _LONGEST_STRIPE) * size
    points = np.arange(size) + 0.5
    along = points * np.cos(angle) + points[:, None] * np.sin(angle)
    wave = np.sin(2 * np.pi * (along / length + rng.uniform()))
    return _STRIPE_AMPLITUDE * wave[..., None]


def image_path(number: int, images: int) -> str:
    """Relative path of picture ``number`` of ``images``."""
    # Labels are cyclic, so both splits are balanced.
    split = "train" if number < images - images // _HELD_OUT else "val"
    return os.path.join(split, list(SHAPES)[number % len(SHAPES)], f"{number:06d}.png")


def write_image(folder: Path, number: int, *, images: int, size: int, seed: int) -> None:
    """Write picture ``number`` of ``images`` as a PNG into its class folder, which must exist."""
    picture = cv2.cvtColor(sample_image(number, size=size, seed=seed), cv2.COLOR_RGB2BGR)
    with whole_file(folder / image_path(number, images), "wb") as file:
        file.write(cv2.imencode(".png", picture)[1].tobytes())


def make_image_folders(folder: str | os.PathLike[str], images: int) -> None:
    """Create the class folders of both splits.

    Raises:
        UserError: there are not enough pictures for all classes in both splits.
    """
    least = _HELD_OUT * len(SHAPES)
    if images < least:
        raise UserError(
            f"images={images}: each of the {len(SHAPES)} classes needs a picture in the validation split, "
            f"which has one picture in {_HELD_OUT}; use at least {least}, or 0 for none"
        )
    for split in ("train", "val"):
        for name in SHAPES:
            make_folder(Path(folder, split, name))


def write_image_lists(folder: Path, images: int, *, few: int) -> None:
    """Write lists `path label` of both splits and of ``few`` training pictures per class, and class names."""
    rows = [f"{image_path(number, images)} {number % len(SHAPES)}\n" for number in range(images)]
    train = [row for row in rows if row.startswith("train")]
    lists = {
        "train.csv": train,
        "val.csv": rows[len(train) :],
        "train_few.csv": train[: few * len(SHAPES)],  # balanced, since labels are cyclic
        "classes.txt": [f"{name}\n" for name in SHAPES],
    }
    for name, lines in lists.items():
        with whole_file(folder / name) as file:
            file.writelines(lines)


@cache
def _disc_over_shape(name: str) -> float:
    """The scale at which a shape has the area of a disc of radius 1."""
    points = (np.arange(_GRID) + 0.5) * 2.4 / _GRID - 1.2
    area = SHAPES[name](*np.meshgrid(points, points)).mean() * 2.4**2
    return float(np.sqrt(np.pi / area))
