"""PySlowFast's YAMLs and checkpoints -> our models.

Facts from PySlowFast at commit 287ec00: `slowfast/config/defaults.py` for keys absent from a YAML,
`slowfast/models/masked.py` for the pre-training model, `slowfast/models/video_model_builder.py` for the
classifier.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from videomaskfeat.errors import UserError
from videomaskfeat.interop.slowfast_arguments import (
    decoder_arguments,
    encoder_arguments,
    head_arguments,
    is_plain,
    shortened,
)
from videomaskfeat.interop.slowfast_clips import ClipFacts, MaskFacts, clip_facts, mask_facts
from videomaskfeat.interop.slowfast_keys import CLASSIFICATION, CLIP, DECODER, ENCODER, PRETRAINING
from videomaskfeat.interop.slowfast_yaml import read_yaml, typed_options
from videomaskfeat.models import create_unset
from videomaskfeat.models.cubes import Triple, as_triple
from videomaskfeat.models.encoder_base import as_clips
from videomaskfeat.models.weights import LoadReport, load_weights
from videomaskfeat.models.zoo import MODELS, dense_form
from videomaskfeat.targets.hog import HogTarget
from videomaskfeat.targets.pixels import PixelTarget
from videomaskfeat.targets.target import Target
from videomaskfeat.texts import show_text

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
