"""Keeping freed memory: counted in page faults of a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_COUNT_FAULTS = """
import resource, sys
import torch
from videomaskfeat.memory import keep_freed_memory
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
