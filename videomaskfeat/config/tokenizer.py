"""The keys of training a tokenizer of frames."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from videomaskfeat.config.key import key
from videomaskfeat.config.pretrain import DataConfig, OptimConfig, RunConfig


@dataclass
class FrameConfig:
    """What is cut from a video."""

    size: int = key(112, "height and width of a frame, pixels; a multiple of the tokenizer's stride")
    per_video: int = key(4, "frames drawn from one opening of a video, each with a crop of its own")
    crop_area: list[float] = key([0.5, 1.0], "least and greatest area of the random crop, share of the frame")
    crop_aspect: list[float] = key([0.75, 1.3333], "least and greatest width/height of the random crop")
    flip: float = key(0.5, "chance of a horizontal flip, 0..1")


@dataclass
class TokenizerModelConfig:
    """Which tokenizer."""

    name: str = key("dvae", "dvae (discrete VAE, as BEiT's) | vq (nearest codes, as PeCo's)")
    arguments: dict[str, Any] = key({}, "what differs from its own: vocabulary, stride, width, blocks, ...")


@dataclass
class GumbelConfig:
    """How a dvae draws codes."""

    start_temperature: float = key(1.0, "of the relaxed draws at the start")
    end_temperature: float = key(0.0625, "at the end of the annealing: lower is closer to single codes")
    anneal: float = key(1.0, "share of the run that the annealing (half a cosine) takes, above 0, up to 1")
    kl_weight: float = key(1e-3, "weight of the KL divergence of a cell's codes to uniform ones, nats")
    kl_warmup: float = key(0.05, "share of the run over which that weight rises from 0, 0..1")


@dataclass
class CommitmentConfig:
    """What a vq adds to its loss; how its codes move stands in model.arguments (decay, revive_below)."""

    weight: float = key(0.25, "weight of the squared distance of the latents to their codes")


@dataclass
class PerceptualConfig:
    """A frozen encoder of this framework that compares frames with their reconstructions, as in PeCo."""

    weights: str = key("", "weights.safetensors of any model of ours; empty: pixels alone count")
    depths: list[int] = key(
        [], "blocks after which features are compared; each costs the encoder up to there"
    )
    weight: float = key(1.0, "weight of the distance beside the squared error of the pixels")


@dataclass
class TokenizerOptimConfig(OptimConfig):
    """How it is trained."""

    epochs: float = key(100, "passes over the list")
    warmup_epochs: float = key(1, "passes of linear warm-up")
    batch_size: int = key(128, "frames an optimiser step, over all ranks and micro-batches")
    base_batch_size: int = key(128, "batch size the learning rates are stated for; they scale linearly")
    learning_rate: float = key(3e-4, "peak, for base_batch_size")
    weight_decay: float = key(1e-4, "none on 1-d parameters")
    gradient_clip: float | None = key(1.0, "greatest L2 norm of the gradient; null: no clipping")


@dataclass
class TokenizerRunConfig(RunConfig):
    """Where and how it runs, and what it shows."""

    evaluate_epochs: float = key(
        0.0, "epochs from one held-out reconstruction to the next; 0: only at the end"
    )
    evaluate_frames: int = key(256, "greatest number of held-out videos, a frame each")
    pictures: int = key(8, "held-out frames drawn at the end, with what became of them")


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
