"""Schedule and optimiser from the keys of a config."""

from __future__ import annotations

import torch
from torch import nn

from videomaskfeat.config.finetune import FinetuneOptimConfig
from videomaskfeat.config.pretrain import OptimConfig
from videomaskfeat.engine.optim import adamw, parameter_groups, sgd
from videomaskfeat.engine.schedule import WarmupCosine
from videomaskfeat.errors import UserError, nearest

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


def build_optimizer(optim: OptimConfig, model: nn.Module, *, base_lr: float) -> torch.optim.Optimizer:
    """The optimiser over the model's parameter groups: AdamW, or what a fine-tuning names.

    Raises:
        UserError: an unknown optimiser, or betas or momentum out of their range.
    """
    groups = parameter_groups(
        model.named_parameters(),
        base_lr=base_lr,
        weight_decay=optim.weight_decay,
        layer_decay=optim.layer_decay,
        depth=len(model.blocks),  # type: ignore[arg-type]
    )
    name = optim.optimizer if isinstance(optim, FinetuneOptimConfig) else "adamw"
    if name not in OPTIMIZERS:
        known = " or ".join(OPTIMIZERS)
        raise UserError(f"optim.optimizer {name!r} is not {known}{nearest(name, OPTIMIZERS)}")
    if isinstance(optim, FinetuneOptimConfig) and name == "sgd":
        return sgd(groups, momentum=optim.momentum)
    return adamw(groups, betas=(optim.betas[0], optim.betas[1]))
