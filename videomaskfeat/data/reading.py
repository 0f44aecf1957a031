"""The side of a worker process: its loop, and the shared memory that names what it is reading.

`workers.py` is the other side. Data sets call `begin_reading` and `continue_reading`; outside a worker these
do nothing.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import cv2
import torch
import torch.multiprocessing  # its import teaches pipes to carry tensors in shared memory

from videomaskfeat.data.reader import VideoReadError
from videomaskfeat.errors import RunFailed, UserError
from videomaskfeat.memory import keep_freed_memory, private_bytes

Reading = tuple[int, ...]
"""What identifies the reading of one record, at most `LONGEST` integers."""

TICKS, STOP, LENGTH, READING, LONGEST = 0, 1, 2, 3, 5
"""Fields of the memory that a worker shares: a count that grows with all progress, whether to end, the length
of what is being read now and the numbers themselves; and how many those are at most."""


SHARED_REMEDY = "/dev/shm is probably full; raise it (docker: --shm-size=8g), or lower data.workers"


class ReadingLost(VideoReadError):
    """The reading of a record has ended or stopped two workers, and is not tried a third time."""


def no_shared_memory(what: str, error: Exception) -> RunFailed:
    """Words on memory or files that the system does not give to workers."""
    words = " ".join(str(error).split())
    files = os.strerror(errno.EMFILE) in words
    remedy = "raise `ulimit -n`, or lower data.workers" if files else SHARED_REMEDY
    return RunFailed(f"{what} cannot be had: {words}; {remedy}")


@dataclass(frozen=True)
class Raised:
    """An error that a task raised; errors with a message for users keep their class."""

    error: Exception | None
    trace: str

    @staticmethod
    def of(error: Exception, where: str) -> Raised:
        """The error that is being handled."""
        known = error if isinstance(error, UserError | RunFailed) else None
        return Raised(known, f"in {where}:\n{traceback.format_exc()}")

    def raise_again(self) -> None:
        """Raise it in this process."""
        raise self.error or RuntimeError(self.trace)


@dataclass
class _Here:
    """State of a worker process."""

    shared: Any  # RawArray, see `TICKS`
    lost: dict[Reading, str]
    readings: int = 0


_here: _Here | None = None


def in_worker() -> bool:
    """Whether this process is a worker of a pool."""
    return _here is not None


def begin_reading(path: str, *reading: int) -> None:
    """Note that this process is about to read a record; outside a worker do nothing.

    Args:
        path: of the record.
        reading: identifies the reading: the same numbers always read the same frames.

    Raises:
        ReadingLost: this reading has cost two workers.
    """
    if _here is None:
        return
    shared = _here.shared
    if shared[STOP]:
        os._exit(0)
    cause = _here.lost.get(reading)
    if cause is not None:
        raise ReadingLost(path, cause)
    shared[LENGTH] = 0
    shared[READING : READING + len(reading)] = reading
    shared[LENGTH] = len(reading)
    shared[TICKS] += 1
    _here.readings += 1


def continue_reading() -> None:
    """Note progress within a long reading; outside a worker do nothing."""
    if _here is not None:
        _here.shared[TICKS] += 1


def work(
    number: int,
    tasks: Any,
    results: Connection,
    shared: Any,
    make: Callable[[Any], Any],
    lost: dict[Reading, str],
    renew_megabytes: float,
    readings_to_settle: int,
) -> None:
    """Make results of tasks until a worker is to end."""
    global _here
    _here = _Here(shared, lost)
    _set_up_worker()
    settled: int | None = None  # bytes
    while True:
        shared[TICKS] += 1
        task = tasks.get()
        if task is None or shared[STOP]:
            os._exit(0)
        shared[TICKS] += 1
        try:
            result = make(task[1])
        except Exception as error:
            result = Raised.of(error, f"worker process {number}")
        shared[LENGTH] = 0  # no record is to blame for what follows
        grown = False
        if _here.readings >= readings_to_settle:
            own = private_bytes()
            settled = own if settled is None else settled
            grown = own - settled > renew_megabytes * 2**20
        try:
            results.send((task[0], result, grown))
        except (RuntimeError, OSError) as error:  # of torch, which lays tensors into shared memory
            failed = no_shared_memory("shared memory for a batch", error)
            results.send((task[0], Raised(failed, ""), grown))
        except Exception as error:  # such as a result that cannot be pickled
            results.send((task[0], Raised.of(error, f"worker process {number}"), grown))


def _set_up_worker() -> None:
    """Use one thread, since the workers themselves run in parallel, and ignore signals.

    Ctrl-C and a cluster's SIGTERM reach the whole process group: the training process then finishes its step,
    for which it needs its workers, and ends them itself. If it is killed it cannot: then they end with it.
    """
    _end_with_the_training()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    keep_freed_memory()  # for the frames of the next video
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _end_with_the_training() -> None:
    """End this worker when the training process has ended.

    Its parent cannot be watched instead: with "forkserver" that is the server, which lives as long as one of
    its workers does.
    """
    training = multiprocessing.parent_process()
    if training is not None:

        def wait() -> None:
            training.join()
            os._exit(1)

        threading.Thread(target=wait, daemon=True).start()
