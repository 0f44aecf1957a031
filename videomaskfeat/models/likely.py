"""Which named model a state dict belongs to, for messages about weights that do not fit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from videomaskfeat.models.heads import Classifier
from videomaskfeat.models.masked import MaskedModel
from videomaskfeat.models.vit import ViT
from videomaskfeat.models.zoo import MODELS, NamedModel

_BLOCK = re.compile(r"^blocks\.([0-9]{1,6})\.")


class Outline(NamedTuple):
    """What tells encoders apart.

    ``widths`` are those of the tokens that enter each block, and of those inside its attention.
    """

    depth: int
    width: int
    widths: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        return f"{self.depth} blocks from width {self.width}"


def outline_of(shapes: Mapping[str, torch.Size]) -> Outline | None:
    """The outline of an encoder by its weights' shapes, or None for what is none."""
    stem = shapes.get("patch_embed.proj.weight")
    blocks = {int(found.group(1)) for name in shapes if (found := _BLOCK.match(name))}
    if stem is None or blocks != set(range(len(blocks))) or not blocks:
        return None
    widths = []
    for block in range(len(blocks)):
        qkv = shapes.get(f"blocks.{block}.attn.qkv.weight")
        if qkv is None or len(qkv) != 2:
            return None
        widths.append((qkv[1], qkv[0] // 3))
    return Outline(len(blocks), stem[0], tuple(widths))


def other_encoder(model: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """Where a state dict is of another depth or other widths than the model: how they differ, and its name.

    Returns:
        A clause for an error message; None where the encoders are alike or one is none of ours.
    """
    own = outline_of({name: value.shape for name, value in model.state_dict().items()})
    theirs = outline_of({name: value.shape for name, value in state.items()})
    if own is None or theirs is None or own == theirs:
        return None
    differ = f"it holds {theirs} and the model has {own}"
    if (own.depth, own.width) == (theirs.depth, theirs.width):
        at = next(index for index, pair in enumerate(own.widths) if pair != theirs.widths[index])
        differ = f"both have {theirs}, but other widths from block {at} on"
    return differ + _advice(type(model), theirs, pretrained="mask_token" in state)


def _advice(kind: type[nn.Module], outline: Outline, *, pretrained: bool) -> str:
    """The names whose encoder has this outline: what the weights are, and what to build for them."""
    alike = {name: named for name, named in MODELS.items() if _outline_of_named(named) == outline}
    if not alike:
        return "; no named model is like that: build one with the arguments of the model that was saved"
    theirs = [
        name
        for name, named in alike.items()
        if issubclass(named.build, MaskedModel if pretrained else Classifier)
    ]
    build = [name for name, named in alike.items() if issubclass(named.build, kind)]
    likely = f"; it is likely {_either(theirs or alike)}"
    return f"{likely}: build {_either(build)}" if build else likely


def _outline_of_named(named: NamedModel) -> Outline:
    """From the arguments alone: building a large model takes seconds."""
    arguments = named.arguments
    width, widths = arguments["width"], []
    if issubclass(named.build, ViT):
        return Outline(arguments["depth"], width, ((width, width),) * arguments["depth"])
    for block in range(arguments["depth"]):
        inner = width * 2 if block in arguments["widen_at"] else width
        # In the perceptron a width changes before the block, in attention within it.
        widths.append((inner if arguments["widen_in"] == "mlp" else width, inner))
        width = inner
    return Outline(arguments["depth"], arguments["width"], tuple(widths))


def _either(names: Iterable[str]) -> str:
    return " or ".join(names)
