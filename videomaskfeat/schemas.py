"""Every config key of every task, with its default, meaning and rules.

They stand together in one module without torch, so that ``--help`` and ``--keys`` are quick, and so that a
comparison can read the configs of the trainings that it runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from videomaskfeat.config import key

LIST_FORMATS = ("auto", "kinetics", "table", "ssv2", "folder", "frames", "images")
SEPARATORS = ("auto", "space", "comma", "tab", "colons", "semicolon", "pipe")
READERS = ("auto", "decord", "pyav")
PRECISIONS = {"auto": "bf16 on a GPU, fp32 on a CPU", "fp32": "", "bf16": "autocast"}
CROPS = {1: "center", 3: "along the longer side"}
SAMPLINGS = {"clip": "frames at a stride", "segments": "a frame from each of equal parts"}
AREAS = {"whole": "in its aspect", "centre": "a square crop, boxes cut to it"}
LABELS = ("auto", "yes", "no")
MASK_KINDS = ("cube", "cube_exact", "tube", "frame", "random", "random_tube", "block")
SHARE: Any = {"least": 0, "greatest": 1}
WEIGHT_SETS = {"auto": "averaged if ema_decay is set", "trained": "", "averaged": "", "both": ""}


# Sections that several tasks share.


@dataclass
class ReadingConfig:
    """How records are read."""

    workers: int = key(2, "loader processes per rank; 0: the main process loads", least=0, free=True)
    read_seconds: float = key(
        120.0, "seconds without progress before a loader is replaced", above=0, free=True
    )
    failure_share: float = key(
        0.01, "share of records that may be unreadable; above 0, one always may", **SHARE, free=True
    )


@dataclass
class ListConfig(ReadingConfig):
    """Which lists, and how they are read."""

    train: str = key("", "list file, or folder of videos, frame folders or pictures", required="train.csv")
    validation: str = key("", "held-out list or folder; empty: no validation")
    format: str = key("auto", "format of the lists", choices=LIST_FORMATS)
    separator: str = key("auto", "column separator of a list", choices=SEPARATORS)
    prefix: str = key("", "folder put before every relative path of the lists")
    reader: str = key("auto", "video reader; auto falls back to pyav per file", choices=READERS)


@dataclass
class FramesConfig:
    """How frames become a clip."""

    frames: int = key(16, "frames per clip", least=1)
    stride: int = key(4, "source frames between two frames of the clip, counted at target_fps", least=1)
    target_fps: float | None = key(30.0, "frame rate at which the stride counts; null: the source's", above=0)
    crop: int = key(224, "height and width of the clip", unit="pixels", least=1)
    flip: float = key(0.5, "probability of a horizontal flip", **SHARE)
    mean: Any = key(0.45, "subtracted from pixels in 0..1: a number, or a list of one per channel")
    std: Any = key(0.225, "divides them after that: a number, or a list of one per channel")


@dataclass
class OptimConfig:
    """How the network is trained."""

    epochs: float = key(300, "passes over the list", above=0)
    warmup_epochs: float = key(10, "epochs of linear warm-up", least=0)
    batch_size: int = key(32, "clips per optimizer step, over all ranks and micro-batches", least=1)
    accumulate: int = key(1, "micro-batches per optimizer step, for each rank", least=1)
    base_batch_size: int = key(32, "batch size of the learning rates, which scale linearly", least=1)
    learning_rate: float = key(1e-4, "peak learning rate, for base_batch_size", least=0)
    start_learning_rate: float = key(1e-6, "learning rate at step 0, for base_batch_size", least=0)
    end_learning_rate: float = key(1e-6, "learning rate at the end, for base_batch_size", least=0)
    betas: list[float] = key([0.9, 0.999], "betas of AdamW", least=0, below=1)
    weight_decay: float = key(0.05, "weight decay; none on 1-d parameters", least=0)
    layer_decay: float = key(1.0, "learning rate factor from a layer to the one before; 1: none", least=0)
    gradient_clip: float | None = key(0.02, "maximum L2 norm of the gradient; null: no clipping", above=0)
    ema_decay: float | None = key(None, "decay of the weights' moving average; null: none", least=0, below=1)


@dataclass
class RunConfig:
    """Where and how the task runs."""

    folder: str = key("", "run folder; an existing one is resumed", required="runs/first", free=True)
    seed: int = key(0, "seed of weights, order, clips, crops and everything else that is drawn", least=0)
    device: str = key("auto", "auto | cpu | cuda", free=True)
    precision: str = key("auto", "precision of the network", choices=PRECISIONS)
    threads: int = key(0, "CPU threads per rank; 0: measured, and kept when resumed", least=0, free=True)
    compile: bool = key(False, "torch.compile the step (needs a C++ compiler on a CPU)", free=True)
    activation_checkpointing: bool = key(False, "recompute activations: less memory, slower", free=True)
    checkpoint_minutes: float = key(10.0, "minutes between two checkpoints", least=0, free=True)
    checkpoint_epochs: float = key(10.0, "epochs between checkpoints kept for good", least=0, free=True)
    keep_checkpoints: int = key(2, "newest checkpoints kept, besides milestones", least=1, free=True)
    rank_timeout_minutes: float = key(30.0, "minutes until a waiting rank ends the run", above=0, free=True)


# Pre-training.


@dataclass
class DataConfig(ListConfig):
    """Which videos to train on."""

    validation: str = key("", "held-out list or folder; empty: no held-out loss", free=True)
    labels: str = key("auto", "whether rows end with a label (unused)", choices=LABELS)


@dataclass
class ClipConfig(FramesConfig):
    """What is cut from a video."""

    short_video: str = key("clamp", "if a video is shorter than the clip", choices=("clamp", "loop", "error"))
    crop_area: list[float] = key([0.5, 1.0], "range of the crop's share of the frame", above=0, greatest=1)
    crop_aspect: list[float] = key([0.75, 1.3333], "range of the crop's width/height", above=0)
    samples_per_video: int = key(1, "clips cut from one opening of a video", least=1)


@dataclass
class MaskConfig:
    """What is hidden."""

    kind: str = key("cube", "mask policy", choices=MASK_KINDS)
    ratio: float = key(0.4, "share of the mask's cells to hide", above=0, below=1)
    cell: list[int] = key([2, 32, 32], "size of a mask cell: frames, rows and columns of pixels", least=1)


@dataclass
class MethodConfig:
    """How the encoder is pre-trained."""

    name: str = key("masked", "masked (predict the target at hidden positions) | ibot | byol | latent")
    arguments: dict[str, Any] = key({}, "arguments of the method that differ from its defaults")


@dataclass
class ModelConfig:
    """Which network."""

    name: str = key("maskfeat_mvitv2_s", "name of a model of create_model")
    arguments: dict[str, Any] = key({}, "arguments of the model that differ from its defaults")


@dataclass
class TargetConfig:
    """What the method masked predicts."""

    name: str = key("hog", "name of a target")
    arguments: dict[str, Any] = key({}, "arguments of the target that differ from its defaults")


@dataclass
class PretrainOptimConfig(OptimConfig):
    """How the encoder is trained."""

    accumulate: int = key(1, "micro-batches per optimizer step, for each rank", least=1, free=True)


@dataclass
class ProbeConfig:
    """Labeled videos on which frozen features are scored during the training; their labels teach nothing."""

    train: str = key("", "labeled list whose features are known; empty: no probe", free=True)
    test: str = key("", "labeled list whose classes are predicted", free=True)
    k: int = key(20, "number of nearest neighbors that vote", least=1, free=True)
    temperature: float = key(0.07, "temperature of the weights of their votes", above=0, free=True)
    penalty: float = key(1e-2, "L2 penalty of the linear probe", above=0, free=True)


@dataclass
class PretrainRunConfig(RunConfig):
    """Where and how pre-training runs, and what it shows."""

    evaluate_epochs: float = key(0.0, "epochs between evaluations; 0: only at the end", least=0, free=True)
    evaluate_clips: int = key(256, "maximum number of held-out clips", free=True)
    pictures: int = key(4, "held-out videos drawn at the end", least=0, free=True)


@dataclass
class PretrainConfig:
    """Masked pre-training; the defaults are the published MaskFeat recipe of MViTv2-S on Kinetics-400."""

    data: DataConfig = field(default_factory=DataConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    optim: PretrainOptimConfig = field(default_factory=PretrainOptimConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    run: PretrainRunConfig = field(default_factory=PretrainRunConfig)


# Fine-tuning.


@dataclass
class LabelledDataConfig(ListConfig):
    """Which labeled videos to train on."""

    classes: int = key(0, "number of classes; 0: as in the class names, or the largest label + 1", least=0)
    class_names: str = key("", "file of class names: one per line, or SSv2's labels JSON")
    balanced: bool = key(False, "draw every class equally often in an epoch")


@dataclass
class LabelledClipConfig(ClipConfig):
    """What is cut from a video in training."""

    sampling: str = key("clip", "how frames are drawn", choices=SAMPLINGS)
    crop_kind: str = key("area", "how a crop is drawn", choices=("area", "short_side"))
    crop_area: list[float] = key(
        [0.08, 1.0], "area: range of the crop's share of the frame", above=0, greatest=1
    )
    crop_aspect: list[float] = key([0.75, 1.3333], "area: range of the crop's width/height", above=0)
    short_side: list[int] = key([256, 320], "short_side: range of its length", unit="pixels", least=1)
    short_side_inverse: bool = key(True, "short_side: draw 1/length uniformly instead of the length")
    flip: float = key(0.5, "probability of a flip; 0 if classes know left and right", **SHARE)
    flip_swaps_labels: bool = key(False, "a flipped clip takes the class of the mirrored template (SSv2)")
    samples_per_video: int = key(2, "clips cut from one opening of a video", least=1)


@dataclass
class ColorConfig:
    """Color jitter of a training clip."""

    brightness: float = key(0.0, "maximum change of brightness, a share; 0: none", least=0)
    contrast: float = key(0.0, "maximum change of contrast, a share; 0: none", least=0)
    saturation: float = key(0.0, "maximum change of saturation, a share; 0: none", least=0)


@dataclass
class AugmentConfig(ColorConfig):
    """Augmentation of a training clip."""

    randaugment: str = key("rand-m7-n2-mstd0.5-inc1", "RandAugment in timm's notation; empty: none")
    interpolation: str = key("bicubic", "RandAugment's interpolation", choices=("bicubic", "bilinear"))
    erasing: float = key(0.25, "probability that a box in all frames becomes noise", **SHARE)
    erasing_area: list[float] = key([0.02, 0.3333], "range of the share that is erased", above=0, greatest=1)


@dataclass
class MixConfig:
    """How clips and labels of a batch are mixed."""

    mixup: float = key(0.8, "alpha of mixup; 0: off", least=0)
    cutmix: float = key(1.0, "alpha of cutmix; 0: off", least=0)
    probability: float = key(1.0, "probability that a batch is mixed", **SHARE)
    switch: float = key(0.5, "probability of cutmix if both are on", **SHARE)
    smoothing: float = key(0.1, "label smoothing", least=0, below=1)


@dataclass
class PretrainedModelConfig:
    """Which network, and the weights it starts from."""

    name: str = key("", "name of a model of create_model")
    arguments: dict[str, Any] = key({}, "arguments of the model that differ from its defaults")
    drop_path: float = key(0.1, "drop path rate of the last block; rises linearly from 0", least=0, below=1)
    dropout: float = key(0.0, "dropout before the last linear layer", least=0, below=1)
    head_scale: float = key(0.001, "factor on the last layer's initial weights")
    weights: str = key("", "weights to start from, ours or a PySlowFast checkpoint; empty: from scratch")
    weights_key: str = key("", "which weights of a checkpoint with several, such as model_ema", free=True)
    inflate: str = key("repeated", "an image model's kernel over time", choices=("repeated", "centred"))
    allow_missing: list[str] = key([], "more weights that the file may lack: names, or patterns (norm.*)")
    allow_unused: list[str] = key([], "more weights that the file may have in excess")


@dataclass
class ClassifierConfig(PretrainedModelConfig):
    """Which network, and the weights it starts from."""

    name: str = key("maskfeat_mvitv2_s_classifier", "name of a classifier of create_model")
    head: str = key("", "head; empty: the model's own", choices=("", "mean", "token", "linear", "attentive"))


@dataclass
class FinetuneOptimConfig(OptimConfig):
    """How the classifier is trained; the batch size is videos times clip.samples_per_video."""

    optimizer: str = key("adamw", "optimizer", choices={"adamw": "", "sgd": "momentum, Nesterov"})
    momentum: float = key(0.9, "momentum of sgd", least=0, below=1)
    epochs: float = key(100, "passes over the list", above=0)
    warmup_epochs: float = key(20, "epochs of linear warm-up", least=0)
    learning_rate: float = key(6e-4, "peak learning rate, for base_batch_size", least=0)
    layer_decay: float = key(0.75, "learning rate factor from a layer to the one before; 1: none", least=0)
    gradient_clip: float | None = key(5.0, "maximum L2 norm of the gradient; null: no clipping", above=0)


@dataclass
class EvaluateConfig:
    """How the classifier is validated: one view during the training, all views at the end."""

    epochs: float = key(5.0, "epochs between two validations; 0: only at the end", least=0)
    views: int = key(5, "temporal views per video at the end, evenly spaced", least=1, free=True)
    crops: int = key(1, "crops per view at the end", choices=CROPS, free=True)
    short_side: int = key(256, "short side before a crop is cut", unit="pixels", least=1)
    average: str = key("softmax", "what is averaged", choices=("softmax", "logits"), free=True)
    weights: str = key("auto", "weights that are evaluated", choices=WEIGHT_SETS)


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


# Training a tokenizer of frames.


@dataclass
class FrameConfig:
    """What is cut from a video."""

    size: int = key(112, "height and width of a frame, a multiple of the tokenizer's stride", unit="pixels")
    per_video: int = key(4, "frames drawn from one opening of a video, each with its own crop", least=1)
    crop_area: list[float] = key([0.5, 1.0], "range of the crop's share of the frame", above=0, greatest=1)
    crop_aspect: list[float] = key([0.75, 1.3333], "range of the crop's width/height", above=0)
    flip: float = key(0.5, "probability of a horizontal flip", **SHARE)


@dataclass
class TokenizerModelConfig:
    """Which tokenizer."""

    name: str = key("dvae", "dvae (discrete VAE, as in BEiT) | vq (nearest codes, as in PeCo)")
    arguments: dict[str, Any] = key({}, "arguments of the tokenizer that differ from its defaults")


@dataclass
class GumbelConfig:
    """How a dvae draws codes."""

    start_temperature: float = key(1.0, "temperature of the relaxed draws at the start", above=0)
    end_temperature: float = key(0.0625, "temperature at the end; lower is closer to single codes", above=0)
    anneal: float = key(1.0, "share of the run that the annealing (half a cosine) takes", above=0, greatest=1)
    kl_weight: float = key(1e-3, "weight of the KL divergence of codes to uniform ones", unit="nats", least=0)
    kl_warmup: float = key(0.05, "share of the run over which that weight rises from 0", **SHARE)


@dataclass
class CommitmentConfig:
    """What a vq adds to its loss; model.arguments (decay, revive_below) set how its codes move."""

    weight: float = key(0.25, "weight of the squared distance of the latents to their codes", least=0)


@dataclass
class PerceptualConfig:
    """A frozen encoder of this package that compares frames with their reconstructions, as in PeCo."""

    weights: str = key("", "weights.safetensors of any model of ours; empty: only pixels count")
    depths: list[int] = key([], "blocks after which features are compared")
    weight: float = key(1.0, "weight of the distance, besides the squared error of the pixels", least=0)


@dataclass
class TokenizerOptimConfig(OptimConfig):
    """How the tokenizer is trained."""

    epochs: float = key(100, "passes over the list", above=0)
    warmup_epochs: float = key(1, "epochs of linear warm-up", least=0)
    batch_size: int = key(128, "frames per optimizer step, over all ranks and micro-batches", least=1)
    base_batch_size: int = key(128, "batch size of the learning rates, which scale linearly", least=1)
    learning_rate: float = key(3e-4, "peak learning rate, for base_batch_size", least=0)
    weight_decay: float = key(1e-4, "weight decay; none on 1-d parameters", least=0)
    gradient_clip: float | None = key(1.0, "maximum L2 norm of the gradient; null: no clipping", above=0)


@dataclass
class TokenizerRunConfig(RunConfig):
    """Where and how a tokenizer is trained, and what is shown."""

    compile: bool = key(False, "must stay false: not supported for tokenizers")
    activation_checkpointing: bool = key(False, "must stay false: not supported for tokenizers")
    evaluate_epochs: float = key(0.0, "epochs between evaluations; 0: only at the end", least=0, free=True)
    evaluate_frames: int = key(256, "maximum number of held-out videos, one frame each", free=True)
    pictures: int = key(8, "held-out frames drawn at the end with their reconstructions", least=0, free=True)


@dataclass
class TokenizerConfig:
    """Training a tokenizer of frames on videos; its tokens are what the targets dvae and codebook predict."""

    data: DataConfig = field(default_factory=DataConfig)
    frames: FrameConfig = field(default_factory=FrameConfig)
    model: TokenizerModelConfig = field(default_factory=TokenizerModelConfig)
    gumbel: GumbelConfig = field(default_factory=GumbelConfig)
    commitment: CommitmentConfig = field(default_factory=CommitmentConfig)
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)
    optim: TokenizerOptimConfig = field(default_factory=TokenizerOptimConfig)
    run: TokenizerRunConfig = field(default_factory=TokenizerRunConfig)


# Action detection.


@dataclass
class ActionDataConfig(ReadingConfig):
    """Which key frames, with which boxes, and where their videos are."""

    train: str = key("", "rows video,second,x1,y1,x2,y2,action,person", required="ava_train_v2.2.csv")
    train_boxes: list[str] = key([], "detected boxes to train on, too: rows ...,action or empty,score")
    train_exclusions: str = key("", "rows video,second to leave out of training")
    validation: str = key("", "held-out ground truth; empty: no validation")
    validation_boxes: list[str] = key([], "detected boxes to test on; empty: those of the ground truth")
    validation_exclusions: str = key("", "rows video,second that are not scored")
    label_map: str = key("", "actions that are named and scored (pbtxt)", required="actions.pbtxt")
    classes: int = key(0, "number of actions, ids from 1 (AVA: 80); 0: the label map's largest id", least=0)
    videos: str = key("", "folder with one video file, or one folder of extracted frames, per video")
    frame_lists: list[str] = key([], "instead: lists of extracted frames in PySlowFast's format")
    frames: str = key("", "folder put before the paths of frame_lists")
    frames_fps: float = key(30.0, "frame rate of extracted frames", above=0)
    start_second: float | None = key(
        None, "second of the videos' first frame (AVA: 0 or 900)", null="found out"
    )


@dataclass
class ActionClipConfig(FramesConfig):
    """What is cut from a video around a key frame."""

    short_side: list[int] = key([256, 320], "range of the short side in training", unit="pixels", least=1)


@dataclass
class BoxConfig:
    """Which boxes are trained and tested on."""

    train_score: float = key(0.9, "minimum score of a detected box in training", **SHARE)
    train_iou: float = key(0.9, "minimum IoU at which a detected box takes true actions", **SHARE)
    score: float = key(0.8, "minimum score of a detected box in testing", **SHARE)
    visible: float = key(0.0, "training: a box is kept if the crop shows more of it", **SHARE)


@dataclass
class DetectorConfig(PretrainedModelConfig):
    """Which network, and the weights it starts from."""

    name: str = key("maskfeat_mvitv2_s_detector", "name of a detector of create_model")
    drop_path: float = key(0.4, "drop path rate of the last block; rises linearly from 0", least=0, below=1)
    dropout: float = key(0.5, "dropout before the last linear layer", least=0, below=1)
    head_scale: float = key(1.0, "factor on the last layer's initial weights")


@dataclass
class ActionLossConfig:
    """Which loss."""

    name: str = key(
        "sigmoid", "loss", choices={"sigmoid": "each action by itself", "poses": "a softmax over the poses"}
    )
    poses: list[int] = key([], "ids of the poses; empty: the label map's, or 1..14")
    focusing: float = key(0.0, "gamma of the focal loss; 0: cross-entropy", least=0)
    balance: float = key(0.0, "actions weigh count^-balance, with mean 1; 0: all equal", **SHARE)


@dataclass
class DetectOptimConfig(FinetuneOptimConfig):
    """How the detector is trained; a batch has one clip per key frame."""

    optimizer: str = key("sgd", "optimizer", choices={"adamw": "", "sgd": "momentum, Nesterov"})
    epochs: float = key(30, "passes over the key frames", above=0)
    warmup_epochs: float = key(5, "epochs of linear warm-up", least=0)
    batch_size: int = key(128, "clips per optimizer step, over all ranks and micro-batches", least=1)
    base_batch_size: int = key(128, "batch size of the learning rates, which scale linearly", least=1)
    learning_rate: float = key(3.6, "peak learning rate, for base_batch_size", least=0)
    start_learning_rate: float = key(0.01, "learning rate at step 0, for base_batch_size", least=0)
    end_learning_rate: float = key(0.0036, "learning rate at the end, for base_batch_size", least=0)
    weight_decay: float = key(1e-8, "weight decay; none on 1-d parameters", least=0)
    layer_decay: float = key(0.875, "learning rate factor from a layer to the one before; 1: none", least=0)


@dataclass
class DetectEvaluateConfig:
    """How the detector is validated."""

    epochs: float = key(5.0, "epochs between two validations; 0: only at the end", least=0)
    every_seconds: int = key(1, "while training, score each n-th second only", least=1)
    area: str = key("whole", "area of the frame", choices=AREAS)
    short_side: int = key(224, "length that the short side is resized to", unit="pixels", least=1)
    flip: bool = key(False, "at the end, average over the clip and its mirror image", free=True)
    scales: list[int] = key([], "at the end, average over these short sides", least=1, free=True)
    weights: str = key("auto", "weights that are evaluated", choices=WEIGHT_SETS)


@dataclass
class DetectConfig:
    """Detection of actions; there is no published recipe of MaskFeat: the defaults are Hiera's for AVA."""

    data: ActionDataConfig = field(default_factory=ActionDataConfig)
    clip: ActionClipConfig = field(default_factory=ActionClipConfig)
    color: ColorConfig = field(default_factory=ColorConfig, metadata={"former": "colour"})
    boxes: BoxConfig = field(default_factory=BoxConfig)
    model: DetectorConfig = field(default_factory=DetectorConfig)
    loss: ActionLossConfig = field(default_factory=ActionLossConfig)
    optim: DetectOptimConfig = field(default_factory=DetectOptimConfig)
    evaluate: DetectEvaluateConfig = field(default_factory=DetectEvaluateConfig)
    run: RunConfig = field(default_factory=RunConfig)


