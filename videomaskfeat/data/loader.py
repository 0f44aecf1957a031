"""Batches of clips from worker processes; the order is a pure function of (seed, epoch, batch number)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import count
from typing import Any, Generic, Protocol, TypeVar, cast

import numpy as np

from videomaskfeat.data.batches import Failure, SharedClips
from videomaskfeat.data.clips import BatchT, RecordClips, SampleKey
from videomaskfeat.data.workers import READ_SECONDS, LostReadings, Reading, TaskT, WorkerPool, in_worker
from videomaskfeat.errors import UserError
from videomaskfeat.texts import printable_name

logger = logging.getLogger(__name__)

ViewsT_co = TypeVar("ViewsT_co", covariant=True)
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

    def given_up(self, epoch: int) -> frozenset[int]:
        """Records that are not tried in an epoch, since each try costs two workers and perhaps minutes.

        Those that were lost two epochs before or earlier: by then their failure is counted on every rank and
        in every checkpoint, so that a resumed run, and any rank, gives up the same ones at the same time.
        """
        failures = self.failures.values()
        return frozenset(
            one.index for one in failures if one.lost_in_epoch is not None and one.lost_in_epoch <= epoch - 2
        )

    def add(self, failures: Iterable[Failure]) -> None:
        """Count failures; each record is counted and logged once, however often it comes.

        Raises:
            UserError: more records have failed than may.
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
                f"{len(self.failures)} of {self.total_records} {self._unit}s could not be read, and "
                f"{self.allowed} may fail (data.failure_share={self.share:g}): {'; '.join(shown)}"
                f"{f'; and {more} more' if more else ''}; {self._remedy}"
            )


class Loader(Generic[TaskT, BatchT]):
    """What all loaders share: worker processes that make batches in the order of their tasks.

    Workers that end or hang are replaced, see `WorkerPool`, and the stream of batches goes on as if nothing
    had happened. If the reading of a record ends or stops a second worker too, the record fails in this
    sample. That is decided for each sample by itself, by the same file and the same draws, so it comes out
    alike in a resumed run, which knows nothing of it, and on any rank.
    """

    def __init__(
        self,
        make: Callable[[TaskT], BatchT],
        path_of: Callable[[Reading], str],
        *,
        workers: int,
        ahead: int,
        read_seconds: float,
        **options: Any,
    ) -> None:
        """Check the numbers; workers start with `_start`. All arguments are those of `WorkerPool`.

        Raises:
            UserError: a number that cannot be.
        """
        check_least(workers=(workers, 0))
        if not read_seconds > 0:
            raise UserError(
                f"read_seconds={read_seconds:g}: must be above 0; {READ_SECONDS:g} is the default"
            )
        self._make, self._path_of = make, path_of
        self._options: dict[str, Any] = {
            "workers": workers,
            "ahead": ahead,
            "read_seconds": read_seconds,
            "lost": LostReadings(),
            **options,
        }

    def _start(self, tasks: Iterator[TaskT | None]) -> WorkerPool[TaskT, BatchT]:
        """Start the workers."""
        return WorkerPool(self._make, tasks, path_of=self._path_of, **self._options)


