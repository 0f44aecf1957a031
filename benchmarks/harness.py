"""Measure ours and a plain baseline side by side: alternating rounds, medians, machine, JSON and table."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table


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
    description: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
    }
    return description


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


def save(rows: list[Row], device: str, path: Path) -> None:
    """Write machine, time and rows as JSON."""
    content = {
        "measured": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(device),
        "rows": [{**asdict(row), "times_better": round(row.times_better, 3)} for row in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
