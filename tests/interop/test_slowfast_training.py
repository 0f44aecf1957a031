"""Training keys of PySlowFast YAMLs: equal learning rates, and every row of the table of keys."""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.interop.test_slowfast import GOLDEN, KINETICS, write_config
from tests.jobs.slowfast_yamls import PUBLIC
from videomaskfeat import cli
from videomaskfeat.config import load_config
from videomaskfeat.config_keys import keys_of
from videomaskfeat.engine.sections import build_schedule
from videomaskfeat.errors import UserError
from videomaskfeat.interop.slowfast_keys import SUPPORTED
from videomaskfeat.interop.slowfast_training import REASONS
from videomaskfeat.jobs import detect, finetune
from videomaskfeat.jobs.import_weights import import_slowfast
from videomaskfeat.models.loading import load_model
from videomaskfeat.models.roi_align import roi_align
from videomaskfeat.schemas.detect import DetectConfig
from videomaskfeat.schemas.finetune import FinetuneConfig
from videomaskfeat.schemas.pretrain import PretrainConfig
from videomaskfeat.stored_recipe import read_detect_recipe

DOCS = Path(__file__).parents[2]
PAGE = (DOCS / "docs/how_to/come_from_pyslowfast.md").read_text(encoding="utf-8")
KEYS = [
    (theirs.replace("`", "").replace(",", ""), ours.replace("`", "").replace(",", ""))
    for theirs, ours in re.findall(r"^\| (`[A-Z].*`) \| (`.*`) \|$", PAGE, re.MULTILINE)
]
"""Rows of the page: keys of PySlowFast, and the keys of our configs that they determine."""
SOLVER: dict[str, Any] = {
    "BASE_LR": 0.0006,
    "BASE_LR_SCALE_NUM_SHARDS": True,
    "COSINE_AFTER_WARMUP": True,
    "COSINE_END_LR": "1e-6",
    "WARMUP_START_LR": "1e-6",
    "WARMUP_EPOCHS": 20.0,
    "MAX_EPOCH": 100,
    "WEIGHT_DECAY": 0.05,
    "LAYER_DECAY": 0.75,
    "CLIP_GRAD_L2NORM": 5.0,
    "OPTIMIZING_METHOD": "adamw",
    "ZERO_WD_1D_PARAM": True,
}
FINETUNING: dict[str, Any] = {
    **{f"SOLVER.{key}": value for key, value in SOLVER.items()},
    "AUG.NUM_SAMPLE": 2,
    "TRAIN.BATCH_SIZE": 16,
}
DETECTION: dict[str, Any] = {
    "DETECTION": {"ENABLE": True, "SPATIAL_SCALE_FACTOR": 8},
    "MODEL.HEAD_ACT": "sigmoid",
    "MODEL.NUM_CLASSES": 5,
    "MODEL.LOSS_FUNC": "bce",
    "TRAIN.DATASET": "ava",
    "TEST.DATASET": "ava",
}


def translated(folder: Path, changes: dict[str, Any], *, of: Path = KINETICS) -> Any:
    """The config of a recorded YAML with changes, without a checkpoint."""
    folder.mkdir(exist_ok=True)
    outcome = import_slowfast(write_config(folder, changes, of=of), None, folder / "out")
    assert outcome.weights is None
    kind = PretrainConfig if of == GOLDEN else DetectConfig if "DETECTION" in changes else FinetuneConfig
    return load_config(kind, str(outcome.config)), outcome


def published_rate(solver: dict[str, Any], shards: int, epoch: float) -> float:
    """The learning rate of PySlowFast: rates times the nodes if BASE_LR_SCALE_NUM_SHARDS, then its policy."""
    factor = shards if solver.get("BASE_LR_SCALE_NUM_SHARDS") else 1
    base, start = solver["BASE_LR"] * factor, float(solver["WARMUP_START_LR"]) * factor
    warmup, length = solver["WARMUP_EPOCHS"], solver["MAX_EPOCH"]

    def policy(at: float) -> float:
        if "LRS" in solver:
            passed = [rate for step, rate in zip(solver["STEPS"], solver["LRS"], strict=True) if step <= at]
            return base * passed[-1]
        end = float(solver["COSINE_END_LR"]) * factor
        return end + (base - end) * (1 + math.cos(math.pi * (at - warmup) / (length - warmup))) / 2

    return start + (policy(warmup) - start) * epoch / warmup if epoch < warmup else policy(epoch)


