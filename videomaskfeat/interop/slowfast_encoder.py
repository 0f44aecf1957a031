"""PySlowFast's section MVIT -> the arguments of our encoders."""

from __future__ import annotations

from typing import Any

from videomaskfeat.errors import UserError
from videomaskfeat.interop.slowfast_keys import (
    Options,
)
from videomaskfeat.models.encoder_base import Triple, as_triple
from videomaskfeat.texts import show_text

# If all of these keys are empty, PySlowFast's MViT is a plain vision transformer.
_POOLING = (
    "MVIT.POOL_Q_STRIDE",
    "MVIT.POOL_KV_STRIDE",
    "MVIT.POOL_KV_STRIDE_ADAPTIVE",
    "MVIT.POOL_KVQ_KERNEL",
    "MVIT.DIM_MUL",
    "MVIT.HEAD_MUL",
)


def is_plain(options: Options) -> bool:
    """Whether no block pools its tokens or changes their width, as in our ViT."""
    return not any(options[key] for key in _POOLING)


def encoder_arguments(options: Options) -> dict[str, Any]:
    """Arguments of our MViT or ViT from PySlowFast's MVIT section.

    Raises:
        UserError: an option that our encoder does not support.
    """
    if options["DATA.TRAIN_CROP_SIZE"] != options["DATA.TEST_CROP_SIZE"]:
        raise UserError(
            f"{options.path}: DATA.TRAIN_CROP_SIZE and DATA.TEST_CROP_SIZE "
            f"must be equal: PySlowFast's MViT has one "
            "size"
        )
    crop = options["DATA.TRAIN_CROP_SIZE"]
    channels = options["DATA.INPUT_CHANNEL_NUM"]
    if not channels:
        raise UserError(
            f"{options.path}: DATA.INPUT_CHANNEL_NUM is empty; set the number of channels, such as [3]"
        )
    absolute = "none"
    if options["MVIT.USE_ABS_POS"]:
        absolute = "separable" if options["MVIT.SEP_POS_EMBED"] else "joint"
    common = {
        "clip_size": (options["DATA.NUM_FRAMES"], crop, crop),
        "in_channels": channels[0],
        "depth": options["MVIT.DEPTH"],
        "width": options["MVIT.EMBED_DIM"],
        "heads": options["MVIT.NUM_HEADS"],
        "mlp_ratio": options["MVIT.MLP_RATIO"],
        "qkv_bias": options["MVIT.QKV_BIAS"],
        "class_token": options["MVIT.CLS_EMBED_ON"],
        "absolute_positions": absolute,
        "drop_path": options["MVIT.DROPPATH_RATE"],
        "checkpoint_blocks": options["MODEL.ACT_CHECKPOINT"],
    }
    if is_plain(options):
        return {**common, "cube_stride": _cubes(options)}
    _check_frames(options)
    q_pool_at, q_pool_stride = _query_pooling(options)
    return {
        **common,
        "widen_at": _widening(options),
        "widen_in": "attention" if options["MVIT.DIM_MUL_IN_ATT"] else "mlp",
        "q_pool_at": q_pool_at,
        "q_pool_stride": q_pool_stride,
        "kv_stride": _key_pooling(options, q_pool_at, q_pool_stride),
        "pool_kernel": _triple(options, "MVIT.POOL_KVQ_KERNEL"),
        "cube_kernel": _triple(options, "MVIT.PATCH_KERNEL"),
        "cube_stride": _triple(options, "MVIT.PATCH_STRIDE"),
        "cube_padding": _triple(options, "MVIT.PATCH_PADDING", first=0),
        "relative_space": options["MVIT.REL_POS_SPATIAL"],
        "relative_time": options["MVIT.REL_POS_TEMPORAL"],
        "residual_pooling": options["MVIT.RESIDUAL_POOLING"],
    }


