"""Keys of PySlowFast YAMLs: those that are read, with their defaults, and those without effect.

Defaults as in `slowfast/config/defaults.py` at commit 287ec00. A key has an effect only on the kinds of model
whose group contains it.
"""

from __future__ import annotations

import ast
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from videomaskfeat.errors import UserError, nearest
from videomaskfeat.texts import show_text
from videomaskfeat.yaml_files import read_yaml as read_plain_yaml

# An empty tuple stands for PySlowFast's default None (a kernel, an adaptive stride); the reader refuses it if
# it needs a value.
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
    "MVIT.POOL_KV_STRIDE": (),
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
# Keys with rows of numbers, such as [[1, 2.0], [3, 2.0]]; other lists contain numbers.
ROWS = frozenset({"MVIT.DIM_MUL", "MVIT.HEAD_MUL", "MVIT.POOL_KV_STRIDE", "MVIT.POOL_Q_STRIDE"})
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
# Keys of action detectors; without DETECTION.ENABLE they are ignored.
DETECTION: dict[str, Any] = {
    "DETECTION.ENABLE": False,
    "DETECTION.ALIGNED": True,
    "DETECTION.SPATIAL_SCALE_FACTOR": 16,
    "DETECTION.ROI_XFORM_RESOLUTION": 7,
}
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
    "DATA.IN_VAL_CROP_RATIO": 0.875,
    "TRAIN.DATASET": "kinetics",
    "TEST.DATASET": "kinetics",
    "TEST.NUM_ENSEMBLE_VIEWS": 10,
    "TEST.NUM_SPATIAL_CROPS": 3,
    "TEST.NUM_TEMPORAL_CLIPS": (),
}
# Keys that would change the model, with the only supported values (their defaults).
FIXED: dict[str, tuple[Any, ...]] = {
    "MVIT.MODE": ("conv",),
    "MVIT.POOL_FIRST": (False,),
    "MVIT.LAYER_SCALE_INIT_VALUE": (0, 0.0),
    "MVIT.NORM": ("layernorm",),
    "MVIT.NORM_STEM": (False,),
    "MVIT.DROPOUT_RATE": (0, 0.0),
    "MVIT.SEPARATE_QKV": (False,),
    "MVIT.USE_FIXED_SINCOS_POS": (False,),
    "MVIT.REV.ENABLE": (False,),
    "DETECTION.ENABLE": (False,),
    "MODEL.ARCH": ("maskmvit", "mvit"),
    "CONTRASTIVE.NUM_MLP_LAYERS": (1,),
}
# Keys that affect only training, initial values or other kinds of model. Any other key of these sections is
# refused: it may be a misspelled key from above.
_NO_EFFECT = {
    "MVIT": "ZERO_DECAY_POS_CLS REL_POS_ZERO_INIT REV.RESPATH_FUSE REV.BUFFER_LAYERS REV.RES_PATH "
    "REV.PRE_Q_FUSION",
    "MASK": "PER_FRAME_MASKING SCALE_INIT_BY_DEPTH DEC_KV_KERNEL DEC_KV_STRIDE",
    "TRAIN": "ENABLE BATCH_SIZE AUTO_RESUME MIXED_PRECISION EVAL_PERIOD CHECKPOINT_PERIOD "
    "KILL_LOSS_EXPLOSION_FACTOR CHECKPOINT_FILE_PATH CHECKPOINT_TYPE CHECKPOINT_INFLATE "
    "CHECKPOINT_EPOCH_RESET CHECKPOINT_IN_INIT CHECKPOINT_CLEAR_NAME_PATTERN",
    "TEST": "ENABLE BATCH_SIZE SAVE_RESULTS_PATH CHECKPOINT_FILE_PATH CHECKPOINT_TYPE",
    "AUG": "ENABLE NUM_SAMPLE COLOR_JITTER AA_TYPE INTERPOLATION RE_PROB RE_MODE RE_COUNT RE_SPLIT "
    "GEN_MASK_LOADER MAX_MASK_PATCHES_PER_BLOCK",
    "MODEL": "LOSS_FUNC SINGLE_PATHWAY_ARCH MULTI_PATHWAY_ARCH DROPCONNECT_RATE FC_INIT_STD DETACH_FINAL_FC "
    "FROZEN_BN FP16_ALLREDUCE",
    "DATA": "PATH_TO_DATA_DIR PATH_LABEL_SEPARATOR PATH_PREFIX PATH_TO_PRELOAD_IMDB TRAIN_PCA_EIGVAL "
    "TRAIN_PCA_EIGVEC TRAIN_JITTER_SCALES_RELATIVE TRAIN_JITTER_ASPECT_RELATIVE TRAIN_JITTER_MOTION_SHIFT "
    "TRAIN_JITTER_FPS TRAIN_CROP_NUM_TEMPORAL TRAIN_CROP_NUM_SPATIAL DECODING_BACKEND DECODING_SHORT_SIZE "
    "INV_UNIFORM_SAMPLE COLOR_RND_GRAYSCALE SKIP_ROWS TIME_DIFF_PROB DUMMY_LOAD LOADER_CHUNK_SIZE "
    "LOADER_CHUNK_OVERALL_SIZE SSL_COLOR_JITTER SSL_COLOR_BRI_CON_SAT SSL_COLOR_HUE SSL_MOCOV2_AUG "
    "SSL_BLUR_SIGMA_MIN SSL_BLUR_SIGMA_MAX IN22K_TRAINVAL IN22k_VAL_IN1K",
    "": "TASK NUM_GPUS NUM_SHARDS SHARD_ID OUTPUT_DIR RNG_SEED LOG_PERIOD LOG_MODEL_INFO DIST_BACKEND",
}
NO_EFFECT = frozenset(
    f"{section}.{key}".lstrip(".") for section, keys in _NO_EFFECT.items() for key in keys.split()
)
# Sections about training, data loading and visualization. PREFETCH, in the public YAMLs of SSv2, is unknown
# to PySlowFast too.
_SECTIONS = """SOLVER MIXUP BN DATA_LOADER DETECTION CONTRASTIVE RESNET SLOWFAST X3D TENSORBOARD VIS_MASK DEMO
BENCHMARK MULTIGRID PREFETCH AVA SSV2 NONLOCAL IMAGENET VISUALIZATION"""
IGNORED_SECTIONS = frozenset(_SECTIONS.split())
_MAX_LITERAL, _MAX_BRACKETS = 1000, 100
_LIMIT = 2**63
_READ = {**ENCODER, **PRETRAINING, **DECODER, **CLASSIFICATION, **CLIP}
SUPPORTED: tuple[tuple[str, bool, bool], ...] = (
    ("MaskFeat on MViTv2, videos", True, True),
    ("MaskFeat on ViT, videos", True, True),
    ("MaskFeat on ViT, images", True, True),
    ("MAE on ViT, videos", True, True),
    ("MAE on ViT, images", False, False),
    ("classifier on MViTv2, videos", True, True),
    ("classifier on MViTv2, images", True, True),
    ("classifier on ViT, videos", True, True),
    ("classifier on ViT, images", True, True),
    ("action detector on MViTv2 or ViT", True, False),
    ("MViTv1, SlowFast, X3D, ResNets and other models", False, False),
)
"""Kinds of models of PySlowFast, whether they are imported, and whether ours are exported.

README, docs/how_to/come_from_pyslowfast.md and ``import-slowfast --help`` have the same rows.
"""


