"""Worker processes: results in the order of their tasks, even if a worker crashes or hangs.

A worker names in shared memory what it is reading: data sets call `begin_reading` and `continue_reading`,
which do nothing outside a worker.
"""

from __future__ import annotations

import errno
import functools
import logging
import multiprocessing
import multiprocessing.connection
import multiprocessing.util
import os
import queue
import signal
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar, cast

import cv2
import torch
import torch.multiprocessing  # its import teaches pipes to carry tensors in shared memory

from videomaskfeat.data.reader import VideoReadError
from videomaskfeat.errors import RunFailed, UserError
from videomaskfeat.machine import keep_freed_memory, private_bytes

logger = logging.getLogger(__name__)

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


READ_SECONDS = 120.0
"""Default time that a worker may spend on one record without progress."""
TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")
_POLL_SECONDS = 0.5  # between two looks at the workers while the pool waits
_START_SECONDS = 300.0  # for a worker to start, on a busy machine too
_CLOSE_SECONDS = 1.0  # then workers that have not ended by themselves are killed
_TRIES = 3  # workers that may be lost on one task without any progress in it
_READINGS_TO_SETTLE = 1_000  # then caches are full, and growth is measured from there


@dataclass
class LostReadings:
    """Readings that have cost workers. A loader keeps one of these for as long as it lives."""

    strikes: Counter[Reading] = field(default_factory=Counter)
    causes: dict[Reading, str] = field(default_factory=dict)
    """Of readings that have cost two workers: why, in a few words."""

    def add(self, reading: Reading, cause: str) -> bool:
        """Note that a worker was lost; returns whether the reading now counts as failed."""
        self.strikes[reading] += 1
        if self.strikes[reading] < 2:
            return False
        self.causes[reading] = cause
        return True


