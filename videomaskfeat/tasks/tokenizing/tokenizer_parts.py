"""The parts of a tokenizer's training, built from the keys of the config that concern each, and checked."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch import nn

from videomaskfeat.config import TokenizerConfig
from videomaskfeat.data.clips import FrameSampler, PretrainClips
from videomaskfeat.data.loader import ClipLoader
from videomaskfeat.data.records import load_records
from videomaskfeat.data.transforms import ClipTransform, RandomResizedCrop, UniformCrop
from videomaskfeat.engine import distributed
from videomaskfeat.engine.optim import adamw, parameter_groups
from videomaskfeat.engine.ramps import CosineRamp
from videomaskfeat.errors import UserError
from videomaskfeat.models.dvae import DiscreteVAE
from videomaskfeat.models.frame_tokenizer import TrainedTokenizer
from videomaskfeat.models.perceptual import PerceptualDistance
from videomaskfeat.models.tokenizers import create_tokenizer
from videomaskfeat.models.vq import VectorQuantizer
from videomaskfeat.models.weights import load_model
from videomaskfeat.tasks.recipe import read_clip_recipe
from videomaskfeat.tasks.tokenizing.tokenizer_steps import DvaeStep, Relaxation, TokenizerStep, VqStep

RECIPE_KEY = "tokenizer"
"""Key of what is known of a tokenizer besides its arguments, as JSON, in the metadata of its weights file."""
HELDOUT_BATCH = 32  # held-out frames that go through the tokenizer together, at most


def check_keys(config: TokenizerConfig) -> None:
    """Refuse what a tokenizer's training has no use for, and numbers out of their range.

    Raises:
        UserError: names the first such key.
    """
    optim, run, gumbel = config.optim, config.run, config.gumbel
    useless = {
        "optim.layer_decay": optim.layer_decay != 1,
        "optim.ema_decay": optim.ema_decay is not None,
        "run.compile": run.compile,
        "run.activation_checkpointing": run.activation_checkpointing,
    }
    for name, given in useless.items():
        if given:
            raise UserError(f"{name} is of no use in training a tokenizer; leave it at its default")
    for name, value in (
        ("gumbel.start_temperature", gumbel.start_temperature),
        ("gumbel.end_temperature", gumbel.end_temperature),
    ):
        if not value > 0:
            raise UserError(f"{name}={value}: must be above 0")
    if not 0 < gumbel.anneal <= 1:
        raise UserError(f"gumbel.anneal={gumbel.anneal}: must be above 0 and at most 1, a share of the run")
    if not 0 <= gumbel.kl_warmup <= 1:
        raise UserError(f"gumbel.kl_warmup={gumbel.kl_warmup}: must be between 0 and 1, a share of the run")
    for name, value in (
        ("gumbel.kl_weight", gumbel.kl_weight),
        ("commitment.weight", config.commitment.weight),
        ("perceptual.weight", config.perceptual.weight),
    ):
        if not value >= 0:
            raise UserError(f"{name}={value}: must not be negative")


def build_tokenizer(config: TokenizerConfig) -> TrainedTokenizer:
    """The tokenizer by its name, checked against the frames.

    Raises:
        UserError: an unknown name or argument, or frames that its stride does not divide.
    """
    tokenizer = create_tokenizer(config.model.name, **config.model.arguments)
    if config.frames.size < 1 or config.frames.size % tokenizer.stride:
        raise UserError(
            f"frames.size {config.frames.size} is no multiple of the tokenizer's stride {tokenizer.stride}; "
            "change it, or model.arguments.stride"
        )
    return tokenizer


def build_perceptual(config: TokenizerConfig) -> PerceptualDistance | None:
    """The frozen encoder that compares pictures, where the config names one.

    Raises:
        UserError: the file is missing or no model of ours, or has no such depths.
    """
    perceptual = config.perceptual
    if not perceptual.weights:
        if perceptual.depths:
            raise UserError("perceptual.depths is set and perceptual.weights is not; give the encoder's file")
        return None
    clip = read_clip_recipe(perceptual.weights)
    return PerceptualDistance(
        load_model(perceptual.weights),
        depths=perceptual.depths,
        size=clip.crop,
        mean=clip.mean,
        std=clip.std,
    )


def build_step(
    config: TokenizerConfig,
    network: nn.Module,
    tokenizer: TrainedTokenizer,
    perceptual: PerceptualDistance | None,
) -> TokenizerStep:
    """The step of this kind of tokenizer."""
    shared: dict[str, Any] = {"perceptual": perceptual, "perceptual_weight": config.perceptual.weight}
    if isinstance(tokenizer, DiscreteVAE):
        gumbel = config.gumbel
        relaxation = Relaxation(
            CosineRamp(gumbel.start_temperature, gumbel.end_temperature),
            anneal=gumbel.anneal,
            kl_weight=gumbel.kl_weight,
            kl_warmup=gumbel.kl_warmup,
        )
        return DvaeStep(network, tokenizer, relaxation=relaxation, **shared)
    assert isinstance(tokenizer, VectorQuantizer)
    return VqStep(network, tokenizer, commitment=config.commitment.weight, **shared)


def build_optimizer(
    config: TokenizerConfig, tokenizer: nn.Module, *, base_lr: float
) -> torch.optim.Optimizer:
    """AdamW over the tokenizer's parameters.

    Raises:
        UserError: betas out of their range.
    """
    optim = config.optim
    groups = parameter_groups(tokenizer.named_parameters(), base_lr=base_lr, weight_decay=optim.weight_decay)
    return adamw(groups, betas=(optim.betas[0], optim.betas[1]))


def recipe_text(config: TokenizerConfig, tokenizer: TrainedTokenizer) -> str:
    """What the weights file says of the tokenizer, for people and programs that do not build it."""
    return json.dumps(
        {
            "kind": config.model.name,
            "vocabulary": tokenizer.vocabulary,
            "stride": tokenizer.stride,
            "size": config.frames.size,
            "mean": tokenizer.mean.flatten().tolist(),
            "std": tokenizer.std.flatten().tolist(),
        }
    )


def training_loader(config: TokenizerConfig) -> ClipLoader[Any]:
    """Random frames and crops of the training list.

    Raises:
        UserError: the list, the batch or a frame setting is wrong.
    """
    frames = config.frames
    transform = RandomResizedCrop(
        frames.size,
        area=(frames.crop_area[0], frames.crop_area[1]),
        aspect=(frames.crop_aspect[0], frames.crop_aspect[1]),
        flip=frames.flip,
    )
    return ClipLoader(
        _dataset(config, config.data.train, random_frame, transform, samples=frames.per_video),
        batch_size=config.optim.batch_size,
        accumulate=config.optim.accumulate,
        workers=config.data.workers,
        read_seconds=config.data.read_seconds,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        pin_memory=config.run.device != "cpu",
    )


def heldout_loader(config: TokenizerConfig) -> ClipLoader[Any] | None:
    """The middle frame of each held-out video, its centre crop, in the list's order.

    Raises:
        UserError: the list is wrong.
    """
    if not config.data.validation:
        return None
    if config.run.evaluate_frames < 1:
        raise UserError(
            f"run.evaluate_frames {config.run.evaluate_frames} must be at least 1; "
            "empty data.validation to do without held-out frames"
        )
    transform = UniformCrop(config.frames.size, config.frames.size)
    dataset = _dataset(config, config.data.validation, middle_frame, transform, samples=1)
    frames = min(config.run.evaluate_frames, len(dataset))
    return ClipLoader(
        dataset,
        # A loader leaves out what does not fill a batch, so take one that divides the number of frames.
        batch_size=max(size for size in range(1, HELDOUT_BATCH + 1) if frames % size == 0),
        workers=config.data.workers,
        read_seconds=config.data.read_seconds,
        shuffle=False,
        read_ahead=False,
    )


def random_frame(num_frames: int, fps: float, *, rng: np.random.Generator) -> np.ndarray:
    """Any one frame of a video, int64 [1]."""
    return rng.integers(num_frames, size=1)


def middle_frame(num_frames: int, fps: float, *, rng: np.random.Generator) -> np.ndarray:
    """The frame in the middle of a video, int64 [1]; ``rng`` is not used."""
    return np.array([num_frames // 2])


def hide_nothing(*, rng: np.random.Generator) -> np.ndarray:
    """The mask of a training that hides nothing, bool [1, 1, 1]."""
    return np.zeros((1, 1, 1), dtype=bool)


def _dataset(
    config: TokenizerConfig, path: str, sampler: FrameSampler, transform: ClipTransform, *, samples: int
) -> PretrainClips:
    """Clips of one frame of a list."""
    data = config.data
    records = load_records(
        path, format=data.format, labels=data.labels, prefix=data.prefix, separator=data.separator
    )
    return PretrainClips(
        records,
        sampler=sampler,
        transform=transform,
        mask=hide_nothing,
        reader=data.reader,
        seed=config.run.seed,
        samples_per_video=samples,
    )
