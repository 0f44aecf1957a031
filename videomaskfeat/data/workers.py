"""What runs in a worker process of a loader; `worker_pool` starts and watches the workers.

A worker publishes in shared memory which record it reads: data sets call `begin_reading` and
`continue_reading`, which do nothing outside a worker.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import multiprocessing
import multiprocessing.connection
import multiprocessing.util
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import cv2
import torch
import torch.multiprocessing  # registers how tensors are sent through pipes: in shared memory

from videomaskfeat.data.reader import VideoReadError
from videomaskfeat.errors import RunFailed, UserError
from videomaskfeat.machine import keep_freed_memory, private_bytes

logger = logging.getLogger(__name__)

Reading = tuple[int, ...]
"""Identifies the reading of one record, at most `LONGEST` integers."""
TICKS, STOP, LENGTH, READING, LONGEST = 0, 1, 2, 3, 5
"""Fields of the memory that a worker shares: a count of its progress, whether to stop, the length of the
current reading, and the reading itself, which has at most `LONGEST` integers."""
SHARED_MEMORY_REMEDY = "/dev/shm is probably full; raise it (docker: --shm-size=8g), or lower data.workers"


SERVER_ENDED = (ConnectionError, EOFError)
"""Errors of a start if the process that forks the workers has ended: connecting is refused or broken off, or
no process number comes back."""


class ReadingLost(VideoReadError):
    """The reading of a record crashed or stopped two workers, and is not tried a third time."""


def allocation_error(resource: str, error: Exception) -> RunFailed:
    """The error if the system has no memory or no files left for workers, or their server has ended."""
    cause = " ".join(str(error).split())
    if isinstance(error, SERVER_ENDED):
        return RunFailed(
            f"cannot start {resource}: the process that forks the workers has ended ({cause}); if the system "
            "killed it, this machine is probably out of memory: lower data.workers or the batch size"
        )
    remedy = SHARED_MEMORY_REMEDY
    if os.strerror(errno.EMFILE) in cause:
        remedy = "raise `ulimit -n`, or lower data.workers"
    elif "AF_UNIX path too long" in cause:  # sockets of multiprocessing are files in the temporary folder
        remedy = f"set TMPDIR to a folder with a shorter path than {tempfile.gettempdir()}"
    return RunFailed(f"cannot allocate {resource}: {cause}; {remedy}")


@dataclass(frozen=True)
class TaskError:
    """An error that a task raised; errors with a message for users keep their class."""

    error: Exception | None
    trace: str

    @staticmethod
    def capture(error: Exception, place: str) -> TaskError:
        """The error that is being handled."""
        user_error = error if isinstance(error, UserError | RunFailed) else None
        return TaskError(user_error, f"in {place}:\n{traceback.format_exc()}")


@dataclass
class _WorkerState:
    shared: Any  # RawArray, see `TICKS`
    lost: dict[Reading, str]
    readings: int = 0


_state: _WorkerState | None = None


def in_worker() -> bool:
    """Whether this process is a worker of a pool."""
    return _state is not None


def begin_reading(path: str, *reading: int) -> None:
    """Publish that this process starts to read a record; outside a worker do nothing.

    Args:
        path: path of the record.
        reading: identifies the reading: the same numbers always read the same frames.

    Raises:
        ReadingLost: two workers were lost during this reading.
    """
    if _state is None:
        return
    shared = _state.shared
    if shared[STOP]:
        os._exit(0)
    cause = _state.lost.get(reading)
    if cause is not None:
        raise ReadingLost(path, cause)
    shared[LENGTH] = 0
    shared[READING : READING + len(reading)] = reading
    shared[LENGTH] = len(reading)
    shared[TICKS] += 1
    _state.readings += 1


def continue_reading() -> None:
    """Publish progress within a long reading; outside a worker do nothing."""
    if _state is not None:
        _state.shared[TICKS] += 1


def run_worker(
    number: int,
    tasks: Any,
    results: Connection,
    shared: Any,
    environment: dict[str, str],
    make: Callable[[Any], Any],
    lost: dict[Reading, str],
    renew_megabytes: float,
    readings_to_settle: int,
) -> None:
    """Make the results of tasks until the worker has to stop.

    It takes the environment of the main process, which may have set credentials after the start of the server
    that forks workers.
    """
    global _state
    os.environ.clear()
    os.environ.update(environment)
    _state = _WorkerState(shared, lost)
    _set_up_worker()
    settled_bytes: int | None = None
    while True:
        shared[TICKS] += 1
        task = tasks.get()
        if task is None or shared[STOP]:
            os._exit(0)
        shared[TICKS] += 1
        try:
            result = make(task[1])
        except Exception as error:
            result = TaskError.capture(error, f"worker process {number}")
        shared[LENGTH] = 0  # no record causes a failure from here on
        grown = False
        if _state.readings >= readings_to_settle:
            own_bytes = private_bytes()
            settled_bytes = own_bytes if settled_bytes is None else settled_bytes
            grown = own_bytes - settled_bytes > renew_megabytes * 2**20
        try:
            results.send((task[0], result, grown))
        except (RuntimeError, OSError) as error:  # from torch, which moves tensors into shared memory
            failure = TaskError(allocation_error("shared memory for a batch", error), "")
            results.send((task[0], failure, grown))
        except Exception as error:  # such as a result that cannot be pickled
            results.send((task[0], TaskError.capture(error, f"worker process {number}"), grown))


def _set_up_worker() -> None:
    """Use one thread, since workers run in parallel, and ignore signals to the process group.

    After Ctrl-C or a SIGTERM to the group, the training process finishes its step, for which it needs its
    workers, and then ends them itself.
    """
    _end_with_server()
    _end_with_training()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    keep_freed_memory()  # for the frames of the next video
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _end_with_server() -> None:
    """Let the kernel kill this worker when its server ends, even if the worker is stopped (SIGSTOP).

    The server ends when the write end of its pipe is closed in all processes. Each worker inherits it; after
    closing it here, only the training process has it open. The server forks workers in its main thread, which
    lives as long as the server: the kernel's signal is bound to the thread that forked.
    """
    if sys.platform != "linux":
        return
    from multiprocessing import forkserver

    alive = forkserver._forkserver._forkserver_alive_fd  # type: ignore[attr-defined]
    if alive is None:
        return
    os.close(alive)
    forkserver._forkserver._forkserver_alive_fd = None  # type: ignore[attr-defined]
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG in <sys/prctl.h>
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _end_with_training() -> None:
    """End this worker when the training process ends, on any system and whoever started the worker."""
    training = multiprocessing.parent_process()
    if training is not None:

        def wait() -> None:
            training.join()
            os._exit(1)

        threading.Thread(target=wait, daemon=True).start()


READ_SECONDS = 120.0
"""Default maximum time per record without progress."""


@dataclass
class LostReadings:
    """Readings during which workers were lost. A loader keeps one of these for as long as it lives."""

    strikes: Counter[Reading] = field(default_factory=Counter)
    causes: dict[Reading, str] = field(default_factory=dict)
    """Cause in a few words, for each reading during which two workers were lost."""

    def add(self, reading: Reading, cause: str) -> bool:
        """Count the loss of a worker; returns whether the reading now counts as failed."""
        self.strikes[reading] += 1
        if self.strikes[reading] < 2:
            return False
        self.causes[reading] = cause
        return True
