"""What a run says: metrics.jsonl, TensorBoard, log.txt and console, all views of one flat record a step."""

from __future__ import annotations

import logging
import os
import resource
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import simplejson
import torch
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TimeRemainingColumn
from rich.text import Text

from videomaskfeat.io import is_file, make_folder, open_file

logger = logging.getLogger(__name__)

Record = Mapping[str, float | int | str | None]
"""One flat line of metrics.jsonl; always with ``step`` (1 = after the first optimiser step) and ``epoch``."""

_PACKAGE = "videomaskfeat"


class RunLog:
    """Writes the record of each step to every place where someone looks.

    ``metrics.jsonl`` gets each step exactly once: when a run is resumed, lines behind the checkpoint are
    dropped (their steps come again). ``log.txt`` gets every message of the package, and a progress line now
    and then. On a terminal a progress bar stands at the bottom; elsewhere the progress line is a message of
    level INFO.

    Args:
        folder: the run folder; created if need be.
        first_step: steps done before this start (0, or that of the checkpoint).
        total_steps: steps of the whole run, for percent and time left.
        unit: what a sample is called on the console.
        seconds_between_lines: how often a progress line is written.
        tensorboard: also write ``tensorboard/``.
        terminal: show the bar; None decides by whether stderr is a terminal.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        first_step: int,
        total_steps: int,
        unit: str = "samples",
        seconds_between_lines: float = 5.0,
        tensorboard: bool = True,
        terminal: bool | None = None,
    ) -> None:
        folder = Path(folder)
        make_folder(folder)
        self._first_step, self._total_steps = first_step, total_steps
        self._unit = unit
        self._seconds_between_lines = seconds_between_lines
        drop_later_lines(folder / "metrics.jsonl", first_step)
        self._open = ExitStack()
        self._metrics = self._open.enter_context(open_file(folder / "metrics.jsonl", "a"))
        self._text = self._open.enter_context(open_file(folder / "log.txt", "a"))
        _attach(self._open, logging.StreamHandler(self._text))
        self._board = _tensorboard(folder, first_step, self._open) if tensorboard else None
        show_bar = sys.stderr.isatty() if terminal is None else terminal
        self._bar = _Bar(first_step, total_steps, self._open) if show_bar else None
        self._started = time.perf_counter()
        self._last_line = 0.0

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def write(self, record: Record) -> None:
        """Take in one step's record."""
        self._metrics.write(simplejson.dumps(dict(record), ignore_nan=True) + "\n")
        self._metrics.flush()
        step = int(record["step"] or 0)
        if self._board is not None:
            for key, value in record.items():
                if key != "step" and isinstance(value, (int, float)):
                    self._board.add_scalar(key, value, step)
        numbers = describe(record, unit=self._unit)
        if self._bar is not None:
            self._bar.update(step, numbers)
        now = time.perf_counter()
        if now - self._last_line >= self._seconds_between_lines or step == self._total_steps:
            self._last_line = now
            left = (now - self._started) / max(step - self._first_step, 1) * (self._total_steps - step)
            line = f"{100 * step / self._total_steps:5.1f}%  step {step}/{self._total_steps}  {numbers}"
            line += f"  left {timedelta(seconds=round(left))}"
            if self._bar is None:
                logger.info(line)
            else:  # the terminal shows the same as a bar
                self._text.write(line + "\n")
                self._text.flush()

    def flush(self) -> None:
        """Bring metrics.jsonl to the disk, so that it is never behind a checkpoint."""
        self._metrics.flush()
        os.fsync(self._metrics.fileno())


def describe(record: Record, *, unit: str = "samples") -> str:
    """The numbers of a record as one short line; those it lacks are left out.

    >>> describe({"step": 3, "epoch": 0.5, "loss": 0.25, "failures": 0})
    'epoch 0.50  loss 0.2500  failures 0'
    """
    forms = {
        "epoch": "epoch {:.2f}",
        "loss": "loss {:.4f}",
        "lr": "lr {:.2e}",
        "grad_norm": "grad {:.3g}",
        "data_ms": "data {:.0f} ms",
        "step_ms": "step {:.0f} ms",
        "samples_per_second": "{:.1f} " + unit + "/s",
        "memory_mb": "memory {:.0f} MB",
        "failures": "failures {}",
    }
    return "  ".join(form.format(record[key]) for key, form in forms.items() if record.get(key) is not None)


def peak_memory_mb(device: torch.device) -> float:
    """The most memory used so far in MB (10^6 bytes): of the GPU's tensors, or of this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    # Linux counts in kibibytes, macOS in bytes.
    factor = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * factor / 1e6


def drop_later_lines(path: str | os.PathLike[str], step: int) -> None:
    """Keep the lines of a metrics file up to ``step``; a line cut by a kill goes too.

    The shorter file is written beside the old one and takes its place at once.
    """
    if not is_file(path):
        return
    temporary = f"{os.fspath(path)}.tmp"
    with open_file(path, "rb") as old, open_file(temporary, "wb") as new:
        new.writelines(line for line in old if _step_of(line) <= step)
        new.flush()
        os.fsync(new.fileno())
    os.replace(temporary, path)


def _step_of(line: bytes) -> float:
    """The step of a metrics line; infinite for one that is cut."""
    try:
        return int(simplejson.loads(line)["step"]) if line.endswith(b"\n") else float("inf")
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return float("inf")


class _Bar:
    """Two lines at the bottom of a terminal: the bar with the time left, and the newest numbers."""

    def __init__(self, first_step: int, total_steps: int, stack: ExitStack) -> None:
        self._numbers = Text("", overflow="ellipsis", no_wrap=True)
        columns = (BarColumn(None), TaskProgressColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, expand=True, speed_estimate_period=60.0)
        self._task = self._progress.add_task("", total=total_steps, completed=first_step)
        group = Group(self._numbers, self._progress)
        plain = sys.stderr
        stack.enter_context(Live(group, console=Console(stderr=True), refresh_per_second=4, transient=True))
        # The bar replaced sys.stderr by a proxy that prints above it; log handlers still hold the plain one.
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is plain:
                handler.setStream(sys.stderr)
                stack.callback(handler.setStream, plain)

    def update(self, step: int, numbers: str) -> None:
        self._numbers.plain = numbers
        self._progress.update(self._task, completed=step)


def _attach(stack: ExitStack, handler: logging.Handler) -> None:
    """Let a handler see every message of the package until the stack closes."""
    package = logging.getLogger(_PACKAGE)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    stack.callback(package.setLevel, package.level)
    stack.callback(package.removeHandler, handler)
    package.addHandler(handler)
    package.setLevel(logging.INFO)


def _tensorboard(folder: Path, first_step: int, stack: ExitStack) -> Any:
    """A TensorBoard writer that hides the points behind ``first_step`` of an interrupted run."""
    from torch.utils.tensorboard import SummaryWriter  # slow to import, and not every run wants it

    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1 if first_step else None)
    stack.callback(writer.close)
    return writer