class WorkerPool(Generic[TaskT, ResultT]):
    """Results of tasks from worker processes, in the order of the tasks.

    Task n goes to worker n modulo the number of workers, ``ahead`` tasks to each in advance.

    Workers are forked from a server process that has imported the package and nothing else ("forkserver";
    "spawn" if a system has none). Forking the training process itself, with its OpenMP, decoder, CUDA and
    logging threads, can leave a worker with locks that nobody will ever release. Hence, as everywhere with
    that start method, a script of one's own must start its work under ``if __name__ == "__main__":``.
    """

    def __init__(
        self,
        make: Callable[[TaskT], ResultT],
        tasks: Iterator[TaskT | None],
        *,
        path_of: Callable[[Reading], str],
        workers: int,
        ahead: int = 2,
        read_seconds: float = READ_SECONDS,
        renew_megabytes: float = 100.0,
        readings_to_settle: int = _READINGS_TO_SETTLE,
        pin_memory: bool = False,
        lost: LostReadings | None = None,
    ) -> None:
        """Start the workers.

        Args:
            make: makes the result of a task; picklable. It calls `begin_reading` before it opens a record.
            tasks: taken as they are needed, in this process; None if the next one is not known yet.
            path_of: the path that a reading is about, for messages.
            workers: processes; 0 makes the results in this one, without replacement.
            ahead: tasks sent to each worker in advance.
            read_seconds: time without progress after which a worker is replaced.
            renew_megabytes: growth of its own memory after which a worker is replaced by a fresh one.
            readings_to_settle: readings after which growth is measured.
            pin_memory: copy results into page-locked memory, for fast copies to a GPU.
            lost: readings that have cost workers before.
        """
        self._make, self._tasks, self._path_of = make, tasks, path_of
        self._count, self._ahead, self._read_seconds = workers, ahead, read_seconds
        self._poll_seconds = min(_POLL_SECONDS, read_seconds / 4)
        self._options = (renew_megabytes, readings_to_settle)
        self._pin_device = torch.cuda.current_device() if pin_memory and torch.cuda.is_available() else None
        self._lost = LostReadings() if lost is None else lost
        self._sent = self._next = 0
        self._done: dict[int, Any] = {}
        self._losses: Counter[int] = Counter()  # workers lost, by the task that each was at
        self._arrived: queue.SimpleQueue[_Arrival] = queue.SimpleQueue()
        self._workers: list[_Worker] = []
        # At exit multiprocessing sends SIGTERM to daemons, which workers ignore, and waits for them: they
        # must have ended before, also if this process ends with an error.
        self._end = multiprocessing.util.Finalize(self, _end_workers, (self._workers,), exitpriority=10)
        for number in range(workers):
            self._workers.append(self._start(number))

    def take(self, stop: Callable[[], bool] = lambda: False) -> ResultT | None:
        """The next result; None if there is no task left, or if ``stop`` became true while waiting.

        ``stop`` is called about twice per second.

        Raises:
            UserError, RunFailed: what a task raised, as it was raised; or workers end again and again.
            RuntimeError: any other error of a task, with its traceback in the message.
        """
        if not self._count:
            task = next(self._tasks, None)
            return None if task is None else cast(ResultT, _pinned(self._make(task), self._pin_device))
        self._send_tasks()
        if self._next == self._sent:
            return None
        while self._next not in self._done:
            try:
                self._note(self._arrived.get(timeout=self._poll_seconds))
            except queue.Empty:
                if stop():
                    return None
            while not self._arrived.empty():
                self._note(self._arrived.get())
            self._look_at_workers()
        result = self._done.pop(self._next)
        self._losses.clear()
        self._next += 1
        self._send_tasks()
        if isinstance(result, Raised):
            result.raise_again()
        return cast(ResultT, result)

    def close(self) -> None:
        """End the workers."""
        self._end()

    def _send_tasks(self) -> None:
        while self._sent < self._next + self._count * self._ahead:
            task = next(self._tasks, None)
            if task is None:
                return
            self._workers[self._sent % self._count].give(self._sent, task)
            self._sent += 1

    def _note(self, arrival: _Arrival) -> None:
        """Keep a result, or replace the worker that has ended."""
        worker = arrival.worker
        if self._workers[worker.number] is not worker:
            return  # replaced since; its tasks are done again
        if arrival.task is None:
            cause = worker.cause_of_death(arrival.result)
            self._replace_lost(worker, cause, _REMEDIES.get(worker.signal, _REMEDY))
            return
        worker.waiting.popleft()
        self._done[arrival.task] = arrival.result
        if arrival.grown:
            logger.debug("worker %d has grown and is renewed", worker.number)
            _end_workers([worker])
            self._replace(worker)

    def _look_at_workers(self) -> None:
        """Replace the workers that are stopped or hang."""
        for worker in list(self._workers):
            limit = self._read_seconds if worker.started else _START_SECONDS
            if worker.silent_seconds(limit) > limit:
                self._replace_lost(
                    worker,
                    f"not read within {limit:g} seconds",
                    "is the disk or the network slow? raise data.read_seconds",
                )

    def _replace_lost(self, worker: _Worker, cause: str, remedy: str) -> None:
        """Replace a worker that has ended or hangs; its reading is to blame the second time.

        Raises:
            RunFailed: too many workers were lost on one task, and no reading is to blame.
        """
        worker.end()
        reading = worker.reading()
        what = f" while reading {self._path_of(reading)}" if reading else ""
        logger.warning("worker %d is lost (%s)%s; a new one takes its place", worker.number, cause, what)
        task = worker.waiting[0][0] if worker.waiting else -1
        # SIGBUS means that /dev/shm is full, for which no record is to blame.
        if reading and worker.signal != "SIGBUS" and self._lost.add(reading, cause):
            self._losses.clear()
        else:
            self._losses[task] += 1
            if self._losses[task] >= _TRIES:
                raise RunFailed(
                    f"{_TRIES} worker processes were lost one after the other{what}, the last one: {cause}; "
                    f"{remedy}"
                )
        self._replace(worker)

    def _replace(self, worker: _Worker) -> None:
        """Put a fresh worker in the place of one that has ended, with the tasks that it has left."""
        fresh = self._workers[worker.number] = self._start(worker.number)
        for number, task in worker.waiting:
            fresh.give(number, task)

    def _start(self, number: int) -> _Worker:
        try:
            return _Worker(
                number,
                (self._make, self._lost.causes, *self._options),
                arrived=self._arrived,
                pin_device=self._pin_device,
            )
        except OSError as error:  # queues and pipes need shared memory and open files
            raise no_shared_memory(f"worker process {number}", error) from error


