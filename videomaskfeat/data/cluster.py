"""Calls for the records of a list: in worker processes of this machine, or in tasks of a Ray cluster.

All nodes of a cluster see the same files under the same paths, and have the same version of this package.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import math
import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from videomaskfeat import __version__
from videomaskfeat.data.reader import VideoReadError
from videomaskfeat.data.worker_pool import call_in_workers
from videomaskfeat.data.workers import READ_SECONDS, TaskError
from videomaskfeat.errors import RunFailed, UserError

ResultT = TypeVar("ResultT")
HERE = ("auto", "local")
"""Addresses without a host: the cluster of this machine or of RAY_ADDRESS, and a new one on this machine."""
_CONNECT_SECONDS = 10.0  # for a TCP connection
_ANSWER_SECONDS = 60.0  # for Ray's answer to a process that connects
_DEFAULT_PORTS = {"": 6379, "ray": 10001}
_POLL_SECONDS = 1.0  # so that Ctrl-C ends the wait
_HEAD_SECONDS = 30.0  # without a connection to the head node; Ray itself ends this process after 60 seconds
_HEAD_POLL_SECONDS = 5.0
_LARGEST_TASK = 32  # calls per task at most: a lost node repeats them
_TASKS_PER_CORE = 4
_RETRIES = 2  # of a task whose node or process was lost


def distribute_calls(
    function: Callable[..., ResultT],
    calls: Sequence[tuple[Any, ...]],
    *,
    ray: str = "",
    workers: int = 0,
    ahead: int = 2,
    read_seconds: float = READ_SECONDS,
) -> Generator[ResultT | VideoReadError, None, None]:
    """Call a function that reads a file, in worker processes or on a Ray cluster; the results are the same.

    Args:
        function: picklable; its first argument is the path of the file.
        calls: arguments of each call.
        ray: address of a Ray cluster; empty: worker processes of this machine.
        workers, ahead, read_seconds: see :class:`~videomaskfeat.data.worker_pool.WorkerPool`; on a cluster,
            each task has one worker process, and ``workers`` has no effect.

    Yields:
        The result of each call in order, or an error for a call during which two workers were lost.

    Raises:
        UserError: the cluster does not answer, or a node has no or another version of this package.
        RunFailed: the cluster has ended, or a task was lost several times.
    """
    if not ray:
        yield from call_in_workers(function, calls, workers=workers, ahead=ahead, read_seconds=read_seconds)
        return
    run = functools.partial(_call_safely, function, read_seconds=read_seconds)
    yield from _run_on_cluster(run, calls, ray, calls_per_task=None, gpus=0)


def call_on_cluster(
    function: Callable[..., ResultT], calls: Sequence[tuple[Any, ...]], *, ray: str, device: str = "cpu"
) -> Generator[ResultT, None, None]:
    """Call a function in tasks of a Ray cluster, one call per task; yields the results in order.

    Args:
        function: picklable.
        calls: arguments of each call.
        ray: address of the cluster.
        device: a task gets a GPU unless this is "cpu" or the cluster has no GPU.

    Raises:
        UserError, RunFailed: as :func:`distribute_calls`, and those of the function.
    """
    run = functools.partial(_call_directly, function)
    yield from _run_on_cluster(run, calls, ray, calls_per_task=1, gpus=int(device != "cpu"))


@dataclass(frozen=True)
class _Node:
    """What a task expects of its node."""

    folder: str
    version: str


def _run_on_cluster(
    run: Callable[[Sequence[tuple[Any, ...]]], list[Any]],
    calls: Sequence[tuple[Any, ...]],
    address: str,
    *,
    calls_per_task: int | None,
    gpus: int,
) -> Iterator[Any]:
    """The results of ``run`` for groups of calls, in order; a few tasks per core wait at the cluster."""
    if not calls:
        return
    with _connected(address) as ray:
        resources = ray.cluster_resources()
        cores = int(resources.get("CPU", 0))
        if cores < 1:
            raise UserError(
                f"the Ray cluster at {address} has no CPU for tasks; start its nodes with --num-cpus"
            )
        gpus = gpus if resources.get("GPU", 0) >= 1 else 0
        size = calls_per_task or min(math.ceil(len(calls) / (_TASKS_PER_CORE * cores)), _LARGEST_TASK)
        node = _Node(os.getcwd(), __version__)
        task = ray.remote(_run_task).options(num_cpus=1, num_gpus=gpus, max_retries=_RETRIES)
        shared = ray.put(run)
        groups = iter([calls[start : start + size] for start in range(0, len(calls), size)])
        waiting: deque[Any] = deque()
        head = _Head.of_cluster(ray, address)
        try:
            while True:
                while len(waiting) < 2 * cores and (group := next(groups, None)) is not None:
                    waiting.append(task.remote(shared, group, node))
                if not waiting:
                    return
                result = _wait_for(ray, waiting[0], address, head)
                waiting.popleft()
                if isinstance(result, TaskError):
                    raise result.error or RuntimeError(result.trace)
                yield from result
        finally:
            if not head.lost:
                for one in waiting:
                    ray.cancel(one, force=True)


@dataclass
class _Head:
    """The head node of a cluster, whose loss Ray reports by ending this process.

    Attributes:
        host, port: of its control service; an empty host: Ray's client reports the loss itself.
        lost: whether it was found lost.
    """

    host: str
    port: int
    lost: bool = False
    _answered: float = field(default_factory=time.monotonic, init=False)
    _checked: float = field(default_factory=time.monotonic, init=False)

    @classmethod
    def of_cluster(cls, ray: Any, address: str) -> _Head:
        if address.startswith("ray://"):
            return cls("", 0)
        host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
        return cls(host, int(port))

    def check(self, address: str) -> None:
        """Raise RunFailed if no connection was possible for some time."""
        if not self.host or time.monotonic() - self._checked < _HEAD_POLL_SECONDS:
            return
        self._checked = time.monotonic()
        try:
            socket.create_connection((self.host, self.port), timeout=_CONNECT_SECONDS).close()
            self._answered = self._checked
        except OSError as error:
            if time.monotonic() - self._answered < _HEAD_SECONDS:
                return
            self.lost = True
            raise RunFailed(
                f"the head node of the Ray cluster at {address} has not answered for {_HEAD_SECONDS:g} "
                f"seconds ({error.strerror or error}); finished work is kept: start the cluster again, and "
                "repeat the command to continue"
            ) from error


def _wait_for(ray: Any, reference: Any, address: str, head: _Head) -> Any:
    while True:
        try:
            return ray.get(reference, timeout=_POLL_SECONDS)
        except ray.exceptions.GetTimeoutError:
            head.check(address)
        except (ray.exceptions.RayError, ConnectionError) as error:
            cause = _first_line(error)
            if "ModuleNotFoundError" in str(error):
                raise UserError(
                    f"a node of the Ray cluster at {address} cannot import this package ({cause}); install "
                    f"videomaskfeat {__version__} on all nodes"
                ) from error
            raise RunFailed(
                f"a task on the Ray cluster at {address} failed: {type(error).__name__}: {cause}; finished "
                "work is kept, and the same command continues"
            ) from error


def _run_task(run: Callable[[Any], list[Any]], calls: Any, node: _Node) -> list[Any] | TaskError:
    """Run a group of calls. Runs on a node of the cluster."""
    host = socket.gethostname()
    try:
        if __version__ != node.version:
            raise UserError(
                f"node {host} of the Ray cluster has videomaskfeat {__version__}, and this machine "
                f"{node.version}; install the same version on all nodes"
            )
        try:
            os.chdir(node.folder)  # relative paths start there
        except OSError as error:
            raise UserError(
                f"node {host} of the Ray cluster cannot open the folder {node.folder} ({error.strerror}); "
                "all nodes must see the same files under the same paths"
            ) from error
        return run(calls)
    except Exception as error:
        return TaskError.capture(error, f"a task on {host}")


def _call_safely(function: Any, calls: Sequence[tuple[Any, ...]], *, read_seconds: float) -> list[Any]:
    """The results from one worker process, which a damaged file may crash."""
    main = vars(sys.modules["__main__"])
    # multiprocessing imports the main program into each worker: here Ray's own, which no call needs.
    program = main.pop("__file__", None)
    try:
        return list(call_in_workers(function, calls, workers=1, ahead=2, read_seconds=read_seconds))
    finally:
        if program is not None:
            main["__file__"] = program


def _call_directly(function: Any, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
    return [function(*arguments) for arguments in calls]


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """The module ``ray``, connected to a cluster.

    Raises:
        UserError: Ray is not installed, or the cluster does not answer.
    """
    if importlib.util.find_spec("ray") is None:
        raise UserError("--ray needs the package ray: pip install 'videomaskfeat[ray]'")
    _check_answer(address)
    ray: Any = importlib.import_module("ray")
    options: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    try:
        yield ray
    finally:
        ray.shutdown()


@functools.cache
def _check_answer(address: str) -> None:
    """Raise UserError unless a Ray cluster answers at an address.

    A process of its own connects first, since Ray ends the process itself if the server is not a Ray cluster.
    """
    if address == "local":
        return
    if address not in HERE:
        host, port = _host_and_port(address)
        try:
            socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
        except OSError as error:
            cause = error.strerror or str(error) or type(error).__name__
            raise _no_answer(address, cause) from error
    program = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False, logging_level=40)"
    try:
        done = subprocess.run(
            [sys.executable, "-c", program, address],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_ANSWER_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise _no_answer(address, f"no answer of Ray within {_ANSWER_SECONDS:g} seconds") from error
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise _no_answer(address, lines[-1] if lines else f"exit code {done.returncode}")


def _no_answer(address: str, cause: str) -> UserError:
    return UserError(
        f"no Ray cluster answers at {address} ({cause}); give the address of its head node, such as "
        "host:6379, or local for this machine"
    )


def _host_and_port(address: str) -> tuple[str, int]:
    scheme, _, place = address.rpartition("://")
    host, colon, port = place.rpartition(":")
    if not colon:
        host, port = place, str(_DEFAULT_PORTS.get(scheme, 0))
    if scheme not in _DEFAULT_PORTS or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(
            f"ray={address}: must be host:port, ray://host:port, auto (the cluster of this machine), or "
            "local (this machine alone)"
        )
    return host, int(port)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
