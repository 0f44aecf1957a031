"""Crops for clips with boxes: one that loses every box is drawn again, or moved until it shows one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from videomaskfeat.data.transforms import ClipGeometry, ClipTransform, Rectangle, clip_boxes

_LEAST_SIDE = 1.0  # pixels of a clip that must be left of a box that is cut, both ways


def boxes_in_pixels(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Boxes in shares of a frame's width and height, float [R, 4], in its pixels, float64."""
    return boxes.astype(np.float64) * np.array([width, height, width, height])


def visible_boxes(
    geometry: ClipGeometry, boxes: np.ndarray, *, visible: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """The boxes that a clip shows, cut to it.

    Args:
        geometry: of the clip.
        boxes: float64 [R, 4], in pixels of the video's frame.
        visible: a box stays where the clip shows more than this share of it, 0..1; 1: where it shows all.

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
    """All boxes cut to a clip; one that lies outside becomes a pixel at the border next to it.

    Args:
        geometry: of the clip.
        boxes: float64 [R, 4], in pixels of the video's frame.

    Returns:
        float64 [R, 4] in pixels of the clip, at least a pixel wide and high each.
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
    """Draw a crop that shows a box: the first of some draws that does, else the last one moved to a box.

    Args:
        transform: draws.
        boxes: float64 [R, 4], R >= 1, in pixels of the video's frame.
        height: of the frame, pixels.
        width: of the frame, pixels.
        rng: the sample's own generator; draws everything, the box as well.
        visible: as in ``visible_boxes``.
        tries: draws.

    Returns:
        Of which ``visible_boxes`` leaves a box, unless the crop is too small to show enough of the drawn one.
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
