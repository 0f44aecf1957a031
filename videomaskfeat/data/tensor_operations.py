"""The operations of `operations` and the crop as torch functions, which run on the device of the frames.

Each function reads frames uint8 [T, H, W, 3], RGB, of one clip, and returns new frames of the same size.
Results equal those of the OpenCV functions: look-ups exactly on a CPU, all others to within one level, where
sums are rounded. No function waits for the device. There is no convolution and no matrix product, which a GPU
may compute with fewer bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from videomaskfeat.data.operations import FILL
from videomaskfeat.data.transforms import ClipGeometry, Rectangle

_TRUNCATION = -0.5 + 1 / 64  # as in operations: Pillow truncates results
_GRAY = (9798, 19235, 3735)  # OpenCV's weights of R, G and B, times 2^15


def invert(frames: Tensor) -> Tensor:
    """255 minus each pixel."""
    return 255 - frames


def posterize(frames: Tensor, bits: int) -> Tensor:
    """Keep the ``bits`` highest bits of each pixel, 0 to 8."""
    return frames & (256 - 2 ** (8 - bits))


def solarize(frames: Tensor, threshold: int) -> Tensor:
    """Invert pixels at or above the threshold, 0 to 256."""
    return frames if threshold > 255 else torch.where(frames >= threshold, 255 - frames, frames)


def solarize_add(frames: Tensor, amount: int) -> Tensor:
    """Add ``amount``, 0 to 128, to pixels below 128."""
    return torch.where(frames < 128, frames.clamp(max=255 - amount) + amount, frames)


def auto_contrast(frames: Tensor) -> Tensor:
    """Stretch each channel of each frame so that its darkest pixel is 0 and its brightest 255."""
    low, high = frames.amin((1, 2)).double(), frames.amax((1, 2)).double()  # [T, 3]
    flat = (high == low)[..., None]
    span = torch.where(high == low, 1.0, high - low)[..., None]  # [T, 3, 1]
    scale = torch.full_like(span, 255) / span  # `255 / span` would multiply with the rounded reciprocal
    all_levels = torch.arange(256, device=frames.device)
    tables = (all_levels * scale - low[..., None] * scale).trunc().clamp(0, 255)
    return _look_up(frames, torch.where(flat, all_levels.double(), tables))


def equalize(frames: Tensor) -> Tensor:
    """Equalize the histogram of each channel of each frame."""
    T, H, W, C = frames.shape
    places = _places(frames)
    ones = torch.ones(1, dtype=torch.int64, device=frames.device).expand(places.numel())
    counts = torch.zeros(T * C * 256, dtype=torch.int64, device=frames.device)
    counts = counts.scatter_add_(0, places.flatten(), ones).view(T, C, 256)
    all_levels = torch.arange(256, device=frames.device)
    last = (all_levels * (counts > 0)).amax(-1, keepdim=True)  # [T, C, 1], the brightest level
    step = (H * W - counts.gather(-1, last)) // 255
    below = counts.cumsum(-1) - counts
    equalized = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    return _look_up(frames, torch.where(step == 0, all_levels, equalized))


def brightness(frames: Tensor, factor: float) -> Tensor:
    """Blend with black: 0 is black, 1 is the frame."""
    return _to_levels((frames * factor).trunc())


def contrast(frames: Tensor, factor: float) -> Tensor:
    """Blend with the mean gray of each frame: 0 is that gray, 1 is the frame."""
    mean = _gray(frames).double().mean((1, 2, 3), keepdim=True)  # [T, 1, 1, 1]
    low = (mean + 0.5).floor().float()
    return _to_levels((low + factor * (frames - low)).trunc())


def saturation(frames: Tensor, factor: float) -> Tensor:
    """Blend with the gray of each pixel: 0 is gray, 1 is the frame."""
    return _blend(frames, _gray(frames), factor)


def sharpness(frames: Tensor, factor: float) -> Tensor:
    """Blend with a smoothed frame: 0 is smooth, 1 is the frame; border pixels do not change."""
    H, W = frames.shape[1:3]
    if min(H, W) < 3:
        return frames
    inner = frames[:, 1:-1, 1:-1]
    rows = frames[:, :-2].int() + frames[:, 1:-1] + frames[:, 2:]  # sums of three rows
    sums = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * inner.int()
    changed = frames.clone()
    changed[:, 1:-1, 1:-1] = _blend(inner, (sums / 13).round(), factor)
    return changed


def translate_x(frames: Tensor, fraction: float, interpolation: str) -> Tensor:
    """Move the frames to the left by a fraction of their width; negative: to the right."""
    H, W = frames.shape[1:3]
    distances = torch.full((H,), fraction * W, dtype=torch.float64, device=frames.device)
    return _shift_rows(frames, distances, interpolation)


def translate_y(frames: Tensor, fraction: float, interpolation: str) -> Tensor:
    """Move the frames up by a fraction of their height; negative: down."""
    return translate_x(frames.transpose(1, 2), fraction, interpolation).transpose(1, 2)


def shear_x(frames: Tensor, factor: float, interpolation: str) -> Tensor:
    """Move each row to the left by ``factor`` times its distance from the top."""
    rows = torch.arange(frames.shape[1], dtype=torch.float64, device=frames.device)
    return _shift_rows(frames, factor * (rows + 0.5), interpolation)


def shear_y(frames: Tensor, factor: float, interpolation: str) -> Tensor:
    """Move each column up by ``factor`` times its distance from the left."""
    return shear_x(frames.transpose(1, 2), factor, interpolation).transpose(1, 2)


def rotate(frames: Tensor, degrees: float, interpolation: str) -> Tensor:
    """Rotate counter-clockwise about the center; the bicubic kernel is OpenCV's.

    Positions are exact, as in OpenCV 5; older versions round them to 1/32 pixel.
    """
    T, H, W, C = frames.shape
    center_x, center_y = (W - 1) / 2, (H - 1) / 2
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = (torch.arange(length, dtype=torch.float64, device=frames.device) for length in (W, H))
    start_x = center_x - cosine * center_x + sine * center_y
    start_y = center_y - sine * center_x - cosine * center_y
    positions = [
        cosine * x + (start_x - sine * y)[:, None],
        sine * x + (start_y + cosine * y)[:, None],
    ]
    scaled = [2 * one / max(length - 1, 1) - 1 for one, length in zip(positions, (W, H), strict=True)]
    grid = torch.stack(scaled, -1).float()[None]  # [1, H, W, 2]
    pixels = (frames.permute(0, 3, 1, 2).reshape(1, T * C, H, W).float()) - FILL  # outside is 0
    rotated = F.grid_sample(pixels, grid, mode=interpolation, padding_mode="zeros", align_corners=True)
    return _to_levels((rotated + FILL).round()).view(T, C, H, W).permute(0, 2, 3, 1)


def hue(frames: Tensor, turn: float) -> Tensor:
    """Rotate the hue of each pixel by ``turn`` of the color circle, -0.5 to 0.5."""
    red, green, blue = frames.float().unbind(-1)
    value, _ = frames.float().max(-1)
    chroma = value - frames.float().amin(-1)
    scale = 1 / chroma.clamp(min=1)
    sextant = torch.where(
        value == red,
        (green - blue) * scale,
        torch.where(value == green, 2 + (blue - red) * scale, 4 + (red - green) * scale),
    )
    sextant = (sextant + 6 * turn) % 6  # 0..6
    # Each channel is value - chroma * its distance from the hue, from 0 (nearest third) to 1.
    channels = [
        value - chroma * torch.minimum(place, 4 - place).clamp(0, 1)
        for place in ((sextant + start) % 6 for start in (5, 3, 1))
    ]
    return _to_levels(torch.stack(channels, -1).round())


def blur(frames: Tensor, sigma: float) -> Tensor:
    """Gaussian blur with a standard deviation in pixels; the border is repeated."""
    radius = max(frames.shape[1] // 20, 1)
    offsets = range(-radius, radius + 1)
    weights = [math.exp(-(offset**2) / (2 * sigma**2)) for offset in offsets]
    weights = [weight / sum(weights) for weight in weights]
    blurred = frames.float()
    for dim in (2, 1):
        length = frames.shape[dim]
        places = torch.arange(length, device=frames.device)
        sums = torch.zeros_like(blurred)
        for offset, weight in zip(offsets, weights, strict=True):
            if weight > 1e-6:
                sums += weight * blurred.index_select(dim, (places + offset).clamp(0, length - 1))
        blurred = sums
    return _to_levels(blurred.round())


TENSOR_OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "AutoContrast": auto_contrast,
    "Equalize": equalize,
    "Invert": invert,
    "Rotate": rotate,
    "Posterize": posterize,
    "Solarize": solarize,
    "SolarizeAdd": solarize_add,
    "Color": saturation,
    "Contrast": contrast,
    "Brightness": brightness,
    "Sharpness": sharpness,
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateXRel": translate_x,
    "TranslateYRel": translate_y,
    "Hue": hue,
    "Blur": blur,
}
"""Functions by the names of RandAugment, and two of the color changes of BYOL."""
RESAMPLING = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")
"""Those with an argument for the interpolation."""


def crop_frames(frames: Tensor, geometry: ClipGeometry) -> Tensor:
    """`ClipGeometry.apply_clip` on the device: uint8 [T, H, W, C] -> uint8 [T, h, w, C], contiguous.

    Bilinear without antialiasing, equal to OpenCV's to within one level.
    """
    source, window = geometry.source, geometry.window
    rows, columns = source.slices
    frames = frames[:, rows, columns]
    if geometry.resized != (source.height, source.width):
        y = _Taps(source.height, geometry.resized[0], window.top, window.height, frames.device)
        x = _Taps(source.width, geometry.resized[1], window.left, window.width, frames.device)
        frames = _to_levels((x.read(y.read(frames, 1), 2) + 0.5).floor())
    else:
        rows, columns = window.slices
        frames = frames[:, rows, columns]
    return frames.flip(2) if geometry.flip else frames.contiguous()


def erase(clip: Tensor, box: Rectangle, *, means: Sequence[float], stds: Sequence[float], seed: int) -> None:
    """Fill a box of a clip uint8 [T, H, W, 3] with normal noise per pixel, channel and frame, in place.

    Args:
        clip: the clip.
        box: the box, the same in all frames.
        means, stds: of each channel, or one number for all, in levels.
        seed: seed of the noise, which differs between kinds of devices.
    """
    generator = torch.Generator(clip.device).manual_seed(seed)
    shape = (len(clip), box.height, box.width, 3)
    noise = torch.randn(shape, generator=generator, device=clip.device)
    for channel in range(3):
        noise[..., channel] *= stds[channel % len(stds)]
        noise[..., channel] += means[channel % len(means)]
    rows, columns = box.slices
    clip[:, rows, columns] = _to_levels(noise.round())


class _Taps:
    """The two source positions of each position of a window along an axis, and the weight of the second."""

    def __init__(self, length: int, resized: int, start: int, count: int, device: torch.device) -> None:
        places = torch.arange(start, start + count, dtype=torch.float64, device=device)
        source = ((places + 0.5) * (length / resized) - 0.5).clamp(0, length - 1)
        first = source.floor()
        self._first = first.long()
        self._second = (self._first + 1).clamp(max=length - 1)
        self._weight = (source - first).float()

    def read(self, frames: Tensor, dim: int) -> Tensor:
        """Interpolate along an axis; returns float32."""
        weight = self._weight.view(-1, *[1] * (frames.dim() - dim - 1))
        first = frames.index_select(dim, self._first).float()
        return first + weight * (frames.index_select(dim, self._second) - first)


def _shift_rows(frames: Tensor, distances: Tensor, interpolation: str) -> Tensor:
    """Move each row to the left by float64 [H] pixels; pixels from outside the frame become `FILL`."""
    W = frames.shape[2]
    whole = (distances + 0.5).floor()
    rest = distances - whole  # -0.5..0.5
    columns = torch.arange(W, device=frames.device) + whole.long()[:, None]  # [H, W], centers of kernels
    rows = torch.arange(len(distances), device=frames.device)[:, None]
    moved = torch.full_like(frames, _TRUNCATION, dtype=torch.float32)
    for offset in range(-2, 3) if interpolation == "bicubic" else range(-1, 2):
        distance = (offset - rest).abs()
        weight = _cubic(distance) if interpolation == "bicubic" else (1 - distance).clamp(min=0)
        pixels = frames[:, rows, (columns + offset).clamp(0, W - 1)]  # [T, H, W, 3]
        moved += weight.float()[:, None, None] * pixels
    outside = (columns < 0) | (columns >= W)
    return torch.where(outside[..., None], FILL, _to_levels(moved.round()))


def _cubic(distance: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -1."""
    near = distance**3 - 2 * distance**2 + 1
    far = -(distance**3) + 5 * distance**2 - 8 * distance + 4
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


def _gray(frames: Tensor) -> Tensor:
    """OpenCV's gray of each pixel, int32 [T, H, W, 1]."""
    red, green, blue = (weight * one for weight, one in zip(_GRAY, frames.int().unbind(-1), strict=True))
    return ((red + green + blue + (1 << 14)) >> 15)[..., None]


def _blend(frames: Tensor, other: Tensor, factor: float) -> Tensor:
    """factor * frames + (1 - factor) * other, truncated."""
    return _to_levels((frames * factor + other * (1 - factor) + _TRUNCATION).round())


def _to_levels(values: Tensor) -> Tensor:
    return values.clamp(0, 255).to(torch.uint8)


def _places(frames: Tensor) -> Tensor:
    """The place of each pixel's level in tables [T, C, 256], int64 [T, H, W, C]."""
    T, _, _, C = frames.shape
    starts = 256 * torch.arange(T * C, device=frames.device).view(T, 1, 1, C)
    return frames.long() + starts


def _look_up(frames: Tensor, tables: Tensor) -> Tensor:
    """Apply a look-up table [T, C, 256] per frame and channel."""
    return tables.to(torch.uint8).flatten()[_places(frames)]
