"""One process per folder: the lock that a run holds on the folder it writes into."""

from __future__ import annotations

import gc
import itertools
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import simplejson
import torch
from torch import nn

from videomaskfeat.config import config_text, flat, free_keys, load_config
from videomaskfeat.data.batches import Failure
from videomaskfeat.data.loader import ClipLoader, FailureCounter
from videomaskfeat.engine import distributed
from videomaskfeat.engine.checkpoint import CheckpointFolder, check_fingerprint
from videomaskfeat.engine.contracts import LoopOptions, StepFunction
from videomaskfeat.engine.lock import lock_for_all_ranks
from videomaskfeat.engine.optim import WarmupCosine, adamw, parameter_groups, sgd
from videomaskfeat.engine.teacher import ExponentialMovingAverage
from videomaskfeat.engine.threads import choose_threads
from videomaskfeat.errors import RunFailed, UserError, check_name, counted
from videomaskfeat.io import (
    append_text,
    is_file,
    make_folder,
    remove_temporary_files,
    whole_file,
)
from videomaskfeat.jobs.doctor import diagnose
from videomaskfeat.machine import available_cores, keep_freed_memory
from videomaskfeat.schemas import FinetuneOptimConfig, OptimConfig, RunConfig

logger = logging.getLogger(__name__)


# Its holder removed it between the two calls.


# The run folder of a training: whose it is, what it leaves behind for people, and which videos failed.


def hold_run_folder(path: str) -> AbstractContextManager[None]:
    """Hold a run folder for this process while the context is open; all ranks must call it.

    It is taken before anything is built or measured, so that a second process is refused at once.

    Raises:
        UserError: another process holds it.
    """
    return lock_for_all_ranks(path, remedy="choose another run.folder")


class RunFolder:
    """One folder, one config: a run that goes on must share every setting that changes what is learnt.

    Args:
        path: of the folder.
        config: the config of the task.
    """

    def __init__(self, path: str, config: Any) -> None:
        self.path = Path(path)
        self._config = config

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The settings that a resumed run must share with what it resumes."""
        return self._without_free_keys(self._config)

    def open(self) -> None:
        """Write config and environment; only rank 0 calls it.

        Raises:
            UserError: the folder holds a run of another config or of another task.
        """
        config = self.path / "config.yaml"
        # Earlier versions left it empty if they were killed while they wrote it; checkpoints know theirs too.
        written = is_file(config) and config.stat().st_size > 0
        if written and CheckpointFolder(self.path / "checkpoints").steps():
            self.check()
        make_folder(self.path)
        for folder in (self.path, self.path / "pictures", self.path / "score"):
            remove_temporary_files(folder)
        self.write("config.yaml", config_text(self._config))
        self.write("environment.json", diagnose(self.path).to_json())
        Path(self.path, "summary.json").unlink(missing_ok=True)  # of an earlier end; the run goes on

    def check(self) -> None:
        """Compare the config that lies in the folder with this one.

        Raises:
            UserError: it is that of another run or of another task.
        """
        config_path = self.path / "config.yaml"
        try:
            earlier = load_config(type(self._config), str(config_path))
        except UserError as error:
            raise UserError(
                f"{self.path}: holds a run of another task or version ({error}); choose another run.folder"
            ) from error
        check_fingerprint(self._without_free_keys(earlier), self.fingerprint, config_path)

    def write(self, name: str, text: str) -> None:
        """Write a text file of the folder."""
        if not self.path.is_dir():
            raise RunFailed(f"{self.path}: the run folder was removed while the run went on")
        with whole_file(self.path / name) as file:
            file.write(text)

    def write_json(self, name: str, value: Any) -> None:
        """Write plain data as JSON."""
        self.write(name, simplejson.dumps(value, indent=2, ignore_nan=True))

    def say(self, text: str) -> None:
        """Tell the user, and keep it in the run's log, which is open only while the loop runs."""
        logger.info(text)
        append_text(self.path / "log.txt", text + "\n")

    def write_failures(self, name: str, failures: Iterable[Failure]) -> None:
        """Write path and cause of each as a line of JSON."""
        rows = ({"path": failure.path, "cause": failure.cause} for failure in failures)
        self.write(name, "".join(simplejson.dumps(row) + "\n" for row in rows))

    def count_failures(self, counter: FailureCounter) -> Callable[[Sequence[Any]], None]:
        """Count failures, and leave them in failures.jsonl even where the counter ends the run."""

        def take(failures: Sequence[Any]) -> None:
            try:
                counter.add(failures)
            finally:
                if distributed.is_main():  # whole every time, so that steps replayed by a resume add nothing
                    self.write_failures("failures.jsonl", counter.failures.values())

        return take

    def _without_free_keys(self, config: Any) -> dict[str, Any]:
        free = free_keys(type(config))
        return {key: value for key, value in flat(config).items() if key not in free}


# The number of CPU threads of a verb: measured, kept when a run is resumed, or set by the user.
ConfigT = TypeVar("ConfigT", bound=Any)


class Training(Protocol):
    """A training that is built and has not begun, as far as a trial uses it."""

    @property
    def loader(self) -> ClipLoader[Any]: ...
    @property
    def step(self) -> StepFunction[Any]: ...
    @property
    def optimizer(self) -> torch.optim.Optimizer: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def bf16(self) -> bool: ...