class Options(dict[str, Any]):
    """Typed values by SECTION.KEY, and the path of their YAML for error messages."""

    def __init__(self, path: str, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.path = path


def read_yaml(path: str) -> Mapping[str, Any]:
    """Read a YAML as SECTION.KEY -> value.

    Half of the public YAMLs repeat a key, such as SOLVER.COSINE_AFTER_WARMUP; the last value counts, as in
    PySlowFast.

    Raises:
        UserError: the file is missing, is not YAML, or has no sections.
    """
    content = read_plain_yaml(path, what="a PySlowFast YAML", last_key=True)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} is not a PySlowFast YAML: it has no sections such as MVIT and MODEL")
    return dict(_flatten(content))


def typed_options(
    path: str, written: Mapping[str, Any], defaults: Mapping[str, Any]
) -> tuple[Options, tuple[str, ...]]:
    """Split a YAML into typed options that affect a kind of model, and keys without effect on it.

    Args:
        path: path of the YAML, for error messages.
        written: result of :func:`read_yaml`.
        defaults: keys with an effect, and their defaults.

    Returns:
        All keys of ``defaults`` with their values; keys of the YAML without effect.

    Raises:
        UserError: a value is not supported or has the wrong type, or a key is unknown.
    """
    options, ignored = Options(path, defaults), []
    for key, value in written.items():
        section = key.partition(".")[0]
        if key in defaults:
            options[key] = typed_value(path, key, plain_value(value), defaults[key])
        elif key in FIXED:
            if not any(plain_value(value) == allowed for allowed in FIXED[key]):
                supported = " or ".join(map(repr, FIXED[key]))
                raise UserError(f"{path}: {key} {value!r} is not supported; only {supported} is")
        elif key in _READ or key in NO_EFFECT or section in IGNORED_SECTIONS:
            ignored.append(key)
        elif key != "MODEL.MODEL_NAME":
            known = [*_READ, *FIXED, *NO_EFFECT]
            raise UserError(f"{path}: unknown key {key}{nearest(key, known)}; it may change the model")
    return options, tuple(ignored)


def _flatten(content: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested sections as (SECTION.KEY, value) pairs."""
    pairs: list[tuple[str, Any]] = []
    for key, value in content.items():
        name = f"{prefix}{key}"
        pairs += _flatten(value, f"{name}.") if isinstance(value, Mapping) else [(name, value)]
    return pairs


def plain_value(value: Any) -> Any:
    """The value as PySlowFast reads it: ``"(2, 4, 4)"`` is a tuple, ``"1e-6"`` a number, "None" is None."""
    if not isinstance(value, str) or len(value) > _MAX_LITERAL or value.count("(") > _MAX_BRACKETS:
        return value
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the spelling of numbers
            return ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value


def typed_value(path: str, key: str, value: Any, default: Any) -> Any:
    """Convert a value to the type of its default: an integer to a float, a list to a tuple."""
    if isinstance(default, tuple) and isinstance(value, list | tuple):
        return _as_tuple(path, key, value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{path}: {key} is {value}; it must be a finite number")
    if number and isinstance(default, float) and abs(value) < _LIMIT:
        return float(value)
    if type(value) is type(default) and not (number and abs(value) >= _LIMIT):
        return value
    raise UserError(
        f"{path}: {key} {show_text(repr(value))} must be of type {type(default).__name__}, "
        f"such as {default!r}"
    )


def _as_tuple(path: str, key: str, value: Sequence[Any]) -> tuple[Any, ...]:
    """Numbers as a tuple, or rows of numbers as a tuple of tuples."""
    rows = value if key in ROWS else [value]
    for row in rows:
        if not isinstance(row, list | tuple) or not all(map(_is_number, row)):
            entries = "lists of numbers, one per block" if key in ROWS else "numbers"
            raise UserError(f"{path}: {key} {show_text(repr(value))} must be a list of {entries}")
    return tuple(map(tuple, rows)) if key in ROWS else tuple(value)


def _is_number(value: Any) -> bool:
    """Whether a value is a finite number, but not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LIMIT
