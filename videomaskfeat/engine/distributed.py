"""Signals that stop a run between two steps, and the processes (ranks) that torchrun starts as one run.

Long work inside a training, such as an evaluation, calls :func:`stop_if_requested` regularly.
"""

from __future__ import annotations

import atexit
import gc
import inspect
import logging
import multiprocessing.util
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType, TracebackType
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from videomaskfeat.errors import RunFailed, UserError, check_name
from videomaskfeat.processes import SAME_SIGNAL_SECONDS

logger = logging.getLogger(__name__)


class StopRequested(RunFailed):
    """SIGTERM or Ctrl-C came; the training loop saves a checkpoint."""


class StopSignals:
    """While the context is open, SIGTERM and SIGINT only set ``requested``.

    A second signal ends the process at once, unless it comes within two seconds: a terminal and a launcher
    may both pass on the first one. Outside the main thread, where Python allows no handlers, the context has
    no effect.
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
            "%s: finishing the step and saving a checkpoint; a second signal stops at once",
            signal.Signals(number).name,
        )

    def _restore(self) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier = {}


_open: list[StopSignals] = []  # the open contexts of this process


def stop_if_requested() -> None:
    """Raise if a signal has requested the end of the running training; outside a training do nothing.

    Raises:
        StopRequested: a signal came.
    """
    if any(signals.requested for signals in _open):
        raise StopRequested("stopped by a signal")


T = TypeVar("T")
BEAT_SECONDS = 2.0
"""Interval at which a rank publishes its position."""
_GRACE_SECONDS = 30.0  # after the limit, in which the collective's own error may end the run
_STORE_SECONDS = 10.0  # for an answer of the ranks' store
_BEATS = 2.5  # a rank that publishes nothing for this many intervals counts as lost


@dataclass
class Position:
    """Position of a rank: optimizer steps done, and calls that wait for the other ranks."""

    step: int = 0
    calls: int = 0


class RankWatch:
    """Publishes the position of this rank in the store that the ranks share, and reads the others.

    Args:
        rank: number of this rank.
        world_size: number of ranks.
        limit_seconds: silence of another rank after which this process ends.
    """

    def __init__(self, *, rank: int, world_size: int, limit_seconds: float) -> None:
        self.position = Position()
        self._rank, self._world_size, self._limit_seconds = rank, world_size, limit_seconds
        self._others = [other for other in range(world_size) if other != rank]
        self._store: dist.Store | None = None
        self._reachable = True
        self._ended = threading.Event()
        self._beats = 0
        self._heard: dict[int, tuple[str, float]] = {}  # rank: its last beat, and the time of its arrival
        self._contact = time.monotonic()  # time of the store's last answer

    def start(self) -> None:
        """Start to publish this rank's position."""
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=_STORE_SECONDS),
        )
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._store = dist.PrefixStore(f"videomaskfeat/{attempt}", store)
        self._beat()
        for target in (self._keep, self._guard):
            threading.Thread(target=target, name="rank watch", daemon=True).start()

    def stop(self) -> None:
        """Stop watching; without :meth:`start`, do nothing."""
        self._ended.set()

    def announce(self, error: BaseException) -> None:
        """Publish the error that ends this rank."""
        if self._store is None or not self._reachable:
            return
        store, words = self._store, " ".join(str(error).split()) or type(error).__name__
        _in_time(lambda: store.set(f"end/{self._rank}", words))

    def explain(self, error: BaseException) -> RunFailed | None:
        """The cause of an error of the connection between the ranks; None for any other error."""
        if self._store is None or not is_connection_error(error):
            return None
        return RunFailed(
            f"rank {self._rank}, step {self.position.step + 1}: {self._causes()}; this rank ends too; start"
            " the same command again, which continues from the newest checkpoint"
        )

    def _causes(self) -> str:
        """The ranks at fault, for a message."""
        before = after = ended = _in_time(lambda: self._read("beat"))
        if before is not None:
            time.sleep(_BEATS * BEAT_SECONDS)
            after = _in_time(lambda: self._read("beat"))
        if after is not None:
            ended = _in_time(lambda: self._read("end"))
        if before is None or after is None or ended is None:
            self._reachable = False
            return "rank 0, which connects the ranks, does not answer: it was killed, stopped or cut off"
        causes = [
            f"rank {rank} ended: {ended[rank]}"
            if ended[rank]
            else f"rank {rank} does not answer (last seen at step {_position(after[rank]).step + 1}): it was"
            " killed, stopped or cut off"
            for rank in self._others
            if ended[rank] or before[rank] == after[rank]
        ]
        causes = causes or [
            f"rank {rank} is busy at step {_position(beat).step + 1}"
            for rank, beat in after.items()
            if _position(beat).calls < self.position.calls
        ]
        return "; ".join(causes) or "the connection to another rank was lost, and all ranks still run"

    def _keep(self) -> None:
        """Publish this rank's position and read those of the others."""
        while not self._ended.wait(BEAT_SECONDS):
            try:
                self._beat()
                beats = self._read("beat")
            except dist.DistError:  # rank 0, which serves the store, has ended
                continue
            self._contact = time.monotonic()
            for rank, beat in beats.items():
                if rank not in self._heard or self._heard[rank][0] != beat:
                    self._heard[rank] = beat, self._contact

    def _guard(self) -> None:
        """End the process if another rank is silent for longer than the limit.

        By then most calls that wait for that rank have raised an error, which has ended the run. Those of
        NCCL may never do so.
        """
        while not self._ended.wait(BEAT_SECONDS):
            silent, since = 0, self._contact
            for rank, (_, heard) in list(self._heard.items()):
                if heard < since - _BEATS * BEAT_SECONDS:
                    silent, since = rank, heard
            if time.monotonic() - since > self._limit_seconds + _GRACE_SECONDS:
                logger.error(
                    "rank %d, step %d: rank %d has not answered for %.0f s; this rank stops; start the "
                    "same command again, which continues from the newest checkpoint",
                    self._rank,
                    self.position.step + 1,
                    silent,
                    self._limit_seconds + _GRACE_SECONDS,
                )
                os._exit(1)

    def _beat(self) -> None:
        assert self._store is not None
        self._beats += 1
        self._store.set(f"beat/{self._rank}", f"{self._beats} {self.position.step} {self.position.calls}")

    def _read(self, kind: str) -> dict[int, str]:
        """The last value of a kind of each other rank; empty if it wrote none."""
        assert self._store is not None
        keys = {rank: f"{kind}/{rank}" for rank in self._others}
        return {
            rank: self._store.get(key).decode() if self._store.check([key]) else ""
            for rank, key in keys.items()
        }