STEPS = {"LR_POLICY": "steps_with_relative_lrs", "STEPS": [0, 40, 80], "LRS": [1, 0.1, 0.01]}


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("changes", [{}, {"BASE_LR_SCALE_NUM_SHARDS": False}, STEPS, {"WARMUP_EPOCHS": 0.0}])
def test_learning_rates_equal_those_of_pyslowfast(
    changes: dict[str, Any], shards: int, tmp_path: Path
) -> None:
    solver = {**SOLVER, **changes}
    keys = {f"SOLVER.{key}": value for key, value in solver.items()}
    config, outcome = translated(tmp_path, {**FINETUNING, **keys, "NUM_SHARDS": shards})
    schedule = build_schedule(config.optim)
    for epoch in (0.0, 0.5, 10.0, 19.99, 20.0, 39.9, 40.1, 77.7, 99.9):
        # In float64, only the order of the factors differs.
        assert schedule(epoch) == pytest.approx(published_rate(solver, shards, epoch), rel=1e-9), epoch
    assert config.optim.batch_size == 16 * 2 * shards
    assert not {key for key in outcome.unequal if key.startswith("SOLVER.")}


def test_learning_rates_equal_recorded_ones(golden: Path, tmp_path: Path) -> None:
    config, _ = translated(tmp_path, FINETUNING)
    schedule = build_schedule(config.optim)
    for epoch, rate in json.loads((golden / "protocol.json").read_text())["lr_finetune_s"]:
        assert schedule(epoch) == pytest.approx(rate, rel=1e-9)


