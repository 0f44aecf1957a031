"""Freed memory that is reused, by page faults of another process, and unshared memory."""

from __future__ import annotations

import mmap
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from videomaskfeat.machine import private_bytes

_COUNT_FAULTS = """
import resource, sys
import torch
from videomaskfeat.machine import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def fill():
    return torch.ones(2**24)  # 64 MiB: 16,384 pages of 4 KiB
for _ in range(8):  # until aligned blocks have their places
    fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(16):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def count_page_faults(policy: str) -> int:
    command = [sys.executable, "-c", _COUNT_FAULTS, policy]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc has the setting")
def test_memory_of_large_tensors_is_reused() -> None:
    # By default each of the 16 tensors is mapped again. Reused memory may still move once or twice in the
    # heap.
    assert 4 * count_page_faults("keep") < count_page_faults("default")


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="without /proc, the peak memory is returned"
)
def test_private_bytes_exclude_shared_memory() -> None:
    sizes = [private_bytes()]
    blocks = []
    for kind in (mmap.MAP_PRIVATE, mmap.MAP_SHARED):
        memory = mmap.mmap(-1, 2**25, flags=kind | mmap.MAP_ANONYMOUS)  # 32 MiB
        for page in range(0, 2**25, mmap.PAGESIZE):
            memory[page] = 1
        blocks.append(memory)
        sizes.append(private_bytes())
    assert sizes[1] - sizes[0] == pytest.approx(2**25, abs=2**22)  # other threads may allocate or free memory
    assert sizes[2] - sizes[1] == pytest.approx(0, abs=2**22)
