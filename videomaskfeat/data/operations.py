"""Color and shape operations on uint8 clips, the same for all frames of a clip.

Those that RandAugment uses reproduce Pillow: table look-ups exactly, all others except rotations to within
one level. Each function reads frames uint8 [T, H, W, 3], RGB, and returns new frames of
the same size; ``interpolation`` is a key of `INTERPOLATIONS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from videomaskfeat.errors import UserError

INTERPOLATIONS = {"bicubic": cv2.INTER_CUBIC, "bilinear": cv2.INTER_LINEAR}
FILL = 128  # level of pixels from outside the frame, as in PySlowFast and timm
_VALUES = np.arange(256)

_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
# Pillow truncates results and OpenCV rounds them, so half a level is subtracted; slightly less than half, so
# that whole numbers are not affected by float errors.
_TRUNCATION = -0.5 + 1 / 64


@dataclass(frozen=True)
class Step:
    """A sampled operation: a key of `augment.OPERATIONS`, or Hue or Blur, and its argument or None."""

    name: str
    argument: float | None


def invert(frames: np.ndarray) -> np.ndarray:
    """255 minus each pixel."""
    return _look_up(frames, 255 - _VALUES)


def posterize(frames: np.ndarray, bits: int) -> np.ndarray:
    """Keep the ``bits`` highest bits of each pixel, 0 to 8."""
    return _look_up(frames, _VALUES & (256 - 2 ** (8 - bits)))


def solarize(frames: np.ndarray, threshold: int) -> np.ndarray:
    """Invert pixels at or above the threshold, 0 to 256."""
    return _look_up(frames, np.concatenate([_VALUES[:threshold], 255 - _VALUES[threshold:]]))


def solarize_add(frames: np.ndarray, amount: int) -> np.ndarray:
    """Add ``amount``, at least 0, to pixels below 128."""
    return _look_up(frames, np.where(_VALUES < 128, np.minimum(_VALUES + amount, 255), _VALUES))


def auto_contrast(frames: np.ndarray) -> np.ndarray:
    """Stretch each channel of each frame so that its darkest pixel is 0 and its brightest 255."""
    columns = frames.reshape(len(frames), frames.shape[1], -1)  # reducing whole rows first is much faster
    low, high = (
        end(end(columns, axis=1).reshape(len(frames), -1, 3), axis=1)[:, None].astype(np.float64)  # [T, 1, 3]
        for end in (np.min, np.max)
    )
    flat = high == low
    scale = 255.0 / np.where(flat, 1.0, high - low)
    tables = np.clip(np.trunc(_VALUES[:, None] * scale - low * scale), 0, 255)  # [T, 256, 3]
    return _look_up(frames, np.where(flat, _VALUES[:, None], tables))


def equalize(frames: np.ndarray) -> np.ndarray:
    """Equalize the histogram of each channel of each frame."""
    tables = np.empty((len(frames), 256, 3), np.uint8)
    for frame, table in zip(frames, tables, strict=True):
        for channel in range(3):
            counts = cv2.calcHist([frame], [channel], None, [256], [0, 256]).ravel().astype(np.int64)
            table[:, channel] = _equalized_levels(counts)
    return _look_up(frames, tables)


def _equalized_levels(counts: np.ndarray) -> np.ndarray:
    """The look-up table [256] for a histogram int [256]."""
    present = np.flatnonzero(counts)
    step = int(counts.sum() - counts[present[-1]]) // 255
    if len(present) == 1 or step == 0:
        return _VALUES
    below = np.cumsum(counts) - counts
    return np.minimum((step // 2 + below) // step, 255)


def brightness(frames: np.ndarray, factor: float) -> np.ndarray:
    """Blend with black: 0 is black, 1 is the frame."""
    return _look_up(frames, _blend(np.zeros(1), factor))


def contrast(frames: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the mean gray of each frame: 0 is that gray, 1 is the frame."""
    grays = [cv2.mean(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY))[0] for frame in frames]
    return _look_up(frames, _blend(np.floor(np.array(grays)[:, None] + 0.5), factor))  # [T, 256]


