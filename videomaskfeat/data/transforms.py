"""Crop, resize and flip on uint8 frames; the same geometry moves boxes.

A transform draws a ``ClipGeometry`` once for a clip; the geometry then applies to frames and to boxes alike.
Training crops are cut out first, as a view, and only the cut is resized, so that the work grows with the size
of the result and not with that of the video.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import cv2
import numpy as np

from videomaskfeat.errors import UserError

_LONGEST_SIDE = 16  # times the short side; panoramas have 8
_LEAST_SIDE = 1.0  # pixels of a clip that must be left of a box that is cut, both ways


@dataclass(frozen=True)
class Rectangle:
    """A cut of a picture in whole pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class ClipGeometry:
    """Where the pixels of a clip come from: cut ``source``, resize it, cut ``window`` out of that, flip.

    Attributes:
        source: the cut of the video's frame.
        resized: (height, width) which ``source`` is resized to.
        window: the cut of the resized picture that is kept; its size is the clip's.
        flip: whether left and right change places at the end.
    """

    source: Rectangle
    resized: tuple[int, int]
    window: Rectangle
    flip: bool = False

    def apply_clip(self, frames: np.ndarray) -> np.ndarray:
        """Transform frames uint8 [T, H, W, C] of the size that the geometry was drawn for.

        Returns:
            uint8 [T, h, w, C], contiguous, always memory of its own.
        """
        cut, window = self.source, self.window
        frames = frames[:, cut.top : cut.top + cut.height, cut.left : cut.left + cut.width]
        clip = np.empty((len(frames), window.height, window.width, frames.shape[3]), np.uint8)
        rows = slice(window.top, window.top + window.height)
        columns = slice(window.left, window.left + window.width)
        resize = self.resized != (cut.height, cut.width)
        whole = self.resized == (window.height, window.width)
        for picture, target in zip(frames, clip, strict=True):
            if resize and whole and not self.flip:
                resize_frame(picture, self.resized, target)
                continue
            if resize:
                picture = resize_frame(picture, self.resized)
            picture = picture[rows, columns]
            if self.flip:
                cv2.flip(picture, 1, dst=target)
            else:
                target[:] = picture
        return clip

    def apply_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Move boxes float [R, 4] along with the pixels: in pixels of the frame -> of the clip.

        0 and the width are the outer borders of a picture. Boxes are not cut to the clip: see ``clip_boxes``.
        """
        cut, window = self.source, self.window
        scale = np.array([self.resized[1] / cut.width, self.resized[0] / cut.height] * 2)
        moved = (boxes - np.array([cut.left, cut.top] * 2)) * scale - np.array([window.left, window.top] * 2)
        if self.flip:
            moved[:, [0, 2]] = window.width - moved[:, [2, 0]]
        return moved.astype(boxes.dtype, copy=False)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the clip."""
        return self.window.height, self.window.width


def resize_frame(picture: np.ndarray, size: tuple[int, int], target: np.ndarray | None = None) -> np.ndarray:
    """A frame uint8 [H, W, C] at another (height, width).

    Bilinear, pixel centres at half, no smoothing when shrinking: ``F.interpolate`` to within a level.
    """
    return cv2.resize(picture, (size[1], size[0]), dst=target, interpolation=cv2.INTER_LINEAR)


