"""The keys of pre-training, and those that every training has."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from videomaskfeat.config.key import key


@dataclass
class DataConfig:
    """Which videos, and how they are read."""

    train: str = key("", "list file, or folder of videos, frame folders or pictures, to train on (required)")
    validation: str = key("", "held-out list or folder; empty: no held-out loss")
    format: str = key("auto", "auto | kinetics | ssv2 | folder | frames | images: of the lists")
    labels: str = key("auto", "auto | yes | no: whether rows end with a label (not used here, but checked)")
    separator: str = key(
        "auto", "column separator of a list: auto, space, comma, tab, colons (::), semicolon or pipe"
    )
    prefix: str = key("", "folder put before every relative path of the lists")
    reader: str = key("auto", "auto | decord | pyav: video reader; auto falls back to PyAV a file")
    workers: int = key(2, "processes that load clips, a rank; 0 loads in the main process")
    read_seconds: float = key(
        120.0, "seconds without progress on one record after which a loader process is replaced"
    )
    failure_share: float = key(
        0.01, "share of the list that may be unreadable before the run stops, 0..1; above 0, one always may"
    )


@dataclass
class ClipConfig:
    """What is cut from a video."""

    frames: int = key(16, "frames a clip")
    stride: int = key(4, "source frames from one frame of the clip to the next, counted at target_fps")
    target_fps: float | None = key(30.0, "frames a second at which the stride counts; null: the source's own")
    short_video: str = key("clamp", "clamp | loop | error: what a video shorter than the clip does")
    crop: int = key(224, "height and width of the clip, pixels")
    crop_area: list[float] = key([0.5, 1.0], "least and greatest area of the random crop, share of the frame")
    crop_aspect: list[float] = key([0.75, 1.3333], "least and greatest width/height of the random crop")
    flip: float = key(0.5, "chance of a horizontal flip, 0..1")
    samples_per_video: int = key(1, "clips cut from one opening of a video")
    mean: Any = key(0.45, "subtracted from pixels in 0..1: a number, or a list of one a channel")
    std: Any = key(0.225, "divides them after that: a number, or a list of one a channel")


@dataclass
class MaskConfig:
    """What is hidden."""

    kind: str = key("cube", "cube | cube_exact | tube | frame | random | random_tube | block")
    ratio: float = key(0.4, "share of the mask's cells to hide, between 0 and 1")
    cell: list[int] = key([2, 32, 32], "size of a mask cell: frames, rows and columns of pixels")


@dataclass
class MethodConfig:
    """How it is pre-trained."""

    name: str = key("masked", "masked (predict the target in the hidden places) | ibot | byol | latent")
    arguments: dict[str, Any] = key({}, "what differs from that method's own arguments")


@dataclass
class ModelConfig:
    """Which network."""

    name: str = key("maskfeat_mvitv2_s", "a name that create_model knows")
    arguments: dict[str, Any] = key({}, "what differs from that model's own arguments")


@dataclass
class TargetConfig:
    """What is predicted, by the method masked."""

    name: str = key("hog", "a name in TARGETS")
    arguments: dict[str, Any] = key({}, "what differs from that target's own arguments")


@dataclass
class OptimConfig:
    """How it is trained."""

    epochs: float = key(300, "passes over the list")
    warmup_epochs: float = key(10, "passes of linear warm-up")
    batch_size: int = key(32, "clips an optimiser step, over all ranks and micro-batches")
    accumulate: int = key(1, "micro-batches an optimiser step, a rank")
    base_batch_size: int = key(32, "batch size the learning rates are stated for; they scale linearly")
    learning_rate: float = key(1e-4, "peak, for base_batch_size")
    start_learning_rate: float = key(1e-6, "at step 0, for base_batch_size")
    end_learning_rate: float = key(1e-6, "at the end, for base_batch_size")
    betas: list[float] = key([0.9, 0.999], "AdamW's two")
    weight_decay: float = key(0.05, "none on 1-d parameters")
    layer_decay: float = key(1.0, "learning rate factor from a layer to the one before; 1: none")
    gradient_clip: float | None = key(0.02, "greatest L2 norm of the gradient; null: no clipping")
    ema_decay: float | None = key(None, "moving average of the weights, a step; null: none")


@dataclass
class RunConfig:
    """Where and how it runs."""

    folder: str = key("", "run folder; one that exists is resumed (required)")
    seed: int = key(0, "of weights, order, clips, crops and whatever else is drawn")
    device: str = key("auto", "auto | cpu | cuda")
    precision: str = key("auto", "auto (bf16 on a GPU, fp32 on a CPU) | fp32 | bf16 (autocast)")
    threads: int = key(0, "CPU threads per rank; 0: measured when a run starts, and kept when it is resumed")
    compile: bool = key(False, "torch.compile the step (needs a C++ compiler on a CPU)")
    activation_checkpointing: bool = key(False, "recompute activations in the backward: less memory, slower")
    checkpoint_minutes: float = key(10.0, "minutes from one checkpoint to the next")
    checkpoint_epochs: float = key(10.0, "epochs from one milestone, kept for good, to the next")
    keep_checkpoints: int = key(2, "newest checkpoints kept besides the milestones")
    rank_timeout_minutes: float = key(
        30.0, "minutes that a rank waits for another one before the run ends; the other one is named"
    )


@dataclass
class PretrainRunConfig(RunConfig):
    """Where and how pre-training runs, and what it shows."""

    evaluate_epochs: float = key(
        0.0, "epochs from one held-out loss and probe to the next; 0: only at the end"
    )
    evaluate_clips: int = key(256, "greatest number of held-out clips")
    pictures: int = key(4, "held-out videos drawn at the end")


@dataclass
class ProbeConfig:
    """Labelled videos by which frozen features are judged while they are learnt; the labels teach nothing."""

    train: str = key("", "labelled list whose features are known; empty: no probe")
    test: str = key("", "labelled list whose classes are asked for")
    k: int = key(20, "neighbours that vote")
    temperature: float = key(0.07, "of their votes' weights")
    penalty: float = key(1e-2, "on the squared weights of the linear fit")


@dataclass
class PretrainConfig:
    """Masked pre-training; the defaults are the published MaskFeat recipe of MViTv2-S on Kinetics-400."""

    data: DataConfig = field(default_factory=DataConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    run: PretrainRunConfig = field(default_factory=PretrainRunConfig)
