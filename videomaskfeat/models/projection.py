"""Projection and prediction heads of self-distillation."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videomaskfeat.errors import UserError
from videomaskfeat.grid import TokenGrid
from videomaskfeat.models.batch_norm import BatchNorm
from videomaskfeat.models.initialization import initialize
from videomaskfeat.models.layers import Linear, Perceptron
from videomaskfeat.models.limits import check_positive, check_transformer
from videomaskfeat.models.norms import LayerNorm
from videomaskfeat.models.positions import joint_positions
from videomaskfeat.models.vit import Block, check_rotary


class Projector(nn.Module):
    """Linear, batch normalization, ReLU, linear: BYOL's projector and predictor (arXiv 2006.07733, 3.2).

    As in BYOL's code, the last layer has no bias.

    Args:
        width: width of the input features, D.
        hidden_width, out_width: hidden width and width P of the projection; 4096 and 256 in the paper.
    """

    def __init__(self, width: int, *, hidden_width: int = 4096, out_width: int = 256) -> None:
        super().__init__()
        check_positive(width=width, hidden_width=hidden_width, out_width=out_width)
        self.fc1 = nn.Linear(width, hidden_width, bias=False)  # the normalization has its own bias
        self.norm = BatchNorm(hidden_width)
        self.fc2 = nn.Linear(hidden_width, out_width, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] -> [B, P]."""
        return self.fc2(F.relu(self.norm(self.fc1(features))))


class PrototypeHead(nn.Module):
    """The head of DINO and iBOT: a perceptron, L2 normalization, and cosines to K learned prototypes.

    The prototypes are the rows of a weight-normalized layer with gain 1. Normalization and cosines are
    computed in float32, because a temperature of 0.04 multiplies rounding errors by 25. The defaults are
    iBOT's (arXiv 2111.07832, supplement, section 4.1).

    Args:
        width, bottleneck: width of the input features, D, and of the normalized features.
        prototypes: number of prototypes, K.
        layers, hidden_width: number of linear layers, at least 1, and width between them.

    Raises:
        UserError: a number below 1, or fewer than 2 prototypes.
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
            raise UserError(f"prototypes {prototypes} must be at least 2, such as 8192")
        self.prototypes = prototypes
        widths = [width, *[hidden_width] * (layers - 1), bottleneck]
        modules: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layer = nn.Linear(before, after)
            initialize([layer])
            modules += [nn.GELU(), layer] if modules else [layer]
        self.perceptron = nn.Sequential(*modules)
        # Initialized like a linear layer. Their length does not change a cosine, but the longer they are, the
        # less a step of AdamW rotates them.
        self.directions = nn.Parameter(torch.empty(prototypes, bottleneck))
        nn.init.uniform_(self.directions, -(bottleneck**-0.5), bottleneck**-0.5)

    def forward(self, features: Tensor, *, learn_prototypes: bool = True) -> Tensor:
        """Cosines to the prototypes.

        Args:
            features: [..., D].
            learn_prototypes: False multiplies the prototypes' gradient by 0. It must not be missing, because
                other processes would wait for it.

        Returns:
            float32 [..., K], in -1..1.
        """
        hidden = self.perceptron(features)
        with torch.autocast(features.device.type, enabled=False):
            unit = F.normalize(hidden.float(), dim=-1)
            prototypes = F.normalize(self.directions, dim=-1)
            if not learn_prototypes:
                prototypes = prototypes.detach() + 0.0 * prototypes
            return F.linear(unit, prototypes)


class MlpPredictor(nn.Module):
    """Linear, GELU, linear, per cell [D]."""

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

    V-JEPA's predictor (arXiv 2404.08471, section 3.2) in dense form: the input contains all cells of the
    grid, with the encoder's mask tokens.

    Args:
        width, hidden_width: width of the cells, D, and of the tokens inside the predictor.
        depth, heads: number of blocks and of attention heads; heads divide ``hidden_width``.
        grid: grid of the cells at the native clip size; positions are interpolated for other grids.
        fused_width: width of a layer between D and ``hidden_width``, for cells of several depths (V-JEPA
            2.1, arXiv 2603.14482); None for no such layer.
        rotary: rotary instead of learned positions; see :func:`~videomaskfeat.models.vit.rotary_table`.

    Raises:
        UserError: a number below 1, heads that do not divide the width, or too narrow heads.
    """

    positions: nn.Parameter | None

    def __init__(
        self,
        width: int,
        *,
        hidden_width: int,
        depth: int,
        heads: int,
        grid: TokenGrid,
        fused_width: int | None = None,
        rotary: bool = False,
    ) -> None:
        super().__init__()
        check_transformer(depth, hidden_width, heads, prefix="predictor_")
        if rotary:
            check_rotary(hidden_width, heads, prefix="predictor_")
        self.native_grid = grid
        self.narrow: nn.Module = (
            Linear(width, hidden_width)
            if fused_width is None
            else Perceptron(width, fused_width, hidden_width)
        )
        positions = None if rotary else nn.Parameter(torch.empty(1, grid.size, hidden_width))
        self.register_parameter("positions", positions)
        if positions is not None:
            nn.init.trunc_normal_(positions, std=0.02)
        self.layers = nn.ModuleList(Block(hidden_width, heads, rotary=rotary) for _ in range(depth))
        self.norm = LayerNorm(hidden_width, eps=1e-6)
        self.widen = Linear(hidden_width, width)
        initialize(self.modules())

    def forward(self, cells: Tensor) -> Tensor:
        """[B, t, h, w, D] -> [B, t, h, w, D]."""
        grid = TokenGrid(*cells.shape[1:4])
        return self.run(self.narrow(cells).flatten(1, 3), grid)

    def run(self, tokens: Tensor, grid: TokenGrid) -> Tensor:
        """Narrow tokens [B, N, hidden] without positions -> predictions [B, t, h, w, D]."""
        return self.widen(self.encode(tokens, grid)).unflatten(1, grid.shape)

    def encode(self, tokens: Tensor, grid: TokenGrid) -> Tensor:
        """Narrow tokens [B, N, hidden] without positions -> normalized tokens [B, N, hidden]."""
        if self.positions is not None:
            tokens = tokens + joint_positions(self.positions, self.native_grid, grid)
        for layer in self.layers:
            tokens, _ = layer(tokens, grid)
        return self.norm(tokens)