def call_apart(
    function: Callable[..., ResultT],
    calls: Sequence[tuple[Any, ...]],
    *,
    workers: int,
    ahead: int = 2,
    read_seconds: float = READ_SECONDS,
) -> Iterator[ResultT | VideoReadError]:
    """Call a function that reads a file in worker processes; a file can end those, but not this one.

    Args:
        function: picklable; its first argument is the path of the file.
        calls: the arguments of each call.
        workers, ahead, read_seconds: as in `WorkerPool`.

    Yields:
        The result of each call in order, or an error for a call that has ended or stopped two workers.
    """
    pool = WorkerPool(
        functools.partial(_call, function),
        enumerate(calls),
        path_of=lambda reading: str(calls[reading[0]][0]),
        workers=min(workers, len(calls)),
        ahead=ahead,
        read_seconds=read_seconds,
    )
    try:
        for _ in calls:
            result = pool.take()
            assert result is not None, "a result for each call"
            yield result
    finally:
        pool.close()


def _call(function: Callable[..., ResultT], task: tuple[int, tuple[Any, ...]]) -> ResultT | ReadingLost:
    """Make one of the calls. Runs in a worker."""
    number, call = task
    try:
        begin_reading(str(call[0]), number)
    except ReadingLost as error:
        return error
    return function(*call)


@dataclass(frozen=True)
class _Arrival:
    """A result from a worker; or, if ``task`` is None, the error that receiving from it ended with."""

    worker: _Worker
    task: int | None
    result: Any
    grown: bool = False


