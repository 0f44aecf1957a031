"""From PySlowFast's YAMLs and checkpoints to our models."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from videomaskfeat.errors import UserError
from videomaskfeat.interop.slowfast_clips import ClipFacts, MaskFacts, clip_facts, mask_facts
from videomaskfeat.interop.slowfast_encoder import encoder_arguments, is_plain
from videomaskfeat.interop.slowfast_keys import (
    CLASSIFICATION,
    CLIP,
    DECODER,
    DETECTION,
    ENCODER,
    PRETRAINING,
    Options,
    read_yaml,
    typed_options,
)
from videomaskfeat.interop.slowfast_training import Task, Training, translate_training
from videomaskfeat.models.encoder_base import Encoder, Triple, as_clips, as_triple
from videomaskfeat.models.load_report import LoadReport
from videomaskfeat.models.loading import load_weights
from videomaskfeat.models.zoo import DENSE_FORM, MODELS, create_model_from
from videomaskfeat.targets.hog import HogTarget
from videomaskfeat.targets.pixels import PixelTarget
from videomaskfeat.targets.target import Target
from videomaskfeat.texts import show_text

_HOG_CELL = 8  # pixels; fixed in PySlowFast
_HOG_BINS = 9
_SIZES = "bslh"
NAMES: dict[tuple[str, str], tuple[str, ...]] = {
    ("pre-training", "pooling"): ("maskfeat_mvitv2_s", "maskfeat_mvitv2_l"),
    ("pre-training", "plain"): tuple(f"maskfeat_vit_{size}" for size in _SIZES),
    ("pre-training", "image"): tuple(f"maskfeat_vit_{size}_image" for size in _SIZES),
    ("MAE", "plain"): tuple(f"mae_vit_{size}" for size in _SIZES),
    ("MAE", "image"): tuple(f"mae_vit_{size}" for size in _SIZES),
    ("classification", "pooling"): ("mvitv2_s", "mvitv2_b", "mvitv2_l"),
    ("classification", "mlp"): ("maskfeat_mvitv2_s_classifier", "maskfeat_mvitv2_l_classifier"),
    ("classification", "plain"): tuple(f"vit_{size}" for size in _SIZES),
    ("classification", "image"): tuple(f"vit_{size}_image" for size in _SIZES),
    ("detection", "pooling"): ("maskfeat_mvitv2_s_detector", "maskfeat_mvitv2_l_detector"),
    ("detection", "plain"): tuple(f"vit_{size}_detector" for size in _SIZES),
}
"""Our model names by (task, kind of encoder), the first is the default; "mlp" pools and widens in its
MLPs.
"""


@dataclass(frozen=True)
class ImportReport:
    """The use of checkpoint and YAML.

    Attributes:
        kind: kind of model, as text.
        weights: use of each weight in the checkpoint.
        ignored_keys: keys of the YAML without effect on model, target and clips, such as ``SOLVER.BASE_LR``.
    """

    kind: str
    weights: LoadReport
    ignored_keys: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.kind}: {self.weights}; {len(self.ignored_keys)} keys without effect on the model"


class ImageTarget(nn.Module):
    """A target for images: [B, C, H, W] -> [B, h, w, K]; also accepts clips of one frame.

    Attributes:
        of_clips: the same target for clips of one frame.
    """

    def __init__(self, of_clips: Target) -> None:
        super().__init__()
        self.of_clips = of_clips

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] -> [B, h, w, K], or clips [B, C, 1, H, W] -> [B, 1, h, w, K]."""
        target: Tensor = self.of_clips(as_clips(images))
        return target[:, 0] if images.ndim == 4 else target


@dataclass(frozen=True)
class Imported:
    """A model imported from PySlowFast.

    Attributes:
        model: for pre-training ``model(clips, mask) -> predictions [B, t, h, w, K]``, for classification
            ``model(clips) -> logits [B, L]``, for action detection ``model(clips, boxes [R, 5]) -> logits
            [R, L]``. An image model accepts images [B, C, H, W] with a mask [B, h,
            w], and predicts [B, h, w, K]; it also accepts clips of one frame.
        target: ``target(clips) -> [B, t, h, w, K]``, for images [B, h, w, K]; None without pre-training.
        report: loaded weights and ignored keys.
        clip, mask: clips, test protocol and masks; mask is None without pre-training.
        training: training keys as keys of our configs.
    """

    model: nn.Module
    target: Target | ImageTarget | None
    report: ImportReport
    clip: ClipFacts
    mask: MaskFacts | None
    training: Training


