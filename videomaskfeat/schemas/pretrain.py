"""The config of pre-training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from videomaskfeat.config_keys import key, section
from videomaskfeat.schemas.sections import (
    AUGMENT_ON,
    ClipConfig,
    ListConfig,
    OptimConfig,
    RunConfig,
    StartedModelConfig,
)

LABELS = ("auto", "yes", "no")
MASK_KINDS = (
    *("cube", "cube_exact", "tube", "frame", "random", "random_tube", "block", "block_beit"),
    *("multi_block", "multi_block_exact"),
)
PRETRAIN_OPTIMIZERS = {"adamw": "", "lars": "extra lars; BYOL's"}


@dataclass
class DataConfig(ListConfig):
    """Videos."""

    validation: str = key("", "held-out list file or folder; empty: no held-out loss", free=True)
    labels: str = key(
        "auto", "whether rows end with a label; the labels themselves are not used", choices=LABELS
    )


@dataclass
class PretrainDataConfig(DataConfig):
    """Videos."""

    augment_on: str = key("workers", "where clips are cropped and augmented", choices=AUGMENT_ON)


@dataclass
class MaskConfig:
    """The mask."""

    kind: str = key("cube", "kind of mask", choices=MASK_KINDS, plugin="a mask function")
    ratio: float = key(0.4, "fraction of hidden mask cells; unused by multi_block", above=0, below=1)
    cell: list[int] = key([2, 32, 32], "size of a mask cell: frames, rows and columns of pixels", least=1)
    arguments: dict[str, Any] = key({}, "arguments of the policy that differ from its defaults")


@dataclass
class MethodConfig:
    """The pre-training method."""

    name: str = key(
        "masked",
        "masked (predicts the target at hidden positions) | ibot | byol | latent | module:name (a Method)",
    )
    arguments: dict[str, Any] = key({}, "arguments of the method that differ from its defaults")


@dataclass
class ModelConfig(StartedModelConfig):
    """The network and its initial weights."""

    initialization: str = key(
        "published",
        "defaults of a ViT's initial weights and positions: the method's published ones, or PySlowFast's "
        "(slowfast; also to resume a run of a version without this key)",
        choices=("published", "slowfast"),
        free=True,
    )


@dataclass
class TargetConfig:
    """The target of the method masked."""

    name: str = key("hog", "name of a target, or module:name (a Target)")
    arguments: dict[str, Any] = key({}, "arguments of the target that differ from its defaults")


@dataclass
class PretrainOptimConfig(OptimConfig):
    """Optimization of the encoder."""

    optimizer: str = key("adamw", "optimizer", choices=PRETRAIN_OPTIMIZERS)
    momentum: float = key(0.9, "momentum of lars", least=0, below=1)
    end_weight_decay: float | None = key(
        None, "weight decay at the end, on a cosine from weight_decay; null: constant", least=0
    )
    gradient_clip_each: float | None = key(
        None, "maximum L2 norm of each parameter's gradient, after gradient_clip; null: none", above=0
    )
    accumulate: int = key(1, "micro-batches per optimizer step, for each rank", least=1, free=True)


@dataclass
class ProbeConfig:
    """Labeled videos for scores of frozen features during the training. Their labels train nothing."""

    train: str = key("", "labeled list file of known features; empty: no probe", free=True)
    test: str = key("", "labeled list file of the videos to classify", free=True)
    factors: dict[str, Any] = key({}, "more probes: name -> {train: list file, test: list file}", free=True)
    blocks: int = key(
        1,
        "number of last blocks whose features are read side by side; DINO's and iBOT's: 4",
        least=1,
        free=True,
    )
    k: int = key(20, "number of nearest neighbors", least=1, free=True)
    temperature: float = key(0.07, "temperature of the neighbors' votes", above=0, free=True)
    penalty: float = key(1e-2, "L2 penalty of the linear probe", above=0, free=True)


@dataclass
class PretrainRunConfig(RunConfig):
    """The run and its held-out evaluations."""

    evaluate_epochs: float = key(0.0, "epochs between evaluations; 0: only at the end", least=0, free=True)
    evaluate_clips: int = key(256, "maximum number of held-out clips", free=True)
    pictures: int = key(4, "number of held-out videos drawn at the end", least=0, free=True)


@dataclass
class PretrainClipConfig(ClipConfig):
    """Clips."""

    crop_area: list[float] = key(
        [0.5, 1.0],
        "range of the crop's share of the frame; this default means 0.25..1 for ibot and 0.08..1 for byol",
        above=0,
        greatest=1,
    )


@dataclass
class PretrainConfig:
    """Masked pre-training. The defaults are the published MaskFeat recipe of MViTv2-S on Kinetics-400."""

    data: PretrainDataConfig = section(PretrainDataConfig)
    clip: PretrainClipConfig = section(PretrainClipConfig)
    mask: MaskConfig = section(MaskConfig)
    method: MethodConfig = section(MethodConfig)
    model: ModelConfig = section(ModelConfig)
    target: TargetConfig = section(TargetConfig)
    optim: PretrainOptimConfig = section(PretrainOptimConfig)
    probe: ProbeConfig = section(ProbeConfig)
    run: PretrainRunConfig = section(PretrainRunConfig)
