"""The options of PySlowFast's public YAMLs (commit 287ec00) for MaskFeat and MViTv2 on video, as data."""

from __future__ import annotations

from typing import Any

# depth, width, heads, and the blocks where width, heads and query stride change.
_S = (16, 96, 1, (1, 3, 14))
_B = (24, 96, 1, (2, 5, 21))
_L = (48, 144, 2, (2, 8, 44))


def _sections(
    size: tuple[int, int, int, tuple[int, ...]],
    *,
    frames: int,
    stride: int,
    crop: int,
    pools: int = 3,
    data: dict[str, Any],
    mvit: dict[str, Any],
    test: dict[str, Any],
    **sections: dict[str, Any],
) -> dict[str, Any]:
    """Keys that all of them have, with their spelling."""
    depth, width, heads, changes = size
    rows = [[block, 1, *((2, 2) if block in changes[:pools] else (1, 1))] for block in range(depth)]
    content: dict[str, Any] = {
        "TRAIN": {"ENABLE": True, "DATASET": test["DATASET"], "BATCH_SIZE": 16, "AUTO_RESUME": True},
        "DATA": {
            "DECODING_BACKEND": "torchvision",
            "NUM_FRAMES": frames,
            "SAMPLING_RATE": stride,
            "TRAIN_CROP_SIZE": crop,
            "TEST_CROP_SIZE": crop,
            "INPUT_CHANNEL_NUM": [3],
            **data,
        },
        "MVIT": {
            "ZERO_DECAY_POS_CLS": False,
            "USE_ABS_POS": False,
            "REL_POS_SPATIAL": True,
            "REL_POS_TEMPORAL": True,
            "DEPTH": depth,
            "NUM_HEADS": heads,
            "EMBED_DIM": width,
            "PATCH_KERNEL": "(3, 7, 7)",
            "PATCH_STRIDE": "(2, 4, 4)",
            "PATCH_PADDING": "(1, 3, 3)",
            "MLP_RATIO": 4.0,
            "QKV_BIAS": True,
            "NORM": "layernorm",
            "MODE": "conv",
            "CLS_EMBED_ON": True,
            "DIM_MUL": [[block, 2.0] for block in changes],
            "HEAD_MUL": [[block, 2.0] for block in changes],
            "POOL_KVQ_KERNEL": [3, 3, 3],
            "POOL_KV_STRIDE_ADAPTIVE": [1, 8, 8],
            "POOL_Q_STRIDE": rows,
            "RESIDUAL_POOLING": True,
            **mvit,
        },
        "AUG": {"ENABLE": True, "COLOR_JITTER": "None", "RE_PROB": 0.25, "RE_SPLIT": False},
        "MIXUP": {"ENABLE": True, "ALPHA": 0.8},
        "SOLVER": {"BASE_LR": 0.0001, "COSINE_END_LR": "1e-6", "OPTIMIZING_METHOD": "adamw"},
        "MODEL": {
            "NUM_CLASSES": 174 if test["DATASET"] == "ssv2" else 400,
            "ARCH": "mvit",
            "MODEL_NAME": "MViT",
            "LOSS_FUNC": "soft_cross_entropy",
            "DROPOUT_RATE": 0.5,
        },
        "TEST": {"ENABLE": True, "BATCH_SIZE": 64, **test},
        "DATA_LOADER": {"NUM_WORKERS": 8, "PIN_MEMORY": True},
        "NUM_GPUS": 8,
        "RNG_SEED": 0,
        "OUTPUT_DIR": ".",
    }
    for name, keys in sections.items():
        content[name] = {**content.get(name, {}), **keys}
    return content


_KINETICS = {"USE_OFFSET_SAMPLING": True, "TRAIN_JITTER_SCALES": [256, 320]}
_SSV2 = {
    "TRAIN_JITTER_SCALES": [256, 320],
    "INV_UNIFORM_SAMPLE": True,
    "RANDOM_FLIP": False,
    "REVERSE_INPUT_CHANNEL": True,
}
_LARGE = {"TRAIN_JITTER_SCALES": [356, 446], "MEAN": [0.485, 0.456, 0.406], "STD": [0.229, 0.224, 0.225]}
_MASKFEAT = {"SEP_POS_EMBED": True}
_MEAN_POOLING = {**_MASKFEAT, "USE_MEAN_POOLING": True, "HEAD_INIT_SCALE": 0.001}
_PRETRAINING: dict[str, Any] = {
    "MASK": {"ENABLE": True, "PRED_HOG": True},
    "AUG": {
        "AA_TYPE": "",
        "GEN_MASK_LOADER": True,
        "MASK_RATIO": 0.4,
        "MASK_TUBE": False,
        "MASK_FRAMES": False,
        "MASK_WINDOW_SIZE": [8, 7, 7],
    },
    "MODEL": {"ARCH": "maskmvit", "MODEL_NAME": "MaskMViT", "DROPOUT_RATE": 0.0},
}