def load_slowfast(
    config_path: str | os.PathLike[str], checkpoint_path: str | os.PathLike[str], *, weights_key: str = ""
) -> Imported:
    """Build the model of a PySlowFast YAML and load its checkpoint (``.pyth``).

    Supported are MViTv2 and plain vision transformers, also for images (``MVIT.PATCH_2D``), in pre-training
    with mask tokens (``MODEL.MODEL_NAME: MaskMViT``, HOG or pixels; images on a ViT only), classification
    (``MViT``) and action detection (``DETECTION.ENABLE``), and masked autoencoders for video
    (``MASK.MAE_ON``). Any other option that would change the
    model is an error. All keys are listed in :mod:`~videomaskfeat.interop.slowfast_keys`.

    Args:
        config_path: the YAML; missing keys have PySlowFast's defaults.
        checkpoint_path: a checkpoint of the same model. No code in it is run.
        weights_key: key of the weights, if the checkpoint contains several sets; see
            :func:`~videomaskfeat.models.weights.read_weights`.

    Returns:
        Model (in evaluation mode), target, report, clips and masks.

    Raises:
        UserError: a file is missing or damaged, an option is unknown or unsupported, or the weights do not
            fit the YAML.
    """
    described, allow_unused = _describe(config_path)
    model = described.model.to_empty(device="cpu")
    weights = load_weights(model, checkpoint_path, key=weights_key, allow_unused=allow_unused)
    return replace(described, model=model.eval(), report=replace(described.report, weights=weights))


def describe_slowfast(config_path: str | os.PathLike[str]) -> Imported:
    """:func:`load_slowfast` without a checkpoint: the model is on torch's "meta" device, without weights.

    Raises:
        UserError: as :func:`load_slowfast`, for the YAML.
    """
    return _describe(config_path)[0]


def _describe(config_path: str | os.PathLike[str]) -> tuple[Imported, tuple[str, ...]]:
    """The content of a YAML, and the weights that its checkpoint may have in excess."""
    path = os.fspath(config_path)
    written = read_yaml(path)
    reader = _reader_of(path, written)
    options, ignored = typed_options(path, written, reader.keys)
    for key, required in reader.required.items():
        if options[key] != required:
            raise UserError(
                f"{path}: {key} is {options[key]!r}, but {reader.kind} supports only {required!r}"
            )
    model, target = reader.build(options)
    described = Imported(
        model,
        ImageTarget(target) if target is not None and options["MVIT.PATCH_2D"] else target,
        ImportReport(reader.kind, LoadReport((), (), (), ()), ignored),
        clip_facts(options),
        None if target is None else mask_facts(options),
        translate_training(path, written, options, task=reader.task),
    )
    return described, reader.allow_unused


@dataclass(frozen=True)
class _Reader:
    """How to read the YAMLs of one MODEL_NAME: keys with defaults, required values, and unused weights."""

    kind: str
    keys: Mapping[str, Any]
    required: Mapping[str, Any]
    build: Callable[[Options], tuple[nn.Module, Target | None]]
    task: Task
    allow_unused: tuple[str, ...] = ()


def _reader_of(path: str, written: Mapping[str, Any]) -> _Reader:
    if not any(key.startswith("MODEL.") for key in written):
        raise UserError(
            f"{path} is not a PySlowFast YAML: it has no section MODEL; use the YAML that the checkpoint was "
            "trained with"
        )
    name = written.get("MODEL.MODEL_NAME", "SlowFast")
    if not isinstance(name, str) or name not in _MODEL_NAMES:
        architecture = written.get("MODEL.ARCH")
        detail = f" (MODEL.ARCH {show_text(repr(architecture))})" if architecture else ""
        raise UserError(
            f"{path}: MODEL.MODEL_NAME {show_text(repr(name))}{detail} is not supported; supported names: "
            + ", ".join(f"{key} ({_READERS[key].kind})" for key in _MODEL_NAMES)
        )
    if name == "MaskMViT":
        return _READERS["MAE" if written.get("MASK.MAE_ON") is True else name]
    return _READERS["AVA" if written.get("DETECTION.ENABLE") is True else name]


