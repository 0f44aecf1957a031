"""Learning rates as pure functions of the fractional epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from videomaskfeat.errors import UserError


@dataclass(frozen=True)
class WarmupCosine:
    """A linear warm-up from ``start_lr`` to ``base_lr``, then half a cosine down to ``end_lr``.

    The cosine begins where the warm-up ends, as in the published recipes, and the rate is meant to be
    read before every optimiser step at ``epoch = epochs done + steps done in this epoch / its steps``.

    Args:
        base_lr: the highest rate, reached after ``warmup_epochs``.
        start_lr: the rate of the very first step.
        end_lr: the rate after ``epochs``.
        warmup_epochs: length of the warm-up, 0 or more; may be a fraction.
        epochs: length of the whole training in epochs.

    Raises:
        UserError: the warm-up leaves no epoch for the cosine, or a length or rate is negative.
    """

    base_lr: float
    start_lr: float
    end_lr: float
    warmup_epochs: float
    epochs: float

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_epochs < self.epochs:
            raise UserError(
                f"warmup_epochs={self.warmup_epochs:g} with epochs={self.epochs:g}: the warm-up must be 0 or"
                " longer and end before the training does; shorten it"
            )
        for name in ("base_lr", "start_lr", "end_lr"):
            if not getattr(self, name) >= 0:  # written so that NaN is refused too
                raise UserError(f"{name}={getattr(self, name)}: a learning rate must not be negative")

    def __call__(self, epoch: float) -> float:
        """The learning rate at a fractional epoch (0 = start); constant at ``end_lr`` past the end."""
        if epoch < self.warmup_epochs:
            return self.start_lr + (self.base_lr - self.start_lr) * epoch / self.warmup_epochs
        part = min((epoch - self.warmup_epochs) / (self.epochs - self.warmup_epochs), 1.0)
        return self.end_lr + (self.base_lr - self.end_lr) * (math.cos(math.pi * part) + 1.0) / 2.0

    def scaled(self, batch_size: int, reference_batch_size: int) -> WarmupCosine:
        """The same schedule for another batch size: all three rates grow in proportion to the batch.

        Args:
            batch_size: samples in one optimiser step, over all ranks and micro-batches.
            reference_batch_size: the batch that the rates were published for.

        Raises:
            UserError: a batch below 1.
        """
        for name, size in (("batch_size", batch_size), ("base_batch_size", reference_batch_size)):
            if size < 1:
                raise UserError(f"{name}={size}: must be 1 or more")
        factor = batch_size / reference_batch_size
        return replace(
            self, base_lr=self.base_lr * factor, start_lr=self.start_lr * factor, end_lr=self.end_lr * factor
        )
