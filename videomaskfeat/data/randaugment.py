"""RandAugment on whole clips (arXiv 1909.13719), with timm's words and PySlowFast's numbers.

A clip goes through a few operations drawn at random, every frame alike. A *magnitude* from 0 to 10 says how
strongly; each operation makes an argument of its own of it: degrees, bits, a factor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from videomaskfeat.data import operations
from videomaskfeat.errors import UserError, nearest

SCALE = 10.0  # the magnitude at which operations reach their full strength

WORDS = {
    "m": "magnitude",
    "n": "layers",
    "mstd": "noise of the magnitude",
    "mmax": "largest magnitude",
    "inc": "severity increases with the magnitude, 0 or 1",
    "p": "chance of each operation",
}
# timm's words, of now or of old, that are refused.
_REFUSED = {"w": "weighted operations", "t": "other sets of operations"}


@dataclass(frozen=True)
class Operation:
    """One operation and what a magnitude means to it.

    Attributes:
        change: frames, and the argument if there is one, -> frames.
        argument: (strength, sign, increasing) -> the argument. The strength is the magnitude / 10, the sign
            1 or -1 with even chances. None: the operation has no argument.
        resamples: whether ``change`` also takes an interpolation.
    """

    change: Callable[..., np.ndarray]
    argument: Callable[[float, int, bool], float] | None = None
    resamples: bool = False


def _degrees(strength: float, sign: int, increasing: bool) -> float:
    return sign * strength * 30.0


def _shear(strength: float, sign: int, increasing: bool) -> float:
    return sign * strength * 0.3


def _share(strength: float, sign: int, increasing: bool) -> float:
    return sign * strength * 0.45


def _bits(strength: float, sign: int, increasing: bool) -> int:
    bits = int(strength * 4)
    return max(4 - bits, 0) if increasing else min(bits, 8)


def _threshold(strength: float, sign: int, increasing: bool) -> int:
    threshold = min(int(strength * 256), 256)
    return 256 - threshold if increasing else threshold


def _amount(strength: float, sign: int, increasing: bool) -> int:
    return min(int(strength * 110), 128)


def _factor(strength: float, sign: int, increasing: bool) -> float:
    return max(1.0 + sign * strength * 0.9, 0.1) if increasing else 0.1 + strength * 1.8


# timm's names and set; bounds for magnitudes above 10 are timm's too, PySlowFast stops at 10.
OPERATIONS = {
    "AutoContrast": Operation(operations.auto_contrast),
    "Equalize": Operation(operations.equalize),
    "Invert": Operation(operations.invert),
    "Rotate": Operation(operations.rotate, _degrees, resamples=True),
    "Posterize": Operation(operations.posterize, _bits),
    "Solarize": Operation(operations.solarize, _threshold),
    "SolarizeAdd": Operation(operations.solarize_add, _amount),
    "Color": Operation(operations.saturation, _factor),
    "Contrast": Operation(operations.contrast, _factor),
    "Brightness": Operation(operations.brightness, _factor),
    "Sharpness": Operation(operations.sharpness, _factor),
    "ShearX": Operation(operations.shear_x, _shear, resamples=True),
    "ShearY": Operation(operations.shear_y, _shear, resamples=True),
    "TranslateXRel": Operation(operations.translate_x, _share, resamples=True),
    "TranslateYRel": Operation(operations.translate_y, _share, resamples=True),
}


@dataclass(frozen=True)
class Step:
    """An operation that was drawn.

    Attributes:
        name: a key of `OPERATIONS`.
        argument: in the operation's own unit; None where it has none.
    """

    name: str
    argument: float | None


class RandAugment:
    """Draws operations for a clip and applies them to all of its frames.

    Args:
        magnitude: how strong the operations are, 0 to ``largest``.
        layers: operations drawn for a clip, with replacement.
        noise: standard deviation of the magnitude; infinite: it is drawn evenly from 0 to ``magnitude``.
        largest: the noise takes no magnitude above it.
        probability: chance that a drawn operation is applied.
        increasing: a larger magnitude always changes more. Otherwise posterize and solarize change less, and
            the factors of colour, contrast, brightness and sharpness go from 0.1 to 1.9 instead of away
            from 1 in either direction.
        interpolation: bicubic or bilinear, of rotations, shears and shifts.

    Raises:
        UserError: a value out of its range.
    """

    def __init__(
        self,
        *,
        magnitude: float = 10.0,
        layers: int = 2,
        noise: float = 0.0,
        largest: float = SCALE,
        probability: float = 0.5,
        increasing: bool = False,
        interpolation: str = "bicubic",
    ) -> None:
        if not 0 < largest < math.inf:
            raise UserError(f"RandAugment's largest magnitude mmax={largest:g} must be above 0")
        if not 0 <= magnitude <= largest:
            raise UserError(
                f"RandAugment's magnitude m={magnitude:g} must lie in 0..{largest:g}; "
                "mmax raises the upper end"
            )
        if layers < 1:
            raise UserError(f"RandAugment's layers n={layers} must be at least 1; leave it out to have none")
        if not noise >= 0:
            raise UserError(f"RandAugment's noise mstd={noise:g} must be at least 0")
        if not 0 <= probability <= 1:
            raise UserError(f"RandAugment's chance of each operation p={probability:g} must lie in 0..1")
        if interpolation not in operations.INTERPOLATIONS:
            known = tuple(operations.INTERPOLATIONS)
            raise UserError(
                f"RandAugment's interpolation {interpolation!r} is not {' or '.join(known)}"
                f"{nearest(interpolation, known)}"
            )
        self.magnitude, self.layers, self.noise = magnitude, layers, noise
        self.largest, self.probability = largest, probability
        self.increasing = increasing
        self.interpolation = interpolation

    @classmethod
    def from_words(cls, words: str, *, interpolation: str = "bicubic") -> RandAugment:
        """From timm's words, such as ``rand-m7-n4-mstd0.5-inc1``; what they leave out is as in timm.

        m and n (10 and 2), mstd (0; above 100 or ``inf``: evenly from 0 to m), mmax (10), inc (0) and p
        (0.5). Deviation: ``inc0`` means 0 here; timm and PySlowFast take it for 1.

        Raises:
            UserError: a word that is not one of these, or a value out of its range.
        """
        values = _read_words(words)
        noise = values.get("mstd", 0.0)
        if values.get("n", 2) % 1:
            raise UserError(f"RandAugment {words!r}: the layers n={values['n']:g} must be a whole number")
        if values.get("inc", 0) not in (0, 1):
            raise UserError(f"RandAugment {words!r}: inc={values['inc']:g} must be 0 or 1")
        return cls(
            magnitude=values.get("m", 10.0),
            layers=int(values.get("n", 2)),
            noise=math.inf if noise > 100 else noise,
            largest=values.get("mmax", SCALE),
            probability=values.get("p", 0.5),
            increasing=values.get("inc", 0) == 1,
            interpolation=interpolation,
        )

    def apply(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Frames uint8 [T, H, W, 3], RGB, which stay as they are -> changed ones, or themselves."""
        for step in self.draw(rng):
            frames = self.change(frames, step)
        return frames

    def draw(self, rng: np.random.Generator) -> list[Step]:
        """The operations of one clip, in their order: at most ``layers``."""
        names = list(OPERATIONS)
        drawn = [names[place] for place in rng.integers(len(names), size=self.layers)]
        return [self._step(name, rng) for name in drawn if rng.random() < self.probability]

    def change(self, frames: np.ndarray, step: Step) -> np.ndarray:
        """Apply one operation to frames uint8 [T, H, W, 3]."""
        operation = OPERATIONS[step.name]
        arguments: list[Any] = [] if step.argument is None else [step.argument]
        if operation.resamples:
            arguments.append(self.interpolation)
        return operation.change(frames, *arguments)

    def _step(self, name: str, rng: np.random.Generator) -> Step:
        argument = OPERATIONS[name].argument
        if argument is None:
            return Step(name, None)
        sign = 1 if rng.random() < 0.5 else -1
        return Step(name, argument(self._magnitude(rng) / SCALE, sign, self.increasing))

    def _magnitude(self, rng: np.random.Generator) -> float:
        if math.isinf(self.noise):
            return rng.uniform(0, self.magnitude)
        return min(max(rng.normal(self.magnitude, self.noise), 0.0), self.largest)


def _read_words(words: str) -> dict[str, float]:
    """The numbers of the words by their names."""
    first, *rest = words.split("-")
    if first != "rand":
        raise UserError(
            f"RandAugment {words!r} must start with rand, such as rand-m7-n4-mstd0.5-inc1; "
            "other augmentations are not known"
        )
    values: dict[str, float] = {}
    for word in rest:
        match = re.fullmatch(r"([a-z]+?)(\d+\.?\d*|inf)", word)
        name = match[1] if match else word
        if name[:1] in _REFUSED and name not in WORDS:
            raise UserError(
                f"RandAugment {words!r}: {word!r} ({_REFUSED[name[0]]}) is not supported; leave it out"
            )
        if match is None or name not in WORDS:
            known = ", ".join(f"{known} ({meaning})" for known, meaning in WORDS.items())
            raise UserError(f"RandAugment {words!r}: {word!r} is not a name and a number; names are {known}")
        if name in values:
            raise UserError(f"RandAugment {words!r}: {name} is given twice")
        values[name] = float(match[2])
    return values