def _in_time(function: Callable[[], T]) -> T | None:
    """The result of a call to the ranks' store; None if it does not answer.

    If the process that serves the store is stopped, such a call never ends, despite the store's time limit.
    """
    results: list[T] = []

    def append_result() -> None:
        with suppress(dist.DistError):
            results.append(function())

    thread = threading.Thread(target=append_result, daemon=True)
    thread.start()
    thread.join(_STORE_SECONDS)
    return results[0] if results else None


def is_connection_error(error: BaseException) -> bool:
    """Whether torch raised an error because another rank could not be reached."""
    if isinstance(error, RunFailed):
        return False
    if isinstance(error, dist.DistError):
        return True
    # Errors of Gloo are plain RuntimeErrors that name the source file.
    return isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo/", "NCCL"))


def _position(beat: str) -> Position:
    _, step, calls = (beat or "0 0 0").split()
    return Position(int(step), int(calls))


_LEAVE_SECONDS = 10.0  # for the other ranks to leave the group too


def rank() -> int:
    """Number of this process in the run, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes in the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process is rank 0, which writes files and logs."""
    return rank() == 0


def choose_device(name: str = "auto") -> torch.device:
    """The device of this process.

    Args:
        name: ``auto`` (a GPU if there is one), ``cpu``, ``cuda`` (the GPU of torchrun's local rank) or
            ``cuda:N``.

    Raises:
        UserError: there is no GPU, or torchrun started more processes than there are GPUs.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    kind, _, number = name.partition(":")
    if kind != "cuda" or (number and not number.isdecimal()):
        raise UserError(f"device={name!r}: must be auto, cpu, cuda or cuda:N")
    if not torch.cuda.is_available():
        raise UserError(
            f"device={name!r}: torch {torch.__version__} finds no usable NVIDIA GPU here; set device=cpu, or"
            " check the driver (nvidia-smi) and that torch is a CUDA build"
        )
    index = int(number or os.environ.get("LOCAL_RANK", "0"))
    if index >= torch.cuda.device_count():
        raise UserError(
            f"device={name!r}: there is no GPU {index}, this machine has {torch.cuda.device_count()};"
            " lower torchrun's --nproc-per-node or the number after 'cuda:'"
        )
    return torch.device("cuda", index)


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether the network runs under bf16 autocast, which is the default on a GPU.

    Raises:
        UserError: unknown precision.
    """
    check_name("precision", precision, ("auto", "fp32", "bf16"))
    return precision == "bf16" or (precision == "auto" and device.type == "cuda")


_watch: RankWatch | None = None  # while this process is one of several ranks


