"""Turn SIGTERM and Ctrl-C into a wish to stop that the training loop grants between two steps.

Long work that the loop calls, such as an evaluation, calls :func:`stop_if_requested` now and then.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

from videomaskfeat.errors import RunFailed
from videomaskfeat.processes import SAME_SIGNAL_SECONDS

logger = logging.getLogger(__name__)


class StopRequested(RunFailed):
    """SIGTERM or Ctrl-C came; the training loop saves what it has."""


class StopSignals:
    """While the context is open, SIGTERM and SIGINT only set ``requested``.

    The first signal requests an orderly stop. A second one ends the process at once, as usual, unless it
    comes within two seconds: a terminal and a launcher both pass on the same wish. Outside the main thread,
    where Python allows no handlers, it does nothing.
    """

    _HANDLED = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.requested = False
        self._requested_at = 0.0
        self._earlier: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._earlier = {number: signal.signal(number, self._note) for number in self._HANDLED}
        _open.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _open.remove(self)
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            if time.monotonic() - self._requested_at >= SAME_SIGNAL_SECONDS:
                self._restore()
                signal.raise_signal(number)
            return
        self.requested, self._requested_at = True, time.monotonic()
        logger.warning(
            "%s: the step will be finished and a checkpoint saved; a second one stops at once",
            signal.Signals(number).name,
        )

    def _restore(self) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier = {}


_open: list[StopSignals] = []  # contexts of this process


def stop_if_requested() -> None:
    """Raise if a signal has stopped the running training; outside a training do nothing.

    Raises:
        StopRequested: a signal came.
    """
    if any(signals.requested for signals in _open):
        raise StopRequested("stopped by a signal")
