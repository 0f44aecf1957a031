"""Everything that a resumed run needs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from videomaskfeat.engine import distributed
from videomaskfeat.engine.checkpoint import check_fingerprint, check_weights
from videomaskfeat.engine.contracts import Stateful
from videomaskfeat.engine.ema import ExponentialMovingAverage
from videomaskfeat.errors import UserError

logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far a run has come.

    ``epoch`` and ``epoch_step`` count optimiser steps, not batches of a rank, so that the position stays
    right when a run is resumed with another number of ranks or micro-batches.
    """

    step: int = 0
    """Optimiser steps done since the start."""
    epoch: int = 0
    """Whole epochs done: the number of the epoch that the next step belongs to."""
    epoch_step: int = 0
    """Optimiser steps done in that epoch."""
    samples: int = 0
    """Samples seen, over all ranks."""
    failures: int = 0
    """Inputs that failed and were replaced, over all ranks; one that fails in two epochs counts twice."""
    seconds: float = 0.0
    """Time spent in steps, data waiting included."""
    unevaluated: dict[str, Any] | None = None
    """Record of the last step if a signal stopped its evaluation; a resumed run evaluates first."""

    def advance(self, *, steps_per_epoch: int, samples: int, failures: int, seconds: float) -> None:
        """Count one optimiser step."""
        self.step += 1
        self.epoch_step += 1
        if self.epoch_step == steps_per_epoch:
            self.epoch, self.epoch_step = self.epoch + 1, 0
        self.samples += samples
        self.failures += failures
        self.seconds += seconds


@dataclass
class TrainState:
    """The complete list of what a resumed run needs to equal the uninterrupted one.

    Saved with it are the states of torch's random generators (CPU and, on a GPU, the device's) of every rank;
    they drive drop path and dropout. The order of the data needs no state: it follows from seed and position.
    """

    model: nn.Module
    """The plain module."""
    optimizer: torch.optim.Optimizer
    ema: ExponentialMovingAverage | None
    device: torch.device
    fingerprint: Mapping[str, Any]
    """Flat settings under which the run may be resumed."""
    extra: Mapping[str, Stateful] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)

    def state_dict(self) -> dict[str, Any]:
        """Everything as plain data and tensors. All ranks must call it: random states are gathered."""
        return {
            "fingerprint": dict(self.fingerprint),
            "progress": asdict(self.progress),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "extra": {name: part.state_dict() for name, part in self.extra.items()},
            "random": distributed.gather_objects(self._random_state()),
        }

    def load_state_dict(self, saved: Mapping[str, Any], where: str) -> None:
        """Continue from a checkpoint.

        With another number of ranks than at the time of saving, data order and weights go on as before; ranks
        that were there then keep their random state, new ones the one they were seeded with.

        Args:
            saved: what :meth:`state_dict` gave.
            where: the checkpoint's path, for messages.

        Raises:
            UserError: no training checkpoint, another configuration, another model, or no averaged weights.
        """
        missing = [
            key for key in ("fingerprint", "progress", "model", "optimizer", "random") if key not in saved
        ]
        if missing:
            raise UserError(
                f"{where}: is no checkpoint of a training run ({missing[0]!r} is missing);"
                " give a step_*.pt file"
            )
        check_fingerprint(saved["fingerprint"], self.fingerprint, where)
        check_weights(saved["model"], self.model, where)
        self.model.load_state_dict(saved["model"])
        try:
            self.optimizer.load_state_dict(saved["optimizer"])
        except ValueError as error:
            raise UserError(
                f"{where}: the optimiser's state does not fit: {error}; use the same config"
            ) from error
        if self.ema is not None:
            if saved["ema"] is None:
                raise UserError(
                    f"{where}: holds no averaged weights; switch the ema off, or use another run folder"
                )
            self.ema.load_state_dict(saved["ema"])
        for name, part in self.extra.items():
            if name in saved["extra"]:
                part.load_state_dict(saved["extra"][name])
        self.progress = Progress(**saved["progress"])
        self._load_random_state(saved["random"])

    def _random_state(self) -> dict[str, torch.Tensor]:
        state = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def _load_random_state(self, states: list[dict[str, torch.Tensor]]) -> None:
        rank, ranks = distributed.rank(), distributed.world_size()
        if len(states) != ranks and distributed.is_main():
            logger.warning(
                "resumed on %d ranks, saved on %d: the data goes on in the same order, but drop path and"
                " dropout draw other numbers than in an uninterrupted run",
                ranks,
                len(states),
            )
        if rank >= len(states):
            return
        torch.set_rng_state(states[rank]["cpu"])
        if self.device.type == "cuda" and "cuda" in states[rank]:
            torch.cuda.set_rng_state(states[rank]["cuda"], self.device)
