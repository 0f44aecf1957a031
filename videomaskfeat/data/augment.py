"""Augmentation of training clips: RandAugment, random erasing, mixup and cutmix.

RandAugment (arXiv 1909.13719) has timm's words and PySlowFast's numbers. A clip goes through a few operations
drawn at random, every frame alike. A *magnitude* from 0 to 10 says how strongly; each operation makes an
argument of its own of it: degrees, bits, a factor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Beta

from videomaskfeat.data import operations
from videomaskfeat.data.operations import ColourJitter
from videomaskfeat.data.transforms import ClipGeometry, Rectangle
from videomaskfeat.errors import UserError, check_name

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


def _signed(most: float) -> Callable[[float, int, bool], float]:
    """An argument from 0 to ``most`` in either direction."""
    return lambda strength, sign, increasing: sign * strength * most


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
class Step:
    """An operation that was drawn.

    Attributes:
        name: a key of `OPERATIONS`.
        argument: in the operation's own unit; None where it has none.
    """

    name: str
    argument: float | None


@dataclass(frozen=True)
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

    _: KW_ONLY
    magnitude: float = 10.0
    layers: int = 2
    noise: float = 0.0
    largest: float = SCALE
    probability: float = 0.5
    increasing: bool = False
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        if not 0 < self.largest < math.inf:
            raise UserError(f"RandAugment's largest magnitude mmax={self.largest:g} must be above 0")
        if not 0 <= self.magnitude <= self.largest:
            raise UserError(
                f"RandAugment's magnitude m={self.magnitude:g} must lie in 0..{self.largest:g}; "
                "mmax raises the upper end"
            )
        if self.layers < 1:
            raise UserError(
                f"RandAugment's layers n={self.layers} must be at least 1; leave it out to have none"
            )
        if not self.noise >= 0:
            raise UserError(f"RandAugment's noise mstd={self.noise:g} must be at least 0")
        if not 0 <= self.probability <= 1:
            raise UserError(f"RandAugment's chance of each operation p={self.probability:g} must lie in 0..1")
        check_name("RandAugment's interpolation", self.interpolation, operations.INTERPOLATIONS)

    @classmethod
    def from_words(cls, words: str, *, interpolation: str = "bicubic") -> RandAugment:
        """From timm's words, such as ``rand-m7-n4-mstd0.5-inc1``; see ``WORDS``, and UserError for others.

        Defaults: m10, n2, mstd0 (above 100 or ``inf``: evenly from 0 to m), mmax10, inc0, p0.5. Deviation:
        ``inc0`` means 0 here; timm and PySlowFast take it for 1.
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


_TRIES = 100  # PySlowFast's for a cube; timm's for a picture are 10


