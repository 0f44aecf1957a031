"""The start of several ranks as one run, and the watch over ranks that are killed, stopped or cut off."""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

from videomaskfeat.errors import RunFailed, UserError

logger = logging.getLogger(__name__)

T = TypeVar("T")
BEAT_SECONDS = 2.0
"""Interval at which a rank publishes its position."""
_GRACE_SECONDS = 30.0  # after the limit, in which the collective's own error may end the run
_STORE_SECONDS = 10.0  # for an answer of the ranks' store
_MEET_SECONDS = 0.1  # between two looks at who has started
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
        self._rank, self._world_size, self.limit_seconds = rank, world_size, limit_seconds
        self._others = [other for other in range(world_size) if other != rank]
        self._store: dist.Store | None = None
        self._reachable = True
        self._ended = threading.Event()
        self._beats = 0
        self._heard: dict[int, tuple[str, float]] = {}  # rank: its last beat, and the time of its arrival
        self._contact = time.monotonic()  # time of the store's last answer

    def start(self, attempt: str = "") -> None:
        """Start to publish this rank's position.

        Args:
            attempt: name of this start of all ranks; the store may have positions of an earlier one.
        """
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=_STORE_SECONDS),
        )
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

    def other_positions(self) -> str:
        """The last known positions of the other ranks, for a message."""
        heard = {rank: _position(beat) for rank, (beat, _) in sorted(self._heard.items())}
        return "".join(f"rank {rank} is at step {at.step + 1}; " for rank, at in heard.items())

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
            if time.monotonic() - since > self.limit_seconds + _GRACE_SECONDS:
                logger.error(
                    "rank %d, step %d: rank %d has not answered for %.0f s; this rank stops; start the "
                    "same command again, which continues from the newest checkpoint",
                    self._rank,
                    self.position.step + 1,
                    silent,
                    self.limit_seconds + _GRACE_SECONDS,
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


def join(seconds: float) -> tuple[dist.Store, str, int, int]:
    """Wait until all ranks have started.

    Returns:
        A store of this start, its name, the number of this rank, and that of all.

    Raises:
        UserError: not all ranks started in time, or an environment variable of torchrun is missing.
    """
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise UserError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {missing[0]} is not set; start the ranks with "
            "torchrun, or set RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT for each"
        )
    own, ranks, limit = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), timedelta(seconds=seconds)
    absent: list[int] = []
    try:
        store, _, _ = next(iter(dist.rendezvous("env://", timeout=limit)))
        attempt, absent = _meet(dist.PrefixStore("videomaskfeat", store), own, ranks, seconds)
    except dist.DistError as error:
        raise _not_joined(own, ranks, seconds, absent) from error
    if absent:
        raise _not_joined(own, ranks, seconds, absent)
    return dist.PrefixStore(attempt, store), attempt, own, ranks


def _meet(store: dist.Store, own: int, ranks: int, seconds: float) -> tuple[str, list[int]]:
    """Wait for all ranks; returns a name for this start of them all, and the ranks that are missing.

    If torchrun restarts the ranks, the store still has the keys of the start before, and its counts of
    restarts may differ between machines. So rank 0 chooses a name, and each rank checks that rank 0 has seen
    it this time.
    """
    token, deadline = uuid.uuid4().hex, time.monotonic() + seconds
    others = range(1, ranks)
    if own == 0:
        store.set("start", token)
    attempt = ""
    while True:
        if store.check(["start"]) and store.get("start").decode() != attempt:
            attempt = store.get("start").decode()
            store.set(f"{attempt}/{own}", token)
        absent = [number for number in others if not (attempt and store.check([f"{attempt}/{number}"]))]
        if own == 0 and not absent:
            store.set(
                f"{attempt}/all", " ".join(store.get(f"{attempt}/{other}").decode() for other in others)
            )
            return attempt, []
        complete = own != 0 and attempt and store.check([f"{attempt}/all"])
        if complete and token in store.get(f"{attempt}/all").decode().split():
            return attempt, []
        if time.monotonic() > deadline:
            return attempt, absent or [0]
        time.sleep(_MEET_SECONDS)


def _not_joined(own: int, ranks: int, seconds: float, absent: list[int]) -> UserError:
    """The error of a rank that waited in vain for others."""
    numbers = ", ".join(map(str, absent[:8])) + (" and more" if len(absent) > 8 else "")
    return UserError(
        f"rank {own} of {ranks}: not all ranks joined at {os.environ['MASTER_ADDR']}:"
        f"{os.environ['MASTER_PORT']} within {seconds:g} s{f' (missing: rank {numbers})' if absent else ''}; "
        "start all of them with the same WORLD_SIZE, MASTER_ADDR and MASTER_PORT, check that the machines "
        "reach each other, or raise run.join_timeout_minutes"
    )
