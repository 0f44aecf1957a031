"""Sections and choices of config keys that several jobs share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from videomaskfeat.config_keys import key

LIST_FORMATS = ("auto", "kinetics", "table", "ssv2", "multilabel", "shards", "folder", "frames", "images")
SEPARATORS = ("auto", "space", "comma", "tab", "colons", "semicolon", "pipe")
CACHES = {"none": "each clip is decoded", "memory": "uint8 frames, shared by workers and ranks"}
READERS = ("auto", "decord", "pyav", "torchcodec", "torchcodec-cuda")
AUGMENT_ON = {"workers": "loader workers, with OpenCV", "device": "run.device; workers only decode"}
PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower")
PRECISIONS = {"auto": "bf16 on a GPU, fp32 on a CPU", "fp32": "", "bf16": "autocast"}
COMPILE_MODES = {"default": "", "reduce-overhead": "CUDA graphs, with one process on a GPU"}
PARALLEL = {
    "ddp": "every rank has all weights",
    "fsdp": "sharded over all ranks",
    "hybrid": "sharded over the ranks of each machine",
}
CLIP_MAPS = {
    "auto": "gradcam of a classifier, attention of other weights",
    "gradcam": "positions that raise the logit of a class",
    "attention": "attention of a block, mean over heads",
    "rollout": "attention of all blocks up to one",
}
LOGGERS = {
    "tensorboard": "curves and pictures in tensorboard/",
    "wandb": "Weights & Biases, extra wandb",
    "mlflow": "extra mlflow",
}
SCHEDULES = {"cosine": "to end_learning_rate", "steps": "times step_factor at each of step_epochs"}
SHARE: Any = {"least": 0, "greatest": 1}


@dataclass
class ReadingConfig:
    """Reading of records."""

    workers: int = key(2, "number of loader workers per rank; 0: the main process loads", least=0, free=True)
    read_seconds: float = key(120.0, "timeout of a stuck loader worker", unit="seconds", above=0, free=True)
    failure_share: float = key(
        0.01, "maximum share of unreadable records; above 0: at least one record", **SHARE, free=True
    )


@dataclass
class ListConfig(ReadingConfig):
    """List files and how they are read."""

    train: str = key("", "list file, or folder of videos, frame folders or pictures", required="train.csv")
    validation: str = key("", "held-out list file or folder; empty: no validation")
    format: str = key("auto", "format of the list files", choices=LIST_FORMATS, plugin="a ListFormat")
    separator: str = key("auto", "column separator of a list file", choices=SEPARATORS)
    prefix: str = key("", "folder put before every relative path in the list files")
    reader: str = key(
        "auto", "video reader; auto falls back to pyav per file", choices=READERS, plugin="a VideoReader"
    )
    cache: str = key("none", "storage of decoded videos, for small lists", choices=CACHES, free=True)


@dataclass
class FramesConfig:
    """Frames of a clip."""

    frames: int = key(16, "frames per clip", least=1)
    stride: int = key(4, "frame stride, in frames at target_fps", least=1)
    target_fps: float | None = key(30.0, "frame rate of the stride; null: the video's own", above=0)
    crop: Any = key(224, "height and width of the clip: a number, or [height, width]", unit="pixels", least=1)
    flip: float = key(0.5, "probability of a horizontal flip; 0 if left and right differ in meaning", **SHARE)
    mean: Any = key(0.45, "mean of pixels in 0..1 for normalization: a number, or one per channel")
    std: Any = key(0.225, "standard deviation for normalization: a number, or one per channel")


@dataclass
class RandomCropConfig:
    """Random crop."""

    crop_area: list[float] = key([0.5, 1.0], "range of the crop's share of the frame", above=0, greatest=1)
    crop_aspect: list[float] = key([0.75, 1.3333], "range of the crop's width/height", above=0)


@dataclass
class OptimConfig:
    """Optimization."""

    epochs: float = key(300, "number of passes over the list", above=0)
    warmup_epochs: float = key(10, "epochs of linear warm-up", least=0)
    batch_size: int = key(32, "clips (tokenizers: frames) per optimizer step of all ranks", least=1)
    accumulate: int = key(1, "micro-batches per optimizer step, for each rank", least=1)
    base_batch_size: int = key(32, "batch size of the learning rates, which scale linearly", least=1)
    learning_rate: float = key(1e-4, "peak learning rate, for base_batch_size", least=0)
    start_learning_rate: float = key(1e-6, "learning rate at step 0, for base_batch_size", least=0)
    end_learning_rate: float = key(1e-6, "learning rate at the end, for base_batch_size", least=0)
    schedule: str = key("cosine", "learning rate after the warm-up", choices=SCHEDULES)
    step_epochs: list[float] = key([], "ascending epochs of the steps", least=0)
    step_factor: float = key(0.1, "learning rate factor of a step", above=0, greatest=1)
    betas: list[float] = key([0.9, 0.999], "betas of AdamW", least=0, below=1)
    weight_decay: float = key(0.05, "weight decay; none on 1-d parameters", least=0)
    layer_decay: float = key(1.0, "learning rate factor from a layer to the one before; 1: none", least=0)
    gradient_clip: float | None = key(0.02, "maximum L2 norm of the gradient; null: no clipping", above=0)
    ema_decay: float | None = key(None, "decay of the weights' moving average; null: none", least=0, below=1)


@dataclass
class RunConfig:
    """The run."""

    folder: str = key("", "run folder; an existing one is resumed", required="runs/first", free=True)
    extend: bool = key(False, "continue an existing run to a larger optim.epochs", free=True)
    seed: int = key(0, "seed of weights, order, clips, crops and all other random draws", least=0)
    device: str = key("auto", "device: auto | cpu | cuda", free=True)
    precision: str = key("auto", "precision of the network", choices=PRECISIONS)
    threads: int = key(0, "number of CPU threads per rank; 0: measured at the start", least=0, free=True)
    kernels: str = key(
        "auto",
        "kernels: auto (measured at the start) | default | products=onednn|mkl, gradients=onednn|mkl, "
        "attention=blocked|fused, memory=kept|returned, gpu_attention=widened|flex|triton",
        free=True,
    )
    compile: bool = key(False, "torch.compile; on a CPU it needs a C++ compiler", free=True)
    compile_mode: str = key("default", "mode of torch.compile", choices=COMPILE_MODES, free=True)
    activation_checkpointing: bool = key(False, "activation checkpointing: less memory, slower", free=True)
    memory_gb: float | None = key(
        None,
        "memory for a step on each rank [10^9 bytes], by recomputing activations of as many blocks as "
        "necessary; null: of no block",
        above=0,
        free=True,
    )
    checkpoint_minutes: float = key(10.0, "minutes between two checkpoints", least=0, free=True)
    checkpoint_epochs: float = key(10.0, "epochs between two milestone checkpoints", least=0, free=True)
    loggers: list[str] = key(
        ["tensorboard"],
        "loggers of metrics besides metrics.jsonl",
        choices=LOGGERS,
        plugin="a StepLogger",
        free=True,
    )
    keep_checkpoints: int = key(2, "number of newest checkpoints besides milestones", least=1, free=True)
    parallel: str = key("ddp", "weights of several ranks", choices=PARALLEL, free=True)
    rank_timeout_minutes: float = key(30.0, "minutes until a waiting rank ends the run", above=0, free=True)
    join_timeout_minutes: float = key(10.0, "minutes for all ranks to start", above=0, free=True)
    step_timeout_minutes: float = key(
        30.0, "minutes of one step until the run ends with its position; 0: no limit", least=0, free=True
    )


@dataclass
class ClipConfig(FramesConfig, RandomCropConfig):
    """Clips."""

    short_video: str = key("clamp", "rule for videos shorter than a clip", choices=("clamp", "loop", "error"))
    samples_per_video: int = key(1, "clips drawn each time a video is opened", least=1)


@dataclass
class StartedModelConfig:
    """The network and its initial weights."""

    name: str = key("maskfeat_mvitv2_s", "name of a model of create_model, or module:name (an Encoder)")
    arguments: dict[str, Any] = key({}, "arguments of the model that differ from its defaults")
    weights: str = key("", "initial weights, ours or a PySlowFast checkpoint; empty: from scratch")
    weights_key: str = key("", "key of the weights in the checkpoint, such as model_ema", free=True)
    inflate: str = key("repeated", "an image model's kernel over time", choices=("repeated", "centered"))
    allow_missing: list[str] = key([], "more weights that the file may lack: names, or patterns (norm.*)")
    allow_unused: list[str] = key([], "more weights that the file may have in excess")


@dataclass
class MachineOptions:
    """machine"""

    device: str = key("auto", "device: auto | cpu | cuda | cuda:N")
    precision: str = key("auto", "precision of the network", choices=PRECISIONS)


@dataclass
class BatchOptions(MachineOptions):
    """batches"""

    clips_at_once: int = key(8, "clips per forward pass", least=1)


@dataclass
class OutputOptions:
    """output"""

    overwrite: bool = key(False, "replace the files of an earlier result")
