"""PySlowFast's configuration keys: which shape a model, what they are by default, and which do not matter.

Defaults as in `slowfast/config/defaults.py` at commit 287ec00. A key counts for the kinds of model in whose
table it stands; for the others it is without effect.
"""

from __future__ import annotations

import ast
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from videomaskfeat.errors import UserError, nearest
from videomaskfeat.models import create_unset
from videomaskfeat.models.encoder_base import Triple, as_clips, as_triple
from videomaskfeat.models.weights import LoadReport, load_weights
from videomaskfeat.models.zoo import MODELS, dense_form
from videomaskfeat.targets.hog import HogTarget
from videomaskfeat.targets.pixels import PixelTarget
from videomaskfeat.targets.target import Target
from videomaskfeat.texts import read_yaml as read_plain_yaml
from videomaskfeat.texts import show_text

# Keys that shape every MViT, with PySlowFast's defaults. Where None is its default (a kernel, an adaptive
# stride) an empty tuple stands here, which the reader refuses where it needs a value.
ENCODER: dict[str, Any] = {
    "MODEL.ACT_CHECKPOINT": False,
    "DATA.NUM_FRAMES": 8,
    "DATA.TRAIN_CROP_SIZE": 224,
    "DATA.TEST_CROP_SIZE": 256,
    "DATA.INPUT_CHANNEL_NUM": (3, 3),
    "MVIT.CLS_EMBED_ON": True,
    "MVIT.PATCH_KERNEL": (3, 7, 7),
    "MVIT.PATCH_STRIDE": (2, 4, 4),
    "MVIT.PATCH_PADDING": (2, 4, 4),
    "MVIT.PATCH_2D": False,
    "MVIT.EMBED_DIM": 96,
    "MVIT.NUM_HEADS": 1,
    "MVIT.MLP_RATIO": 4.0,
    "MVIT.QKV_BIAS": True,
    "MVIT.DROPPATH_RATE": 0.1,
    "MVIT.DEPTH": 16,
    "MVIT.DIM_MUL": (),
    "MVIT.HEAD_MUL": (),
    "MVIT.POOL_KV_STRIDE_ADAPTIVE": (),
    "MVIT.POOL_Q_STRIDE": (),
    "MVIT.POOL_KVQ_KERNEL": (),
    "MVIT.SEP_POS_EMBED": False,
    "MVIT.USE_ABS_POS": True,
    "MVIT.REL_POS_SPATIAL": False,
    "MVIT.REL_POS_TEMPORAL": False,
    "MVIT.RESIDUAL_POOLING": False,
    "MVIT.DIM_MUL_IN_ATT": False,
}
# Keys of ENCODER that hold rows of numbers, such as [[1, 2.0], [3, 2.0]]; other lists hold numbers.
ROWS = frozenset({"MVIT.DIM_MUL", "MVIT.HEAD_MUL", "MVIT.POOL_Q_STRIDE"})
# Keys that shape the head, or the target, of one kind of model.
PRETRAINING: dict[str, Any] = {
    "MASK.ENABLE": False,
    "MASK.MAE_ON": False,
    "MASK.MAE_RND_MASK": False,
    "MASK.PRETRAIN_DEPTH": (15,),
    "MASK.HEAD_TYPE": "separate",
    "MASK.PRED_HOG": False,
    "MASK.NORM_PRED_PIXEL": True,
    "MASK.TIME_STRIDE_LOSS": True,
    "AUG.MASK_TUBE": False,
    "AUG.MASK_FRAMES": False,
    "AUG.MASK_WINDOW_SIZE": (8, 7, 7),
    "AUG.MASK_RATIO": 0.0,
}
DECODER: dict[str, Any] = {
    "MASK.DECODER_DEPTH": 0,
    "MASK.DECODER_EMBED_DIM": 512,
    "MASK.DECODER_SEP_POS_EMBED": False,
}
CLASSIFICATION: dict[str, Any] = {
    "MODEL.NUM_CLASSES": 400,
    "MODEL.DROPOUT_RATE": 0.5,
    "MODEL.HEAD_ACT": "softmax",
    "MVIT.USE_MEAN_POOLING": False,
    "MVIT.HEAD_INIT_SCALE": 1.0,
}
# Keys that say how clips are cut from videos, in training and in testing.
CLIP: dict[str, Any] = {
    "DATA.SAMPLING_RATE": 8,
    "DATA.TARGET_FPS": 30.0,
    "DATA.MEAN": (0.45, 0.45, 0.45),
    "DATA.STD": (0.225, 0.225, 0.225),
    "DATA.TRAIN_JITTER_SCALES": (256, 320),
    "DATA.USE_OFFSET_SAMPLING": False,
    "DATA.REVERSE_INPUT_CHANNEL": False,
    "DATA.ENSEMBLE_METHOD": "sum",
    "DATA.MULTI_LABEL": False,
    "DATA.RANDOM_FLIP": True,
    "TRAIN.DATASET": "kinetics",
    "TEST.DATASET": "kinetics",
    "TEST.NUM_ENSEMBLE_VIEWS": 10,
    "TEST.NUM_SPATIAL_CROPS": 3,
    "TEST.NUM_TEMPORAL_CLIPS": (),
}
# Keys that would shape the model, with the only values (their defaults) that are built here.
FIXED: dict[str, tuple[Any, ...]] = {
    "MVIT.MODE": ("conv",),
    "MVIT.POOL_FIRST": (False,),
    "MVIT.LAYER_SCALE_INIT_VALUE": (0, 0.0),
    "MVIT.NORM": ("layernorm",),
    "MVIT.POOL_KV_STRIDE": ([], ()),
    "MVIT.NORM_STEM": (False,),
    "MVIT.DROPOUT_RATE": (0, 0.0),
    "MVIT.SEPARATE_QKV": (False,),
    "MVIT.USE_FIXED_SINCOS_POS": (False,),
    "MVIT.REV.ENABLE": (False,),
    "DETECTION.ENABLE": (False,),
    "MODEL.ARCH": ("maskmvit", "mvit"),
    "CONTRASTIVE.NUM_MLP_LAYERS": (1,),
}
# Keys, of the sections that hold some of those above, that change training, initial values or other kinds of
# model only. A key of these sections that stands nowhere here is refused: it may be one of those above,
# misspelt.
NO_EFFECT: frozenset[str] = frozenset(
    {
        "MVIT.ZERO_DECAY_POS_CLS",
        "MVIT.REL_POS_ZERO_INIT",
        "MVIT.REV.RESPATH_FUSE",
        "MVIT.REV.BUFFER_LAYERS",
        "MVIT.REV.RES_PATH",
        "MVIT.REV.PRE_Q_FUSION",
        "MASK.PER_FRAME_MASKING",
        "MASK.SCALE_INIT_BY_DEPTH",
        "MASK.DEC_KV_KERNEL",
        "MASK.DEC_KV_STRIDE",
        *(f"TRAIN.{key}" for key in ("ENABLE", "BATCH_SIZE", "AUTO_RESUME", "MIXED_PRECISION")),
        *(f"TRAIN.{key}" for key in ("EVAL_PERIOD", "CHECKPOINT_PERIOD", "KILL_LOSS_EXPLOSION_FACTOR")),
        *(f"TRAIN.CHECKPOINT_{key}" for key in ("FILE_PATH", "TYPE", "INFLATE", "EPOCH_RESET", "IN_INIT")),
        "TRAIN.CHECKPOINT_CLEAR_NAME_PATTERN",
        *(f"TEST.{key}" for key in ("ENABLE", "BATCH_SIZE", "SAVE_RESULTS_PATH")),
        *(f"TEST.CHECKPOINT_{key}" for key in ("FILE_PATH", "TYPE")),
        *(f"AUG.{key}" for key in ("ENABLE", "NUM_SAMPLE", "COLOR_JITTER", "AA_TYPE", "INTERPOLATION")),
        *(f"AUG.RE_{key}" for key in ("PROB", "MODE", "COUNT", "SPLIT")),
        *("AUG.GEN_MASK_LOADER", "AUG.MAX_MASK_PATCHES_PER_BLOCK"),
        *(f"MODEL.{key}" for key in ("LOSS_FUNC", "SINGLE_PATHWAY_ARCH", "MULTI_PATHWAY_ARCH")),
        *(f"MODEL.{key}" for key in ("DROPCONNECT_RATE", "FC_INIT_STD", "DETACH_FINAL_FC", "FROZEN_BN")),
        "MODEL.FP16_ALLREDUCE",
        *(f"DATA.PATH_{key}" for key in ("TO_DATA_DIR", "LABEL_SEPARATOR", "PREFIX", "TO_PRELOAD_IMDB")),
        *(f"DATA.TRAIN_PCA_{key}" for key in ("EIGVAL", "EIGVEC")),
        *(
            f"DATA.TRAIN_JITTER_{key}"
            for key in ("SCALES_RELATIVE", "ASPECT_RELATIVE", "MOTION_SHIFT", "FPS")
        ),
        *(f"DATA.TRAIN_CROP_NUM_{key}" for key in ("TEMPORAL", "SPATIAL")),
        *(f"DATA.{key}" for key in ("DECODING_BACKEND", "DECODING_SHORT_SIZE", "INV_UNIFORM_SAMPLE")),
        *(f"DATA.{key}" for key in ("COLOR_RND_GRAYSCALE", "SKIP_ROWS", "TIME_DIFF_PROB", "DUMMY_LOAD")),
        *(f"DATA.LOADER_CHUNK_{key}" for key in ("SIZE", "OVERALL_SIZE")),
        *(f"DATA.SSL_{key}" for key in ("COLOR_JITTER", "COLOR_BRI_CON_SAT", "COLOR_HUE", "MOCOV2_AUG")),
        *(f"DATA.SSL_BLUR_SIGMA_{key}" for key in ("MIN", "MAX")),
        *(f"DATA.{key}" for key in ("IN22K_TRAINVAL", "IN22k_VAL_IN1K", "IN_VAL_CROP_RATIO")),
        "TASK",
        "NUM_GPUS",
        "NUM_SHARDS",
        "SHARD_ID",
        "OUTPUT_DIR",
        "RNG_SEED",
        "LOG_PERIOD",
        "LOG_MODEL_INFO",
        "DIST_BACKEND",
    }
)
# Sections that say how to train, read and show, but not what the model is. PREFETCH, in the public YAMLs of
# SSv2, is unknown to PySlowFast too.
IGNORED_SECTIONS: frozenset[str] = frozenset(
    {
        *("SOLVER", "MIXUP", "BN", "DATA_LOADER", "DETECTION", "CONTRASTIVE", "RESNET", "SLOWFAST", "X3D"),
        *("TENSORBOARD", "VIS_MASK", "DEMO", "BENCHMARK", "MULTIGRID", "PREFETCH", "AVA", "SSV2"),
        *("NONLOCAL", "IMAGENET", "VISUALIZATION"),
    }
)


