"""How the process holds its memory."""

from __future__ import annotations

import ctypes
import os
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # the names of glibc's malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
_LARGEST_KEPT = 2**30  # bytes
_LARGEST_INT = 2**31 - 1


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


def private_bytes() -> int:
    """Resident memory that this process shares with no other, in bytes.

    Where the system has no /proc: the peak of all its resident memory.
    """
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            _, resident, shared, *_ = (int(word) for word in file.read().split())
    except OSError:
        import resource  # not on Windows

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if platform.system() == "Darwin" else peak * 1024
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
