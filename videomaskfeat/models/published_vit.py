"""Vision transformers of DINO, DINOv2 and iBOT, from their released checkpoints."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from videomaskfeat.errors import UserError
from videomaskfeat.models.encoder_base import Encoder
from videomaskfeat.models.loading import load_into
from videomaskfeat.models.positions import STEM
from videomaskfeat.models.weights import read_weights
from videomaskfeat.models.zoo import create_unset

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Normalization of the pictures of all these models, ImageNet's."""
_HEAD_WIDTH = 64
_KEYS = ("teacher", "state_dict", "model")
_LAYER_SCALE = re.compile(r"\.ls([12])\.gamma$")
_UNUSED = ("head.*", "mask_token", "masked_embed")


def load_published_vit(path: str | os.PathLike[str], *, key: str = "") -> Encoder:
    """Build the encoder in a checkpoint with the names of DINO's torch hub models, and load its weights.

    DINO (arXiv 2104.14294), DINOv2 (2304.07193, models without registers) and iBOT (2111.07832) share timm's
    names: ``cls_token``, ``pos_embed``, ``patch_embed.proj``, ``blocks.N.attn.qkv`` and so on, in checkpoints
    of whole runs after ``module.`` and ``backbone.``. All sizes follow from the shapes of the weights, since
    every head of these models is 64 wide. Positions are interpolated for pictures of other sizes.

    Args:
        path: a torch file or safetensors.
        key: key of the weights in a checkpoint; empty: "teacher", "state_dict" or "model", if one exists.

    Returns:
        A "vit_encoder" for pictures, in evaluation mode, on the CPU.

    Raises:
        UserError: as :func:`~videomaskfeat.models.weights.read_weights`, or another architecture.
    """
    source = os.fspath(path)
    state = _own_names(read_weights(path, key=key, keys=_KEYS).state)
    model = create_unset("vit_encoder", **_arguments(source, state))
    assert isinstance(model, Encoder)
    load_into(model, state, allow_unused=_UNUSED, source=source)
    return model.eval()


def _own_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's weights under the names of our ViT."""
    stem = next((name for name in state if name.endswith(STEM)), STEM)
    prefix = stem.removesuffix(STEM)
    backbone = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return {_LAYER_SCALE.sub(r".gamma_\1", name): value for name, value in backbone.items()}


def _arguments(source: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of our ViT, from the shapes of the weights."""
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    stem, positions = shapes.get(STEM, ()), shapes.get("pos_embed", ())
    width, hidden = stem[:1], shapes.get("blocks.0.mlp.fc1.weight", ())[:1]
    side = math.isqrt(max(positions[1] - 1, 0)) if len(positions) == 3 else 0
    known = (
        len(stem) == 4
        and stem[2] == stem[3]
        and "cls_token" in shapes
        and side > 0
        and positions == (1, side**2 + 1, *width)
        and hidden
        and width[0] % _HEAD_WIDTH == 0
    )
    if not known:
        raise UserError(
            f"{source} has no vision transformer with DINO's names (cls_token, pos_embed of a square "
            "picture, patch_embed.proj.weight, blocks.0.mlp.fc1.weight, heads of 64); use a checkpoint of "
            "DINO, DINOv2 without registers or iBOT, or the weights.safetensors of a run (import-slowfast "
            "converts PySlowFast checkpoints)"
        )
    patch = stem[2]
    return {
        "clip_size": (1, side * patch, side * patch),
        "in_channels": stem[1],
        "depth": 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")),
        "width": width[0],
        "heads": width[0] // _HEAD_WIDTH,
        "cube_stride": (1, patch, patch),
        "mlp_ratio": hidden[0] / width[0],
        "qkv_bias": "blocks.0.attn.qkv.bias" in shapes,
        "absolute_positions": "joint",
        "interpolation": "bicubic",
        "layer_scale": 1.0 if "blocks.0.gamma_1" in shapes else None,
    }