class ClipLoader(Loader[_BatchKeys, BatchT]):
    """Loads batches to train on; the data set decides of what kind they are.

    Step s of an epoch takes the s-th run of ``batch_size`` clips in the epoch's order, each rank its part of
    them, cut into ``accumulate`` micro-batches; the last incomplete step of an epoch is left out. Neither the
    number of workers nor that of ranks changes what a step holds, and any batch can be the first one to be
    made, so (epoch, batch number) is all the state that a resumed run needs. Records that fail are replaced.
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
        """Check the sizes; workers start with the first batch.

        Args:
            dataset: makes the samples; its seed also orders them.
            batch_size: clips per optimizer step, over all ranks and micro-batches.
            accumulate: micro-batches per optimizer step.
            workers: processes of this rank; 0 makes batches in the calling process.
            rank: of this process, 0..world_size-1.
            world_size: processes that train together.
            pin_memory: hand out page-locked batches, for fast copies to a GPU.
            shuffle: a new order each epoch; otherwise the list's own.
            read_ahead: at the end of an epoch the workers go on with the next one, so that no time is lost
                between epochs. Switch it off where epochs do not follow each other, as in evaluation.
            whole_batches: each rank takes every ``world_size``-th batch whole instead of its part of each;
                ranks may have one batch more or less.
            prefetch_batches: batches that each worker makes ahead, or more if the workers together would
                otherwise not hold a whole step; with the batch size, bounds the memory.
            read_seconds: time that a worker may spend on one record without progress before it is replaced.
            renew_megabytes: growth of a worker's own memory after which a fresh process takes its place; the
                others go on. PyAV keeps 0.5 to 5.9 kB of every opened video for good, depending on the file
                (decord next to nothing): a renewal every 18,000 videos or more.
            readings_to_settle: records that a worker reads before its growth is measured.

        Raises:
            UserError: a number that cannot be, or a batch that does not divide evenly or is larger than the
                list.
        """
        check_least(accumulate=(accumulate, 1))
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
        parts = 1 if whole_batches else world_size
        videos = _videos_per_step(dataset, batch_size, parts * accumulate)
        self.dataset, self.batch_size = dataset, batch_size
        self.given_up: Callable[[int], frozenset[int]] = lambda epoch: frozenset()
        """Epoch -> records that are not tried in it: `FailureCounter.given_up` of a training's counter."""
        batches = len(dataset) // videos * accumulate
        self.batches_per_epoch = len(range(rank, batches, world_size)) if whole_batches else batches
        """Micro-batches that this rank gets in an epoch."""
        self._read_ahead = read_ahead
        self._keys = _KeyStream(dataset, videos, accumulate, rank, world_size, shuffle, whole_batches)
        self._pool: WorkerPool[_BatchKeys, BatchT] | None = None
        self._position = (0, 0)  # epoch and batch that the pool gives next

    def epoch(
        self, epoch: int, first_batch: int = 0, stop: Callable[[], bool] = lambda: False
    ) -> Iterator[BatchT]:
        """The batches of an epoch (from 0), from ``first_batch`` (from 0) on; those before it cost nothing.

        ``stop`` is called about twice per second while waiting for a batch; once it is true, there are no
        more.

        Raises:
            UserError: the list cannot be read (see `RecordClips`).
            RunFailed: worker processes end again and again.
        """
        for number in range(first_batch, self.batches_per_epoch):
            batch = self._batch(epoch, number, stop)
            if batch is None:
                return
            yield batch

    def close(self) -> None:
        """End the workers; a later batch starts them anew."""
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
        self._keys.now, self._keys.given_up = epoch, self.given_up
        try:
            batch = self._pool.take(stop)
        except BaseException:
            self.close()
            raise
        if batch is None:
            self.close()
            return None
        last = number + 1 == self.batches_per_epoch
        self._position = (epoch + 1, 0) if last else (epoch, number + 1)
        if last and not self._read_ahead:
            self.close()
        return cast(BatchT, _own(batch))


class Views(Protocol[TaskT, ViewsT_co]):
    """A data set to test on: `EvaluationViews`, `KeyFrameViews`."""

    def tasks(self, per_batch: int, rank: int, world_size: int) -> Sequence[TaskT]:
        """What makes each batch of a rank, in the order of the list."""
        ...

    def batch(self, task: TaskT, /) -> ViewsT_co:
        """The batch of a task; calls ``begin_reading`` before it opens a record."""
        ...

    def path_of(self, reading: Reading) -> str:
        """The path that a reading is about."""
        ...


