"""Runs cases one after another in a child process, the victim, and monitors its time and memory.

The parent does not import the package: it survives whatever a case does to the victim.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
KINDS = ("media", "lists", "configs", "checkpoints", "weights", "other_weights")
_POLL_SECONDS = 0.02
_STALL_SECONDS = 0.2  # between two checks of a victim; a longer time is not caused by the victim
_READY_SECONDS = 180.0  # imports and sample files, on a busy machine
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Bounds:
    """Limits of a case.

    Attributes:
        seconds: wall time, without the time that its processes waited for a processor.
        growth_bytes: growth of the resident memory of the victim and its children during the case.
    """

    seconds: float = 20.0
    growth_bytes: int = 2 << 30


@dataclass(frozen=True)
class Finding:
    """A case that failed.

    Attributes:
        kind: kind of the input.
        seed: seed of the case.
        entry: entry point that was called.
        what: traceback, crash, hang, growth.
        detail: traceback, or the last lines of the victim's output.
        folder: folder with the input.
    """

    kind: str
    seed: int
    entry: str
    what: str
    detail: str
    folder: Path

    @property
    def signature(self) -> str:
        """The same for findings with one cause: the error's type and the innermost line of the package."""
        frames = re.findall(r'File ".*?/(videomaskfeat/[^"]+)", line (\d+)(?:,)? in (\S+)', self.detail)
        if self.what != "traceback":
            frames = frames[:1]  # the dump of a crash lists the innermost frame first
        error = re.findall(r"^([A-Za-z_][\w.]*)(?::|$)", self.detail, re.MULTILINE)
        place = ":".join(frames[-1]) if frames else self.entry
        return f"{self.what} {error[-1] if error and self.what == 'traceback' else ''} {place}"

    def __str__(self) -> str:
        text = (
            f"{self.kind} {self.seed}: {self.what} in {self.entry}\n{self.detail.rstrip()}\n"
            f"input: {self.folder}\nrepeat: python -m tests.fuzz {self.kind} {self.seed}"
        )
        return text.encode(errors="backslashreplace").decode()  # names may hold lone surrogates


@dataclass
class Outcome:
    """The outcome of all cases of a kind.

    Attributes:
        kind: kind of the inputs.
        entries: number of cases per first word of their entry.
        refused: number of cases with a documented error or an exit code other than 0.
        findings: the cases that failed.
        seconds: wall time, without the start of the victim.
    """

    kind: str
    entries: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def cases(self) -> int:
        """Number of cases."""
        return self.entries.total()

    def __str__(self) -> str:
        entries = ", ".join(f"{name} {count}" for name, count in sorted(self.entries.items()))
        return (
            f"fuzz {self.kind}: {self.cases} cases in {self.seconds:.0f} s, {self.refused} refused, "
            f"{len(self.findings)} failed ({entries})"
        )

    def report(self) -> str:
        """Each cause with the number of its cases and the first one."""
        causes: dict[str, list[Finding]] = {}
        for finding in self.findings:
            causes.setdefault(finding.signature, []).append(finding)
        listed = [f"[{len(failures)} cases] {failures[0]}" for failures in causes.values()]
        return "\n\n".join([str(self), *listed])


