"""Batches of clips from worker processes; the order is a pure function of (seed, epoch, batch number)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

import numpy as np

from videomaskfeat.data.batches import Failure, SharedClips
from videomaskfeat.data.clips import BatchT, RecordClips, SampleKey
from videomaskfeat.data.workers import READ_SECONDS, LostReadings, Reading, in_worker
from videomaskfeat.errors import UserError
from videomaskfeat.texts import printable_name

if TYPE_CHECKING:
    from videomaskfeat.data.worker_pool import WorkerPool

logger = logging.getLogger(__name__)

TaskT = TypeVar("TaskT")
ViewsT_co = TypeVar("ViewsT_co", covariant=True)
_BatchKeys = tuple[SampleKey, ...]


class FailureCounter:
    """Counts the unreadable records of a list, and stops the run if there are too many.

    Args:
        total_records: number of rows of the list.
        share: share of the list that may fail, 0..1; above 0 at least one record may fail.
        unit: noun for a record, see `RecordClips.unit`.
        remedy: end of the message if too many records failed.

    Raises:
        UserError: the share is not between 0 and 1.
    """

    def __init__(
        self,
        total_records: int,
        share: float = 0.01,
        *,
        unit: str = "video",
        remedy: str = "`videomaskfeat check-data` writes a list without them",
    ) -> None:
        if not 0 <= share <= 1:
            raise UserError(
                f"failure_share={share:g} must be between 0 and 1; with 0.01, 1 % of the list may fail"
            )
        self.total_records, self.share = total_records, share
        self._unit, self._remedy = unit, remedy
        self.allowed = max(int(share * total_records), 1) if share else 0
        self.failures: dict[int, Failure] = {}

    def __len__(self) -> int:
        """Number of different records that failed."""
        return len(self.failures)

    def state_dict(self) -> dict[str, Any]:
        """The failures so far as plain data."""
        return {"failures": [asdict(failure) for failure in self.failures.values()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.failures = {entry["index"]: Failure(**entry) for entry in state["failures"]}

    def skipped_records(self, epoch: int) -> frozenset[int]:
        """Records that an epoch does not try, since each try may crash two workers and take minutes.

        These are the records that crashed workers two epochs before or earlier: by then every rank and every
        checkpoint has counted the failure, so a resumed run, and any rank, skips the same records at the same
        time.
        """
        return frozenset(
            failure.index
            for failure in self.failures.values()
            if failure.lost_in_epoch is not None and failure.lost_in_epoch <= epoch - 2
        )

    def add(self, failures: Iterable[Failure]) -> None:
        """Count and log failures, each record once.

        Raises:
            UserError: more records failed than allowed.
        """
        for failure in failures:
            known = self.failures.get(failure.index)
            if known is None:
                self.failures[failure.index] = failure
                name = printable_name(failure.path)
                logger.warning("unreadable %s, replaced: %s: %s", self._unit, name, failure.cause)
            elif known.lost_in_epoch is None and failure.lost_in_epoch is not None:
                self.failures[failure.index] = replace(known, lost_in_epoch=failure.lost_in_epoch)
        if len(self.failures) > self.allowed:
            shown = [
                f"{printable_name(failure.path)} ({failure.cause})"
                for failure in list(self.failures.values())[:10]
            ]
            more = len(self.failures) - len(shown)
            raise UserError(
                f"{len(self.failures)} of {self.total_records} {self._unit}s could not be read, but at "
                f"most {self.allowed} may fail (data.failure_share={self.share:g}): {'; '.join(shown)}"
                f"{f'; and {more} more' if more else ''}; {self._remedy}"
            )


class Loader(Generic[TaskT, BatchT]):
    """Base of all loaders: worker processes that make batches in the order of their tasks.

    Workers that crash or hang are replaced (see `WorkerPool`), and the stream of batches stays the same. If
    the reading of a record crashes or stops a second worker too, the record fails in this sample. This is
    decided for each sample independently, by the same file and the same draws, so the result is the same in a
    resumed run and on any rank.

    Arguments are those of `WorkerPool`; workers start with `_start`.

    Raises:
        UserError: an argument is out of range.
    """

    def __init__(
        self,
        make: Callable[[TaskT], BatchT],
        path_of: Callable[[Reading], str],
        *,
        workers: int,
        read_seconds: float,
        **options: Any,
    ) -> None:
        check_minimum(workers=(workers, 0))
        if not read_seconds > 0:
            raise UserError(
                f"read_seconds={read_seconds:g}: must be above 0; the default is {READ_SECONDS:g}"
            )
        self._make, self._path_of = make, path_of
        self._options = {
            "workers": workers,
            "read_seconds": read_seconds,
            "lost": LostReadings(),
            **options,
        }

    def _start(self, tasks: Iterator[TaskT | None]) -> WorkerPool[TaskT, BatchT]:
        from videomaskfeat.data.worker_pool import WorkerPool

        return WorkerPool(self._make, tasks, path_of=self._path_of, **self._options)


class ClipLoader(Loader[_BatchKeys, BatchT]):
    """Loads batches to train on, of the kind that the data set makes.

    Step s of an epoch uses clips s * ``batch_size`` to (s + 1) * ``batch_size`` of the epoch's order. Each
    rank gets an equal share of them, in ``accumulate`` micro-batches; the last incomplete step of an epoch is
    dropped. The content of a step depends neither on the number of workers nor on the number of ranks, and
    loading can start at any batch, so (epoch, batch number) is all the state that a resumed run needs.
    Records that fail are replaced. Workers start with the first batch.

    Args:
        dataset: makes the samples; its seed also orders them.
        batch_size: clips per optimizer step, over all ranks and micro-batches.
        accumulate: micro-batches per optimizer step.
        workers: number of processes of this rank; 0 makes batches in the calling process.
        rank: rank of this process, 0..world_size-1.
        world_size: number of processes that train together.
        pin_memory: return page-locked batches, for fast copies to a GPU.
        shuffle: a new order in each epoch; otherwise the order of the list.
        read_ahead: at the end of an epoch, workers continue with the next one, so that no time is lost
            between epochs. Disable it if epochs do not follow each other, as in evaluation.
        whole_batches: each rank gets every ``world_size``-th batch whole instead of a share of each; ranks
            may have one batch more or less.
        prefetch_batches: batches that each worker makes ahead, or more if a whole step needs more; with the
            batch size, this bounds the memory.
        read_seconds: maximum time per record without progress; then the worker is replaced.
        renew_megabytes: growth of a worker's own memory after which a fresh process replaces it; the others
            continue. PyAV keeps 0.5 to 5.9 kB of every opened video, depending on the file (decord next to
            nothing): a renewal every 18,000 videos or more.
        readings_to_settle: records that a worker reads before its growth is measured.

    Attributes:
        skipped_records: epoch -> records that it does not try; a training sets
            `FailureCounter.skipped_records`.
        batches_per_epoch: micro-batches of this rank per epoch.

    Raises:
        UserError: an argument is out of range, or a batch does not divide evenly or is larger than the list.
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
        whole_batches: bool = False,
        prefetch_batches: int = 2,
        read_seconds: float = READ_SECONDS,
        renew_megabytes: float = 100.0,
        readings_to_settle: int = 1_000,
    ) -> None:
        check_minimum(accumulate=(accumulate, 1))
        # The training loop takes the batches of a whole step at once.
        ahead = max(prefetch_batches, math.ceil(accumulate / max(workers, 1)))
        super().__init__(
            _BatchMaker(dataset, ahead=ahead),
            lambda reading: dataset.records[reading[-1]].path,
            workers=workers,
            ahead=ahead,
            read_seconds=read_seconds,
            renew_megabytes=renew_megabytes,
            readings_to_settle=readings_to_settle,
            pin_memory=pin_memory,
        )
        shares = 1 if whole_batches else world_size
        videos = _videos_per_step(dataset, batch_size, shares * accumulate)
        self.dataset, self.batch_size = dataset, batch_size
        self.skipped_records: Callable[[int], frozenset[int]] = lambda epoch: frozenset()
        batches = len(dataset) // videos * accumulate
        self.batches_per_epoch = len(range(rank, batches, world_size)) if whole_batches else batches
        self._read_ahead = read_ahead
        self._keys = _KeyStream(dataset, videos, accumulate, rank, world_size, shuffle, whole_batches)
        self._pool: WorkerPool[_BatchKeys, BatchT] | None = None
        self._position = (0, 0)  # epoch and number of the pool's next batch

    def epoch(
        self, epoch: int, first_batch: int = 0, stop: Callable[[], bool] = lambda: False
    ) -> Iterator[BatchT]:
        """The batches of an epoch (from 0), starting at ``first_batch`` (from 0); earlier ones cost nothing.

        ``stop`` is called about twice per second while waiting for a batch; once it is true, the iterator
        ends.

        Raises:
            UserError: the list cannot be read (see `RecordClips`).
            RunFailed: worker after worker was lost.
        """
        for number in range(first_batch, self.batches_per_epoch):
            batch = self._batch(epoch, number, stop)
            if batch is None:
                return
            yield batch

    def close(self) -> None:
        """End the workers; a later batch starts new ones."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def __enter__(self) -> ClipLoader[BatchT]:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _batch(self, epoch: int, number: int, stop: Callable[[], bool]) -> BatchT | None:
        """A batch, or None if ``stop`` is true."""
        if self._pool is None or self._position != (epoch, number):
            self.close()
            end_epoch = None if self._read_ahead else epoch + 1
            self._pool = self._start(self._keys.stream((epoch, number), end_epoch=end_epoch))
        self._keys.current_epoch, self._keys.skipped_records = epoch, self.skipped_records
        try:
            batch = self._pool.take(stop)
        except BaseException:
            self.close()
            raise
        last = number + 1 == self.batches_per_epoch
        self._position = (epoch + 1, 0) if last else (epoch, number + 1)
        if batch is None or (last and not self._read_ahead):
            self.close()
        return None if batch is None else cast(BatchT, copy_shared_clips(batch))


class Views(Protocol[TaskT, ViewsT_co]):
    """A data set to test on: `EvaluationViews`, `KeyFrameViews`."""

    def tasks(self, per_batch: int, rank: int, world_size: int) -> Sequence[TaskT]:
        """One task per batch of a rank, in the order of the list."""
        ...

    def batch(self, task: TaskT, /) -> ViewsT_co:
        """The batch of a task; calls ``begin_reading`` before it opens a record."""
        ...

    def path_of(self, reading: Reading) -> str:
        """The path of a reading."""
        ...


class ViewLoader(Loader[TaskT, BatchT]):
    """All views of a list's videos or key frames, a few per batch, in the list's order.

    Every record is loaded exactly once, whatever the number of ranks; ranks may have one batch more or less.
    The loader can be iterated several times; workers start and end with each iteration.

    Args:
        dataset: makes the views.
        per_batch: maximum number of videos or key frames per batch.
        workers, rank, world_size, pin_memory, read_seconds: see `ClipLoader`.
        prefetch_batches: batches that each worker makes ahead.

    Raises:
        UserError: an argument is out of range.
    """

    def __init__(
        self,
        dataset: Views[TaskT, BatchT],
        *,
        per_batch: int,
        workers: int,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
        prefetch_batches: int = 2,
        read_seconds: float = READ_SECONDS,
    ) -> None:
        check_minimum(per_batch=(per_batch, 1))
        super().__init__(
            dataset.batch,
            dataset.path_of,
            workers=workers,
            ahead=prefetch_batches,
            read_seconds=read_seconds,
            pin_memory=pin_memory,
        )
        self.dataset = dataset
        self._tasks = dataset.tasks(per_batch, rank, world_size)

    def __len__(self) -> int:
        """Number of batches of this rank."""
        return len(self._tasks)

    def __iter__(self) -> Generator[BatchT, None, None]:
        """The batches of this rank.

        Raises:
            UserError: the reader is unknown or not installed.
            RunFailed: worker after worker was lost.
        """
        pool = self._start(iter(self._tasks))
        try:
            while (batch := pool.take()) is not None:
                yield batch
        finally:
            pool.close()


def check_minimum(**values: tuple[int, int]) -> None:
    """Raise UserError if a value is below its minimum: ``name=(value, minimum)``."""
    for name, (value, minimum) in values.items():
        if value < minimum:
            raise UserError(f"{name}={value}: must be at least {minimum}")


def copy_shared_clips(batch: Any) -> Any:
    """The batch with clips in its own memory: a worker writes its next batches into the shared memory.

    Page-locked batches are copies already.
    """
    return replace(batch, clips=batch.clips.clone()) if batch.clips.is_shared() else batch


def _videos_per_step(dataset: RecordClips[Any, Any], batch_size: int, shares: int) -> int:
    """Videos per optimizer step; UserError unless they divide evenly into ``shares``."""
    unit = shares * dataset.samples_per_video
    if batch_size < 1 or batch_size % unit:
        below = max(batch_size, 0) // unit * unit
        raise UserError(
            f"batch_size={batch_size} must be a positive multiple of ranks x accumulate x samples_per_video "
            f"= {unit}; use {f'{below} or ' if below else ''}{below + unit}"
        )
    videos = batch_size // dataset.samples_per_video
    if videos > len(dataset):
        largest = len(dataset) * dataset.samples_per_video // unit * unit
        remedy = (
            f"set optim.batch_size={largest} or less"
            if largest
            else f"use more {dataset.unit}s or fewer ranks"
        )
        raise UserError(
            f"{dataset.records.source} contains {len(dataset)} {dataset.unit}s, fewer than the {videos} of "
            f"one step (batch_size={batch_size}); {remedy}"
        )
    return videos


@dataclass
class _KeyStream:
    """The keys of this rank's batches."""

    dataset: RecordClips[Any, Any]
    videos: int
    accumulate: int
    rank: int
    world_size: int
    shuffle: bool
    whole_batches: bool
    current_epoch: int = 0
    skipped_records: Callable[[int], frozenset[int]] = lambda epoch: frozenset()

    def stream(self, start: tuple[int, int], *, end_epoch: int | None) -> Iterator[_BatchKeys | None]:
        """The keys from (epoch, batch) on, epoch after epoch.

        None for an epoch after the next one, since its skipped records are still unknown.
        """
        first_epoch, first_batch = start
        for epoch in count(first_epoch):
            if epoch == end_epoch:
                return
            while epoch > self.current_epoch + 1:
                yield None
            batches = self._epoch(epoch)  # [batches, videos, 2]
            skipped = self.skipped_records(epoch)
            for batch in batches[first_batch:]:
                yield tuple(SampleKey(epoch, int(index), int(turn), skipped) for index, turn in batch)
            first_batch = 0

    def _epoch(self, epoch: int) -> np.ndarray:
        """Record indices and turns of this rank's batches, int64 [batches, videos per batch, 2]."""
        records = len(self.dataset)
        order = self.dataset.order(epoch) if self.shuffle else np.arange(records)
        steps = records // self.videos
        keys = np.stack([order, _turns(order)], axis=1)[: steps * self.videos]
        if self.whole_batches:
            return keys.reshape(steps * self.accumulate, -1, 2)[self.rank :: self.world_size]
        keys = keys.reshape(steps, self.world_size, -1, 2)
        return keys[:, self.rank].reshape(steps * self.accumulate, -1, 2)


def _turns(order: np.ndarray) -> np.ndarray:
    """How often each record occurs earlier in an order, int64 [n]."""
    sorting = np.argsort(order, kind="stable")
    ordered = order[sorting]
    firsts = np.searchsorted(ordered, ordered)  # where the run of equal records begins
    turns = np.empty(len(order), np.int64)
    turns[sorting] = np.arange(len(order)) - firsts
    return turns


class _BatchMaker(Generic[BatchT]):
    """Makes a whole batch from its keys.

    A worker makes ``ahead`` batches before the caller takes the first one, and gets another task when the
    caller has received a batch: with one slot of memory more, no batch is overwritten too early.
    """

    def __init__(self, dataset: RecordClips[Any, BatchT], *, ahead: int) -> None:
        self._dataset = dataset
        self._memory = SharedClips(ahead + 1)

    def __call__(self, keys: _BatchKeys) -> BatchT:
        samples = [self._dataset[key] for key in keys]
        return self._dataset.collate(samples, self._memory if in_worker() else None)