class ViewLoader(Loader[TaskT, BatchT]):
    """All views of a list's videos or key frames, a few per batch, in the list's order.

    Every record is taken exactly once, whatever the number of ranks, and ranks may have one batch more or
    less than others. Iterate as often as you like.
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
        """Check the sizes; workers start with each iteration and end with it.

        Args:
            dataset: makes the views.
            per_batch: videos or key frames per batch, at most.
            workers, rank, world_size, pin_memory, read_seconds: see `ClipLoader`.
            prefetch_batches: batches that each worker makes ahead.

        Raises:
            UserError: a number that cannot be.
        """
        check_least(per_batch=(per_batch, 1))
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
        """Batches of this rank."""
        return len(self._tasks)

    def __iter__(self) -> Generator[BatchT, None, None]:
        """The batches of this rank.

        Raises:
            UserError: the reader is unknown or not installed.
            RunFailed: worker processes end again and again.
        """
        pool = self._start(iter(self._tasks))
        try:
            while (batch := pool.take()) is not None:
                yield batch
        finally:
            pool.close()


def check_least(**values: tuple[int, int]) -> None:
    """Raise a UserError for a value below its least one: ``name=(value, least)``."""
    for name, (value, least) in values.items():
        if value < least:
            raise UserError(f"{name}={value}: must be at least {least}")


def _own(batch: Any) -> Any:
    """The batch with clips in memory of its own: a worker will write its next batches where they lie.

    Page-locked batches are copies already.
    """
    return replace(batch, clips=batch.clips.clone()) if batch.clips.is_shared() else batch


def _videos_per_step(dataset: RecordClips[Any, Any], batch_size: int, parts: int) -> int:
    """Videos per optimizer step, after checking that they divide evenly into so many parts."""
    unit = parts * dataset.samples_per_video
    if batch_size < 1 or batch_size % unit:
        below, above = (max(batch_size, 0) // unit * unit, (max(batch_size, 0) // unit + 1) * unit)
        raise UserError(
            f"batch_size={batch_size} must be a positive multiple of ranks x accumulate x samples_per_video "
            f"= {unit}; take {f'{below} or {above}' if below else above}"
        )
    videos = batch_size // dataset.samples_per_video
    if videos > len(dataset):
        raise UserError(
            f"{dataset.records.source}: holds {len(dataset)} {dataset.unit}s, fewer than the {videos} of one "
            f"step (batch_size={batch_size}); take a smaller batch"
        )
    return videos


class _KeyStream:
    """The keys of this rank's batches."""

    def __init__(
        self,
        dataset: RecordClips[Any, Any],
        videos: int,
        accumulate: int,
        rank: int,
        world_size: int,
        shuffle: bool,
        whole_batches: bool,
    ) -> None:
        self.now = 0  # the epoch that the caller is in
        self.given_up: Callable[[int], frozenset[int]] = lambda epoch: frozenset()
        self._dataset, self._shuffle, self._whole_batches = dataset, shuffle, whole_batches
        self._videos, self._accumulate = videos, accumulate
        self._rank, self._world_size = rank, world_size

    def stream(self, start: tuple[int, int], *, end_epoch: int | None) -> Iterator[_BatchKeys | None]:
        """The keys from an epoch and batch on, epoch after epoch.

        None for an epoch after the next one, since the records given up in it are not known yet.
        """
        first_epoch, first_batch = start
        for epoch in count(first_epoch):
            if epoch == end_epoch:
                return
            while epoch > self.now + 1:
                yield None
            parts = self._epoch(epoch)  # [batches, videos, 2]
            given_up = self.given_up(epoch)
            for part in parts[first_batch:]:
                yield tuple(SampleKey(epoch, int(index), int(turn), given_up) for index, turn in part)
            first_batch = 0

    def _epoch(self, epoch: int) -> np.ndarray:
        """Record indices and turns of this rank's batches, int64 [batches, videos a batch, 2]."""
        records = len(self._dataset)
        order = self._dataset.order(epoch) if self._shuffle else np.arange(records)
        steps = records // self._videos
        keys = np.stack([order, _turns(order)], axis=1)[: steps * self._videos]
        if self._whole_batches:
            return keys.reshape(steps * self._accumulate, -1, 2)[self._rank :: self._world_size]
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


class _BatchMaker(Generic[BatchT]):
    """Makes a whole batch from its keys.

    A worker makes ``ahead`` batches before the first of them is taken, and is given another task when the
    caller has received a batch, so one slot of memory more than that is never overwritten too early.
    """

    def __init__(self, dataset: RecordClips[Any, BatchT], *, ahead: int) -> None:
        self._dataset = dataset
        self._memory = SharedClips(ahead + 1)

    def __call__(self, keys: _BatchKeys) -> BatchT:
        samples = [self._dataset[key] for key in keys]
        return self._dataset.collate(samples, self._memory if in_worker() else None)
