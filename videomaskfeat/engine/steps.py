"""One optimizer step: its micro-batches, its update, and the numbers that the host reads of it."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic

import torch
from torch import Tensor

from videomaskfeat.engine import distributed
from videomaskfeat.engine.contracts import BatchT, StepResult
from videomaskfeat.engine.distributed import StopSignals
from videomaskfeat.engine.log import RunLog, peak_memory_mb
from videomaskfeat.engine.optim import clip_gradients, set_learning_rate, set_weight_decay
from videomaskfeat.errors import RunFailed

if TYPE_CHECKING:
    from videomaskfeat.engine.copies import HostCopy
    from videomaskfeat.engine.loop import Training


class TrainingStopped(RunFailed):
    """The loss or the gradient is not finite; no checkpoint contains the update by this gradient."""


@dataclass(frozen=True)
class StepBatches(Generic[BatchT]):
    """The micro-batches of one step, or the reason why no rank has them."""

    batches: list[BatchT]
    seconds: float  # spent waiting for them
    stopped: bool = False  # by a signal
    error: Exception | None = None  # raised by the loader


@dataclass(frozen=True)
class _Gradients:
    """Results of the micro-batches of one step, besides the gradients."""

    values: Tensor  # float32: the loss of each micro-batch, then the mean of each metric
    names: list[str]  # of the metrics
    states: list[Any]  # of each micro-batch
    indices: list[Tensor]  # of each micro-batch
    failures: tuple[Any, ...]


class LaunchedStep:
    """A step that the device computes, or has computed, and the numbers that the host needs of it.

    All numbers travel in one tensor: one all-reduce per step.
    """

    def __init__(self, run: Training[Any], gradients: _Gradients, norm: Tensor, own: list[float]) -> None:
        """Call it before the optimizer step, on all ranks; ``own``: see :meth:`numbers`."""
        self.gradients, self.epoch = gradients, run.epoch
        self.step = run.state.progress.step + 1
        device = gradients.values.device
        values = torch.cat([gradients.values, norm.reshape(1).float(), _numbers_on(device, own)])
        self._numbers = _for_host(distributed.mean_over_ranks(values))
        self._further: dict[str, float | Tensor] = {}
        self._copied: Tensor | HostCopy | None = None

    def complete(
        self, *, epoch: float, lr: float, samples: int, further: Mapping[str, float | Tensor]
    ) -> None:
        """Note what the host knows when all work of the step is launched.

        Args:
            epoch: fractional epoch after the step.
            lr: learning rate of the step.
            samples: samples of all ranks.
            further: the result of ``after_step``.
        """
        self.epoch_after, self.lr, self.samples = epoch, lr, samples
        self._further = dict(further)
        tensors = [one.detach().float().reshape(()) for one in further.values() if isinstance(one, Tensor)]
        if tensors:
            self._copied = _for_host(torch.stack(tensors))

    @cached_property
    def numbers(self) -> tuple[list[float], list[float], float, list[float]]:
        """Losses of the micro-batches, metrics, gradient norm and ``own``, each the mean over all ranks."""
        numbers = self._numbers.tolist()
        accumulate = len(self.gradients.indices)
        end = accumulate + len(self.gradients.names)
        return numbers[:accumulate], numbers[accumulate:end], numbers[end], numbers[end + 1 :]

    @property
    def loss(self) -> float:
        """The mean over micro-batches and ranks."""
        losses = self.numbers[0]
        return sum(losses) / len(losses)

    @cached_property
    def further(self) -> dict[str, float]:
        """The result of ``after_step`` as numbers."""
        copied = iter(() if self._copied is None else self._copied.tolist())
        return {
            name: next(copied) if isinstance(value, Tensor) else value
            for name, value in self._further.items()
        }

    def require_finite(self, outcome: str) -> None:
        """Raise if loss or gradient are not finite; all ranks must call it.

        Args:
            outcome: for the message, whether the weights have changed.
        """
        loss, grad_norm = self.loss, self.numbers[2]
        if math.isfinite(loss) and math.isfinite(grad_norm):
            return
        own = self.gradients.values[: len(self.gradients.indices)].isfinite().tolist()
        bad = [one.tolist() for one, finite in zip(self.gradients.indices, own, strict=True) if not finite]
        fault = f"the loss is {loss}"
        if math.isfinite(loss):  # then any sample of the step may have caused the gradient
            bad = [one.tolist() for one in self.gradients.indices]
            fault = f"the gradient norm is {grad_norm} (the loss {loss:.4g})"
        samples = sorted(index for rank in distributed.gather_objects(bad) for one in rank for index in one)
        raise TrainingStopped(
            f"step {self.step} (epoch {self.epoch:.3f}): {fault}; samples {samples}; {outcome}; look at "
            "these samples, lower the learning rate or the gradient clip, or use fp32, and resume from the "
            "newest checkpoint"
        )


@dataclass
class Settled:
    """What came out of the steps whose numbers the host has read."""

    failures: list[Any] = field(default_factory=list)  # of all ranks
    stopping: bool = False  # whether a rank has to stop
    save_due: bool = False  # whether a rank has to save


class Steps(Generic[BatchT]):
    """The steps of a training: launches each, and reads its numbers at once or a step later.

    With ``check_lag=1`` the host launches a step before it reads the numbers of the one before, so a GPU
    always has work. A loss that is not finite is then found when its update is in the weights. Before a
    checkpoint or an evaluation, all steps are settled, so neither sees such weights; and at the end of an
    epoch, so that the loader knows all failures.
    """

    def __init__(self, run: Training[BatchT], log: RunLog | None) -> None:
        self._run, self._log = run, log
        self._copy = _copies_to(run.state.device)
        self._launched: deque[LaunchedStep] = deque()
        self._since = 0.0  # time from which the next step to settle counts
        self.record: dict[str, Any] = {}  # of the last settled step

    def begin(self) -> None:
        """The wait for the data of the next step begins."""
        if not self._launched:
            self._since = time.perf_counter()

    def launch(self, data: StepBatches[BatchT], stop: StopSignals, minutes_since_save: float) -> None:
        """One optimizer step; all ranks must call it."""
        try:
            self._launched.append(self._launch(data, stop, minutes_since_save))
        except Exception:
            if distributed.world_size() == 1:  # the step before may explain it; other ranks may not be here
                self.settle(keep=0)
            raise

    def settle(self, *, keep: int, write_newest: bool = True) -> Settled:
        """Read and log the numbers of the launched steps; all ranks must call it.

        Args:
            keep: number of the newest steps that remain, unless an earlier one has failures or requires the
                end or a checkpoint.
            write_newest: also log the newest of all steps; otherwise it is only in ``record``.

        Raises:
            TrainingStopped: a loss or a gradient is not finite.
        """
        settled = Settled()
        while len(self._launched) > keep:
            self._settle(self._launched.popleft(), settled)
            if settled.failures or settled.stopping or settled.save_due:
                keep = 0
            newest = self.record["step"] == self._run.state.progress.step
            if self._log is not None and (write_newest or not newest):
                self._log.write(self.record)
        return settled

    def _launch(
        self, data: StepBatches[BatchT], stop: StopSignals, minutes_since_save: float
    ) -> LaunchedStep:
        run, state = self._run, self._run.state
        lr = run.learning_rate(run.epoch)
        set_learning_rate(state.optimizer, lr)
        if run.weight_decay is not None:
            set_weight_decay(state.optimizer, run.weight_decay(state.progress.step / run.total_steps))
        gradients = _accumulate(run, data.batches, self._copy)
        options = run.options
        norm = clip_gradients(run.parameters, limit=options.clip_norm, limit_each=options.clip_norm_each)
        save_due = minutes_since_save >= options.save_minutes
        own = [stop.requested, save_due, bool(gradients.failures), data.seconds]
        launched = LaunchedStep(run, gradients, norm, own)
        if options.check_lag == 0:
            launched.require_finite(
                f"stopped before the optimizer step, the weights are those of step {state.progress.step}"
            )
        if run.before_step is not None:
            run.before_step()
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        if state.ema is not None:
            state.ema.update(state.model)
        completed = (state.progress.step + 1) / run.total_steps
        further = run.after_step(completed, gradients.states) if run.after_step else None
        samples = sum(index.numel() for index in gradients.indices) * distributed.world_size()
        state.progress.advance(steps_per_epoch=run.steps_per_epoch, samples=samples)
        launched.complete(epoch=run.epoch, lr=lr, samples=samples, further=further or {})
        return launched

    def _settle(self, launched: LaunchedStep, settled: Settled) -> None:
        run, progress = self._run, self._run.state.progress
        _, metrics, grad_norm, (stopping, save_due, failed, data_seconds) = launched.numbers
        launched.require_finite(
            "found after the optimizer step, so the weights have changed; no checkpoint contains this change"
        )
        if run.watch is not None:
            run.watch(launched.further, launched.step / run.total_steps)
        ranks = distributed.gather_objects(launched.gradients.failures) if failed else []
        failures = [one for rank in ranks for one in rank]
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        progress.failures += len(failures)
        progress.seconds += seconds
        settled.failures += failures
        settled.stopping |= stopping > 0
        settled.save_due |= save_due > 0
        self.record = {
            "step": launched.step,
            "epoch": launched.epoch_after,
            "loss": launched.loss,
            "lr": launched.lr,
            "grad_norm": grad_norm,
            **dict(zip(launched.gradients.names, metrics, strict=True)),
            **launched.further,
            "data_ms": 1e3 * data_seconds,
            "step_ms": 1e3 * seconds,
            "samples_per_second": launched.samples / seconds,
            "memory_mb": peak_memory_mb(run.state.device),
            "failures": progress.failures,
        }


def _accumulate(run: Training[BatchT], batches: list[BatchT], copy: Callable[[Any], Any]) -> _Gradients:
    """Forward and backward of the micro-batches of one step, which are removed from the list one by one."""
    count, device = run.options.accumulate, run.state.device
    results: list[StepResult] = []
    indices: list[Tensor] = []
    failures: list[Any] = []
    for number in range(count):
        batch = batches.pop(0)
        indices.append(batch.index)
        failures += batch.failures
        # Gradients are averaged over the ranks once, in the backward pass of the last micro-batch.
        with nullcontext() if number == count - 1 else distributed.no_sync(run.model):
            with torch.autocast(device.type, torch.bfloat16, enabled=run.options.precision == "bf16"):
                result = run.step(copy(batch))
            (result.loss / count).backward()
        # Copies, since a CUDA graph overwrites its results in its next run.
        metrics = {name: _copied(value) for name, value in result.metrics.items()}
        results.append(StepResult(_copied(result.loss), metrics, result.state))
    names = list(results[0].metrics)
    means = [torch.stack([one.metrics[name] for one in results]).mean() for name in names]
    values = torch.stack([*(one.loss for one in results), *means])
    return _Gradients(values, names, [one.state for one in results], indices, tuple(failures))


def _copies_to(device: torch.device) -> Callable[[Any], Any]:
    """A function that copies a batch to the device."""
    if device.type != "cuda":
        return lambda batch: batch.to(device)
    from videomaskfeat.engine.copies import BatchCopies

    return BatchCopies(device)


def _for_host(values: Tensor) -> Tensor | HostCopy:
    """A tensor whose ``tolist`` does not wait for work that is launched from now on."""
    if values.device.type != "cuda":
        return values
    from videomaskfeat.engine.copies import HostCopy

    return HostCopy(values)


def _numbers_on(device: torch.device, values: Sequence[float]) -> Tensor:
    """Numbers of the host on the device, float32 [n]."""
    if device.type != "cuda":
        return torch.tensor(values, dtype=torch.float32)
    from videomaskfeat.engine.copies import copy_numbers

    return copy_numbers(values, device)


def _copied(value: Tensor) -> Tensor:
    return value.detach().to(torch.float32, copy=True)
