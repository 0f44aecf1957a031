"""Names the rank that is killed, stopped or behind when the ranks of a run cannot reach each other."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

from videomaskfeat.errors import RunFailed

logger = logging.getLogger(__name__)

T = TypeVar("T")

BEAT_SECONDS = 2.0
"""How often a rank publishes its position."""
_GRACE_SECONDS = 30.0  # after the limit, in which the collective's own error may end the run
_STORE_SECONDS = 10.0  # for the answers of the ranks' store
_BEATS = 2.5  # without news, after which a rank counts as gone


@dataclass
class Position:
    """How far a rank has come: optimizer steps done, and calls that wait for the other ranks."""

    step: int = 0
    calls: int = 0


class RankWatch:
    """Keeps this rank's position in the store that the ranks share, and reads those of the others.

    Args:
        rank: of this process.
        world_size: ranks of the run.
        limit_seconds: silence of a rank after which this process ends.
    """

    def __init__(self, *, rank: int, world_size: int, limit_seconds: float) -> None:
        self.position = Position()
        self._rank, self._world_size, self._limit_seconds = rank, world_size, limit_seconds
        self._store: dist.Store | None = None
        self._reachable = True
        self._ended = threading.Event()
        self._beats = 0
        self._heard: dict[int, tuple[str, float]] = {}  # the last beat of each other rank, and since when
        self._contact = time.monotonic()  # when the store last answered

    def start(self) -> None:
        """Begin to renew this rank's position."""
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
        position = self.position
        return RunFailed(
            f"rank {self._rank}, step {position.step + 1}: {self._causes()}; this rank ends too; start the"
            " same command again, which goes on from the newest checkpoint"
        )

    def _causes(self) -> str:
        """The ranks at fault, for a message."""
        others = [rank for rank in range(self._world_size) if rank != self._rank]
        before = after = ended = _in_time(lambda: self._read("beat", others))
        if before is not None:
            time.sleep(_BEATS * BEAT_SECONDS)
            after = _in_time(lambda: self._read("beat", others))
        if after is not None:
            ended = _in_time(lambda: self._read("end", others))
        if before is None or after is None or ended is None:
            self._reachable = False
            return "rank 0, which connects the ranks, does not answer: it was killed, stopped or cut off"
        words = [
            f"rank {rank} ended: {ended[rank]}" if ended[rank] else self._silence(rank, after[rank])
            for rank in others
            if ended[rank] or before[rank] == after[rank]
        ]
        if words:
            return "; ".join(words)
        behind = [
            f"rank {rank} is busy at step {_position(beat).step + 1}"
            for rank, beat in after.items()
            if _position(beat).calls < self.position.calls
        ]
        return "; ".join(behind) or "the connection to another rank was lost, and all ranks still run"

    def _silence(self, rank: int, beat: str) -> str:
        return (
            f"rank {rank} does not answer (last seen at step {_position(beat).step + 1}): it was killed,"
            " stopped or cut off"
        )

    def _keep(self) -> None:
        """Publish this rank's position and read those of the others."""
        others = [rank for rank in range(self._world_size) if rank != self._rank]
        while not self._ended.wait(BEAT_SECONDS):
            try:
                self._beat()
                beats = self._read("beat", others)
            except dist.DistError:  # rank 0, which holds the store, is gone
                continue
            self._contact = time.monotonic()
            for rank, beat in beats.items():
                if self._heard.get(rank, ("", 0.0))[0] != beat or rank not in self._heard:
                    self._heard[rank] = beat, self._contact

    def _guard(self) -> None:
        """End the process if another rank is silent for longer than the limit.

        By then most calls that wait for that rank have raised an error, which has ended the run; those of
        NCCL may never do.
        """
        while not self._ended.wait(BEAT_SECONDS):
            silent, since = 0, self._contact
            for rank, (_, heard) in list(self._heard.items()):
                if heard < since - _BEATS * BEAT_SECONDS:
                    silent, since = rank, heard
            if time.monotonic() - since > self._limit_seconds + _GRACE_SECONDS:
                logger.error(
                    "rank %d, step %d: rank %d has not answered for %.0f s; ended; start the same command"
                    " again, which goes on from the newest checkpoint",
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

    def _read(self, kind: str, ranks: list[int]) -> dict[int, str]:
        """The last value of a kind per rank; empty if a rank wrote none."""
        assert self._store is not None
        keys = {rank: f"{kind}/{rank}" for rank in ranks}
        return {
            rank: self._store.get(key).decode() if self._store.check([key]) else ""
            for rank, key in keys.items()
        }


def _in_time(function: Callable[[], T]) -> T | None:
    """The result of a call to the ranks' store; None if it does not answer.

    If the process that holds the store is stopped, such a call never ends, despite the store's time limit.
    """
    results: list[T] = []

    def call() -> None:
        with suppress(dist.DistError):
            results.append(function())

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(_STORE_SECONDS)
    return results[0] if results else None


def is_connection_error(error: BaseException) -> bool:
    """Whether torch raised an error since another rank could not be reached."""
    if isinstance(error, RunFailed):
        return False
    if isinstance(error, dist.DistError):
        return True
    # Gloo's errors are plain RuntimeErrors; they name the file of its sources that raised them.
    return isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo/", "NCCL"))


def _position(beat: str) -> Position:
    _, step, calls = (beat or "0 0 0").split()
    return Position(int(step), int(calls))
