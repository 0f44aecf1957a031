"""CPU cores, memory, and the waiting of OpenMP threads on a busy machine.

The module does not import torch: OpenMP reads its environment once, when torch loads it.
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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WAIT_POLICY, SPIN_COUNT = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
# Number of checks of a waiting libgomp thread before it sleeps. This is libgomp's default, about 3 ms: an
# idle machine computes as fast as without a policy. A busy machine needs 0, the default of PASSIVE (see
# `yielding_threads`). 0 on an idle machine costs a wake-up per parallel region, which doubles the step time
# of a small model (docs/performance.md).
_SPINS = "300000"
_CGROUP = Path("/sys/fs/cgroup")
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


def available_cores(cgroup: Path = _CGROUP) -> int:
    """Number of usable cores, from the affinity and the CPU quota of the container, rounded up.

    Args:
        cgroup: mount point of the control groups (version 1 or 2).
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = _quota(cgroup)
    return cores if quota is None else max(min(cores, -(-quota // 1000)), 1)


def free_cores(cores: int, *, workers: int = 0) -> int:
    """Number of cores that neither other programs nor the loader workers of this run are likely to need.

    Args:
        cores: number of cores that this process may use.
        workers: number of loader workers of this run, which have not started yet.
    """
    # The average over a minute: this process has just started, so the load is from other programs.
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return max(cores - round(load) - workers, 1)


def threads_from_environment(environment: Mapping[str, str] = os.environ) -> int | None:
    """The number of threads that the user or torchrun has set; None if it is not set."""
    value = environment.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(value) if value.isdecimal() and int(value) > 0 else None


def _quota(cgroup: Path) -> int | None:
    """The container's CPU quota in thousandths of a core; None if there is no quota."""
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
        return None  # no control groups, or no CPU limit


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


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h
_LARGEST_KEPT = 2**30  # bytes
_LARGEST_KEPT_BY_DEFAULT = 2**25  # bytes; M_TRIM_THRESHOLD's default is twice as much
_LARGEST_INT = 2**31 - 1
_NUMBERS = {"family": "cpu family", "model": "model", "stepping": "stepping"}  # in /proc/cpuinfo
# Memory limits of the container's control group, version 2 and version 1.
_GROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def keep_freed_memory(keep: bool = True) -> bool:
    """Reuse the memory of freed tensors up to 1 GiB, instead of returning it to the system.

    By default, glibc returns freed blocks above 32 MiB and the free end of its heap. Each training step on
    the CPU then maps its largest tensors and clears their pages again. The peak memory is the same either
    way.

    Args:
        keep: False restores glibc's behavior.

    Returns:
        Whether the setting is active; False if the C library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    if not keep:
        library.malloc_trim(0)  # blocks above the limit would still reuse what was kept
    mallopt = library.mallopt
    largest = _LARGEST_KEPT if keep else _LARGEST_KEPT_BY_DEFAULT
    trim = _LARGEST_INT if keep else 2 * _LARGEST_KEPT_BY_DEFAULT
    return bool(mallopt(_MMAP_THRESHOLD, largest)) and bool(mallopt(_TRIM_THRESHOLD, trim))


def processor_name() -> str:
    """Name of the processor with family, model and stepping, which its name may lack."""
    values: dict[str, str] = {}
    with suppress(OSError, UnicodeDecodeError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            values.setdefault(name.strip(), value.strip())
    if "model name" not in values:
        return platform.processor() or platform.machine()
    numbers = (f"{name} {values[key]}" for name, key in _NUMBERS.items() if key in values)
    return ", ".join([values["model name"], *numbers])


def machine_memory() -> int | None:
    """Usable memory in bytes: of the machine or its control group, the smaller one; None if unknown."""
    limits = []
    with suppress(ValueError, OSError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in _GROUP_LIMITS:
        with suppress(OSError, ValueError):  # no such group, or "max": no limit
            limits.append(int(Path(path).read_text(encoding="ascii")))
    return min(limits, default=None)


def available_memory() -> int | None:
    """Memory in bytes that programs can still use without swapping; None if unknown.

    It is the smaller one of the machine's and, with control groups of version 2, of the group's.
    """
    sizes = []
    with suppress(OSError, ValueError, StopIteration), open("/proc/meminfo", encoding="ascii") as file:
        sizes.append(1024 * next(int(line.split()[1]) for line in file if line.startswith("MemAvailable")))
    with suppress(OSError, ValueError, KeyError):
        limit, used = (int((_CGROUP / f"memory.{name}").read_text("ascii")) for name in ("max", "current"))
        rows = (_CGROUP / "memory.stat").read_text("ascii").splitlines()
        cached = int(dict(row.split() for row in rows)["inactive_file"])  # the system can free it
        sizes.append(limit - used + cached)
    return min(sizes, default=None)


def private_bytes() -> int:
    """Unshared resident memory of this process, in bytes; without /proc, the peak of its resident memory."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            _, resident, shared, *_ = (int(word) for word in file.read().split())
    except OSError:
        import resource  # not on Windows

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if platform.system() == "Darwin" else peak * 1024
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
