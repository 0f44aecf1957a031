"""The config of the training of action detection."""

from __future__ import annotations

from dataclasses import dataclass

from videomaskfeat.config_keys import key, section
from videomaskfeat.schemas.finetune import (
    ColorConfig,
    FinetuneOptimConfig,
    PretrainedModelConfig,
    ValidationConfig,
)
from videomaskfeat.schemas.sections import AUGMENT_ON, SHARE, FramesConfig, ReadingConfig, RunConfig

AREAS = {"whole": "in its aspect ratio", "center": "a square crop; boxes are clipped to it"}
ACTION_LOSSES = {"sigmoid": "each action by itself", "poses": "a softmax over the poses"}


@dataclass
class AvaVideos:
    """videos"""

    videos: str = key("", "folder with one video file, or one folder of extracted frames, per video")
    frame_lists: list[str] = key([], "lists of extracted frames in PySlowFast's format, instead of videos")
    frames: str = key("", "folder put before the paths of frame_lists")
    frames_fps: float = key(30.0, "frame rate of extracted frames", above=0)
    start_second: float | None = key(
        None,
        "second of the original video at which the files start (AVA: 0 or 900)",
        null="from the times of the key frames",
    )


@dataclass
class ActionDataConfig(AvaVideos, ReadingConfig):
    """Key frames, their boxes and their videos."""

    train: str = key("", "rows video,second,x1,y1,x2,y2,action,person", required="ava_train_v2.2.csv")
    train_boxes: list[str] = key([], "detected boxes for training: rows ...,action or empty,score")
    train_exclusions: str = key("", "rows video,second to leave out of training")
    validation: str = key("", "held-out ground truth; empty: no validation")
    validation_boxes: list[str] = key([], "detected boxes for validation; empty: boxes of the ground truth")
    validation_exclusions: str = key("", "rows video,second that are not scored")
    label_map: str = key("", "label map (pbtxt) of the scored actions", required="actions.pbtxt")
    augment_on: str = key("workers", "where clips are cropped and augmented", choices=AUGMENT_ON)
    classes: int = key(0, "number of actions, ids from 1 (AVA: 80); 0: the label map's largest id", least=0)


@dataclass
class ActionClipConfig(FramesConfig):
    """Clips around key frames."""

    short_side: list[int] = key([256, 320], "range of the short side in training", unit="pixels", least=1)


@dataclass
class BoxConfig:
    """Boxes."""

    train_score: float = key(0.9, "minimum score of a detected box in training", **SHARE)
    train_iou: float = key(0.9, "minimum IoU of a detected box and the box of its actions", **SHARE)
    score: float = key(0.8, "minimum score of a detected box at test time", **SHARE)
    visible: float = key(0.0, "minimum visible share of a box in a training crop, exclusive", **SHARE)


@dataclass
class ActionLossConfig:
    """The loss."""

    name: str = key("sigmoid", "loss", choices=ACTION_LOSSES)
    poses: list[int] = key([], "ids of the poses; empty: from the label map, or 1..14")
    focusing: float = key(0.0, "gamma of the focal loss; 0: cross-entropy", least=0)
    balance: float = key(0.0, "exponent b of action weights count^-b, with mean 1; 0: all equal", **SHARE)


@dataclass
class DetectEvaluateConfig(ValidationConfig):
    """Validation."""

    every_seconds: int = key(1, "seconds between scored key frames during the training", least=1)
    area: str = key("whole", "area of the frame", choices=AREAS)
    short_side: int = key(224, "length of the resized short side", unit="pixels", least=1)
    flip: bool = key(False, "average over the clip and its mirror image at the end", free=True)
    scales: list[int] = key([], "short sides to average over at the end", least=1, free=True)


@dataclass
class DetectConfig:
    """Action detection. MaskFeat has no published recipe: the defaults are Hiera's for AVA."""

    data: ActionDataConfig = section(ActionDataConfig)
    clip: ActionClipConfig = section(ActionClipConfig)
    color: ColorConfig = section(ColorConfig)
    boxes: BoxConfig = section(BoxConfig)
    model: PretrainedModelConfig = section(
        PretrainedModelConfig,
        name="maskfeat_mvitv2_s_detector",
        drop_path=0.4,
        dropout=0.5,
        head_scale=1.0,
    )
    loss: ActionLossConfig = section(ActionLossConfig)
    optim: FinetuneOptimConfig = section(
        FinetuneOptimConfig,
        optimizer="sgd",
        epochs=30,
        warmup_epochs=5,
        batch_size=128,
        base_batch_size=128,
        learning_rate=3.6,
        start_learning_rate=0.01,
        end_learning_rate=0.0036,
        weight_decay=1e-8,
        layer_decay=0.875,
        gradient_clip=5.0,
    )
    evaluate: DetectEvaluateConfig = section(DetectEvaluateConfig)
    run: RunConfig = section(RunConfig)
