"""Weights of VideoMAE (v1 and v2), in the layouts of its own code, of transformers and of mmaction2.

Layouts: github.com/MCG-NJU/VideoMAE, modeling_finetune.py and modeling_pretrain.py; transformers,
models/videomae; mmaction2, models/backbones/vit_mae.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from videomaskfeat.errors import UserError
from videomaskfeat.grid import TokenGrid
from videomaskfeat.interop.formats import (
    IMAGENET,
    Converted,
    Rules,
    Source,
    check_activation,
    clip_of,
    count_heads,
    fuse_attention,
    image_processor,
    label_names,
    rename,
    vit_arguments,
    vit_name,
)
from videomaskfeat.models.positions import fixed_positions
from videomaskfeat.recipe import ClipRecipe, MaskRecipe, PretrainRecipe
from videomaskfeat.stored_recipe import ClassifyRecipe

_USUAL = {"frames": 16, "stride": 4, "crop": 224, "target_fps": None, **IMAGENET}
_BIASES = (r"attn\.([qv])_bias$", r"attn.\1.bias")
_DECODER = (
    (r"^decoder\.(?:blocks|decoder_layers)\.", "pred_head.transforms.0."),
    (r"^decoder\.head\.", "pred_head.projections.0."),
    (r"^encoder_to_decoder\.", "decoder_embed."),
)
HF_BLOCKS: Rules = (
    (r"\.attention\.attention\.(query|key|value)\.", lambda match: f".attn.{match[1][0]}."),
    (r"\.attention\.attention\.([qv])_bias$", r".attn.\1.bias"),
    (r"\.attention\.([qkv])_proj\.", r".attn.\1."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
)
"""Blocks of transformers' ViT and VideoMAE, as saved and as in the modules of transformers 5."""
_HF: Rules = (
    (r"^videomae\.", ""),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.", "blocks."),
    (r"^(?:layernorm|fc_norm)\.", "norm."),
    (r"^classifier\.", "head.projection."),
    *HF_BLOCKS,
)
_MMACTION = (
    (r"^backbone\.", ""),
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"\.mlp\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.mlp\.layers\.1\.", ".mlp.fc2."),
    (r"^cls_head\.fc_cls\.", "head.projection."),
)


_HEAD = "pred_head.transforms.0."
_ARGUMENTS = {
    "frames": "num_frames",
    "stride": "sampling_rate",
    "crop": "input_size",
    "views": "test_num_segment",
    "crops": "test_num_crop",
    "short_side": "short_side_size",
    "ratio": "mask_ratio",
    "mask_kind": "mask_type",
    "data": "data_set",
    "normalized": "normlize_target",
}
"""Options of VideoMAE's programs, by our names."""


def pretrained(title: str, source: Source) -> Converted:
    """A pre-training checkpoint of VideoMAE's own code."""
    state = rename(source.state, ((r"^encoder\.", ""), _BIASES, *_DECODER))
    return _masked(title, source, state, _arguments_of_run(source))


def fine_tuned(title: str, source: Source) -> Converted:
    """A fine-tuned checkpoint of VideoMAE's own code, or an encoder of VideoMAE v2 without a head.

    Raises:
        UserError: the model classifies from the first token, which no published model does.
    """
    if "fc_norm.weight" not in source.state:
        raise UserError(
            f"{source.path}: a VideoMAE model without fc_norm, which classifies from its first token "
            "(--use_cls), is not supported; use a model that averages the tokens"
        )
    state = rename(source.state, (_BIASES, (r"^fc_norm\.", "norm."), (r"^head\.", "head.projection.")))
    return _classifier(title, source, state, _arguments_of_run(source))


def mmaction(title: str, source: Source) -> Converted:
    """A VideoMAE classifier of mmaction2."""
    state = _without_fixed(rename(source.state, (*_MMACTION, _BIASES, (r"^fc_norm\.", "norm."))))
    return _classifier(title, source, state, {"names": mmaction_names(source)})


def hugging_face(title: str, source: Source) -> Converted:
    """``VideoMAEForPreTraining``, ``VideoMAEForVideoClassification`` or ``VideoMAEModel``.

    Raises:
        UserError: the model classifies from the first token, or pre-trains without a final norm.
    """
    check_activation(source)
    config = source.config
    state = rename(source.state, (*_HF, *_DECODER))
    known = {"frames": config.get("num_frames"), **image_processor(source)}
    known |= {"names": config.get("id2label"), "normalized": config.get("norm_pix_loss")}
    options = {"norm_eps": config.get("layer_norm_eps", 1e-12)}
    source = source.with_heads(
        heads=config.get("num_attention_heads"), decoder_heads=config.get("decoder_num_attention_heads")
    )
    if "mask_token" in state:
        if "norm.weight" not in state:
            raise UserError(
                f"{source.path}: a VideoMAE pre-training model without the encoder's final norm "
                "(use_mean_pooling true in its config) is not supported"
            )
        return _masked(title, source, state, known, options)
    if "head.projection.weight" in state and not source.has("fc_norm.weight"):
        raise UserError(
            f"{source.path}: a VideoMAE model without fc_norm (use_mean_pooling false in its config), which "
            "classifies from its first token, is not supported"
        )
    return _classifier(title, source, state, known, options)