def _query_pooling(options: Options) -> tuple[tuple[int, ...], Triple]:
    """Blocks that pool their queries, and their common stride."""
    rows = options["MVIT.POOL_Q_STRIDE"]
    depth = options["MVIT.DEPTH"]
    pooling = {row[0]: row[1:] for row in rows if len(row) == 4 and all(type(entry) is int for entry in row)}
    if len(rows) != depth or set(pooling) != set(range(depth)):
        raise UserError(
            f"{options.path}: MVIT.POOL_Q_STRIDE must list each of the "
            f"{depth} blocks once as [block, t, h, w]; "
            "blocks without query pooling (MViTv1) are not supported"
        )
    strides = {stride for stride in pooling.values() if stride != (1, 1, 1)}
    if len(strides) > 1:
        raise UserError(
            f"{options.path}: MVIT.POOL_Q_STRIDE has strides {sorted(strides)}; only one is supported"
        )
    blocks = tuple(sorted(block for block, stride in pooling.items() if stride != (1, 1, 1)))
    return blocks, as_triple(strides.pop() if strides else (1, 1, 1))


def _key_pooling(options: Options, q_pool_at: tuple[int, ...], q_pool_stride: Triple) -> Triple:
    """Stride of keys and values in the first block; each query pooling divides it."""
    if options["MVIT.POOL_KV_STRIDE_ADAPTIVE"]:
        return _triple(options, "MVIT.POOL_KV_STRIDE_ADAPTIVE")
    rows = [tuple(row) for row in options["MVIT.POOL_KV_STRIDE"]]
    first = as_triple(rows[0][1:]) if rows and len(rows[0]) == 4 else (1, 1, 1)
    expected, stride = [], first
    for block in range(options["MVIT.DEPTH"] if rows else 0):
        if block in q_pool_at:
            stride = as_triple(max(a // b, 1) for a, b in zip(stride, q_pool_stride, strict=True))
        expected.append((block, *stride))
    if sorted(rows) != expected:
        raise UserError(
            f"{options.path}: MVIT.POOL_KV_STRIDE {show_text(str(rows))} must list each block once, and each "
            "query pooling must divide the stride of block 0; use MVIT.POOL_KV_STRIDE_ADAPTIVE"
        )
    return first


def _widening(options: Options) -> tuple[int, ...]:
    """Blocks at which width and heads double."""
    widths, heads = options["MVIT.DIM_MUL"], options["MVIT.HEAD_MUL"]
    if sorted(widths) != sorted(heads) or any(len(row) != 2 or row[1] != 2 for row in widths):
        raise UserError(
            f"{options.path}: MVIT.DIM_MUL {widths} and MVIT.HEAD_MUL {heads} must be "
            "equal, and every factor in them must be 2"
        )
    return tuple(sorted(block for block, _ in widths))


def _cubes(options: Options) -> Triple:
    """The cubes of a plain vision transformer; one frame for images."""
    image = options["MVIT.PATCH_2D"]
    kernel, stride, padding = (
        _triple(options, f"MVIT.PATCH_{name}") for name in ("KERNEL", "STRIDE", "PADDING")
    )
    if kernel != stride or any(padding[image:]):
        raise UserError(
            f"{options.path}: MVIT.PATCH_KERNEL {kernel}, PATCH_STRIDE "
            f"{stride} and PATCH_PADDING {padding} (time, "
            "height, width): a vision transformer needs kernel = stride and no padding"
        )
    _check_frames(options)
    for key in ("MVIT.REL_POS_SPATIAL", "MVIT.REL_POS_TEMPORAL", "MVIT.RESIDUAL_POOLING"):
        if options[key]:
            raise UserError(
                f"{options.path}: {key} True is not supported without pooling (MVIT.POOL_Q_STRIDE)"
            )
    return stride


def _check_frames(options: Options) -> None:
    if options["MVIT.PATCH_2D"] and options["DATA.NUM_FRAMES"] != 1:
        raise UserError(
            f"{options.path}: DATA.NUM_FRAMES {options['DATA.NUM_FRAMES']} must be 1 with MVIT.PATCH_2D True"
        )


def _triple(options: Options, key: str, *, first: int = 1) -> Triple:
    """Three integers; ``first`` is the missing one of a two-dimensional patch."""
    value = options[key]
    if options["MVIT.PATCH_2D"] and len(value) == 2:
        value = (first, *value)
    if len(value) != 3 or any(type(entry) is not int for entry in value):
        raise UserError(f"{options.path}: {key} {value} must be three integers (time, height, width)")
    return as_triple(value)