def _create_meta(name: str, **arguments: Any) -> Encoder:
    """A named model on torch's "meta" device."""
    with torch.device("meta"):
        return create_model_from(name, arguments)


def _build_maskfeat(options: Options) -> tuple[nn.Module, Target]:
    """A mask-token model on MViTv2 or a vision transformer, with the HOG or the pixel target."""
    if options["MVIT.PATCH_2D"] and not is_plain(options):
        raise UserError(
            f"{options.path}: MVIT.PATCH_2D True is not supported with pooling (MVIT.POOL_Q_STRIDE) in "
            "pre-training; use a plain vision transformer"
        )
    encoder = _shortened(options, encoder_arguments(options))
    output_stride = encoder["cube_stride"]
    if not is_plain(options):
        pools = len(encoder["q_pool_at"])
        strides = zip(output_stride, encoder["q_pool_stride"], strict=True)
        output_stride = as_triple(cube * step**pools for cube, step in strides)
    target: Target
    if options["MASK.PRED_HOG"]:
        target = HogTarget(_HOG_BINS, _HOG_CELL, encoder["cube_stride"], output_stride)
    else:
        target = _pixels(options, output_stride)
    name = _nearest_name("pre-training", options, encoder)
    return _create_meta(name, **encoder, values_per_token=target.values_per_token), target


def _build_mae(options: Options) -> tuple[nn.Module, Target]:
    """A masked autoencoder on a vision transformer."""
    if not is_plain(options):
        raise UserError(f"{options.path}: MASK.MAE_ON True with pooling (MVIT.POOL_Q_STRIDE): {DENSE_FORM}")
    encoder = _shortened(options, encoder_arguments(options))
    target = _pixels(options, encoder["cube_stride"])
    decoder = _decoder_arguments(options)
    name = _nearest_name("MAE", options, encoder)
    return _create_meta(name, **encoder, **decoder, values_per_token=target.values_per_token), target


def _build_classifier(options: Options) -> tuple[nn.Module, None]:
    """A classifier on MViTv2, in MaskFeat's or the supervised form, or on a vision transformer."""
    encoder = encoder_arguments(options)
    head = _head_arguments(options)
    return _create_meta(_nearest_name("classification", options, encoder), **encoder, **head), None


def _build_detector(options: Options) -> tuple[nn.Module, None]:
    """An action detector on MViTv2 or a vision transformer, without scene features."""
    encoder = encoder_arguments(options)
    model = _create_meta(
        _nearest_name("detection", options, encoder),
        **encoder,
        classes=options["MODEL.NUM_CLASSES"],
        bins=options["DETECTION.ROI_XFORM_RESOLUTION"],
        dropout=options["MODEL.DROPOUT_RATE"],
        head_scale=options["MVIT.HEAD_INIT_SCALE"],
    )
    scale = options["DETECTION.SPATIAL_SCALE_FACTOR"]
    if model.output_stride[1] != scale:
        raise UserError(
            f"{options.path}: DETECTION.SPATIAL_SCALE_FACTOR {scale} must be the pixels per cell of the last "
            f"block, {model.output_stride[1]}; in MVIT.POOL_Q_STRIDE, the last pooling may have stride 1"
        )
    return model, None


def _nearest_name(task: str, options: Options, encoder: Mapping[str, Any]) -> str:
    """The named model of this depth and width, or of this depth; all arguments are passed anyway."""
    if is_plain(options):
        kind = "image" if options["MVIT.PATCH_2D"] else "plain"
    else:
        kind = "mlp" if task == "classification" and encoder["widen_in"] == "mlp" else "pooling"
    names = NAMES[task, kind]
    same = [name for name in names if MODELS[name].arguments["depth"] == encoder["depth"]]
    same.sort(key=lambda name: MODELS[name].arguments["width"] != encoder["width"])
    return same[0] if same else names[0]


