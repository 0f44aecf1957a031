"""Changes of colour and shape that every frame of a clip undergoes alike, in uint8.

They give what the operations of Pillow give on which RandAugment was built: look-ups by table exactly, all
else but rotations to within a level, with a few pixels in a hundred off by one. All take frames uint8
[T, H, W, 3], RGB, leave them as they are and return new ones of the same size; ``interpolation`` is one of
`INTERPOLATIONS`.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from videomaskfeat.errors import UserError

INTERPOLATIONS = {"bicubic": cv2.INTER_CUBIC, "bilinear": cv2.INTER_LINEAR}
# What comes into view from outside the frame: the middle of the range, as in PySlowFast and timm.
FILL = 128
_LEVELS = np.arange(256)
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
# Pillow cuts a result's fraction off, OpenCV rounds: so half a level is taken away, a little less than half
# so that a whole number which arithmetic made slightly smaller stays itself.
_CUT_OFF = -0.5 + 1 / 64


def invert(frames: np.ndarray) -> np.ndarray:
    """255 minus each pixel."""
    return _look_up(frames, 255 - _LEVELS)


def posterize(frames: np.ndarray, bits: int) -> np.ndarray:
    """The ``bits`` highest bits of each pixel, 0 to 8."""
    return _look_up(frames, _LEVELS & (256 - 2 ** (8 - bits)))


def solarize(frames: np.ndarray, threshold: int) -> np.ndarray:
    """Pixels from the threshold on are inverted, 0 to 256."""
    return _look_up(frames, np.concatenate([_LEVELS[:threshold], 255 - _LEVELS[threshold:]]))


def solarize_add(frames: np.ndarray, amount: int) -> np.ndarray:
    """Pixels below 128 become brighter by ``amount``, at least 0."""
    return _look_up(frames, np.where(_LEVELS < 128, np.minimum(_LEVELS + amount, 255), _LEVELS))


def auto_contrast(frames: np.ndarray) -> np.ndarray:
    """Each channel of each frame stretched so that its darkest pixel is 0 and its brightest 255."""
    columns = frames.reshape(len(frames), frames.shape[1], -1)  # whole rows first: many times as fast
    low, high = (
        end(end(columns, axis=1).reshape(len(frames), -1, 3), axis=1)[:, None].astype(np.float64)  # [T, 1, 3]
        for end in (np.min, np.max)
    )
    flat = high == low
    scale = 255.0 / np.where(flat, 1.0, high - low)
    tables = np.clip(np.trunc(_LEVELS[:, None] * scale - low * scale), 0, 255)  # [T, 256, 3]
    return _look_up(frames, np.where(flat, _LEVELS[:, None], tables))


def equalize(frames: np.ndarray) -> np.ndarray:
    """Each channel of each frame mapped so that its levels are equally frequent, as far as they can be."""
    tables = np.empty((len(frames), 256, 3), np.uint8)
    for frame, table in zip(frames, tables, strict=True):
        for channel in range(3):
            counts = cv2.calcHist([frame], [channel], None, [256], [0, 256]).ravel().astype(np.int64)
            table[:, channel] = _equal_levels(counts)
    return _look_up(frames, tables)


def _equal_levels(counts: np.ndarray) -> np.ndarray:
    """The level that each level becomes, [256], from their frequencies int [256]."""
    present = np.flatnonzero(counts)
    step = int(counts.sum() - counts[present[-1]]) // 255
    if len(present) == 1 or step == 0:
        return _LEVELS
    below = np.cumsum(counts) - counts
    return np.minimum((step // 2 + below) // step, 255)


def brightness(frames: np.ndarray, factor: float) -> np.ndarray:
    """Blend with black: 0 is black, 1 the frame, more is brighter."""
    return _look_up(frames, _blend(np.zeros(1), factor))


def contrast(frames: np.ndarray, factor: float) -> np.ndarray:
    """Blend with each frame's mean grey: 0 is that grey, 1 the frame, more has more contrast."""
    greys = [cv2.mean(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY))[0] for frame in frames]
    return _look_up(frames, _blend(np.floor(np.array(greys)[:, None] + 0.5), factor))  # [T, 256]


