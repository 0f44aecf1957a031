"""The number of CPU threads, chosen by timing the work itself; a resumed run keeps it."""

from __future__ import annotations

import gc
import itertools
import logging
import os
import statistics
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from videomaskfeat.durations import duration_text
from videomaskfeat.engine import distributed
from videomaskfeat.engine.run_folder import stored_run_section
from videomaskfeat.errors import counted
from videomaskfeat.machine import available_cores, free_cores, keep_freed_memory, threads_from_environment

logger = logging.getLogger(__name__)

ConfigT = TypeVar("ConfigT", bound=Any)

_TRIES = 3  # per number of threads, after the first call
_TRY_SECONDS = 3.0  # a number of threads is not tried again after this time
LONGEST_ON_CPU = 86_400.0
"""Seconds; a longer training without a GPU is warned of."""
_WORTH = 0.95  # more threads must need less than this share of the time of fewer


@dataclass(frozen=True)
class ThreadChoice:
    """A number of threads and the reason for it.

    Attributes:
        threads: number of threads that is set now.
        seconds: seconds per call, by number of threads; empty if nothing was measured.
        reason: text such as ``measured per step: 2 threads 165 ms, 1 thread 212 ms``.
    """

    threads: int
    seconds: dict[int, float]
    reason: str

    def __str__(self) -> str:
        return f"{self.threads} ({self.reason})"