def _pretraining(size: tuple[int, int, int, tuple[int, ...]], **test: Any) -> dict[str, Any]:
    content = _sections(
        size,
        frames=16,
        stride=4,
        crop=224,
        pools=2,
        data={**_KINETICS, "DECODING_SHORT_SIZE": 320},
        mvit={**_MASKFEAT, "DROPPATH_RATE": 0.0},
        test={"DATASET": "kinetics", "NUM_SPATIAL_CROPS": 1, **test},
        **_PRETRAINING,
    )
    content["MASK"]["PRETRAIN_DEPTH"] = [size[0] - 1]
    return content


def _finetuning(
    size: tuple[int, int, int, tuple[int, ...]], drop_path: float, test: dict[str, Any]
) -> dict[str, Any]:
    return _sections(
        size,
        frames=16,
        stride=4,
        crop=224,
        data={**_KINETICS, "DECODING_SHORT_SIZE": 320},
        mvit={**_MEAN_POOLING, "DROPPATH_RATE": drop_path, "LAYER_SCALE_INIT_VALUE": 0.0},
        test={"DATASET": "kinetics", "NUM_SPATIAL_CROPS": 1, **test},
        MODEL={"DROPOUT_RATE": 0.0},
    )


def _supervised(
    size: tuple[int, int, int, tuple[int, ...]],
    clip: tuple[int, int, int],
    *,
    drop_path: float,
    data: dict[str, Any],
    test: dict[str, Any],
    **sections: dict[str, Any],
) -> dict[str, Any]:
    return _sections(
        size,
        frames=clip[0],
        stride=clip[1],
        crop=clip[2],
        data=data,
        mvit={"DIM_MUL_IN_ATT": True, "DROPPATH_RATE": drop_path, "DROPOUT_RATE": 0.0},
        test=test,
        **sections,
    )


_K400_TEST = {"DATASET": "kinetics", "NUM_SPATIAL_CROPS": 1, "NUM_ENSEMBLE_VIEWS": 5}
_SSV2_TEST = {"DATASET": "ssv2", "NUM_SPATIAL_CROPS": 3, "NUM_ENSEMBLE_VIEWS": 1}
_PREFETCH = {"PREFETCH": {"NUM_LOADERS": 3}}

PUBLIC: dict[str, dict[str, Any]] = {
    "k400_MVITv2_S_16x4_MaskFeat_PT": _pretraining(_S, NUM_TEMPORAL_CLIPS=[5, 10]),
    "k400_MVITv2_S_16x4_FT": _finetuning(_S, 0.1, {"NUM_TEMPORAL_CLIPS": [1, 3, 4, 5, 7, 10]}),
    "k400_MVITv2_L_16x4_MaskFeat_PT": _pretraining(_L),
    "k400_MVITv2_L_16x4_FT": _finetuning(_L, 0.2, {}),
    "Kinetics/MVITv2_S_16x4": _supervised(_S, (16, 4, 224), drop_path=0.2, data=_KINETICS, test=_K400_TEST),
    "Kinetics/MVITv2_B_32x3": _supervised(_B, (32, 3, 224), drop_path=0.3, data=_KINETICS, test=_K400_TEST),
    "Kinetics/MVITv2_L_40x3_test": _supervised(
        _L,
        (40, 3, 312),
        drop_path=0.75,
        data={**_KINETICS, **_LARGE},
        test={**_K400_TEST, "NUM_SPATIAL_CROPS": 3},
        MODEL={"ACT_CHECKPOINT": True},
    ),
    "SSv2/MVITv2_S_16x4": _supervised(
        _S, (16, 4, 224), drop_path=0.4, data=_SSV2, test=_SSV2_TEST, **_PREFETCH
    ),
    "SSv2/MVITv2_B_32x3": _supervised(
        _B, (32, 3, 224), drop_path=0.4, data=_SSV2, test=_SSV2_TEST, **_PREFETCH
    ),
    "SSv2/MVITv2_L_40x3": _supervised(
        _L,
        (40, 3, 312),
        drop_path=0.75,
        data={**_SSV2, **_LARGE},
        test=_SSV2_TEST,
        MODEL={"ACT_CHECKPOINT": True},
        **_PREFETCH,
    ),
}
