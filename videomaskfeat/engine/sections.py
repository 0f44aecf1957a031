"""Loader options, schedules and the optimizer, from the sections of a config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from videomaskfeat.engine import distributed
from videomaskfeat.engine.optim import (
    CosineRamp,
    WarmupCosine,
    WarmupSteps,
    adamw,
    lars,
    layers_behind,
    parameter_groups,
    sgd,
)
from videomaskfeat.errors import UserError


def loader_options(config: Any) -> dict[str, Any]:
    """Keyword arguments of this rank's training loader, from the sections of a config."""
    return {
        "batch_size": config.optim.batch_size,
        "accumulate": config.optim.accumulate,
        "workers": config.data.workers,
        "read_seconds": config.data.read_seconds,
        "rank": distributed.rank(),
        "world_size": distributed.world_size(),
        "pin_memory": config.run.device != "cpu",
    }


def heldout_loader_options(config: Any, samples: int, *, largest_batch: int) -> dict[str, Any]:
    """Keyword arguments of this rank's loader of the first held-out samples, in the order of the list."""
    return {
        # A loader leaves out the samples that do not fill a batch.
        "batch_size": max(size for size in range(1, largest_batch + 1) if samples % size == 0),
        "workers": config.data.workers,
        "read_seconds": config.data.read_seconds,
        "shuffle": False,
        "read_ahead": False,
        "whole_batches": True,
        "rank": distributed.rank(),
        "world_size": distributed.world_size(),
    }


def build_schedule(optim: Any) -> WarmupCosine:
    """The learning rate schedule of a config's section ``optim``, scaled to its batch size.

    Raises:
        UserError: a learning rate, a length or the base batch size is out of range.
    """
    common = {
        "base_lr": optim.learning_rate,
        "start_lr": optim.start_learning_rate,
        "end_lr": optim.end_learning_rate,
        "warmup_epochs": optim.warmup_epochs,
        "epochs": optim.epochs,
    }
    schedule = WarmupCosine(**common)
    if optim.schedule == "steps":
        schedule = WarmupSteps(**common, steps=tuple(optim.step_epochs), factor=optim.step_factor)
    return schedule.scaled(optim.batch_size, optim.base_batch_size)


def build_weight_decay(optim: Any) -> Callable[[float], float] | None:
    """The weight decay over the training, of a config's section ``optim``; None: constant.

    Raises:
        UserError: the weight decay changes, and one of its ends is 0.
    """
    end = getattr(optim, "end_weight_decay", None)
    if end is None:
        return None
    if not min(optim.weight_decay, end) > 0:
        raise UserError(
            f"optim.weight_decay {optim.weight_decay:g} and optim.end_weight_decay {end:g}: both must be "
            "above 0, such as 0.04 and 0.4; null is a constant weight decay"
        )
    return CosineRamp(optim.weight_decay, end)


def build_optimizer(optim: Any, model: nn.Module, *, base_lr: float) -> torch.optim.Optimizer:
    """The optimizer of a config's section ``optim`` for the model's parameter groups.

    Raises:
        UserError: betas or momentum are out of range, or the package of LARS is not installed.
    """
    name = getattr(optim, "optimizer", "adamw")
    groups = parameter_groups(
        model.named_parameters(),
        base_lr=base_lr,
        weight_decay=optim.weight_decay,
        layer_decay=optim.layer_decay,
        layers=layers_behind(model) if optim.layer_decay != 1 else None,
    )
    if name == "lars":
        return lars(groups, momentum=optim.momentum)
    if name == "sgd":
        return sgd(groups, momentum=optim.momentum)
    return adamw(groups, betas=(optim.betas[0], optim.betas[1]))
