"""The number of CPU threads of a process, chosen by timing its own work."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from videomaskfeat.durations import duration_text
from videomaskfeat.engine import distributed
from videomaskfeat.machine import available_cores, free_cores, threads_from_environment

_TRIES = 3  # per number of threads, not counting the first call
_TRY_SECONDS = 3.0  # after which a number is not tried again
_WORTH = 0.95  # more threads must take less than this share of the time of fewer


@dataclass(frozen=True)
class ThreadChoice:
    """A number of threads and the reason for it.

    Attributes:
        threads: that the process computes with now.
        seconds: per try, by number of threads; empty if none was measured.
        reason: for people, such as ``measured: 2 threads 165 ms, 1 thread 212 ms``.
    """

    threads: int
    seconds: dict[int, float]
    reason: str

    def __str__(self) -> str:
        return f"{self.threads} ({self.reason})"


def choose_threads(work: Callable[[], object] | None, *, workers: int = 0) -> ThreadChoice:
    """Set the number of threads with which ``work`` is fastest on this machine now.

    Tries all available cores first, then fewer: those that other programs and the loader workers leave free,
    halves, and 1, until fewer threads are slower. ``OMP_NUM_THREADS``, if it is set, is used as it is. All
    ranks must call it; they get the same number.

    Args:
        work: the repeated work of the process, such as a training step; called only if there is a choice.
            None: nothing is measured, and the number of free cores is used.
        workers: loader processes of this rank.
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
    first = _time_once(work)  # builds what later calls reuse, so it counts only if it takes long anyway
    if first > _TRY_SECONDS:
        seconds[best] = first
    for threads in candidates:
        torch.set_num_threads(threads)
        if threads not in seconds:
            seconds[threads] = _time(work)
        if _WORTH * seconds[threads] > seconds[best]:
            break
        best = threads
    shown = ", ".join(f"{_counted(threads)} {duration_text(value)}" for threads, value in seconds.items())
    return _set(best, seconds, f"measured per step: {shown}")


def _set(threads: int, seconds: dict[int, float], reason: str) -> ThreadChoice:
    torch.set_num_threads(threads)
    return ThreadChoice(threads, seconds, reason)


def _candidates(cores: int, free: int) -> list[int]:
    """Numbers of threads to try, descending.

    >>> _candidates(16, 13)
    [16, 13, 8, 4, 2, 1]
    """
    halves = [cores >> shift for shift in range(cores.bit_length())]
    return sorted({*halves, free}, reverse=True)


def _time(work: Callable[[], object]) -> float:
    """Seconds of a call, the median of a few; the same number on every rank."""
    times: list[float] = []
    while not times or (len(times) < _TRIES and sum(times) < _TRY_SECONDS):
        times.append(_time_once(work))
    return statistics.median(times)


def _time_once(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    taken = torch.tensor([time.perf_counter() - started], dtype=torch.float64)
    return float(distributed.mean_over_ranks(taken))


def _ranks_here() -> int:
    """Number of processes of this run on this machine, from torchrun."""
    return max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)


def _counted(threads: int) -> str:
    return f"{threads} thread" + ("s" if threads > 1 else "")
