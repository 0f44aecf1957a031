"""Keeping freed memory: counted in page faults of a process of its own."""

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
for _ in range(8):  # aligned blocks find their places after a few rounds
    fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(16):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(way: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", _COUNT_FAULTS, way], check=True, capture_output=True, text=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is set")
def test_large_tensors_are_not_mapped_anew_for_ever() -> None:
    # By default each of the 16 tensors is mapped anew, in small pages or large ones; kept memory may still
    # move to another place of the heap once or twice.
    assert 4 * page_faults("keep") < page_faults("default")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc: the peak of all memory is taken")
def test_own_memory_is_what_this_process_has_written_and_shares_with_no_other() -> None:
    sizes = [private_bytes()]
    kept = []
    for kind in (mmap.MAP_PRIVATE, mmap.MAP_SHARED):
        memory = mmap.mmap(-1, 2**25, flags=kind | mmap.MAP_ANONYMOUS)  # 32 MiB
        for page in range(0, 2**25, mmap.PAGESIZE):
            memory[page] = 1
        kept.append(memory)
        sizes.append(private_bytes())
    assert sizes[1] - sizes[0] == pytest.approx(2**25, abs=2**22)  # other threads may take or free some
    assert sizes[2] - sizes[1] == pytest.approx(0, abs=2**22)