def _pixels(options: Options, output_stride: Triple) -> PixelTarget:
    if options["MVIT.PATCH_2D"]:
        raise UserError(
            f"{options.path}: MASK.PRED_HOG False with MVIT.PATCH_2D True is "
            f"not supported, because the pixel order "
            "of images differs; only HOG is"
        )
    first = options["MASK.TIME_STRIDE_LOSS"]
    if not first and not options["MASK.MAE_ON"]:
        raise UserError(
            f"{options.path}: MASK.TIME_STRIDE_LOSS False is supported only with MASK.MAE_ON True"
        )
    return PixelTarget(
        normalized=options["MASK.NORM_PRED_PIXEL"],
        frames="first" if first else "all",
        output_stride=output_stride,
    )


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
        task="pretrain",
        # PySlowFast's checkpoints contain the Sobel kernels of its HOG layer; ours are part of the target.
        allow_unused=("hogs.*.weight_x", "hogs.*.weight_y"),
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
        task="pretrain",
    ),
    "MViT": _Reader(
        kind="classification",
        keys={**ENCODER, **CLASSIFICATION, **CLIP},
        required={},
        build=_build_classifier,
        task="finetune",
    ),
    "AVA": _Reader(
        kind="action detection",
        keys={**ENCODER, **CLASSIFICATION, **DETECTION, **CLIP},
        required={"DETECTION.ALIGNED": True, "MODEL.HEAD_ACT": "sigmoid", "MVIT.PATCH_2D": False},
        build=_build_detector,
        task="detect",
    ),
}
_MODEL_NAMES = ("MaskMViT", "MViT")


def _shortened(options: Options, encoder: Mapping[str, Any]) -> dict[str, Any]:
    """The encoder up to the block that predicts; PySlowFast deletes the later blocks."""
    last = options["MASK.PRETRAIN_DEPTH"]
    if len(last) != 1 or not 0 <= last[0] < encoder["depth"]:
        raise UserError(
            f"{options.path}: MASK.PRETRAIN_DEPTH {last} must be one block in 0..{encoder['depth'] - 1}"
        )
    depth = last[0] + 1
    if is_plain(options):
        return {**encoder, "depth": depth}
    # With "mlp", the perceptron of the last block may double the width for block `depth`.
    widen_limit = depth if encoder["widen_in"] == "mlp" else depth - 1
    return {
        **encoder,
        "depth": depth,
        "widen_at": tuple(block for block in encoder["widen_at"] if block <= widen_limit),
        "q_pool_at": tuple(block for block in encoder["q_pool_at"] if block < depth),
    }


def _decoder_arguments(options: Options) -> dict[str, Any]:
    """Arguments of our MAE's decoder."""
    width, depth = options["MASK.DECODER_EMBED_DIM"], options["MASK.DECODER_DEPTH"]
    if options["MASK.DECODER_SEP_POS_EMBED"] or not options["MVIT.USE_ABS_POS"]:
        raise UserError(
            f"{options.path}: MASK.DECODER_SEP_POS_EMBED True and "
            f"MVIT.USE_ABS_POS False are not supported: the "
            "decoder has one learned position table"
        )
    if depth < 1 or width < 64:
        raise UserError(
            f"{options.path}: MASK.DECODER_DEPTH {depth} must be at least "
            f"1, and MASK.DECODER_EMBED_DIM {width} at "
            "least 64, the width of a head"
        )
    return {"decoder_depth": depth, "decoder_width": width, "decoder_heads": width // 64}


def _head_arguments(options: Options) -> dict[str, Any]:
    """Arguments of our Classifier without the encoder's."""
    activation = options["MODEL.HEAD_ACT"]
    if activation not in ("softmax", "none"):
        raise UserError(
            f"{options.path}: MODEL.HEAD_ACT {activation!r} is not supported; "
            "'softmax' and 'none' are, for one class per clip"
        )
    mean = options["MVIT.USE_MEAN_POOLING"]
    token = "token" if options["MVIT.CLS_EMBED_ON"] else "norm_mean"
    return {
        "classes": options["MODEL.NUM_CLASSES"],
        "head": "mean" if mean else token,
        "dropout": options["MODEL.DROPOUT_RATE"],
        "head_scale": options["MVIT.HEAD_INIT_SCALE"],
    }
