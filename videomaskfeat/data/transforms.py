"""Crop, resize and flip uint8 frames, and boxes with them.

A transform samples one ``ClipGeometry`` per clip, which applies to frames and boxes. Training crops are cut
before they are resized, so the cost depends on the size of the clip and not on that of the video.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from videomaskfeat.errors import UserError

Size = int | tuple[int, int]
"""Side of a square, or height and width [pixels]."""
_MAX_ASPECT = 16  # long side / short side of a whole frame; panoramas have 8


@dataclass(frozen=True)
class Rectangle:
    """A rectangle of whole pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Slices of the rows and the columns."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


@dataclass(frozen=True)
class ClipGeometry:
    """Geometry of a clip: cut ``source`` out of the frame, resize it, cut ``window`` out of that, flip.

    Attributes:
        source: rectangle of the frame.
        resized: (height, width) of ``source`` after resizing.
        window: rectangle of the resized frame; its size is that of the clip.
        flip: whether to flip the clip horizontally.
    """

    source: Rectangle
    resized: tuple[int, int]
    window: Rectangle
    flip: bool = False

    def apply_clip(self, frames: np.ndarray) -> np.ndarray:
        """Transform frames uint8 [T, H, W, C] -> uint8 [T, h, w, C], contiguous and never a view.

        The frames must have the size for which the geometry was sampled.
        """
        source, window = self.source, self.window
        rows, columns = source.slices
        frames = frames[:, rows, columns]
        clip = np.empty((len(frames), window.height, window.width, frames.shape[3]), np.uint8)
        resize = self.resized != (source.height, source.width)
        whole = self.resized == self.size
        for frame, target in zip(frames, clip, strict=True):
            if resize and whole and not self.flip:
                resize_frame(frame, self.resized, target)
                continue
            if resize:
                frame = resize_frame(frame, self.resized)
            frame = frame[window.slices]
            if self.flip:
                cv2.flip(frame, 1, dst=target)
            else:
                target[:] = frame
        return clip

    def apply_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Transform boxes float [R, 4] from pixels of the frame to pixels of the clip.

        Coordinates 0 and width are the outer borders. Boxes are not clipped, see ``clip_boxes``.
        """
        source, window = self.source, self.window
        scale = np.array([self.resized[1] / source.width, self.resized[0] / source.height] * 2)
        moved = (boxes - np.array([source.left, source.top] * 2)) * scale
        moved = moved - np.array([window.left, window.top] * 2)
        if self.flip:
            moved[:, [0, 2]] = window.width - moved[:, [2, 0]]
        return moved.astype(boxes.dtype, copy=False)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the clip."""
        return self.window.height, self.window.width


def resize_frame(picture: np.ndarray, size: tuple[int, int], target: np.ndarray | None = None) -> np.ndarray:
    """Resize a frame uint8 [H, W, C] to (height, width).

    Bilinear without antialiasing, equal to ``F.interpolate(align_corners=False)`` to within one level.
    """
    return cv2.resize(picture, (size[1], size[0]), dst=target, interpolation=cv2.INTER_LINEAR)


