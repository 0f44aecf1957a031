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

from torch import nn

from videomaskfeat.errors import UserError
from videomaskfeat.interop.slowfast_arguments import encoder_arguments, head_arguments, shortened
from videomaskfeat.interop.slowfast_clips import ClipFacts, MaskFacts, clip_facts, mask_facts
from videomaskfeat.interop.slowfast_keys import CLASSIFICATION, CLIP, ENCODER, PRETRAINING
from videomaskfeat.interop.slowfast_yaml import read_yaml, typed_options
from videomaskfeat.models import create_unset
from videomaskfeat.models.cubes import as_triple
from videomaskfeat.models.weights import LoadReport, load_into, read_state
from videomaskfeat.models.zoo import MODELS
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
        ignored_keys: keys of the YAML that cannot change the model, its target or its clips, such as
            ``SOLVER.BASE_LR``.
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
        model: pre-training: ``model(clips, mask) -> predictions [B, t, h, w, K]``; classification:
            ``model(clips) -> logits [B, L]``.
        target: ``target(clips) -> [B, t, h, w, K]``; None for a classifier.
        report: what was loaded and what had no part.
        clip: how its clips are cut and tested.
        mask: what pre-training hides; None for a classifier.
    """

    model: nn.Module
    target: nn.Module | None
    report: ImportReport
    clip: ClipFacts
    mask: MaskFacts | None


def load_slowfast(config_path: str | os.PathLike[str], checkpoint_path: str | os.PathLike[str]) -> Imported:
    """Build the model of a PySlowFast YAML and load its checkpoint (``.pyth``).

    Read so far: video MaskFeat pre-training (``MODEL.MODEL_NAME: MaskMViT`` with ``MASK.PRED_HOG``) and clip
    classification with MViTv2 (``MViT``). An option that would change the model and is not built here is
    refused by name, never passed over.

    Args:
        config_path: the YAML; keys that it leaves out have PySlowFast's defaults.
        checkpoint_path: a checkpoint of the same model. No code inside it is run.

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
    weights = load_into(
        model,
        read_state(checkpoint_path),
        allow_unused=reader.allow_unused,
        source=os.fspath(checkpoint_path),
    )
    return Imported(
        model.eval(),
        target,
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
    build: Callable[[str, Mapping[str, Any]], tuple[nn.Module, nn.Module | None]]
    allow_unused: tuple[str, ...] = ()


def _reader_of(path: str, written: Mapping[str, Any]) -> _Reader:
    if not any(key.startswith("MODEL.") for key in written):
        raise UserError(
            f"{path}: is not a PySlowFast YAML: it has no section MODEL; give the YAML that the checkpoint "
            "was trained with"
        )
    name = written.get("MODEL.MODEL_NAME", "SlowFast")
    if name not in _READERS:
        architecture = written.get("MODEL.ARCH")
        detail = f" (MODEL.ARCH {architecture!r})" if architecture else ""
        raise UserError(
            f"{path}: MODEL.MODEL_NAME {name!r}{detail} is not read; known kinds: "
            + ", ".join(f"{key} ({reader.kind})" for key, reader in _READERS.items())
        )
    return _READERS[name]


def _build_video_maskfeat(path: str, options: Mapping[str, Any]) -> tuple[nn.Module, nn.Module]:
    """MaskFeat on MViTv2 with the HOG target."""
    encoder = shortened(path, options, encoder_arguments(path, options))
    pools = len(encoder["q_pool_at"])
    strides = zip(encoder["cube_stride"], encoder["q_pool_stride"], strict=True)
    output_stride = as_triple(cube * step**pools for cube, step in strides)
    target = HogTarget(_HOG_BINS, _HOG_CELL, encoder["cube_stride"], output_stride)
    name = _nearest_name(encoder, ("maskfeat_mvitv2_s", "maskfeat_mvitv2_l"))
    return create_unset(name, **encoder, values_per_token=target.values_per_token), target


def _build_classifier(path: str, options: Mapping[str, Any]) -> tuple[nn.Module, None]:
    """A classifier on MViTv2, in MaskFeat's form or in that of the supervised models."""
    encoder = encoder_arguments(path, options)
    head = head_arguments(path, options)
    names = {
        "mlp": ("maskfeat_mvitv2_s_classifier", "maskfeat_mvitv2_l_classifier"),
        "attention": ("mvitv2_s", "mvitv2_b", "mvitv2_l"),
    }[encoder["widen_in"]]
    return create_unset(_nearest_name(encoder, names), **encoder, **head), None


def _nearest_name(encoder: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """The named model of this depth, or the first; the arguments are given in full either way."""
    same = [name for name in names if MODELS[name].arguments["depth"] == encoder["depth"]]
    return same[0] if same else names[0]


_READERS = {
    "MaskMViT": _Reader(
        kind="video MaskFeat pre-training",
        keys={**ENCODER, **PRETRAINING, **CLIP},
        required={
            "MVIT.PATCH_2D": False,
            "MASK.ENABLE": True,
            "MASK.MAE_ON": False,
            "MASK.PRED_HOG": True,
            "MASK.MAE_RND_MASK": False,
            "MASK.HEAD_TYPE": "separate",
        },
        build=_build_video_maskfeat,
        allow_unused=_TARGET_BUFFERS,
    ),
    "MViT": _Reader(
        kind="clip classification with MViTv2",
        keys={**ENCODER, **CLASSIFICATION, **CLIP},
        required={"MVIT.PATCH_2D": False},
        build=_build_classifier,
    ),
}
