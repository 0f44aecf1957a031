"""How the process holds its memory, and how much the machine has."""

from __future__ import annotations

import ctypes
import os
import platform

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
