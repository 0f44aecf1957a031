"""PySlowFast's YAMLs and checkpoints -> our models.

Facts from PySlowFast at commit 287ec00: `slowfast/config/defaults.py` for keys absent from a YAML,
`slowfast/models/masked.py` for the pre-training model.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from torch import nn

from videomaskfeat.errors import UserError, nearest
from videomaskfeat.interop.slowfast_keys import DEFAULTS, FIXED, IGNORED_SECTIONS, NO_EFFECT
from videomaskfeat.io import open_file
from videomaskfeat.models import create_model
from videomaskfeat.models.cubes import Triple, as_triple
from videomaskfeat.models.weights import LoadReport, load_into, read_state
from videomaskfeat.targets.hog import HogTarget

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
        ignored_keys: keys of the YAML that cannot change the model or its target, such as ``SOLVER.BASE_LR``.
    """

    kind: str
    weights: LoadReport
    ignored_keys: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.kind}: {self.weights}; {len(self.ignored_keys)} keys have no part in the model"


@dataclass(frozen=True)
class Imported:
    """A model of PySlowFast's.

    Attributes:
        model: pre-training: ``model(clips, mask) -> predictions [B, t, h, w, K]``.
        target: ``target(clips) -> [B, t, h, w, K]``.
        report: what was loaded and what had no part.
    """

    model: nn.Module
    target: nn.Module | None
    report: ImportReport


def load_slowfast(config_path: str | os.PathLike[str], checkpoint_path: str | os.PathLike[str]) -> Imported:
    """Build the model of a PySlowFast YAML and load its checkpoint (``.pyth``).

    Read so far: video MaskFeat pre-training (``MODEL.MODEL_NAME: MaskMViT`` with ``MASK.PRED_HOG``). An
    option that would change the model and is not built here is refused by name, never passed over.

    Args:
        config_path: the YAML; keys that it leaves out have PySlowFast's defaults.
        checkpoint_path: a checkpoint of the same model. No code inside it is run.

    Returns:
        Model (in evaluation mode), target and report.

    Raises:
        UserError: a file that is missing or damaged, an unknown or unsupported option, or weights that do
            not fit the YAML.
    """
    path = os.fspath(config_path)
    options, ignored = _read_options(path)
    name = options["MODEL.MODEL_NAME"]
    if name not in _READERS:
        raise UserError(
            f"{path}: MODEL.MODEL_NAME {name!r} is not read; known kinds: "
            + ", ".join(f"{key} ({reader.kind})" for key, reader in _READERS.items())
        )
    reader = _READERS[name]
    for key, wanted in reader.required.items():
        if options[key] != wanted:
            raise UserError(
                f"{path}: {key} is {options[key]!r} and only {wanted!r} is read here ({reader.kind})"
            )
    model, target = reader.build(path, options)
    weights = load_into(
        model,
        read_state(checkpoint_path),
        allow_unused=_TARGET_BUFFERS,
        source=os.fspath(checkpoint_path),
    )
    return Imported(model.eval(), target, ImportReport(reader.kind, weights, ignored))


def _read_options(path: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The options that shape a model, as SECTION.KEY, with defaults; and the keys that do not."""
    with open_file(path) as file:
        try:
            content = yaml.safe_load(file)
        except yaml.YAMLError as error:
            raise UserError(f"{path}: is not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: is not a PySlowFast YAML: it has no sections such as MVIT and MODEL")
    options, ignored = dict(DEFAULTS), []
    for key, value in _flatten(content):
        section = key.partition(".")[0]
        if key in FIXED:
            if not any(_plain(value) == allowed for allowed in FIXED[key]):
                expected = " or ".join(map(repr, FIXED[key]))
                raise UserError(f"{path}: {key} {value!r} is not supported; only {expected} is")
        elif key in DEFAULTS:
            options[key] = _typed(path, key, _plain(value))
        elif key in NO_EFFECT or section in IGNORED_SECTIONS:
            ignored.append(key)
        else:
            known = [*DEFAULTS, *FIXED, *NO_EFFECT]
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
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def _typed(path: str, key: str, value: Any) -> Any:
    """``value`` in the type of the key's default: a float may be written as an integer, a tuple as a list."""
    default = DEFAULTS[key]
    if isinstance(default, tuple) and isinstance(value, list | tuple):
        return _as_tuple(value)
    if isinstance(default, float) and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if type(value) is type(default):
        return value
    raise UserError(f"{path}: {key} {value!r} should be a {type(default).__name__}, such as {default!r}")


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(entry) for entry in value) if isinstance(value, list | tuple) else value


