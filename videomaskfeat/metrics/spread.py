"""How far features, or distributions, differ from each other: 0 where they have collapsed to one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def directions(features: Tensor) -> Tensor:
    """Features [..., D] as unit vectors, float32 [n, D], of which :func:`direction_std` wants the mean."""
    return F.normalize(features.detach().float().flatten(0, -2), dim=-1)


def direction_std(mean: Tensor) -> Tensor:
    """The standard deviation of unit vectors around their mean [D]: ``sqrt(1 - |mean|^2)``, in 0..1.

    The root of the sum over the D axes of each one's variance; with the mean of the axes' deviations instead
    it would be the monitor of SimSiam (arXiv 2011.10566, section 4.1) times sqrt(D). 0: all are one vector;
    1: they point in directions that cancel out. Rounding leaves some 3e-4 where it is 0 in truth.
    """
    return (1.0 - mean.double().square().sum()).clamp(min=0.0).sqrt().float()


def entropy(probabilities: Tensor) -> Tensor:
    """Of distributions [..., K], in nats [...], float32; a probability of 0 adds nothing."""
    return torch.special.entr(probabilities.float()).sum(dim=-1)
