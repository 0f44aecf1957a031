"""The training loop; jobs supply a step function and a loader."""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Literal

import torch
from torch import Tensor, nn

from videomaskfeat.engine import distributed
from videomaskfeat.engine.average import ExponentialMovingAverage
from videomaskfeat.engine.checkpoint import CheckpointFolder
from videomaskfeat.engine.contracts import BatchT, Loader, LoopOptions, Stateful, StepFunction
from videomaskfeat.engine.distributed import StopRequested, StopSignals
from videomaskfeat.engine.log import RunLog
from videomaskfeat.engine.steps import StepBatches, Steps
from videomaskfeat.engine.train_state import Progress, TrainState
from videomaskfeat.errors import RunFailed, UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """How a training ended."""

    status: Literal["finished", "interrupted"]
    """``interrupted``: a signal came; the run is saved and can be resumed."""
    progress: Progress
    checkpoint: Path
    """The newest checkpoint."""
    metrics: dict[str, Any]
    """Record of the last step; empty if no step was left to do."""


@dataclass(frozen=True, kw_only=True)
class Training(Generic[BatchT]):
    """What :func:`train` does.

    Attributes:
        model: result of :func:`distributed.parallel`; ``optimizer`` has its parameters.
        step: computes the result of a batch on ``device``; micro-batches and ranks have equal weight.
        loader: yields the same number of batches on every rank.
        learning_rate: fractional epoch -> learning rate, read before every optimizer step.
        weight_decay: completed share of the training, 0..1 -> weight decay of the groups that have one, read
            before every optimizer step; None: constant.
        folder: run folder for ``checkpoints/``, ``metrics.jsonl``, ``log.txt`` and ``tensorboard/``, the same
            for all ranks.
        ema: moving average that is updated after each step and saved with the checkpoints.
        fingerprint: flat config keys that a resumed run must share.
        upgrade_fingerprint: fingerprint of an older checkpoint -> the same with present keys.
        evaluate: called on all ranks in evaluation mode without gradients; its results are logged as
            ``evaluation/NAME``. It may call :func:`distributed.stop_if_requested`; a resumed run then
            evaluates first. Its random draws do not change the training.
        name_of: name of a sample by its index, for messages.
        on_failures: called on all ranks with the failures of all ranks; may raise to end the run.
        before_step: called on all ranks when the gradients of a step are complete. A gradient that it sets to
            None leaves the weight and its optimizer state unchanged.
        after_step: called on all ranks after every optimizer step with the completed share of the run, 0..1,
            and the states of the step's micro-batches on this rank. Returns numbers for the log, the same on
            every rank; a 0-d tensor is read with the other numbers of the step. Its own state belongs in
            ``extra``.
        watch: called on all ranks with the numbers of ``after_step`` and the completed share, in the order of
            the steps, before the step can be in a checkpoint. May raise to end the run without a checkpoint.
        on_resume: called on all ranks after a checkpoint was loaded, with its fingerprint, the fractional
            epoch, and the completed share of this run, 0..1, which may be longer than the checkpoint's.
        extra: further state to save and restore, by name.
    """

    model: nn.Module
    step: StepFunction[BatchT]
    loader: Loader[BatchT]
    optimizer: torch.optim.Optimizer
    learning_rate: Callable[[float], float]
    weight_decay: Callable[[float], float] | None = None
    folder: str | os.PathLike[str]
    device: torch.device
    options: LoopOptions
    ema: ExponentialMovingAverage | None = None
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    upgrade_fingerprint: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict
    evaluate: Callable[[], Mapping[str, float]] | None = None
    name_of: Callable[[int], str] = str
    on_failures: Callable[[Sequence[Any]], None] | None = None
    before_step: Callable[[], None] | None = None
    after_step: Callable[[float, Sequence[Any]], Mapping[str, float | Tensor] | None] | None = None
    watch: Callable[[Mapping[str, float], float], None] | None = None
    on_resume: Callable[[Mapping[str, Any], float, float], None] | None = None
    extra: Mapping[str, Stateful] = field(default_factory=dict)

    @cached_property
    def state(self) -> TrainState:
        """Everything that a checkpoint contains."""
        return TrainState(
            model=distributed.unwrap(self.model),
            optimizer=self.optimizer,
            ema=self.ema,
            device=self.device,
            fingerprint=self.fingerprint,
            upgrade_fingerprint=self.upgrade_fingerprint,
            extra=self.extra,
        )

    @cached_property
    def checkpoints(self) -> CheckpointFolder:
        """The checkpoints of the run folder."""
        folder = Path(self.folder) / "checkpoints"
        keep, milestone = self.options.keep_last, self.options.milestone_every
        return CheckpointFolder(folder, keep_last=keep, milestone_every=milestone)

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that the optimizer updates."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    @cached_property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch, at least 1."""
        accumulate, batches = self.options.accumulate, self.loader.batches_per_epoch
        if batches < accumulate:
            raise UserError(
                f"accumulate={accumulate} with {batches} batches per epoch: fewer batches than one optimizer "
                "step needs; lower accumulate or the batch size, or add data"
            )
        return batches // accumulate

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run, at least 1."""
        return count_steps(self.options.epochs, self.steps_per_epoch)

    @property
    def epoch(self) -> float:
        """Completed epochs, as a fraction."""
        progress = self.state.progress
        return progress.epoch + progress.epoch_step / self.steps_per_epoch


def train(run: Training[BatchT]) -> TrainResult:
    """Train, from the newest checkpoint in the run folder if there is one.

    A resumed run equals the uninterrupted one bit for bit on the CPU, from any step. A signal or an error of
    the loader ends the run after the last whole step has been saved.

    Raises:
        UserError: the run folder or checkpoint belongs to another config or model, or is damaged; or the
            ranks have different numbers of steps.
        UserError, RunFailed: the loader raised it, on any rank.
        TrainingStopped: the loss or the gradient is not finite.
        SaveFailed: a checkpoint could not be written.
    """
    torch.manual_seed(run.options.seed + distributed.rank())
    _check_equal_steps(run)
    fingerprint = _resume(run)
    if fingerprint is not None and run.on_resume is not None:
        run.on_resume(fingerprint, run.epoch, run.state.progress.step / run.total_steps)
    with StopSignals() as stop, _open_log(run) as log:
        try:
            result = _train(run, stop, log)
        except (UserError, RunFailed):
            run.checkpoints.join()
            raise
        run.checkpoints.wait()
        return result


def _check_equal_steps(run: Training[Any]) -> None:
    """Refuse different numbers of steps, since the rank with more of them would wait for ever.

    Loaders count batches of the whole list, so they differ only if the machines have different files.
    """
    counts = distributed.gather_objects((run.steps_per_epoch, run.total_steps))
    for number, (per_epoch, total) in enumerate(counts):
        if (per_epoch, total) != counts[0]:
            raise UserError(
                f"rank {number} has {per_epoch} steps per epoch ({total} in total), and rank 0 has "
                f"{counts[0][0]} ({counts[0][1]}): the list files, the config or the version of its machine "
                "differ; give all machines the same files"
            )


def count_steps(epochs: float, steps_per_epoch: int) -> int:
    """Optimizer steps of a run, at least 1."""
    return max(round(epochs * steps_per_epoch), 1)


def _train(run: Training[BatchT], stop: StopSignals, log: RunLog | None) -> TrainResult:
    """Step until the end or a signal."""
    progress, options = run.state.progress, run.options
    steps = Steps(run, log)
    path = run.checkpoints.path(progress.step)
    saved_at, saved_step = time.monotonic(), progress.step
    run.model.train()
    if progress.unevaluated is not None:
        steps.record, path = _evaluate_late(run, log)
        if progress.unevaluated is not None:
            return TrainResult("interrupted", progress, path, steps.record)
    from videomaskfeat.engine.step_watch import StepWatch

    watch = StepWatch(limit_seconds=options.step_seconds, name_of=run.name_of)
    with closing(_batches(run, stop)) as stream, watch:
        while progress.step < run.total_steps:
            watch.begin(progress.step + 1)
            steps.begin()
            data = _fetch(run, stream)
            watch.note_samples([batch.index for batch in data.batches])
            if data.error is not None or data.stopped:
                settled = steps.settle(keep=0)
                watch.end()
                _report_failures(run, settled.failures, log)
                if data.stopped or progress.step > saved_step:
                    path = _save(run, log)
                if data.error is not None:
                    raise data.error
                return TrainResult("interrupted", progress, path, steps.record)
            minutes = (time.monotonic() - saved_at) / 60.0
            distributed.note_step(progress.step)
            steps.launch(data, stop, minutes)
            last = progress.step == run.total_steps
            evaluates = run.evaluate is not None and (
                last or _is_multiple(progress.step, options.evaluate_every)
            )
            save_due = last or _is_multiple(progress.step, options.milestone_every)
            # At the start of an epoch, the loader chooses the samples of the next one, without records that
            # have failed before.
            epoch_ends = progress.epoch_step == 0
            keep = 0 if evaluates or save_due or epoch_ends else options.check_lag
            settled = steps.settle(keep=keep, write_newest=not evaluates)
            watch.end()
            stopping = settled.stopping
            if evaluates:
                steps.record, stopping = _add_evaluation(run, steps.record, stopping)
                if log is not None and progress.unevaluated is None:
                    log.write(steps.record)
            _report_failures(run, settled.failures, log)
            if stopping or settled.save_due or save_due:
                path = _save(run, log)
                saved_at, saved_step = time.monotonic(), progress.step
            if stopping and (not last or progress.unevaluated is not None):
                return TrainResult("interrupted", progress, path, steps.record)
    return TrainResult("finished", progress, path, steps.record)


def _fetch(run: Training[BatchT], stream: Iterator[BatchT]) -> StepBatches[BatchT]:
    """The micro-batches of the next step; all ranks must call it, and either all continue or none.

    They are read before anything is computed. So a signal or an error during the wait of one rank leaves all
    ranks at the end of the same whole step, without traces of the next one in weights, buffers or random
    states.
    """
    started = time.perf_counter()
    count = run.options.accumulate
    batches: list[BatchT] = []
    error: Exception | None = None
    try:
        batches.extend(itertools.islice(stream, count))
    except Exception as caught:  # raised below, after the last whole step is saved
        error = caught
    seconds = time.perf_counter() - started
    own = torch.tensor([len(batches) < count, error is not None], dtype=torch.float32)
    lacking, failed = distributed.mean_over_ranks(own).tolist()
    if not lacking:
        return StepBatches(batches, seconds)
    if failed:
        errors = distributed.gather_objects(
            None if error is None else (isinstance(error, UserError), str(error))
        )
        if error is None:  # the error of another rank
            number, (is_mistake, text) = next(
                (rank, one) for rank, one in enumerate(errors) if one is not None
            )
            error = UserError(text) if is_mistake else RunFailed(f"rank {number}: {text}")
    return StepBatches([], seconds, stopped=not failed, error=error)


def _batches(run: Training[BatchT], stop: StopSignals) -> Generator[BatchT, None, None]:
    """All micro-batches from the present position on, epoch after epoch, until a signal ends a wait."""
    epoch = run.state.progress.epoch
    first = run.state.progress.epoch_step * run.options.accumulate
    while True:
        # The last micro-batches of an epoch are left out if they make no whole step.
        count = run.steps_per_epoch * run.options.accumulate - first
        epoch_batches = run.loader.epoch(epoch, first, lambda: stop.requested)
        number_yielded = 0
        for batch in itertools.islice(epoch_batches, count):
            yield batch
            number_yielded += 1
        if number_yielded < count:
            assert stop.requested, "the loader yielded fewer batches than it has"
            return
        epoch, first = epoch + 1, 0


def _is_multiple(step: int, every: int) -> bool:
    """Whether a step is a multiple of ``every``, which is 0 for never."""
    return every > 0 and step % every == 0


def _resume(run: Training[Any]) -> Mapping[str, Any] | None:
    """Load the newest checkpoint of the run folder on all ranks; returns its fingerprint, if there is one."""
    example = run.state.example() if distributed.is_sharded(run.model) else None
    newest = run.checkpoints.load_newest(run.state.load_state_dict, example)
    if newest is None:
        return None
    path, content = newest
    progress = run.state.progress
    if progress.step >= run.total_steps:
        logger.info("already finished: step %d of %d (%s)", progress.step, run.total_steps, path)
    else:
        logger.info(
            "resumed from %s: step %d of %d, epoch %.3f", path, progress.step, run.total_steps, run.epoch
        )
    fingerprint: Mapping[str, Any] = content["fingerprint"]
    return fingerprint


def _save(run: Training[Any], log: RunLog | None) -> Path:
    """Write a checkpoint, of sharded ranks in the background; all ranks must call it."""
    if log is not None:
        log.flush()  # so that a resumed run has every line of metrics
    content = run.state.state_dict()
    if distributed.is_sharded(run.model):
        return run.checkpoints.save_sharded(content, run.state.progress.step)
    return distributed.run_on_main(lambda: run.checkpoints.save(content, run.state.progress.step))


def _evaluate(run: Training[Any], evaluate: Callable[[], Mapping[str, float]]) -> dict[str, float]:
    """Evaluate without changing gradients, random states or the model's mode."""
    device = run.state.device
    run.model.eval()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
            results = evaluate()
    finally:
        run.model.train()
    return {f"evaluation/{name}": value for name, value in results.items()}


