"""RandAugment's operations per frame with Pillow, which the published recipes use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

Picture = Image.Image
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def pillow_operation(
    frames: np.ndarray, name: str, argument: Any = None, interpolation: str = "bicubic"
) -> np.ndarray:
    """Frames uint8 [T, H, W, 3] after one operation."""
    change = pillow_change(name, argument, interpolation)
    return np.stack([np.asarray(change(Image.fromarray(frame))) for frame in frames])


def pillow_change(name: str, argument: Any, interpolation: str) -> Callable[[Picture], Picture]:
    """The operation on one picture."""
    if name in _AFFINE:
        return lambda picture: picture.transform(
            picture.size,
            Image.Transform.AFFINE,
            _AFFINE[name](argument, *picture.size),
            resample=FILTERS[interpolation],
            fillcolor=(128, 128, 128),
        )
    if name == "Rotate":
        return lambda picture: picture.rotate(
            argument, resample=FILTERS[interpolation], fillcolor=(128, 128, 128)
        )
    if name in _ENHANCERS:
        return lambda picture: _ENHANCERS[name](picture).enhance(argument)
    return lambda picture: _OTHERS[name](picture, argument)


# Output pixel (x, y) -> input (a x + b y + c, d x + e y + f), in the order a to f.
_AFFINE: dict[str, Callable[[float, int, int], tuple[float, ...]]] = {
    "ShearX": lambda factor, width, height: (1, factor, 0, 0, 1, 0),
    "ShearY": lambda factor, width, height: (1, 0, 0, factor, 1, 0),
    "TranslateXRel": lambda share, width, height: (1, 0, share * width, 0, 1, 0),
    "TranslateYRel": lambda share, width, height: (1, 0, 0, 0, 1, share * height),
}
_ENHANCERS: dict[str, Callable[[Picture], Any]] = {
    "Color": ImageEnhance.Color,
    "Contrast": ImageEnhance.Contrast,
    "Brightness": ImageEnhance.Brightness,
    "Sharpness": ImageEnhance.Sharpness,
}


def _solarize_add(picture: Picture, amount: int) -> Picture:
    return picture.point([min(255, level + amount) if level < 128 else level for level in range(256)] * 3)


_OTHERS: dict[str, Callable[[Picture, Any], Picture]] = {
    "AutoContrast": lambda picture, _: ImageOps.autocontrast(picture),
    "Equalize": lambda picture, _: ImageOps.equalize(picture),
    "Invert": lambda picture, _: ImageOps.invert(picture),
    "Posterize": ImageOps.posterize,
    "Solarize": ImageOps.solarize,
    "SolarizeAdd": _solarize_add,
}