@contextmanager
def process_group(device: torch.device, *, timeout_seconds: float = 1800.0) -> Iterator[None]:
    """Join the processes that torchrun started; without torchrun do nothing.

    CPU tensors and Python objects travel by gloo, GPU tensors by NCCL.

    Args:
        device: from :func:`choose_device`.
        timeout_seconds: a collective call that waits longer for another process raises an error.

    Raises:
        RunFailed: another rank was killed, ended with an error, or did not answer in time; it is named.
    """
    global _watch
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            timeout=timedelta(seconds=timeout_seconds),
            device_id=device if on_gpu else None,
        )
    except dist.DistError as error:
        raise RunFailed(
            f"rank {os.environ.get('RANK')} of {os.environ['WORLD_SIZE']}: not all ranks connected to"
            f" {os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')} within {timeout_seconds:g} s;"
            " check that all were started, with the same WORLD_SIZE, MASTER_ADDR and MASTER_PORT"
        ) from error
    lost = False
    _watch = RankWatch(rank=rank(), world_size=world_size(), limit_seconds=timeout_seconds)
    try:
        _watch.start()
        yield
    except BaseException as error:
        failure = _watch.explain(error)
        lost = failure is not None
        _watch.announce(failure or error)
        if failure is None:
            raise
        raise failure from error
    finally:
        _watch.stop()
        _watch = None
        _leave_group(others_are_there=not lost)


def _leave_group(*, others_are_there: bool) -> None:
    """Leave the process group; if that would wait for a lost rank, let the process end without it."""
    if others_are_there:
        # A wrapped network that lives on in a reference cycle would keep the group's threads until the
        # interpreter ends, which aborts if they still run.
        gc.collect()
        leaving = threading.Thread(target=dist.destroy_process_group, daemon=True)
        leaving.start()
        leaving.join(_LEAVE_SECONDS)
        if not leaving.is_alive():
            return
    # The group's destructor, which the interpreter calls at its end, would wait for the other ranks.
    atexit.register(_end_at_once)


def _end_at_once() -> None:
    # As multiprocessing does at exit; otherwise its resource tracker complains.
    multiprocessing.util._run_finalizers()  # type: ignore[attr-defined]
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed
            stream.flush()
    os._exit(1)


def note_step(step: int) -> None:
    """Publish the number of optimizer steps of this rank, for messages of waiting ranks."""
    if _watch is not None:
        _watch.position.step = step


def _note_call() -> None:
    """Count a call that waits for the other ranks."""
    if _watch is not None:
        _watch.position.calls += 1


def parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """The model on its device, wrapped to average gradients over all ranks if there are several.

    All ranks get the initial weights of rank 0.
    """
    model = model.to(device)
    if world_size() == 1:
        return model
    # Buffers need no synchronization: the only running statistics, those of the linear probe, are computed
    # over all ranks. Torch 2.13 renamed the argument and warns of the old name.
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {sync: False}
    return DistributedDataParallel(
        model,
        device_ids=[device.index] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        **options,
    )


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside the wrapper of :func:`parallel`."""
    return cast(nn.Module, model.module) if isinstance(model, DistributedDataParallel) else model


def no_sync(model: nn.Module) -> AbstractContextManager[None]:
    """A context in which backward adds up gradients without averaging them over the ranks."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean of a tensor over all ranks, on every rank; the argument is not changed."""
    if world_size() == 1:
        return values
    _note_call()
    total = values.clone()
    dist.all_reduce(total)
    return total / world_size()


def gather_objects(value: T) -> list[T]:
    """The picklable value of every rank in order of rank, on every rank."""
    if world_size() == 1:
        return [value]
    _note_call()
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, on every rank; the argument is not changed."""
    return mean_over_ranks(values) * world_size() if world_size() > 1 else values


def raise_together(error: UserError | RunFailed | None) -> None:
    """Raise the error of one rank on all ranks, so that none waits for a rank that has stopped.

    All ranks must call it, with their own error or None.
    """
    errors = gather_objects(None if error is None else (type(error), str(error)))
    if error is not None:
        raise error
    for kind, text in filter(None, errors):
        raise kind(text)


def run_on_main(function: Callable[[], T]) -> T:
    """Call ``function`` on rank 0 only and return its picklable result on every rank.

    If it raises, rank 0 raises the error, and the others a UserError or RunFailed with the same message.
    """
    if world_size() == 1:
        return function()
    error: Exception | None = None
    message: list[Any] = [None, None]
    if is_main():
        try:
            message = ["result", function()]
        except Exception as caught:  # passed to every rank and raised below
            error = caught
            kinds = {UserError: "mistake", StopRequested: "stop"}
            kind = next((name for cls, name in kinds.items() if isinstance(caught, cls)), "failure")
            message = [kind, str(caught)]
    _note_call()
    dist.broadcast_object_list(message, src=0)
    if error is not None:
        raise error
    kind, value = message
    if kind == "result":
        return cast(T, value)
    if kind == "stop":
        raise StopRequested(value)
    raise UserError(value) if kind == "mistake" else RunFailed(f"rank 0: {value}")