class RandomErasing:
    """Fills a random box, the same in all frames, with noise of its own per pixel, channel and frame.

    Random erasing (arXiv 1708.04896) in "pixel" mode on a cube. As in PySlowFast, the noise is standard
    normal once pixels are normalized: in levels, normal with mean 255 ``mean`` and standard deviation 255
    ``std``. Deviation: it is whole levels and cut to 0..255, which takes what lies beyond -2 and +2.44
    standard deviations (2.3 % and 0.7 %) to these ends; a level's chance is a whole number of 65536ths.

    Args:
        probability: chance that a clip is erased at all.
        area: least and greatest share of the picture that a box takes, drawn evenly.
        aspect: least and greatest height / width of a box, drawn evenly in its logarithm.
        mean: what is later subtracted from pixels in 0..1: of every channel, or one for each of three.
        std: what divides them after that, likewise.

    Raises:
        UserError: a value out of its range.
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
            raise UserError(f"erasing probability={probability}: a chance lies in 0..1")
        if not 0 < area[0] <= area[1] <= 1:
            raise UserError(f"erasing area={area}: must be two shares with 0 < low <= high <= 1")
        if not 0 < aspect[0] <= aspect[1] < math.inf:
            raise UserError(f"erasing aspect={aspect}: must be two ratios with 0 < low <= high")
        means, stds = np.atleast_1d(mean), np.atleast_1d(std)
        numbers = np.isfinite(means).all() and np.isfinite(stds).all() and (stds > 0).all()
        if not (numbers and {means.shape, stds.shape} <= {(1,), (3,)}):
            raise UserError(
                f"erasing mean={mean}, std={std}: each must be one number, or one for each of 3 channels, "
                "and std above 0"
            )
        self.probability = probability
        self.area, self.aspect = area, aspect
        channels = np.broadcast(means, stds)
        self._levels = np.stack([_normal_levels(255 * float(m), 255 * float(s)) for m, s in channels])

    def apply(self, clip: np.ndarray, rng: np.random.Generator) -> None:
        """Erase a box of a clip uint8 [T, H, W, 3], in place, or do nothing."""
        if rng.random() >= self.probability:
            return
        box = self.draw(clip.shape[1], clip.shape[2], rng)
        if box is None:
            return
        size = (len(clip), box.height, box.width, 3)
        places = rng.integers(0, 1 << 16, size, dtype=np.uint16)
        noise = self._levels[np.arange(3) % len(self._levels), places]
        clip[:, box.top : box.top + box.height, box.left : box.left + box.width] = noise

    def draw(self, height: int, width: int, rng: np.random.Generator) -> Rectangle | None:
        """A box inside a picture of this size, smaller than it both ways; None where no try fits."""
        low, high = map(math.log, self.aspect)
        for _ in range(_TRIES):
            area = rng.uniform(*self.area) * height * width
            aspect = math.exp(rng.uniform(low, high))
            box_height, box_width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < box_height < height and 0 < box_width < width:
                top = int(rng.integers(height - box_height, endpoint=True))
                left = int(rng.integers(width - box_width, endpoint=True))
                return Rectangle(top, left, box_height, box_width)
        return None


def _normal_levels(mean: float, std: float) -> np.ndarray:
    """65536 levels, sorted, as frequent as in a rounded and clipped normal distribution: uint8 [65536].

    Drawing places in it takes a tenth of the time that drawing and rounding normal floats does.
    """
    normal = NormalDist(mean, std)
    below = [0, *(round(normal.cdf(level + 0.5) * (1 << 16)) for level in range(255)), 1 << 16]
    return np.repeat(np.arange(256, dtype=np.uint8), np.diff(below))


@dataclass(eq=False)
class Augmentation:
    """RandAugment and color jitter on whole frames, the crop, then erasing: PySlowFast's order.

    A part that is None is left out. All frames of a clip are treated alike.
    """

    _: KW_ONLY
    randaugment: RandAugment | None = None
    colour: ColourJitter | None = None
    erasing: RandomErasing | None = None

    def apply(self, frames: np.ndarray, geometry: ClipGeometry, rng: np.random.Generator) -> np.ndarray:
        """Augment and cut whole frames uint8 [T, H, W, 3], which are not changed: uint8 [T, h, w, 3].

        The geometry is drawn for frames of this size; the sample's own generator draws the rest.
        """
        if self.randaugment is not None:
            frames = self.randaugment.apply(frames, rng)
        if self.colour is not None:
            frames = self.colour.apply(frames, rng)
        clip = geometry.apply_clip(frames)
        if self.erasing is not None:
            self.erasing.apply(clip, rng)
        return clip


@dataclass(frozen=True)
class Mix:
    """How the clips of one batch are mixed; each with the one that stands as far from the batch's other end.

    Attributes:
        own: a clip's share in its own result, 0..1; the rest is its partner's.
        box: what the partner fills, in all frames; None: clips are blended pixel by pixel.
    """

    own: float
    box: Rectangle | None = None


@dataclass(frozen=True)
class Mixing:
    """Mixes a batch of clips and turns their labels into targets.

    As timm and PySlowFast do it, once a batch: with the chance ``probability`` it is mixed, by cutmix with
    the chance ``switch`` where both are on. The share is drawn from Beta(alpha, alpha); cutmix then takes the
    share that its box really leaves (mixup: arXiv 1710.09412, cutmix: 1905.04899). Random numbers come from
    torch's global CPU generator, which checkpoints keep, so that a resumed run draws what the whole one
    does, and the device never waits for them.

    Deviation from PySlowFast: a batch of one clip is allowed; it and the middle clip of an odd batch are
    their own partners, so they stay as they are.

    Args:
        classes: number of classes, L.
        mixup: mixup's alpha; 0: off.
        cutmix: cutmix's alpha; 0: off.
        probability: chance that a batch is mixed at all.
        switch: chance of cutmix where both are on.
        smoothing: share of a label that is spread evenly over all classes.

    Raises:
        UserError: a value out of its range.
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
                raise UserError(
                    f"{name}={alpha}: its alpha must be a finite number, at least 0; 0 switches it off"
                )
        for name, chance in (("probability", self.probability), ("switch", self.switch)):
            if not 0 <= chance <= 1:
                raise UserError(f"{name}={chance}: a chance lies in 0..1")
        if not 0 <= self.smoothing < 1:
            raise UserError(
                f"smoothing={self.smoothing}: must be at least 0 and below 1; at 1 nothing is learnt"
            )

    def __call__(self, clips: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix clips float [B, C, T, H, W] and their classes int64 [B], which are not changed.

        Returns:
            Clips of the same shape and dtype (``clips`` itself if nothing is mixed), and targets float32 [B,
            L]; each row sums to 1.
        """
        mix = self.draw(clips.shape[-2], clips.shape[-1])
        hard = F.one_hot(labels, self.classes).float()  # [B, L]
        targets = torch.lerp(hard.flip(0), hard, mix.own)
        targets = targets * (1 - self.smoothing) + self.smoothing / self.classes
        return _mix_clips(clips, mix), targets

    def draw(self, height: int, width: int) -> Mix:
        """How the next batch is mixed, for clips of this size in pixels."""
        if self.mixup == self.cutmix == 0 or _uniform() >= self.probability:
            return Mix(own=1.0)
        if self.cutmix and (not self.mixup or _uniform() < self.switch):
            return _draw_box(_beta(self.cutmix), height, width)
        return Mix(_beta(self.mixup))


def _mix_clips(clips: Tensor, mix: Mix) -> Tensor:
    if mix.own == 1:
        return clips
    if mix.box is None:
        return torch.lerp(clips.flip(0), clips, mix.own)
    rows = slice(mix.box.top, mix.box.top + mix.box.height)
    columns = slice(mix.box.left, mix.box.left + mix.box.width)
    mixed = clips.clone()
    mixed[..., rows, columns] = clips[..., rows, columns].flip(0)
    return mixed


def _draw_box(own: float, height: int, width: int) -> Mix:
    """A box of the clip's aspect and the partner's share of its area, its centre anywhere in the clip.

    Half the sides are whole pixels, and what sticks out of the clip is cut off, as in the reference; so the
    share is counted anew.
    """
    side = math.sqrt(1 - own)
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
