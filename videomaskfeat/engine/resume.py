"""Reading of checkpoints, and their comparison with the run that continues before any of it is loaded."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from videomaskfeat.engine import distributed
from videomaskfeat.engine.average import ExponentialMovingAverage
from videomaskfeat.engine.checkpoint import LENGTH_KEY, DamagedCheckpointError, Example
from videomaskfeat.engine.train_state import Progress, RandomStates, TrainState
from videomaskfeat.errors import UserError
from videomaskfeat.io import is_folder
from videomaskfeat.tensor_files import DamagedFile, PickledCode, read_torch_file
from videomaskfeat.texts import show_text

MAX_NAMES = 4
"""Maximum number of names in a message before "and N more"."""
_MAX_CHARACTERS = 200  # of a value in a message
_MAX_DEPTH = 20  # of lists and dictionaries in a config value
_MAX_COUNT = 2**53  # of steps, samples or seconds


def load_checkpoint(path: str | os.PathLike[str], example: Example | None = None) -> dict[str, Any]:
    """Read a checkpoint to the CPU as plain data; verifies its check sums and runs no code in it.

    Args:
        path: file or folder of a checkpoint.
        example: decides which parts of the tensors of a folder this rank reads; None: whole tensors.

    Raises:
        DamagedCheckpointError: the file is cut, altered, no checkpoint, or contains pickled code.
        UserError: there is no such file.
    """
    text = os.fspath(path)
    try:
        if is_folder(text):
            from videomaskfeat.engine.sharded_checkpoint import read_sharded

            content: Any = read_sharded(Path(text), example or (lambda path, shape: None))
        else:
            content = read_torch_file(text)
    except PickledCode as error:
        name = f" ({error.name})" if error.name else ""  # a changed byte may make another name of it
        raise DamagedCheckpointError(
            f"{text} contains pickled code{name}, which is never executed here; resume only from checkpoints"
            " that this program wrote, and bring weights as .safetensors"
        ) from error
    except DamagedFile as error:
        raise DamagedCheckpointError(f"{text}: the checkpoint is damaged ({error.reason})") from error
    if not isinstance(content, dict):
        raise DamagedCheckpointError(
            f"{text} is not a checkpoint of a run (it contains a {type(content).__name__})"
        )
    return content


def read_own(path: Path, example: Example | None) -> dict[str, Any]:
    """A checkpoint of the run's own folder, where anything but a regular file or a folder is damage."""
    if not (path.is_file() or (path.is_dir() and not path.suffix)):
        raise DamagedCheckpointError(f"{path}: the checkpoint is damaged (not a regular file)")
    return load_checkpoint(path, example)


def check_fingerprint(
    saved: Mapping[str, Any], current: Mapping[str, Any], where: str | os.PathLike[str]
) -> None:
    """Refuse to resume a run under another config.

    Args:
        saved: flat config keys in the checkpoint.
        current: flat config keys of this run, without those that may change, such as the number of workers.
        where: path for the message.

    Raises:
        UserError: names the first keys that differ, with both values.
    """
    keys = [key for key in sorted(saved.keys() | current.keys()) if saved.get(key) != current.get(key)]
    if keys:
        shown = [
            f"{key} is {show_text(repr(saved.get(key)), _MAX_CHARACTERS)} there and "
            f"{show_text(repr(current.get(key)), _MAX_CHARACTERS)} here"
            for key in keys[:MAX_NAMES]
        ]
        extend = keys == [LENGTH_KEY] and is_longer(current, saved)
        raise UserError(
            f"{where} belongs to a run of another config: {join_names(shown, len(keys))};"
            f"{' set run.extend=true to continue the run to this length, or' * extend}"
            " set them back, or use another run folder"
        )


def is_longer(current: Mapping[str, Any], saved: Mapping[str, Any]) -> bool:
    """Whether the run of one fingerprint is longer than that of another."""
    before, now = saved.get(LENGTH_KEY), current.get(LENGTH_KEY)
    return isinstance(before, int | float) and isinstance(now, int | float) and before < now


def join_names(shown: list[str], total: int) -> str:
    """Names for a message, with the number of those that are left out."""
    return ", ".join(shown) + (f" and {total - len(shown)} more" if total > len(shown) else "")


def check_state(saved: Mapping[str, Any], state: TrainState, where: str) -> None:
    """Compare every component of a checkpoint with what this run would save.

    Raises:
        DamagedCheckpointError: a component is missing, or differs in kind.
        UserError: the checkpoint belongs to another config.
    """
    for name in ("fingerprint", "progress", "model", "optimizer", "random"):
        if name not in saved:
            raise DamagedCheckpointError(
                f"{where} is not a checkpoint of a training run ({name!r} is missing); give a step_*.pt file"
            )
    with _name_component(where, "fingerprint"):
        _check_fingerprint_values(saved["fingerprint"])
    check_fingerprint(state.upgrade_fingerprint(saved["fingerprint"]), state.fingerprint, where)
    if state.ema is not None and saved.get("ema") is None:
        raise DamagedCheckpointError(
            f"{where} contains no averaged weights; switch the ema off, or use another run folder"
        )
    for name, component in state.components.items():
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


def upgrade_layout(saved: Mapping[str, Any], where: str) -> Mapping[str, Any]:
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
