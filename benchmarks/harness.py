"""Measurements of ours and a plain baseline: rounds in turn, medians, machine, JSON and table."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Row:
    """One measured pair.

    Args:
        name: name of the measurement.
        ours: value of this package.
        baseline: value of the plain implementation, or a budget if the note states so.
        unit: unit of both values.
        better: whether lower or higher values are better.
        target: target in words; empty if there is no target.
        note: explanation of the values.
    """

    name: str
    ours: float
    baseline: float
    unit: str
    better: Literal["lower", "higher"] = "lower"
    target: str = ""
    note: str = ""

    @property
    def times_better(self) -> float:
        """The ratio by which ours is better; below 1 if it is worse."""
        ratio = self.baseline / self.ours if self.ours else float("nan")
        return ratio if self.better == "lower" or not ratio else 1 / ratio


@dataclass(frozen=True)
class Size:
    """Size of a step.

    Attributes:
        batch: clips per batch.
        clip: frames, rows and columns of pixels.
        depth: blocks of the network; 16 is MViTv2-S whole.
        rounds: timed steps.
        precisions: measured precisions.
    """

    batch: int
    clip: tuple[int, int, int]
    depth: int
    rounds: int
    precisions: tuple[str, ...] = ("fp32", "bf16")


SIZES = {
    "cpu": Size(2, (16, 224, 224), 16, 5),
    "cuda": Size(16, (16, 224, 224), 16, 15),  # two clips would measure how fast Python starts kernels
    "dry": Size(1, (4, 64, 64), 4, 1, ("fp32",)),
}


def size_name(device: str, dry: bool) -> str:
    """Which of SIZES is measured."""
    return "dry" if dry else torch.device(device).type


def alternate(
    functions: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 1, device: str = "cpu"
) -> dict[str, float]:
    """Median seconds of each function. They run in turn, so that a busy machine slows all of them equally."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(warmup + rounds):
        for name, function in functions.items():
            elapsed = _seconds(function, device)
            if number >= warmup:
                seconds[name].append(elapsed)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _seconds(function: Callable[[], object], device: str) -> float:
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


@contextmanager
def full_float32() -> Iterator[None]:
    """Disable TF32 for comparisons: cuDNN's convolutions use it by default."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def synchronize(device: str) -> None:
    """Wait for a GPU; does nothing on a CPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def extra_memory(function: Callable[[], object], device: str) -> float:
    """Peak memory of a call beyond the memory in use before, in MiB.

    On the CPU it reads the peak resident size of the process, which never falls: call it once per process.
    It reads /proc, since getrusage of a new process includes the peak of its parent.
    """
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        synchronize(device)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = _resident_kibibytes("VmRSS")
    function()
    return (_resident_kibibytes("VmHWM") - before) / 2**10


def _resident_kibibytes(field: str) -> int:
    """Current (VmRSS) or peak (VmHWM) resident memory of this process."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")


def private_megabytes(pid: int | None = None) -> float:
    """Unshared memory of a process in MB (Linux): the cost of one more process of this kind."""
    with open(f"/proc/{os.getpid() if pid is None else pid}/smaps_rollup", encoding="ascii") as file:
        kilobytes = [int(line.split()[1]) for line in file if line.startswith("Private_")]
    return sum(kilobytes) / 1024


class SideProcess:
    """One side of a benchmark in another process, which answers requests by :func:`serve`.

    Args:
        module: module to run, such as ``benchmarks.bench_step``.
        arguments: its command-line arguments.
    """

    def __init__(self, module: str, *arguments: str) -> None:
        self._command = [sys.executable, "-m", module, *arguments]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(self._command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)

    def request(self, line: str) -> Any:
        """Send one line, and return the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"`{' '.join(self._command)}` ended with {self._process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def serve(answer: Callable[[str], Any]) -> None:
    """Answer the requests on standard input, one per line, as JSON lines."""
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(line.strip())) + "\n")
        sys.stdout.flush()


def machine(device: str) -> dict[str, Any]:
    """Description of the machine."""
    on_gpu = device.startswith("cuda")
    description: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "commit": commit(),
    }
    if on_gpu:
        description["cuda"] = torch.version.cuda
        description["gpu_memory_mib"] = torch.cuda.get_device_properties().total_memory // 2**20
    return description


def commit() -> str:
    """The measured commit, from VIDEOMASKFEAT_COMMIT or git."""
    if known := os.environ.get("VIDEOMASKFEAT_COMMIT"):
        return known
    command = ["git", "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def other_load(device: str) -> dict[str, Any]:
    """Load of the machine by other programs; call it before the first measurement.

    Returns:
        ``cpu_busy_share`` (0..1 over all cores, None if /proc/stat is missing), ``gpu_memory_in_use_mib`` (on
        a GPU), and ``busy``: 20 % of the CPU or 1 GiB of the GPU is in use.
    """
    share = _cpu_busy_share()
    load: dict[str, Any] = {"cpu_busy_share": share}
    used = 0
    if device.startswith("cuda"):
        free, total = torch.cuda.mem_get_info()
        used = (total - free) // 2**20  # includes about 500 MiB of this process's context
        load["gpu_memory_in_use_mib"] = used
    return {**load, "busy": (share or 0.0) > 0.2 or used > 1024}


def _cpu_busy_share(seconds: float = 0.3) -> float | None:
    try:
        before = _cpu_times()
        time.sleep(seconds)
        after = _cpu_times()
    except (OSError, ValueError):
        return None
    total, idle = (later - sooner for sooner, later in zip(before, after, strict=True))
    return round(1 - idle / total, 3) if total > 0 else None


def _cpu_times() -> tuple[int, int]:
    """Total ticks and idle ticks of all cores since the start."""
    first = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
    ticks = [int(value) for value in first.split()[1:]]
    return sum(ticks[:8]), sum(ticks[3:5])


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def show(rows: list[Row], device: str) -> None:
    """Print the table."""
    about = machine(device)
    title = f"{about['cpu']}, {about['threads']} threads, torch {about['torch']}, {about['device']}"
    table = Table(title=title)
    for heading in ("measured", "ours", "baseline", "unit", "times better", "target", "note"):
        table.add_column(heading, justify="right" if heading in {"ours", "baseline"} else "left")
    for row in rows:
        figures = (f"{row.ours:.4g}", f"{row.baseline:.4g}", row.unit, f"{row.times_better:.2f}x")
        table.add_row(row.name, *figures, row.target, row.note)
    Console().print(table)


def save(
    rows: list[Row],
    device: str,
    path: Path,
    *,
    other: Mapping[str, Any],
    failed: Mapping[str, str] | None = None,
    dry: bool = False,
) -> None:
    """Write machine, time and rows as JSON.

    Args:
        rows: the measurements.
        device: measured device.
        path: JSON file.
        other: result of :func:`other_load` before the first measurement.
        failed: failed benchmarks with causes.
        dry: whether this is a dry run with tiny sizes and meaningless values.
    """
    content = {
        "measured": now(),
        "machine": {**machine(device), **other},
        **({"dry": True} if dry else {}),
        "rows": [{**asdict(row), "times_better": round(row.times_better, 3)} for row in rows],
        **({"failed": dict(failed)} if failed else {}),
    }
    write_json(path, content)


def now() -> str:
    """The date and time of a measurement."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def write_json(path: Path, content: Any) -> None:
    """Write plain data as indented JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
