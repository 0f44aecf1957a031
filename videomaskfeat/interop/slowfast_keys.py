"""PySlowFast's configuration keys: which shape a model, what they are by default, and which do not matter.

Defaults as in `slowfast/config/defaults.py` at commit 287ec00. A key counts for the kinds of model in whose
table it stands; for the others it is without effect.
"""

from __future__ import annotations

from typing import Any

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
