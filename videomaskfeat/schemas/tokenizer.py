"""The config of the training of a tokenizer of frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from videomaskfeat.config_keys import key, section
from videomaskfeat.schemas.pretrain import DataConfig
from videomaskfeat.schemas.sections import SHARE, OptimConfig, RandomCropConfig, RunConfig


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
