"""Training keys of PySlowFast YAMLs -> keys of our configs, and reasons for those without an equal.

Meanings as in PySlowFast 287ec00: ``tools/train_net.py``, ``slowfast/utils/lr_policy.py``,
``slowfast/models/optimizer.py`` and ``slowfast/datasets/``.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from videomaskfeat.errors import UserError
from videomaskfeat.interop.slowfast_keys import FIXED, Options, plain_value, typed_value

Task = Literal["pretrain", "finetune", "detect"]

REASONS: tuple[tuple[str, str], ...] = (
    ("NUM_GPUS SHARD_ID DIST_BACKEND INIT_METHOD", "torchrun starts the processes"),
    ("OUTPUT_DIR", "set run.folder"),
    ("TASK TRAIN.ENABLE TEST.ENABLE", "training and evaluation are commands"),
    ("TRAIN.AUTO_RESUME", "a run always continues its folder"),
    ("TRAIN.MIXED_PRECISION", "run.precision selects bf16 or fp32; fp16 is missing"),
    ("TRAIN.KILL_LOSS_EXPLOSION_FACTOR", "a run stops if its loss is not finite"),
    ("TRAIN.CHECKPOINT_*", "model.weights recognizes kinds of checkpoints"),
    ("TEST.*", "options of `videomaskfeat evaluate`"),
    ("DATA.DECODING_* DATA_LOADER.* DATA.SKIP_ROWS", "data.reader and the loader determine it"),
    ("BN.* MODEL.FROZEN_BN", "these models have no batch normalization"),
    ("AUG.GEN_MASK_LOADER", "the loader always draws the masks"),
    (
        "AUG.RE_SPLIT SOLVER.GAMMA SOLVER.STEP_SIZE SOLVER.WARMUP_FACTOR PREFETCH.*",
        "PySlowFast does not read it",
    ),
    ("MODEL.* MVIT.* MASK.*", "no effect on this kind of model"),
    ("DETECTION.* AVA.*", "only for action detection"),
    ("TENSORBOARD.* VIS_MASK.* VISUALIZATION.* DEMO.* BENCHMARK.* LOG_*", "other commands of this package"),
    ("RESNET.* SLOWFAST.* X3D.* NONLOCAL.* MULTIGRID.* CONTRASTIVE.*", "keys of other models"),
)
"""Patterns of keys that are not translated, and why; the first that fits counts."""

_TRAINING: dict[str, Any] = {
    "TRAIN.BATCH_SIZE": 64,
    "TRAIN.EVAL_PERIOD": 10,
    "TRAIN.CHECKPOINT_PERIOD": 10,
    "TRAIN.CHECKPOINT_FILE_PATH": "",
    "NUM_SHARDS": 1,
    "RNG_SEED": 1,
    "DATA_LOADER.NUM_WORKERS": 8,
    "DATA.PATH_TO_DATA_DIR": "",
    "DATA.PATH_PREFIX": "",
    "DATA.PATH_LABEL_SEPARATOR": " ",
    "DATA.TRAIN_JITTER_SCALES_RELATIVE": (),
    "DATA.TRAIN_JITTER_ASPECT_RELATIVE": (),
    "DATA.TRAIN_JITTER_MOTION_SHIFT": False,
    "DATA.TRAIN_JITTER_FPS": 0.0,
    "DATA.TRAIN_CROP_NUM_TEMPORAL": 1,
    "DATA.TRAIN_CROP_NUM_SPATIAL": 1,
    "DATA.INV_UNIFORM_SAMPLE": False,
    "DATA.SSL_COLOR_JITTER": False,
    "DATA.COLOR_RND_GRAYSCALE": 0.0,
    "DATA.TIME_DIFF_PROB": 0.0,
    "AUG.ENABLE": False,
    "AUG.NUM_SAMPLE": 1,
    "AUG.COLOR_JITTER": 0.4,
    "AUG.AA_TYPE": "rand-m9-mstd0.5-inc1",
    "AUG.INTERPOLATION": "bicubic",
    "AUG.RE_PROB": 0.25,
    "AUG.RE_MODE": "pixel",
    "AUG.RE_COUNT": 1,
    "MIXUP.ENABLE": False,
    "MIXUP.ALPHA": 0.8,
    "MIXUP.CUTMIX_ALPHA": 1.0,
    "MIXUP.PROB": 1.0,
    "MIXUP.SWITCH_PROB": 0.5,
    "MIXUP.LABEL_SMOOTH_VALUE": 0.1,
    "MODEL.LOSS_FUNC": "cross_entropy",
    "MVIT.ZERO_DECAY_POS_CLS": True,
    "SOLVER.BASE_LR": 0.1,
    "SOLVER.BASE_LR_SCALE_NUM_SHARDS": False,
    "SOLVER.LR_POLICY": "cosine",
    "SOLVER.COSINE_END_LR": 0.0,
    "SOLVER.COSINE_AFTER_WARMUP": False,
    "SOLVER.STEPS": (),
    "SOLVER.LRS": (),
    "SOLVER.MAX_EPOCH": 300.0,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.DAMPENING": 0.0,
    "SOLVER.NESTEROV": True,
    "SOLVER.WEIGHT_DECAY": 1e-4,
    "SOLVER.WARMUP_EPOCHS": 0.0,
    "SOLVER.WARMUP_START_LR": 0.01,
    "SOLVER.OPTIMIZING_METHOD": "sgd",
    "SOLVER.ZERO_WD_1D_PARAM": False,
    "SOLVER.CLIP_GRAD_VAL": 0.0,
    "SOLVER.CLIP_GRAD_L2NORM": 0.0,
    "SOLVER.LARS_ON": False,
    "SOLVER.LAYER_DECAY": 1.0,
    "SOLVER.BETAS": (0.9, 0.999),
    "AVA.FRAME_DIR": "",
    "AVA.FRAME_LIST_DIR": "",
    "AVA.ANNOTATION_DIR": "",
    "AVA.TRAIN_LISTS": ["train.csv"],
    "AVA.TEST_LISTS": ["val.csv"],
    "AVA.TRAIN_GT_BOX_LISTS": ["ava_train_v2.2.csv"],
    "AVA.TRAIN_PREDICT_BOX_LISTS": [],
    "AVA.TEST_PREDICT_BOX_LISTS": ["ava_val_predicted_boxes.csv"],
    "AVA.DETECTION_SCORE_THRESH": 0.9,
    "AVA.TRAIN_USE_COLOR_AUGMENTATION": False,
    "AVA.TRAIN_PCA_JITTER_ONLY": True,
    "AVA.TEST_FORCE_FLIP": False,
    "AVA.FULL_TEST_ON_VAL": False,
    "AVA.LABEL_MAP_FILE": "ava_action_list_v2.2_for_activitynet_2019.pbtxt",
    "AVA.EXCLUSION_FILE": "ava_val_excluded_timestamps_v2.2.csv",
    "AVA.GROUNDTRUTH_FILE": "ava_val_v2.2.csv",
}
_NONE = ("AUG.COLOR_JITTER", "AUG.AA_TYPE", "SOLVER.CLIP_GRAD_VAL", "SOLVER.CLIP_GRAD_L2NORM")
_SEPARATORS = {" ": "space", ",": "comma", "\t": "tab", "::": "colons", ";": "semicolon", "|": "pipe"}
_LOSSES = {
    "pretrain": ("multi_mse", "mse"),
    "finetune": ("cross_entropy", "soft_cross_entropy"),
    "detect": ("bce",),
}


@dataclass
class Training:
    """The training of a YAML.

    Attributes:
        keys: values by the names of our keys, such as "optim.epochs".
        unequal: keys of PySlowFast that are not translated, or only nearly, and the reasons.
    """

    keys: dict[str, Any] = field(default_factory=dict)
    unequal: dict[str, str] = field(default_factory=dict)


def translate_training(
    path: str, written: Mapping[str, Any], model: Mapping[str, Any], *, task: Task
) -> Training:
    """Translate the training keys of a YAML; keys that it lacks have PySlowFast's defaults.

    Args:
        path: path of the YAML, for error messages.
        written: result of :func:`~videomaskfeat.interop.slowfast_keys.read_yaml`.
        model: the typed options of model, clips and data set.
        task: pre-training, classification or action detection.

    Raises:
        UserError: a value has the wrong type or is out of range.
    """
    options = Options(path, {**model, **_typed(path, written)})
    images = bool(model["MVIT.PATCH_2D"])
    result = Training()
    _set_optimizer(options, result, task)
    _set_batches(options, result, task, images=images)
    _set_run(options, written, result, task)
    if task == "detect":
        _set_detection(options, result)
    else:
        _set_crops(options, result, task, images=images)
        _set_lists(options, written, result, task)
    if task == "finetune":
        _set_augmentation(options, result, images=images)
    elif options["AUG.ENABLE"]:
        for key in ("AUG.AA_TYPE", "AUG.RE_PROB"):
            if key in written and options[key]:
                result.unequal[key] = "only classification has this augmentation here"
    if task != "finetune" and options["MIXUP.ENABLE"]:
        result.unequal["MIXUP.ENABLE"] = "only classification mixes clips here"
    loss = options["MODEL.LOSS_FUNC"]
    if loss not in _LOSSES[task]:
        result.unequal["MODEL.LOSS_FUNC"] = f"{loss!r}; the loss here is {' or '.join(_LOSSES[task])}"
    for key in written:
        if key not in model and key not in _TRAINING and key not in FIXED and key != "MODEL.MODEL_NAME":
            result.unequal[key] = _reason(key)
    return result


def _reason(key: str) -> str:
    for patterns, reason in REASONS:
        if any(fnmatchcase(key, pattern) for pattern in patterns.split()):
            return reason
    return "no equal here"


def _typed(path: str, written: Mapping[str, Any]) -> dict[str, Any]:
    """The training keys with their types; lists of file names stay lists."""
    values = dict(_TRAINING)
    for key, default in _TRAINING.items():
        if key not in written:
            continue
        value = plain_value(written[key])
        if value is None and key in _NONE:
            values[key] = None
        elif isinstance(default, list):
            names = (
                [value] if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else [0]
            )
            if not all(isinstance(name, str) for name in names):
                raise UserError(f"{path}: {key} must be a list of file names, such as {default}")
            values[key] = names
        else:
            values[key] = typed_value(path, key, value, default)
    for key in ("TRAIN.BATCH_SIZE", "NUM_SHARDS", "AUG.NUM_SAMPLE", "SOLVER.MAX_EPOCH"):
        if values[key] <= 0:
            raise UserError(f"{path}: {key} {values[key]} must be positive")
    return values


def _set_optimizer(options: Options, result: Training, task: Task) -> None:
    """The optimizer and the schedule of its learning rate."""
    keys, unequal = result.keys, result.unequal
    method = options["SOLVER.OPTIMIZING_METHOD"]
    name = {"mt_adamw": "adamw"}.get(method, method)
    if name not in (("adamw",) if task == "pretrain" else ("adamw", "sgd")):
        unequal["SOLVER.OPTIMIZING_METHOD"] = f"{method!r}; optim.optimizer has adamw" + (
            "" if task == "pretrain" else " and sgd"
        )
        name = "adamw"
    keys["optim.optimizer"] = name
    if name == "sgd":
        keys["optim.momentum"] = options["SOLVER.MOMENTUM"]
        if not options["SOLVER.NESTEROV"] or options["SOLVER.DAMPENING"]:
            unequal["SOLVER.NESTEROV"] = "SGD has Nesterov's momentum without dampening here"
    else:
        keys["optim.betas"] = list(options["SOLVER.BETAS"])
    keys["optim.weight_decay"] = options["SOLVER.WEIGHT_DECAY"]
    keys["optim.layer_decay"] = options["SOLVER.LAYER_DECAY"]
    keys["optim.gradient_clip"] = options["SOLVER.CLIP_GRAD_L2NORM"] or None
    if options["SOLVER.CLIP_GRAD_VAL"]:
        unequal["SOLVER.CLIP_GRAD_VAL"] = "gradients are clipped by their norm only: optim.gradient_clip"
        keys["optim.gradient_clip"] = None
    if options["SOLVER.LARS_ON"]:
        unequal["SOLVER.LARS_ON"] = (
            "LARS is an optimizer of its own here: optim.optimizer lars in pre-training"
        )
    if options["SOLVER.WEIGHT_DECAY"]:
        if not options["SOLVER.ZERO_WD_1D_PARAM"]:
            unequal["SOLVER.ZERO_WD_1D_PARAM"] = (
                "False; parameters of one dimension never have weight decay here"
            )
        if options["MVIT.ZERO_DECAY_POS_CLS"]:
            unequal["MVIT.ZERO_DECAY_POS_CLS"] = "True; positions and class token have weight decay here"
    _set_schedule(options, result)


def _set_schedule(options: Options, result: Training) -> None:
    keys, unequal = result.keys, result.unequal
    rate, warmup = options["SOLVER.BASE_LR"], options["SOLVER.WARMUP_EPOCHS"]
    keys["optim.epochs"], keys["optim.warmup_epochs"] = options["SOLVER.MAX_EPOCH"], warmup
    keys["optim.learning_rate"] = rate
    keys["optim.start_learning_rate"] = options["SOLVER.WARMUP_START_LR"] if warmup else rate
    if options["SOLVER.LR_POLICY"] == "cosine":
        keys["optim.end_learning_rate"] = options["SOLVER.COSINE_END_LR"]
        if warmup and not options["SOLVER.COSINE_AFTER_WARMUP"]:
            unequal["SOLVER.COSINE_AFTER_WARMUP"] = "False; the cosine begins after the warm-up here"
        return
    steps, rates = options["SOLVER.STEPS"], options["SOLVER.LRS"]
    factors = {b / a for a, b in itertools.pairwise(rates) if a}
    factor = min(factors, default=0.0)
    if (
        options["SOLVER.LR_POLICY"] != "steps_with_relative_lrs"
        or not 1 < len(rates) == len(steps)
        or steps[0] != 0
        or steps[1] < warmup
        or not 0 < factor <= 1
        or max(factors) - factor > 1e-6 * factor
    ):
        unequal["SOLVER.LR_POLICY"] = (
            f"{options['SOLVER.LR_POLICY']!r} with SOLVER.LRS {list(rates)} and SOLVER.STEPS {list(steps)}: "
            "optim.schedule has cosine, and steps with one factor; the config has cosine"
        )
        return
    keys["optim.schedule"] = "steps"
    keys["optim.step_epochs"], keys["optim.step_factor"] = [float(step) for step in steps[1:]], factor
    keys["optim.learning_rate"] = rate * rates[0]
    if not warmup:
        keys["optim.start_learning_rate"] = rate * rates[0]


def _set_batches(options: Options, result: Training, task: Task, *, images: bool) -> None:
    """Clips per step of all nodes, and those to which the learning rates belong.

    PySlowFast's batch counts the videos of a node; its rates are those of a node if
    ``BASE_LR_SCALE_NUM_SHARDS``, else those of all nodes.
    """
    videos, nodes, samples = options["TRAIN.BATCH_SIZE"], options["NUM_SHARDS"], 1
    if task != "detect":
        samples = options["AUG.NUM_SAMPLE"]
        if not images:
            samples *= options["DATA.TRAIN_CROP_NUM_TEMPORAL"] * options["DATA.TRAIN_CROP_NUM_SPATIAL"]
            if samples > options["DATA.TRAIN_CROP_NUM_TEMPORAL"]:
                result.unequal["AUG.NUM_SAMPLE"] = "clips of one video begin at different times here"
        result.keys["clip.samples_per_video"] = samples
    result.keys["optim.batch_size"] = videos * nodes * samples
    scaled = options["SOLVER.BASE_LR_SCALE_NUM_SHARDS"]
    result.keys["optim.base_batch_size"] = videos * samples * (1 if scaled else nodes)


def _set_run(options: Options, written: Mapping[str, Any], result: Training, task: Task) -> None:
    """Keys that are set only if the YAML has them, since PySlowFast's defaults suit its own programs."""
    keys = result.keys
    for theirs, ours in (("DATA_LOADER.NUM_WORKERS", "data.workers"), ("RNG_SEED", "run.seed")):
        if theirs in written:
            keys[ours] = options[theirs]
    if "TRAIN.CHECKPOINT_PERIOD" in written:
        keys["run.checkpoint_epochs"] = float(options["TRAIN.CHECKPOINT_PERIOD"])
    if task == "pretrain":
        result.unequal |= (
            {"TRAIN.EVAL_PERIOD": "set run.evaluate_epochs"} if "TRAIN.EVAL_PERIOD" in written else {}
        )
    elif "TRAIN.EVAL_PERIOD" in written:
        period = options["TRAIN.EVAL_PERIOD"]
        keys["evaluate.epochs"] = float(period) if period <= options["SOLVER.MAX_EPOCH"] else 0.0
    if options["TRAIN.CHECKPOINT_FILE_PATH"]:
        keys["model.weights"] = options["TRAIN.CHECKPOINT_FILE_PATH"]


