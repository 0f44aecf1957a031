"""PySlowFast's options -> the arguments of our models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from videomaskfeat.errors import UserError
from videomaskfeat.models.cubes import Triple, as_triple

# Keys whose absence makes an MViT of PySlowFast a plain vision transformer.
_POOLING = (
    "MVIT.POOL_Q_STRIDE",
    "MVIT.POOL_KV_STRIDE_ADAPTIVE",
    "MVIT.POOL_KVQ_KERNEL",
    "MVIT.DIM_MUL",
    "MVIT.HEAD_MUL",
)


def is_plain(options: Mapping[str, Any]) -> bool:
    """Whether no block pools its tokens or changes their width: a ViT of ours."""
    return not any(options[key] for key in _POOLING)


def encoder_arguments(path: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of our MViT or ViT for PySlowFast's MVIT section.

    Raises:
        UserError: an option that our encoder does not have.
    """
    if options["DATA.TRAIN_CROP_SIZE"] != options["DATA.TEST_CROP_SIZE"]:
        raise UserError(
            f"{path}: DATA.TRAIN_CROP_SIZE and TEST_CROP_SIZE differ; an MViT of PySlowFast has one size"
        )
    crop = options["DATA.TRAIN_CROP_SIZE"]
    channels = options["DATA.INPUT_CHANNEL_NUM"]
    if not channels:
        raise UserError(f"{path}: DATA.INPUT_CHANNEL_NUM is empty; give the number of channels, such as [3]")
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
        return {**common, "cube_stride": _cubes(path, options)}
    if options["MVIT.PATCH_2D"]:
        raise UserError(
            f"{path}: MVIT.PATCH_2D is True and only False is read with pooling (MVIT.POOL_Q_STRIDE); models "
            "for images are read where they are plain vision transformers"
        )
    q_pool_at, q_pool_stride = _query_pooling(path, options)
    return {
        **common,
        "widen_at": _widening(path, options),
        "widen_in": "attention" if options["MVIT.DIM_MUL_IN_ATT"] else "mlp",
        "q_pool_at": q_pool_at,
        "q_pool_stride": q_pool_stride,
        "kv_stride": _triple(path, options, "MVIT.POOL_KV_STRIDE_ADAPTIVE"),
        "pool_kernel": _triple(path, options, "MVIT.POOL_KVQ_KERNEL"),
        "cube_kernel": _triple(path, options, "MVIT.PATCH_KERNEL"),
        "cube_stride": _triple(path, options, "MVIT.PATCH_STRIDE"),
        "cube_padding": _triple(path, options, "MVIT.PATCH_PADDING"),
        "relative_space": options["MVIT.REL_POS_SPATIAL"],
        "relative_time": options["MVIT.REL_POS_TEMPORAL"],
        "residual_pooling": options["MVIT.RESIDUAL_POOLING"],
    }


def shortened(path: str, options: Mapping[str, Any], encoder: Mapping[str, Any]) -> dict[str, Any]:
    """The encoder up to the block that predicts: PySlowFast deletes the blocks after it.

    Raises:
        UserError: several blocks predict, or one that the encoder does not have.
    """
    last = options["MASK.PRETRAIN_DEPTH"]
    if len(last) != 1 or not 0 <= last[0] < encoder["depth"]:
        raise UserError(
            f"{path}: MASK.PRETRAIN_DEPTH {last} is not supported; one block of 0..{encoder['depth'] - 1} is"
        )
    depth = last[0] + 1
    if is_plain(options):
        return {**encoder, "depth": depth}
    # A width that doubles in the perceptron of the last block kept belongs to the next one, hence depth
    # itself for "mlp".
    widen_limit = depth if encoder["widen_in"] == "mlp" else depth - 1
    return {
        **encoder,
        "depth": depth,
        "widen_at": tuple(block for block in encoder["widen_at"] if block <= widen_limit),
        "q_pool_at": tuple(block for block in encoder["q_pool_at"] if block < depth),
    }


