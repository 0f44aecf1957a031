"""Every named model, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from videomaskfeat.models.detector import MViTDetector, ViTDetector
from videomaskfeat.models.heads import MViTClassifier, ViTClassifier
from videomaskfeat.models.mae import MAE
from videomaskfeat.models.maskfeat import MViTMaskFeat, ViTMaskFeat
from videomaskfeat.models.mvit import MViT
from videomaskfeat.models.vit import ViT


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

_VIT: dict[str, dict[str, Any]] = {
    # For CPUs as well, with cubes of the size of a HOG cell.
    "nano": {
        "depth": 6,
        "width": 96,
        "heads": 3,
        "clip_size": (8, 64, 64),
        "cube_stride": (2, 8, 8),
        "linear_std": 0.1,
    },
    "s": {"depth": 12, "width": 384, "heads": 6},
    "b": {"depth": 12, "width": 768, "heads": 12},
    "l": {"depth": 24, "width": 1024, "heads": 16},
    "h": {"depth": 32, "width": 1280, "heads": 16},
}
# An image is a clip of one frame.
_VIT_IMAGE = {
    size: {
        **video,
        "clip_size": (1, 64, 64) if size == "nano" else (1, 224, 224),
        "cube_stride": (1, 8, 8) if size == "nano" else (1, 16, 16),
        "absolute_positions": "joint",
    }
    for size, video in _VIT.items()
}
_MAE_IMAGE: dict[str, Any] = {"decoder_depth": 8, "decoder_heads": 16}
_MAE_NANO: dict[str, Any] = {
    "decoder_depth": 2,
    "decoder_width": 64,
    "decoder_heads": 2,
    "values_per_token": 192,
}

# Supervised models change width in attention, classify from the class token, and pool the queries once more
# than the MaskFeat ones in pre-training, whose last query pooling is off so that the predictions keep
# 16-pixel positions. Fine-tuning switches it on.
MODELS = {
    "mvitv2_nano": NamedModel(
        MViTClassifier, {**_NANO, "widen_in": "attention", "q_pool_at": (1,), "head": "token"}
    ),
    "mvitv2_s": NamedModel(
        MViTClassifier, {**_S, "widen_in": "attention", "q_pool_at": (1, 3, 14), "head": "token"}
    ),
    "mvitv2_b": NamedModel(
        MViTClassifier,
        {
            **_B,
            "widen_in": "attention",
            "q_pool_at": (2, 5, 21),
            "head": "token",
            "clip_size": (32, 224, 224),
        },
    ),
    "mvitv2_l": NamedModel(
        MViTClassifier,
        {
            **_L,
            "widen_in": "attention",
            "q_pool_at": (2, 8, 44),
            "head": "token",
            "clip_size": (40, 312, 312),
        },
    ),
    "maskfeat_mvitv2_nano": NamedModel(MViTMaskFeat, {**_NANO, "widen_in": "mlp", "q_pool_at": (1,)}),
    "maskfeat_mvitv2_s": NamedModel(MViTMaskFeat, {**_S, "widen_in": "mlp", "q_pool_at": (1, 3)}),
    "maskfeat_mvitv2_l": NamedModel(MViTMaskFeat, {**_L, "widen_in": "mlp", "q_pool_at": (2, 8)}),
    "maskfeat_mvitv2_nano_classifier": NamedModel(
        MViTClassifier, {**_NANO, "widen_in": "mlp", "q_pool_at": (1,), "head": "mean"}
    ),
    "maskfeat_mvitv2_s_classifier": NamedModel(
        MViTClassifier, {**_S, "widen_in": "mlp", "q_pool_at": (1, 3, 14), "head": "mean"}
    ),
    "maskfeat_mvitv2_l_classifier": NamedModel(
        MViTClassifier, {**_L, "widen_in": "mlp", "q_pool_at": (2, 8, 44), "head": "mean"}
    ),
    # Detectors keep the maps of pre-training, a cell every 16 pixels: boxes are small.
    "maskfeat_mvitv2_nano_detector": NamedModel(
        MViTDetector, {**_NANO, "widen_in": "mlp", "q_pool_at": (1,)}
    ),
    "maskfeat_mvitv2_s_detector": NamedModel(MViTDetector, {**_S, "widen_in": "mlp", "q_pool_at": (1, 3)}),
    "maskfeat_mvitv2_l_detector": NamedModel(MViTDetector, {**_L, "widen_in": "mlp", "q_pool_at": (2, 8)}),
    # What is left of any of them without its head; the file of such a one gives every argument.
    "mvitv2_encoder": NamedModel(MViT, {**_S, "widen_in": "mlp", "q_pool_at": (1, 3, 14)}),
    "vit_encoder": NamedModel(ViT, _VIT["b"]),
    **{f"vit_{size}": NamedModel(ViTClassifier, {**video, "head": "mean"}) for size, video in _VIT.items()},
    **{
        f"vit_{size}_image": NamedModel(ViTClassifier, {**image, "head": "mean"})
        for size, image in _VIT_IMAGE.items()
    },
    **{f"vit_{size}_detector": NamedModel(ViTDetector, video) for size, video in _VIT.items()},
    **{f"maskfeat_vit_{size}": NamedModel(ViTMaskFeat, video) for size, video in _VIT.items()},
    **{f"maskfeat_vit_{size}_image": NamedModel(ViTMaskFeat, image) for size, image in _VIT_IMAGE.items()},
    **{
        f"mae_vit_{size}": NamedModel(MAE, {**video, **_MAE_NANO} if size == "nano" else video)
        for size, video in _VIT.items()
    },
    **{
        f"mae_vit_{size}_image": NamedModel(MAE, {**image, **(_MAE_NANO if size == "nano" else _MAE_IMAGE)})
        for size, image in _VIT_IMAGE.items()
    },
}


def dense_form() -> str:
    """Why MViTv2 has no masked autoencoder here, and what there is instead, for messages."""
    return (
        "an MAE encoder sees the visible tokens alone, and MViTv2's pooling needs the whole grid; take the "
        "dense form, a mask token in the hidden places and pixels predicted: model maskfeat_mvitv2_s or "
        "maskfeat_mvitv2_l with target pixels"
    )
