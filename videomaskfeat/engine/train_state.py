"""Everything that a resumed run needs, and its comparison with a checkpoint before any of it is loaded."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from videomaskfeat.engine import distributed
from videomaskfeat.engine.average import ExponentialMovingAverage
from videomaskfeat.engine.checkpoint import (
    MAX_NAMES,
    DamagedCheckpointError,
    Example,
    check_fingerprint,
    join_names,
)
from videomaskfeat.engine.contracts import Stateful
from videomaskfeat.errors import RunFailed, UserError

logger = logging.getLogger(__name__)

_MAX_DEPTH = 20  # of lists and dictionaries in a config value
_MAX_COUNT = 2**53  # of steps, samples or seconds


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
        try:
            saved = _upgrade(saved, where)
            self._check(saved, where)
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

    def _check(self, saved: Mapping[str, Any], where: str) -> None:
        """Compare every component with what this run would save."""
        for name in ("fingerprint", "progress", "model", "optimizer", "random"):
            if name not in saved:
                raise DamagedCheckpointError(
                    f"{where} is not a checkpoint of a training run ({name!r} is missing);"
                    " give a step_*.pt file"
                )
        with _name_component(where, "fingerprint"):
            _check_fingerprint_values(saved["fingerprint"])
        check_fingerprint(self.upgrade_fingerprint(saved["fingerprint"]), self.fingerprint, where)
        if self.ema is not None and saved.get("ema") is None:
            raise DamagedCheckpointError(
                f"{where} contains no averaged weights; switch the ema off, or use another run folder"
            )
        for name, component in self.components.items():
            if name not in saved:
                continue
            with _name_component(where, name):
                if isinstance(component, Progress):
                    _check_progress(saved[name])
                elif isinstance(component, RandomStates):
                    _check_random(saved[name])
                elif isinstance(component, torch.optim.Optimizer):
                    _check_optimizer(saved[name], component)
                elif isinstance(component, nn.Module | ExponentialMovingAverage):
                    _check_weights(saved[name], component, where)
                else:
                    _check_like(name, saved[name], component.state_dict())


def _upgrade(saved: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """A checkpoint of an earlier version in the present layout.

    Components of the job were nested in ``extra``, ``ema`` was None without an average, and ``random`` was
    the list of states.
    """
    if "extra" not in saved:
        return saved
    with _name_component(where, "extra"):
        _require(isinstance(saved["extra"], Mapping), "it is not a dictionary")
    flat = {
        name: state for name, state in saved.items() if name != "extra" and (name, state) != ("ema", None)
    }
    if "random" in saved:
        flat["random"] = {"ranks": saved["random"]}
    return {**saved["extra"], **flat}


class _Unfit(Exception):
    """A component of a checkpoint differs in kind from what this run would save."""


@contextmanager
def _name_component(where: str, name: str) -> Iterator[None]:
    """Name file and component in errors."""
    try:
        yield
    except _Unfit as error:
        raise DamagedCheckpointError(f"{where}: the checkpoint is damaged ({name!r}: {error})") from error


def _require(condition: bool, fault: str) -> None:
    if not condition:
        raise _Unfit(fault)


def _check_fingerprint_values(saved: Any) -> None:
    """Require plain values, since ``!=`` of tensors returns no boolean."""
    _require(isinstance(saved, Mapping), "it is not a dictionary")
    for key, value in saved.items():
        _require(isinstance(key, str), f"the key {str(key)[:50]} is not a string")
        _check_plain(key, value, depth=0)


def _check_plain(key: str, value: Any, *, depth: int) -> None:
    _require(depth < _MAX_DEPTH, f"{key} is nested too deeply")
    if isinstance(value, list | tuple):
        for entry in value:
            _check_plain(key, entry, depth=depth + 1)
    elif isinstance(value, Mapping):
        for name, entry in value.items():
            _check_plain(key, name, depth=depth + 1)
            _check_plain(key, entry, depth=depth + 1)
    else:
        plain = value is None or isinstance(value, bool | int | float | str)
        _require(plain, f"{key} is a {type(value).__name__}")


def _check_progress(saved: Any) -> None:
    _require(isinstance(saved, Mapping), "it is not a dictionary")
    fresh = asdict(Progress())
    for name in saved:
        _require(name in fresh, f"{str(name)[:50]} is unknown")
    record = saved.get("unevaluated")  # missing in older checkpoints
    _require(record is None or isinstance(record, dict), "unevaluated is not a dictionary")
    for name, kind in ((name, type(value)) for name, value in fresh.items() if name != "unevaluated"):
        value = saved.get(name)
        right = type(value) is kind and 0 <= value < _MAX_COUNT  # False for NaN
        _require(right, f"{name} is {str(value)[:50]}")


def _check_weights(saved: Any, component: nn.Module | ExponentialMovingAverage, where: str) -> None:
    """Require the names, types and shapes of a model's tensors, and finite values."""
    _require(isinstance(saved, Mapping), "it is not a dictionary")
    for name, value in saved.items():
        _require(isinstance(name, str), "a name is not a string")
        _require(isinstance(value, torch.Tensor), f"{name} is not a tensor")
    if isinstance(component, nn.Module):
        check_weights(saved, component, where)
    _check_like("", saved, component.state_dict())