def decoder_arguments(path: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of our MAE's decoder.

    Raises:
        UserError: a decoder that our MAE does not have.
    """
    width, depth = options["MASK.DECODER_EMBED_DIM"], options["MASK.DECODER_DEPTH"]
    if options["MASK.DECODER_SEP_POS_EMBED"] or not options["MVIT.USE_ABS_POS"]:
        raise UserError(
            f"{path}: MASK.DECODER_SEP_POS_EMBED True and MVIT.USE_ABS_POS False are not supported; the "
            "decoder has one learned table of positions"
        )
    if depth < 1 or width < 64:
        raise UserError(
            f"{path}: MASK.DECODER_DEPTH {depth} must be at least 1, and MASK.DECODER_EMBED_DIM {width} at "
            "least 64, the width of a head"
        )
    return {"decoder_depth": depth, "decoder_width": width, "decoder_heads": width // 64}


def head_arguments(path: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of our Classifier beyond the encoder's.

    Raises:
        UserError: a head that our Classifier does not have.
    """
    activation = options["MODEL.HEAD_ACT"]
    if activation not in ("softmax", "none"):
        raise UserError(
            f"{path}: MODEL.HEAD_ACT {activation!r} is not supported; "
            "'softmax' and 'none' are, for one class a clip"
        )
    mean = options["MVIT.USE_MEAN_POOLING"]
    if not mean and not options["MVIT.CLS_EMBED_ON"]:
        # PySlowFast then averages after the last norm, which no published model does.
        raise UserError(
            f"{path}: MVIT.CLS_EMBED_ON False needs MVIT.USE_MEAN_POOLING True here: without a class token "
            "the mean over the tokens is what is left to classify from"
        )
    return {
        "classes": options["MODEL.NUM_CLASSES"],
        "head": "mean" if mean else "token",
        "dropout": options["MODEL.DROPOUT_RATE"],
        "head_scale": options["MVIT.HEAD_INIT_SCALE"],
    }


def _query_pooling(path: str, options: Mapping[str, Any]) -> tuple[tuple[int, ...], Triple]:
    """Blocks that pool their queries, and their common stride."""
    rows = options["MVIT.POOL_Q_STRIDE"]
    depth = options["MVIT.DEPTH"]
    listed = {row[0]: row[1:] for row in rows if len(row) == 4 and all(type(entry) is int for entry in row)}
    if len(rows) != depth or len(listed) != depth or set(listed) != set(range(depth)):
        raise UserError(
            f"{path}: MVIT.POOL_Q_STRIDE must list each of the {depth} blocks once as [block, t, h, w]; "
            "blocks without query pooling (MViTv1) are not supported"
        )
    strides = {stride for stride in listed.values() if stride != (1, 1, 1)}
    if len(strides) > 1:
        raise UserError(f"{path}: MVIT.POOL_Q_STRIDE has several strides {sorted(strides)}; one is supported")
    at = tuple(sorted(block for block, stride in listed.items() if stride != (1, 1, 1)))
    return at, as_triple(strides.pop() if strides else (1, 1, 1))


def _widening(path: str, options: Mapping[str, Any]) -> tuple[int, ...]:
    """Blocks at which width and heads double."""
    widths, heads = options["MVIT.DIM_MUL"], options["MVIT.HEAD_MUL"]
    if sorted(widths) != sorted(heads) or any(len(row) != 2 or row[1] != 2 for row in widths):
        raise UserError(
            f"{path}: MVIT.DIM_MUL {widths} and MVIT.HEAD_MUL {heads} must be equal, with factor 2"
        )
    return tuple(sorted(block for block, _ in widths))


def _cubes(path: str, options: Mapping[str, Any]) -> Triple:
    """The cubes of a plain vision transformer, of one frame for images.

    Raises:
        UserError: a stem that overlaps the cubes, or relative positions.
    """
    image = options["MVIT.PATCH_2D"]
    kernel, stride, padding = (
        _patch(path, options, f"MVIT.PATCH_{name}") for name in ("KERNEL", "STRIDE", "PADDING")
    )
    if kernel != stride or any(padding[image:]):
        raise UserError(
            f"{path}: MVIT.PATCH_KERNEL {kernel}, PATCH_STRIDE {stride} and PATCH_PADDING {padding} (time, "
            "height, width): a vision transformer's stem has the kernel of its stride and no padding"
        )
    if image and options["DATA.NUM_FRAMES"] != 1:
        raise UserError(
            f"{path}: DATA.NUM_FRAMES {options['DATA.NUM_FRAMES']} with MVIT.PATCH_2D True; an image has 1"
        )
    for key in ("MVIT.REL_POS_SPATIAL", "MVIT.REL_POS_TEMPORAL", "MVIT.RESIDUAL_POOLING"):
        if options[key]:
            raise UserError(f"{path}: {key} True is not supported without pooling (MVIT.POOL_Q_STRIDE)")
    return stride


def _patch(path: str, options: Mapping[str, Any], key: str) -> Triple:
    """Three numbers; images have two, height and width."""
    value = options[key]
    if options["MVIT.PATCH_2D"] and len(value) == 2:
        value = (1, *value)
    return _triple(path, {key: value}, key)


def _triple(path: str, options: Mapping[str, Any], key: str) -> Triple:
    value = options[key]
    if len(value) != 3 or any(type(entry) is not int for entry in value):
        raise UserError(f"{path}: {key} {value} must be three integers (time, height, width)")
    return as_triple(value)