def saturation(frames: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the gray of each pixel: 0 is gray, 1 is the frame."""
    changed = np.empty_like(frames, order="C")
    for frame, target in zip(frames, changed, strict=True):
        gray = cv2.cvtColor(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        cv2.addWeighted(frame, factor, gray, 1 - factor, _TRUNCATION, dst=target)
    return changed


def sharpness(frames: np.ndarray, factor: float) -> np.ndarray:
    """Blend with a smoothed frame: 0 is smooth, 1 is the frame; border pixels do not change."""
    changed = np.empty_like(frames, order="C")
    for frame, target in zip(frames, changed, strict=True):
        smooth = cv2.filter2D(frame, -1, _SMOOTH)
        cv2.addWeighted(frame, factor, smooth, 1 - factor, _TRUNCATION, dst=target)
    for edge in (0, -1):
        changed[:, edge] = frames[:, edge]
        changed[:, :, edge] = frames[:, :, edge]
    return changed


def hue(frames: np.ndarray, turn: float) -> np.ndarray:
    """Rotate the hue of each pixel by ``turn`` of the color circle, -0.5 to 0.5."""
    changed = np.empty_like(frames, order="C")
    for frame, target in zip(frames, changed, strict=True):
        hsv = cv2.cvtColor(frame.astype(np.float32), cv2.COLOR_RGB2HSV)  # hue in 0..360
        hsv[..., 0] = (hsv[..., 0] + np.float32(360 * turn)) % 360
        np.rint(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), out=target, casting="unsafe")
    return changed


def blur(frames: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur with a standard deviation in pixels, above 0; the border is repeated.

    As in BYOL's code, the kernel has a tenth of the height in pixels: 23 for 224, at least 3.
    """
    size = 2 * max(frames.shape[1] // 20, 1) + 1
    changed = np.empty_like(frames, order="C")
    for frame, target in zip(frames, changed, strict=True):
        cv2.GaussianBlur(frame, (size, size), sigma, dst=target, borderType=cv2.BORDER_REPLICATE)
    return changed


def translate_x(frames: np.ndarray, fraction: float, interpolation: str) -> np.ndarray:
    """Move the frames to the left by a fraction of their width; negative: to the right."""
    return _translate(frames, fraction * frames.shape[2], interpolation, axis=1)


def translate_y(frames: np.ndarray, fraction: float, interpolation: str) -> np.ndarray:
    """Move the frames up by a fraction of their height; negative: down."""
    return _translate(frames, fraction * frames.shape[1], interpolation, axis=0)


def _translate(frames: np.ndarray, pixels: float, interpolation: str, axis: int) -> np.ndarray:
    whole, kernels = _split_shifts(np.array([pixels]), interpolation)
    moved = np.empty_like(frames, order="C")
    for frame, target in zip(frames, moved, strict=True):
        _shift(frame, whole[0], kernels[0], target, axis)
    return moved


def shear_x(frames: np.ndarray, factor: float, interpolation: str) -> np.ndarray:
    """Move each row to the left by ``factor`` times its distance from the top."""
    rows = frames.shape[1]
    # The center of a row is half a pixel below its upper border.
    whole, kernels = _split_shifts(factor * (np.arange(rows) + 0.5), interpolation)
    moved = np.empty_like(frames, order="C")
    for row in range(rows):  # of all frames at once
        _shift(frames[:, row], whole[row], kernels[row], moved[:, row])
    return moved


def shear_y(frames: np.ndarray, factor: float, interpolation: str) -> np.ndarray:
    """Move each column up by ``factor`` times its distance from the left."""
    return _transpose(shear_x(_transpose(frames), factor, interpolation))


def rotate(frames: np.ndarray, degrees: float, interpolation: str) -> np.ndarray:
    """Rotate counter-clockwise about the center.

    Deviation from Pillow: OpenCV's bicubic kernel is slightly softer (a = -0.75, not -1), positions are
    multiples of 1/32 pixel, and the border of the rotated frame fades into the fill over two pixels.
    """
    height, width = frames.shape[1:3]
    x, y = (width - 1) / 2, (height - 1) / 2
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # Maps a pixel of the result to its position in the frame.
    matrix = np.array([[cosine, -sine, x - cosine * x + sine * y], [sine, cosine, y - sine * x - cosine * y]])
    flags = INTERPOLATIONS[interpolation] | cv2.WARP_INVERSE_MAP
    rotated = np.empty_like(frames, order="C")
    for frame, target in zip(frames, rotated, strict=True):
        cv2.warpAffine(frame, matrix, (width, height), dst=target, flags=flags, borderValue=(FILL,) * 3)
    return rotated


def _split_shifts(distances: np.ndarray, interpolation: str) -> tuple[list[int], np.ndarray]:
    """Split float [S] into whole pixels and kernels, float32 [S, 1, 5], for the fractions."""
    whole = np.floor(distances + 0.5)
    rest = distances - whole  # -0.5 to 0.5
    offsets = np.abs(np.arange(-2, 3) - rest[:, None, None])
    kernels = _cubic(offsets) if interpolation == "bicubic" else np.maximum(1 - offsets, 0.0)
    return whole.astype(int).tolist(), kernels.astype(np.float32)  # OpenCV is slower with float64


def _shift(picture: np.ndarray, whole: int, kernel: np.ndarray, target: np.ndarray, axis: int = 1) -> None:
    """Shift ``picture`` up (axis 0) or left (axis 1) into ``target`` [H, W, 3].

    As in Pillow's affine transform, the kernel sees repeated border pixels, and pixels with their center
    outside the picture become `FILL`.
    """
    length = picture.shape[axis]
    whole = min(max(whole, -length), length)
    kernel = kernel if axis else kernel.T
    between = cv2.filter2D(picture, -1, kernel, delta=_TRUNCATION, borderType=cv2.BORDER_REPLICATE)
    between, target = between.swapaxes(0, axis), target.swapaxes(0, axis)
    if whole >= 0:
        target[: length - whole] = between[whole:]
        target[length - whole :] = FILL
    else:
        target[-whole:] = between[:whole]
        target[:-whole] = FILL


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel with a = -1, as in Pillow's affine transforms."""
    near = distance**3 - 2 * distance**2 + 1
    far = -(distance**3) + 5 * distance**2 - 8 * distance + 4
    return np.where(distance < 1, near, np.where(distance < 2, far, 0.0))


def _transpose(frames: np.ndarray) -> np.ndarray:
    """Frames [T, H, W, 3] -> [T, W, H, 3]; four times as fast as numpy."""
    T, H, W, C = frames.shape
    transposed = np.empty((T, W, H, C), np.uint8)
    for frame, target in zip(frames, transposed, strict=True):
        cv2.transpose(frame, dst=target)
    return transposed


def _blend(low: np.ndarray, factor: float) -> np.ndarray:
    """Look-up tables [..., 256] that blend levels with ``low`` [..., 1], truncated like Pillow's."""
    low = low.astype(np.float32)
    blended = low + np.float32(factor) * (_VALUES.astype(np.float32) - low)
    return np.clip(np.trunc(blended), 0, 255)


def _look_up(frames: np.ndarray, tables: np.ndarray) -> np.ndarray:
    """Apply look-up tables: [256], per frame [T, 256], or per frame and channel [T, 256, 3]."""
    tables = tables.astype(np.uint8)
    changed = np.empty_like(frames, order="C")
    if tables.ndim == 1:
        rows = -1, *frames.shape[2:]  # all frames as one picture
        cv2.LUT(frames.reshape(rows), tables, dst=changed.reshape(rows))
    else:
        for frame, table, target in zip(frames, tables, changed, strict=True):
            cv2.LUT(frame, table[None], dst=target)
    return changed


_CHANGES: dict[str, Callable[..., np.ndarray]] = {
    "Brightness": brightness,
    "Contrast": contrast,
    "Color": saturation,
    "Hue": hue,
}
_STEPS = {"brightness": "Brightness", "contrast": "Contrast", "saturation": "Color", "hue": "Hue"}
_VIEW_CHANGES: dict[str, Callable[..., np.ndarray]] = {**_CHANGES, "Blur": blur, "Solarize": solarize}
_BLUR_SIGMA = (0.1, 2.0)  # pixels, BYOL
_SOLARIZE_THRESHOLD = 128


class ColorJitter:
    """Changes brightness, contrast, saturation and hue in random order, the same for all frames of a clip.

    As PySlowFast's ``color_jitter``, except that contrast is relative to the mean gray of each frame, and
    that pixels are uint8 after each change, where PySlowFast continues with floats. Hue as in BYOL.

    Args:
        brightness, contrast, saturation: maximum change x, 0..1; the factor is uniform in 1 - x..1 + x.
        hue: maximum rotation x of the hue, 0..0.5 of the color circle; uniform in -x..x.
    """

    def __init__(self, *, brightness: float, contrast: float, saturation: float, hue: float = 0.0) -> None:
        self.max_changes = {
            "brightness": brightness,
            "contrast": contrast,
            "saturation": saturation,
            "hue": hue,
        }
        for name, change in self.max_changes.items():
            limit = 0.5 if name == "hue" else 1
            if not 0 <= change <= limit:
                raise UserError(f"{name}={change}: the maximum change must be in 0..{limit}")

    def apply(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return changed frames, uint8 [T, H, W, 3]; the input is not modified."""
        for step in self.sample(rng):
            frames = _CHANGES[step.name](frames, step.argument)
        return frames

    def sample(self, rng: np.random.Generator) -> list[Step]:
        """Draw the color operations of a clip, in the order in which they are applied."""
        names = [name for name, change in self.max_changes.items() if change]
        steps = []
        for index in rng.permutation(len(names)):
            name, change = names[index], self.max_changes[names[index]]
            unchanged = 0 if name == "hue" else 1
            steps.append(Step(_STEPS[name], rng.uniform(unchanged - change, unchanged + change)))
        return steps


class RandomColor:
    """Random color jitter, grayscale, Gaussian blur and solarization of a view, in this order.

    BYOL's augmentation after the crop (arXiv 2006.07733, appendix B), which DINO and iBOT share.

    Args:
        jitter: the color jitter.
        chance: probability of color jitter.
        gray: probability of grayscale.
        blur: probability of a blur with a uniform standard deviation of 0.1..2 pixels.
        solarize: probability that pixels from 128 on are inverted.
    """

    def __init__(
        self,
        jitter: ColorJitter,
        *,
        chance: float = 0.8,
        gray: float = 0.2,
        blur: float = 0.0,
        solarize: float = 0.0,
    ) -> None:
        probabilities = {"chance": chance, "gray": gray, "blur": blur, "solarize": solarize}
        for name, value in probabilities.items():
            if not 0 <= value <= 1:
                raise UserError(f"{name}={value}: a probability must be in 0..1")
        self.jitter, self.chance, self.gray = jitter, chance, gray
        self.blur, self.solarize = blur, solarize

    def apply(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return changed frames, uint8 [T, H, W, 3], or ``frames``; the input is not modified."""
        for step in self.sample(rng):
            frames = _VIEW_CHANGES[step.name](frames, step.argument)
        return frames

    def sample(self, rng: np.random.Generator) -> list[Step]:
        """Sample the changes of a view, in their order."""
        steps = self.jitter.sample(rng) if rng.random() < self.chance else []
        if rng.random() < self.gray:
            steps.append(Step("Color", 0.0))
        if rng.random() < self.blur:
            steps.append(Step("Blur", rng.uniform(*_BLUR_SIGMA)))
        if rng.random() < self.solarize:
            steps.append(Step("Solarize", _SOLARIZE_THRESHOLD))
        return steps
