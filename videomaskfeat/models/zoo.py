"""Every named model, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from videomaskfeat.models.detector import Detector
from videomaskfeat.models.heads import Classifier
from videomaskfeat.models.maskfeat import MaskFeat
from videomaskfeat.models.mvit import MViT


@dataclass(frozen=True)
class NamedModel:
    """A class and the arguments that make it the model of this name."""

    build: type[nn.Module]
    arguments: dict[str, Any]


_S = {"depth": 16, "width": 96, "heads": 1, "widen_at": (1, 3, 14)}
_B = {"depth": 24, "width": 96, "heads": 1, "widen_at": (2, 5, 21)}
_L = {"depth": 48, "width": 144, "heads": 2, "widen_at": (2, 8, 44)}
# For CPUs: 8 frames of 64x64. Cubes of 8x8 pixels, the size of a HOG cell, leave a quarter of the tokens that
# the published 4x4 would, and one query pooling gives the same 16-pixel positions.
_NANO = {
    "depth": 6,
    "width": 64,
    "heads": 1,
    "widen_at": (1,),
    "clip_size": (8, 64, 64),
    "cube_kernel": (3, 12, 12),
    "cube_stride": (2, 8, 8),
    "cube_padding": (1, 2, 2),
    "kv_stride": (1, 2, 2),
    "linear_std": 0.1,
}

# Supervised models change width in attention, classify from the class token, and pool the queries once more
# than the MaskFeat ones in pre-training, whose last query pooling is off so that the predictions keep
# 16-pixel positions. Fine-tuning switches it on.
MODELS = {
    "mvitv2_nano": NamedModel(
        Classifier, {**_NANO, "widen_in": "attention", "q_pool_at": (1,), "head": "token"}
    ),
    "mvitv2_s": NamedModel(
        Classifier, {**_S, "widen_in": "attention", "q_pool_at": (1, 3, 14), "head": "token"}
    ),
    "mvitv2_b": NamedModel(
        Classifier,
        {
            **_B,
            "widen_in": "attention",
            "q_pool_at": (2, 5, 21),
            "head": "token",
            "clip_size": (32, 224, 224),
        },
    ),
    "mvitv2_l": NamedModel(
        Classifier,
        {
            **_L,
            "widen_in": "attention",
            "q_pool_at": (2, 8, 44),
            "head": "token",
            "clip_size": (40, 312, 312),
        },
    ),
    "maskfeat_mvitv2_nano": NamedModel(MaskFeat, {**_NANO, "widen_in": "mlp", "q_pool_at": (1,)}),
    "maskfeat_mvitv2_s": NamedModel(MaskFeat, {**_S, "widen_in": "mlp", "q_pool_at": (1, 3)}),
    "maskfeat_mvitv2_l": NamedModel(MaskFeat, {**_L, "widen_in": "mlp", "q_pool_at": (2, 8)}),
    "maskfeat_mvitv2_nano_classifier": NamedModel(
        Classifier, {**_NANO, "widen_in": "mlp", "q_pool_at": (1,), "head": "mean"}
    ),
    "maskfeat_mvitv2_s_classifier": NamedModel(
        Classifier, {**_S, "widen_in": "mlp", "q_pool_at": (1, 3, 14), "head": "mean"}
    ),
    "maskfeat_mvitv2_l_classifier": NamedModel(
        Classifier, {**_L, "widen_in": "mlp", "q_pool_at": (2, 8, 44), "head": "mean"}
    ),
    # Detectors keep the maps of pre-training, a cell every 16 pixels: boxes are small.
    "maskfeat_mvitv2_nano_detector": NamedModel(Detector, {**_NANO, "widen_in": "mlp", "q_pool_at": (1,)}),
    "maskfeat_mvitv2_s_detector": NamedModel(Detector, {**_S, "widen_in": "mlp", "q_pool_at": (1, 3)}),
    "maskfeat_mvitv2_l_detector": NamedModel(Detector, {**_L, "widen_in": "mlp", "q_pool_at": (2, 8)}),
    # What is left of any of them without its head; the file of such a one gives every argument.
    "mvitv2_encoder": NamedModel(MViT, {**_S, "widen_in": "mlp", "q_pool_at": (1, 3, 14)}),
}
