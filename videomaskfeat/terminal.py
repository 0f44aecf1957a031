"""Exit codes, one-line messages, progress and Ctrl-C of the verbs."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from videomaskfeat.texts import printable

DONE, FAILED, MISTAKE, SOME_FAILED, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit codes. SOME_FAILED: the work is done, except for unreadable videos."""
_PROGRESS_SECONDS = 5.0  # between two lines of a log
_END_SECONDS = 20.0  # time for a regular end after Ctrl-C


def one_line(error: Exception | str) -> str:
    """The message on one line of printable characters."""
    return printable(" ".join(str(error).split()))


def report_failures(verb: str, failures: Iterable[Any]) -> int:
    """Print each failure as one line on stderr, and return the exit code."""
    lines = [one_line(f"videomaskfeat {verb}: {failure}") for failure in failures]
    for line in lines:
        print(line, file=sys.stderr)
    return SOME_FAILED if lines else DONE


class PrintableFormatter(logging.Formatter):
    """Formats messages with file names, which may contain any bytes."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show progress on stderr: a bar on a terminal, otherwise a line every few seconds.

    Yields:
        A function of the completed number and the total.
    """
    if not sys.stderr.isatty():
        yield _print_lines(title)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _print_lines(title: str) -> Callable[[int, int], None]:
    last = time.monotonic()

    def update(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done == total or now - last >= _PROGRESS_SECONDS:
            last = now
            print(f"{title}: {done} of {total}", file=sys.stderr, flush=True)

    return update


class Interrupts:
    """Raises KeyboardInterrupt at Ctrl-C and sets ``came``; the earlier handler gets a second Ctrl-C.

    During an import, Ctrl-C ends the process at once with one line and exit code 130, since the import could
    ignore the exception or turn it into another error. Otherwise the process has 20 seconds to end, since an
    exception in a finalizer is lost.
    """

    def __init__(self, verb: str) -> None:
        self.came = False
        self._verb = verb
        self._earlier: Any = None
        self._last_resort = threading.Timer(_END_SECONDS, self._end)
        self._last_resort.daemon = True

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._earlier = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._last_resort.cancel()
        if self._earlier is not None:
            signal.signal(signal.SIGINT, self._earlier)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if _is_importing(frame):
            self._end()
        if not self.came:
            self._last_resort.start()
        if self.came and callable(self._earlier):
            self._earlier(number, frame)
        self.came = True
        raise KeyboardInterrupt

    def _end(self) -> None:
        os.write(2, f"videomaskfeat {self._verb}: interrupted\n".encode())
        os._exit(INTERRUPTED)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
