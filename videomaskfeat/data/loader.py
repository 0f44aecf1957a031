"""Batches of clips from worker processes; the order is a pure function of (seed, epoch, batch number)."""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from itertools import count
from types import TracebackType
from typing import Any, Generic

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from videomaskfeat.data.batches import Failure, PretrainBatch, SharedClips
from videomaskfeat.data.clips import BatchT, RecordClips, SampleKey, sample_generator
from videomaskfeat.errors import UserError
from videomaskfeat.memory import keep_freed_memory

__all__ = [
    "ClipLoader",
    "Failure",
    "FailureCounter",
    "PretrainBatch",
    "SampleKey",
    "end_workers",
    "sample_generator",
    "set_up_worker",
    "start_method",
]

logger = logging.getLogger(__name__)

_BatchKeys = tuple[SampleKey, ...]


class FailureCounter:
    """Counts the records of a list that could not be read, and stops the run when they are too many."""

    def __init__(
        self,
        total_records: int,
        share: float = 0.01,
        *,
        unit: str = "video",
        remedy: str = "`videomaskfeat check-data` writes a list without them",
    ) -> None:
        """Start at none.

        Args:
            total_records: rows of the list.
            share: of the list that may fail, 0..1; where it is above 0, at least one record may.
            unit: what a record is called, see `RecordClips.unit`.
            remedy: what to do where too many have failed, as the end of a message.

        Raises:
            UserError: the share is not between 0 and 1.
        """
        if not 0 <= share <= 1:
            raise UserError(f"failure share {share:g} is not between 0 and 1; 0.01 lets 1 % of the list fail")
        self.total_records, self.share = total_records, share
        self._unit, self._remedy = unit, remedy
        self.allowed = max(int(share * total_records), 1) if share else 0
        self.failures: dict[int, Failure] = {}

    def __len__(self) -> int:
        """How many different records have failed."""
        return len(self.failures)

    def state_dict(self) -> dict[str, Any]:
        """The failures so far as plain data."""
        return {"failures": [asdict(failure) for failure in self.failures.values()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.failures = {entry["index"]: Failure(**entry) for entry in state["failures"]}

    def add(self, failures: Iterable[Failure]) -> None:
        """Count failures; each record is counted and logged once, however often it comes.

        Raises:
            UserError: more records have failed than may.
        """
        for failure in failures:
            if failure.index not in self.failures:
                self.failures[failure.index] = failure
                logger.warning("unreadable %s, replaced: %s: %s", self._unit, failure.path, failure.cause)
        if len(self.failures) > self.allowed:
            shown = [f"{failure.path} ({failure.cause})" for failure in list(self.failures.values())[:10]]
            more = len(self.failures) - len(shown)
            raise UserError(
                f"{len(self.failures)} of {self.total_records} {self._unit}s could not be read, and "
                f"{self.allowed} may fail (failure share {self.share:g}): {'; '.join(shown)}"
                f"{f'; and {more} more' if more else ''}; {self._remedy}"
            )


class ClipLoader(Generic[BatchT]):
    """Loads batches in worker processes; the data set decides of what kind they are.

    Step s of an epoch takes the s-th run of ``batch_size`` clips in the epoch's order, each rank its part of
    them, cut into ``accumulate`` micro-batches; the last incomplete step of an epoch is left out. Neither the
    number of workers nor that of ranks changes what a step holds, and any batch can be the first one to be
    made, so (epoch, batch number) is all the state that a resumed run needs.

    Workers are forked from a server process that has imported the package and nothing else ("forkserver";
    "spawn" where a system has none). Forking the training process itself, with its OpenMP, decoder, CUDA and
    logging threads, can leave a worker with locks that nobody will ever release. Hence, as everywhere with
    that start method, a script of one's own must start its work under ``if __name__ == "__main__":``.
    """

    def __init__(
        self,
        dataset: RecordClips[Any, BatchT],
        *,
        batch_size: int,
        accumulate: int = 1,
        workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
        shuffle: bool = True,
        read_ahead: bool = True,
        prefetch_batches: int = 2,
        renew_after: int = 50_000,
    ) -> None:
        """Check the sizes; workers start with the first batch.

        Args:
            dataset: makes the samples; its seed also orders them.
            batch_size: clips an optimiser step, over all ranks and micro-batches.
            accumulate: micro-batches an optimiser step.
            workers: processes of this rank; 0 makes batches in the calling process.
            rank: of this process, 0..world_size-1.
            world_size: processes that train together.
            pin_memory: hand out page-locked batches, for fast copies to a GPU.
            shuffle: a new order each epoch; otherwise the list's own.
            read_ahead: at the end of an epoch the workers go on with the next one, so that no time is lost
                between epochs. Switch it off where epochs do not follow each other, as in evaluation.
            prefetch_batches: batches that each worker makes ahead; with the batch size, bounds the memory.
            renew_after: videos that a worker reads before a fresh process takes its place. PyAV keeps about a
                kilobyte of each video for good (decord next to nothing); this holds it below 50 MB a worker,
                for one short pause in half an hour or more.

        Raises:
            UserError: a number that cannot be, or a batch that does not divide evenly or is larger than the
                list.
        """
        for argument, value, least in (("accumulate", accumulate, 1), ("workers", workers, 0)):
            if value < least:
                raise UserError(f"{argument}={value}: must be at least {least}")
        videos = _videos_a_step(dataset, batch_size, world_size * accumulate)
        self.dataset = dataset
        self.batches_per_epoch = len(dataset) // videos * accumulate
        """Micro-batches that this rank gets in an epoch."""
        self._read_ahead = read_ahead
        self._keys = _KeyStream(dataset, videos, accumulate, rank, world_size, shuffle)
        # Without a generator of its own, a loader would draw from torch's global one at every start.
        self._loader: DataLoader[BatchT | UserError] = DataLoader(
            _BatchMaker[BatchT](dataset, ahead=prefetch_batches),
            batch_size=None,  # the sampler gives the keys of whole batches
            sampler=self._keys,
            num_workers=workers,
            prefetch_factor=prefetch_batches if workers else None,
            pin_memory=pin_memory and torch.cuda.is_available(),
            worker_init_fn=set_up_worker,
            multiprocessing_context=start_method() if workers else None,
            generator=torch.Generator().manual_seed(dataset.seed),
        )
        self._stream: Iterator[BatchT | UserError] | None = None
        self._position = (0, 0)  # epoch and batch that the stream gives next
        videos_a_batch = videos // (world_size * accumulate)
        self._batches_a_stream = max(renew_after * workers // videos_a_batch, 1) if workers else math.inf
        self._batches_left = 0.0

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[BatchT]:
        """The batches of an epoch, from ``first_batch`` on; those before it cost nothing.

        Raises:
            UserError: the list cannot be read (see `RecordClips`).
        """
        for batch in range(first_batch, self.batches_per_epoch):
            yield self._batch(epoch, batch)

    def close(self) -> None:
        """End the workers; a later batch starts them anew."""
        stream, self._stream = self._stream, None
        end_workers(stream)

    def __enter__(self) -> ClipLoader[BatchT]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _batch(self, epoch: int, batch: int) -> BatchT:
        if self._stream is None or self._position != (epoch, batch) or not self._batches_left:
            self.close()
            self._keys.start = (epoch, batch)
            self._keys.end_epoch = None if self._read_ahead else epoch + 1
            self._stream = iter(self._loader)
            self._batches_left = self._batches_a_stream
        self._batches_left -= 1
        try:
            result = next(self._stream)
            if isinstance(result, UserError):
                raise result
        except BaseException:
            self.close()
            raise
        last = batch + 1 == self.batches_per_epoch
        self._position = (epoch + 1, 0) if last else (epoch, batch + 1)
        if last and not self._read_ahead:
            self.close()
        return _own(result)


def _own(batch: Any) -> Any:
    """The batch with clips in memory of its own: a worker will write its next batches where they lie.

    Page-locked batches are copies already.
    """
    return replace(batch, clips=batch.clips.clone()) if batch.clips.is_shared() else batch


def _videos_a_step(dataset: RecordClips[Any, Any], batch_size: int, parts: int) -> int:
    """Videos an optimiser step, after checking that they divide evenly into so many parts."""
    unit = parts * dataset.samples_per_video
    if batch_size < 1 or batch_size % unit:
        raise UserError(
            f"batch_size={batch_size} must be a positive multiple of ranks x accumulate x samples_per_video "
            f"= {unit}; take {max(batch_size // unit, 1) * unit} or {(max(batch_size, 0) // unit + 1) * unit}"
        )
    videos = batch_size // dataset.samples_per_video
    if videos > len(dataset):
        raise UserError(
            f"{dataset.records.source}: holds {len(dataset)} {dataset.unit}s, fewer than the {videos} of one "
            f"step (batch_size={batch_size}); take a smaller batch"
        )
    return videos


class _KeyStream(Sampler[_BatchKeys]):
    """The keys of this rank's batches from ``start`` on, epoch after epoch until ``end_epoch``."""

    def __init__(
        self,
        dataset: RecordClips[Any, Any],
        videos: int,
        accumulate: int,
        rank: int,
        world_size: int,
        shuffle: bool,
    ) -> None:
        self.start = (0, 0)
        self.end_epoch: int | None = None
        self._dataset, self._shuffle = dataset, shuffle
        self._videos, self._accumulate = videos, accumulate
        self._rank, self._world_size = rank, world_size

    def __iter__(self) -> Iterator[_BatchKeys]:
        first_epoch, first_batch = self.start
        for epoch in count(first_epoch):
            if epoch == self.end_epoch:
                return
            parts = self._epoch(epoch)  # [batches, videos, 2]
            for part in parts[first_batch:]:
                yield tuple(SampleKey(epoch, int(index), int(turn)) for index, turn in part)
            first_batch = 0

    def _epoch(self, epoch: int) -> np.ndarray:
        """Record indices and turns of this rank's batches, int64 [batches, videos a batch, 2]."""
        records = len(self._dataset)
        order = self._dataset.order(epoch) if self._shuffle else np.arange(records)
        steps = records // self._videos
        keys = np.stack([order, _turns(order)], axis=1)[: steps * self._videos]
        keys = keys.reshape(steps, self._world_size, -1, 2)
        return keys[:, self._rank].reshape(steps * self._accumulate, -1, 2)


def _turns(order: np.ndarray) -> np.ndarray:
    """How often each record has come before in an order, int64 [n]: 0 wherever none comes twice."""
    sorting = np.argsort(order, kind="stable")
    ordered = order[sorting]
    firsts = np.searchsorted(ordered, ordered)  # where the run of equal records begins
    turns = np.empty(len(order), np.int64)
    turns[sorting] = np.arange(len(order)) - firsts
    return turns


class _BatchMaker(Dataset["BatchT | UserError"], Generic[BatchT]):
    """Makes a whole batch from its keys.

    A user's mistake comes back as a value: raised in a worker it would reach the caller wrapped, with a
    traceback in its message.

    Args:
        dataset: makes the samples.
        ahead: batches that a worker makes before the first of them is taken. A worker is asked for another
            one when the caller has received one, so one slot more than that is never overwritten too early.
    """

    def __init__(self, dataset: RecordClips[Any, BatchT], *, ahead: int) -> None:
        self._dataset = dataset
        self._memory = SharedClips(ahead + 1)

    def __getitem__(self, keys: _BatchKeys) -> BatchT | UserError:
        memory = None if get_worker_info() is None else self._memory
        try:
            return self._dataset.collate([self._dataset[key] for key in keys], memory)
        except UserError as error:
            return error


def set_up_worker(worker: int) -> None:
    """One thread a worker, since the workers themselves are the parallelism; and no end by a signal.

    Ctrl-C and a cluster's SIGTERM reach the whole process group: the training process then finishes its step,
    for which it needs its workers, and ends them itself. Where it is killed it cannot: then they end with it.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _end_for_the_training()  # first, since a thread that does not block SIGTERM would swallow it
    _end_with_the_training()
    keep_freed_memory()  # for the frames of the next video
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _end_with_the_training() -> None:
    """End this worker when the process that asked for it is gone.

    torch's own watch looks at the parent: with a "forkserver" that is the server, which lives on for as long
    as one of its workers does.
    """
    training = multiprocessing.parent_process()
    if training is not None:

        def wait() -> None:
            training.join()
            os._exit(1)

        threading.Thread(target=wait, daemon=True).start()


def _end_for_the_training() -> None:
    """End this worker at a SIGTERM that the training process itself sends.

    At its exit multiprocessing sends one to every worker that nobody has ended, and waits for its end.
    """
    training = multiprocessing.parent_process()
    if training is None or not hasattr(signal, "sigwaitinfo"):  # macOS
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # for the threads to come, too

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != training.pid:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def end_workers(stream: Any) -> None:
    """End the worker processes behind an iterator of a ``DataLoader``, if there are any.

    Dropping the iterator would end them too, but only with the last reference, which the traceback of an
    error may hold, and then after a wait of five seconds.
    """
    if hasattr(stream, "_shutdown_workers"):
        stream._shutdown_workers()
        for worker in stream._workers:
            worker.kill()  # one that hangs in a read: they ignore the gentler signal that torch sends


def start_method() -> str:
    """How worker processes start: by a server that has imported this module, where the system has one."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return "spawn"
    # The server imports this once, before it forks any worker.
    multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
    return "forkserver"