# Comparing targets.


@dataclass
class CompareSettings:
    """What is compared, and what all runs share.

    An entry of ``targets`` is a mapping of three keys, all optional:

    - ``pretrain`` and ``finetune``: section -> key -> value, on top of the shared configs;
    - ``before``: runs that must come first, such as a tokenizer's or a teacher's: name -> ``{verb, config,
      keys, folder}``. They are in ``{run}``, or in a folder that several entries share.

    In every value ``{folder}`` is the comparison's folder, ``{run}`` that of the entry's runs with this seed,
    and ``{seed}`` the seed.
    """

    folder: str = key("", "folder of all runs; an existing one is continued", required="runs/compare")
    pretrain: str = key("", "pre-training config of all entries", required="configs/pretrain/sample.yaml")
    finetune: str = key("", "fine-tuning config of all entries; empty: no fine-tuning")
    shared: dict[str, Any] = key({}, "pretrain, finetune: keys that differ from those files in every entry")
    targets: dict[str, Any] = key(
        {}, "name -> what differs there; see docs/comparing.md", required="{hog: {}}"
    )
    only: list[str] = key([], "entries to run; empty: all", flag="targets")
    seeds: int = key(1, "number of runs per entry, with run.seed 1, 2, ...", least=1, flag="seeds")
    jobs: int = key(1, "number of parallel runs; times per step are not comparable above 1", least=1)
    probes: int = key(4, "number of probes of the frozen features during a pre-training", least=0)


@dataclass
class CompareConfig:
    """Several targets under one budget."""

    compare: CompareSettings = field(default_factory=CompareSettings)