def _set_crops(options: Options, result: Training, task: Task, *, images: bool) -> None:
    """Random crops of training clips."""
    keys, unequal = result.keys, result.unequal
    area, aspect = options["DATA.TRAIN_JITTER_SCALES_RELATIVE"], options["DATA.TRAIN_JITTER_ASPECT_RELATIVE"]
    if images:
        area, aspect = area or (0.08, 1.0), aspect or (0.75, 1.3333)
        if not options["AUG.ENABLE"] and task == "finetune":
            unequal["AUG.ENABLE"] = "False; PySlowFast then adds AlexNet's change of colors"
    if area or aspect:
        keys["clip.crop_area"] = [float(value) for value in area or (1.0, 1.0)]
        keys["clip.crop_aspect"] = [float(value) for value in aspect or (1.0, 1.0)]
    elif task == "finetune":
        scales = options["DATA.TRAIN_JITTER_SCALES"]
        keys |= {"clip.crop_kind": "short_side", "clip.short_side": [int(value) for value in scales]}
        keys["clip.short_side_inverse"] = options["DATA.INV_UNIFORM_SAMPLE"]
    else:
        unequal["DATA.TRAIN_JITTER_SCALES"] = "crops in pre-training are drawn by their share: clip.crop_area"
    for key in ("MOTION_SHIFT", "FPS"):
        if options[f"DATA.TRAIN_JITTER_{key}"]:
            unequal[f"DATA.TRAIN_JITTER_{key}"] = "no equal here"