def saturation(frames: np.ndarray, factor: float) -> np.ndarray:
    """Blend with each pixel's grey: 0 is grey, 1 the frame, more is more colourful."""
    changed = np.empty_like(frames, order="C")
    for frame, target in zip(frames, changed, strict=True):
        grey = cv2.cvtColor(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        cv2.addWeighted(frame, factor, grey, 1 - factor, _CUT_OFF, dst=target)
    return changed


def sharpness(frames: np.ndarray, factor: float) -> np.ndarray:
    """Blend with a smoothed frame: 0 is smooth, 1 the frame, more is sharper; the border keeps its pixels."""
    changed = np.empty_like(frames, order="C")
    for frame, target in zip(frames, changed, strict=True):
        smooth = cv2.filter2D(frame, -1, _SMOOTH)
        cv2.addWeighted(frame, factor, smooth, 1 - factor, _CUT_OFF, dst=target)
    for edge in (0, -1):
        changed[:, edge] = frames[:, edge]
        changed[:, :, edge] = frames[:, :, edge]
    return changed


def translate_x(frames: np.ndarray, share: float, interpolation: str) -> np.ndarray:
    """Move the picture to the left by a share of its width (to the right where negative)."""
    return _translate(frames, share * frames.shape[2], interpolation, axis=1)


def translate_y(frames: np.ndarray, share: float, interpolation: str) -> np.ndarray:
    """Move the picture up by a share of its height (down where negative)."""
    return _translate(frames, share * frames.shape[1], interpolation, axis=0)


def _translate(frames: np.ndarray, pixels: float, interpolation: str, axis: int) -> np.ndarray:
    whole, kernels = _shifts(np.array([pixels]), interpolation)
    moved = np.empty_like(frames, order="C")
    for frame, target in zip(frames, moved, strict=True):
        _shift(frame, whole[0], kernels[0], target, axis)
    return moved


def shear_x(frames: np.ndarray, factor: float, interpolation: str) -> np.ndarray:
    """Move each row to the left by ``factor`` times its distance from the top."""
    rows = frames.shape[1]
    # A row's pixels have their centres half a pixel below its upper border.
    whole, kernels = _shifts(factor * (np.arange(rows) + 0.5), interpolation)
    moved = np.empty_like(frames, order="C")
    for row in range(rows):  # of all frames at once
        _shift(frames[:, row], whole[row], kernels[row], moved[:, row])
    return moved


def shear_y(frames: np.ndarray, factor: float, interpolation: str) -> np.ndarray:
    """Move each column up by ``factor`` times its distance from the left."""
    return _transpose(shear_x(_transpose(frames), factor, interpolation))


def rotate(frames: np.ndarray, degrees: float, interpolation: str) -> np.ndarray:
    """Turn the picture about its centre, counter-clockwise.

    Deviation from Pillow: OpenCV's bicubic kernel is a little softer (a = -0.75, not -1), it takes positions
    to a 32nd of a pixel, and the border of the turned picture fades into the fill over a pixel or two.
    """
    height, width = frames.shape[1:3]
    x, y = (width - 1) / 2, (height - 1) / 2
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # From a pixel of the result to the place in the frame that it shows.
    matrix = np.array([[cosine, -sine, x - cosine * x + sine * y], [sine, cosine, y - sine * x - cosine * y]])
    turned = np.empty_like(frames, order="C")
    flags = INTERPOLATIONS[interpolation] | cv2.WARP_INVERSE_MAP
    for frame, target in zip(frames, turned, strict=True):
        cv2.warpAffine(frame, matrix, (width, height), dst=target, flags=flags, borderValue=(FILL,) * 3)
    return turned


def _shifts(distances: np.ndarray, interpolation: str) -> tuple[list[int], np.ndarray]:
    """Shifts by float [S] pixels as shifts by whole ones and the kernels, float32 [S, 1, 5], for the rest."""
    whole = np.floor(distances + 0.5)
    rest = distances - whole  # -0.5 to 0.5
    offsets = np.abs(np.arange(-2, 3) - rest[:, None, None])
    kernels = _cubic(offsets) if interpolation == "bicubic" else np.maximum(1 - offsets, 0.0)
    return whole.astype(int).tolist(), kernels.astype(np.float32)  # OpenCV is slower with float64


def _shift(picture: np.ndarray, whole: int, kernel: np.ndarray, target: np.ndarray, axis: int = 1) -> None:
    """Write into ``target`` [H, W, 3] what stands further down (axis 0) or right (1) in ``picture``.

    As Pillow's affine transform: a pixel belongs to the picture if its centre does, the kernel finds the
    border's pixels repeated beyond it, and what comes from outside is the fill.
    """
    length = picture.shape[axis]
    whole = min(max(whole, -length), length)
    kernel = kernel if axis else kernel.T
    between = cv2.filter2D(picture, -1, kernel, delta=_CUT_OFF, borderType=cv2.BORDER_REPLICATE)
    between, target = between.swapaxes(0, axis), target.swapaxes(0, axis)
    if whole >= 0:
        target[: length - whole] = between[whole:]
        target[length - whole :] = FILL
    else:
        target[-whole:] = between[:whole]
        target[:-whole] = FILL


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel with a = -1, Pillow's in affine transforms."""
    near = distance**3 - 2 * distance**2 + 1
    far = -(distance**3) + 5 * distance**2 - 8 * distance + 4
    return np.where(distance < 1, near, np.where(distance < 2, far, 0.0))


def _transpose(frames: np.ndarray) -> np.ndarray:
    """Frames [T, H, W, 3] -> [T, W, H, 3]; frame by frame, as numpy takes four times as long."""
    T, H, W, C = frames.shape
    transposed = np.empty((T, W, H, C), np.uint8)
    for frame, target in zip(frames, transposed, strict=True):
        cv2.transpose(frame, dst=target)
    return transposed


def _blend(low: np.ndarray, factor: float) -> np.ndarray:
    """Where each level goes, [..., 256], between ``low`` [..., 1] (factor 0) and itself (1), and beyond.

    In float32 and with the fraction cut off, as Pillow blends.
    """
    low = low.astype(np.float32)
    blended = low + np.float32(factor) * (_LEVELS.astype(np.float32) - low)
    return np.clip(np.trunc(blended), 0, 255)


def _look_up(frames: np.ndarray, tables: np.ndarray) -> np.ndarray:
    """Each pixel by a table of its level's successors: [256], a frame's own [T, 256], or [T, 256, 3]."""
    tables = tables.astype(np.uint8)
    changed = np.empty_like(frames, order="C")
    if tables.ndim == 1:
        cv2.LUT(_rows(frames), tables, dst=_rows(changed))
    else:
        for frame, table, target in zip(frames, tables, changed, strict=True):
            cv2.LUT(frame, table[None], dst=target)
    return changed


def _rows(frames: np.ndarray) -> np.ndarray:
    """All frames as one high picture [T*H, W, 3]."""
    return frames.reshape(-1, *frames.shape[2:])


_CHANGES = {"brightness": brightness, "contrast": contrast, "saturation": saturation}


class ColourJitter:
    """Changes brightness, contrast and saturation, in random order, all frames of a clip alike.

    Each by a factor drawn evenly from 1 - x to 1 + x (x: the arguments, 0..1), as PySlowFast's
    ``color_jitter``; contrast is measured from each frame's own mean gray. Deviation: pixels stay uint8 after
    each of the three, so they are cut to 0..255 and to whole levels where PySlowFast goes on in floats.
    """

    def __init__(self, *, brightness: float, contrast: float, saturation: float) -> None:
        self.greatest = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
        for name, share in self.greatest.items():
            if not 0 <= share <= 1:
                raise UserError(f"{name}={share}: the greatest change is a share, 0 to 1")

    def apply(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Frames uint8 [T, H, W, 3], which stay as they are -> changed ones."""
        wanted = [name for name, share in self.greatest.items() if share]
        for place in rng.permutation(len(wanted)):
            share = self.greatest[wanted[place]]
            frames = _CHANGES[wanted[place]](frames, rng.uniform(1 - share, 1 + share))
        return frames


class RandomColour:
    """Color jitter for some clips and gray for some: what makes two views of a video differ in color.

    BYOL's colors (arXiv 2006.07733, appendix B) without hue, blur and solarization.
    """

    def __init__(self, jitter: ColourJitter, *, chance: float = 0.8, grey: float = 0.2) -> None:
        for name, value in (("chance", chance), ("grey", grey)):
            if not 0 <= value <= 1:
                raise UserError(f"{name}={value}: a chance lies in 0..1")
        self.jitter, self.chance, self.grey = jitter, chance, grey

    def apply(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Frames uint8 [T, H, W, 3], which stay as they are -> changed ones, or themselves."""
        if rng.random() < self.chance:
            frames = self.jitter.apply(frames, rng)
        return saturation(frames, 0.0) if rng.random() < self.grey else frames
