"""Predictors: from what a student makes of a masked clip to what a teacher makes of the whole one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from videomaskfeat.errors import UserError
from videomaskfeat.grid import TokenGrid
from videomaskfeat.models.dense import Linear, Perceptron
from videomaskfeat.models.positions import joint_positions
from videomaskfeat.models.vit import Block


class MlpPredictor(nn.Module):
    """Linear, GELU, linear, on each cell by itself.

    Args:
        width: width of the cells, D.
        hidden_width: width between the two layers.

    Raises:
        UserError: a width below 1.
    """

    def __init__(self, width: int, *, hidden_width: int) -> None:
        super().__init__()
        if hidden_width < 1:
            raise UserError(f"a predictor of width {hidden_width}: must be positive")
        self.perceptron = Perceptron(width, hidden_width, width)
        _initialise(self)

    def forward(self, cells: Tensor) -> Tensor:
        """[B, t, h, w, D] -> [B, t, h, w, D]."""
        return self.perceptron(cells)


class TransformerPredictor(nn.Module):
    """A small transformer over all cells, narrower than the encoder, with learnt positions.

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
        # Not "blocks": the optimiser takes those for the encoder's.
        self.layers = nn.ModuleList(Block(hidden_width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(hidden_width, eps=1e-6)
        self.widen = Linear(hidden_width, width)
        _initialise(self)

    def forward(self, cells: Tensor) -> Tensor:
        """[B, t, h, w, D] -> [B, t, h, w, D]."""
        grid = TokenGrid(*cells.shape[1:4])
        tokens = self.narrow(cells).flatten(1, 3)  # [B, N, hidden]
        tokens = tokens + joint_positions(self.positions, self.native_grid, grid)
        for layer in self.layers:
            tokens, _ = layer(tokens, grid)
        return self.widen(self.norm(tokens)).unflatten(1, grid.shape)


def _initialise(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            nn.init.zeros_(part.bias)
