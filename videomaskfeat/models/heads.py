"""Classifiers: an encoder with one of five heads, from a clip to logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videomaskfeat.errors import UserError, check_name
from videomaskfeat.grid import TokenGrid
from videomaskfeat.models.batch_norm import FeatureNorm
from videomaskfeat.models.encoder_base import Encoder, as_clips, on_grid
from videomaskfeat.models.initialization import initialize
from videomaskfeat.models.layers import Perceptron
from videomaskfeat.models.limits import check_positive
from videomaskfeat.models.norms import LayerNorm
from videomaskfeat.models.vit import Block

HeadKind = Literal["mean", "norm_mean", "token", "linear", "attentive"]
HEADS: tuple[HeadKind, ...] = get_args(HeadKind)
PROBES: tuple[HeadKind, ...] = ("linear", "attentive")
"""Heads that are trained on a frozen encoder."""


def check_head_arguments(owner: str, encoder: Mapping[str, Any], *, classes: int, dropout: float) -> None:
    """Check the arguments of a model that determines the norm of its encoder; raises UserError."""
    check_positive(classes=classes)
    if not 0 <= dropout < 1:
        raise UserError(f"dropout {dropout} must be in [0, 1)")
    if "final_norm" in encoder or "mean_first" in encoder:
        raise UserError(
            f"final_norm and mean_first cannot be set on {owner}, which determines them; remove the argument"
        )


class LinearHead(nn.Module):
    """Dropout, then one linear layer: D = ``width`` features to L = ``classes`` logits.

    ``scale`` multiplies the initial weight (truncated normal, std 0.02) and bias (0.02).
    """

    def __init__(self, width: int, classes: int, *, dropout: float, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.dropout = nn.Dropout(dropout)
        self.projection = self._draw_projection(width, classes)

    def _draw_projection(self, width: int, classes: int) -> nn.Linear:
        projection = nn.Linear(width, classes)
        initialize([projection], bias=0.02)
        with torch.no_grad():
            projection.weight.mul_(self.scale)
            projection.bias.mul_(self.scale)
        return projection

    def reset(self, classes: int) -> None:
        """Replace the linear layer by a new one for L = ``classes``, on the same device."""
        former = self.projection
        self.projection = self._draw_projection(former.in_features, classes).to(former.weight)

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] -> logits [B, L]."""
        return self.projection(self.dropout(features))


class LinearProbeHead(LinearHead):
    """Batch normalization, so that one learning rate suits all features, then linear (MAE, A.1)."""

    def __init__(self, width: int, classes: int, *, dropout: float, scale: float) -> None:
        super().__init__(width, classes, dropout=dropout, scale=scale)
        self.normalise = FeatureNorm(width)

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] -> logits [B, L]."""
        return super().forward(self.normalise(features))


class AttentiveHead(LinearHead):
    """V-JEPA's attentive probe (arXiv 2404.08471, section 4): a learned query attends to all tokens.

    Attention and a perceptron follow, each with a residual connection, then a :class:`LinearHead`. Layer
    norms are applied to the tokens and before the perceptron, not to the query. ``heads`` divide ``width``.
    In V-JEPA 2's probe (arXiv 2506.09985), ``depth`` = 3 blocks of a vision transformer process the tokens
    before.
    """

    def __init__(
        self, width: int, classes: int, *, heads: int, dropout: float, scale: float, depth: int = 0
    ) -> None:
        super().__init__(width, classes, dropout=dropout, scale=scale)
        self.heads = heads
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.query = nn.Parameter(torch.empty(1, 1, width))
        self.norm_tokens = LayerNorm(width, eps=1e-6)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm_mlp = LayerNorm(width, eps=1e-6)
        self.mlp = Perceptron(width, 4 * width, width)
        nn.init.trunc_normal_(self.query, std=0.02)
        initialize([self.q, self.kv, self.proj, self.mlp.fc1, self.mlp.fc2, *self.blocks.modules()])
        with torch.no_grad():  # as in V-JEPA, the last layer of each residual branch starts smaller
            self.proj.weight.mul_(0.5**0.5)
            self.mlp.fc2.weight.mul_(0.5**0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, D] -> logits [B, L]."""
        for block in self.blocks:
            tokens, _ = block(tokens, TokenGrid(1, 1, tokens.shape[1]))
        k, v = self.kv(self.norm_tokens(tokens)).unflatten(-1, (2, self.heads, -1)).unbind(2)
        query = self.query.expand(tokens.shape[0], -1, -1)  # [B, 1, D]
        q = self.q(query).unflatten(-1, (self.heads, -1))
        heads_first = (x.transpose(1, 2) for x in (q, k, v))  # [B, M, 1 or N, d]
        attended = F.scaled_dot_product_attention(*heads_first).transpose(1, 2).flatten(2)  # [B, 1, D]
        query = query + self.proj(attended)
        query = query + self.mlp(query, self.norm_mlp)
        return super().forward(query[:, 0])


