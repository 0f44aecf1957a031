"""Verbs of the package in their own processes, which end with the process that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import IO, Any

from videomaskfeat.errors import Stopped

SAME_SIGNAL_SECONDS = 2.0
"""Signals within this time count as one, since a terminal and a launcher both forward them."""
_PARENT = "VIDEOMASKFEAT_PARENT"  # environment variable: id of the process that started a verb
_SAVE_SECONDS = 120.0  # for a verb to save after its parent has ended
_started_by_verbs = False


class Verbs:
    """Runs verbs; inside the context, SIGTERM and Ctrl-C are forwarded to the running verbs.

    A training then saves and ends, and :meth:`run` and every later call raise Stopped. A second signal kills
    the verbs. If this process is killed, they end as on SIGTERM (:func:`end_with_parent`).
    """

    _HANDLED = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped: tuple[int, float] | None = None  # number and time of the first signal
        self._earlier: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Verbs:
        if threading.current_thread() is threading.main_thread():
            self._earlier = {number: signal.signal(number, self._forward) for number in self._HANDLED}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        for process in list(self._running):
            process.kill()

    def run(
        self,
        arguments: Sequence[str],
        *,
        log: IO[Any] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> int:
        """Run ``videomaskfeat ARGUMENTS`` to its end; may be called from any thread.

        Args:
            arguments: the verb and its arguments.
            log: file for its output; None: the output of this process.
            environment: variables to set in addition to those of this process.

        Returns:
            Its exit code; 130 for a training that a signal stopped.

        Raises:
            Stopped: a signal arrived before it ended.
        """
        self._raise_if_stopped()
        process = subprocess.Popen(
            [sys.executable, "-m", "videomaskfeat", *arguments],
            env={**os.environ, **(environment or {}), _PARENT: str(os.getpid())},
            stdout=log,
            stderr=log,
        )
        self._running.add(process)
        try:
            if self._stopped is not None:  # the signal arrived while it was started
                process.terminate()
            code = process.wait()
        finally:
            self._running.discard(process)
        self._raise_if_stopped()
        return code

    def _forward(self, number: int, frame: FrameType | None) -> None:
        first = self._stopped is None
        if self._stopped is None:
            self._stopped = number, time.monotonic()
        elif time.monotonic() - self._stopped[1] < SAME_SIGNAL_SECONDS:
            return
        running = list(self._running)
        for process in running:
            process.terminate() if first else process.kill()
        if not running:
            self._raise_if_stopped()

    def _raise_if_stopped(self) -> None:
        if self._stopped is not None:
            raise Stopped(self._stopped[0])


def run_in_order(commands: Sequence[Sequence[str]], *, again: str) -> int:
    """Run verbs in order until one fails or is stopped; then print which one, and how to continue.

    Args:
        commands: a verb and its arguments each.
        again: the command that continues, such as "make demo".

    Returns:
        0, or the exit code of the verb that failed or was stopped.
    """
    with Verbs() as verbs:
        for command in commands:
            print("\n$ videomaskfeat", *command, flush=True)
            try:
                code = verbs.run(command)
            except Stopped as stopped:
                code = stopped.exit_code
            if code:
                end = "was stopped" if code in (130, 143, -signal.SIGTERM, -signal.SIGINT) else "failed"
                print(
                    f"\n`videomaskfeat {command[0]}` {end} (exit code {code}); "
                    f"`{again}` continues from there",
                    file=sys.stderr,
                )
                return code if code > 0 else 128 - code
    return 0


def end_with_parent() -> None:
    """In a verb that :class:`Verbs` started: end as on SIGTERM when that process has ended."""
    global _started_by_verbs
    parent = os.environ.pop(_PARENT, "")
    if not parent:
        return
    _started_by_verbs = True

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)  # a training saves its last step
        time.sleep(_SAVE_SECONDS)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def started_by_verbs() -> bool:
    """Whether this process is a verb that :class:`Verbs` started."""
    return _started_by_verbs