def clip_boxes(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Cut boxes float [R, 4] to a picture: x to 0..width, y to 0..height."""
    return np.clip(boxes, 0, np.array([width, height, width, height], boxes.dtype))


class ClipTransform(Protocol):
    """Draws the geometry of one clip."""

    def sample(self, height: int, width: int, rng: np.random.Generator) -> ClipGeometry:
        """The geometry for a video of this size (pixels as displayed), from the sample's own generator."""
        ...


@dataclass(frozen=True)
class RandomResizedCrop:
    """A random cut of random area and aspect, resized to a square (the MaskFeat recipes' crop).

    Ten tries to place a cut of area ``uniform(area)`` and aspect ``log-uniform(aspect)``; failing these, the
    largest centred cut whose aspect is allowed. As in PySlowFast's ``random_resized_crop``.

    Attributes:
        size: pixels of the clip's side.
        area: smallest and largest share of the frame's area, in (0, 1].
        aspect: smallest and largest width / height of the cut.
        flip: probability of a left-right flip; 0 for Something-Something.
    """

    size: int
    area: tuple[float, float] = (0.5, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def __post_init__(self) -> None:
        _check(self.size, self.flip)
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise UserError(f"crop area {self.area} must be two shares with 0 < low <= high <= 1")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise UserError(f"crop aspect {self.aspect} must be two ratios with 0 < low <= high")

    def sample(self, height: int, width: int, rng: np.random.Generator) -> ClipGeometry:
        cut = self._cut(height, width, rng)
        return _whole(cut, self.size, self.size, flip=bool(rng.random() < self.flip))

    def _cut(self, height: int, width: int, rng: np.random.Generator) -> Rectangle:
        low, high = self.aspect
        for _ in range(10):
            area = rng.uniform(*self.area) * height * width
            aspect = math.exp(rng.uniform(math.log(low), math.log(high)))
            cut_width, cut_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < cut_width <= width and 0 < cut_height <= height:
                top = int(rng.integers(height - cut_height, endpoint=True))
                left = int(rng.integers(width - cut_width, endpoint=True))
                return Rectangle(top, left, cut_height, cut_width)
        cut_height, cut_width = height, width
        if width / height < low:
            cut_height = max(1, round(width / low))
        elif width / height > high:
            cut_width = max(1, round(height * high))
        return Rectangle((height - cut_height) // 2, (width - cut_width) // 2, cut_height, cut_width)


@dataclass(frozen=True)
class ShortSideJitterCrop:
    """The short side resized to a random length, then a square cut at a random place.

    Deviation from PySlowFast, which resizes the whole frame before it cuts: the cut is made first, in whole
    source pixels, so its borders lie up to half a source pixel elsewhere; boxes follow the cut really made.
    Also, every place has the same chance here, where PySlowFast never takes the last row and column.

    Attributes:
        size: pixels of the clip's side.
        short_side: smallest and largest length in pixels of the resized short side.
        inverse_uniform: draw 1/length uniformly instead of the length (the SSv2 recipes).
        flip: probability of a left-right flip; 0 for Something-Something.
    """

    size: int
    short_side: tuple[int, int] = (256, 320)
    inverse_uniform: bool = False
    flip: float = 0.5

    def __post_init__(self) -> None:
        _check(self.size, self.flip)
        if not self.size <= self.short_side[0] <= self.short_side[1]:
            raise UserError(
                f"short side {self.short_side} must be two lengths with low <= high, "
                f"neither below the crop {self.size}"
            )

    def sample(self, height: int, width: int, rng: np.random.Generator) -> ClipGeometry:
        low, high = self.short_side
        if self.inverse_uniform:
            short = round(1.0 / rng.uniform(1.0 / high, 1.0 / low))
        else:
            short = round(rng.uniform(low, high))
        resized_height, resized_width = _short_side_size(height, width, short)
        top = int(rng.integers(resized_height - self.size, endpoint=True))
        left = int(rng.integers(resized_width - self.size, endpoint=True))
        # Back to source pixels; the cut stays inside the frame because top + size <= resized height.
        source_top, source_height = _span(top, self.size, height / resized_height, height)
        source_left, source_width = _span(left, self.size, width / resized_width, width)
        cut = Rectangle(source_top, source_left, source_height, source_width)
        return _whole(cut, self.size, self.size, flip=bool(rng.random() < self.flip))


@dataclass(frozen=True)
class UniformCrop:
    """One of three fixed square cuts along the longer side, for testing; no randomness.

    The whole frame is resized before it is cut, exactly as the published accuracies were measured.

    Attributes:
        size: pixels of the clip's side.
        short_side: pixels to which the short side is resized.
        crop: 0 left or top, 1 centre, 2 right or bottom.
    """

    size: int
    short_side: int
    crop: int = 1

    def __post_init__(self) -> None:
        _check(self.size)
        if self.short_side < self.size:
            raise UserError(f"short side {self.short_side} is smaller than the crop {self.size}; raise it")
        if self.crop not in (0, 1, 2):
            raise UserError(f"crop {self.crop} is not 0 (left or top), 1 (centre) or 2 (right or bottom)")

    def sample(self, height: int, width: int, rng: np.random.Generator | None = None) -> ClipGeometry:
        resized = _short_side_size(height, width, self.short_side)
        top, left = uniform_crop_corner(*resized, size=self.size, crop=self.crop)
        window = Rectangle(top, left, self.size, self.size)
        return ClipGeometry(Rectangle(0, 0, height, width), resized, window)


@dataclass(frozen=True)
class WholeFrame:
    """The whole frame, its short side resized, in its aspect; for testing, no randomness.

    Both sides are rounded to the nearest multiple of what the encoder can cut into cubes, so that each is off
    by ``multiple / 2`` pixels at most; boxes are moved along each axis with its own scale. The long side is
    at most 16 times the short one, since memory grows with it; `sample` raises ValueError for others.

    Attributes:
        short_side: pixels to which the short side is resized.
        multiple: of which both sides become multiples (MViTv2: 4, a cube's height and width).
    """

    short_side: int
    multiple: int = 4

    def __post_init__(self) -> None:
        if self.multiple < 1 or self.short_side < self.multiple:
            raise UserError(
                f"short side {self.short_side} must be at least {max(self.multiple, 1)}: both sides become "
                f"multiples of {self.multiple}, the height and width of the network's cubes"
            )

    def sample(self, height: int, width: int, rng: np.random.Generator | None = None) -> ClipGeometry:
        if max(height, width) > _LONGEST_SIDE * min(height, width):
            raise ValueError(
                f"pictures of {width}x{height}; the long side of a whole frame is at most {_LONGEST_SIDE} "
                "times the short one"
            )
        sides = _short_side_size(height, width, self.short_side)
        rounded = [max(math.floor(side / self.multiple + 0.5), 1) * self.multiple for side in sides]
        return _whole(Rectangle(0, 0, height, width), rounded[0], rounded[1], flip=False)


def uniform_crop_corner(height: int, width: int, *, size: int, crop: int) -> tuple[int, int]:
    """(top, left) of the first, middle or last square cut along the longer side (PySlowFast's rounding)."""
    # Rounded up where half a pixel is left over, as the reference does.
    top, left = -(-(height - size) // 2), -(-(width - size) // 2)
    if height > width:
        return (0, top, height - size)[crop], left
    return top, (0, left, width - size)[crop]


def _short_side_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) once the short side has this length; the long one is rounded down, as the reference."""
    if width < height:
        return math.floor(height / width * short_side), short_side
    return short_side, math.floor(width / height * short_side)


def _span(start: int, length: int, scale: float, limit: int) -> tuple[int, int]:
    """The whole source pixels nearest to ``length`` resized ones from ``start``: (first, count >= 1)."""
    first = min(round(start * scale), limit - 1)
    last = min(max(round((start + length) * scale), first + 1), limit)
    return first, last - first


def _whole(cut: Rectangle, height: int, width: int, *, flip: bool) -> ClipGeometry:
    return ClipGeometry(cut, (height, width), Rectangle(0, 0, height, width), flip)


def _check(size: int, flip: float = 0.0) -> None:
    if size < 1:
        raise UserError(f"crop size {size} must be a positive number of pixels")
    if not 0 <= flip <= 1:
        raise UserError(f"flip {flip} must be a probability, 0 to 1")


def boxes_in_pixels(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Boxes in shares of a frame's width and height, float [R, 4], in its pixels, float64."""
    return boxes.astype(np.float64) * np.array([width, height, width, height])


def visible_boxes(
    geometry: ClipGeometry, boxes: np.ndarray, *, visible: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """The boxes that a clip shows, cut to it, of boxes float64 [R, 4] in pixels of the video's frame.

    A box stays where the clip shows more than the share ``visible`` of it, 0..1; 1: where it shows all.

    Returns:
        float64 [K, 4] in pixels of the clip, and int64 [K], their rows. Of a box that is cut at least a pixel
        is left both ways.
    """
    moved = geometry.apply_boxes(boxes)
    cut = clip_boxes(moved, *geometry.size)
    sides, whole = cut[:, 2:] - cut[:, :2], moved[:, 2:] - moved[:, :2]
    shown = sides.prod(axis=1) / whole.prod(axis=1)
    large = (sides >= np.minimum(whole, _LEAST_SIDE)).all(axis=1)
    # A box that was not cut is the same numbers, so its share is exactly 1.
    rows = np.flatnonzero(large & ((shown > visible) | (shown == 1)))
    return cut[rows], rows


def border_boxes(geometry: ClipGeometry, boxes: np.ndarray) -> np.ndarray:
    """All boxes, float64 [R, 4] in pixels of the frame, cut to a clip: float64 [R, 4] in its pixels.

    One that lies outside becomes a pixel at the border next to it; each is at least a pixel wide and high.
    """
    height, width = geometry.size
    cut = clip_boxes(geometry.apply_boxes(boxes), height, width)
    low = np.minimum(cut[:, :2], np.array([width, height]) - _LEAST_SIDE)
    return np.concatenate([low, np.maximum(cut[:, 2:], low + _LEAST_SIDE)], axis=1)


def crop_with_boxes(
    transform: ClipTransform,
    boxes: np.ndarray,
    *,
    height: int,
    width: int,
    rng: np.random.Generator,
    visible: float = 0.0,
    tries: int = 10,
) -> ClipGeometry:
    """Draw a crop that shows a box: the first of ``tries`` that does, else the last one moved to a drawn box.

    Boxes are float64 [R, 4], R >= 1, in pixels of the video's frame. ``visible_boxes`` leaves one of them,
    unless the crop is too small to show enough of the drawn one.
    """
    for _ in range(tries):
        geometry = transform.sample(height, width, rng)
        if len(visible_boxes(geometry, boxes, visible=visible)[1]):
            return geometry
    box = boxes[int(rng.integers(len(boxes)))]
    if (geometry.source.height, geometry.source.width) != (height, width):
        return replace(geometry, source=_moved(geometry.source, box, height, width))
    # The whole frame is resized and a window cut out of that: then the window moves.
    rows, columns = geometry.resized
    scaled = box * np.array([columns / width, rows / height] * 2)
    return replace(geometry, window=_moved(geometry.window, scaled, rows, columns))


def _moved(cut: Rectangle, box: np.ndarray, height: int, width: int) -> Rectangle:
    """The cut moved as little as it takes to show a box, or the middle of it where it is too small."""
    left = _start(cut.left, cut.width, box[0], box[2], width)
    top = _start(cut.top, cut.height, box[1], box[3], height)
    return replace(cut, top=top, left=left)


def _start(start: int, length: int, low: float, high: float, limit: int) -> int:
    """Where an interval of whole pixels begins, as near to ``start`` as shows low..high, inside 0..limit."""
    if np.ceil(high) - np.floor(low) > length:
        place = (low + high - length) / 2
    else:
        place = min(max(start, np.ceil(high) - length), np.floor(low))
    return int(min(max(round(place), 0), limit - length))
