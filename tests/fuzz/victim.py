"""The child process of a campaign: ``python -m tests.fuzz.victim MODULE FOLDER PIPE``.

MODULE makes the cases: ``prepare(material)`` writes whole sample files into a folder, once, and
``make_case(seed, material, folder)`` writes an input into an empty folder and returns a Case.
"""

from __future__ import annotations

import ctypes
import faulthandler
import importlib
import io
import os
import re
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Case:
    """An input, and the entry point that reads it.

    Attributes:
        entry: description; its first word is the name of the entry point.
        run: calls the entry point.
        allowed: errors that the entry point documents, besides UserError and RunFailed.
    """

    entry: str
    run: Callable[[], object]
    allowed: tuple[type[BaseException], ...] = ()


class Refused(Exception):
    """A verb ended with the exit code of a reported error."""


def verb(*arguments: str | Path) -> Case:
    """A command line of the package."""
    texts = [os.fspath(argument) for argument in arguments]

    def run() -> None:
        from videomaskfeat.cli import main

        try:
            code = main(texts)
        except SystemExit as stopped:  # from argparse
            code = stopped.code if isinstance(stopped.code, int) else 1
        assert code in (0, 1, 2, 3), f"exit code {code}"
        if code:
            raise Refused(code)

    return Case(" ".join([texts[0], *map(ascii, texts[1:])]), run, allowed=(Refused,))


def run_case(case: Case) -> dict[str, Any]:
    """Run a case and return its outcome."""
    from videomaskfeat.errors import RunFailed, UserError

    # A verb may have closed or replaced these. Names that are not UTF-8 must not raise here either.
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), encoding="utf-8", line_buffering=True)
    sys.stderr = io.TextIOWrapper(
        io.FileIO(2, "w", closefd=False), encoding="utf-8", errors="backslashreplace", line_buffering=True
    )
    before, peak = _memory("VmRSS"), "VmHWM"
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    except OSError:  # not on every machine; then short allocations are not measured
        peak = "VmRSS"
    outcome, detail = "read", ""
    try:
        case.run()
    except (UserError, RunFailed, *case.allowed):
        outcome = "refused"
    except BaseException:
        outcome, detail = "failed", traceback.format_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    output = Path("/proc/self/fd/2").read_text(errors="replace")
    if outcome != "failed" and re.search(r"^Traceback \(most recent call last\)", output, re.MULTILINE):
        outcome, detail = "failed", f"a traceback in the output:\n{output[-8000:]}"
    return {"type": "done", "outcome": outcome, "detail": detail, "growth": _memory(peak) - before}


def _memory(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+)", status)[1]) << 10  # type: ignore[index]


def make_case(maker: Any, seed: int, material: Path, folder: Path) -> Case:
    """The case of a seed; the folder is emptied and becomes the current folder."""
    os.chdir(material)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    os.chdir(folder)
    return maker.make_case(seed, material, folder)


def main(module: str, folder: Path, descriptor: int) -> None:
    """Run the cases of the seeds in the pipe until it is closed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.enable()
    os.set_inheritable(descriptor, False)
    pipe = Connection(descriptor)
    maker = importlib.import_module(module)
    material = folder / "material"
    if not (folder / "prepared").exists():
        shutil.rmtree(material, ignore_errors=True)
        material.mkdir()
        maker.prepare(material)
        (folder / "prepared").touch()
    pipe.send({"type": "ready"})
    while True:
        try:
            seed = pipe.recv()
        except EOFError:
            return
        os.ftruncate(1, 0)
        case = make_case(maker, seed, material, folder / "case")
        pipe.send({"type": "start", "entry": case.entry})
        pipe.send(run_case(case))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
