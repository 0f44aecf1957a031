"""Augmentation of training clips: RandAugment, random erasing, mixup and cutmix.

RandAugment (arXiv 1909.13719) is configured by timm's strings and has PySlowFast's ranges. A few random
operations change all frames of a clip alike. Each operation converts a *magnitude* from 0 to 10 into its own
argument: degrees, bits or a factor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Beta

from videomaskfeat.data import operations
from videomaskfeat.data.operations import ColorJitter, Step
from videomaskfeat.data.transforms import ClipGeometry, Rectangle, place_rectangle, sample_sides
from videomaskfeat.data.uncropped import ClipChange, Erasure
from videomaskfeat.errors import UserError, check_name

_SCALE = 10.0  # magnitude at which operations reach their full strength
_KEYS = {
    "m": "magnitude",
    "n": "layers",
    "mstd": "noise of the magnitude",
    "mmax": "largest magnitude",
    "inc": "severity increases with the magnitude, 0 or 1",
    "p": "probability of each operation",
}
# Unsupported keys of present and past versions of timm.
_UNSUPPORTED = {"w": "weighted operations", "t": "other sets of operations"}
_ERASING_TRIES = 100  # as PySlowFast for cubes; timm has 10 for images


@dataclass(frozen=True)
class Operation:
    """One operation of RandAugment.

    Attributes:
        change: (frames, argument if there is one) -> frames.
        argument: (strength, sign, increasing) -> argument. The strength is the magnitude / 10, the sign is 1
            or -1 with equal probability. None: the operation has no argument.
        resamples: whether ``change`` has an argument for the interpolation.
    """

    change: Callable[..., np.ndarray]
    argument: Callable[[float, int, bool], float] | None = None
    resamples: bool = False


def _signed(maximum: float) -> Callable[[float, int, bool], float]:
    return lambda strength, sign, increasing: sign * strength * maximum


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


# timm's names and operations; the bounds for magnitudes above 10 are timm's, PySlowFast stops at 10.
OPERATIONS = {
    "AutoContrast": Operation(operations.auto_contrast),
    "Equalize": Operation(operations.equalize),
    "Invert": Operation(operations.invert),
    "Rotate": Operation(operations.rotate, _signed(30.0), resamples=True),
    "Posterize": Operation(operations.posterize, _bits),
    "Solarize": Operation(operations.solarize, _threshold),
    "SolarizeAdd": Operation(operations.solarize_add, _amount),
    "Color": Operation(operations.saturation, _factor),
    "Contrast": Operation(operations.contrast, _factor),
    "Brightness": Operation(operations.brightness, _factor),
    "Sharpness": Operation(operations.sharpness, _factor),
    "ShearX": Operation(operations.shear_x, _signed(0.3), resamples=True),
    "ShearY": Operation(operations.shear_y, _signed(0.3), resamples=True),
    "TranslateXRel": Operation(operations.translate_x, _signed(0.45), resamples=True),
    "TranslateYRel": Operation(operations.translate_y, _signed(0.45), resamples=True),
}


@dataclass(frozen=True)
class RandAugment:
    """Samples operations for a clip and applies them to all of its frames.

    Args:
        magnitude: strength of the operations, 0 to ``largest``.
        layers: number of sampled operations per clip, with replacement.
        noise: standard deviation of the magnitude; infinite: the magnitude is uniform in 0..``magnitude``.
        largest: maximum magnitude with noise.
        probability: probability that a sampled operation is applied.
        increasing: whether a larger magnitude always means a stronger change. If not, posterize and solarize
            become weaker, and the factors of color, contrast, brightness and sharpness grow from 0.1 to 1.9
            instead of away from 1 in both directions.
        interpolation: bicubic or bilinear, for rotations, shears and translations.

    Raises:
        UserError: a value is out of range.
    """

    _: KW_ONLY
    magnitude: float = 10.0
    layers: int = 2
    noise: float = 0.0
    largest: float = _SCALE
    probability: float = 0.5
    increasing: bool = False
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        if not 0 < self.largest < math.inf:
            raise UserError(f"RandAugment's largest magnitude mmax={self.largest:g} must be above 0")
        if not 0 <= self.magnitude <= self.largest:
            raise UserError(
                f"RandAugment's magnitude m={self.magnitude:g} must be in 0..{self.largest:g}; set mmax for "
                "a larger maximum"
            )
        if self.layers < 1:
            raise UserError(
                f"RandAugment's number of layers n={self.layers} must be at least 1; without RandAugment, "
                f"leave the "
                "string empty"
            )
        if not self.noise >= 0:
            raise UserError(f"RandAugment's noise mstd={self.noise:g} must be at least 0")
        if not 0 <= self.probability <= 1:
            raise UserError(f"RandAugment's probability p={self.probability:g} must be in 0..1")
        check_name("RandAugment's interpolation", self.interpolation, operations.INTERPOLATIONS)

    @classmethod
    def from_words(cls, words: str, *, interpolation: str = "bicubic") -> RandAugment:
        """Build from one of timm's strings, such as ``rand-m7-n4-mstd0.5-inc1``.

        Defaults: m10, n2, mstd0 (above 100 or ``inf``: uniform in 0..m), mmax10, inc0, p0.5. Deviation:
        ``inc0`` means 0 here, and 1 in timm and PySlowFast.

        Raises:
            UserError: unknown or repeated keys, or a value is out of range.
        """
        values = _parse_words(words)
        noise = values.get("mstd", 0.0)
        if values.get("n", 2) % 1:
            raise UserError(
                f"RandAugment {words!r}: the number of layers n={values['n']:g} must be an integer"
            )
        if values.get("inc", 0) not in (0, 1):
            raise UserError(f"RandAugment {words!r}: inc={values['inc']:g} must be 0 or 1")
        return cls(
            magnitude=values.get("m", 10.0),
            layers=int(values.get("n", 2)),
            noise=math.inf if noise > 100 else noise,
            largest=values.get("mmax", _SCALE),
            probability=values.get("p", 0.5),
            increasing=values.get("inc", 0) == 1,
            interpolation=interpolation,
        )

    def apply(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return changed frames, uint8 [T, H, W, 3], RGB, or ``frames``; the input is not modified."""
        for step in self.sample(rng):
            frames = self.change(frames, step)
        return frames

    def sample(self, rng: np.random.Generator) -> list[Step]:
        """Sample the operations of one clip in order: at most ``layers``."""
        names = list(OPERATIONS)
        sampled = [names[index] for index in rng.integers(len(names), size=self.layers)]
        return [self._sample_step(name, rng) for name in sampled if rng.random() < self.probability]

    def change(self, frames: np.ndarray, step: Step) -> np.ndarray:
        """Apply one operation to frames uint8 [T, H, W, 3]."""
        operation = OPERATIONS[step.name]
        arguments: list[Any] = [] if step.argument is None else [step.argument]
        if operation.resamples:
            arguments.append(self.interpolation)
        return operation.change(frames, *arguments)

    def _sample_step(self, name: str, rng: np.random.Generator) -> Step:
        argument = OPERATIONS[name].argument
        if argument is None:
            return Step(name, None)
        sign = 1 if rng.random() < 0.5 else -1
        if math.isinf(self.noise):
            magnitude = rng.uniform(0, self.magnitude)
        else:
            magnitude = min(max(rng.normal(self.magnitude, self.noise), 0.0), self.largest)
        return Step(name, argument(magnitude / _SCALE, sign, self.increasing))