def _set_lists(options: Options, written: Mapping[str, Any], result: Training, task: Task) -> None:
    """List files of PySlowFast's data folder."""
    keys, folder = result.keys, options["DATA.PATH_TO_DATA_DIR"].rstrip("/")
    dataset = options["TRAIN.DATASET"].lower()
    names = {
        "ssv2": ("something-something-v2-train.json", "something-something-v2-validation.json"),
        "imagenet": ("train", "val"),
    }.get(dataset, ("train.csv", "val.csv"))
    if folder:
        keys["data.train"] = f"{folder}/{names[0]}"
        if task == "finetune":
            keys["data.validation"] = f"{folder}/{names[1]}"
    if options["DATA.PATH_PREFIX"]:
        keys["data.prefix"] = options["DATA.PATH_PREFIX"]
    if "DATA.PATH_LABEL_SEPARATOR" in written:
        separator = options["DATA.PATH_LABEL_SEPARATOR"]
        if separator in _SEPARATORS:
            keys["data.separator"] = _SEPARATORS[separator]
        else:
            result.unequal["DATA.PATH_LABEL_SEPARATOR"] = f"{separator!r}; see data.separator"


def _set_augmentation(options: Options, result: Training, *, images: bool) -> None:
    """RandAugment, erasing, color and mixing of a classification."""
    keys, unequal = result.keys, result.unequal
    enabled = options["AUG.ENABLE"]
    policy = options["AUG.AA_TYPE"] or ""
    if enabled and policy and not policy.startswith("rand"):
        unequal["AUG.AA_TYPE"] = f"{policy!r}; augment.randaugment has RandAugment only"
        policy = ""
    keys["augment.randaugment"] = policy if enabled else ""
    interpolation = options["AUG.INTERPOLATION"]
    if enabled and policy and interpolation not in ("bicubic", "bilinear"):
        unequal["AUG.INTERPOLATION"] = f"{interpolation!r}; augment.interpolation has bicubic and bilinear"
    elif enabled:
        keys["augment.interpolation"] = interpolation
    keys["augment.erasing"] = options["AUG.RE_PROB"] if enabled else 0.0
    if keys["augment.erasing"] and (options["AUG.RE_MODE"] != "pixel" or options["AUG.RE_COUNT"] != 1):
        unequal["AUG.RE_MODE"] = "erasing fills one box with noise per pixel here"
    jitter = options["AUG.COLOR_JITTER"]
    if images and enabled and not policy and jitter:
        keys |= {f"augment.{name}": jitter for name in ("brightness", "contrast", "saturation")}
    elif jitter and enabled:
        unequal["AUG.COLOR_JITTER"] = "PySlowFast does not use it for videos, or beside AUG.AA_TYPE"
    for theirs, ours in (
        ("ALPHA", "mixup"),
        ("CUTMIX_ALPHA", "cutmix"),
        ("PROB", "probability"),
        ("SWITCH_PROB", "switch"),
        ("LABEL_SMOOTH_VALUE", "smoothing"),
    ):
        off = not options["MIXUP.ENABLE"] and ours in ("mixup", "cutmix", "smoothing")
        keys[f"mix.{ours}"] = 0.0 if off else options[f"MIXUP.{theirs}"]
    for key in ("DATA.SSL_COLOR_JITTER", "DATA.COLOR_RND_GRAYSCALE", "DATA.TIME_DIFF_PROB"):
        if options[key]:
            unequal[key] = "no equal here"


