"""The keys of fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from videomaskfeat.config.key import key
from videomaskfeat.config.pretrain import OptimConfig, RunConfig


@dataclass
class LabelledDataConfig:
    """Which labelled videos, and how they are read."""

    train: str = key("", "list file, or folder of class folders of pictures, to train on (required)")
    validation: str = key("", "held-out list; empty: no validation")
    format: str = key("auto", "auto | kinetics | ssv2 | images: format of the lists")
    separator: str = key(
        "auto", "column separator of a list: auto, space, comma, tab, colons (::), semicolon or pipe"
    )
    prefix: str = key("", "folder put before every relative path of the lists")
    classes: int = key(0, "number of classes; 0: as the class names, or one more than the largest label")
    class_names: str = key("", "file of class names: one a line in the labels' order, or SSv2's labels JSON")
    balanced: bool = key(False, "draw every class equally often in an epoch")
    reader: str = key("auto", "auto | decord | pyav: video reader; auto falls back to PyAV a file")
    workers: int = key(2, "processes that load clips, a rank; 0 loads in the main process")
    read_seconds: float = key(
        120.0, "seconds without progress on one record after which a loader process is replaced"
    )
    failure_share: float = key(
        0.01, "share of the list that may be unreadable before the run stops, 0..1; above 0, one always may"
    )


@dataclass
class LabelledClipConfig:
    """What is cut from a video in training."""

    sampling: str = key("clip", "clip (frames at a stride) | segments (a frame of each of equal parts: SSv2)")
    frames: int = key(16, "frames a clip")
    stride: int = key(4, "source frames from one frame of the clip to the next, counted at target_fps")
    target_fps: float | None = key(30.0, "frames a second at which the stride counts; null: the source's own")
    short_video: str = key("clamp", "clamp | loop | error: what a video shorter than the clip does")
    crop: int = key(224, "height and width of the clip, pixels")
    crop_kind: str = key(
        "area", "area (random area and aspect, resized) | short_side (resized, then cut out)"
    )
    crop_area: list[float] = key([0.08, 1.0], "area: least and greatest share of the frame")
    crop_aspect: list[float] = key([0.75, 1.3333], "area: least and greatest width/height")
    short_side: list[int] = key([256, 320], "short_side: least and greatest length, pixels")
    short_side_inverse: bool = key(True, "short_side: draw 1/length evenly instead of the length")
    flip: float = key(0.5, "chance of a horizontal flip, 0..1; 0 for SSv2, whose classes know left and right")
    flip_swaps_labels: bool = key(False, "a flipped clip takes the class of the mirrored template (SSv2)")
    samples_per_video: int = key(2, "clips cut from one opening of a video")
    mean: Any = key(0.45, "subtracted from pixels in 0..1: a number, or a list of one a channel")
    std: Any = key(0.225, "divides them after that: a number, or a list of one a channel")


@dataclass
class AugmentConfig:
    """What is done to the colours and shapes of a training clip."""

    randaugment: str = key("rand-m7-n2-mstd0.5-inc1", "RandAugment in timm's words; empty: none")
    interpolation: str = key("bicubic", "bicubic | bilinear: of RandAugment's rotations, shears and shifts")
    brightness: float = key(0.0, "colour jitter: greatest change, a share")
    contrast: float = key(0.0, "colour jitter: greatest change, a share")
    saturation: float = key(0.0, "colour jitter: greatest change, a share")
    erasing: float = key(0.25, "chance that a box, the same in all frames, becomes noise, 0..1")
    erasing_area: list[float] = key([0.02, 0.3333], "least and greatest share of the frame that is erased")


@dataclass
class MixConfig:
    """How clips and labels of a batch are mixed."""

    mixup: float = key(0.8, "mixup's alpha; 0: off")
    cutmix: float = key(1.0, "cutmix's alpha; 0: off")
    probability: float = key(1.0, "chance that a batch is mixed at all, 0..1")
    switch: float = key(0.5, "chance of cutmix where both are on, 0..1")
    smoothing: float = key(0.1, "label smoothing, 0..1, 1 excluded")


@dataclass
class ClassifierConfig:
    """Which network, and the weights it starts from."""

    name: str = key("maskfeat_mvitv2_s_classifier", "a classifier that create_model knows")
    arguments: dict[str, Any] = key({}, "what differs from that model's own arguments")
    head: str = key("", "mean | token | linear | attentive; empty: the model's own")
    drop_path: float = key(0.1, "chance of dropping a residual branch in the last block; rises from 0")
    dropout: float = key(0.0, "before the last linear layer, 0..1")
    head_scale: float = key(0.001, "factor on the last layer's initial weights")
    weights: str = key("", "weights to start from: ours, or a PySlowFast checkpoint; empty: from scratch")
    weights_key: str = key("", "which weights of a checkpoint that holds several, such as model_ema")
    inflate: str = key("repeated", "repeated | centred: an image model's kernel over the frames of a cube")
    allow_missing: list[str] = key([], "further weights that the file may lack: names, or patterns (norm.*)")
    allow_unused: list[str] = key([], "further weights that the file may have in excess")


@dataclass
class FinetuneOptimConfig(OptimConfig):
    """How it is trained; the batch counts clips, so videos times clip.samples_per_video."""

    optimizer: str = key("adamw", "adamw | sgd (momentum, Nesterov)")
    momentum: float = key(0.9, "of sgd")
    epochs: float = key(100, "passes over the list")
    warmup_epochs: float = key(20, "passes of linear warm-up")
    learning_rate: float = key(6e-4, "peak, for base_batch_size")
    layer_decay: float = key(0.75, "learning rate factor from a layer to the one before; 1: none")
    gradient_clip: float | None = key(5.0, "greatest L2 norm of the gradient; null: no clipping")


@dataclass
class EvaluateConfig:
    """How it is validated: one view while it trains, all of them at the end."""

    epochs: float = key(5.0, "epochs from one validation to the next; 0: only at the end")
    views: int = key(5, "clips a video at the end, spread evenly over time")
    crops: int = key(1, "crops a clip at the end: 1 (centre) or 3 (along the longer side)")
    short_side: int = key(256, "pixels that the short side is resized to before a crop is cut")
    average: str = key("softmax", "softmax | logits: what is averaged over a video's views")
    weights: str = key("auto", "auto (averaged, where ema_decay is set) | trained | averaged | both")


@dataclass
class FinetuneConfig:
    """Classification; the defaults are the published fine-tuning of MaskFeat MViTv2-S on Kinetics-400."""

    data: LabelledDataConfig = field(default_factory=LabelledDataConfig)
    clip: LabelledClipConfig = field(default_factory=LabelledClipConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    mix: MixConfig = field(default_factory=MixConfig)
    model: ClassifierConfig = field(default_factory=ClassifierConfig)
    optim: FinetuneOptimConfig = field(default_factory=FinetuneOptimConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    run: RunConfig = field(default_factory=RunConfig)