def _parse_words(words: str) -> dict[str, float]:
    first, *rest = words.split("-")
    if first != "rand":
        raise UserError(
            f"RandAugment {words!r} must start with rand, such as rand-m7-n4-mstd0.5-inc1; other "
            "augmentations are unknown"
        )
    values: dict[str, float] = {}
    for word in rest:
        match = re.fullmatch(r"([a-z]+?)(\d+\.?\d*|inf)", word)
        name = match[1] if match else word
        if name[:1] in _UNSUPPORTED and name not in _KEYS:
            raise UserError(
                f"RandAugment {words!r}: {word!r} ({_UNSUPPORTED[name[0]]}) is not supported; leave it out"
            )
        if match is None or name not in _KEYS:
            known = ", ".join(f"{known} ({meaning})" for known, meaning in _KEYS.items())
            raise UserError(f"RandAugment {words!r}: {word!r} is not a name and a number; names are {known}")
        if name in values:
            raise UserError(f"RandAugment {words!r}: {name} appears twice; give it once")
        values[name] = float(match[2])
    return values


class RandomErasing:
    """Fills a random box, the same in all frames, with independent noise per pixel, channel and frame.

    Random erasing (arXiv 1708.04896) in "pixel" mode on a cube. As in PySlowFast, the noise is standard
    normal after normalization of the pixels. Deviation: noise is rounded to whole levels and clamped to
    0..255, which affects 2.3 % of the values below and 0.7 % above; probabilities of levels are multiples of
    1/65536.

    Args:
        probability: probability that a clip is erased.
        area: minimum and maximum area of a box as a fraction of the frame, uniform.
        aspect: minimum and maximum height / width of a box, log-uniform.
        mean: mean for the normalization of pixels in 0..1, one number or one per channel.
        std: standard deviation for the normalization, one number or one per channel.

    Raises:
        UserError: a value is out of range.
    """

    def __init__(
        self,
        *,
        probability: float,
        area: tuple[float, float] = (0.02, 1 / 3),
        aspect: tuple[float, float] = (0.3, 1 / 0.3),
        mean: float | Sequence[float] = 0.45,
        std: float | Sequence[float] = 0.225,
    ) -> None:
        if not 0 <= probability <= 1:
            raise UserError(f"erasing probability={probability}: must be in 0..1")
        if not 0 < area[0] <= area[1] <= 1:
            raise UserError(f"erasing area={area}: must be two fractions with 0 < low <= high <= 1")
        if not 0 < aspect[0] <= aspect[1] < math.inf:
            raise UserError(f"erasing aspect={aspect}: must be two ratios with 0 < low <= high")
        means, stds = np.atleast_1d(mean), np.atleast_1d(std)
        valid = np.isfinite(means).all() and np.isfinite(stds).all() and (stds > 0).all()
        if not (valid and {means.shape, stds.shape} <= {(1,), (3,)}):
            raise UserError(
                f"erasing mean={mean}, std={std}: each must be one number, or one for each of 3 channels, "
                "and std above 0"
            )
        self.probability = probability
        self.area, self.aspect = area, aspect
        channels = [(255 * float(m), 255 * float(s)) for m, s in np.broadcast(means, stds)]
        self._means, self._stds = (tuple(one) for one in zip(*channels, strict=True))
        self._noise_values = np.stack([_normal_levels(m, s) for m, s in channels])

    def apply(self, clip: np.ndarray, rng: np.random.Generator) -> None:
        """Erase a box of a clip uint8 [T, H, W, 3] in place, or do nothing."""
        box = self._draw_box(clip.shape[1], clip.shape[2], rng)
        if box is None:
            return
        indices = rng.integers(0, 1 << 16, (len(clip), box.height, box.width, 3), dtype=np.uint16)
        rows, columns = box.slices
        clip[:, rows, columns] = self._noise_values[np.arange(3) % len(self._noise_values), indices]

    def draw(self, height: int, width: int, rng: np.random.Generator) -> Erasure | None:
        """Draw the box that the device erases in a clip of ``height`` x ``width`` pixels; None: no box."""
        box = self._draw_box(height, width, rng)
        if box is None:
            return None
        return Erasure(box, self._means, self._stds, seed=int(rng.integers(1 << 63)))

    def _draw_box(self, height: int, width: int, rng: np.random.Generator) -> Rectangle | None:
        return self.sample(height, width, rng) if rng.random() < self.probability else None

    def sample(self, height: int, width: int, rng: np.random.Generator) -> Rectangle | None:
        """Sample a box smaller than the frame in height and width; None if no try fits."""
        for _ in range(_ERASING_TRIES):
            box_height, box_width = sample_sides(height, width, self.area, self.aspect, rng)
            if 0 < box_height < height and 0 < box_width < width:
                return place_rectangle(box_height, box_width, height, width, rng)
        return None


