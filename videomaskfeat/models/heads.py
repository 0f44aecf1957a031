"""Classifiers: an encoder and one of four heads, from a clip to logits."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videomaskfeat.errors import UserError, check_name
from videomaskfeat.models.encoder_base import Encoder, as_clips, on_grid
from videomaskfeat.models.layers import FeatureNorm, Perceptron, initialize

HeadKind = Literal["mean", "token", "linear", "attentive"]
HEADS: tuple[HeadKind, ...] = get_args(HeadKind)
PROBES: tuple[HeadKind, ...] = ("linear", "attentive")
"""Heads that learn on a frozen encoder."""


class LinearHead(nn.Module):
    """Dropout, then one linear layer.

    Args:
        width: width of the features, D.
        classes: number of classes, L.
        dropout: chance of dropping a feature in training.
        scale: factor on the initial weight and bias (truncated normal of 0.02, and 0.02).
    """

    def __init__(self, width: int, classes: int, *, dropout: float, scale: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.projection = nn.Linear(width, classes)
        initialize([self.projection], bias=0.02)
        with torch.no_grad():
            self.projection.weight.mul_(scale)
            self.projection.bias.mul_(scale)

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] -> logits [B, L]."""
        return self.projection(self.dropout(features))


class LinearProbeHead(LinearHead):
    """Batch normalization, so that one learning rate fits all features, then linear (MAE, appendix A.1)."""

    def __init__(self, width: int, classes: int, *, dropout: float, scale: float) -> None:
        super().__init__(width, classes, dropout=dropout, scale=scale)
        self.normalise = FeatureNorm(width)

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] -> logits [B, L]."""
        return super().forward(self.normalise(features))


class AttentiveHead(LinearHead):
    """One learned query attends to all tokens, then a perceptron, then a :class:`LinearHead`.

    The attentive probe of V-JEPA (arXiv 2404.08471, section 4): both halves with a residual, layer norms on
    the tokens and before the perceptron, none on the query.

    Args:
        width: width of the tokens, D.
        classes: number of classes, L.
        heads: attention heads, a divisor of ``width``.
        dropout, scale: see :class:`LinearHead`.
    """

    def __init__(self, width: int, classes: int, *, heads: int, dropout: float, scale: float) -> None:
        super().__init__(width, classes, dropout=dropout, scale=scale)
        self.heads = heads
        self.query = nn.Parameter(torch.empty(1, 1, width))
        self.norm_tokens = nn.LayerNorm(width, eps=1e-6)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Perceptron(width, 4 * width, width)
        nn.init.trunc_normal_(self.query, std=0.02)
        initialize([self.q, self.kv, self.proj, self.mlp.fc1, self.mlp.fc2])
        with torch.no_grad():  # as V-JEPA: the last layer of each residual branch starts smaller
            self.proj.weight.mul_(0.5**0.5)
            self.mlp.fc2.weight.mul_(0.5**0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, D] -> logits [B, L]."""
        k, v = self.kv(self.norm_tokens(tokens)).unflatten(-1, (2, self.heads, -1)).unbind(2)
        query = self.query.expand(tokens.shape[0], -1, -1)  # [B, 1, D]
        q = self.q(query).unflatten(-1, (self.heads, -1))
        heads_first = (x.transpose(1, 2) for x in (q, k, v))  # [B, M, 1 or N, d]
        attended = F.scaled_dot_product_attention(*heads_first).transpose(1, 2).flatten(2)  # [B, 1, D]
        query = query + self.proj(attended)
        query = query + self.mlp(self.norm_mlp(query))
        return super().forward(query[:, 0])


class Classifier(Encoder):
    """A clip to logits: a head on an encoder (:func:`~videomaskfeat.models.zoo.with_head`).

    Parameter names are PySlowFast's.

    ============= =====================================================================================
    head          logits
    ============= =====================================================================================
    "mean"        mean over the grid's tokens, layer norm, dropout, linear (MaskFeat's fine-tuning)
    "token"       layer norm, class token, dropout, linear (MViTv2)
    "linear"      frozen encoder; mean and layer norm as in "mean", batch normalization, linear
    "attentive"   frozen encoder; layer norm, a learned query that attends to the grid's tokens, linear
    ============= =====================================================================================

    A frozen encoder stays in evaluation mode and gets no gradients.

    Args:
        classes: number of classes, L.
        head: see the table.
        dropout: chance of dropping a feature before the linear layer in training.
        head_scale: factor on the linear layer's initial weight and bias.
        encoder: the arguments of the encoder, except ``final_norm`` and ``mean_first``.

    Raises:
        UserError: an unknown head, a value outside its range, or a class token asked of an encoder without.
    """

    head: LinearHead

    def __init__(
        self,
        *,
        classes: int = 400,
        head: HeadKind = "mean",
        dropout: float = 0.0,
        head_scale: float = 1.0,
        **encoder: Any,
    ) -> None:
        check_name("head", head, HEADS)
        if classes < 1 or not 0 <= dropout < 1:
            raise UserError(f"classes {classes} must be positive and dropout {dropout} in 0..1, 1 excluded")
        if "final_norm" in encoder or "mean_first" in encoder:
            raise UserError(
                "final_norm cannot be set on a classifier, nor mean_first: every head takes normalized "
                "features, and says what comes first, the norm or the mean"
            )
        super().__init__(**{**encoder, "mean_first": head in ("mean", "linear")})
        if head == "token" and self.cls_token is None:
            raise UserError("head 'token' needs class_token true: without one, take head 'mean'")
        self.head_kind = head
        self.classes = classes
        self.head = self._make_head(dropout, head_scale)
        if head in PROBES:
            self._freeze()

    @property
    def frozen(self) -> bool:
        """Whether the head alone learns."""
        return self.head_kind in PROBES

    def forward(self, clips: Tensor) -> Tensor:
        """Clips float [B, C, T, H, W], normalized -> logits [B, L], before any softmax.

        Raises:
            UserError: the clip is not a multiple of the cube.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self._head_input(clips)
        return self.head(features)

    def train(self, mode: bool = True) -> Classifier:
        """Training mode for what learns, evaluation mode for a frozen encoder."""
        super().train(mode)
        if self.frozen:
            for name, part in self.named_children():
                part.train(mode and name == "head")
        return self

    def _make_head(self, dropout: float, scale: float) -> LinearHead:
        width = self.out_width
        if self.head_kind == "attentive":
            return AttentiveHead(width, self.classes, heads=self.out_heads, dropout=dropout, scale=scale)
        build = LinearProbeHead if self.head_kind == "linear" else LinearHead
        return build(width, self.classes, dropout=dropout, scale=scale)

    def _freeze(self) -> None:
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith("head."))
        self.train()

    def _head_input(self, clips: Tensor) -> Tensor:
        """[B, D], or all of the grid's tokens [B, N, D] for the attentive head."""
        tokens, grid = self.through_blocks(*self.patch_embed(as_clips(clips)))
        if self.head_kind == "token":
            return self.norm(tokens[:, 0])
        tokens = on_grid(tokens, grid)
        return self.norm(tokens) if self.head_kind == "attentive" else self.pool(tokens)