# PySlowFast key -> a value that differs from that of the recorded YAML and from the default.
VALUES: dict[str, Any] = {
    "DATA.NUM_FRAMES": 8,
    "DATA.SAMPLING_RATE": 3,
    "DATA.TARGET_FPS": 25,
    "DATA.TRAIN_CROP_SIZE": 96,
    "DATA.MEAN": [0.1, 0.2, 0.3],
    "DATA.STD": [0.1, 0.2, 0.3],
    "DATA.RANDOM_FLIP": False,
    "DATA.TRAIN_JITTER_SCALES_RELATIVE": [0.3, 0.9],
    "DATA.TRAIN_JITTER_ASPECT_RELATIVE": [0.9, 1.1],
    "DATA.TRAIN_JITTER_SCALES": [70, 90],
    "DATA.INV_UNIFORM_SAMPLE": True,
    "AUG.NUM_SAMPLE": 3,
    "DATA.TRAIN_CROP_NUM_TEMPORAL": 3,
    "DATA.TRAIN_CROP_NUM_SPATIAL": 3,
    "DATA.PATH_TO_DATA_DIR": "k400/",
    "DATA.PATH_PREFIX": "videos",
    "DATA.PATH_LABEL_SEPARATOR": ",",
    "DATA_LOADER.NUM_WORKERS": 5,
    "AUG.ENABLE": False,
    "AUG.AA_TYPE": "rand-m5-n1-mstd0.5-inc1",
    "AUG.INTERPOLATION": "bilinear",
    "AUG.RE_PROB": 0.6,
    "AUG.COLOR_JITTER": 0.3,
    "MIXUP.ENABLE": False,
    "MIXUP.ALPHA": 0.3,
    "MIXUP.CUTMIX_ALPHA": 0.3,
    "MIXUP.PROB": 0.3,
    "MIXUP.SWITCH_PROB": 0.3,
    "MIXUP.LABEL_SMOOTH_VALUE": 0.3,
    "AUG.MASK_RATIO": 0.6,
    "AUG.MASK_TUBE": True,
    "AUG.MASK_FRAMES": True,
    "AUG.MASK_WINDOW_SIZE": [2, 4, 4],
    "MVIT.DROPPATH_RATE": 0.3,
    "MODEL.DROPOUT_RATE": 0.3,
    "SOLVER.BASE_LR": 0.3,
    "SOLVER.WARMUP_START_LR": 0.003,
    "SOLVER.COSINE_END_LR": 0.003,
    "TRAIN.BATCH_SIZE": 24,
    "NUM_SHARDS": 3,
    "SOLVER.BASE_LR_SCALE_NUM_SHARDS": False,
    "SOLVER.MAX_EPOCH": 77,
    "SOLVER.WARMUP_EPOCHS": 3.0,
    "SOLVER.LR_POLICY": "steps_with_relative_lrs",
    "SOLVER.STEPS": [0, 50],
    "SOLVER.LRS": [0.5, 0.1],
    "SOLVER.OPTIMIZING_METHOD": "sgd",
    "SOLVER.MOMENTUM": 0.7,
    "SOLVER.BETAS": [0.9, 0.95],
    "SOLVER.WEIGHT_DECAY": 0.3,
    "SOLVER.LAYER_DECAY": 0.3,
    "SOLVER.CLIP_GRAD_L2NORM": 0.3,
    "TRAIN.EVAL_PERIOD": 3,
    "TRAIN.CHECKPOINT_PERIOD": 3,
    "TRAIN.CHECKPOINT_FILE_PATH": "other.pyth",
    "RNG_SEED": 7,
    "TEST.NUM_ENSEMBLE_VIEWS": 2,
    "TEST.NUM_TEMPORAL_CLIPS": [3],
    "TEST.NUM_SPATIAL_CROPS": 3,
    "AVA.ANNOTATION_DIR": "other",
    "AVA.TRAIN_GT_BOX_LISTS": ["truth.csv"],
    "AVA.TRAIN_PREDICT_BOX_LISTS": ["boxes.csv"],
    "AVA.TEST_PREDICT_BOX_LISTS": ["test.csv"],
    "AVA.GROUNDTRUTH_FILE": "val.csv",
    "AVA.EXCLUSION_FILE": "out.csv",
    "AVA.LABEL_MAP_FILE": "map.pbtxt",
    "AVA.FULL_TEST_ON_VAL": True,
    "AVA.FRAME_DIR": "pictures",
    "AVA.FRAME_LIST_DIR": "lists",
    "AVA.TRAIN_LISTS": ["t.csv"],
    "AVA.TEST_LISTS": ["v.csv"],
    "AVA.DETECTION_SCORE_THRESH": 0.6,
    "AVA.TRAIN_USE_COLOR_AUGMENTATION": True,
    "AVA.TRAIN_PCA_JITTER_ONLY": False,
    "DETECTION.ROI_XFORM_RESOLUTION": 5,
}
# Keys that have an effect only beside another value.
BESIDE: dict[str, dict[str, Any]] = {
    "DATA.TRAIN_JITTER_SCALES": {
        "DATA.TRAIN_JITTER_SCALES_RELATIVE": [],
        "DATA.TRAIN_JITTER_ASPECT_RELATIVE": [],
    },
    "DATA.INV_UNIFORM_SAMPLE": {
        "DATA.TRAIN_JITTER_SCALES_RELATIVE": [],
        "DATA.TRAIN_JITTER_ASPECT_RELATIVE": [],
    },
    "SOLVER.BASE_LR_SCALE_NUM_SHARDS": {"NUM_SHARDS": 3},
    "SOLVER.LR_POLICY": {"SOLVER.STEPS": [0, 40], "SOLVER.LRS": [1, 0.1]},
    "SOLVER.STEPS": {"SOLVER.LR_POLICY": "steps_with_relative_lrs", "SOLVER.LRS": [1, 0.1]},
    "SOLVER.LRS": {"SOLVER.LR_POLICY": "steps_with_relative_lrs", "SOLVER.STEPS": [0, 40]},
    "SOLVER.MOMENTUM": {"SOLVER.OPTIMIZING_METHOD": "sgd"},
    "TEST.NUM_ENSEMBLE_VIEWS": {"TEST.NUM_TEMPORAL_CLIPS": []},
    "AUG.COLOR_JITTER": {"AUG.AA_TYPE": ""},
    "AVA.TRAIN_PCA_JITTER_ONLY": {"AVA.TRAIN_USE_COLOR_AUGMENTATION": True},
    "AVA.TRAIN_USE_COLOR_AUGMENTATION": {"AVA.TRAIN_PCA_JITTER_ONLY": False},
}


UNCHANGED: dict[str, dict[str, Any]] = {}
"""Values before a change, which many keys share."""