def _normal_levels(mean: float, std: float) -> np.ndarray:
    """Sorted levels, uint8 [65536], distributed as rounded and clamped normal values.

    Sampling indices into them is ten times as fast as sampling and rounding normal floats.
    """
    normal = NormalDist(mean, std)
    below = [0, *(round(normal.cdf(level + 0.5) * (1 << 16)) for level in range(255)), 1 << 16]
    return np.repeat(np.arange(256, dtype=np.uint8), np.diff(below))


@dataclass(eq=False)
class Augmentation:
    """RandAugment and color jitter on whole frames, the crop, then erasing: PySlowFast's order.

    All frames of a clip are changed alike. None skips a step.
    """

    _: KW_ONLY
    randaugment: RandAugment | None = None
    color: ColorJitter | None = None
    erasing: RandomErasing | None = None

    def apply(self, frames: np.ndarray, geometry: ClipGeometry, rng: np.random.Generator) -> np.ndarray:
        """Augment and crop frames uint8 [T, H, W, 3] -> uint8 [T, h, w, 3]; the input is not modified."""
        if self.randaugment is not None:
            frames = self.randaugment.apply(frames, rng)
        if self.color is not None:
            frames = self.color.apply(frames, rng)
        clip = geometry.apply_clip(frames)
        if self.erasing is not None:
            self.erasing.apply(clip, rng)
        return clip

    def draw(self, geometry: ClipGeometry, rng: np.random.Generator) -> ClipChange:
        """The changes of a clip for another device, drawn as in :meth:`apply`, without the noise."""
        steps = [] if self.randaugment is None else self.randaugment.sample(rng)
        if self.color is not None:
            steps += self.color.sample(rng)
        return ClipChange(
            geometry=geometry,
            steps=tuple(steps),
            erasure=None if self.erasing is None else self.erasing.draw(*geometry.size, rng),
            interpolation="bicubic" if self.randaugment is None else self.randaugment.interpolation,
        )


