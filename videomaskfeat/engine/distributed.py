"""Several processes as one run: started by torchrun, or a single process that needs none of this.

Every function also works in a single process that never called :func:`process_group`; it then costs nothing.
"""

from __future__ import annotations

import atexit
import gc
import inspect
import multiprocessing.util
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from videomaskfeat.engine.rank_watch import RankWatch
from videomaskfeat.engine.signals import StopRequested
from videomaskfeat.errors import RunFailed, UserError

T = TypeVar("T")

_LEAVE_SECONDS = 10.0  # for the other ranks to leave the group too


def rank() -> int:
    """This process's number among all of the run, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes of the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process is rank 0: the one that writes files and prints."""
    return rank() == 0


def local_rank() -> int:
    """This process's number on its own machine, as torchrun tells it; 0 without torchrun."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def choose_device(name: str = "auto") -> torch.device:
    """The device that this process computes on.

    Args:
        name: ``auto`` (a GPU where there is one), ``cpu``, ``cuda`` (the GPU of this process's local rank) or
            ``cuda:N``.

    Raises:
        UserError: a GPU is asked for where there is none, or torchrun started more processes than GPUs.
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
    index = int(number) if number else local_rank()
    if index >= torch.cuda.device_count():
        raise UserError(
            f"device={name!r}: GPU {index} is asked for and this machine has {torch.cuda.device_count()};"
            " lower torchrun's --nproc-per-node or the number after 'cuda:'"
        )
    return torch.device("cuda", index)


_watch: RankWatch | None = None  # of this process, while it is a rank of several


@contextmanager
def process_group(device: torch.device, *, timeout_seconds: float = 1800.0) -> Iterator[None]:
    """Join the processes that torchrun started; without torchrun do nothing.

    CPU tensors and Python objects travel by gloo, GPU tensors by NCCL.

    Args:
        device: where this process computes, from :func:`choose_device`.
        timeout_seconds: a collective that waits longer than this for another process ends with an error, so
            that a run of which one process died does not hang for ever.

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
            f"rank {os.environ.get('RANK')} of {os.environ['WORLD_SIZE']}: not all ranks came to"
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
    """Leave the process group; if that would wait for a rank that is gone, let the process end without it."""
    if others_are_there:
        # A wrapped network that lives on in a cycle would hold the group's threads until the interpreter
        # ends, which aborts where they still run.
        gc.collect()
        leaving = threading.Thread(target=dist.destroy_process_group, daemon=True)
        leaving.start()
        leaving.join(_LEAVE_SECONDS)
        if not leaving.is_alive():
            return
    # The group's destructor, which the interpreter calls at its end, would wait for the other ranks.
    atexit.register(_end_at_once)


def _end_at_once() -> None:
    # What multiprocessing itself would do at the end; its resource tracker complains of what is left.
    multiprocessing.util._run_finalizers()  # type: ignore[attr-defined]
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed
            stream.flush()
    os._exit(1)


def note_step(step: int) -> None:
    """Publish the number of optimizer steps that this rank has done, for messages of waiting ranks."""
    if _watch is not None:
        _watch.position.step = step


def _note_call() -> None:
    """Count a call that waits for the other ranks."""
    if _watch is not None:
        _watch.position.calls += 1


def parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """The model on its device, wrapped so that gradients are averaged over all ranks (itself, if one rank).

    Rank 0's initial weights are sent to all others.
    """
    model = model.to(device)
    if world_size() == 1:
        return model
    # Buffers need not travel at every forward: the only running statistics, those of the linear probe, are
    # computed over all ranks and alike on each.
    # Torch 2.13 gave the argument another name and warns of the old one.
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
    """The plain module inside what :func:`parallel` returned."""
    return cast(nn.Module, model.module) if isinstance(model, DistributedDataParallel) else model


def no_sync(model: nn.Module) -> AbstractContextManager[None]:
    """A context in which backward only adds up gradients here, without averaging them over the ranks."""
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
    """The value of every rank in order of rank, on every rank; it must be picklable."""
    if world_size() == 1:
        return [value]
    _note_call()
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def run_on_main(function: Callable[[], T]) -> T:
    """Call ``function`` on rank 0 only and return its (picklable) result on every rank.

    If it raises, every rank raises: rank 0 the error itself, the others a UserError or RunFailed with the
    same message. So no rank waits for one that has stopped.
    """
    if world_size() == 1:
        return function()
    error: Exception | None = None
    message: list[Any] = [None, None]
    if is_main():
        try:
            message = ["result", function()]
        except Exception as caught:  # handed on to every rank and raised below, none is swallowed
            error = caught
            kinds = {UserError: "mistake", StopRequested: "stop"}
            kind = next((name for one, name in kinds.items() if isinstance(caught, one)), "failure")
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