def values_of(config: Any) -> dict[str, Any]:
    return {one.name: one.value for one in keys_of(type(config))} | {
        f"{section}.{name}": value
        for section, keys in vars(config).items()
        for name, value in vars(keys).items()
    }


def test_page_has_a_table_of_keys() -> None:
    assert len(KEYS) == 27


@pytest.mark.parametrize("key", [key for theirs, _ in KEYS for key in theirs.split()])
def test_each_key_changes_the_keys_of_its_row(key: str, tmp_path: Path) -> None:
    rows = [ours.split() for theirs, ours in KEYS if key in theirs.split()]
    of, changes = (KINETICS, dict[str, Any](FINETUNING))
    if key.startswith(("AVA.", "DETECTION.")):
        changes |= detection_changes()
    elif "MASK" in key:
        of, changes = GOLDEN, {}
    elif key == "AUG.COLOR_JITTER":
        changes |= image_changes()
    beside = BESIDE.get(key, {})
    changes |= beside
    known = repr((of, changes))
    if known not in UNCHANGED:
        UNCHANGED[known] = values_of(translated(tmp_path / "a", changes, of=of)[0])
    changes |= {key: VALUES[key]}
    if key == "DATA.TRAIN_CROP_SIZE":
        changes["DATA.TEST_CROP_SIZE"] = VALUES[key]
    old, new = UNCHANGED[known], values_of(translated(tmp_path / "b", changes, of=of)[0])
    changed = {name for name in old if old[name] != new[name]}
    allowed = {name for row in rows for name in row}
    # Lengths of clips also change the views, and a changed model its arguments.
    assert changed, key
    assert changed <= allowed | {"evaluate.short_side", "mask.cell", "optim.start_learning_rate"}, key


def image_changes() -> dict[str, Any]:
    """The recorded classifier as one of images."""
    return {
        "MVIT.PATCH_2D": True,
        "MVIT.PATCH_KERNEL": [7, 7],
        "MVIT.PATCH_STRIDE": [4, 4],
        "MVIT.PATCH_PADDING": [3, 3],
        "MVIT.POOL_KVQ_KERNEL": [1, 3, 3],
        "MVIT.POOL_KV_STRIDE_ADAPTIVE": ...,
        "MVIT.POOL_KV_STRIDE": [[0, 1, 4, 4], [1, 1, 2, 2], [2, 1, 2, 2], [3, 1, 1, 1]],
        "MVIT.CLS_EMBED_ON": False,
        "MVIT.REL_POS_TEMPORAL": False,
        "DATA.NUM_FRAMES": 1,
        "TRAIN.DATASET": "imagenet",
        "TEST.DATASET": "imagenet",
    }


def test_images_of_imagenet_are_translated_and_built(tmp_path: Path) -> None:
    config, outcome = translated(tmp_path, {**FINETUNING, **image_changes(), "AUG.NUM_SAMPLE": 1})
    assert (config.data.format, config.clip.frames, config.clip.stride) == ("images", 1, 1)
    assert (config.evaluate.views, config.evaluate.crops) == (1, 1)
    assert config.evaluate.short_side == int(64 / 0.875)
    assert config.model.head == "norm_mean"
    assert outcome.unequal["AUG.COLOR_JITTER"].startswith("PySlowFast does not use it")
    model, _ = finetune.build_classifier(config, config.data.classes)
    assert model.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


def test_pooling_of_keys_per_block_must_follow_the_queries(tmp_path: Path) -> None:
    changes = {**image_changes(), "MVIT.POOL_KV_STRIDE": [[block, 1, 4, 4] for block in range(4)]}
    with pytest.raises(UserError, match=r"MVIT.POOL_KV_STRIDE .* must list each block once, and each query"):
        translated(tmp_path, changes)


def detection_changes() -> dict[str, Any]:
    """The recorded classifier as a detector without its last query pooling."""
    rows = [[0, 1, 1, 1], [1, 1, 2, 2], [2, 1, 1, 1], [3, 1, 1, 1]]
    return {
        **copy.deepcopy(DETECTION),
        "MVIT.POOL_Q_STRIDE": rows,
        "AVA.FRAME_DIR": "frames",
        "AVA.ANNOTATION_DIR": "ava",
    }


