"""Boxes of persons in crops of a clip: which are visible, and crops that keep them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from videomaskfeat.data.transforms import ClipGeometry, ClipTransform, Rectangle, clip_boxes

_MIN_BOX_SIDE = 1.0  # pixels of a clip that must remain of the width and height of a clipped box


def boxes_in_pixels(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Convert boxes float [R, 4] from fractions of the frame to its pixels, float64."""
    return boxes.astype(np.float64) * np.array([width, height, width, height])


def visible_boxes(
    geometry: ClipGeometry, boxes: np.ndarray, *, visible: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Clip boxes to a clip, and keep those with a large enough visible fraction.

    Args:
        geometry: geometry of the clip.
        boxes: float64 [R, 4] in pixels of the frame.
        visible: a box is kept if more than this fraction of it is visible, or all of it.

    Returns:
        Boxes float64 [K, 4] in pixels of the clip, and their rows int64 [K]. A clipped box is at least one
        pixel wide and high.
    """
    moved = geometry.apply_boxes(boxes)
    clipped = clip_boxes(moved, *geometry.size)
    clipped_sides, sides = clipped[:, 2:] - clipped[:, :2], moved[:, 2:] - moved[:, :2]
    fraction = clipped_sides.prod(axis=1) / sides.prod(axis=1)
    large = (clipped_sides >= np.minimum(sides, _MIN_BOX_SIDE)).all(axis=1)
    # A box that is not clipped has the same numbers, so its fraction is exactly 1.
    rows = np.flatnonzero(large & ((fraction > visible) | (fraction == 1)))
    return clipped[rows], rows


def border_boxes(geometry: ClipGeometry, boxes: np.ndarray) -> np.ndarray:
    """Clip all boxes, float64 [R, 4] in pixels of the frame, to a clip: float64 [R, 4] in its pixels.

    Each is at least one pixel wide and high; a box outside the clip becomes a pixel at the nearest border.
    """
    height, width = geometry.size
    clipped = clip_boxes(geometry.apply_boxes(boxes), height, width)
    low = np.minimum(clipped[:, :2], np.array([width, height]) - _MIN_BOX_SIDE)
    return np.concatenate([low, np.maximum(clipped[:, 2:], low + _MIN_BOX_SIDE)], axis=1)


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
    """Sample a crop until a box is visible; after ``tries``, move the last crop to a random box.

    ``visible_boxes`` then keeps at least one box, unless the crop is too small for the random box.

    Args:
        transform: samples crops.
        boxes: float64 [R, 4], R >= 1, in pixels of the frame.
        height: height of the frame.
        width: width of the frame.
        rng: random generator.
        visible: see ``visible_boxes``.
        tries: number of crops to sample.
    """
    for _ in range(tries):
        geometry = transform.sample(height, width, rng)
        if len(visible_boxes(geometry, boxes, visible=visible)[1]):
            return geometry
    box = boxes[int(rng.integers(len(boxes)))]
    if (geometry.source.height, geometry.source.width) != (height, width):
        return replace(geometry, source=_moved(geometry.source, box, height, width))
    # The whole frame is resized before it is cropped, so the window moves.
    rows, columns = geometry.resized
    scaled = box * np.array([columns / width, rows / height] * 2)
    return replace(geometry, window=_moved(geometry.window, scaled, rows, columns))


def _moved(crop: Rectangle, box: np.ndarray, height: int, width: int) -> Rectangle:
    """The crop moved as little as possible to show a box, or the middle of the box if that is larger."""
    left = _moved_start(crop.left, crop.width, box[0], box[2], width)
    top = _moved_start(crop.top, crop.height, box[1], box[3], height)
    return replace(crop, top=top, left=left)


def _moved_start(start: int, length: int, low: float, high: float, limit: int) -> int:
    """The start nearest to ``start`` of a span of pixels in 0..limit that contains low..high."""
    if np.ceil(high) - np.floor(low) > length:
        moved = (low + high - length) / 2
    else:
        moved = min(max(start, np.ceil(high) - length), np.floor(low))
    return int(min(max(round(moved), 0), limit - length))
