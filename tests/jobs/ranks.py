"""Verbs of the package in processes of their own, one or several ranks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence


def command(ranks: int, arguments: Sequence[str]) -> list[str]:
    """The command line of ``videomaskfeat ARGUMENTS`` on ``ranks`` ranks; they use a free port."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return [sys.executable, *(launcher if ranks > 1 else []), "-m", "videomaskfeat", *arguments]


def run_verb(ranks: int, *arguments: str) -> None:
    """Run it to its end; if it fails, the test shows the output of all ranks."""
    ended = subprocess.run(command(ranks, arguments), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