def test_detector_of_ava_has_the_logits_of_its_layers(tmp_path: Path) -> None:
    path = write_config(tmp_path, detection_changes(), of=KINETICS)
    config, _ = translated(tmp_path / "config", detection_changes())
    built, _ = detect.build_detector(config, config.data.classes)
    torch.save({"model_state": built.state_dict()}, tmp_path / "ava.pyth")
    outcome = import_slowfast(path, tmp_path / "ava.pyth", tmp_path / "out")
    model = load_model(outcome.weights)
    clips = torch.randn(2, 3, 4, 64, 64)
    boxes = torch.tensor([[0.0, 3.0, 5.0, 60.0, 40.0], [1.0, 10.0, 0.0, 30.0, 64.0]])
    with torch.no_grad():
        tokens, grid = model.through_blocks(*model.patch_embed(clips))
        maps = model.norm(tokens)[:, 1:].transpose(1, 2).unflatten(2, grid.shape).mean(dim=2)
        cells = roi_align(maps, boxes, 7, spatial_scale=1 / 8, sampling_ratio=0, aligned=True)
        features = cells.flatten(2).max(dim=2).values
        logits = features @ built.head.projection.weight.t() + built.head.projection.bias
        # Tolerance of another order of summation in float32.
        torch.testing.assert_close(model(clips, boxes), logits, atol=1e-5, rtol=1e-5)
    recipe = read_detect_recipe(outcome.weights)
    assert (recipe.classes, recipe.area, recipe.short_side, recipe.score_threshold) == (5, "center", 64, 0.9)
    assert config.data.train == "ava/ava_train_v2.2.csv"
    assert config.data.validation_boxes == ["ava/ava_val_predicted_boxes.csv"]
    assert (config.data.frames, config.evaluate.every_seconds) == ("frames", 4)


def test_detector_with_another_scale_is_refused(tmp_path: Path) -> None:
    changes = {**detection_changes(), "DETECTION": {"ENABLE": True}}
    with pytest.raises(UserError, match=r"SPATIAL_SCALE_FACTOR 16 must be the pixels per cell .* block, 8"):
        translated(tmp_path, changes)
    with pytest.raises(UserError, match=r"MODEL.HEAD_ACT is 'softmax', but action detection supports only"):
        translated(tmp_path, {**detection_changes(), "MODEL.HEAD_ACT": "softmax"})


UNEQUAL: list[tuple[dict[str, Any], str, str]] = [
    ({"SOLVER.NESTEROV": False, "SOLVER.OPTIMIZING_METHOD": "sgd"}, "SOLVER.NESTEROV", "SGD has Nesterov's"),
    ({"SOLVER.OPTIMIZING_METHOD": "adam"}, "SOLVER.OPTIMIZING_METHOD", "'adam'; optim.optimizer has adamw"),
    ({"SOLVER.COSINE_AFTER_WARMUP": False}, "SOLVER.COSINE_AFTER_WARMUP", "the cosine begins after"),
    ({"SOLVER.ZERO_WD_1D_PARAM": False}, "SOLVER.ZERO_WD_1D_PARAM", "never have weight decay here"),
    ({"MVIT.ZERO_DECAY_POS_CLS": ...}, "MVIT.ZERO_DECAY_POS_CLS", "True; positions and class token"),
    ({"SOLVER.CLIP_GRAD_VAL": 1.0}, "SOLVER.CLIP_GRAD_VAL", "by their norm only"),
    ({"SOLVER.LARS_ON": True}, "SOLVER.LARS_ON", "LARS is an optimizer of its own"),
    ({"AUG.AA_TYPE": "augmix"}, "AUG.AA_TYPE", "has RandAugment only"),
    ({"AUG.RE_MODE": "const"}, "AUG.RE_MODE", "noise per pixel"),
    ({"MODEL.LOSS_FUNC": "bce"}, "MODEL.LOSS_FUNC", "the loss here is cross_entropy"),
    ({"NUM_GPUS": 8}, "NUM_GPUS", "torchrun"),
    (
        {"SOLVER.LR_POLICY": "steps_with_relative_lrs", "SOLVER.STEPS": [0, 1], "SOLVER.LRS": [1, 0.1, 0.01]},
        "SOLVER.LR_POLICY",
        "steps with one factor",
    ),
]


