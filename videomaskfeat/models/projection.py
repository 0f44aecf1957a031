"""Heads of self-distillation: from the features of an encoder to where two views are compared."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videomaskfeat.errors import UserError
from videomaskfeat.models.batch_norm import BatchNorm


class Projector(nn.Module):
    """Linear, batch normalisation, ReLU, linear: BYOL's projector and predictor (arXiv 2006.07733, 3.2).

    Args:
        width: width of the incoming features, D.
        hidden_width: width between the two layers; 4096 in the paper.
        out_width: width of the projection, P; 256 in the paper.

    Raises:
        UserError: a width below 1.
    """

    def __init__(self, width: int, *, hidden_width: int = 4096, out_width: int = 256) -> None:
        super().__init__()
        _check_positive(width=width, hidden_width=hidden_width, out_width=out_width)
        self.fc1 = nn.Linear(width, hidden_width, bias=False)  # the normalisation brings a shift
        self.norm = BatchNorm(hidden_width)
        self.fc2 = nn.Linear(hidden_width, out_width)

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] -> [B, P]."""
        return self.fc2(F.relu(self.norm(self.fc1(features))))


class PrototypeHead(nn.Module):
    """A perceptron, unit length, then the cosines to K learnt prototypes: the head of DINO and iBOT.

    The prototypes are the rows of a weight-normalised layer whose gain stays 1. Unit vectors and cosines are
    computed in float32: a temperature of 0.04 multiplies their rounding by 25.

    Args:
        width: width of the incoming features, D.
        prototypes: K; 8192 in iBOT (arXiv 2111.07832, section 4.1 of its supplement).
        hidden_width: width of the perceptron's hidden layers; 2048 there.
        bottleneck: width of what has unit length; 256 there.
        layers: linear layers of the perceptron, at least 1; 3 there.

    Raises:
        UserError: a number below 1, or a single prototype.
    """

    def __init__(
        self,
        width: int,
        *,
        prototypes: int = 8192,
        hidden_width: int = 2048,
        bottleneck: int = 256,
        layers: int = 3,
    ) -> None:
        super().__init__()
        _check_positive(width=width, hidden_width=hidden_width, bottleneck=bottleneck, layers=layers)
        if prototypes < 2:
            raise UserError(f"prototypes {prototypes}: must be at least 2, such as 8192; one is a constant")
        self.prototypes = prototypes
        widths = [width, *[hidden_width] * (layers - 1), bottleneck]
        parts: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layer = nn.Linear(before, after)
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
            parts += [nn.GELU(), layer] if parts else [layer]
        self.perceptron = nn.Sequential(*parts)
        # As a linear layer starts: a cosine has no use for their length, but the longer they are, the less a
        # step of AdamW turns them.
        self.directions = nn.Parameter(torch.empty(prototypes, bottleneck))
        nn.init.uniform_(self.directions, -(bottleneck**-0.5), bottleneck**-0.5)

    def forward(self, features: Tensor, *, learn_prototypes: bool = True) -> Tensor:
        """Cosines to the prototypes.

        Args:
            features: [..., D].
            learn_prototypes: False: the prototypes get a gradient of 0 (and not none at all, for which
                several processes would wait).

        Returns:
            Float32 [..., K], in -1..1.
        """
        hidden = self.perceptron(features)
        with torch.autocast(features.device.type, enabled=False):
            unit = F.normalize(hidden.float(), dim=-1)
            prototypes = F.normalize(self.directions, dim=-1)
            if not learn_prototypes:
                prototypes = prototypes.detach() + 0.0 * prototypes
            return F.linear(unit, prototypes)


def _check_positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise UserError(f"{name} {number} must be positive")
