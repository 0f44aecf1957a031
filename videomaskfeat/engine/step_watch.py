"""Ends a process whose step takes too long, with rank, step, samples and position in the code."""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from torch import Tensor

from videomaskfeat.engine import distributed
from videomaskfeat.errors import RunFailed

logger = logging.getLogger(__name__)

_FRAMES = 8  # of the stack in the message
_SAMPLES = 8  # named in the message
_STDERR = 2
# After the limit. A call that holds Python's lock stops every Python thread, also that of the message. Then
# faulthandler, which needs no lock, prints the stack and ends the process.
_LOCKED_SECONDS = 30.0


class StepWatch:
    """Watches the steps of a training while the context is open.

    Args:
        limit_seconds: time of a step after which the process ends with exit code 1; 0: never.
        name_of: index of a sample -> its name in messages, such as the path of its video.
    """

    def __init__(self, *, limit_seconds: float, name_of: Callable[[int], str] = str) -> None:
        self._limit_seconds, self._name_of = limit_seconds, name_of
        self._step = 0
        self._samples: Sequence[Tensor] | None = None
        self._started: float | None = None  # None: no step is running
        self._closed = threading.Event()
        self._watched = threading.get_ident()

    def __enter__(self) -> StepWatch:
        if self._limit_seconds:
            threading.Thread(target=self._keep, name="step watch", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self.end()

    def begin(self, step: int) -> None:
        """A step begins, with the wait for its samples."""
        self._step, self._samples = step, None
        self._started = time.monotonic()
        if self._limit_seconds:
            faulthandler.dump_traceback_later(self._limit_seconds + _LOCKED_SECONDS, exit=True, file=_STDERR)

    def note_samples(self, samples: Sequence[Tensor]) -> None:
        """The step has its samples: the indices int64 [B] of each micro-batch."""
        self._samples = samples

    def end(self) -> None:
        """The step has ended."""
        self._started = None
        if self._limit_seconds:
            faulthandler.cancel_dump_traceback_later()

    def _keep(self) -> None:
        interval = min(self._limit_seconds / 4, 5.0)
        while not self._closed.wait(interval):
            started = self._started
            if started is not None and time.monotonic() - started > self._limit_seconds:
                text = self._message()
                logger.error("%s", text)
                faulthandler.dump_traceback(file=_STDERR, all_threads=True)
                distributed.announce(RunFailed(text))
                os._exit(1)

    def _message(self) -> str:
        return (
            f"rank {distributed.rank()}, step {self._step}: the step has taken more than "
            f"{self._limit_seconds:g} s (run.step_timeout_minutes); {self._sample_text()}; the program is in "
            f"{self._stack()}; {distributed.other_positions()}this rank ends; start the same command again, "
            "which continues from the newest checkpoint, or raise run.step_timeout_minutes if steps may be "
            "this slow"
        )

    def _sample_text(self) -> str:
        if self._samples is None:
            return "it waits for its samples"
        indices = [index for batch in self._samples for index in batch.tolist()]
        names = [f"{index} ({self._name_of(index)})" for index in indices[:_SAMPLES]]
        more = f" and {len(indices) - _SAMPLES} more" if len(indices) > _SAMPLES else ""
        return f"its samples are {', '.join(names)}{more}"

    def _stack(self) -> str:
        """The innermost calls of the training, the last one first."""
        frame = sys._current_frames().get(self._watched)
        frames = traceback.extract_stack(frame)[-_FRAMES:]
        return " < ".join(f"{one.name} ({Path(one.filename).name}:{one.lineno})" for one in reversed(frames))
