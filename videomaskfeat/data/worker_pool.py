"""The worker processes of a loader, as the training process sees them: started, fed, watched and replaced.

`workers` is the other side: what runs in a worker.
"""

from __future__ import annotations

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
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import torch

from videomaskfeat.data.reader import VideoReadError
from videomaskfeat.data.workers import (
    LENGTH,
    LONGEST,
    READ_SECONDS,
    READING,
    SERVER_ENDED,
    SHARED_MEMORY_REMEDY,
    STOP,
    TICKS,
    LostReadings,
    Reading,
    ReadingLost,
    TaskError,
    allocation_error,
    begin_reading,
    run_worker,
)
from videomaskfeat.errors import RunFailed

logger = logging.getLogger(__name__)

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")
_POLL_SECONDS = 0.5  # between two checks of the workers while the pool waits
_START_SECONDS = 300.0  # for a worker to start, on a busy machine too
_CLOSE_SECONDS = 1.0  # after a request to end; then the worker is killed
_MAX_LOSSES = 3  # workers lost on one task without any progress in it
_READINGS_TO_SETTLE = 1_000  # then caches are full, and growth is measured from there


class WorkerPool(Generic[TaskT, ResultT]):
    """Results of tasks from worker processes, in the order of the tasks.

    Task n goes to worker n modulo the number of workers, ``ahead`` tasks to each in advance.

    Workers are forked from a server process that has imported the package and nothing else ("forkserver", or
    "spawn" if the system has none). Forking the training process itself, with its OpenMP, decoder, CUDA and
    logging threads, can leave a worker with locks that are never released. As always with these start
    methods, a user's script must start its work under ``if __name__ == "__main__":``.

    Args:
        make: makes the result of a task; picklable. It calls `begin_reading` before it opens a record.
        tasks: consumed as needed, in this process; None if the next task is still unknown.
        path_of: path of a reading, for messages.
        workers: number of processes; 0 makes the results in this process, which nothing replaces.
        ahead: tasks sent to each worker in advance.
        read_seconds: time without progress after which a worker is replaced.
        renew_megabytes: growth of a worker's own memory after which a fresh one replaces it.
        readings_to_settle: number of readings before growth is measured.
        pin_memory: copy results into page-locked memory, for fast copies to a GPU.
        lost: earlier readings during which workers were lost.
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
        self._make, self._tasks, self._path_of = make, tasks, path_of
        self._count, self._ahead, self._read_seconds = workers, ahead, read_seconds
        self._poll_seconds = min(_POLL_SECONDS, read_seconds / 4)
        self._options = (renew_megabytes, readings_to_settle)
        self._pin_device = torch.cuda.current_device() if pin_memory and torch.cuda.is_available() else None
        self._lost = LostReadings() if lost is None else lost
        self._sent = self._next = 0
        self._done: dict[int, Any] = {}
        self._losses: Counter[int] = Counter()  # workers lost, by the task that each worked on
        self._arrived: queue.SimpleQueue[_Arrival] = queue.SimpleQueue()
        self._workers: list[_Worker] = []
        # At exit multiprocessing sends SIGTERM to daemons, which workers ignore, and joins them: they must
        # have ended before, also if this process ends with an error.
        self._end = multiprocessing.util.Finalize(self, _end_workers, (self._workers,), exitpriority=10)
        for number in range(workers):
            self._workers.append(self._start(number))

    def take(self, stop: Callable[[], bool] = lambda: False) -> ResultT | None:
        """The next result; None if there is no task left, or if ``stop`` becomes true while waiting.

        ``stop`` is called about twice per second.

        Raises:
            UserError, RunFailed: raised by a task; or worker after worker was lost.
            RuntimeError: any other error of a task, with its traceback in the message.
        """
        if not self._count:
            task = next(self._tasks, None)
            return None if task is None else cast(ResultT, _pin(self._make(task), self._pin_device))
        self._send_tasks()
        if self._next == self._sent:
            return None
        while self._next not in self._done:
            try:
                self._handle(self._arrived.get(timeout=self._poll_seconds))
            except queue.Empty:
                if stop():
                    return None
            while not self._arrived.empty():
                self._handle(self._arrived.get())
            self._replace_silent_workers()
        result = self._done.pop(self._next)
        self._losses.clear()
        self._next += 1
        self._send_tasks()
        if isinstance(result, TaskError):
            raise result.error or RuntimeError(result.trace)
        return cast(ResultT, result)

    def close(self) -> None:
        """End the workers."""
        self._end()

    def _send_tasks(self) -> None:
        while self._sent < self._next + self._count * self._ahead:
            task = next(self._tasks, None)
            if task is None:
                return
            self._workers[self._sent % self._count].send(self._sent, task)
            self._sent += 1

    def _handle(self, arrival: _Arrival) -> None:
        """Store a result, or replace the worker that has ended."""
        worker = arrival.worker
        if self._workers[worker.number] is not worker:
            return  # replaced meanwhile; its tasks run again
        if arrival.task is None:
            cause = worker.cause_of_death(arrival.result)
            self._replace_lost(worker, cause, _REMEDIES.get(worker.signal, _REMEDY))
            return
        worker.pending.popleft()
        self._done[arrival.task] = arrival.result
        if arrival.grown:
            logger.debug("the memory of worker %d has grown, a fresh worker replaces it", worker.number)
            _end_workers([worker])
            self._replace(worker)

    def _replace_silent_workers(self) -> None:
        for worker in list(self._workers):
            limit = self._read_seconds if worker.started else _START_SECONDS
            if worker.silent_seconds(limit) > limit:
                self._replace_lost(
                    worker,
                    f"not read within {limit:g} seconds",
                    "is the disk or the network slow? raise data.read_seconds",
                )

    def _replace_lost(self, worker: _Worker, cause: str, remedy: str) -> None:
        """Replace a worker that has ended or hangs; at the second loss its reading counts as failed.

        Raises:
            RunFailed: too many workers were lost on one task, and no reading causes it.
        """
        worker.end()
        reading = worker.reading()
        activity = f" while reading {self._path_of(reading)}" if reading else ""
        logger.warning("worker %d is lost (%s)%s; a new worker replaces it", worker.number, cause, activity)
        task = worker.pending[0][0] if worker.pending else -1
        # SIGBUS means that /dev/shm is full, which no record causes.
        if reading and worker.signal != "SIGBUS" and self._lost.add(reading, cause):
            self._losses.clear()
        else:
            self._losses[task] += 1
            if self._losses[task] >= _MAX_LOSSES:
                raise RunFailed(
                    f"{_MAX_LOSSES} worker processes in a row failed{activity}, the last one: "
                    f"{cause}; {remedy}"
                )
        self._replace(worker)

    def _replace(self, worker: _Worker) -> None:
        """Start a fresh worker in place of one that has ended, with its remaining tasks."""
        fresh = self._workers[worker.number] = self._start(worker.number)
        for number, task in worker.pending:
            fresh.send(number, task)

    def _start(self, number: int) -> _Worker:
        arguments = (self._make, self._lost.causes, *self._options)
        build = functools.partial(
            _Worker, number, arguments, arrived=self._arrived, pin_device=self._pin_device
        )
        try:
            try:
                return build()
            except SERVER_ENDED as error:
                logger.warning("the process that forks the workers has ended (%s); starting it again", error)
                return build()  # multiprocessing starts another server
        except (OSError, EOFError) as error:  # queues and pipes need shared memory and open files
            raise allocation_error(f"worker process {number}", error) from error


def call_in_workers(
    function: Callable[..., ResultT],
    calls: Sequence[tuple[Any, ...]],
    *,
    workers: int,
    ahead: int = 2,
    read_seconds: float = READ_SECONDS,
) -> Generator[ResultT | VideoReadError, None, None]:
    """Call a function that reads a file in worker processes, which a damaged file can crash.

    Args:
        function: picklable; its first argument is the path of the file.
        calls: arguments of each call.
        workers, ahead, read_seconds: see `WorkerPool`.

    Yields:
        The result of each call in order, or an error for a call during which two workers were lost.
    """
    pool = WorkerPool(
        functools.partial(_run_call, function),
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


def _run_call(function: Callable[..., ResultT], task: tuple[int, tuple[Any, ...]]) -> ResultT | ReadingLost:
    number, arguments = task
    try:
        begin_reading(str(arguments[0]), number)
    except ReadingLost as error:
        return error
    return function(*arguments)


@dataclass(frozen=True)
class _Arrival:
    """A result from a worker; or, if ``task`` is None, the error that ended receiving from it."""

    worker: _Worker
    task: int | None
    result: Any
    grown: bool = False


class _Worker:
    """One worker process, as seen by the main process."""

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
        self.pending: deque[tuple[int, Any]] = deque()  # its tasks, the oldest first
        self._shared = context.RawArray("q", READING + LONGEST)
        # A queue, unlike a pipe, never makes this process wait, even if the worker is stopped.
        self._tasks = context.Queue()
        self._tasks.cancel_join_thread()
        self._results, results = context.Pipe(duplex=False)
        self._ticks, self._silent, self._checked = 0, 0.0, time.monotonic()
        self._ended = False
        self._process = context.Process(
            target=run_worker,
            args=(number, self._tasks, results, self._shared, dict(os.environ), *arguments),
            daemon=True,
        )
        self._process.start()
        results.close()  # so that the worker's end alone closes the pipe
        # If the worker is stopped, receiving blocks in the middle of a message or of a transfer of memory:
        # so it has a thread of its own, which ends with the worker.
        self._receiver = threading.Thread(target=self._receive, args=(arrived, pin_device), daemon=True)
        self._receiver.start()

    @property
    def started(self) -> bool:
        """Whether it has begun to work."""
        return bool(self._shared[TICKS] > 0)

    @property
    def signal(self) -> str:
        """Name of the signal that ended it; empty if no signal did."""
        code = self._process.exitcode or 0
        if code >= 0:
            return ""
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"

    def send(self, number: int, task: Any) -> None:
        """Send it a task; never blocks."""
        if not self.pending:
            self._silent, self._checked = 0.0, time.monotonic()
        self.pending.append((number, task))
        self._tasks.put((number, task))

    def reading(self) -> Reading:
        """Its current or last reading; empty if it reads nothing."""
        return tuple(self._shared[READING : READING + self._shared[LENGTH]])

    def silent_seconds(self, limit: float) -> float:
        """Time without progress although it has tasks.

        The time between two checks counts for a quarter of ``limit`` at most: this process may itself have
        been stopped (Ctrl-Z), or busy.
        """
        now, ticks = time.monotonic(), self._shared[TICKS]
        self._silent += min(now - self._checked, limit / 4)
        if ticks != self._ticks or not self.pending:
            self._silent = 0.0
        self._ticks, self._checked = ticks, now
        return self._silent

    def cause_of_death(self, error: Exception) -> str:
        """Why it ended, for a message; ``error`` ended receiving from it."""
        self._process.join(timeout=5.0)
        code = self._process.exitcode
        if code is None:  # it runs, but its messages are damaged
            self.end()
            return f"no answer: {error!r}"
        if code >= 0:
            return f"the worker process ended (exit code {code})"
        killed = self.signal in ("SIGKILL", "SIGTERM")
        return f"{'the worker process was killed' if killed else 'the decoder crashed'} ({self.signal})"

    def request_end(self) -> None:
        """Request that it ends before its next reading."""
        self._shared[STOP] = 1
        if not self._ended:
            self._tasks.put(None)

    def wait_for_end(self, seconds: float) -> None:
        """Wait until it ends by itself."""
        multiprocessing.connection.wait([self._process.sentinel], max(seconds, 0.0))

    def end(self) -> None:
        """Kill it: a worker that is stopped or hangs reacts to nothing else."""
        self._ended = True
        self._process.kill()
        self._process.join(timeout=5.0)  # a process that waits for a dead disk does not end even then
        self._tasks.close()
        if self._receiver is not threading.current_thread():  # the receiver may run the garbage collector
            self._receiver.join(timeout=1.0)

    def _receive(self, arrived: queue.SimpleQueue[_Arrival], pin_device: int | None) -> None:
        """Receive results until the worker ends. Runs in a thread."""
        if pin_device is not None:
            torch.cuda.set_device(pin_device)  # otherwise every process also uses memory of the first GPU
        with self._results:
            while True:
                try:
                    task, result, grown = self._results.recv()
                except Exception as error:  # the end of the pipe, or of a worker in the middle of a message
                    arrived.put(_Arrival(self, None, error))
                    return
                try:
                    result = _pin(result, pin_device)
                except Exception as error:
                    result = TaskError.capture(error, "copying to page-locked memory")
                arrived.put(_Arrival(self, task, result, grown))


_REMEDY = "see the messages above; data.workers=0 reads in the main process, which shows the error"
_REMEDIES = {
    "SIGKILL": "this machine is probably out of memory; lower data.workers or the batch size",
    "SIGBUS": SHARED_MEMORY_REMEDY,
}


def _pin(result: Any, device: int | None) -> Any:
    return result.pin_memory() if device is not None and hasattr(result, "pin_memory") else result


def _end_workers(workers: list[_Worker]) -> None:
    """End all of them, by request first: a killed process may leave a file in /dev/shm."""
    until = time.monotonic() + _CLOSE_SECONDS
    for worker in workers:
        worker.request_end()
    for worker in workers:
        worker.wait_for_end(until - time.monotonic())
        worker.end()
    workers.clear()


def _start_method() -> str:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return "spawn"
    # The server imports these once, before it forks any worker.
    modules = ("worker_server", "loader", "readers_decord", "readers_pyav")
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        [f"videomaskfeat.data.{name}" for name in modules]
    )
    return "forkserver"
