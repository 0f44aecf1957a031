"""Every config key of every training, with its default, meaning and rules.

The module does not import torch: ``--help`` and ``--keys`` are quick, and a comparison can read the configs
of its trainings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from videomaskfeat.config_keys import key, section

LIST_FORMATS = ("auto", "kinetics", "table", "ssv2", "multilabel", "shards", "folder", "frames", "images")
SEPARATORS = ("auto", "space", "comma", "tab", "colons", "semicolon", "pipe")
CACHES = {"none": "each clip is decoded", "memory": "uint8 frames, shared by workers and ranks"}
READERS = ("auto", "decord", "pyav")
PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower")
PRECISIONS = {"auto": "bf16 on a GPU, fp32 on a CPU", "fp32": "", "bf16": "autocast"}
PARALLEL = {
    "ddp": "every rank has all weights",
    "fsdp": "sharded over all ranks",
    "hybrid": "sharded over the ranks of each machine",
}
CROPS = {1: "center", 3: "along the longer side"}
SAMPLINGS = {"clip": "frames at a stride", "segments": "one frame from each of clip.frames equal segments"}
AREAS = {"whole": "in its aspect ratio", "center": "a square crop; boxes are clipped to it"}
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
LABELS = ("auto", "yes", "no")
MASK_KINDS = (
    *("cube", "cube_exact", "tube", "frame", "random", "random_tube", "block", "block_beit"),
    *("multi_block", "multi_block_exact"),
)
ACTION_LOSSES = {"sigmoid": "each action by itself", "poses": "a softmax over the poses"}
CROP_KINDS = {"area": "crop_area of the frame, resized", "short_side": "from a frame resized to short_side"}
OPTIMIZERS = {"adamw": "", "sgd": "momentum, Nesterov"}
PRETRAIN_OPTIMIZERS = {"adamw": "", "lars": "extra lars; BYOL's"}
SCHEDULES = {"cosine": "to end_learning_rate", "steps": "times step_factor at each of step_epochs"}
SHARE: Any = {"least": 0, "greatest": 1}
WEIGHT_SETS = {"auto": "averaged if ema_decay is set", "trained": "", "averaged": "", "both": ""}


# Sections that several trainings share.


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
    compile: bool = key(False, "torch.compile; on a CPU it needs a C++ compiler", free=True)
    activation_checkpointing: bool = key(False, "activation checkpointing: less memory, slower", free=True)
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


# Pre-training.


@dataclass
class DataConfig(ListConfig):
    """Videos."""

    validation: str = key("", "held-out list file or folder; empty: no held-out loss", free=True)
    labels: str = key(
        "auto", "whether rows end with a label; the labels themselves are not used", choices=LABELS
    )


@dataclass
class ClipConfig(FramesConfig, RandomCropConfig):
    """Clips."""

    short_video: str = key("clamp", "rule for videos shorter than a clip", choices=("clamp", "loop", "error"))
    samples_per_video: int = key(1, "clips drawn each time a video is opened", least=1)


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

    data: DataConfig = section(DataConfig)
    clip: PretrainClipConfig = section(PretrainClipConfig)
    mask: MaskConfig = section(MaskConfig)
    method: MethodConfig = section(MethodConfig)
    model: ModelConfig = section(ModelConfig)
    target: TargetConfig = section(TargetConfig)
    optim: PretrainOptimConfig = section(PretrainOptimConfig)
    probe: ProbeConfig = section(ProbeConfig)
    run: PretrainRunConfig = section(PretrainRunConfig)


# Fine-tuning.


@dataclass
class LabeledDataConfig(ListConfig):
    """Labeled videos."""

    classes: int = key(0, "number of classes; 0: from the class names, or the largest label + 1", least=0)
    class_names: str = key("", "file of class names: one per line, or SSv2's labels JSON")
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


# Training a tokenizer of frames.


@dataclass
class FrameConfig(RandomCropConfig):
    """Frames."""

    size: int = key(112, "height and width of a frame, a multiple of the tokenizer's stride", unit="pixels")
    per_video: int = key(4, "frames drawn each time a video is opened, each with its own crop", least=1)
    flip: float = key(0.5, "probability of a horizontal flip", **SHARE)


@dataclass
class TokenizerModelConfig:
    """The tokenizer."""

    name: str = key("dvae", "dvae (discrete VAE, as in BEiT) | vq (nearest codes, as in PeCo)")
    arguments: dict[str, Any] = key({}, "arguments of the tokenizer that differ from its defaults")


@dataclass
class GumbelConfig:
    """Sampling of the codes of a dvae."""

    start_temperature: float = key(1.0, "temperature of the Gumbel-softmax at the start", above=0)
    end_temperature: float = key(0.0625, "temperature at the end; lower is closer to single codes", above=0)
    anneal: float = key(1.0, "share of the run with annealing (half a cosine)", above=0, greatest=1)
    kl_weight: float = key(1e-3, "weight of the KL divergence of codes to uniform ones", unit="nats", least=0)
    kl_warmup: float = key(0.05, "share of the run in which kl_weight rises from 0", **SHARE)


@dataclass
class CommitmentConfig:
    """The loss of a vq. Its codes move by model.arguments (decay, revive_below)."""

    weight: float = key(0.25, "weight of the squared distance of the latents to their codes", least=0)


@dataclass
class PerceptualConfig:
    """A frozen encoder that compares frames with their reconstructions, as in PeCo."""

    weights: str = key("", "weights.safetensors of any run, or a DINO checkpoint; empty: pixels only")
    depths: list[int] = key([], "blocks after which features are compared; their distances are summed")
    depth_weights: list[float] = key([], "weight of the distance of each depth; empty: 1", least=0)
    weight: float = key(1.0, "weight of the sum, besides the squared error of the pixels", least=0)


@dataclass
class TokenizerRunConfig(RunConfig):
    """The run and its held-out evaluations."""

    evaluate_epochs: float = key(0.0, "epochs between evaluations; 0: only at the end", least=0, free=True)
    evaluate_frames: int = key(256, "maximum number of held-out videos, one frame each", free=True)
    pictures: int = key(8, "number of held-out frames drawn at the end", least=0, free=True)


@dataclass
class TokenizerConfig:
    """Training of a tokenizer of frames. The targets dvae and codebook predict its tokens."""

    data: DataConfig = section(DataConfig)
    frames: FrameConfig = section(FrameConfig)
    model: TokenizerModelConfig = section(TokenizerModelConfig)
    gumbel: GumbelConfig = section(GumbelConfig)
    commitment: CommitmentConfig = section(CommitmentConfig)
    perceptual: PerceptualConfig = section(PerceptualConfig)
    optim: OptimConfig = section(
        OptimConfig,
        epochs=100,
        warmup_epochs=1,
        batch_size=128,
        base_batch_size=128,
        learning_rate=3e-4,
        weight_decay=1e-4,
        gradient_clip=1.0,
    )
    run: TokenizerRunConfig = section(TokenizerRunConfig)


# Action detection.


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


# Comparing targets.


@dataclass
class CompareSettings:
    """Targets, seeds and shared configs of a comparison.

    ``finetunes`` maps names, such as ``motion`` and ``appearance``, to section -> key -> value on top of
    ``finetune`` and ``shared.finetune``: each encoder is fine-tuned once per name. An entry of ``targets`` is
    a mapping of three keys, all optional:

    - ``pretrain`` and ``finetune``: section -> key -> value, on top of the shared configs;
    - ``before``: runs that come first, such as a tokenizer's or a teacher's: name -> ``{verb, config, keys,
      folder}``. They are in ``{run}``, or in a folder that several entries share.

    In every value ``{folder}`` is the comparison's folder, ``{run}`` the folder of the entry's runs with this
    seed, and ``{seed}`` the seed.
    """

    folder: str = key("", "folder of all runs; an existing one is continued", required="runs/compare")
    pretrain: str = key("", "pre-training config of all targets", required="configs/pretrain/sample.yaml")
    finetune: str = key("", "fine-tuning config of all targets; empty: no fine-tuning")
    finetunes: dict[str, Any] = key(
        {}, "keys per fine-tuning, such as one per factor; empty: one fine-tuning"
    )
    shared: dict[str, Any] = key({}, "pretrain, finetune: keys that differ from those files, for all targets")
    targets: dict[str, Any] = key({}, "keys per target name; see docs/comparing.md", required="{hog: {}}")
    only: list[str] = key([], "targets to run (empty: all)", flag="targets")
    seeds: int = key(1, "number of runs per target, with run.seed 1, 2, ...", least=1, flag="seeds")
    jobs: int = key(1, "number of parallel runs; times per step are not comparable above 1", least=1)
    probes: int = key(4, "number of probes of the frozen features during a pre-training", least=0)


@dataclass
class CompareConfig:
    """Comparison of several targets under one budget."""

    compare: CompareSettings = section(CompareSettings)


# Detecting actions in videos.


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


@dataclass
class DetectFiles:
    """files"""

    weights: str = key("", "weights of a detect-train run", positional=True, former="checkpoint")
    videos: list[str] = key([], "video files", positional=True)
    out: str = key(".", "folder for NAME_actions.*")
    overwrite: bool = key(False, "replace the files of an earlier result")


@dataclass
class PersonsConfig:
    """persons (boxes or detector)"""

    boxes: str | None = key(None, "rows video,second,x1,y1,x2,y2,,score; video: a file name without suffix")
    detector: str | None = key(
        None, "module:name of a callable: frames uint8 [n,H,W,3] -> n boxes [k,5] in pixels, with score"
    )
    detector_options: dict[str, Any] = key({}, "arguments of the detector", flag="detector-option")
    box_score: float | None = key(None, "minimum score of a box", **SHARE, null="from the weights")
    every: float = key(
        1.0, "seconds between two key frames; with boxes, closer key frames are skipped", above=0
    )
    start_second: float | None = key(
        None, "time of the first frame of the video, as counted in the boxes file", null="from its rows"
    )


@dataclass
class ActionsConfig:
    """which actions are reported"""

    threshold: float = key(0.4, "minimum score of an action", **SHARE)
    top: int = key(3, "maximum number of actions drawn per person", least=1)
    smooth_seconds: float = key(0.7, "standard deviation of track smoothing; 0: off", unit="seconds", least=0)
    min_iou: float = key(0.3, "minimum IoU of two boxes of a track", above=0, greatest=1)
    max_gap_seconds: float | None = key(None, "maximum gap of a track", least=0, null="two key frames")
    film: bool = key(True, "annotated video (mp4 without sound)")
    csv: bool = key(False, "also write rows for score-ava")


@dataclass
class DetectVideoConfig:
    """Detection of actions in videos."""

    files: DetectFiles = section(DetectFiles)
    persons: PersonsConfig = section(PersonsConfig)
    actions: ActionsConfig = section(ActionsConfig, former="told")
    machine: BatchOptions = section(BatchOptions)