def clip_boxes(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Clip boxes float [R, 4] to 0..width and 0..height."""
    return np.clip(boxes, 0, np.array([width, height, width, height], boxes.dtype))


class ClipTransform(Protocol):
    """Samples the geometry of one clip."""

    def sample(self, height: int, width: int, rng: np.random.Generator) -> ClipGeometry:
        """Sample the geometry for a video of this size in pixels, as displayed."""
        ...


def sample_sides(
    height: int,
    width: int,
    area: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[int, int]:
    """Sample two sides with a uniform area, as a fraction of height x width, and a log-uniform ratio."""
    pixels = rng.uniform(*area) * height * width
    side_ratio = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
    return round(math.sqrt(pixels * side_ratio)), round(math.sqrt(pixels / side_ratio))


def place_rectangle(
    height: int, width: int, frame_height: int, frame_width: int, rng: np.random.Generator
) -> Rectangle:
    """Place a rectangle uniformly inside a frame."""
    top = int(rng.integers(frame_height - height, endpoint=True))
    left = int(rng.integers(frame_width - width, endpoint=True))
    return Rectangle(top, left, height, width)


@dataclass(frozen=True)
class RandomResizedCrop:
    """A random rectangle resized to the clip, as in the MaskFeat recipes.

    Ten tries to place a rectangle with a uniform area and a log-uniform aspect; otherwise the largest
    centered rectangle with an allowed aspect. As PySlowFast's ``random_resized_crop``.

    Attributes:
        size: side of the clip, or its height and width, in pixels.
        area: minimum and maximum area as a fraction of the frame, in (0, 1].
        aspect: minimum and maximum width / height, times that of the clip.
        flip: probability of a horizontal flip; 0 for Something-Something.
    """

    size: Size
    area: tuple[float, float] = (0.5, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def __post_init__(self) -> None:
        _check_crop(self.size, self.flip)
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise UserError(f"crop area {self.area} must be two fractions with 0 < low <= high <= 1")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise UserError(f"crop aspect {self.aspect} must be two ratios with 0 < low <= high")

    def sample(self, height: int, width: int, rng: np.random.Generator) -> ClipGeometry:
        source = self._sample_source(height, width, rng)
        return _resized(source, *sides_of(self.size), flip=bool(rng.random() < self.flip))

    def _sample_source(self, height: int, width: int, rng: np.random.Generator) -> Rectangle:
        rows, columns = sides_of(self.size)
        aspect = (self.aspect[0] * (columns / rows), self.aspect[1] * (columns / rows))
        for _ in range(10):
            crop_width, crop_height = sample_sides(height, width, self.area, aspect, rng)
            if 0 < crop_width <= width and 0 < crop_height <= height:
                return place_rectangle(crop_height, crop_width, height, width, rng)
        low, high = aspect
        crop_height, crop_width = height, width
        if width / height < low:
            crop_height = max(1, round(width / low))
        elif width / height > high:
            crop_width = max(1, round(height * high))
        return Rectangle((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)


@dataclass(frozen=True)
class ShortSideJitterCrop:
    """A random crop after resizing the short side to a random length.

    The frame becomes larger than that if a rectangle does not fit into it otherwise.

    Deviation from PySlowFast, which resizes the whole frame before it crops: the crop is cut first, in whole
    source pixels, so its borders differ by up to half a source pixel; boxes follow the actual crop. Also, all
    positions have the same probability, where PySlowFast never uses the last row and column.

    Attributes:
        size: side of the clip, or its height and width, in pixels.
        short_side: minimum and maximum length of the resized short side in pixels.
        inverse_uniform: sample 1 / length uniformly instead of the length, as the SSv2 recipes do.
        flip: probability of a horizontal flip; 0 for Something-Something.
    """

    size: Size
    short_side: tuple[int, int] = (256, 320)
    inverse_uniform: bool = False
    flip: float = 0.5

    def __post_init__(self) -> None:
        _check_crop(self.size, self.flip)
        if not min(sides_of(self.size)) <= self.short_side[0] <= self.short_side[1]:
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
        rows, columns = sides_of(self.size)
        resized_height, resized_width = _fitting_size(height, width, short, self.size)
        crop = place_rectangle(rows, columns, resized_height, resized_width, rng)
        # Back to source pixels; the crop stays inside the frame because top + size <= resized height.
        source_top, source_height = _source_span(crop.top, rows, height / resized_height, height)
        source_left, source_width = _source_span(crop.left, columns, width / resized_width, width)
        source = Rectangle(source_top, source_left, source_height, source_width)
        return _resized(source, rows, columns, flip=bool(rng.random() < self.flip))


@dataclass(frozen=True)
class UniformCrop:
    """One of three fixed crops along the longer side, for testing.

    The whole frame is resized before it is cropped, as for the published accuracies. It becomes larger than
    ``short_side`` states if a rectangle does not fit into it otherwise.

    Attributes:
        size: side of the clip, or its height and width, in pixels.
        short_side: length of the resized short side in pixels.
        crop: 0 (left or top), 1 (center) or 2 (right or bottom).
    """

    size: Size
    short_side: int
    crop: int = 1

    def __post_init__(self) -> None:
        _check_crop(self.size)
        if self.short_side < min(sides_of(self.size)):
            raise UserError(
                f"short side {self.short_side} is smaller than the crop {self.size}; raise the short side"
            )
        if self.crop not in (0, 1, 2):
            raise UserError(f"crop {self.crop} is not 0 (left or top), 1 (center) or 2 (right or bottom)")

    def sample(self, height: int, width: int, rng: np.random.Generator | None = None) -> ClipGeometry:
        resized = _fitting_size(height, width, self.short_side, self.size)
        top, left = uniform_crop_corner(*resized, size=self.size, crop=self.crop)
        window = Rectangle(top, left, *sides_of(self.size))
        return ClipGeometry(Rectangle(0, 0, height, width), resized, window)


def uniform_crops(size: Size, short_side: int, count: int) -> list[UniformCrop]:
    """The crops of a test view: 1 (center) or 3 (along the longer side)."""
    return [UniformCrop(size, short_side, crop) for crop in ((1,) if count == 1 else (0, 1, 2))]


@dataclass(frozen=True)
class WholeFrame:
    """The whole frame with a resized short side, for testing.

    Both sides are rounded to the nearest ``multiple``; boxes are scaled separately along each axis. The long
    side is at most 16 times the short one, since memory grows with it; `sample` raises ValueError for others.

    Attributes:
        short_side: length of the resized short side in pixels.
        multiple: height and width of the encoder's cubes (MViTv2: 4).
    """

    short_side: int
    multiple: int = 4

    def __post_init__(self) -> None:
        if self.multiple < 1 or self.short_side < self.multiple:
            raise UserError(
                f"short side {self.short_side} must be at least {max(self.multiple, 1)}: both sides are "
                f"rounded to multiples of {self.multiple}, the height and width of the model's cubes"
            )

    def sample(self, height: int, width: int, rng: np.random.Generator | None = None) -> ClipGeometry:
        if max(height, width) > _MAX_ASPECT * min(height, width):
            raise ValueError(
                f"frames of {width}x{height}; the long side of a whole frame is at most {_MAX_ASPECT} times "
                "the short one"
            )
        sides = _short_side_size(height, width, self.short_side)
        rounded = [max(math.floor(side / self.multiple + 0.5), 1) * self.multiple for side in sides]
        return _resized(Rectangle(0, 0, height, width), rounded[0], rounded[1], flip=False)


def sides_of(size: Size) -> tuple[int, int]:
    """Height and width."""
    return (size, size) if isinstance(size, int) else size


def uniform_crop_corner(height: int, width: int, *, size: Size, crop: int) -> tuple[int, int]:
    """(top, left) of the first, middle or last crop along the longer side, as in PySlowFast.

    For a rectangle, along the side that it covers less of.
    """
    rows, columns = sides_of(size)
    # Half pixels are rounded up, as in the reference.
    top, left = -(-(height - rows) // 2), -(-(width - columns) // 2)
    if height - rows > width - columns:
        return (0, top, height - rows)[crop], left
    return top, (0, left, width - columns)[crop]


def _fitting_size(height: int, width: int, short_side: int, size: Size) -> tuple[int, int]:
    """:func:`_short_side_size`, or the smallest size of this aspect that contains a rectangle."""
    resized = _short_side_size(height, width, short_side)
    rows, columns = sides_of(size)
    if resized[0] >= rows and resized[1] >= columns:
        return resized
    scale = max(rows / height, columns / width)
    return max(round(height * scale), rows), max(round(width * scale), columns)


def _short_side_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) with this short side; the long one is rounded down, as in the reference."""
    if width < height:
        return math.floor(height / width * short_side), short_side
    return short_side, math.floor(width / height * short_side)


def _source_span(start: int, length: int, scale: float, limit: int) -> tuple[int, int]:
    """The whole source pixels nearest to a span of resized pixels: (first, count >= 1)."""
    first = min(round(start * scale), limit - 1)
    last = min(max(round((start + length) * scale), first + 1), limit)
    return first, last - first


def _resized(source: Rectangle, height: int, width: int, *, flip: bool) -> ClipGeometry:
    return ClipGeometry(source, (height, width), Rectangle(0, 0, height, width), flip)


def _check_crop(size: Size, flip: float = 0.0) -> None:
    if min(sides_of(size)) < 1:
        raise UserError(f"crop size {size} must be a positive number of pixels")
    if not 0 <= flip <= 1:
        raise UserError(f"flip {flip} must be a probability, 0 to 1")
