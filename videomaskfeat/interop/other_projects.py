"""Weights of other projects: the table of formats, and the recognition of a file's format."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from videomaskfeat.errors import UserError, check_name
from videomaskfeat.interop import hiera, image_vit, other_mvit, videomae, vjepa
from videomaskfeat.interop.formats import Converted, Format, Source
from videomaskfeat.io import is_file
from videomaskfeat.texts import read_json

_HF_STEM = "embeddings.patch_embeddings.projection.weight"
FORMATS: dict[str, Format] = {
    "videomae": Format(
        "VideoMAE v1 or v2, fine-tuned",
        lambda source: source.has("blocks.0.attn.q_bias", "patch_embed.proj.weight"),
        videomae.fine_tuned,
    ),
    "videomae-pretrained": Format(
        "VideoMAE v1 or v2, pre-trained",
        lambda source: source.has("encoder_to_decoder.weight", "encoder.patch_embed.proj.weight"),
        videomae.pretrained,
    ),
    "videomae-transformers": Format(
        "VideoMAE of transformers",
        lambda source: source.dims(_HF_STEM) == 5 and source.has("*.encoder.layer.0.layernorm_before.weight"),
        videomae.hugging_face,
    ),
    "videomae-mmaction2": Format(
        "VideoMAE of mmaction2",
        lambda source: source.has("backbone.blocks.0.attn.q_bias"),
        videomae.mmaction,
    ),
    "vjepa": Format(
        "V-JEPA encoder",
        lambda source: vjepa.is_original(source) and not vjepa.is_second(source),
        vjepa.first,
    ),
    "vjepa2": Format(
        "V-JEPA 2 encoder",
        lambda source: vjepa.is_original(source) and not source.has("norms_block.0.weight"),
        vjepa.second,
    ),
    "vjepa-probe": Format(
        "V-JEPA attentive probe, a head without its encoder",
        vjepa.is_probe,
        reason="import its encoder with `videomaskfeat import-weights ENCODER OUT --probe FILE`",
    ),
    "vjepa2-transformers": Format(
        "V-JEPA 2 of transformers",
        lambda source: source.has("*.encoder.embeddings.patch_embeddings.proj.weight"),
        vjepa.hugging_face,
    ),
    "hiera": Format(
        "Hiera, fine-tuned",
        lambda source: hiera.is_hiera(source) and not source.has("encoder_norm.weight"),
        hiera.classifier,
    ),
    "hiera-pretrained": Format(
        "Hiera, pre-trained",
        lambda source: hiera.is_hiera(source),
        hiera.pretrained,
    ),
    "vit-timm": Format(
        "ViT for images of timm",
        lambda source: (
            source.dims("patch_embed.proj.weight") == 4
            and source.has("pos_embed", "blocks.0.attn.qkv.weight")
            and not any(name.startswith(("head.projection.", "pred_head.")) for name in source.state)
        ),
        image_vit.timm,
    ),
    "vit-transformers": Format(
        "ViT for images of transformers",
        lambda source: (
            source.dims(_HF_STEM) == 4
            and source.has("*.embeddings.position_embeddings", "*.0.layernorm_before.weight")
            and not source.has("decoder.decoder_pos_embed")
            and not source.has("*.embeddings.distillation_token")
        ),
        image_vit.hugging_face,
    ),
    "mvitv2-timm": Format(
        "MViTv2 for images of timm",
        lambda source: source.has("stages.0.blocks.0.attn.pool_q.weight"),
        other_mvit.timm,
    ),
    "mvitv2-torchvision": Format(
        "MViT of torchvision",
        lambda source: source.has("conv_proj.weight", "pos_encoding.class_token"),
        other_mvit.torchvision,
    ),
    "mvitv2-mmaction2": Format(
        "MViTv2 of mmaction2",
        lambda source: source.has("backbone.blocks.0.attn.pool_q.weight"),
        other_mvit.mmaction,
    ),
    "vjepa2.1": Format(
        "V-JEPA 2.1 encoder",
        lambda source: vjepa.is_original(source),
        reason="this package has no model with its stem and its norms at several depths",
    ),
    "timesformer": Format(
        "TimeSformer",
        lambda source: (
            source.has("*.encoder.layer.0.temporal_attention.attention.qkv.weight")
            or source.has("*.blocks.0.temporal_attn.qkv.weight")
        ),
        reason="this package has no model with divided attention over time and space",
    ),
    "vit-mae-transformers": Format(
        "ViTMAE of transformers",
        lambda source: source.dims(_HF_STEM) == 4,
        reason="use the checkpoint of MAE's own code, or save the encoder as a ViTModel",
    ),
    "swin": Format(
        "Swin Transformer",
        lambda source: (
            source.has("*.layers.0.blocks.0.attn.relative_position_bias_table")
            or source.has("*.features.1.0.attn.relative_position_bias_table")
        ),
        reason="this package has no model with shifted windows",
    ),
    "clip": Format(
        "CLIP",
        lambda source: (
            source.has("*.vision_model.embeddings.class_embedding") or source.has("visual.class_embedding")
        ),
        reason="this package has no model with its norm and its activation",
    ),
    "slowfast": Format(
        "SlowFast or another convolutional network of PySlowFast",
        lambda source: source.has("s1.pathway0_stem.conv.weight"),
        reason="this package has no convolutional networks",
    ),
    "resnet": Format(
        "ResNet",
        lambda source: source.has("*.layer1.0.conv1.weight") or source.has("*.layer1.0.conv1.0.weight"),
        reason="this package has no convolutional networks",
    ),
}
"""All formats by name, in the order in which a file is compared with them."""


def convert(
    path: str,
    state: Mapping[str, Tensor],
    *,
    key: str = "",
    content: Mapping[str, Any] | None = None,
    format: str = "auto",
    choices: Mapping[str, Any] | None = None,
) -> Converted | None:
    """Convert weights of another project to ours.

    Args:
        path: the file; ``config.json`` and ``preprocessor_config.json`` in its folder are read.
        state: its tensors by name.
        key: key of the weights in the checkpoint.
        content: the whole checkpoint.
        format: a name in :data:`FORMATS`, or "auto": the first one that recognizes the names and shapes.
        choices: values that the file may not contain: "heads", "decoder_heads", "frames", "stride", "crop".

    Returns:
        The conversion; None if no format is recognized.

    Raises:
        UserError: the format is unknown or not supported, or weights are missing.
    """
    source = Source(path, _without_wrappers(state), key, content or {}, choices=choices or {})
    if format == "auto":
        name = next((name for name, one in FORMATS.items() if one.recognize(source)), None)
        if name is None:
            return None
    else:
        check_name("from", format, ("auto", *FORMATS))
        name = format
    chosen = FORMATS[name]
    if chosen.convert is None:
        raise UserError(f"{path}: recognized as {chosen.title}, which is not supported: {chosen.reason}")
    config = _read_beside(path, "config.json")
    source = replace(source, config=config, preprocessor=_read_beside(path, "preprocessor_config.json"))
    try:
        converted = chosen.convert(chosen.title, source)
        type(converted.recipe).from_json(converted.recipe.to_json())  # checks the ranges of its values
        return converted
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError, ArithmeticError) as error:
        if isinstance(error, UserError):
            raise
        what = f"{error} is missing" if isinstance(error, KeyError) else f"it has unexpected values ({error})"
        raise UserError(f"{path}: read as {chosen.title}, but {what}; use the complete checkpoint") from error


def add_probe(encoder: Converted, path: str, state: Mapping[str, Tensor], **choices: Any) -> Converted:
    """A classifier from a converted encoder of V-JEPA and its attentive probe, the weights in ``path``.

    Raises:
        UserError: the probe is not one of this encoder.
    """
    chosen = {name: value for name, value in choices.items() if value is not None}
    return vjepa.with_probe(encoder, Source(path, _without_wrappers(state), choices=chosen))


def _without_wrappers(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Remove the prefixes that wrappers give to all names."""
    prefixes = ("module.", "_orig_mod.", "model.")
    while prefix := next((one for one in prefixes if all(name.startswith(one) for name in state)), ""):
        state = {name[len(prefix) :]: value for name, value in state.items()}
    if "backbone.patch_embed.proj.weight" in state:
        state = {name.removeprefix("backbone."): value for name, value in state.items()}
    return state


def _read_beside(path: str, name: str) -> dict[str, Any]:
    """A JSON object beside the weights file; empty if there is no such file."""
    beside = os.path.join(os.path.dirname(path), name)
    content = read_json(beside, what="the model's JSON") if is_file(beside) else {}
    return content if isinstance(content, dict) else {}