def reset_classes(model: Any, num_classes: int) -> None:
    """Give a classifier or detector a new last layer for other classes, and record their number.

    Raises:
        UserError: the number is below 1.
    """
    check_positive(classes=num_classes)
    model.head.reset(num_classes)
    model.classes = num_classes
    if hasattr(model, "created_as"):
        name, arguments = model.created_as
        model.created_as = (name, {**arguments, "classes": num_classes})


class Classifier(Encoder):
    """A classification head on an encoder, built by :func:`~videomaskfeat.models.zoo.with_head`.

    Parameter names are PySlowFast's.

    ============= ======================================================================================
    head          layers
    ============= ======================================================================================
    "mean"        mean over the grid's tokens, layer norm, dropout, linear (MaskFeat's fine-tuning)
    "norm_mean"   layer norm, mean over the grid's tokens, dropout, linear (timm's MViTv2)
    "token"       layer norm, class token, dropout, linear (MViTv2)
    "linear"      frozen encoder; mean and layer norm as in "mean", batch normalization, linear
    "attentive"   frozen encoder; layer norm, a learned query that attends to the grid's tokens, linear
    ============= ======================================================================================

    A frozen encoder stays in evaluation mode and gets no gradients.

    Args:
        classes: number of classes, L.
        head: see the table.
        head_depth: number of blocks of the head "attentive" before its query (3 in V-JEPA 2).
        dropout: dropout rate before the linear layer.
        head_scale: factor on the initial weight and bias of the linear layer.
        encoder: arguments of the encoder, except ``final_norm`` and ``mean_first``.

    Raises:
        UserError: an unknown head, a value out of range, or head "token" on an encoder without class token.
    """

    head: LinearHead

    def __init__(
        self,
        *,
        classes: int = 400,
        head: HeadKind = "mean",
        head_depth: int = 0,
        dropout: float = 0.0,
        head_scale: float = 1.0,
        **encoder: Any,
    ) -> None:
        check_name("head", head, HEADS)
        check_head_arguments("a classifier", encoder, classes=classes, dropout=dropout)
        super().__init__(**{**encoder, "mean_first": head in ("mean", "linear")})
        if head_depth < 0 or (head_depth and head != "attentive"):
            raise UserError(
                f"head_depth {head_depth} with head {head!r}: it must be 0 or more, and 0 unless the head is "
                "'attentive'"
            )
        if head == "token" and self.cls_token is None:
            raise UserError("head 'token' needs class_token true; use head 'mean' without a class token")
        self.head_kind = head
        self.classes = classes
        width = self.out_width
        if head == "attentive":
            self.head = AttentiveHead(
                width,
                classes,
                heads=self.out_heads,
                dropout=dropout,
                scale=head_scale,
                depth=head_depth,
            )
        else:
            build_head = LinearProbeHead if head == "linear" else LinearHead
            self.head = build_head(width, classes, dropout=dropout, scale=head_scale)
        if self.frozen:
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(name.startswith("head."))
            self.train()

    @property
    def frozen(self) -> bool:
        """Whether only the head is trained."""
        return self.head_kind in PROBES

    def forward(self, clips: Tensor) -> Tensor:
        """Clips float [B, C, T, H, W], normalized -> logits [B, L], before the softmax."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self._head_input(clips)
        return self.head(features)

    def logits(self, clips: Tensor) -> Tensor:
        """:meth:`forward` with the gradient of a frozen encoder, too."""
        return self.head(self._head_input(clips))

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last linear layer by a new one, drawn from torch's global generator (as in timm).

        Args:
            num_classes: number of classes, L, at least 1; for features without a head use :meth:`features`.

        Raises:
            UserError: the number is below 1.
        """
        reset_classes(self, num_classes)

    def train(self, mode: bool = True) -> Classifier:
        """Set the mode of the trained modules; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            for name, module in self.named_children():
                module.train(mode and name == "head")
        return self

    def _head_input(self, clips: Tensor) -> Tensor:
        """[B, D], or all of the grid's tokens [B, N, D] for the attentive head."""
        tokens, grid = self.through_blocks(*self.patch_embed(as_clips(clips)))
        if self.head_kind == "token":
            return self.norm(tokens[:, 0])
        tokens = on_grid(tokens, grid)
        return self.norm(tokens) if self.head_kind == "attentive" else self.pool(tokens)