class VisiblePredictor(TransformerPredictor):
    """A :class:`TransformerPredictor` with its own mask token, for encoders that see visible cells only.

    V-JEPA's predictor; deviation: without ``rotary`` its positions are learned. Other arguments as for
    :class:`TransformerPredictor`.

    Args:
        predict_visible: the visible cells have an output layer of their own (V-JEPA 2.1).
    """

    def __init__(
        self, width: int, *, hidden_width: int, predict_visible: bool = False, **options: Any
    ) -> None:
        super().__init__(width, hidden_width=hidden_width, **options)
        self.mask_token = nn.Parameter(torch.empty(1, 1, hidden_width))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.widen_visible = Linear(hidden_width, width) if predict_visible else None
        if self.widen_visible is not None:
            initialize([self.widen_visible])

    def forward(self, visible: Tensor, places: Tensor, grid: TokenGrid) -> Tensor:  # type: ignore[override]
        """Features [B, V, D] of the cells at places int64 [B, V] of ``grid`` -> [B, t, h, w, D]."""
        seen = self.narrow(visible)  # [B, V, hidden]
        everywhere = self.mask_token.to(seen.dtype).expand(seen.shape[0], grid.size, -1)
        tokens = everywhere.scatter(1, places[..., None].expand_as(seen), seen)
        if self.widen_visible is None:
            return self.run(tokens, grid)
        encoded = self.encode(tokens, grid)
        outputs, index = self.widen(encoded), places[..., None]
        own = self.widen_visible(encoded.gather(1, index.expand(-1, -1, encoded.shape[2])))  # [B, V, D]
        return outputs.scatter(1, index.expand_as(own), own).unflatten(1, grid.shape)
