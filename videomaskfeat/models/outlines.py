"""Recognizes the encoder of weights by their shapes, for error messages that name the model that fits."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from videomaskfeat.models.encoder_base import Encoder
from videomaskfeat.models.zoo import CLASSIFIER, HIERA_MAE, MAE, MASKFEAT, MODELS, encoder_arguments

_BLOCK = re.compile(r"blocks\.([0-9]{1,6})\.")


class _Outline(NamedTuple):
    """Properties that identify an encoder: number of blocks, width of the stem, widths of the blocks, and
    whether the attention has learned pooling (MViTv2, not Hiera)."""

    depth: int
    width: int
    widths: tuple[torch.Size, ...]
    pooling: bool

    def __str__(self) -> str:
        return f"{self.depth} blocks and stem width {self.width}"


def _outline_of(state: Mapping[str, Tensor], width_weight: str) -> _Outline | None:
    """The outline of an encoder from its weights' shapes; None if the weights are not an encoder's."""
    stem = state.get("patch_embed.proj.weight")
    blocks = {int(match.group(1)) for name in state if (match := _BLOCK.match(name))}
    weights = [state.get(f"blocks.{block}.{width_weight}") for block in range(len(blocks))]
    if stem is None or not stem.ndim or blocks != set(range(len(blocks))) or not blocks:
        return None
    widths = tuple(weight.shape for weight in weights if weight is not None and weight.ndim == 2)
    pooling = any(".attn.pool_" in name for name in state)
    return _Outline(len(blocks), stem.shape[0], widths, pooling) if len(widths) == len(blocks) else None


def other_encoder(model: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """For an error message: how weights of another encoder differ, and their likely named model.

    None if the encoders are alike or one is unknown.
    """
    if not isinstance(model, Encoder):
        return None
    own, theirs = (_outline_of(weights, model.width_weight) for weights in (model.state_dict(), state))
    if own is None or theirs is None or own == theirs:
        return None
    differ = f"it has {theirs}, but the model has {own}"
    if own[:2] == theirs[:2] and own.widths != theirs.widths:
        first = next(index for index, pair in enumerate(own.widths) if pair != theirs.widths[index])
        differ = f"both have {theirs}, but different widths from block {first} on"
    alike = {name: named.build for name, named in MODELS.items() if _outline_of_named(name) == theirs}
    if not alike:
        return f"{differ}; no named model matches: build the model with the arguments of the saved model"
    heads = (MASKFEAT, MAE, HIERA_MAE) if "mask_token" in state else (CLASSIFIER,)
    likely = [name for name in alike if MODELS[name].classes[0] in heads] or alike
    build = [name for name, build in alike.items() if issubclass(build, type(model))]
    advice = f"{differ}; it is probably {' or '.join(likely)}"
    return f"{advice}: set model.name={build[0]}" if build else advice


def _outline_of_named(name: str) -> _Outline | None:
    named = MODELS[name]
    arguments = encoder_arguments(named.build, named.arguments)
    return _outline_of_built(named.build.encoder_name, tuple(sorted(arguments.items())))


@functools.cache
def _outline_of_built(encoder_name: str, arguments: tuple[tuple[str, Any], ...]) -> _Outline | None:
    build = MODELS[encoder_name].build
    with torch.device("meta"):  # shapes alone
        return _outline_of(build(**dict(arguments)).state_dict(), build.width_weight)
