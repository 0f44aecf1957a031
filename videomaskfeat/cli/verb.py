"""What the verbs share: exit codes, how one is added, and messages on one line."""

from __future__ import annotations

import argparse
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from videomaskfeat.texts import printable

_END_SECONDS = 20.0  # for an end in order after Ctrl-C

DONE, FAILED, MISTAKE, SOME_FAILED, INTERRUPTED = 0, 1, 2, 3, 130


def add_verb(
    verbs: Any, name: str, run: Callable[[argparse.Namespace], int], *, summary: str, examples: str
) -> argparse.ArgumentParser:
    """Add a verb with its one-line summary, its examples and the function that runs it."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=summary,
        description=summary,
        epilog="examples:\n" + examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


class Interrupts:
    """Raises KeyboardInterrupt at Ctrl-C and remembers that it came; a second one is the earlier handler's.

    While a module is being imported, Ctrl-C ends the process at once with one line and 130: the import would
    pass the exception over, or turn it into an error of its own. Elsewhere the process has 20 seconds to end:
    an exception in a finalizer, which can run at any moment, is lost.
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


def one_line(error: Exception | str) -> str:
    """The message on one line that any stream can print, however the user's paths and values are spelt."""
    return printable(" ".join(str(error).split()))