def _add_evaluation(
    run: Training[Any], record: dict[str, Any], stopping: bool
) -> tuple[dict[str, Any], bool]:
    """The record with the evaluation's results, and whether to stop, also in the midst of an evaluation."""
    assert run.evaluate is not None
    try:
        return record | _evaluate(run, run.evaluate), stopping
    except StopRequested:
        run.state.progress.unevaluated = record
        return record, True


def _evaluate_late(run: Training[Any], log: RunLog | None) -> tuple[dict[str, Any], Path]:
    """Evaluate the step whose evaluation a signal stopped; all ranks must call it."""
    progress = run.state.progress
    record, progress.unevaluated = progress.unevaluated or {}, None
    if run.evaluate is not None:
        record, _ = _add_evaluation(run, record, False)
    if progress.unevaluated is not None:
        return record, run.checkpoints.path(progress.step)
    if log is not None:
        log.write(record)
    return record, _save(run, log)


def _report_failures(run: Training[Any], failures: Sequence[Any], log: RunLog | None) -> None:
    """Report failures to the job; if that ends the run, save it first."""
    if not failures or run.on_failures is None:
        return
    try:
        run.on_failures(failures)
    except Exception:
        _save(run, log)
        raise


def _open_log(run: Training[Any]) -> RunLog | nullcontext[None]:
    if not distributed.is_main():
        return nullcontext()
    return RunLog(
        run.folder,
        first_step=run.state.progress.step,
        total_steps=run.total_steps,
        unit=run.options.unit,
        seconds_between_lines=run.options.seconds_between_lines,
        loggers=run.options.loggers,
        evaluation_note=run.options.evaluation_note,
    )
