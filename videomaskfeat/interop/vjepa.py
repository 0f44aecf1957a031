"""Weights of V-JEPA 1 and 2, in the layouts of their own code and of transformers.

Layouts: github.com/facebookresearch/jepa and vjepa2, src/models/vision_transformer.py and
attentive_pooler.py; transformers, models/vjepa2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from videomaskfeat.errors import UserError
from videomaskfeat.interop.formats import (
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
from videomaskfeat.recipe import ClipRecipe
from videomaskfeat.stored_recipe import ClassifyRecipe

_GIANTS = {1408: 22, 1664: 26}
"""Attention heads of V-JEPA 2's largest models, by width."""
_V1 = {"frames": 16, "stride": 4, "crop": 224, "target_fps": None, **IMAGENET}
_V2 = {"frames": 64, "stride": 1, "crop": 256, "target_fps": 4.0, **IMAGENET}
_PREDICTOR = ("predictor.*",)
_HF: Rules = (
    (r"^vjepa2\.", ""),
    (r"^encoder\.embeddings\.patch_embeddings\.proj\.", "patch_embed.proj."),
    (r"^encoder\.layer\.", "blocks."),
    (r"^encoder\.layernorm\.", "norm."),
    (r"^(blocks\.\d+)\.attention\.(query|key|value)\.", lambda match: f"{match[1]}.attn.{match[2][0]}."),
    (r"^(blocks\.\d+)\.attention\.proj\.", r"\1.attn.proj."),
    (r"^classifier\.", "head.projection."),
    (r"^pooler\.query_tokens$", "head.query"),
    (r"^pooler\.cross_attention_layer\.cross_attn\.([qkv])_proj\.", r"head.\1."),
    (r"^pooler\.cross_attention_layer\.layer_norm1\.", "head.norm_tokens."),
    (r"^pooler\.cross_attention_layer\.layer_norm2\.", "head.norm_mlp."),
    (r"^pooler\.cross_attention_layer\.mlp\.", "head.mlp."),
    (r"^pooler\.self_attention_layers\.(\d+)\.self_attn\.out_proj\.", r"head.blocks.\1.attn.proj."),
    (r"^pooler\.self_attention_layers\.(\d+)\.self_attn\.([qkv])_proj\.", r"head.blocks.\1.attn.\2."),
    (r"^pooler\.self_attention_layers\.(\d+)\.layer_norm([12])\.", r"head.blocks.\1.norm\2."),
    (r"^pooler\.self_attention_layers\.(\d+)\.mlp\.", r"head.blocks.\1.mlp."),
)


_PROBE: Rules = (
    (r"^pooler\.query_tokens$", "head.query"),
    (r"^pooler\.cross_attention_block\.norm1\.", "head.norm_tokens."),
    (r"^pooler\.cross_attention_block\.norm2\.", "head.norm_mlp."),
    (r"^pooler\.cross_attention_block\.xattn\.", "head."),
    (r"^pooler\.cross_attention_block\.mlp\.", "head.mlp."),
    (r"^pooler\.blocks\.", "head.blocks."),
    (r"^linear\.", "head.projection."),
)
_PROBE_HEADS = 16


def is_probe(source: Source) -> bool:
    """Whether the weights are an attentive probe, without its encoder."""
    return source.has("pooler.query_tokens", "linear.weight")


def with_probe(encoder: Converted, probe: Source) -> Converted:
    """A classifier from an encoder of V-JEPA and its attentive probe, which has a file of its own.

    Raises:
        UserError: the file is no probe, or one of another encoder.
    """
    if not is_probe(probe) or encoder.name != "vit_encoder":
        raise UserError(
            f"{probe.path}: not an attentive probe of {encoder.title}; use a file with `classifiers` (V-JEPA "
            "2) or `classifier` (V-JEPA)"
        )
    head = rename(probe.state, _PROBE)
    width = encoder.arguments["width"]
    channels = head["head.query"].shape[-1]
    if channels != width:
        raise UserError(
            f"{probe.path}: a probe of {channels} channels, the encoder has {width}; use the encoder with "
            "which it was trained"
        )
    heads = encoder.arguments["heads"]
    if heads != _PROBE_HEADS and "heads" not in probe.choices:
        raise UserError(
            f"{probe.path}: published probes have {_PROBE_HEADS} attention heads, the encoder has {heads}; "
            "a head of this package has as many as its encoder. If the probe has them too, use --heads"
        )
    if "head.proj.weight" not in head:  # V-JEPA 2's cross attention has no output projection
        head["head.proj.weight"], head["head.proj.bias"] = torch.eye(width), torch.zeros(width)
    depth = len({name.split(".")[2] for name in head if name.startswith("head.blocks.")})
    classes = head["head.projection.weight"].shape[0]
    arguments = {**encoder.arguments, "classes": classes, "head": "attentive", "head_depth": depth}
    state = {**encoder.state, **head}
    return replace(encoder, name=vit_name(width), arguments=arguments, state=state)


