"""Checkpoints: written whole or not at all, read without running code, complete enough to resume a run."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from videomaskfeat.engine import distributed
from videomaskfeat.engine.average import ExponentialMovingAverage
from videomaskfeat.engine.contracts import Stateful
from videomaskfeat.errors import RunFailed, UserError
from videomaskfeat.io import (
    is_folder,
    list_folder,
    make_folder,
    remove_temporary_files,
    whole_file,
)
from videomaskfeat.tensor_files import DamagedFile, PickledCode, read_torch_file
from videomaskfeat.texts import show_text

if TYPE_CHECKING:
    from videomaskfeat.engine.sharded_checkpoint import BackgroundSave

logger = logging.getLogger(__name__)

Example = Callable[[tuple[Any, ...], torch.Size], Tensor | None]
"""Keys from the root of a checkpoint to a tensor, and its whole shape -> a tensor of this run of that kind,
whose part this rank needs; None: the whole tensor is needed."""
_NAME = re.compile(r"step_(\d{8,})(?:\.pt)?")
_DAMAGED = ".damaged"
LENGTH_KEY = "optim.epochs"
"""Config key of the length of a run, which may grow."""
_MAX_NAMES = 4  # names in a message before "and N more"
_MAX_CHARACTERS = 200  # of a value in a message


class SaveFailed(RunFailed):
    """A checkpoint could not be written, for example on a full disk; earlier ones are untouched."""


class DamagedCheckpointError(UserError):
    """A checkpoint file is cut, altered, or no checkpoint."""


class CheckpointFolder:
    """The checkpoints of one run in a local or mounted folder.

    A checkpoint is a file ``step_00001234.pt``, or a folder ``step_00001234`` if the run is sharded. Both
    have the same content, and a run resumes from either; see `sharded_checkpoint`.

    Args:
        folder: created at the first save.
        keep_last: number of the newest checkpoints that are kept, at least 1.
        milestone_every: checkpoints at multiples of this step are never removed; 0: no milestones.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, keep_last: int = 2, milestone_every: int = 0
    ) -> None:
        if keep_last < 1:
            raise UserError(
                f"keep_last={keep_last}: at least the newest checkpoint must be kept; set 1 or more"
            )
        self.folder = Path(folder)
        self.keep_last = keep_last
        self.milestone_every = milestone_every
        self._saving: BackgroundSave | None = None
        self._group: dist.ProcessGroup | None = None

    def path(self, step: int) -> Path:
        """The file of a step, or the folder of a sharded checkpoint."""
        path = self.folder / f"step_{step:08d}"
        return path if path.is_dir() else path.with_suffix(".pt")

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending."""
        names = list_folder(self.folder) if is_folder(self.folder) else []
        return sorted({int(match.group(1)) for match in map(_NAME.fullmatch, names) if match})

    def save(self, content: Mapping[str, Any], step: int) -> Path:
        """Write a checkpoint and remove those that need not be kept.

        A kill or a power loss leaves the old checkpoints whole, and the new one whole or missing.

        Raises:
            SaveFailed: the operating system refused to write; the temporary file is removed.
        """
        path = self.folder / f"step_{step:08d}.pt"
        self._make_folder(path)
        try:
            with whole_file(path, "wb") as file:
                torch.save(dict(content), file)
        except RuntimeError as error:
            cause = _system_error(error)
            if cause is None:
                raise
            raise _save_failed(path, cause) from error
        if path.with_suffix("").is_dir():
            self._remove(path.with_suffix(""))  # of the same step, from sharded ranks
        self._prune(step)
        return path

    def save_sharded(self, content: Mapping[str, Any], step: int) -> Path:
        """Begin to write a checkpoint with sharded tensors; all ranks must call it.

        It returns when the tensors are copied, and :meth:`wait` when they are written. The checkpoint has its
        name only when it is complete.

        Raises:
            SaveFailed: this one or the one before could not be written.
        """
        from videomaskfeat.engine.sharded_checkpoint import BackgroundSave

        self.wait()
        if self._group is None:
            self._group = distributed.new_cpu_group()
        path = self.folder / f"step_{step:08d}"

        def finish() -> None:
            self._remove(path.with_suffix(".pt"))  # of the same step, from one process
            self._prune(step)

        distributed.run_on_main(lambda: self._make_folder(path))
        try:
            self._saving = BackgroundSave(content, path, group=self._group, finish=finish)
        except OSError as error:
            raise _save_failed(path, error) from error
        return path

    def wait(self) -> None:
        """Wait for the end of :meth:`save_sharded`; all ranks must call it.

        Raises:
            SaveFailed: the checkpoint could not be written.
        """
        saving, self._saving = self._saving, None
        if saving is None:
            return
        try:
            saving.wait()
        except OSError as error:
            raise _save_failed(saving.path, error) from error

    def join(self) -> None:
        """Let :meth:`save_sharded` end before an error ends the run; an error of it is not raised."""
        if self._saving is not None:
            self._saving.join()

    def load_newest(
        self,
        accept: Callable[[dict[str, Any], str], None] | None = None,
        example: Example | None = None,
    ) -> tuple[Path, dict[str, Any]] | None:
        """Path and content of the newest whole checkpoint; None if there is no checkpoint yet.

        All ranks must call it, and get the same checkpoint. Removes left-over temporary files. Renames a
        damaged checkpoint to ``*.damaged``, logs a warning and reads the one before it.

        Args:
            accept: receives content and path; raises DamagedCheckpointError if the run cannot resume from it.
            example: see :func:`load_checkpoint`.

        Raises:
            UserError: all checkpoints are damaged.
        """
        steps = distributed.run_on_main(self._clean)
        damaged: list[DamagedCheckpointError] = []
        for step in reversed(steps):
            path, content = self.path(step), {}
            error: Exception | None = None
            try:
                content = _read_own(path, example)
                if accept is not None:
                    accept(content, str(path))
            except (UserError, RunFailed) as caught:  # raised on all ranks below
                error = caught
            error = distributed.first_error(error)
            if isinstance(error, DamagedCheckpointError):
                damaged.append(error)
                continue
            if error is not None:
                raise error
            distributed.run_on_main(lambda step=step: self._set_aside(damaged, step))  # type: ignore[misc]
            return self.path(step), content
        if damaged:
            others = ", ".join(self.path(step).name for step in reversed(steps[:-1]))
            raise UserError(
                f"{damaged[0]}; no other checkpoint in {self.folder} is intact"
                f"{f' ({others})' if others else ''}: start in another folder"
            )
        return None

    def _clean(self) -> list[int]:
        """Remove what killed writers left; returns the steps that have a checkpoint."""
        if not is_folder(self.folder):
            return []
        if any(self.folder.glob(".step_*/")) or any(self.folder.glob(".step_*.old")):
            from videomaskfeat.engine.sharded_checkpoint import recover

            recover(self.folder)
        remove_temporary_files(self.folder)
        return self.steps()

    def _set_aside(self, damaged: list[DamagedCheckpointError], step: int) -> None:
        """Rename the checkpoints after a step, which are damaged."""
        for bad in damaged:
            logger.warning("%s; resuming from %s instead", bad, self.path(step))
        for later in self.steps():
            if later > step:
                path = self.path(later)
                path.rename(f"{path}{_DAMAGED}")

    def _make_folder(self, path: Path) -> None:
        try:
            make_folder(self.folder)
        except UserError as error:  # the folder was usable when the run started
            raise SaveFailed(f"{path}: the checkpoint could not be written: {error}") from error

    def _prune(self, newest: int) -> None:
        older = [step for step in self.steps() if step <= newest]
        for step in older[: -self.keep_last]:
            if not (self.milestone_every and step % self.milestone_every == 0):
                self._remove(self.path(step))

    def _remove(self, path: Path) -> None:
        if path.is_dir():
            from videomaskfeat.engine.sharded_checkpoint import remove_checkpoint

            remove_checkpoint(path)
        else:
            path.unlink(missing_ok=True)


def _save_failed(path: Path, cause: OSError) -> SaveFailed:
    return SaveFailed(
        f"{path}: the checkpoint could not be written: {cause.strerror or cause}; earlier checkpoints"
        " are whole; free space and start the same command again to resume"
    )


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


def _read_own(path: Path, example: Example | None) -> dict[str, Any]:
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
            for key in keys[:_MAX_NAMES]
        ]
        extend = keys == [LENGTH_KEY] and is_longer(current, saved)
        raise UserError(
            f"{where} belongs to a run of another config: {_join(shown, len(keys))};"
            f"{' set run.extend=true to continue the run to this length, or' * extend}"
            " set them back, or use another run folder"
        )


def is_longer(current: Mapping[str, Any], saved: Mapping[str, Any]) -> bool:
    """Whether the run of one fingerprint is longer than that of another."""
    before, now = saved.get(LENGTH_KEY), current.get(LENGTH_KEY)
    return isinstance(before, int | float) and isinstance(now, int | float) and before < now


def _join(shown: list[str], total: int) -> str:
    return ", ".join(shown) + (f" and {total - len(shown)} more" if total > len(shown) else "")


def _system_error(error: BaseException) -> OSError | None:
    """The OSError behind an error that torch.save raised while closing its zip writer."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    return cause


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

    def advance(self, *, steps_per_epoch: int, samples: int, failures: int, seconds: float) -> None:
        """Count one optimizer step."""
        self.step += 1
        self.epoch_step += 1
        if self.epoch_step == steps_per_epoch:
            self.epoch, self.epoch_step = self.epoch + 1, 0
        self.samples += samples
        self.failures += failures
        self.seconds += seconds


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
            f"{where} contains another model: {_join(faults[:_MAX_NAMES], len(faults))};"
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
