"""Measure ours and a plain baseline side by side: alternating rounds, medians, machine, JSON and table."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
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
        name: what was measured.
        ours: the figure of this package.
        baseline: the figure of the plain way (or the budget, where the note says so).
        unit: of both figures.
        better: whether the lower or the higher figure is the better one.
        target: what is aimed for, in words; empty where nothing is promised.
        note: anything needed to read the figures.
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
        """How many times better ours is; below 1 where it is worse."""
        ratio = self.baseline / self.ours if self.ours else float("nan")
        return ratio if self.better == "lower" or not ratio else 1 / ratio


@dataclass(frozen=True)
class Size:
    """How much work a step is.

    Attributes:
        batch: clips.
        clip: frames, rows and columns of pixels.
        depth: blocks of the network; 16 is MViTv2-S whole.
        rounds: timed steps.
        precisions: that are measured.
    """

    batch: int
    clip: tuple[int, int, int]
    depth: int
    rounds: int
    precisions: tuple[str, ...] = ("fp32", "bf16")


SIZES = {
    "cpu": Size(2, (16, 224, 224), 16, 5),
    "cuda": Size(16, (16, 224, 224), 16, 30),  # two clips would measure how fast Python starts kernels
    "dry": Size(1, (4, 64, 64), 4, 1, ("fp32",)),
}


def size_name(device: str, dry: bool) -> str:
    """Which of SIZES is measured."""
    return "dry" if dry else torch.device(device).type


def alternate(
    functions: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 1, device: str = "cpu"
) -> dict[str, float]:
    """Median seconds of each function, run in turns so that a busy machine slows all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(warmup + rounds):
        for name, function in functions.items():
            elapsed = _seconds(function, device)
            if number >= warmup:
                seconds[name].append(elapsed)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _seconds(function: Callable[[], object], device: str) -> float:
    synchronise(device)
    start = time.perf_counter()
    function()
    synchronise(device)
    return time.perf_counter() - start


@contextmanager
def full_float32() -> Iterator[None]:
    """Products of float32 in float32, for comparisons: on a GPU cuDNN's convolutions use TF32 by default."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def synchronise(device: str) -> None:
    """Wait for a GPU; nothing elsewhere."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def extra_memory(function: Callable[[], object], device: str) -> float:
    """MiB that a call needs at its peak beyond what was in use before.

    On the CPU it reads the highest resident size of the process, which never falls: call it once a process.
    It comes from /proc and not from getrusage, which hands a new process the peak of the one that started it.
    """
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        synchronise(device)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = _resident_kibibytes("VmRSS")
    function()
    return (_resident_kibibytes("VmHWM") - before) / 2**10


def _resident_kibibytes(field: str) -> int:
    """Resident memory of this process now (VmRSS) or at its highest (VmHWM)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
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
    """The commit that is measured; a copy without its history gets it from VIDEOMASKFEAT_COMMIT."""
    known = os.environ.get("VIDEOMASKFEAT_COMMIT")
    if known:
        return known
    command = ["git", "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def other_load(device: str) -> dict[str, Any]:
    """What else runs on the machine; take it before anything is measured.

    Returns:
        ``cpu_busy_share`` (0..1 over all cores, None where /proc/stat does not count),
        ``gpu_memory_in_use_mib`` (on a GPU), and ``busy``: a fifth of the processor or 1 GiB of the GPU is
        in use.
    """
    share = _cpu_busy_share()
    found: dict[str, Any] = {"cpu_busy_share": share}
    used = 0
    if device.startswith("cuda"):
        free, total = torch.cuda.mem_get_info()
        used = (total - free) // 2**20  # the context of this process is some 500 MiB of it
        found["gpu_memory_in_use_mib"] = used
    return {**found, "busy": (share or 0.0) > 0.2 or used > 1024}


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
    """Ticks of all cores since the start, and those that they were idle."""
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
        rows: measured so far.
        device: they were measured on.
        path: of the file.
        other: from :func:`other_load`, before the first was measured.
        failed: benchmarks that failed, and why.
        dry: whether the sizes are those of a dry run, whose figures mean nothing.
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
    """Write plain data for people and programs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
