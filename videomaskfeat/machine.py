"""The processor: how many cores this process may use, and how its threads wait beside other programs.

Nothing here imports torch: OpenMP reads its environment once, when torch loads it.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WAIT_POLICY, SPIN_COUNT = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
# How often a waiting thread of libgomp checks again before it sleeps. This is libgomp's own default, some
# 3 ms: an idle machine computes as fast as without a policy. A busy machine needs 0, the default of PASSIVE
# (see `yielding_threads`). Always 0 would cost a wake-up per parallel region, which doubles the step of a
# small model on an idle machine (docs/performance.md).
_SPINS = "300000"
_CGROUP = Path("/sys/fs/cgroup")
# A busy machine keeps the main thread waiting for a core; a machine that is busy no longer has idle cores.
_BUSY_DELAY, _CALM_IDLE = 0.1, 0.1  # shares of the time
_SAMPLE_SECONDS = 2.0
_CALM_SAMPLES = 3
_SHARED_OUT = 1 << 20  # values; torch computes on fewer with a single thread


def set_wait_policy() -> None:
    """Make OpenMP threads that wait for each other give their core away, for this process and its children.

    Does nothing if the user has set one of the variables, or if torch is loaded already.
    """
    if "torch" in sys.modules or any(name in os.environ for name in (WAIT_POLICY, SPIN_COUNT)):
        return
    os.environ[WAIT_POLICY] = "PASSIVE"
    os.environ[SPIN_COUNT] = _SPINS


def available_cores(cgroup: Path = _CGROUP) -> int:
    """Cores that this process may use: its affinity, and the CPU quota of its container, rounded up.

    Args:
        cgroup: where the control groups are mounted (version 1 or 2).
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = _quota(cgroup)
    return cores if quota is None else max(min(cores, -(-quota // 1000)), 1)


def free_cores(cores: int, *, workers: int = 0) -> int:
    """Of some cores those that neither other programs nor this run's loader workers are likely to need.

    Args:
        cores: that this process may use.
        workers: loader processes of this run, which are not at work yet.
    """
    # The average over a minute: this process has hardly begun, so what is at work now is others.
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return max(cores - round(load) - workers, 1)


def threads_from_environment(environment: Mapping[str, str] = os.environ) -> int | None:
    """The number of threads that the user, or torchrun, has set; None if it is left open."""
    value = environment.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(value) if value.isdecimal() and int(value) > 0 else None


def _quota(cgroup: Path) -> int | None:
    """The container's CPU quota in thousandths of a core; None without one."""
    try:
        version_2 = cgroup / "cpu.max"
        if version_2.exists():
            quota, period = version_2.read_text(encoding="ascii").split()
        else:
            quota, period = (
                (cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text(encoding="ascii")
                for name in ("quota", "period")
            )
        return None if quota == "max" or int(quota) <= 0 else 1000 * int(quota) // int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None  # no control groups here, or none that limit the processor


@contextmanager
def yielding_threads() -> Iterator[None]:
    """While the context is open, threads that wait for each other sleep at once if the machine is busy.

    With ``set_wait_policy`` they check again for some 3 ms first, which is fastest on an idle machine. When
    other programs run, that takes the core from the very thread that is waited for. In a process whose policy
    is PASSIVE, libgomp skips these checks as long as the process has more OpenMP threads than there are cores
    (its manual, ``GOMP_SPINCOUNT``), so idle ones are added while the machine is busy. The number of threads
    that compute stays the same, and so do the results.

    Does nothing if the user chose how threads wait, or without Linux's ``/proc``. Call it in the main thread.
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
    """Whether the machine is busy with other programs, from one sample to the next."""

    def __init__(self) -> None:
        self.busy = False
        self._calm = 0

    def update(self, *, delay: float, idle: float) -> bool:
        """Take in the next sample; returns whether the machine is busy now.

        Args:
            delay: share of the time in which the main thread could have run and had no core.
            idle: share of the time in which the machine's cores had nothing to do.
        """
        if not self.busy:
            self.busy, self._calm = delay > _BUSY_DELAY, 0
        else:
            # Threads that sleep get a core as soon as they wake, so the delay no longer shows other programs.
            self._calm = self._calm + 1 if idle > _CALM_IDLE else 0
            self.busy = self._calm < _CALM_SAMPLES
        return self.busy


class IdleThreads:
    """OpenMP threads that do nothing, as many as bring this process above the number of cores.

    Args:
        torch: the module, loaded.
    """

    def __init__(self, torch: Any) -> None:
        threads = torch.get_num_threads()
        self._torch = torch
        self._released = threading.Event()
        # Each Python thread has a team of its own: it adds ``threads`` - 1 to those that libgomp counts.
        teams = max(available_cores() - threads, 0) // (threads - 1) + 1 if threads > 1 else 0
        started = threading.Barrier(teams + 1)
        self._holders = [
            threading.Thread(target=self._hold, args=(started,), daemon=True) for _ in range(teams)
        ]
        for holder in self._holders:
            holder.start()
        started.wait()

    def release(self) -> None:
        """End them."""
        self._released.set()
        for holder in self._holders:
            holder.join()

    def _hold(self, started: threading.Barrier) -> None:
        self._torch.zeros(_SHARED_OUT).add_(1)  # makes the team
        started.wait()
        self._released.wait()


def _watch(ended: threading.Event, main_thread: int) -> None:
    """Follow the machine's load until the end; hold idle threads while it is busy."""
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
    """A module that is loaded, or that another thread is importing: then wait until that is done.

    Half of torch computes nothing, or ends the process.
    """
    return importlib.import_module(name)


@dataclass(frozen=True)
class _Sample:
    """Clocks of the kernel at one moment, seconds."""

    at: float
    delayed: float  # for which a thread waited for a core
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
        return (self.delayed - earlier.delayed) / (self.at - earlier.at)

    def idle_since(self, earlier: _Sample) -> float:
        return (self.idle - earlier.idle) / (self.at - earlier.at) / (os.cpu_count() or 1)


# How the process holds its memory, and how much the machine has.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # the names of glibc's malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
_LARGEST_KEPT = 2**30  # bytes
_LARGEST_INT = 2**31 - 1
# Of the control group that a container is in, by the second and the first version of such groups.
_GROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def keep_freed_memory() -> bool:
    """Let the process keep the memory of freed tensors, up to 1 GiB each, for the next ones.

    glibc returns every block above 32 MiB to the system when it is freed, and what lies free at the end of
    its heap: a training step on the CPU then has its largest tensors mapped, and each page of them cleared,
    over and over. The process's peak is the same either way; it just does not shrink in between.

    Returns:
        Whether it is in force; False where the C library is another one.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)) and bool(mallopt(_TRIM_THRESHOLD, _LARGEST_INT))


def machine_memory() -> int | None:
    """Bytes that a process may use: the machine's memory, or the limit of its control group if that is less.

    Returns:
        None if it is unknown.
    """
    try:
        found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (ValueError, OSError):
        found = []
    for path in _GROUP_LIMITS:
        try:
            with open(path, encoding="ascii") as file:
                found.append(int(file.read()))
        except (OSError, ValueError):  # no such group, or "max": without a limit
            continue
    return min(found, default=None)


def private_bytes() -> int:
    """Resident memory that this process shares with no other, in bytes.

    Without /proc: the peak of all its resident memory.
    """
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            _, resident, shared, *_ = (int(word) for word in file.read().split())
    except OSError:
        import resource  # not on Windows

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if platform.system() == "Darwin" else peak * 1024
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
