"""The number of CPU threads of a verb: measured, kept when a run is resumed, or set by the user."""

from __future__ import annotations

import gc
import itertools
import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from videomaskfeat.config import load_config
from videomaskfeat.cpu import available_cores
from videomaskfeat.data.loader import ClipLoader
from videomaskfeat.engine import distributed
from videomaskfeat.engine.checkpoint import CheckpointFolder
from videomaskfeat.engine.contracts import StepFunction
from videomaskfeat.engine.threads import choose_threads
from videomaskfeat.errors import UserError, counted
from videomaskfeat.io import is_file
from videomaskfeat.memory import keep_freed_memory
from videomaskfeat.tasks.classification.multiview import evaluating
from videomaskfeat.tasks.recipe import ClipRecipe

logger = logging.getLogger(__name__)

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


def choose_inference_threads(
    model: nn.Module,
    clip: ClipRecipe,
    *,
    device: torch.device,
    bf16: bool,
    workers: int = 0,
    network: Callable[[Tensor], object] | None = None,
) -> None:
    """Let torch compute with the number of threads that is fastest for one clip now; do nothing on a GPU.

    Args:
        model: put into evaluation mode meanwhile.
        clip: the size of its clips.
        device: of the model.
        bf16: run it under bf16 autocast.
        workers: loader processes of this rank.
        network: what is run, float [1, C, T, H, W] -> anything; None: the model.
    """
    if device.type != "cpu":
        return
    keep_freed_memory()
    pixels = torch.zeros(1, 3, clip.frames, clip.crop, clip.crop)
    run = network or model

    def work() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            run(pixels)

    with evaluating(model):
        choice = choose_threads(work, workers=workers)
    if choice.seconds and distributed.is_main():
        logger.info("threads   %s", choice)


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
                loss, _ = training.step(batch)
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
