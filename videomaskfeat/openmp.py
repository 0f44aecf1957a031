"""The waiting of OpenMP threads on a busy machine.

The module does not import torch: OpenMP reads its environment once, when torch loads it.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videomaskfeat.machine import available_cores

WAIT_POLICY, SPIN_COUNT = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
# Number of checks of a waiting libgomp thread before it sleeps. This is libgomp's default, about 3 ms: an
# idle machine computes as fast as without a policy. A busy machine needs 0, the default of PASSIVE (see
# `yielding_threads`). 0 on an idle machine costs a wake-up per parallel region, which doubles the step time
# of a small model (docs/performance.md).
_SPINS = "300000"
# On a busy machine, the main thread waits for a core. On a calm machine, cores are idle.
_BUSY_DELAY, _CALM_IDLE = 0.1, 0.1  # shares of the time
_SAMPLE_SECONDS = 2.0
_CALM_SAMPLES = 3
_PARALLEL_SIZE = 1 << 20  # values; torch computes on fewer with a single thread


def set_wait_policy() -> None:
    """Let waiting OpenMP threads of this process and its children release their core.

    Does nothing if the user has set one of the variables, or if torch is already loaded.
    """
    if "torch" in sys.modules or any(name in os.environ for name in (WAIT_POLICY, SPIN_COUNT)):
        return
    os.environ[WAIT_POLICY] = "PASSIVE"
    os.environ[SPIN_COUNT] = _SPINS


@contextmanager
def yielding_threads() -> Iterator[None]:
    """Within the context, waiting threads sleep at once if the machine is busy.

    With ``set_wait_policy`` they check for about 3 ms first, which is fastest on an idle machine. On a busy
    machine, the checks occupy the core of the thread that they wait for. With the policy PASSIVE, libgomp
    skips them while the process has more OpenMP threads than cores (its manual, ``GOMP_SPINCOUNT``). So idle
    threads are added while the machine is busy. The number of computing threads and the results stay the
    same.

    Does nothing if the user has set the wait policy, or without Linux's ``/proc``. Call it in the main
    thread.
    """
    ours = os.environ.get(WAIT_POLICY) == "PASSIVE" and os.environ.get(SPIN_COUNT) == _SPINS
    if not ours or not _Sample.possible():
        yield
        return
    ended = threading.Event()
    watch = threading.Thread(target=_watch, args=(ended, threading.get_native_id()), daemon=True)
    watch.start()
    try:
        yield
    finally:
        ended.set()
        watch.join()


class Load:
    """Decides from samples whether the machine is busy with other programs."""

    def __init__(self) -> None:
        self.busy = False
        self._calm = 0

    def update(self, *, delay: float, idle: float) -> bool:
        """Add a sample, and return whether the machine is busy now.

        Args:
            delay: share of the time in which the main thread was ready to run but had no core.
            idle: share of the time in which the machine's cores were idle.
        """
        if not self.busy:
            self.busy, self._calm = delay > _BUSY_DELAY, 0
        else:
            # Sleeping threads get a core as soon as they wake, so the delay no longer shows other programs.
            self._calm = self._calm + 1 if idle > _CALM_IDLE else 0
            self.busy = self._calm < _CALM_SAMPLES
        return self.busy


class IdleThreads:
    """Idle OpenMP threads, so that this process has more threads than cores.

    Args:
        torch: the loaded module.
    """

    def __init__(self, torch: Any) -> None:
        threads = torch.get_num_threads()
        self._torch = torch
        self._released = threading.Event()
        # Each Python thread has its own team, which adds ``threads`` - 1 threads to libgomp's count.
        teams = max(available_cores() - threads, 0) // (threads - 1) + 1 if threads > 1 else 0
        started = threading.Barrier(teams + 1)
        self._holders = [
            threading.Thread(target=self._hold, args=(started,), daemon=True) for _ in range(teams)
        ]
        for holder in self._holders:
            holder.start()
        started.wait()

    def release(self) -> None:
        """End the threads."""
        self._released.set()
        for holder in self._holders:
            holder.join()

    def _hold(self, started: threading.Barrier) -> None:
        self._torch.zeros(_PARALLEL_SIZE).add_(1)  # creates the team
        started.wait()
        self._released.wait()


def _watch(ended: threading.Event, main_thread: int) -> None:
    """Add idle threads while the machine is busy, until ``ended`` is set."""
    before, load = _Sample.take(main_thread), Load()
    idle: IdleThreads | None = None
    while not ended.wait(_SAMPLE_SECONDS):
        now = _Sample.take(main_thread)
        busy = load.update(delay=now.delay_since(before), idle=now.idle_since(before))
        before = now
        if busy and idle is None and "torch" in sys.modules:
            idle = IdleThreads(whole_module("torch"))
        elif not busy and idle is not None:
            idle.release()
            idle = None
    if idle is not None:
        idle.release()


def whole_module(name: str) -> Any:
    """Import a module; if another thread is importing it, wait for the end of that import.

    Calls into a partly imported torch fail or crash the process.
    """
    return importlib.import_module(name)


@dataclass(frozen=True)
class _Sample:
    """Clocks of the kernel, in seconds."""

    time: float
    delayed: float  # waiting time of a thread for a core
    idle: float  # sum over all cores

    @staticmethod
    def possible() -> bool:
        return Path("/proc/self/schedstat").exists() and Path("/proc/stat").exists()

    @classmethod
    def take(cls, thread: int) -> _Sample:
        delayed = Path(f"/proc/self/task/{thread}/schedstat").read_text(encoding="ascii").split()[1]
        idle = Path("/proc/stat").read_text(encoding="ascii").split(maxsplit=5)[4]
        return cls(time.monotonic(), 1e-9 * int(delayed), int(idle) / os.sysconf("SC_CLK_TCK"))

    def delay_since(self, earlier: _Sample) -> float:
        return (self.delayed - earlier.delayed) / (self.time - earlier.time)

    def idle_since(self, earlier: _Sample) -> float:
        return (self.idle - earlier.idle) / (self.time - earlier.time) / (os.cpu_count() or 1)
