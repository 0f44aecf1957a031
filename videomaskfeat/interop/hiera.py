"""Weights of Hiera, in the layout of its own code (github.com/facebookresearch/hiera)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from videomaskfeat.interop.formats import (
    GRAY,
    IMAGENET,
    Converted,
    Source,
    clip_of,
    count_blocks,
    count_heads,
    ratio_of,
    rename,
)
from videomaskfeat.models.zoo import HIERA_SIZES
from videomaskfeat.recipe import ClipRecipe, MaskRecipe, PretrainRecipe
from videomaskfeat.stored_recipe import ClassifyRecipe

_HEADS = {96: 1, 112: 2, 144: 2, 256: 4}
"""Attention heads of the first stage, by width."""
_DECODER_HEADS = {512: 16}


def is_hiera(source: Source) -> bool:
    """Whether the weights are a Hiera's: blocks that change the width, without pooling convolutions."""
    blocks = [name for name in source.state if name.startswith("blocks.") and name.endswith(".proj.weight")]
    return (
        source.has("patch_embed.proj.weight", "blocks.0.attn.qkv.weight")
        and (source.has("pos_embed_spatial", "pos_embed_temporal") or source.has("pos_embed"))
        and any(name.count(".") == 3 for name in blocks)
        and not source.has("cls_token")
        and not source.has("blocks.0.attn.pool_q.weight")
    )


def classifier(title: str, source: Source) -> Converted:
    """A classifier, or an encoder if the weights have no head."""
    state = _with_time(source.state)
    arguments, image = _arguments(source, state, q_pool=3)
    clip, assumed = _clip(source, arguments, image=image)
    side = arguments["clip_size"][1]
    weight = state.get("head.projection.weight")
    if weight is None:
        recipe = ClassifyRecipe(clip, views=1, crops=1, short_side=side)
        arguments |= {"mean_first": True, "final_norm": "norm.weight" in state}
        return Converted(title, "hiera_encoder", arguments, state, recipe, assumed=assumed)
    if image:
        recipe = ClassifyRecipe(clip, views=1, crops=1, short_side=round(side / 0.875))
    else:
        recipe = ClassifyRecipe(clip, views=5, crops=3, short_side=side)
        assumed += ("evaluate.views 5", "evaluate.crops 3")
    arguments |= {"classes": weight.shape[0], "head": "mean"}
    return Converted(title, _name(arguments, image=image), arguments, state, recipe, assumed=assumed)


def pretrained(title: str, source: Source) -> Converted:
    """A masked autoencoder with its decoder."""
    depth = count_blocks(
        {name.removeprefix("decoder_"): v for name, v in source.state.items() if "decoder_blocks." in name}
    )
    rules = (
        (r"^encoder_norm\.", "decoder_fusion_norm."),
        (r"^multi_scale_fusion_heads\.", "decoder_fusion."),
        (r"^decoder_blocks\.", "pred_head.transforms.0."),
        (r"^decoder_norm\.", f"pred_head.transforms.0.{depth}."),
        (r"^decoder_pred\.", "pred_head.projections.0."),
    )
    state = _with_time(rename(source.state, rules))
    fused = {name.split(".")[1] for name in state if name.startswith("decoder_fusion.")}
    arguments, image = _arguments(source, state, q_pool=len(fused))
    width = state["decoder_embed.weight"].shape[0]
    values = state["pred_head.projections.0.weight"].shape[0]
    if image:
        for kind in ("weight", "bias"):
            name = f"pred_head.projections.0.{kind}"
            state[name] = _colors_last(state[name], arguments["in_channels"])
    clip, assumed = _clip(source, arguments, image=image)
    arguments |= {
        "values_per_token": values,
        "decoder_depth": depth,
        "decoder_width": width,
        "decoder_heads": count_heads(source, width, choice="decoder_heads", table=_DECODER_HEADS),
    }
    unit = [a * b for a, b in zip(arguments["mask_unit"], arguments["cube_stride"], strict=True)]
    side = math.isqrt(values // arguments["in_channels"])
    output = (arguments["cube_stride"][0], side, side)
    ratio = 0.6 if image else 0.9
    recipe = PretrainRecipe(
        clip,
        MaskRecipe("random", ratio, (unit[0], unit[1], unit[2])),
        target="pixels",
        target_arguments={} if output == (2, 16, 16) else {"output_stride": list(output)},
    )
    assumed += (f"mask.ratio {ratio:g}",)
    name = _name(arguments, image=image, prefix="mae_")
    return Converted(title, name, arguments, state, recipe, assumed=assumed)


def _with_time(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights whose convolutions have a time axis, [D, C, h, w] -> [D, C, 1, h, w]."""
    return {name: value[:, :, None] if value.ndim == 4 else value for name, value in state.items()}


def _colors_last(weight: Tensor, channels: int) -> Tensor:
    """Predicted pixels [K, ...] in the order (color, row, column) -> (row, column, color).

    In the published code only images have this order; videos have ours.
    """
    side = math.isqrt(len(weight) // channels)
    pixels = weight.unflatten(0, (channels, side, side))
    return pixels.permute(1, 2, 0, *range(3, pixels.ndim)).flatten(0, 2)


def _arguments(source: Source, state: Mapping[str, Tensor], *, q_pool: int) -> tuple[dict[str, Any], bool]:
    """Arguments of the encoder from the shapes of its weights, and whether it is one of images."""
    stem, depth = state["patch_embed.proj.weight"], count_blocks(state)
    starts = [block for block in range(depth) if f"blocks.{block}.proj.weight" in state]
    bounds = [0, *starts, depth]
    stages = tuple(end - start for start, end in itertools.pairwise(bounds))
    image = stem.shape[2] == 1
    cube = (1 if image else 2, 4, 4)
    spatial = state["pos_embed" if image else "pos_embed_spatial"].shape[1]
    frames = 1 if image else state["pos_embed_temporal"].shape[1] * cube[0]
    side = math.isqrt(spatial) * cube[1]
    kernel = tuple(stem.shape[2:])
    return {
        "clip_size": (frames, side, side),
        "in_channels": stem.shape[1],
        "stages": stages,
        "width": stem.shape[0],
        "heads": count_heads(source, stem.shape[0], table=_HEADS),
        "q_pool": q_pool,
        "mask_unit": (1, 8, 8),
        "unit_attention": tuple(stage < 2 for stage in range(len(stages))),
        "cube_kernel": kernel,
        "cube_stride": cube,
        "cube_padding": tuple(size // 2 for size in kernel),
        "mlp_ratio": ratio_of(stem.shape[0], state["blocks.0.mlp.fc1.weight"].shape[0]),
        "absolute_positions": "joint" if image else "separable",
    }, image


def _clip(source: Source, arguments: Mapping[str, Any], *, image: bool) -> tuple[ClipRecipe, tuple[str, ...]]:
    frames, crop, _ = arguments["clip_size"]
    usual: dict[str, Any] = {"frames": frames, "crop": crop}
    usual |= (
        {"stride": 1, "target_fps": None, **IMAGENET} if image else {"stride": 4, "target_fps": 30.0, **GRAY}
    )
    known = {"frames": frames, "crop": crop, **({"stride": 1} if image else {})}
    return clip_of(source, known, usual)


def _name(arguments: Mapping[str, Any], *, image: bool, prefix: str = "") -> str:
    """The named model of these stages and this width, or Hiera-B."""
    shape = (arguments["width"], arguments["stages"])
    sizes = {(size["width"], size["stages"]): name for name, size in HIERA_SIZES.items()}
    return f"{prefix}hiera_{sizes.get(shape, 'b')}{'_image' if image else ''}"
