"""What every training builds from the keys of its config: schedule, optimiser, average, loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from videomaskfeat.config.finetune import FinetuneOptimConfig, LabelledClipConfig
from videomaskfeat.config.pretrain import ClipConfig, OptimConfig, RunConfig
from videomaskfeat.data.loader import ClipLoader
from videomaskfeat.engine.ema import ExponentialMovingAverage
from videomaskfeat.engine.optim import adamw, parameter_groups, sgd
from videomaskfeat.engine.options import LoopOptions
from videomaskfeat.engine.schedule import WarmupCosine
from videomaskfeat.errors import UserError, nearest
from videomaskfeat.tasks.recipe import ClipRecipe

OPTIMIZERS = ("adamw", "sgd")


def build_schedule(optim: OptimConfig) -> WarmupCosine:
    """The learning rate over the epochs, for the config's batch.

    Raises:
        UserError: a rate, a length or the base batch that cannot be.
    """
    schedule = WarmupCosine(
        base_lr=optim.learning_rate,
        start_lr=optim.start_learning_rate,
        end_lr=optim.end_learning_rate,
        warmup_epochs=optim.warmup_epochs,
        epochs=optim.epochs,
    )
    return schedule.scaled(optim.batch_size, optim.base_batch_size)


def build_optimizer(
    optim: OptimConfig, model: nn.Module, *, base_lr: float, encoder: nn.Module | None = None
) -> torch.optim.Optimizer:
    """The optimiser over the model's parameter groups: AdamW, or what a fine-tuning names.

    Args:
        optim: of the config.
        model: all that learns.
        base_lr: peak learning rate.
        encoder: the part of the model whose blocks are its layers; None: the model itself.

    Raises:
        UserError: an unknown optimiser, or betas or momentum out of their range.
    """
    groups = parameter_groups(
        model.named_parameters(),
        base_lr=base_lr,
        weight_decay=optim.weight_decay,
        layer_decay=optim.layer_decay,
        depth=len((encoder or model).blocks),  # type: ignore[arg-type]
    )
    name = optim.optimizer if isinstance(optim, FinetuneOptimConfig) else "adamw"
    if name not in OPTIMIZERS:
        known = " or ".join(OPTIMIZERS)
        raise UserError(f"optim.optimizer {name!r} is not {known}{nearest(name, OPTIMIZERS)}")
    if isinstance(optim, FinetuneOptimConfig) and name == "sgd":
        return sgd(groups, momentum=optim.momentum)
    return adamw(groups, betas=(optim.betas[0], optim.betas[1]))


def build_average(optim: OptimConfig, model: nn.Module) -> ExponentialMovingAverage | None:
    """The moving average of the weights, where the config keeps one."""
    return None if optim.ema_decay is None else ExponentialMovingAverage(model, decay=optim.ema_decay)


def loop_options(
    optim: OptimConfig, run: RunConfig, loader: ClipLoader[Any], *, evaluate_epochs: float, bf16: bool
) -> LoopOptions:
    """How the loop runs; milestones and evaluations stand in epochs in a config, and in steps there."""
    steps_per_epoch = loader.batches_per_epoch // optim.accumulate
    return LoopOptions(
        epochs=optim.epochs,
        accumulate=optim.accumulate,
        clip_norm=optim.gradient_clip,
        precision="bf16" if bf16 else "fp32",
        seed=run.seed,
        save_minutes=run.checkpoint_minutes,
        keep_last=run.keep_checkpoints,
        milestone_every=round(run.checkpoint_epochs * steps_per_epoch),
        evaluate_every=round(evaluate_epochs * steps_per_epoch),
        unit="clips",
    )


def rank_timeout_seconds(run: RunConfig) -> float:
    """How long a rank waits for another one.

    Raises:
        UserError: not a positive time.
    """
    if not run.rank_timeout_minutes > 0:
        raise UserError(f"run.rank_timeout_minutes {run.rank_timeout_minutes:g} must be above 0, such as 30")
    return 60 * run.rank_timeout_minutes


def clip_recipe(clip: ClipConfig | LabelledClipConfig) -> ClipRecipe:
    """What the weights file will know of clips."""
    return ClipRecipe(
        frames=clip.frames,
        stride=clip.stride,
        crop=clip.crop,
        target_fps=clip.target_fps,
        short_video=clip.short_video,
        mean=clip.mean,
        std=clip.std,
    )
