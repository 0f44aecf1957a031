"""Run functions in processes of their own, to kill them or to let them train together."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from videomaskfeat.engine import distributed, rank_watch
from videomaskfeat.errors import RunFailed

# Children are forked from a server that has imported torch once but never computed. torch._dynamo takes
# seconds to import, and every optimizer step and DistributedDataParallel needs it; so does sharding.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["videomaskfeat.engine.loop", "torch._dynamo", "videomaskfeat.engine.sharded_checkpoint"]
)


def exit_code(function: Callable[..., None], *arguments: Any) -> int | None:
    """Call a function in a new process; minus the signal if one killed it."""
    process = _context.Process(target=_single_threaded, args=(function, *arguments))
    process.start()
    process.join(timeout=240)  # a busy machine gives it a small share of a core
    assert process.exitcode is not None, "the process hangs"
    return process.exitcode


def exit_codes_of_ranks(
    count: int, function: Callable[..., None], *arguments: Any, seconds: float = 120.0
) -> list[int | None]:
    """Call a function in ``count`` processes that are ranks of one run, as torchrun would start them."""
    processes = _start_ranks(count, 60.0, function, *arguments)
    for process in processes:
        process.join(timeout=seconds)
    hanging = [process for process in processes if process.exitcode is None]
    for process in hanging:
        process.kill()
    assert not hanging, "a rank hangs"
    return [process.exitcode for process in processes]


def end_of_survivor(
    rank: int, function: Callable[..., None], folder: Path, *, timeout_seconds: float
) -> tuple[int | None, str]:
    """Exit code and error of one of two ranks; the other rank is killed after it."""
    processes = _start_ranks(2, timeout_seconds, _keep_error, function, folder)
    processes[rank].join(timeout=120)
    for process in processes:
        process.kill()
        process.join()
    return processes[rank].exitcode, (folder / f"error_{rank}").read_text()


def _start_ranks(count: int, timeout_seconds: float, function: Callable[..., None], *arguments: Any) -> Any:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        _context.Process(target=_as_rank, args=(rank, count, port, timeout_seconds, function, *arguments))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    return processes


def _keep_error(function: Callable[..., None], folder: Path) -> None:
    function(folder)


def _single_threaded(function: Callable[..., None], *arguments: Any) -> None:
    torch.set_num_threads(1)
    function(*arguments)


def _as_rank(
    rank: int, count: int, port: int, timeout_seconds: float, function: Callable[..., None], *arguments: Any
) -> None:
    rank_watch.BEAT_SECONDS, rank_watch._STORE_SECONDS = 0.2, 2.0
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count // 2 or 1),  # as on two machines, if there are several ranks
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    try:
        with distributed.process_group(torch.device("cpu"), timeout_seconds=timeout_seconds):
            function(*arguments)
    except RunFailed as error:
        if function is not _keep_error:
            raise
        (arguments[1] / f"error_{rank}").write_text(str(error))
        sys.exit(1)


def processes_of_session(leader: int) -> list[int]:
    """Running processes of a session (``start_new_session=True``), without zombies."""
    running = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = path.read_text(errors="replace").rpartition(")")[2].split()[:4]
        except OSError:  # it ended meanwhile
            continue
        if int(session) == leader and state not in "ZX":
            running.append(int(path.parent.name))
    return running


def wait_until(condition: Callable[[], Any], *, seconds: float = 120.0) -> None:
    """Wait until a condition is true; fail if it takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never became true"
        time.sleep(0.02)


@contextmanager
def session(line: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A command in its own session; all of its processes are killed at the end."""
    process = subprocess.Popen(
        line, start_new_session=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )
    try:
        yield process
    finally:
        for left in processes_of_session(process.pid):
            with suppress(ProcessLookupError):
                os.kill(left, signal.SIGKILL)
        process.communicate()