def is_original(source: Source) -> bool:
    """Whether the weights are an encoder of V-JEPA's code, whose names are those of our encoders."""
    named = source.key in ("encoder", "target_encoder", "ema_encoder")
    return named and source.dims("patch_embed.proj.weight") == 5 and "cls_token" not in source.state


def is_second(source: Source) -> bool:
    """Whether the encoder has rotary positions.

    V-JEPA 2's files may contain a table of positions that its encoder does not use; but its predictor has
    more mask tokens than the two of V-JEPA 1.
    """
    predictor = source.content.get("predictor")
    tokens = [name for name in predictor if ".mask_tokens." in name] if isinstance(predictor, Mapping) else []
    return "pos_embed" not in source.state or len(tokens) > 2


def first(title: str, source: Source) -> Converted:
    """An encoder of V-JEPA 1, with its table of positions."""
    state = dict(source.state)
    stem, table = state["patch_embed.proj.weight"], state["pos_embed"]
    time, rows, _ = stem.shape[2:]
    frames = source.choices.get("frames")
    steps = [frames // time] if frames else [8, 4, 16, 2, 1]
    grid = square_grid(table.shape[1], steps)
    if grid is None:
        raise UserError(
            f"{source.path}: the {table.shape[1]} positions are not {steps[0]} time steps of square frames; "
            "use `videomaskfeat import-weights` with --frames N"
        )
    usual = {**_V1, "frames": grid[0] * time, "crop": grid[1] * rows}
    clip, assumed = clip_of(source, {"crop": usual["crop"]}, usual)
    return _encoder(title, source, state, (clip, assumed), absolute_positions="joint")


def second(title: str, source: Source) -> Converted:
    """An encoder of V-JEPA 2, with rotary positions."""
    state = {name: value for name, value in source.state.items() if name != "pos_embed"}
    return _encoder(title, source, state, clip_of(source, {}, _V2), heads=_GIANTS, **_ROTARY)


def hugging_face(title: str, source: Source) -> Converted:
    """``VJEPA2Model`` or ``VJEPA2ForVideoClassification``."""
    check_activation(source)
    config = source.config
    state = fuse_attention(rename(source.state, _HF))
    if "head.q.weight" in state:
        for kind in ("weight", "bias"):
            state[f"head.kv.{kind}"] = torch.cat([state.pop(f"head.{name}.{kind}") for name in "kv"])
        # Their cross attention has no output projection: ours becomes the identity.
        width = state["head.q.weight"].shape[0]
        state["head.proj.weight"], state["head.proj.bias"] = torch.eye(width), torch.zeros(width)
    known = {"frames": config.get("frames_per_clip"), **image_processor(source)}
    known["crop"] = config.get("crop_size") or known["crop"]
    clip, assumed = clip_of(source, known, _V2)
    source = source.with_heads(heads=config.get("num_attention_heads"))
    options = {**_ROTARY, "norm_eps": config.get("layer_norm_eps", 1e-6)}
    converted = _encoder(title, source, state, (clip, assumed), heads=_GIANTS, **options)
    weight = state.get("head.projection.weight")
    if weight is None:
        return converted
    classes = weight.shape[0]
    pooling = {name.split(".")[2] for name in state if name.startswith("head.blocks.")}
    arguments = {**converted.arguments, "classes": classes, "head": "attentive", "head_depth": len(pooling)}
    names = label_names(config.get("id2label"), classes)
    recipe = ClassifyRecipe(clip, views=1, crops=1, short_side=clip.short_side, class_names=names)
    name = vit_name(arguments["width"])
    return Converted(title, name, arguments, state, recipe, unused=_PREDICTOR, assumed=assumed)


def _encoder(
    title: str,
    source: Source,
    state: dict[str, Tensor],
    clip_and_assumed: tuple[ClipRecipe, tuple[str, ...]],
    **options: Any,
) -> Converted:
    clip, assumed = clip_and_assumed
    arguments = vit_arguments(source, state, clip_size=clip.size, **options)
    recipe = ClassifyRecipe(clip, views=1, crops=1, short_side=clip.short_side)
    return Converted(title, "vit_encoder", arguments, state, recipe, unused=_PREDICTOR, assumed=assumed)


_ROTARY = {"absolute_positions": "none", "rotary": True, "rotary_repeated": True}