class Victim:
    """A child process that runs cases of one kind, ready after the constructor.

    Args:
        module: module of the kind; see ``victim.py``.
        folder: folder for sample files, files of the case and the output.
    """

    def __init__(self, module: str, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.pipe, theirs = Pipe()
        self.output = folder / "output.txt"
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.fuzz.victim", module, str(folder), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=ROOT,
                env=_environment(),
                start_new_session=True,
            )
        theirs.close()
        deadline = time.monotonic() + _READY_SECONDS
        while (message := self.receive()) is None:
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.close()
                raise RuntimeError(f"the victim of {module} did not start:\n{self.last_lines()}")
        assert message["type"] == "ready"

    def receive(self) -> dict[str, Any] | None:
        """The next message; None if no message arrives soon or the process is dead."""
        try:
            return self.pipe.recv() if self.pipe.poll(_POLL_SECONDS) else None
        except (EOFError, ConnectionResetError):
            time.sleep(_POLL_SECONDS)
            return None

    def last_lines(self, count: int = 40) -> str:
        """The end of its output."""
        lines = self.output.read_text(errors="replace").splitlines()
        return "\n".join([line for line in lines if not line.startswith("Extension modules:")][-count:])

    def stop_with_stack(self) -> None:
        """Let its fault handler write the stack, on SIGABRT, and end it."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGABRT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(2.0)
        self.close()

    def close(self) -> None:
        """End it and all its children."""
        self.pipe.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def fuzz(
    kind: str,
    *,
    seconds: float,
    keep: Path,
    first: int = 0,
    cases: int | None = None,
    bounds: Bounds = Bounds(),
    module: str | None = None,
) -> Outcome:
    """Run the cases ``first``, ``first + 1``, ... of a kind.

    Args:
        kind: kind of the inputs.
        seconds: maximum wall time, without the start of the first victim.
        keep: folder for all files; inputs of failed cases remain there.
        first: seed of the first case.
        cases: maximum number of cases.
        bounds: limits of a case.
        module: Python module that makes the cases; default: that of the kind.
    """
    module = module or f"tests.fuzz.{kind}"
    victim = Victim(module, keep / kind)
    outcome = Outcome(kind)
    started = time.monotonic()
    seed = first
    try:
        while (cases is None or seed < first + cases) and time.monotonic() < started + seconds:
            finding = _run(victim, kind, seed, bounds, outcome, keep)
            if finding is not None:
                outcome.findings.append(finding)
                if finding.what != "traceback":
                    victim.close()
                    victim = Victim(module, keep / kind)
            seed += 1
    finally:
        victim.close()
        shutil.rmtree(keep / kind, ignore_errors=True)
    outcome.seconds = time.monotonic() - started
    return outcome


def _run(
    victim: Victim, kind: str, seed: int, bounds: Bounds, outcome: Outcome, keep: Path
) -> Finding | None:
    """Run a case and monitor it; a victim that does not answer is ended."""

    def finding(what: str, detail: str) -> Finding:
        return _saved(victim, Finding(kind, seed, entry, what, detail, keep / f"{kind}-{seed}"))

    victim.pipe.send(seed)
    entry = "the making of the input"
    clock, base = _Clock(victim.process.pid), _memory(victim.process.pid)
    while (message := victim.receive()) is None or message["type"] == "start":
        if message is not None:
            entry = message["entry"]
            clock, base = _Clock(victim.process.pid), _memory(victim.process.pid)
            continue
        what = ""
        if (code := victim.process.poll()) is not None:
            what = f"crash ({signal.Signals(-code).name if code < 0 else f'exit {code}'})"
        elif clock.passed(bounds.seconds):
            what = "hang"
        elif _memory(victim.process.pid) - base > bounds.growth_bytes:
            what = "growth"
        if what:
            victim.stop_with_stack()
            outcome.entries[entry.split()[0]] += 1
            return finding(what, victim.last_lines())
    outcome.entries[entry.split()[0]] += 1
    outcome.refused += message["outcome"] == "refused"
    if message["outcome"] == "failed":
        return finding("traceback", message["detail"])
    if message["growth"] > bounds.growth_bytes:
        return finding(f"growth ({message['growth'] >> 20} MB)", victim.last_lines())
    return None


class _Clock:
    """The time of a process, without that in which the machine stood still or others had the processor."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._last = time.monotonic()
        self._seen = 0.0
        self._waited = _waited_seconds(pid)

    def passed(self, seconds: float) -> bool:
        """Whether it had this much time, or four times as much with waiting. Call it often."""
        now = time.monotonic()
        # If the machine stands still or is too busy for this process too, the case does not cause it.
        self._seen += min(now - self._last, _STALL_SECONDS)
        self._last = now
        if self._seen <= seconds:
            return False
        waited = _waited_seconds(self._pid) - self._waited
        return self._seen - waited > seconds or self._seen > 4 * seconds


def _saved(victim: Victim, finding: Finding) -> Finding:
    """Move the files of the case, which may be pipes and sparse files, to the folder of the finding."""
    shutil.rmtree(finding.folder, ignore_errors=True)
    case = victim.folder / "case"
    if case.exists():
        case.rename(finding.folder)
    finding.folder.mkdir(exist_ok=True)
    (finding.folder / "FINDING.txt").write_text(str(finding) + "\n")
    return finding


def _environment() -> Mapping[str, str]:
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",  # a name in a damaged config must not reach the network
        "PYTHONIOENCODING": "utf-8",
        "PYTHONPATH": str(ROOT),
    }


def _family(pid: int) -> list[int]:
    """The process and its visible descendants."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = _read(f"/proc/{name}/stat").rpartition(")")[2].split()
            if len(fields) > 1:
                parents[int(name)] = int(fields[1])
    family = [pid]
    for parent in family:
        family += [child for child, its in parents.items() if its == parent]
    return family


def _memory(pid: int) -> int:
    """Resident bytes of a process and its descendants; shared memory counts for each."""
    pages = (_read(f"/proc/{one}/statm").split() for one in _family(pid))
    return sum(int(fields[1]) for fields in pages if len(fields) > 1) * _PAGE


def _waited_seconds(pid: int) -> float:
    """Time in which a process and its descendants were ready to run while others had the processor."""
    fields = (_read(f"/proc/{one}/schedstat").split() for one in _family(pid))
    return sum(int(one[1]) for one in fields if len(one) > 1) / 1e9


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:  # the process has ended
        return ""