# Reading a PySlowFast YAML: its options in their types, with defaults, and the keys that have no part.
_LONGEST_LITERAL, _MOST_BRACKETS = 1000, 100
_LARGEST = 2**63
_KNOWN = {**ENCODER, **PRETRAINING, **DECODER, **CLASSIFICATION, **CLIP}


def read_yaml(path: str) -> Mapping[str, Any]:
    """The keys of a YAML as SECTION.KEY -> value, as they are written.

    Raises:
        UserError: no such file, no YAML, or one without sections.
    """
    content = read_plain_yaml(path, what="a PySlowFast YAML")
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: is not a PySlowFast YAML: it has no sections such as MVIT and MODEL")
    return dict(_flatten(content))


def typed_options(
    path: str, written: Mapping[str, Any], defaults: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The options that count for a kind of model, and the keys that do not.

    Args:
        path: of the YAML, for messages.
        written: result of :func:`read_yaml`.
        defaults: the keys that count, with what they are where the YAML leaves them out.

    Returns:
        Every key of ``defaults`` with its value; the keys of the YAML that cannot change that model.

    Raises:
        UserError: a value that is not built here or of the wrong type, or a key that nobody knows.
    """
    options, ignored = dict(defaults), []
    for key, value in written.items():
        section = key.partition(".")[0]
        if key in FIXED:
            if not any(_plain(value) == allowed for allowed in FIXED[key]):
                expected = " or ".join(map(repr, FIXED[key]))
                raise UserError(f"{path}: {key} {value!r} is not supported; only {expected} is")
        elif key in defaults:
            options[key] = _typed(path, key, _plain(value), defaults[key])
        elif key in _KNOWN or key in NO_EFFECT or key == "MODEL.MODEL_NAME" or section in IGNORED_SECTIONS:
            if key != "MODEL.MODEL_NAME":
                ignored.append(key)
        else:
            known = [*_KNOWN, *FIXED, *NO_EFFECT]
            raise UserError(f"{path}: unknown key {key}{nearest(key, known)}; it may change the model")
    return options, tuple(ignored)


def _flatten(content: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested sections as (SECTION.KEY, value) pairs."""
    pairs: list[tuple[str, Any]] = []
    for key, value in content.items():
        name = f"{prefix}{key}"
        pairs += _flatten(value, f"{name}.") if isinstance(value, Mapping) else [(name, value)]
    return pairs


def _plain(value: Any) -> Any:
    """What PySlowFast reads from a value: ``"(2, 4, 4)"`` is a tuple, ``"1e-6"`` a number, "None" None."""
    if not isinstance(value, str) or len(value) > _LONGEST_LITERAL or value.count("(") > _MOST_BRACKETS:
        return value
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the spelling of numbers
            return ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value


def _typed(path: str, key: str, value: Any, default: Any) -> Any:
    """``value`` in the type of the key's default: a float may be written as an integer, a tuple as a list."""
    if isinstance(default, tuple) and isinstance(value, list | tuple):
        return _as_tuple(path, key, value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{path}: {key} is {value}; a finite number is needed")
    if number and isinstance(default, float) and abs(value) < _LARGEST:
        return float(value)
    if type(value) is type(default) and not (number and abs(value) >= _LARGEST):
        return value
    raise UserError(
        f"{path}: {key} {show_text(repr(value))} should be a {type(default).__name__}, such as {default!r}"
    )


def _as_tuple(path: str, key: str, value: Sequence[Any]) -> tuple[Any, ...]:
    """Numbers as a tuple, or rows of numbers as tuples where the key has rows."""
    rows = value if key in ROWS else [value]
    for row in rows:
        if not isinstance(row, list | tuple) or not all(map(_is_number, row)):
            wanted = "lists of numbers, one per block" if key in ROWS else "numbers"
            raise UserError(f"{path}: {key} {show_text(repr(value))} must be a list of {wanted}")
    return tuple(map(tuple, rows)) if key in ROWS else tuple(value)


def _is_number(value: Any) -> bool:
    """Whether it is a finite number that a model can be built with; not True or False."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST


# PySlowFast's options -> the arguments of our models.
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


# PySlowFast's options -> how its clips are cut, hidden and tested.
Colours = tuple[float, float, float]


@dataclass(frozen=True)
class ClipFacts:
    """What a YAML says of clips and of testing.

    Attributes:
        dataset: PySlowFast's name of it, in small letters: "kinetics", "ssv2" or another.
        sampling: "clip", or for SSv2 "segments".
        frames: frames a clip.
        stride: PySlowFast's sampling rate, counted at ``target_fps``.
        target_fps: frames a second.
        crop: height and width in pixels.
        short_side: pixels that the short side is resized to in testing.
        flip: whether training clips are flipped.
        mean: subtracted from pixels in 0..1: of red, green and blue.
        std: divides them after that: of red, green and blue.
        channels: "rgb" or "bgr", the order in which the model takes them.
        views: clips a video in testing; the greatest number where several are tested.
        view_counts: all numbers that are tested.
        crops: crops a clip in testing.
        offset: views reach from the first frame to the last.
        average: "softmax" or "logits", what is added up over the views.
        ensemble: "sum" or "max" over the views.
        multi_label: a video may have several classes.
        classes: None in pre-training.
    """

    dataset: str
    sampling: str
    frames: int
    stride: int
    target_fps: float
    crop: int
    short_side: int
    flip: bool
    mean: Colours
    std: Colours
    channels: str
    views: int
    view_counts: tuple[int, ...]
    crops: int
    offset: bool
    average: str
    ensemble: str
    multi_label: bool
    classes: int | None


@dataclass(frozen=True)
class MaskFacts:
    """What a pre-training YAML hides.

    Attributes:
        kind: "cube", "tube", "frame", "block", "random" or "random_tube", as our masks are called.
        ratio: share of the window's cells.
        window: cells over frames, height and width of a clip.
    """

    kind: str
    ratio: float
    window: tuple[int, int, int]


def clip_facts(path: str, options: Mapping[str, Any]) -> ClipFacts:
    """Clips and views, in training or testing whatever the kind of YAML is for.

    Raises:
        UserError: a list that is not made of the numbers it should hold.
    """
    pretraining = "MODEL.NUM_CLASSES" not in options
    dataset = options["TRAIN.DATASET" if pretraining else "TEST.DATASET"].lower()
    segments = dataset == "ssv2"
    crops, crop = options["TEST.NUM_SPATIAL_CROPS"], options["DATA.TEST_CROP_SIZE"]
    mean, std = _colours(path, options, "DATA.MEAN"), _colours(path, options, "DATA.STD")
    # The frames of SSv2 are pictures that PySlowFast reads as blue, green, red; it normalises them in that
    # order, and reverses the channels after that.
    if segments:
        mean, std = mean[::-1], std[::-1]
    counts = _numbers(path, options, "TEST.NUM_TEMPORAL_CLIPS") or (options["TEST.NUM_ENSEMBLE_VIEWS"],)
    return ClipFacts(
        dataset=dataset,
        sampling="segments" if segments else "clip",
        frames=options["DATA.NUM_FRAMES"],
        stride=options["DATA.SAMPLING_RATE"],
        target_fps=options["DATA.TARGET_FPS"],
        crop=crop,
        # One centre crop is cut from a larger frame; three lie along the longer side, as always in SSv2.
        short_side=crop
        if segments or crops > 1
        else int(_numbers(path, options, "DATA.TRAIN_JITTER_SCALES", 2)[0]),
        flip=options["DATA.RANDOM_FLIP"],
        mean=mean,
        std=std,
        channels="bgr" if segments != options["DATA.REVERSE_INPUT_CHANNEL"] else "rgb",
        views=1 if segments else int(max(counts)),  # in testing all views of segments are equal
        view_counts=tuple(int(count) for count in counts),
        crops=crops,
        offset=options["DATA.USE_OFFSET_SAMPLING"],
        average="logits" if options.get("MODEL.HEAD_ACT") == "none" else "softmax",
        ensemble=options["DATA.ENSEMBLE_METHOD"],
        multi_label=options["DATA.MULTI_LABEL"],
        classes=options.get("MODEL.NUM_CLASSES"),
    )


def mask_facts(path: str, options: Mapping[str, Any]) -> MaskFacts:
    """What the loader of pre-training hides, or an MAE model by itself.

    Raises:
        UserError: a window that is not three numbers.
    """
    ratio, tube = options["AUG.MASK_RATIO"], options["AUG.MASK_TUBE"]
    if options["MVIT.PATCH_2D"] or options["MASK.MAE_ON"]:
        # Drawn on the grid of tokens whatever the window.
        step = _numbers(path, options, "MVIT.PATCH_STRIDE")[-2:]
        rows, columns = (int(options["DATA.TRAIN_CROP_SIZE"] // length) for length in step)
        if options["MVIT.PATCH_2D"]:
            return MaskFacts("block", ratio, (1, rows, columns))
        frames = int(options["DATA.NUM_FRAMES"] // options["MVIT.PATCH_STRIDE"][0])
        return MaskFacts("random_tube" if tube else "random", ratio, (frames, rows, columns))
    window = _numbers(path, options, "AUG.MASK_WINDOW_SIZE", 3)
    kind = "tube" if tube else "frame" if options["AUG.MASK_FRAMES"] else "cube"
    return MaskFacts(kind, ratio, (int(window[0]), int(window[1]), int(window[2])))


def _colours(path: str, options: Mapping[str, Any], key: str) -> Colours:
    first, second, third = _numbers(path, options, key, 3)
    return (first, second, third)


def _numbers(path: str, options: Mapping[str, Any], key: str, count: int | None = None) -> tuple[float, ...]:
    value = options[key]
    plain = all(isinstance(x, int | float) and not isinstance(x, bool) for x in value)
    if not plain or count not in (None, len(value)):
        wanted = "numbers" if count is None else f"{count} numbers"
        raise UserError(f"{path}: {key} {list(value)} must be {wanted}")
    return tuple(map(float, value))


# PySlowFast's YAMLs and checkpoints -> our models.
_HOG_CELL = 8  # pixels; fixed in PySlowFast
_HOG_BINS = 9
# The Sobel kernels of PySlowFast's HOG layer travel in its checkpoints; ours are part of the target.
_TARGET_BUFFERS = ("hogs.*.weight_x", "hogs.*.weight_y")


@dataclass(frozen=True)
class ImportReport:
    """What was read, and what was not.

    Attributes:
        kind: the kind of model the YAML describes, in words.
        weights: what became of every weight of the checkpoint.
        ignored_keys: keys of the YAML that cannot change the model, its target or its clips, such as
            ``SOLVER.BASE_LR``.
    """

    kind: str
    weights: LoadReport
    ignored_keys: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.kind}: {self.weights}; {len(self.ignored_keys)} keys have no part in the model"


class ImageTarget(nn.Module):
    """A target of images, [B, C, H, W] -> [B, h, w, K].

    Attributes:
        of_clips: the target of the same as clips of one frame.
    """

    def __init__(self, of_clips: Target) -> None:
        super().__init__()
        self.of_clips = of_clips

    def forward(self, images: Tensor) -> Tensor:
        """Clips of one frame [B, C, 1, H, W] are taken, too, and give the target of clips."""
        target: Tensor = self.of_clips(as_clips(images))
        return target[:, 0] if images.ndim == 4 else target


@dataclass(frozen=True)
class Imported:
    """A model of PySlowFast's.

    Attributes:
        model: pre-training: ``model(clips, mask) -> predictions [B, t, h, w, K]``; classification:
            ``model(clips) -> logits [B, L]``. A model for images takes [B, C, H, W] and a mask [B, h, w], and
            predicts [B, h, w, K]; it also takes clips of one frame.
        target: ``target(clips) -> [B, t, h, w, K]``, of images [B, h, w, K]; None for a classifier.
        report: what was loaded and what had no part.
        clip: how its clips are cut and tested.
        mask: what pre-training hides; None for a classifier.
    """

    model: nn.Module
    target: Target | ImageTarget | None
    report: ImportReport
    clip: ClipFacts
    mask: MaskFacts | None


def load_slowfast(
    config_path: str | os.PathLike[str], checkpoint_path: str | os.PathLike[str], *, weights_key: str = ""
) -> Imported:
    """Build the model of a PySlowFast YAML and load its checkpoint (``.pyth``).

    Read so far, of MViTv2 and of plain vision transformers, of these for images too (``MVIT.PATCH_2D``):
    pre-training by mask tokens (``MODEL.MODEL_NAME: MaskMViT``, HOG or pixels), classification (``MViT``),
    and the masked autoencoders of video (``MASK.MAE_ON``). An option that would change the model and is not
    built here is refused by name, never passed over.

    Args:
        config_path: the YAML; keys that it leaves out have PySlowFast's defaults.
        checkpoint_path: a checkpoint of the same model. No code inside it is run.
        weights_key: which weights of a checkpoint that holds several; see
            :func:`~videomaskfeat.models.weights.read_weights`.

    Returns:
        Model (in evaluation mode), target, report, and how clips are cut and hidden.

    Raises:
        UserError: a file that is missing or damaged, an unknown or unsupported option, or weights that do
            not fit the YAML.
    """
    path = os.fspath(config_path)
    written = read_yaml(path)
    reader = _reader_of(path, written)
    options, ignored = typed_options(path, written, reader.keys)
    for key, wanted in reader.required.items():
        if options[key] != wanted:
            raise UserError(
                f"{path}: {key} is {options[key]!r} and only {wanted!r} is read here ({reader.kind})"
            )
    model, target = reader.build(path, options)
    weights = load_weights(model, checkpoint_path, key=weights_key, allow_unused=reader.allow_unused)
    return Imported(
        model.eval(),
        ImageTarget(target) if target is not None and options["MVIT.PATCH_2D"] else target,
        ImportReport(reader.kind, weights, ignored),
        clip_facts(path, options),
        None if target is None else mask_facts(path, options),
    )


@dataclass(frozen=True)
class _Reader:
    """How the YAMLs of one MODEL_NAME are read.

    ``keys`` count, with their defaults; ``required`` narrows them to what is built; ``allow_unused`` are
    weights of the checkpoint that our model does without.
    """

    kind: str
    keys: Mapping[str, Any]
    required: Mapping[str, Any]
    build: Callable[[str, Mapping[str, Any]], tuple[nn.Module, Target | None]]
    allow_unused: tuple[str, ...] = ()


def _reader_of(path: str, written: Mapping[str, Any]) -> _Reader:
    if not any(key.startswith("MODEL.") for key in written):
        raise UserError(
            f"{path}: is not a PySlowFast YAML: it has no section MODEL; give the YAML that the checkpoint "
            "was trained with"
        )
    name = written.get("MODEL.MODEL_NAME", "SlowFast")
    if not isinstance(name, str) or name not in _READERS:
        architecture = written.get("MODEL.ARCH")
        detail = f" (MODEL.ARCH {show_text(repr(architecture))})" if architecture else ""
        raise UserError(
            f"{path}: MODEL.MODEL_NAME {show_text(repr(name))}{detail} is not read; known kinds: "
            + ", ".join(f"{key} ({reader.kind})" for key, reader in _READERS.items() if key != "MAE")
        )
    return _READERS["MAE" if name == "MaskMViT" and written.get("MASK.MAE_ON") is True else name]


def _build_maskfeat(path: str, options: Mapping[str, Any]) -> tuple[nn.Module, Target]:
    """Mask tokens before MViTv2 or a vision transformer, with the HOG or the pixel target."""
    encoder = shortened(path, options, encoder_arguments(path, options))
    output_stride = encoder["cube_stride"]
    names = tuple(f"maskfeat_vit_{size}{_image(options)}" for size in "bslh")
    if not is_plain(options):
        pools = len(encoder["q_pool_at"])
        strides = zip(output_stride, encoder["q_pool_stride"], strict=True)
        output_stride = as_triple(cube * step**pools for cube, step in strides)
        names = ("maskfeat_mvitv2_s", "maskfeat_mvitv2_l")
    target: Target
    if options["MASK.PRED_HOG"]:
        target = HogTarget(_HOG_BINS, _HOG_CELL, encoder["cube_stride"], output_stride)
    else:
        target = _pixels(path, options, output_stride)
    name = _nearest_name(encoder, names)
    return create_unset(name, **encoder, values_per_token=target.values_per_token), target


def _build_mae(path: str, options: Mapping[str, Any]) -> tuple[nn.Module, Target]:
    """A masked autoencoder on a vision transformer."""
    if not is_plain(options):
        raise UserError(f"{path}: MASK.MAE_ON True with pooling (MVIT.POOL_Q_STRIDE): {dense_form()}")
    encoder = shortened(path, options, encoder_arguments(path, options))
    target = _pixels(path, options, encoder["cube_stride"])
    decoder = decoder_arguments(path, options)
    name = _nearest_name(encoder, tuple(f"mae_vit_{size}" for size in "bslh"))
    return create_unset(name, **encoder, **decoder, values_per_token=target.values_per_token), target


def _pixels(path: str, options: Mapping[str, Any], output_stride: Triple) -> PixelTarget:
    """The pixel target.

    Raises:
        UserError: pixels of images, whose order differs, or of all frames where PySlowFast reads one.
    """
    if options["MVIT.PATCH_2D"]:
        raise UserError(
            f"{path}: MASK.PRED_HOG False with MVIT.PATCH_2D True: pixels of images lie in another order "
            "there and are not read; HOG is"
        )
    first = options["MASK.TIME_STRIDE_LOSS"]
    if not first and not options["MASK.MAE_ON"]:
        raise UserError(f"{path}: MASK.TIME_STRIDE_LOSS False is read with MASK.MAE_ON True alone")
    return PixelTarget(
        normalised=options["MASK.NORM_PRED_PIXEL"],
        frames="first" if first else "all",
        output_stride=output_stride,
    )


def _build_classifier(path: str, options: Mapping[str, Any]) -> tuple[nn.Module, None]:
    """A classifier on MViTv2, in MaskFeat's form or in that of the supervised models, or on a ViT."""
    encoder = encoder_arguments(path, options)
    head = head_arguments(path, options)
    if is_plain(options):
        names = tuple(f"vit_{size}{_image(options)}" for size in "bslh")
    elif encoder["widen_in"] == "mlp":
        names = ("maskfeat_mvitv2_s_classifier", "maskfeat_mvitv2_l_classifier")
    else:
        names = ("mvitv2_s", "mvitv2_b", "mvitv2_l")
    return create_unset(_nearest_name(encoder, names), **encoder, **head), None


def _image(options: Mapping[str, Any]) -> str:
    """The ending of the names of models for images."""
    return "_image" if options["MVIT.PATCH_2D"] else ""


def _nearest_name(encoder: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """The named model of this depth and width or this depth, or the first; all arguments are given anyway."""
    same = [name for name in names if MODELS[name].arguments["depth"] == encoder["depth"]]
    same.sort(key=lambda name: MODELS[name].arguments["width"] != encoder["width"])
    return same[0] if same else names[0]


_READERS = {
    "MaskMViT": _Reader(
        kind="MaskFeat pre-training",
        keys={**ENCODER, **PRETRAINING, **CLIP},
        required={
            "MASK.ENABLE": True,
            "MASK.MAE_ON": False,
            "MASK.MAE_RND_MASK": False,
            "MASK.HEAD_TYPE": "separate",
        },
        build=_build_maskfeat,
        allow_unused=_TARGET_BUFFERS,
    ),
    "MAE": _Reader(
        kind="MAE pre-training",
        keys={**ENCODER, **PRETRAINING, **DECODER, **CLIP},
        required={
            "MASK.ENABLE": True,
            "MASK.MAE_ON": True,
            "MASK.PRED_HOG": False,
            "MASK.HEAD_TYPE": "separate_xformer",
        },
        build=_build_mae,
    ),
    "MViT": _Reader(
        kind="classification",
        keys={**ENCODER, **CLASSIFICATION, **CLIP},
        required={},
        build=_build_classifier,
    ),
}