def _set_detection(options: Options, result: Training) -> None:
    """Annotations, frames and augmentation of AVA."""
    keys, unequal = result.keys, result.unequal

    def beside(key: str, names: list[str]) -> list[str]:
        folder = options[key].rstrip("/")
        return [f"{folder}/{name}" if folder else name for name in names]

    truth, *others = options["AVA.TRAIN_GT_BOX_LISTS"] or [""]
    # The published lists of detected boxes repeat the ground truth, which is read anyway.
    detected = [name for name in options["AVA.TRAIN_PREDICT_BOX_LISTS"] if name not in (truth, *others)]
    (keys["data.train"],) = beside("AVA.ANNOTATION_DIR", [truth])
    keys["data.train_boxes"] = beside("AVA.ANNOTATION_DIR", detected)
    if others:
        unequal["AVA.TRAIN_GT_BOX_LISTS"] = f"data.train has one file; {', '.join(others)} missing"
    keys["data.validation_boxes"] = beside("AVA.ANNOTATION_DIR", options["AVA.TEST_PREDICT_BOX_LISTS"])
    for theirs, ours in (
        ("GROUNDTRUTH_FILE", "validation"),
        ("EXCLUSION_FILE", "validation_exclusions"),
        ("LABEL_MAP_FILE", "label_map"),
    ):
        (keys[f"data.{ours}"],) = beside("AVA.ANNOTATION_DIR", [options[f"AVA.{theirs}"]])
    lists = dict.fromkeys([*options["AVA.TRAIN_LISTS"], *options["AVA.TEST_LISTS"]])
    keys["data.frame_lists"] = beside("AVA.FRAME_LIST_DIR", list(lists))
    keys["data.frames"] = options["AVA.FRAME_DIR"]
    keys["boxes.train_score"] = keys["boxes.score"] = options["AVA.DETECTION_SCORE_THRESH"]
    keys["clip.short_side"] = [int(value) for value in options["DATA.TRAIN_JITTER_SCALES"]]
    if options["AVA.TRAIN_USE_COLOR_AUGMENTATION"]:
        unequal["AVA.TRAIN_USE_COLOR_AUGMENTATION"] = "AlexNet's change of colors has no equal here"
        if not options["AVA.TRAIN_PCA_JITTER_ONLY"]:
            keys |= {f"color.{name}": 0.4 for name in ("brightness", "contrast", "saturation")}
    if options["AVA.TEST_FORCE_FLIP"]:
        unequal["AVA.TEST_FORCE_FLIP"] = "evaluate.flip averages over the clip and its mirror image"
    if not options["AVA.FULL_TEST_ON_VAL"]:
        keys["evaluate.every_seconds"] = 4  # PySlowFast validates on every fourth second