@pytest.mark.parametrize(("changes", "key", "reason"), UNEQUAL, ids=[key for _, key, _ in UNEQUAL])
def test_keys_without_an_equal_are_named_with_the_reason(
    changes: dict[str, Any], key: str, reason: str, tmp_path: Path
) -> None:
    _, outcome = translated(tmp_path, {**FINETUNING, **changes})
    assert reason in outcome.unequal[key]
    assert f"{key}" in outcome.text()
    assert f"# No equal: {key}: " in outcome.config.read_text()
    _, plain = translated(tmp_path / "plain", FINETUNING)
    assert key in plain.unequal if key == "NUM_GPUS" else key not in plain.unequal


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"SOLVER.BASE_LR": "high"}, "SOLVER.BASE_LR 'high' must be of type float"),
        ({"TRAIN.BATCH_SIZE": 0}, "TRAIN.BATCH_SIZE 0 must be positive"),
        ({"AVA.TRAIN_LISTS": [3]}, "AVA.TRAIN_LISTS must be a list of file names"),
    ],
)
def test_wrong_training_keys_are_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        translated(tmp_path, changes)


def test_repeated_keys_have_their_last_value(tmp_path: Path) -> None:
    path = write_config(tmp_path, {}, of=KINETICS)
    path.write_text(path.read_text().replace("RE_COUNT: 1", "RE_COUNT: 1\n  NUM_SAMPLE: 4"))
    outcome = import_slowfast(path, None, tmp_path / "out")
    assert load_config(FinetuneConfig, str(outcome.config)).clip.samples_per_video == 4


@pytest.mark.parametrize("name", ["k400_MVITv2_S_16x4_FT", "k400_MVITv2_S_16x4_MaskFeat_PT"])
def test_published_training_is_the_default_of_this_package(name: str, tmp_path: Path) -> None:
    """The published solver of the YAMLs of MaskFeat, as in the golden values of learning rates."""
    content = dict(PUBLIC[name])
    pretraining = name.endswith("PT")
    content["SOLVER"] = dict(SOLVER)
    content["TRAIN"] = {**content["TRAIN"], "BATCH_SIZE": 32 if pretraining else 16}
    content["DATA"] = {
        **content["DATA"],
        "TRAIN_JITTER_SCALES_RELATIVE": [0.5 if pretraining else 0.08, 1.0],
        "TRAIN_JITTER_ASPECT_RELATIVE": [0.75, 1.3333],
    }
    if pretraining:
        content["SOLVER"] |= {
            "BASE_LR": 1e-4,
            "MAX_EPOCH": 300,
            "WARMUP_EPOCHS": 10,
            "CLIP_GRAD_L2NORM": 0.02,
        }
        content["SOLVER"] |= {"LAYER_DECAY": 1.0}
        content["MIXUP"] = {"ENABLE": False}
    else:
        content["AUG"] = {**content["AUG"], "NUM_SAMPLE": 2, "AA_TYPE": "rand-m7-n2-mstd0.5-inc1"}
        content["MODEL"] = {**content["MODEL"], "DROPOUT_RATE": 0.0}
    path = tmp_path / "public.yaml"
    path.write_text(yaml.safe_dump(content))
    outcome = import_slowfast(path, None, tmp_path / "out")
    keys = yaml.safe_load(outcome.config.read_text())  # type: ignore[union-attr]
    expected: dict[str, Any] = {"data": {"workers": 8}}
    if not pretraining:
        expected["data"] |= {"format": "kinetics", "classes": 400}
        expected["evaluate"] = {"views": 10}
    assert keys == expected


def test_page_and_help_have_the_tables_of_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    for patterns, reason in REASONS:
        assert f"| {', '.join(f'`{key}`' for key in patterns.split())} | {reason} |" in PAGE
    readme = (DOCS / "README.md").read_text(encoding="utf-8")
    with pytest.raises(SystemExit):
        cli.main(["import-slowfast", "--help"])
    text = capsys.readouterr().out
    for name, read, written in SUPPORTED:
        row = f"| {name} | {'yes' if read else 'no'} | {'yes' if written else 'no'} |"
        assert row in PAGE
        assert row in readme
        assert f"{name:48} {'yes' if read else 'no':3}  {'yes' if written else 'no'}" in text