def _build_video_maskfeat(path: str, options: Mapping[str, Any]) -> tuple[nn.Module, nn.Module]:
    """MaskFeat on MViTv2 with the HOG target."""
    encoder = _encoder_arguments(path, options)
    last = options["MASK.PRETRAIN_DEPTH"]
    if len(last) != 1 or not 0 <= last[0] < encoder["depth"]:
        raise UserError(
            f"{path}: MASK.PRETRAIN_DEPTH {last} is not supported; one block of 0..{encoder['depth'] - 1} is"
        )
    # PySlowFast deletes the blocks after the one that predicts. A width that doubles in the perceptron of
    # the last block kept belongs to the next one, hence depth itself for "mlp".
    depth = last[0] + 1
    widen_limit = depth if encoder["widen_in"] == "mlp" else depth - 1
    encoder |= {
        "depth": depth,
        "widen_at": tuple(block for block in encoder["widen_at"] if block <= widen_limit),
        "q_pool_at": tuple(block for block in encoder["q_pool_at"] if block < depth),
    }
    pools = len(encoder["q_pool_at"])
    strides = zip(encoder["cube_stride"], encoder["q_pool_stride"], strict=True)
    output_stride = as_triple(cube * step**pools for cube, step in strides)
    target = HogTarget(_HOG_BINS, _HOG_CELL, encoder["cube_stride"], output_stride)
    model = create_model("maskfeat_mvitv2_s", **encoder, values_per_token=target.values_per_token)
    return model, target


def _encoder_arguments(path: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of our MViT for PySlowFast's MVIT section."""
    depth = options["MVIT.DEPTH"]
    if options["DATA.TRAIN_CROP_SIZE"] != options["DATA.TEST_CROP_SIZE"]:
        raise UserError(
            f"{path}: DATA.TRAIN_CROP_SIZE and TEST_CROP_SIZE differ; an MViT of PySlowFast has one size"
        )
    crop = options["DATA.TRAIN_CROP_SIZE"]
    q_pool_at, q_pool_stride = _query_pooling(path, options)
    absolute = "none"
    if options["MVIT.USE_ABS_POS"]:
        absolute = "separable" if options["MVIT.SEP_POS_EMBED"] else "joint"
    return {
        "clip_size": (options["DATA.NUM_FRAMES"], crop, crop),
        "in_channels": options["DATA.INPUT_CHANNEL_NUM"][0],
        "depth": depth,
        "width": options["MVIT.EMBED_DIM"],
        "heads": options["MVIT.NUM_HEADS"],
        "widen_at": _widening(path, options),
        "widen_in": "attention" if options["MVIT.DIM_MUL_IN_ATT"] else "mlp",
        "q_pool_at": q_pool_at,
        "q_pool_stride": q_pool_stride,
        "kv_stride": _triple(path, options, "MVIT.POOL_KV_STRIDE_ADAPTIVE"),
        "pool_kernel": _triple(path, options, "MVIT.POOL_KVQ_KERNEL"),
        "cube_kernel": _triple(path, options, "MVIT.PATCH_KERNEL"),
        "cube_stride": _triple(path, options, "MVIT.PATCH_STRIDE"),
        "cube_padding": _triple(path, options, "MVIT.PATCH_PADDING"),
        "mlp_ratio": options["MVIT.MLP_RATIO"],
        "qkv_bias": options["MVIT.QKV_BIAS"],
        "class_token": options["MVIT.CLS_EMBED_ON"],
        "absolute_positions": absolute,
        "relative_space": options["MVIT.REL_POS_SPATIAL"],
        "relative_time": options["MVIT.REL_POS_TEMPORAL"],
        "residual_pooling": options["MVIT.RESIDUAL_POOLING"],
        "drop_path": options["MVIT.DROPPATH_RATE"],
        "checkpoint_blocks": options["MODEL.ACT_CHECKPOINT"],
    }


def _query_pooling(path: str, options: Mapping[str, Any]) -> tuple[tuple[int, ...], Triple]:
    """Blocks that pool their queries, and their common stride."""
    rows = options["MVIT.POOL_Q_STRIDE"]
    depth = options["MVIT.DEPTH"]
    listed = {row[0]: tuple(row[1:]) for row in rows if len(row) == 4}
    if len(listed) != len(rows) or set(listed) != set(range(depth)):
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
    if sorted(widths) != sorted(heads) or any(factor != 2 for _, factor in widths):
        raise UserError(
            f"{path}: MVIT.DIM_MUL {widths} and MVIT.HEAD_MUL {heads} must be equal, with factor 2"
        )
    return tuple(sorted(block for block, _ in widths))


def _triple(path: str, options: Mapping[str, Any], key: str) -> Triple:
    value = options[key]
    if len(value) != 3 or any(type(entry) is not int for entry in value):
        raise UserError(f"{path}: {key} {value} must be three integers (time, height, width)")
    return as_triple(value)


@dataclass(frozen=True)
class _Reader:
    """How the YAMLs of one MODEL_NAME are read; ``required`` narrows them to what is built."""

    kind: str
    required: dict[str, Any]
    build: Callable[[str, Mapping[str, Any]], tuple[nn.Module, nn.Module | None]]


_READERS = {
    "MaskMViT": _Reader(
        "video MaskFeat pre-training",
        {
            "MVIT.PATCH_2D": False,
            "MASK.ENABLE": True,
            "MASK.MAE_ON": False,
            "MASK.PRED_HOG": True,
            "MASK.MAE_RND_MASK": False,
            "MASK.HEAD_TYPE": "separate",
        },
        _build_video_maskfeat,
    ),
}
