"""Turn SIGTERM and Ctrl-C into a wish to stop that the training loop grants between two steps."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

logger = logging.getLogger(__name__)


class StopSignals:
    """While the context is open, SIGTERM and SIGINT only set ``requested``.

    The first signal asks for an orderly stop. It also puts the earlier handlers back, so a second one ends
    the process at once, as usual. Outside the main thread, where Python allows no handlers, it does nothing.
    """

    _HANDLED = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.requested = False
        self._earlier: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._earlier = {number: signal.signal(number, self._note) for number in self._HANDLED}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()
        logger.warning(
            "%s: the step will be finished and a checkpoint saved; a second one stops at once",
            signal.Signals(number).name,
        )

    def _restore(self) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier = {}