def with_threads(config: ConfigT, device: torch.device, build: Callable[[], Training]) -> ConfigT:
    """Set torch's number of threads and return the config with ``run.threads`` resolved; all ranks call it.

    A resumed run keeps its number: another one sums in another order, and the run would no longer equal the
    uninterrupted one bit for bit. A new run takes the number with which its own steps are fastest now; they
    are measured on a separate training, which is discarded. On a GPU nothing is changed.

    Args:
        config: of a training.
        device: of the training.
        build: builds the training.

    Raises:
        UserError: the number is negative, or what ``build`` raises.
    """
    if config.run.threads < 0:
        raise UserError(f"run.threads={config.run.threads}: must be 1 or more, or 0 to have it measured")
    if device.type != "cpu":
        return config
    keep_freed_memory()
    threads = config.run.threads or distributed.run_on_main(lambda: _stored(config))
    if threads:
        torch.set_num_threads(threads)
        cores = available_cores()
        if threads > cores and distributed.is_main():
            logger.warning(
                "resumed with the run's %d threads on %s; run.threads=%d is faster, but rounds differently",
                threads,
                counted(cores, "core"),
                cores,
            )
    else:
        threads = _measured(config, build)
    return replace(config, run=replace(config.run, threads=threads))


def _stored(config: Any) -> int:
    """The number that the run folder's run began with; 0 if there is no run to resume."""
    folder = Path(config.run.folder)
    if not (CheckpointFolder(folder / "checkpoints").steps() and is_file(folder / "config.yaml")):
        return 0
    try:
        return int(load_config(type(config), str(folder / "config.yaml")).run.threads)
    except UserError:
        return 0  # RunFolder.open reports what is wrong with it


def _measured(config: Any, build: Callable[[], Training]) -> int:
    workers = config.data.workers
    if config.run.compile:  # it builds code for one number of threads, so trying several would take minutes
        return choose_threads(None, workers=workers).threads
    with closing(_Trial(build, config.optim.accumulate)) as trial:
        choice = choose_threads(trial, workers=workers)
    if choice.seconds and distributed.is_main():
        logger.info("threads   %s", choice)
    return choice.threads


class _Trial:
    """Steps of a training, one per call, always on the batches of its first step: reading takes no part.

    Args:
        build: builds the training; called with the first step.
        accumulate: micro-batches per step.
    """

    def __init__(self, build: Callable[[], Training], accumulate: int) -> None:
        self._build, self._accumulate = build, accumulate
        self._training: Training | None = None
        self._batches: list[Any] = []

    def __call__(self) -> None:
        if self._training is None:
            logging.disable(logging.WARNING)  # the training itself logs it again
            try:
                self._training = self._build()
            finally:
                logging.disable(logging.NOTSET)
            batches = itertools.islice(self._training.loader.epoch(0), self._accumulate)
            self._batches = [batch.to(self._training.device) for batch in batches]
        training = self._training
        for batch in self._batches:
            with torch.autocast(training.device.type, torch.bfloat16, enabled=training.bf16):
                loss = training.step(batch).loss
            loss.backward()
        training.optimizer.step()
        training.optimizer.zero_grad(set_to_none=True)

    def close(self) -> None:
        """End the loader's workers and free the training."""
        if self._training is not None:
            self._training.loader.close()
            self._training = None
            self._batches.clear()
            gc.collect()


# What every training builds from the keys of its config: schedule, optimiser, average, loop.
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


def build_optimizer(
    optim: OptimConfig, model: nn.Module, *, base_lr: float, encoder: nn.Module | None = None
) -> torch.optim.Optimizer:
    """The optimiser over the model's parameter groups: AdamW, or what a fine-tuning names.

    Args:
        optim: of the config.
        model: all that learns.
        base_lr: peak learning rate.
        encoder: the part of the model whose blocks are its layers; None: the model itself.

    Raises:
        UserError: an unknown optimiser, or betas or momentum out of their range.
    """
    groups = parameter_groups(
        model.named_parameters(),
        base_lr=base_lr,
        weight_decay=optim.weight_decay,
        layer_decay=optim.layer_decay,
        depth=len((encoder or model).blocks),  # type: ignore[arg-type]
    )
    name = optim.optimizer if isinstance(optim, FinetuneOptimConfig) else "adamw"
    check_name("optim.optimizer", name, OPTIMIZERS)
    if isinstance(optim, FinetuneOptimConfig) and name == "sgd":
        return sgd(groups, momentum=optim.momentum)
    return adamw(groups, betas=(optim.betas[0], optim.betas[1]))


def build_average(optim: OptimConfig, model: nn.Module) -> ExponentialMovingAverage | None:
    """The moving average of the weights, where the config keeps one."""
    return None if optim.ema_decay is None else ExponentialMovingAverage(model, decay=optim.ema_decay)


def loop_options(
    optim: OptimConfig, run: RunConfig, loader: ClipLoader[Any], *, evaluate_epochs: float, bf16: bool
) -> LoopOptions:
    """How the loop runs; milestones and evaluations stand in epochs in a config, and in steps there."""
    steps_per_epoch = loader.batches_per_epoch // optim.accumulate
    return LoopOptions(
        epochs=optim.epochs,
        accumulate=optim.accumulate,
        clip_norm=optim.gradient_clip,
        precision="bf16" if bf16 else "fp32",
        seed=run.seed,
        save_minutes=run.checkpoint_minutes,
        keep_last=run.keep_checkpoints,
        milestone_every=round(run.checkpoint_epochs * steps_per_epoch),
        evaluate_every=round(evaluate_epochs * steps_per_epoch),
        unit="clips",
    )


def rank_timeout_seconds(run: RunConfig) -> float:
    """How long a rank waits for another one.

    Raises:
        UserError: not a positive time.
    """
    if not run.rank_timeout_minutes > 0:
        raise UserError(f"run.rank_timeout_minutes {run.rank_timeout_minutes:g} must be above 0, such as 30")
    return 60 * run.rank_timeout_minutes