def mmaction_names(source: Source) -> Any:
    """Class names in the checkpoint of an mmaction2 run; None if unknown."""
    meta = source.content.get("meta")
    data = meta.get("dataset_meta") if isinstance(meta, Mapping) else None
    return data.get("classes") if isinstance(data, Mapping) else None


def _arguments_of_run(source: Source) -> dict[str, Any]:
    """Values in the ``args`` of a checkpoint: the command line of VideoMAE's programs."""
    saved = source.content.get("args")
    args = saved if isinstance(saved, Mapping) else getattr(saved, "__dict__", {})
    return {key: args[name] for key, name in _ARGUMENTS.items() if args.get(name) is not None}


def _masked(
    title: str,
    source: Source,
    state: dict[str, Tensor],
    known: Mapping[str, Any],
    options: Mapping[str, Any] | None = None,
) -> Converted:
    """A masked autoencoder, whose decoder has fixed positions and a projection without bias."""
    decoder = {name.removeprefix(_HEAD): value for name, value in state.items() if name.startswith(_HEAD)}
    decoder_depth = len({name.partition(".")[0] for name in decoder})
    state = rename(state, ((r"^decoder\.norm\.", f"{_HEAD}{decoder_depth}."),))
    state = fuse_attention(state)
    projection = state["decoder_embed.weight"]
    state["decoder_embed.bias"] = torch.zeros(projection.shape[0])
    values = state["pred_head.projections.0.weight"].shape[0]
    width = projection.shape[0]
    clip, assumed = clip_of(source, _of_clip(known), _USUAL)
    arguments = _arguments(
        source,
        state,
        clip,
        decoder_depth=decoder_depth,
        decoder_width=width,
        decoder_heads=count_heads(source, width, choice="decoder_heads"),
        decoder_positions="sincos_1d",
        values_per_token=values,
        **(options or {}),
    )
    cube = arguments["cube_stride"]
    kind, ratio = known.get("mask_kind", "tube"), known.get("ratio", 0.9)
    target: dict[str, Any] = {"frames": "all", "per_channel": True}
    if known.get("normalized") is False:
        target = {"frames": "all", "normalized": False}
        assumed += ("targets in units of clip.mean and clip.std; the weights predict pixels in 0..1",)
    if cube != (2, 16, 16):
        target["output_stride"] = list(cube)
    recipe = PretrainRecipe(
        clip,
        MaskRecipe("random_tube" if kind == "tube" else "random", float(ratio), cube),
        target="pixels",
        target_arguments=target,
    )
    assumed += ("mask.kind random_tube",) * ("mask_kind" not in known)
    assumed += ("mask.ratio 0.9",) * ("ratio" not in known)
    name = vit_name(arguments["width"], prefix="mae_")
    return Converted(title, name, arguments, state, recipe, assumed=assumed)


def _classifier(
    title: str,
    source: Source,
    state: dict[str, Tensor],
    known: Mapping[str, Any],
    options: Mapping[str, Any] | None = None,
) -> Converted:
    """A classifier with a norm after the mean over the tokens, or its encoder."""
    state = fuse_attention(state)
    head = state.get("head.projection.weight")
    clip, assumed = clip_of(source, _of_clip(known), _USUAL)
    arguments = _arguments(source, state, clip, **(options or {}))
    if head is None:
        # A model without head of the pre-training normalizes tokens, a fine-tuned one their mean.
        arguments["mean_first"] = source.has("*.fc_norm.weight")
        arguments["final_norm"] = "norm.weight" in state
        recipe = ClassifyRecipe(clip, views=1, crops=1, short_side=clip.short_side)
        return Converted(title, "vit_encoder", arguments, state, recipe, assumed=assumed)
    classes = head.shape[0]
    segments = known.get("data") == "SSV2"
    recipe = ClassifyRecipe(
        clip,
        sampling="segments" if segments else "clip",
        views=1 if segments else known.get("views", 5),
        crops=known.get("crops", 3),
        short_side=known.get("short_side", clip.short_side),
        class_names=label_names(known.get("names"), classes),
    )
    if not segments and "views" not in known:
        assumed += ("evaluate.views 5",)
    arguments |= {"classes": classes, "head": "mean"}
    return Converted(title, vit_name(arguments["width"]), arguments, state, recipe, assumed=assumed)


def _of_clip(known: Mapping[str, Any]) -> dict[str, Any]:
    return {key: known[key] for key in ("frames", "stride", "crop", "mean", "std") if key in known}


def _arguments(
    source: Source, state: Mapping[str, Tensor], clip: ClipRecipe, **changes: Any
) -> dict[str, Any]:
    """Arguments of the encoder; positions are fixed unless the weights contain others."""
    table = state.get("pos_embed")
    return vit_arguments(
        source,
        state,
        **{
            "clip_size": clip.size,
            "absolute_positions": "sincos_1d" if table is None else "joint",
            **changes,
        },
    )


def _without_fixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the table of positions if it is the fixed one, which mmaction2 saves with the weights."""
    table = state.get("pos_embed")
    if table is None or table.ndim != 3:
        return state
    grid, device = TokenGrid(1, 1, table.shape[1]), torch.device("cpu")
    fixed = fixed_positions("sincos_1d", table.shape[2], grid, prefix=0, device=device)
    if not torch.allclose(table.float(), fixed, atol=1e-3):  # half precision
        return state
    return {name: value for name, value in state.items() if name != "pos_embed"}
