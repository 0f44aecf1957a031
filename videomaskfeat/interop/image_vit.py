"""Weights of vision transformers for images, in the layouts of timm and of transformers.

Layouts: timm, models/vision_transformer.py; transformers, models/vit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from videomaskfeat.errors import UserError
from videomaskfeat.interop.formats import (
    HALF,
    IMAGENET,
    Converted,
    Rules,
    Source,
    check_activation,
    clip_of,
    fuse_attention,
    image_processor,
    label_names,
    rename,
    square_grid,
    vit_arguments,
    vit_name,
)
from videomaskfeat.interop.videomae import HF_BLOCKS
from videomaskfeat.stored_recipe import ClassifyRecipe

_HF: Rules = (
    (r"^(?:vit|deit)\.", ""),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(?:encoder\.layer|layers)\.", "blocks."),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", "head.projection."),
    *HF_BLOCKS,
)
_TIMM: Rules = (
    (r"^fc_norm\.", "norm."),
    (r"^head\.", "head.projection."),
    (r"\.ls([12])\.gamma$", r".gamma_\1"),
)


def timm(title: str, source: Source) -> Converted:
    """A ``VisionTransformer`` of timm, or an encoder with its names, such as MAE's.

    Raises:
        UserError: it has register tokens or other parts without an equal here.
    """
    pretrained = source.config.get("pretrained_cfg")
    pretrained = pretrained if isinstance(pretrained, Mapping) else {}
    size = pretrained.get("input_size")
    known = {
        "mean": _tuple(pretrained.get("mean")),
        "std": _tuple(pretrained.get("std")),
        "crop": size[-1] if isinstance(size, list) and size else None,
        "names": source.config.get("label_names") or pretrained.get("label_names"),
    }
    head = "mean" if source.has("fc_norm.weight") else "token"
    return _converted(title, source, rename(source.state, _TIMM), known, head=head, usual=IMAGENET)


def hugging_face(title: str, source: Source) -> Converted:
    """``ViTModel`` or ``ViTForImageClassification``."""
    check_activation(source)
    config = source.config
    known = {**image_processor(source), "names": config.get("id2label")}
    options = {"norm_eps": config.get("layer_norm_eps", 1e-12)}
    source = source.with_heads(heads=config.get("num_attention_heads"))
    state = fuse_attention(rename(source.state, _HF))
    return _converted(title, source, state, known, head="token", usual=HALF, **options)


def _converted(
    title: str,
    source: Source,
    state: dict[str, Tensor],
    known: Mapping[str, Any],
    *,
    head: str,
    usual: Mapping[str, Any],
    **options: Any,
) -> Converted:
    """An image classifier or encoder; a stem and positions of one frame."""
    stem, table = state["patch_embed.proj.weight"], state.get("pos_embed")
    if stem.ndim == 4:
        state["patch_embed.proj.weight"] = stem.unsqueeze(2)  # [D, C, 1, h, w]
    prefix = int("cls_token" in state)
    grid = None if table is None or table.ndim != 3 else square_grid(table.shape[1] - prefix, (1,))
    if grid is None:
        raise UserError(
            f"{source.path}: read as {title}, which must have learned positions on a square grid; register "
            "tokens, distillation tokens and rotary positions are not supported"
        )
    crop = grid[1] * stem.shape[-1]
    usual = {"frames": 1, "stride": 1, "crop": crop, "target_fps": None, **usual}
    clip, assumed = clip_of(source, {**_of_clip(known), "frames": 1, "stride": 1, "crop": crop}, usual)
    arguments = vit_arguments(source, state, clip_size=(1, crop, crop), absolute_positions="joint", **options)
    weight = state.get("head.projection.weight")
    short_side = round(crop / 0.875)  # the usual center crop of 224 from a short side of 256
    recipe = ClassifyRecipe(clip, views=1, crops=1, short_side=short_side)
    name = "vit_encoder"
    if weight is not None:
        name = vit_name(arguments["width"], suffix="_image")
        arguments |= {"classes": weight.shape[0], "head": head}
        recipe = replace(recipe, class_names=label_names(known.get("names"), weight.shape[0]))
    unused = ("pooler.*", "decoder_*", "mask_token")
    return Converted(title, name, arguments, state, recipe, unused=unused, assumed=assumed)


def _of_clip(known: Mapping[str, Any]) -> dict[str, Any]:
    return {key: known[key] for key in ("mean", "std") if key in known}


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
