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
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from videomaskfeat.errors import RunFailed, UserError, check_name
from videomaskfeat.processes import SAME_SIGNAL_SECONDS

if TYPE_CHECKING:
    from videomaskfeat.engine.rank_watch import RankWatch

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
def process_group(
    device: torch.device, *, timeout_seconds: float = 1800.0, join_seconds: float = 600.0
) -> Iterator[None]:
    """Join the processes that torchrun started; without torchrun only make the device the current one.

    CPU tensors and Python objects travel by gloo, GPU tensors by NCCL.

    Args:
        device: from :func:`choose_device`.
        timeout_seconds: a collective call that waits longer for another process raises an error.
        join_seconds: time in which all processes must have started.

    Raises:
        UserError: a process did not start in time, or an environment variable is missing.
        RunFailed: another rank was killed, ended with an error, or did not answer in time; it is named.
    """
    global _watch
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)  # for code that uses the current device, also of a single process
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    from videomaskfeat.engine.rank_watch import RankWatch, join

    store, attempt, own_rank, ranks = join(join_seconds)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        store=store,
        rank=own_rank,
        world_size=ranks,
        timeout=timedelta(seconds=timeout_seconds),
        device_id=device if on_gpu else None,
    )
    lost = False
    _watch = RankWatch(rank=rank(), world_size=world_size(), limit_seconds=timeout_seconds)
    try:
        _watch.start(attempt)
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


def announce(error: BaseException) -> None:
    """Publish the error that ends this rank, for messages of the others."""
    if _watch is not None:
        _watch.announce(error)


def other_positions() -> str:
    """The last known steps of the other ranks, for a message; empty without other ranks."""
    return "" if _watch is None else _watch.other_positions()


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


@contextmanager
def no_sync(model: nn.Module) -> Iterator[None]:
    """A context in which backward adds up gradients without averaging them over the ranks."""
    if isinstance(model, DistributedDataParallel):
        with model.no_sync():
            yield
    elif is_sharded(model):
        model.set_requires_gradient_sync(False)  # type: ignore[operator]
        yield
        model.set_requires_gradient_sync(True)  # type: ignore[operator]
    else:
        yield


def is_sharded(model: nn.Module) -> bool:
    """Whether the weights of a model are divided over the ranks."""
    # By a method of FSDP2's module, whose import takes seconds.
    return hasattr(model, "set_requires_gradient_sync")


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """A context in which parts of a sharded network may be called instead of the whole, without gradient.

    All ranks must enter it. Blocks remain sharded, since each gathers its own weights when it is called. A
    network that is not sharded is not changed.
    """
    if not is_sharded(module):
        yield
        return
    module.unshard()  # type: ignore[operator]
    try:
        yield
    finally:
        module.reshard()  # type: ignore[operator]


SHARD = "shard"
"""Name of the dimension of a device mesh over which tensors are divided."""


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, which shares its memory; any other tensor itself."""
    # A DTensor has this method; its class takes seconds to import.
    return cast(Tensor, tensor.to_local()) if hasattr(tensor, "to_local") else tensor


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


def first_error(error: Exception | None) -> Exception | None:
    """The error of the first rank that has one, with the same type and text on every rank, or None.

    All ranks must call it, with their own error or None.
    """
    errors = gather_objects(None if error is None else (type(error), str(error)))
    for number, described in enumerate(errors):
        if described is not None:
            kind, text = described
            return error if number == rank() else kind(text)
    return None


def new_cpu_group() -> dist.ProcessGroup:
    """One more group of all ranks, for CPU tensors and calls of another thread; all ranks must call it."""
    assert _watch is not None
    limit = timedelta(seconds=_watch.limit_seconds)
    return cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=limit))


def raise_together(error: UserError | RunFailed | None) -> None:
    """Raise the error of one rank on all ranks, so that none waits for a rank that has stopped.

    All ranks must call it, with their own error or None.
    """
    first = first_error(error)
    if error is not None or first is not None:
        raise error or first  # type: ignore[misc]


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
