"""Mixup, cutmix and label smoothing: two clips of a batch, and their labels, become one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Beta

from videomaskfeat.data.transforms import Rectangle
from videomaskfeat.errors import UserError


@dataclass(frozen=True)
class Mix:
    """How the clips of one batch are mixed; each with the one that stands as far from the batch's other end.

    Attributes:
        own: a clip's share in its own result, 0..1; the rest is its partner's.
        box: what the partner fills, in all frames; None: clips are blended pixel by pixel.
    """

    own: float
    box: Rectangle | None = None


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

    def __init__(
        self,
        *,
        classes: int,
        mixup: float,
        cutmix: float,
        probability: float,
        switch: float,
        smoothing: float,
    ) -> None:
        if classes < 1:
            raise UserError(f"classes={classes}: there must be at least 1")
        for name, alpha in (("mixup", mixup), ("cutmix", cutmix)):
            if not (math.isfinite(alpha) and alpha >= 0):
                raise UserError(
                    f"{name}={alpha}: its alpha must be a finite number, at least 0; 0 switches it off"
                )
        for name, chance in (("probability", probability), ("switch", switch)):
            if not 0 <= chance <= 1:
                raise UserError(f"{name}={chance}: a chance lies in 0..1")
        if not 0 <= smoothing < 1:
            raise UserError(f"smoothing={smoothing}: must be at least 0 and below 1; at 1 nothing is learnt")
        self.classes = classes
        self.mixup, self.cutmix = mixup, cutmix
        self.probability, self.switch = probability, switch
        self.smoothing = smoothing

    def __call__(self, clips: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            clips: float [B, C, T, H, W], any B from 1; not changed.
            labels: int64 [B], the class of each clip, on the same device.

        Returns:
            Clips of the same shape and dtype (``clips`` itself where nothing is mixed), and targets float32
            [B, L]; each row sums to 1.
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
