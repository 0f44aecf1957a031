"""Everything that a resumed run needs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from videomaskfeat.engine import distributed
from videomaskfeat.engine.average import ExponentialMovingAverage
from videomaskfeat.engine.checkpoint import DamagedCheckpointError, Example
from videomaskfeat.engine.contracts import Stateful
from videomaskfeat.errors import RunFailed, UserError

logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """Position of a run.

    ``epoch`` and ``epoch_step`` count optimizer steps rather than batches of a rank, so they stay correct if
    the run resumes with another number of ranks or another gradient accumulation.
    """

    step: int = 0
    """Optimizer steps since the start."""
    epoch: int = 0
    """Completed epochs, which is the number of the epoch of the next step."""
    epoch_step: int = 0
    """Optimizer steps in that epoch."""
    samples: int = 0
    """Samples seen by all ranks."""
    failures: int = 0
    """Inputs of all ranks that failed and were replaced, counted once per epoch."""
    seconds: float = 0.0
    """Time spent in steps, including the wait for data."""
    unevaluated: dict[str, Any] | None = None
    """Record of the last step if a signal stopped its evaluation; a resumed run evaluates first."""

    def state_dict(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        vars(self).update(asdict(Progress(**state)))

    def advance(self, *, steps_per_epoch: int, samples: int) -> None:
        """Count one optimizer step."""
        self.step += 1
        self.epoch_step += 1
        if self.epoch_step == steps_per_epoch:
            self.epoch, self.epoch_step = self.epoch + 1, 0
        self.samples += samples


class RandomStates:
    """The random states of torch on every rank, on the CPU and on the rank's GPU.

    They drive drop path and dropout. The order of the data follows from seed and position alone.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def state_dict(self) -> dict[str, Any]:
        """One state per rank; all ranks must call it."""
        state = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        return {"ranks": distributed.gather_objects(state)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of this rank; a rank without a saved state keeps its own."""
        states, rank, ranks = state["ranks"], distributed.rank(), distributed.world_size()
        if len(states) != ranks and distributed.is_main():
            logger.warning(
                "resumed on %d ranks, saved on %d: the data continues in the same order, but the random "
                "numbers of drop path and dropout differ from those of an uninterrupted run",
                ranks,
                len(states),
            )
        if rank >= len(states):
            return
        torch.set_rng_state(states[rank]["cpu"])
        if self.device.type == "cuda" and "cuda" in states[rank]:
            torch.cuda.set_rng_state(states[rank]["cuda"], self.device)


@dataclass
class TrainState:
    """Everything that a resumed run needs to equal the uninterrupted one.

    A checkpoint is the flat dictionary of the states of all components, by name, and the fingerprint.
    """

    model: nn.Module
    """The model without a wrapper."""
    optimizer: torch.optim.Optimizer
    ema: ExponentialMovingAverage | None
    device: torch.device
    fingerprint: Mapping[str, Any]
    """Flat config keys that a resumed run must share."""
    upgrade_fingerprint: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict
    """Fingerprint of an older checkpoint -> the same with present keys."""
    extra: Mapping[str, Stateful] = field(default_factory=dict)
    """Further components of the job; checkpoints of earlier versions may lack one."""
    progress: Progress = field(default_factory=Progress)

    @property
    def components(self) -> dict[str, Stateful]:
        """All components by name, those of the job first."""
        own: dict[str, Any] = {
            "model": self.model,
            "optimizer": self.optimizer,
            "ema": self.ema,
            "progress": self.progress,
            "random": RandomStates(self.device),
        }
        assert not own.keys() & self.extra.keys(), "two components of one name"
        return {**self.extra, **{name: one for name, one in own.items() if one is not None}}

    def state_dict(self) -> dict[str, Any]:
        """The checkpoint as plain data and tensors; all ranks must call it."""
        states = {name: component.state_dict() for name, component in self.components.items()}
        return {"fingerprint": dict(self.fingerprint), **states}

    def load_state_dict(self, saved: Mapping[str, Any], where: str) -> None:
        """Resume from a checkpoint; changes nothing unless all of it fits.

        Args:
            saved: result of :meth:`state_dict`, perhaps of another number of ranks.
            where: the checkpoint's path, for messages.

        Raises:
            DamagedCheckpointError: a component is missing, or differs in kind from what this run would save.
            UserError: the checkpoint belongs to another config.
        """
        from videomaskfeat.engine.resume import check_state, upgrade_layout

        try:
            saved = upgrade_layout(saved, where)
            check_state(saved, self, where)
            if distributed.is_sharded(self.model):
                from videomaskfeat.engine.sharding import shard_all

                saved = shard_all(saved, self.example())
            for name, component in self.extra.items():
                if name in saved:
                    component.load_state_dict(saved[name])
        except (UserError, RunFailed):
            raise
        except Exception as error:  # altered content can make torch raise anything
            cause = " ".join(str(error).split())[:200] or type(error).__name__
            raise DamagedCheckpointError(f"{where}: the checkpoint is damaged ({cause})") from error
        for name, component in self.components.items():
            if name not in self.extra:
                component.load_state_dict(saved[name])

    def example(self) -> Example:
        """A function from keys and shape of a tensor in a checkpoint to this run's tensor of that kind.

        A moment of the optimizer is of the kind of its parameter. The function returns None for others.
        """
        own = {
            name: component.state_dict()
            for name, component in self.components.items()
            if not isinstance(component, RandomStates | torch.optim.Optimizer)
        }
        parameters = [one for group in self.optimizer.param_groups for one in group["params"]]
        own["optimizer"] = {"state": {number: (one,) for number, one in enumerate(parameters)}}

        def find(path: tuple[Any, ...], shape: torch.Size) -> Tensor | None:
            value: Any = own
            for key in path:
                if isinstance(value, tuple):  # of a parameter: the key names a moment
                    value = value[0]
                else:
                    value = value.get(key) if isinstance(value, Mapping) else None
            return value if isinstance(value, Tensor) and value.shape == shape else None

        return find
