"""The keys of action detection."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from videomaskfeat.config.finetune import FinetuneOptimConfig
from videomaskfeat.config.key import key
from videomaskfeat.config.pretrain import RunConfig


@dataclass
class ActionDataConfig:
    """Which key frames, with which boxes, and where their videos are."""

    train: str = key("", "ground truth to train on: rows video,second,x1,y1,x2,y2,action,person (required)")
    train_boxes: list[str] = key([], "detected boxes to train on besides: rows ...,action or empty,score")
    train_exclusions: str = key("", "rows video,second to leave out of training")
    validation: str = key("", "held-out ground truth; empty: no validation")
    validation_boxes: list[str] = key([], "detected boxes to test on; empty: those of the ground truth")
    validation_exclusions: str = key("", "rows video,second that are not scored")
    label_map: str = key("", "actions that are named and scored (pbtxt; required)")
    classes: int = key(0, "number of actions, ids 1 to this (AVA: 80); 0: the label map's largest id")
    videos: str = key("", "folder of the videos: a file each, or a folder of extracted frames each")
    frame_lists: list[str] = key([], "instead: lists of extracted frames in PySlowFast's format")
    frames: str = key("", "folder put before the paths of frame_lists")
    frames_fps: float = key(30.0, "frames a second at which frames were extracted")
    start_second: float | None = key(
        None, "second, as the rows count, of each video's first frame (AVA: 0 or 900); null: found out"
    )
    workers: int = key(2, "processes that load clips, a rank; 0 loads in the main process")
    read_seconds: float = key(
        120.0, "seconds without progress on one record after which a loader process is replaced"
    )
    failure_share: float = key(
        0.01, "share of the key frames that may be unreadable before the run stops; above 0, one always may"
    )


@dataclass
class ActionClipConfig:
    """What is cut from a video around a key frame."""

    frames: int = key(16, "frames a clip")
    stride: int = key(4, "source frames from one frame of the clip to the next, counted at target_fps")
    target_fps: float | None = key(30.0, "frames a second at which the stride counts; null: the source's own")
    crop: int = key(224, "height and width of the clip in training, pixels")
    short_side: list[int] = key([256, 320], "least and greatest length of the short side in training, pixels")
    flip: float = key(0.5, "chance of a horizontal flip, 0..1; 0 where actions know left and right")
    mean: Any = key(0.45, "subtracted from pixels in 0..1: a number, or a list of one a channel")
    std: Any = key(0.225, "divides them after that: a number, or a list of one a channel")


@dataclass
class ColourConfig:
    """What is done to the colours of a training clip."""

    brightness: float = key(0.0, "greatest change, a share; 0: none")
    contrast: float = key(0.0, "greatest change, a share; 0: none")
    saturation: float = key(0.0, "greatest change, a share; 0: none")


@dataclass
class BoxConfig:
    """Which boxes are trained and tested on."""

    train_score: float = key(0.9, "least score of a detected box in training, 0..1")
    train_iou: float = key(0.9, "overlap with a ground-truth box at which a detected one takes its actions")
    score: float = key(0.8, "least score of a detected box in testing, 0..1")
    visible: float = key(0.0, "training: a box stays, cut, where the crop shows more than this share of it")


@dataclass
class DetectorConfig:
    """Which network, and the weights it starts from."""

    name: str = key("maskfeat_mvitv2_s_detector", "a detector that create_model knows")
    arguments: dict[str, Any] = key({}, "what differs from that model's own arguments (temporal, scene, ...)")
    drop_path: float = key(0.4, "chance of dropping a residual branch in the last block; rises from 0")
    dropout: float = key(0.5, "before the last linear layer, 0..1")
    head_scale: float = key(1.0, "factor on the last layer's initial weights")
    weights: str = key("", "weights to start from: ours, or a PySlowFast checkpoint; empty: from scratch")
    weights_key: str = key("", "which weights of a checkpoint that holds several, such as model_ema")
    inflate: str = key("repeated", "repeated | centred: an image model's kernel over the frames of a cube")
    allow_missing: list[str] = key([], "further weights that the file may lack: names, or patterns (norm.*)")
    allow_unused: list[str] = key([], "further weights that the file may have in excess")


@dataclass
class ActionLossConfig:
    """What is minimised."""

    name: str = key("sigmoid", "sigmoid (each action by itself) | poses (a softmax over the poses)")
    poses: list[int] = key(
        [], "poses: ids of which a person has exactly one; empty: the label map's, or 1..14"
    )
    focusing: float = key(0.0, "gamma of the focal loss of the actions by themselves; 0: cross-entropy")
    balance: float = key(0.0, "actions weigh count^-balance, their mean 1; 0: all alike")


@dataclass
class DetectOptimConfig(FinetuneOptimConfig):
    """How it is trained; the batch counts clips, one a key frame."""

    optimizer: str = key("sgd", "adamw | sgd (momentum, Nesterov)")
    epochs: float = key(30, "passes over the key frames")
    warmup_epochs: float = key(5, "passes of linear warm-up")
    batch_size: int = key(128, "clips an optimiser step, over all ranks and micro-batches")
    base_batch_size: int = key(128, "batch size the learning rates are stated for; they scale linearly")
    learning_rate: float = key(3.6, "peak, for base_batch_size")
    start_learning_rate: float = key(0.01, "at step 0, for base_batch_size")
    end_learning_rate: float = key(0.0036, "at the end, for base_batch_size")
    weight_decay: float = key(1e-8, "none on 1-d parameters")
    layer_decay: float = key(0.875, "learning rate factor from a layer to the one before; 1: none")


@dataclass
class DetectEvaluateConfig:
    """How it is validated."""

    epochs: float = key(5.0, "epochs from one validation to the next; 0: only at the end")
    every_seconds: int = key(1, "while it trains, only key frames at each n-th second; all at the end")
    area: str = key("whole", "whole (the frame in its aspect) | centre (a square crop, boxes cut to it)")
    short_side: int = key(224, "pixels that the short side is resized to")
    flip: bool = key(False, "at the end, average over the clip and its mirror image")
    scales: list[int] = key([], "at the end, average over these short sides; empty: short_side alone")
    weights: str = key("auto", "auto (averaged, where ema_decay is set) | trained | averaged | both")


@dataclass
class DetectConfig:
    """Detection of actions; nobody published it for MaskFeat: the defaults are Hiera's for AVA."""

    data: ActionDataConfig = field(default_factory=ActionDataConfig)
    clip: ActionClipConfig = field(default_factory=ActionClipConfig)
    colour: ColourConfig = field(default_factory=ColourConfig)
    boxes: BoxConfig = field(default_factory=BoxConfig)
    model: DetectorConfig = field(default_factory=DetectorConfig)
    loss: ActionLossConfig = field(default_factory=ActionLossConfig)
    optim: DetectOptimConfig = field(default_factory=DetectOptimConfig)
    evaluate: DetectEvaluateConfig = field(default_factory=DetectEvaluateConfig)
    run: RunConfig = field(default_factory=RunConfig)
