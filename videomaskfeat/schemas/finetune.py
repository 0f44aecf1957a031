"""The config of fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from videomaskfeat.config_keys import key, section
from videomaskfeat.schemas.sections import (
    AUGMENT_ON,
    SHARE,
    ClipConfig,
    ListConfig,
    OptimConfig,
    RunConfig,
    StartedModelConfig,
)

CROPS = {1: "center", 3: "along the longer side"}
SAMPLINGS = {"clip": "frames at a stride", "segments": "one frame from each of clip.frames equal segments"}
CROP_KINDS = {"area": "crop_area of the frame, resized", "short_side": "from a frame resized to short_side"}
OPTIMIZERS = {"adamw": "", "sgd": "momentum, Nesterov"}
WEIGHT_SETS = {"auto": "averaged if ema_decay is set", "trained": "", "averaged": "", "both": ""}


@dataclass
class LabeledDataConfig(ListConfig):
    """Labeled videos."""

    classes: int = key(0, "number of classes; 0: from the class names, or the largest label + 1", least=0)
    class_names: str = key("", "file of class names: one per line, or SSv2's labels JSON")
    augment_on: str = key("workers", "where clips are cropped and augmented", choices=AUGMENT_ON)
    balanced: bool = key(False, "equal frequency of all classes in an epoch")


@dataclass
class LabeledClipConfig(ClipConfig):
    """Clips in training."""

    sampling: str = key("clip", "frame sampling", choices=SAMPLINGS)
    crop_kind: str = key("area", "crop", choices=CROP_KINDS)
    short_side: list[int] = key([256, 320], "short_side: range of its length", unit="pixels", least=1)
    short_side_inverse: bool = key(True, "short_side: uniform distribution of 1/length instead of length")
    flip_swaps_labels: bool = key(False, "class of the mirrored template for a flipped clip (SSv2)")


@dataclass
class ColorConfig:
    """Color jitter of a training clip."""

    brightness: float = key(0.0, "maximum relative change of brightness; 0: off", least=0)
    contrast: float = key(0.0, "maximum relative change of contrast; 0: off", least=0)
    saturation: float = key(0.0, "maximum relative change of saturation; 0: off", least=0)


@dataclass
class AugmentConfig(ColorConfig):
    """Augmentation of a training clip."""

    randaugment: str = key("rand-m7-n2-mstd0.5-inc1", "RandAugment in timm's notation; empty: none")
    interpolation: str = key("bicubic", "RandAugment's interpolation", choices=("bicubic", "bilinear"))
    erasing: float = key(0.25, "probability of random erasing: noise in a box of all frames", **SHARE)
    erasing_area: list[float] = key([0.02, 0.3333], "range of the erased share", above=0, greatest=1)


@dataclass
class MixConfig:
    """Mixing of clips and labels in a batch."""

    mixup: float = key(0.8, "alpha of mixup; 0: off", least=0)
    cutmix: float = key(1.0, "alpha of cutmix; 0: off", least=0)
    probability: float = key(1.0, "probability of mixing, per batch", **SHARE)
    switch: float = key(0.5, "probability of cutmix if both are on", **SHARE)
    smoothing: float = key(0.1, "label smoothing", least=0, below=1)


@dataclass
class PretrainedModelConfig(StartedModelConfig):
    """The network and its initial weights."""

    name: str = key("", "name of a model of create_model, or module:name (an Encoder)")
    drop_path: float = key(0.1, "drop path rate of the last block; rises linearly from 0", least=0, below=1)
    dropout: float = key(0.0, "dropout before the last linear layer", least=0, below=1)
    head_scale: float = key(0.001, "factor on the last layer's initial weights")
    lora: dict[str, Any] = key(
        {},
        "LoRA adapters (extra lora), such as {rank: 8, alpha: 16, targets: [attn.qkv, attn.proj]}: only they "
        "and the head are trained; empty: all weights are trained",
    )


@dataclass
class ClassifierConfig(PretrainedModelConfig):
    """The network and its initial weights."""

    name: str = key(
        "maskfeat_mvitv2_s_classifier", "name of a classifier of create_model, or module:name (an Encoder)"
    )
    head: str = key(
        "", "head; empty: the model's own", choices=("", "mean", "norm_mean", "token", "linear", "attentive")
    )


@dataclass
class FinetuneOptimConfig(OptimConfig):
    """Optimization. The batch size is videos times clip.samples_per_video."""

    optimizer: str = key("adamw", "optimizer", choices=OPTIMIZERS)
    momentum: float = key(0.9, "momentum of sgd", least=0, below=1)


@dataclass
class ValidationConfig:
    """Validation."""

    epochs: float = key(5.0, "epochs between two validations; 0: only at the end", least=0)
    weights: str = key("auto", "weights that are evaluated", choices=WEIGHT_SETS)


@dataclass
class EvaluateConfig(ValidationConfig):
    """Validation: one view per video during the training, all views at the end."""

    views: int = key(5, "temporal views per video at the end, evenly spaced", least=1, free=True)
    crops: int = key(1, "crops per view at the end", choices=CROPS, free=True)
    short_side: int = key(256, "short side before a crop is cut", unit="pixels", least=1)
    average: str = key("softmax", "average over views", choices=("softmax", "logits"), free=True)


@dataclass
class FinetuneConfig:
    """Classification. The defaults are the published fine-tuning of MaskFeat MViTv2-S on Kinetics-400."""

    data: LabeledDataConfig = section(LabeledDataConfig)
    clip: LabeledClipConfig = section(LabeledClipConfig, crop_area=[0.08, 1.0], samples_per_video=2)
    augment: AugmentConfig = section(AugmentConfig)
    mix: MixConfig = section(MixConfig)
    model: ClassifierConfig = section(ClassifierConfig)
    optim: FinetuneOptimConfig = section(
        FinetuneOptimConfig,
        epochs=100,
        warmup_epochs=20,
        learning_rate=6e-4,
        layer_decay=0.75,
        gradient_clip=5.0,
    )
    evaluate: EvaluateConfig = section(EvaluateConfig)
    run: RunConfig = section(RunConfig)
