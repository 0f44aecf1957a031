"""CPU cores and memory of this machine; the module does not import torch."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h
_LARGEST_KEPT = 2**30  # bytes
_LARGEST_KEPT_BY_DEFAULT = 2**25  # bytes; M_TRIM_THRESHOLD's default is twice as much
_LARGEST_INT = 2**31 - 1
_NUMBERS = {"family": "cpu family", "model": "model", "stepping": "stepping"}  # in /proc/cpuinfo
# Memory limits of the container's control group, version 2 and version 1.
_GROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


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
