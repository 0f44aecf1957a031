"""The log of a run: metrics.jsonl, TensorBoard, log.txt and console, all from one flat record per step."""

from __future__ import annotations

import logging
import os
import resource
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import Any

import simplejson
import torch
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn
from rich.text import Text

from videomaskfeat.durations import TimeLeft, duration_text
from videomaskfeat.errors import PlugInFailed, RunFailed, UserError
from videomaskfeat.io import is_file, make_folder, open_file, whole_file, write_failed
from videomaskfeat.plugins import find_class

logger = logging.getLogger(__name__)

Record = Mapping[str, float | int | str | None]
"""One flat line of metrics.jsonl with ``step`` (1: after the first optimizer step), ``epoch`` and metrics."""

_PACKAGE = "videomaskfeat"
_EVALUATION = "evaluation/"  # start of the names of held-out metrics
_LOWER_IS_BETTER = ("loss", "reconstruction")  # ends of the names of such metrics


class StepLogger(ABC):
    """Receives the record of each step on the first rank, besides metrics.jsonl.

    Args:
        folder: the run folder.
        first_step: step of the checkpoint that the run resumes from; 0: a new run. Records of later steps
            that were written before are repeated.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self.folder, self.first_step = folder, first_step

    @abstractmethod
    def write(self, record: Record, step: int) -> None:
        """Log the record of a step."""

    def write_pictures(self, pictures: Sequence[Path], step: int) -> None:  # noqa: B027 - not all show them
        """Log the PNG files of the run, drawn after the last step; called on a new instance."""

    def close(self) -> None:  # noqa: B027 - most loggers write at once
        """Called at the end of the run, also after an error."""


def open_logger(name: str, folder: Path, first_step: int) -> StepLogger:
    """Open a logger of ``run.loggers``: a key of :data:`LOGGERS`, or a plug-in ``package.module:Class``.

    Raises:
        UserError: the name is unknown, or the plug-in cannot be imported or is no :class:`StepLogger`.
        PlugInFailed: the plug-in raised an error.
    """
    build = find_class("run.loggers", name, LOGGERS, StepLogger)
    try:
        return build(folder, first_step)
    except (UserError, RunFailed, OSError):
        raise
    except Exception as error:  # the user's own code can raise anything
        raise PlugInFailed(f"run.loggers {name!r} failed: {type(error).__name__}: {error}") from error


def log_pictures(names: Sequence[str], folder: Path, step: int) -> None:
    """Pass the pictures of a finished run, ``pictures/*.png``, to the loggers that show pictures.

    Args:
        names: names of loggers, see :func:`open_logger`.
        folder: the run folder.
        step: last step of the run.
    """
    pictures = sorted((folder / "pictures").glob("*.png"))
    for name in names if pictures else ():
        build = find_class("run.loggers", name, LOGGERS, StepLogger)
        if build.write_pictures is StepLogger.write_pictures:
            continue
        try:
            with closing(open_logger(name, folder, step)) as one:
                one.write_pictures(pictures, step)
        except OSError as error:
            logger.warning("run.loggers: %s has no pictures (%s)", name, error)


class RunLog:
    """Writes the record of each step to files, loggers and the console.

    ``metrics.jsonl`` has each step exactly once: a resumed run drops the lines after its checkpoint, since
    their steps are repeated. ``log.txt`` has every message of the package and regular progress lines. A
    terminal shows a progress bar; without one the progress line is a message of level INFO.

    Args:
        folder: the run folder; created if it is missing.
        first_step: step of the checkpoint that the run resumes from; 0: a new run.
        total_steps: steps of the whole run.
        unit: name of the samples on the console.
        seconds_between_lines: interval of the progress lines.
        loggers: names of loggers, see :func:`open_logger`.
        evaluation_note: text for the metrics of an evaluation, which is added to their line; None: none.
        terminal: whether to show the bar; None: if stderr is a terminal.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        first_step: int,
        total_steps: int,
        unit: str = "samples",
        seconds_between_lines: float = 5.0,
        loggers: Sequence[str] = ("tensorboard",),
        evaluation_note: Callable[[Mapping[str, float]], str] | None = None,
        terminal: bool | None = None,
    ) -> None:
        self._folder = folder = Path(folder)
        make_folder(folder)
        self._total_steps = total_steps
        self._unit = unit
        self._evaluation_note = evaluation_note
        self._seconds_between_lines = seconds_between_lines
        drop_later_lines(folder / "metrics.jsonl", first_step)
        self._best = BestSoFar(folder / "metrics.jsonl")
        self._open = ExitStack()
        self._metrics = self._open.enter_context(open_file(folder / "metrics.jsonl", "a"))
        self._text = self._open.enter_context(open_file(folder / "log.txt", "a"))
        _attach(self._open, _TextHandler(self._text))
        self._loggers = [
            self._open.enter_context(closing(open_logger(name, folder, first_step))) for name in loggers
        ]
        show_bar = sys.stderr.isatty() if terminal is None else terminal
        self._bar = _Bar(first_step, total_steps, self._open) if show_bar else None
        self._left = TimeLeft()
        self._last_write = time.perf_counter()
        self._last_line = 0.0

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._open.close()
        except OSError as refused:  # an earlier write failed too
            if error is None:
                raise write_failed(self._folder, refused) from refused

    def write(self, record: Record) -> None:
        """Write the record of a step.

        Raises:
            RunFailed: the disk is full, or the run folder was removed.
        """
        # Writing into a removed file succeeds, and the text is lost.
        if not os.path.exists(self._metrics.name):
            raise RunFailed(
                f"{self._folder}: the run folder, or its metrics.jsonl, was removed during the run;"
                " start the same command again, which continues from the newest checkpoint that is left"
            )
        try:
            self._write(record)
        except OSError as error:
            raise write_failed(self._folder, error) from error

    def _write(self, record: Record) -> None:
        self._metrics.write(simplejson.dumps(dict(record), ignore_nan=True) + "\n")
        self._metrics.flush()
        step = int(record["step"] or 0)
        for one in self._loggers:
            one.write(record, step)
        now = time.perf_counter()
        seconds = now - self._last_write
        own = record.get("step_ms")
        step_seconds = own / 1e3 if isinstance(own, (int, float)) else seconds
        self._left.add(step_seconds, between_seconds=seconds - step_seconds)
        self._last_write = now
        results = self._best.update(record)
        if results:
            left = self._left.text(self._total_steps - step)
            if self._evaluation_note is not None:
                metrics = {
                    key.removeprefix(_EVALUATION): float(value)
                    for key, value in record.items()
                    if key.startswith(_EVALUATION) and isinstance(value, (int, float))
                }
                note = self._evaluation_note(metrics)
                results += f"  {note}" if note else ""
            logger.info("held out  step %d/%d  %s  time left %s", step, self._total_steps, results, left)
        numbers = describe(record, unit=self._unit)
        if self._bar is not None:
            self._bar.update(step, numbers, self._left.text(self._total_steps - step))
        if now - self._last_line >= self._seconds_between_lines or step == self._total_steps:
            self._last_line = now
            line = f"{100 * step / self._total_steps:5.1f}%  step {step}/{self._total_steps}  {numbers}"
            line += f"  time left {self._left.text(self._total_steps - step)}"
            if self._bar is None:
                logger.info(line)
            else:
                self._text.write(line + "\n")
                self._text.flush()

    def flush(self) -> None:
        """Write metrics.jsonl to the disk, so that a checkpoint is never ahead of it."""
        try:
            self._metrics.flush()
            os.fsync(self._metrics.fileno())
        except OSError as error:
            raise write_failed(self._folder, error) from error


def describe(record: Record, *, unit: str = "samples") -> str:
    """The numbers of a record as one short line.

    >>> describe({"step": 3, "epoch": 0.5, "loss": 0.25, "step_ms": 4010.0, "failures": 0})
    'epoch 0.50  loss 0.2500  step 4.0 s  failures 0'
    """

    def duration(milliseconds: float) -> str:
        return duration_text(milliseconds / 1e3)

    forms: dict[str, Callable[[Any], str]] = {
        "epoch": "epoch {:.2f}".format,
        "loss": "loss {:.4f}".format,
        "lr": "lr {:.2e}".format,
        "grad_norm": "grad {:.3g}".format,
        "data_ms": lambda value: f"waiting for data {duration(value)}",
        "step_ms": lambda value: f"step {duration(value)}",
        "samples_per_second": lambda value: f"{value:.1f} {unit}/s",
        "memory_mb": "memory {:.0f} MB".format,
        "failures": "failures {}".format,
    }
    return "  ".join(form(record[key]) for key, form in forms.items() if record.get(key) is not None)


class BestSoFar:
    """Results of evaluations as text, with the best value so far of the first metric.

    Args:
        path: metrics.jsonl of the steps before a resume.
    """

    def __init__(self, path: Path) -> None:
        self._best: tuple[str, float, int] | None = None  # name, value, step
        if is_file(path):
            with open_file(path) as file:
                for line in file:
                    if f'"{_EVALUATION}' in line:
                        self.update(simplejson.loads(line))

    def update(self, record: Record) -> str:
        """The results in a record; empty without an evaluation.

        >>> BestSoFar(Path("missing")).update({"step": 5, "evaluation/top1": 31.6667, "evaluation/top5": 80})
        'top1 31.67  top5 80  best top1 31.67 (step 5)'
        """
        results = {
            name.removeprefix(_EVALUATION): float(value)
            for name, value in record.items()
            if name.startswith(_EVALUATION) and isinstance(value, int | float)
        }
        if not results:
            return ""
        first, value = next(iter(results.items()))
        sign = -1 if first.endswith(_LOWER_IS_BETTER) else 1
        if self._best is None or self._best[0] != first or sign * value > sign * self._best[1]:
            self._best = first, value, int(record["step"] or 0)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in results.items())
        return f"{shown}  best {first} {self._best[1]:.4g} (step {self._best[2]})"


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory in MB (10^6 bytes): of the tensors on a GPU, or of this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    # Linux counts in kibibytes, macOS in bytes.
    factor = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * factor / 1e6


def drop_later_lines(path: str | os.PathLike[str], step: int) -> None:
    """Keep the lines of a metrics file up to ``step``, without a line that was cut by a kill."""
    if not is_file(path):
        return
    with open_file(path, "rb") as old, whole_file(path, "wb") as new:
        new.writelines(line for line in old if _step_of(line) <= step)


def _step_of(line: bytes) -> float:
    """The step of a metrics line; infinite if the line is cut."""
    try:
        return int(simplejson.loads(line)["step"]) if line.endswith(b"\n") else float("inf")
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return float("inf")


class _TextHandler(logging.StreamHandler):
    """Writes messages into log.txt; a full disk is reported by the next line of metrics.jsonl."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Print no traceback."""


class _Bar:
    """Two lines at the bottom of a terminal: the newest numbers, and the bar with the time left."""

    def __init__(self, first_step: int, total_steps: int, stack: ExitStack) -> None:
        self._numbers = Text("", overflow="ellipsis", no_wrap=True)
        left = TextColumn("time left {task.fields[left]}")
        columns = (BarColumn(None), TaskProgressColumn(), MofNCompleteColumn(), left)
        self._progress = Progress(*columns, expand=True)
        self._task = self._progress.add_task("", total=total_steps, completed=first_step, left="unknown")
        group = Group(self._numbers, self._progress)
        plain = sys.stderr
        stack.enter_context(Live(group, console=Console(stderr=True), refresh_per_second=4, transient=True))
        # The bar replaced sys.stderr by a proxy that prints above it; handlers still write to the old one.
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is plain:
                handler.setStream(sys.stderr)
                stack.callback(handler.setStream, plain)

    def update(self, step: int, numbers: str, left: str) -> None:
        self._numbers.plain = numbers
        self._progress.update(self._task, completed=step, left=left)


def _attach(stack: ExitStack, handler: logging.Handler) -> None:
    """Pass every message of the package to a handler until the stack closes."""
    package = logging.getLogger(_PACKAGE)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    stack.callback(package.setLevel, package.level)
    stack.callback(package.removeHandler, handler)
    package.addHandler(handler)
    package.setLevel(logging.INFO)


LOGGERS: dict[str, str] = {
    "tensorboard": "videomaskfeat.engine.event_files:TensorBoard",
    "wandb": "videomaskfeat.engine.services:WeightsAndBiases",
    "mlflow": "videomaskfeat.engine.services:MLflow",
}
"""Loggers by name in ``run.loggers``, as "module:class"."""
