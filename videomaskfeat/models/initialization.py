"""Initial weights of vision transformers, as in the code of published pre-training methods."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

Initialization = Literal["slowfast", "mae", "beit", "simmim", "ibot", "jepa"]
Draw = Callable[[Tensor], object]


def _xavier(weight: Tensor) -> None:
    """A convolution that cuts cubes is a linear layer, so its fan-in is the number of values per cube."""
    nn.init.xavier_uniform_(weight.flatten(1))


_normal: Draw = partial(nn.init.normal_, std=0.02)
_cut: Draw = partial(nn.init.trunc_normal_, std=0.02, a=-0.02, b=0.02)


@dataclass(frozen=True)
class _Rule:
    """How a published code draws initial weights; biases of linear layers and norms are 0 in all of them.

    Attributes:
        linear, tokens: of linear layers; of class token and learned positions.
        stem: of the stem; None for torch's default.
        zero_stem_bias: the stem's bias is 0 instead of torch's default.
        mask_token: of the mask token.
        rescale: divide the last linear layer of each residual branch of block i = 1, 2, ... by sqrt(2 i).
        default_head: the prediction head has torch's default values.
    """

    linear: Draw
    tokens: Draw
    stem: Draw | None = None
    zero_stem_bias: bool = False
    mask_token: Draw = nn.init.zeros_
    rescale: bool = False
    default_head: bool = False


_BEIT = _Rule(_cut, _cut, stem=_cut, zero_stem_bias=True, mask_token=_cut, rescale=True)
_RULES: dict[str, _Rule] = {
    # github.com/facebookresearch/mae, models_mae.py
    "mae": _Rule(_xavier, _normal, stem=_xavier, mask_token=_normal),
    # github.com/microsoft/unilm, beit/modeling_pretrain.py; github.com/microsoft/SimMIM, models/simmim.py
    "beit": _BEIT,
    "simmim": _Rule(**{**vars(_BEIT), "default_head": True}),
    # github.com/bytedance/ibot, models/vision_transformer.py
    "ibot": _Rule(_normal, _normal),
    # github.com/facebookresearch/jepa, src/models/vision_transformer.py
    "jepa": _Rule(_normal, _normal, stem=_normal, zero_stem_bias=True, rescale=True),
}


def draw_weights(module: nn.Module, initialization: Initialization) -> None:
    """Draw the stem, linear layers and norms of an encoder or of a part of a model, in place.

    Truncated normal distributions of std 0.02 that a method cuts at 2 (100 standard deviations) are drawn as
    plain normal ones. BEiT and SimMIM cut at one standard deviation.

    Args:
        module: its convolutions are the stem; ``blocks`` are rescaled by depth if the method does so.
        initialization: any except "slowfast", which each model draws itself.
    """
    rule = _RULES[initialization]
    for layer in module.modules():
        if isinstance(layer, nn.Conv3d):
            if rule.stem is not None:
                rule.stem(layer.weight)
            if rule.zero_stem_bias and layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Linear):
            rule.linear(layer.weight)
        if isinstance(layer, nn.Linear | nn.LayerNorm) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
    blocks: Any = getattr(module, "blocks", None)
    if rule.rescale and blocks is not None:
        with torch.no_grad():
            for number, block in enumerate(blocks, start=1):
                for layer in (block.attn.proj, block.mlp.fc2):
                    layer.weight.div_(math.sqrt(2 * number))


def draw_head(head: nn.Module, initialization: Initialization) -> None:
    """Draw the weights of a prediction head, in place."""
    if not _RULES[initialization].default_head:
        draw_weights(head, initialization)
        return
    for layer in head.modules():
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()


def draw_token(token: Tensor, initialization: Initialization) -> None:
    """Draw a class token or learned positions, in place."""
    _RULES[initialization].tokens(token)


def draw_mask_token(token: Tensor, initialization: Initialization) -> None:
    """Draw a mask token, in place."""
    _RULES[initialization].mask_token(token)


def initialize(layers: Iterable[nn.Module], *, std: float = 0.02, bias: float = 0.0) -> None:
    """Draw the weights of linear layers from a truncated normal distribution, and set their biases."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.constant_(layer.bias, bias)