def choose_threads(work: Callable[[], object] | None, *, workers: int = 0) -> ThreadChoice:
    """Set the number of threads with which ``work`` is fastest on this machine now.

    Tries all available cores, the cores that other programs and the loader workers leave free, and halves
    down to 1, until fewer threads are slower. ``OMP_NUM_THREADS`` overrides the choice. All ranks must call
    it and get the same number.

    Args:
        work: the repeated work of the process, such as a training step; None: the number of free cores is
            used without measuring.
        workers: number of loader workers of this rank.
    """
    fixed = threads_from_environment()
    cores = max(available_cores() // _ranks_here(), 1)
    free = free_cores(cores, workers=workers)
    if fixed is not None:
        return _set(fixed, {}, "OMP_NUM_THREADS")
    if work is None:
        return _set(free, {}, f"{free} of {cores} cores are free")
    candidates = distributed.run_on_main(lambda: _candidates(cores, free))
    if len(candidates) == 1:
        return _set(candidates[0], {}, "the only core")
    seconds: dict[int, float] = {}
    best = candidates[0]
    torch.set_num_threads(best)
    first = _time_once(work)  # includes one-time work, so it counts only if there is no second call
    if first > _TRY_SECONDS:
        seconds[best] = first
    for threads in candidates:
        torch.set_num_threads(threads)
        if threads not in seconds:
            seconds[threads] = _time(work)
        if _WORTH * seconds[threads] > seconds[best]:
            break
        best = threads
    shown = ", ".join(
        f"{counted(threads, 'thread')} {duration_text(value)}" for threads, value in seconds.items()
    )
    return _set(best, seconds, f"measured per step: {shown}")


def _set(threads: int, seconds: dict[int, float], reason: str) -> ThreadChoice:
    torch.set_num_threads(threads)
    return ThreadChoice(threads, seconds, reason)


def _candidates(cores: int, free: int) -> list[int]:
    """Numbers of threads to try, in descending order.

    >>> _candidates(16, 13)
    [16, 13, 8, 4, 2, 1]
    """
    halves = [cores >> shift for shift in range(cores.bit_length())]
    return sorted({*halves, free}, reverse=True)


def _time(work: Callable[[], object]) -> float:
    """Median seconds per call, the same on every rank."""
    times: list[float] = []
    while not times or (len(times) < _TRIES and sum(times) < _TRY_SECONDS):
        times.append(_time_once(work))
    return statistics.median(times)


def _time_once(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    seconds = torch.tensor([time.perf_counter() - started], dtype=torch.float64)
    return float(distributed.mean_over_ranks(seconds))


def _ranks_here() -> int:
    """Number of processes of this run on this machine."""
    return max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)


def with_threads(config: ConfigT, build: Callable[[], Any]) -> ConfigT:
    """Set torch's number of threads and return the config with ``run.threads`` resolved; all ranks call it.

    A resumed run keeps its number, since another one changes the order of sums. A new run uses the number
    with which its own steps are fastest, measured on a separate training that is discarded.

    Args:
        config: config of a training on the CPU.
        build: builds the training, a :class:`~videomaskfeat.engine.run.Run`.
    """
    keep_freed_memory()
    threads = config.run.threads or distributed.run_on_main(
        lambda: getattr(stored_run_section(config), "threads", 0)
    )
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


def _measured(config: Any, build: Callable[[], Any]) -> int:
    workers = config.data.workers
    if config.run.compile:  # compiled code is for one number of threads: trying several takes minutes
        return choose_threads(None, workers=workers).threads
    with closing(_Trial(build, config.optim.accumulate)) as trial:
        choice = choose_threads(trial, workers=workers)
        if choice.seconds:
            _warn_of_days(config, trial.seconds_in_all(choice.seconds[choice.threads]))
    if choice.seconds and distributed.is_main():
        logger.info("threads   %s", choice)
    return choice.threads


def _warn_of_days(config: Any, seconds: float) -> None:
    if seconds > LONGEST_ON_CPU and distributed.is_main():
        logger.warning(
            "this training takes about %s without a GPU (`videomaskfeat plan` has details); %s",
            duration_text(seconds),
            nano_command(config) or "use a smaller model, smaller clips, fewer epochs, or a GPU",
        )


def nano_command(config: Any) -> str:
    """A command that trains a nano model on the lists of a config; empty if it has no nano model."""
    verb = {"PretrainConfig": "pretrain", "FinetuneConfig": "finetune"}.get(type(config).__name__)
    if verb is None or "_nano" in config.model.name or "_pico" in config.model.name:
        return ""
    data = config.data
    words = [f"data.train={data.train}", f"data.validation={data.validation}", f"data.prefix={data.prefix}"]
    if verb == "finetune":
        words += [f"data.class_names={data.class_names}", f"data.classes={data.classes}"]
    folder = f"run.folder={config.run.folder}_nano"
    lists = " ".join(word if word.isascii() and " " not in word else f"'{word}'" for word in words)
    return (
        f"a nano model takes minutes to hours: videomaskfeat {verb} --config "
        f"configs/{verb}/small_cpu.yaml {lists} {folder}"
    )


def step_once(training: Any, batches: Iterable[Any]) -> None:
    """One optimizer step of a `Run` on micro-batches on its device."""
    for batch in batches:
        with torch.autocast(training.device.type, torch.bfloat16, enabled=training.bf16):
            loss = training.step(batch).loss
        loss.backward()
    training.optimizer.step()
    training.optimizer.zero_grad(set_to_none=True)


class _Trial:
    """One training step per call, always on the batches of the first step."""

    def __init__(self, build: Callable[[], Any], accumulate: int) -> None:
        self._build, self._accumulate = build, accumulate
        self._training: Any = None
        self._batches: list[Any] = []

    def __call__(self) -> None:
        if self._training is None:
            logging.disable(logging.WARNING)  # the training itself repeats the messages
            try:
                self._training = self._build()
            finally:
                logging.disable(logging.NOTSET)
            batches = itertools.islice(self._training.loader.epoch(0), self._accumulate)
            self._batches = [batch.to(self._training.device) for batch in batches]
        step_once(self._training, self._batches)

    def seconds_in_all(self, step_seconds: float) -> float:
        """Seconds of the whole training if a step takes this long."""
        return step_seconds * self._training.total_steps

    def close(self) -> None:
        """Stop the loader workers and free the training."""
        if self._training is not None:
            self._training.loader.close()
            self._training = None
            self._batches.clear()
            gc.collect()