def check_weights(saved: Mapping[str, Tensor], model: nn.Module, where: str | os.PathLike[str]) -> None:
    """Refuse weights of another model.

    Raises:
        DamagedCheckpointError: names some parameters that are missing, unknown or of another shape.
    """
    own = model.state_dict()
    faults = [f"{name} is missing" for name in own if name not in saved]
    faults += [f"{name} is unknown here" for name in saved if name not in own]
    faults += [
        f"{name} is {list(saved[name].shape)} there and {list(own[name].shape)} here"
        for name in own
        if name in saved and saved[name].shape != own[name].shape
    ]
    if faults:
        raise DamagedCheckpointError(
            f"{where} contains another model: {join_names(faults[:MAX_NAMES], len(faults))};"
            " use the config that it was trained with, or another run folder"
        )


def _check_tensor(name: str, value: Any, shape: torch.Size, dtype: torch.dtype) -> None:
    _require(isinstance(value, torch.Tensor), f"{name} is not a tensor")
    plain = value.layout is torch.strided and not value.is_quantized and not value.is_meta
    _require(plain, f"{name} is sparse, quantized or without values")
    _require(value.dtype == dtype, f"{name} is {value.dtype}, not {dtype}")
    _require(value.shape == shape, f"{name} has the shape {list(value.shape)}, not {list(shape)}")
    finite = not dtype.is_floating_point or bool(distributed.local(value).isfinite().all())
    _require(finite, f"{name} is not finite")


def _check_optimizer(saved: Any, optimizer: torch.optim.Optimizer) -> None:
    """Require the optimizer's own groups and parameters, and its complete state of each parameter."""
    _require(isinstance(saved, Mapping), "it is not a dictionary")
    own = optimizer.state_dict()
    groups, state = saved.get("param_groups"), saved.get("state")
    _require(isinstance(groups, list) and isinstance(state, Mapping), "groups or state are missing")
    _require(len(groups) == len(own["param_groups"]), f"{len(groups)} groups of parameters")
    for group, mine in zip(groups, own["param_groups"], strict=True):
        _require(isinstance(group, Mapping), "a group is not a dictionary")
        _require(group.get("params") == mine["params"], "a group of other parameters")
        for key, value in mine.items():
            _require(key in group, f"{key} is missing in a group")
            _require(_alike(group[key], value), f"{key} is {str(group[key])[:50]} in a group")
    parameters = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
    for index, entry in state.items():
        _require(index in parameters and isinstance(entry, Mapping), f"the state of {str(index)[:50]}")
        parameter = parameters[index]
        for key in ("step", "exp_avg", "exp_avg_sq") if isinstance(optimizer, torch.optim.AdamW) else ():
            _require(key in entry, f"{key} of parameter {index} is missing")
        for key, value in entry.items():
            name = f"{str(key)[:50]} of parameter {index}"
            if key == "step":
                _check_tensor(name, value, torch.Size(), torch.float32)
                _require(float(value) >= 0, f"{name} is negative")
            elif value is not None:  # None: SGD without momentum
                _check_tensor(name, value, parameter.shape, parameter.dtype)


def _alike(value: Any, own: Any) -> bool:
    """Whether a value may replace one of the optimizer's own: the same type, and numbers finite."""
    if isinstance(own, bool | str) or own is None:
        return type(value) is type(own)
    if isinstance(own, int | float):
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if isinstance(own, list | tuple):
        return isinstance(value, list | tuple) and len(value) == len(own) and all(map(_alike, value, own))
    return isinstance(value, type(own))


def _check_like(name: str, saved: Any, own: Any) -> None:
    """Require the keys of own mappings, and tensors and numbers of the same kind."""
    if isinstance(own, torch.Tensor):
        _check_tensor(name, saved, own.shape, own.dtype)
    elif isinstance(own, Mapping):
        _require(isinstance(saved, Mapping), f"{name} is not a dictionary")
        for key, value in own.items():
            _require(key in saved, f"{key} is missing")
            _check_like(str(key), saved[key], value)
    else:
        _check_plain(name, saved, depth=0)
        if isinstance(own, int | float | str):
            _require(_alike(saved, own), f"{name} is {str(saved)[:50]}")
        elif isinstance(own, list):
            _require(isinstance(saved, list), f"{name} is not a list")


def _check_random(saved: Any) -> None:
    """Require states that torch accepts; states of a GPU are checked by type alone."""
    states: Any = saved.get("ranks") if isinstance(saved, Mapping) else None
    _require(isinstance(states, list) and bool(states), "it is not a list with one state per rank")
    size = torch.get_rng_state().shape
    for state in states:
        _require(isinstance(state, Mapping) and "cpu" in state, "a rank without a state")
        _check_tensor("cpu", state["cpu"], size, torch.uint8)
        torch.Generator().set_state(state["cpu"])
        if "cuda" in state:
            value = state["cuda"]
            right = isinstance(value, torch.Tensor) and value.dtype == torch.uint8 and value.ndim == 1
            _require(right, "cuda is not a random state")