@dataclass(frozen=True)
class Mix:
    """Mixing of the clips of one batch, each with its partner at the mirrored position in the batch.

    Attributes:
        weight: weight of a clip in its own result, 0..1; the partner has the rest.
        box: box of the partner's pixels, in all frames; None: all pixels are blended.
    """

    weight: float
    box: Rectangle | None = None


@dataclass(frozen=True)
class Mixing:
    """Mixup (arXiv 1710.09412), cutmix (arXiv 1905.04899) and label smoothing, as in timm and PySlowFast.

    The weight of a clip is sampled once per batch from Beta(alpha, alpha); cutmix then uses the fraction that
    its box leaves visible. Random numbers come from torch's global CPU generator, which checkpoints contain,
    so that a resumed run continues the sequence, and the device does not have to synchronize.

    Deviation from PySlowFast: a batch may have one clip. This clip, and the middle clip of an odd batch, are
    their own partners and do not change.

    Args:
        classes: number of classes, L.
        mixup: alpha of mixup; 0 disables it.
        cutmix: alpha of cutmix; 0 disables it.
        probability: probability that a batch is mixed.
        switch: probability of cutmix if mixup is enabled, too.
        smoothing: label smoothing.

    Raises:
        UserError: a value is out of range.
    """

    _: KW_ONLY
    classes: int
    mixup: float
    cutmix: float
    probability: float
    switch: float
    smoothing: float

    def __post_init__(self) -> None:
        if self.classes < 1:
            raise UserError(f"classes={self.classes}: there must be at least 1")
        for name, alpha in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            if not (math.isfinite(alpha) and alpha >= 0):
                raise UserError(f"{name}={alpha}: alpha must be finite and at least 0; 0 disables it")
        for name, probability in (("probability", self.probability), ("switch", self.switch)):
            if not 0 <= probability <= 1:
                raise UserError(f"{name}={probability}: must be in 0..1")
        if not 0 <= self.smoothing < 1:
            raise UserError(
                f"smoothing={self.smoothing}: must be at least 0 and below 1; labels have no effect at 1"
            )

    def __call__(self, clips: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix clips float [B, C, T, H, W] and labels int64 [B]; the inputs are not modified.

        Returns:
            Clips of the same shape and dtype (``clips`` if nothing is mixed), and targets float32 [B, L] with
            rows that sum to 1.
        """
        mix = self.sample(clips.shape[-2], clips.shape[-1])
        hard = self._as_targets(labels)  # [B, L]
        targets = torch.lerp(hard.flip(0), hard, mix.weight)
        targets = targets * (1 - self.smoothing) + self.smoothing / self.classes
        return _mix_clips(clips, mix), targets

    def _as_targets(self, labels: Tensor) -> Tensor:
        return F.one_hot(labels, self.classes).float()

    def sample(self, height: int, width: int) -> Mix:
        """Sample the mixing of the next batch, for clips of this size in pixels."""
        if self.mixup == self.cutmix == 0 or _uniform() >= self.probability:
            return Mix(weight=1.0)
        if self.cutmix and (not self.mixup or _uniform() < self.switch):
            return _sample_box(_beta(self.cutmix), height, width)
        return Mix(_beta(self.mixup))


@dataclass(frozen=True)
class MultiLabelMixing(Mixing):
    """Mixing of labels bool [B, L], without label smoothing; the targets need not sum to 1."""

    smoothing: float = field(default=0.0, init=False)

    def _as_targets(self, labels: Tensor) -> Tensor:
        return labels.float()


def _mix_clips(clips: Tensor, mix: Mix) -> Tensor:
    if mix.weight == 1:
        return clips
    if mix.box is None:
        return torch.lerp(clips.flip(0), clips, mix.weight)
    rows, columns = mix.box.slices
    mixed = clips.clone()
    mixed[..., rows, columns] = clips[..., rows, columns].flip(0)
    return mixed


def _sample_box(weight: float, height: int, width: int) -> Mix:
    """Sample a box with the aspect of the clip and the area of the partner, centered anywhere in the clip.

    As in the reference, half the sides are whole pixels, and the box is cut at the border of the clip; the
    weight is computed from the result.
    """
    side = math.sqrt(1 - weight)
    half_height, half_width = int(height * side) // 2, int(width * side) // 2
    row, column = (int(torch.randint(limit, ())) for limit in (height, width))
    top, bottom = max(row - half_height, 0), min(row + half_height, height)
    left, right = max(column - half_width, 0), min(column + half_width, width)
    box = Rectangle(top, left, bottom - top, right - left)
    return Mix(1 - box.height * box.width / (height * width), box)


def _uniform() -> float:
    return float(torch.rand((), dtype=torch.float64))


def _beta(alpha: float) -> float:
    concentration = torch.tensor(alpha, dtype=torch.float64)
    return float(Beta(concentration, concentration, validate_args=False).sample())