class _Worker:
    """One worker process as the main process sees it."""

    def __init__(
        self,
        number: int,
        arguments: tuple[Any, ...],
        *,
        arrived: queue.SimpleQueue[_Arrival],
        pin_device: int | None,
    ) -> None:
        context: Any = multiprocessing.get_context(_start_method())
        self.number = number
        self.waiting: deque[tuple[int, Any]] = deque()  # tasks that it has, the oldest first
        self._shared = context.RawArray("q", READING + LONGEST)
        # A queue, unlike a pipe, never makes this process wait, even if the worker is stopped.
        self._tasks = context.Queue()
        self._tasks.cancel_join_thread()
        self._results, results = context.Pipe(duplex=False)
        self._ticks, self._silent, self._looked = 0, 0.0, time.monotonic()
        self._ended = False
        self._process = context.Process(
            target=work, args=(number, self._tasks, results, self._shared, *arguments), daemon=True
        )
        self._process.start()
        results.close()  # so that the worker's end alone closes the pipe
        # Receiving can block in the middle of a message, or of handing over memory, if the worker is stopped
        # there: in a thread of its own, which ends with the worker.
        self._receiver = threading.Thread(target=self._receive, args=(arrived, pin_device), daemon=True)
        self._receiver.start()

    @property
    def started(self) -> bool:
        """Whether it has begun to work."""
        return bool(self._shared[TICKS] > 0)

    @property
    def signal(self) -> str:
        """The name of the signal that has ended it, empty if none has."""
        code = self._process.exitcode or 0
        return _signal_name(-code) if code < 0 else ""

    def give(self, number: int, task: Any) -> None:
        """Give it a task; never waits."""
        if not self.waiting:
            self._silent, self._looked = 0.0, time.monotonic()
        self.waiting.append((number, task))
        self._tasks.put((number, task))

    def reading(self) -> Reading:
        """What it was reading when it ended; empty if nothing."""
        return tuple(self._shared[READING : READING + self._shared[LENGTH]])

    def silent_seconds(self, limit: float) -> float:
        """Time without progress although it has tasks, as far as this process has looked.

        Args:
            limit: a quarter of it is the most that a time between two looks counts: this process may itself
                have been stopped (Ctrl-Z), or busy.
        """
        now, ticks = time.monotonic(), self._shared[TICKS]
        self._silent += min(now - self._looked, limit / 4)
        if ticks != self._ticks or not self.waiting:
            self._silent = 0.0
        self._ticks, self._looked = ticks, now
        return self._silent

    def cause_of_death(self, error: Exception) -> str:
        """The cause of its end, for a message.

        Args:
            error: what receiving from it ended with.
        """
        self._process.join(timeout=5.0)
        code = self._process.exitcode
        if code is None:  # it runs, but its messages are damaged
            self.end()
            return f"no answer: {error!r}"
        if code >= 0:
            return f"the worker process ended (exit code {code})"
        how = (
            "the worker process was killed"
            if self.signal in ("SIGKILL", "SIGTERM")
            else "the decoder crashed"
        )
        return f"{how} ({self.signal})"

    def ask_to_end(self) -> None:
        """Request that it end before its next reading."""
        self._shared[STOP] = 1
        if not self._ended:
            self._tasks.put(None)

    def wait_for_end(self, seconds: float) -> None:
        """Wait for it to end by itself."""
        multiprocessing.connection.wait([self._process.sentinel], max(seconds, 0.0))

    def end(self) -> None:
        """Kill it: one that is stopped or hangs reacts to nothing else."""
        self._ended = True
        self._process.kill()
        self._process.join(timeout=5.0)  # a process that waits for a dead disk does not even end then
        self._tasks.close()
        if self._receiver is not threading.current_thread():  # which may be collecting garbage
            self._receiver.join(timeout=1.0)

    def _receive(self, arrived: queue.SimpleQueue[_Arrival], pin_device: int | None) -> None:
        """Receive results until the worker ends. Runs in a thread."""
        if pin_device is not None:
            torch.cuda.set_device(pin_device)  # otherwise every process would also use memory of the first
        with self._results:
            while True:
                try:
                    task, result, grown = self._results.recv()
                except Exception as error:  # the end of the pipe, or of a worker in the middle of a message
                    arrived.put(_Arrival(self, None, error))
                    return
                try:
                    result = _pinned(result, pin_device)
                except Exception as error:
                    result = Raised.of(error, "copying to page-locked memory")
                arrived.put(_Arrival(self, task, result, grown))


_REMEDY = "see the messages above; data.workers=0 reads in the main process, where the error is shown"
_REMEDIES = {
    "SIGKILL": "this machine is probably out of memory; lower data.workers or the batch size",
    "SIGBUS": SHARED_REMEDY,
}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _pinned(result: Any, device: int | None) -> Any:
    return result.pin_memory() if device is not None and hasattr(result, "pin_memory") else result


def _end_workers(workers: list[_Worker]) -> None:
    """End all of them, by request first: a killed process may leave a file in /dev/shm."""
    until = time.monotonic() + _CLOSE_SECONDS
    for worker in workers:
        worker.ask_to_end()
    for worker in workers:
        worker.wait_for_end(until - time.monotonic())
        worker.end()
    workers.clear()


def _start_method() -> str:
    """How worker processes start: by a server that has imported this package, if the system has one."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return "spawn"
    # The server imports this once, before it forks any worker.
    multiprocessing.get_context("forkserver").set_forkserver_preload(["videomaskfeat.data.loader"])
    return "forkserver"
