"""Heads of self-distillation: from the features of an encoder to where two views are compared."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videomaskfeat.errors import UserError
from videomaskfeat.grid import TokenGrid
from videomaskfeat.models.layers import BatchNorm, Linear, Perceptron, check_positive, initialize
from videomaskfeat.models.positions import joint_positions
from videomaskfeat.models.vit import Block


class Projector(nn.Module):
    """Linear, batch normalization, ReLU, linear: BYOL's projector and predictor (arXiv 2006.07733, 3.2).

    Args:
        width: width of the incoming features, D.
        hidden_width: width between the two layers; 4096 in the paper.
        out_width: width of the projection, P; 256 in the paper.
    """

    def __init__(self, width: int, *, hidden_width: int = 4096, out_width: int = 256) -> None:
        super().__init__()
        check_positive(width=width, hidden_width=hidden_width, out_width=out_width)
        self.fc1 = nn.Linear(width, hidden_width, bias=False)  # the normalization brings a shift
        self.norm = BatchNorm(hidden_width)
        self.fc2 = nn.Linear(hidden_width, out_width)

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] -> [B, P]."""
        return self.fc2(F.relu(self.norm(self.fc1(features))))


class PrototypeHead(nn.Module):
    """A perceptron, unit length, then the cosines to K learned prototypes: the head of DINO and iBOT.

    The prototypes are the rows of a weight-normalized layer whose gain stays 1. Unit vectors and cosines are
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
        check_positive(width=width, hidden_width=hidden_width, bottleneck=bottleneck, layers=layers)
        if prototypes < 2:
            raise UserError(f"prototypes {prototypes}: must be at least 2, such as 8192; one is a constant")
        self.prototypes = prototypes
        widths = [width, *[hidden_width] * (layers - 1), bottleneck]
        parts: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layer = nn.Linear(before, after)
            initialize([layer])
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


class MlpPredictor(nn.Module):
    """Linear, GELU, linear, on each cell [D] by itself."""

    def __init__(self, width: int, *, hidden_width: int) -> None:
        super().__init__()
        check_positive(hidden_width=hidden_width)
        self.perceptron = Perceptron(width, hidden_width, width)
        initialize(self.modules())

    def forward(self, cells: Tensor) -> Tensor:
        """[B, t, h, w, D] -> [B, t, h, w, D]."""
        return self.perceptron(cells)


class TransformerPredictor(nn.Module):
    """A small transformer over all cells, narrower than the encoder, with learned positions.

    V-JEPA's predictor (arXiv 2404.08471, section 3.2) in the dense form: the encoder brings its mask tokens
    along, so that every cell of the grid comes in and none is put in here.

    Args:
        width: width of the cells, D.
        hidden_width: width inside.
        depth: blocks.
        heads: attention heads, a divisor of ``hidden_width``.
        grid: of the cells of a clip of the native size; positions are interpolated for others.

    Raises:
        UserError: heads that do not divide the width, or no block.
    """

    def __init__(self, width: int, *, hidden_width: int, depth: int, heads: int, grid: TokenGrid) -> None:
        super().__init__()
        if depth < 1 or heads < 1 or hidden_width < 1 or hidden_width % heads:
            raise UserError(
                f"a predictor of depth {depth}, width {hidden_width}, heads {heads}: all must be positive, "
                "heads a divisor of the width"
            )
        self.native_grid = grid
        self.narrow = Linear(width, hidden_width)
        self.positions = nn.Parameter(torch.empty(1, grid.size, hidden_width))
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.layers = nn.ModuleList(Block(hidden_width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(hidden_width, eps=1e-6)
        self.widen = Linear(hidden_width, width)
        initialize(self.modules())

    def forward(self, cells: Tensor) -> Tensor:
        """[B, t, h, w, D] -> [B, t, h, w, D]."""
        grid = TokenGrid(*cells.shape[1:4])
        tokens = self.narrow(cells).flatten(1, 3)  # [B, N, hidden]
        tokens = tokens + joint_positions(self.positions, self.native_grid, grid)
        for layer in self.layers:
            tokens, _ = layer(tokens, grid)
        return self.widen(self.norm(tokens)).unflatten(1, grid.shape)
