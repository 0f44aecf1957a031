"""Weights of MViTv2, in the layouts of timm (images), torchvision and mmaction2 (videos).

Layouts: timm, models/mvitv2.py; torchvision, models/video/mvit.py; mmaction2, models/backbones/mvit.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from videomaskfeat.errors import UserError
from videomaskfeat.interop.formats import (
    GRAY,
    IMAGENET,
    Converted,
    Rules,
    Source,
    clip_of,
    count_blocks,
    label_names,
    ratio_of,
    rename,
)
from videomaskfeat.interop.videomae import mmaction_names
from videomaskfeat.stored_recipe import ClassifyRecipe

_VIDEO = {"frames": 16, "stride": 4, "crop": 224, "target_fps": 30.0, **GRAY}
_TORCHVISION: Rules = (
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^pos_encoding\.class_token$", "cls_token"),
    (r"\.attn\.pool_([qkv])\.pool\.", r".attn.pool_\1."),
    (r"\.attn\.pool_([qkv])\.norm_act\.0\.", r".attn.norm_\1."),
    (r"\.attn\.project\.0\.", ".attn.proj."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
    (r"(blocks\.\d+)\.project\.", r"\1.proj."),
    (r"^head\.1\.", "head.projection."),
)
_MMACTION: Rules = (
    (r"^backbone\.", ""),
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^norm\d+\.", "norm."),
    (r"^cls_head\.fc_cls\.", "head.projection."),
)


def torchvision(title: str, source: Source) -> Converted:
    """``mvit_v2_s`` of torchvision.

    Raises:
        UserError: it is ``mvit_v1_b``, which has no relative positions.
    """
    if not source.has("blocks.0.attn.rel_pos_h"):
        raise UserError(f"{source.path}: torchvision's mvit_v1_b is not supported, only mvit_v2_s")
    state = rename(source.state, _TORCHVISION)
    state["cls_token"] = state["cls_token"].reshape(1, 1, -1)
    return _video(title, source, state, {"target_fps": 30.0})


def mmaction(title: str, source: Source) -> Converted:
    """An MViTv2 classifier of mmaction2."""
    state = rename(source.state, _MMACTION)
    return _video(title, source, state, {"target_fps": None, "names": mmaction_names(source)})


def timm(title: str, source: Source) -> Converted:
    """An MViTv2 classifier for images of timm.

    Raises:
        UserError: it has a class token: timm adds pooled queries to that token too.
    """
    if source.has("cls_token"):
        raise UserError(
            f"{source.path}: {title} with a class token is not supported, because timm adds the pooled "
            "queries to that token; use a model without it, such as mvitv2_small"
        )
    state, offset = {}, 0
    stages = sorted({int(name.split(".")[1]) for name in source.state if name.startswith("stages.")})
    for name, value in source.state.items():
        if not name.startswith("stages."):
            state[name.replace("head.fc.", "head.").replace("head.", "head.projection.")] = value
    for stage in stages:
        prefix = f"stages.{stage}.blocks."
        block = {name[len(prefix) :]: v for name, v in source.state.items() if name.startswith(prefix)}
        for name, value in block.items():
            number, _, rest = name.partition(".")
            rest = rest.replace("shortcut_proj_attn.", "proj.").replace("shortcut_proj_mlp.", "proj.")
            # [d, 1, h, w] -> [d, 1, 1, h, w]
            state[f"blocks.{int(number) + offset}.{rest}"] = value[:, :, None] if value.ndim == 4 else value
        offset += len({name.partition(".")[0] for name in block})
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"][:, :, None]
    arguments = _arguments(source, state, first_kv_stride=4)
    pretrained = source.config.get("pretrained_cfg")
    pretrained = pretrained if isinstance(pretrained, Mapping) else {}
    crop = arguments["clip_size"][1]
    known = {key: tuple(pretrained[key]) for key in ("mean", "std") if isinstance(pretrained.get(key), list)}
    usual = {"frames": 1, "stride": 1, "crop": crop, "target_fps": None, **IMAGENET}
    clip, assumed = clip_of(source, {**known, "frames": 1, "stride": 1, "crop": crop}, usual)
    recipe = ClassifyRecipe(clip, views=1, crops=1, short_side=round(crop / 0.875))
    arguments["class_token"] = False
    names = source.config.get("label_names")
    return _converted(title, state, arguments, recipe, assumed, head="norm_mean", names=names)


def _video(title: str, source: Source, state: dict[str, Tensor], known: Mapping[str, Any]) -> Converted:
    """A video classifier on the class token."""
    arguments = _arguments(source, state, first_kv_stride=8)
    frames, crop, _ = arguments["clip_size"]
    usual = {**_VIDEO, "target_fps": known["target_fps"]}
    clip, assumed = clip_of(source, {"frames": frames, "crop": crop}, usual)
    recipe = ClassifyRecipe(clip, views=5, crops=1, short_side=256)
    arguments["class_token"] = True
    assumed += ("evaluate.views 5",)
    return _converted(title, state, arguments, recipe, assumed, head="token", names=known.get("names"))


def _converted(
    title: str,
    state: dict[str, Tensor],
    arguments: dict[str, Any],
    recipe: ClassifyRecipe,
    assumed: tuple[str, ...],
    *,
    head: str,
    names: object,
) -> Converted:
    """A classifier, or an encoder if the weights have no head."""
    weight = state.get("head.projection.weight")
    if weight is None:
        return Converted(title, "mvitv2_encoder", arguments, state, recipe, assumed=assumed)
    arguments |= {"classes": weight.shape[0], "head": head}
    recipe = dataclasses.replace(recipe, class_names=label_names(names, weight.shape[0]))
    return Converted(title, "mvitv2_s", arguments, state, recipe, assumed=assumed)


def _arguments(source: Source, state: Mapping[str, Tensor], *, first_kv_stride: int) -> dict[str, Any]:
    """Arguments of an MViTv2 from the shapes of converted weights.

    Head widths are those of the pooling kernels. The queries are pooled in the blocks whose tables of
    relative positions are shorter than those of the block before. The stride of keys and values leaves no
    trace in the weights; all published models of a layout have the same.
    """
    stem, depth = state["patch_embed.proj.weight"], count_blocks(state)
    names = [f"blocks.{index}." for index in range(depth)]
    head_widths = [state[f"{name}attn.pool_q.weight"].shape[0] for name in names]
    heads = [
        state[f"{name}attn.proj.weight"].shape[0] // width
        for name, width in zip(names, head_widths, strict=True)
    ]
    sides = [(len(state[f"{name}attn.rel_pos_h"]) + 1) // 2 for name in names]
    outputs = [state[f"{name}mlp.fc2.weight"].shape[0] for name in names]
    inputs = [stem.shape[0], *outputs[:-1]]
    inner = [state[f"{name}attn.proj.weight"].shape[0] for name in names]
    in_attention = any(a != b for a, b in zip(inputs, inner, strict=True))
    kernel = tuple(stem.shape[2:])
    video = kernel[0] > 1
    cube = (2, 4, 4) if video else (1, 4, 4)
    table = state.get("blocks.0.attn.rel_pos_t")
    frames = 1 if table is None else (len(table) + 1) // 2 * cube[0]
    return {
        "clip_size": (frames, sides[0] * cube[1], sides[0] * cube[2]),
        "in_channels": stem.shape[1],
        "depth": depth,
        "width": stem.shape[0],
        "heads": heads[0],
        "widen_at": tuple(index for index in range(1, depth) if heads[index] > heads[index - 1]),
        "widen_in": "attention" if in_attention else "mlp",
        "q_pool_at": tuple(index for index in range(1, depth) if sides[index] < sides[index - 1]),
        "kv_stride": (1, first_kv_stride, first_kv_stride),
        "pool_kernel": tuple(state["blocks.0.attn.pool_q.weight"].shape[2:]),
        "cube_kernel": kernel,
        "cube_stride": cube,
        "cube_padding": tuple(size // 2 for size in kernel),
        "mlp_ratio": ratio_of(inner[0], state["blocks.0.mlp.fc1.weight"].shape[0]),
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "relative_time": table is not None,
    }
