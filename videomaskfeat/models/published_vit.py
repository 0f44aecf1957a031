"""Vision transformers of DINO, DINOv2 and iBOT, from their released checkpoints."""

from __future__ import annotations

import os
from contextlib import suppress

from videomaskfeat import import_object
from videomaskfeat.errors import UserError
from videomaskfeat.models.encoder_base import Encoder
from videomaskfeat.models.loading import CONVERT, load_into
from videomaskfeat.models.positions import STEM
from videomaskfeat.models.weights import read_weights
from videomaskfeat.models.zoo import create_unset

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Normalization of the pictures of all these models, ImageNet's."""
_KEYS = ("teacher", "state_dict", "model")
_UNUSED = ("head.*", "mask_token", "masked_embed")


def load_published_vit(path: str | os.PathLike[str], *, key: str = "") -> Encoder:
    """Build the encoder in a checkpoint with the names of DINO's torch hub models, and load its weights.

    DINO (arXiv 2104.14294), DINOv2 (2304.07193, models without registers) and iBOT (2111.07832) share timm's
    names (:func:`videomaskfeat.interop.image_vit.timm`), in checkpoints of whole runs after ``module.`` and
    ``backbone.``. All sizes follow from the shapes of the weights. Positions are interpolated for pictures of
    other sizes.

    Args:
        path: a torch file or safetensors.
        key: key of the weights in a checkpoint; empty: "teacher", "state_dict" or "model", if one exists.

    Returns:
        A "vit_encoder" for pictures, in evaluation mode, on the CPU.

    Raises:
        UserError: as :func:`~videomaskfeat.models.weights.read_weights`, or another architecture.
    """
    source = os.fspath(path)
    state = read_weights(path, key=key, keys=_KEYS).state
    prefix = next((name for name in state if name.endswith(STEM)), STEM).removesuffix(STEM)
    backbone = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    converted = None
    if {"cls_token", "norm.weight"} <= backbone.keys():
        with suppress(UserError):
            converted = import_object(CONVERT)(source, backbone, format="vit-timm")
    if converted is None:
        raise UserError(
            f"{source} has no vision transformer with DINO's names (cls_token, pos_embed of a square "
            "picture, patch_embed.proj.weight, blocks.0.mlp.fc1.weight, heads of 64); use a checkpoint of "
            "DINO, DINOv2 without registers or iBOT, or the weights.safetensors of a run (import-slowfast "
            "converts PySlowFast checkpoints)"
        )
    arguments = {
        name: value for name, value in converted.arguments.items() if name not in ("classes", "head")
    }
    model = create_unset("vit_encoder", **arguments, interpolation="bicubic")
    load_into(model, converted.state, allow_unused=(*_UNUSED, *converted.unused), source=source)
    return model.eval()
