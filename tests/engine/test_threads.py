"""Which number of threads is chosen, by a clock that the test turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from videomaskfeat.engine import threads


class Work:
    """Takes as many seconds as the test says for the number of threads, by a clock of its own."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.seconds = seconds
        self.now = 0.0
        self.calls: list[int] = []

    def __call__(self) -> None:
        self.calls.append(torch.get_num_threads())
        self.now += self.seconds[torch.get_num_threads()]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Work]]:
    """``machine(cores, free, seconds)``: work on a machine of that size."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def make(cores: int, free: int, seconds: dict[int, float]) -> Work:
        work = Work(seconds)
        monkeypatch.setattr(threads, "available_cores", lambda: cores)
        monkeypatch.setattr(threads, "free_cores", lambda cores, workers: max(free - workers, 1))
        monkeypatch.setattr(threads.time, "perf_counter", lambda: work.now)
        return work

    yield make
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({2: 0.165, 1: 0.212}, 2),  # a quiet machine
        ({2: 4.191, 1: 0.324}, 1),  # two threads wait for each other beside another process
        ({2: 0.206, 1: 0.212}, 1),  # the second thread is not worth a core
    ],
)
def test_choose_threads_takes_the_fastest(
    machine: Callable[..., Work], seconds: dict[int, float], expected: int
) -> None:
    choice = threads.choose_threads(machine(2, 2, seconds))
    assert choice.threads == torch.get_num_threads() == expected
    assert choice.seconds == pytest.approx(seconds)


def test_choose_threads_stops_where_fewer_are_slower(machine: Callable[..., Work]) -> None:
    work = machine(16, 13, {16: 0.30, 13: 0.20, 8: 0.21, 4: 0.4, 2: 0.8, 1: 1.6})
    choice = threads.choose_threads(work)
    # 8 threads take 5 % more than 13: worth the five cores. 4 take longer, so 2 and 1 are not tried.
    assert choice.threads == 8
    assert list(choice.seconds) == [16, 13, 8, 4]
    assert str(choice) == (
        "8 (measured per step: 16 threads 300 ms, 13 threads 200 ms, 8 threads 210 ms, 4 threads 400 ms)"
    )


def test_choose_threads_counts_workers(machine: Callable[..., Work]) -> None:
    work = machine(8, 8, {8: 0.3, 5: 0.2, 4: 0.4})
    assert threads.choose_threads(work, workers=3).threads == 5


def test_slow_work_is_tried_once_per_number(machine: Callable[..., Work]) -> None:
    work = machine(2, 2, {2: 8.0, 1: 14.0})
    assert threads.choose_threads(work).threads == 2
    assert work.calls == [2, 1]  # the first call counts, too


def test_without_work_the_free_cores_are_taken(machine: Callable[..., Work]) -> None:
    machine(4, 3, {})
    choice = threads.choose_threads(None)
    assert (choice.threads, torch.get_num_threads(), choice.reason) == (3, 3, "3 of 4 cores are free")


def test_environment_is_used_as_it_is(machine: Callable[..., Work], monkeypatch: pytest.MonkeyPatch) -> None:
    work = machine(8, 8, {})
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    choice = threads.choose_threads(work)
    assert (choice.threads, torch.get_num_threads(), choice.reason) == (3, 3, "OMP_NUM_THREADS")
    assert not work.calls


def test_one_core_needs_no_measurement(machine: Callable[..., Work]) -> None:
    work = machine(1, 1, {})
    assert threads.choose_threads(work).threads == 1
    assert not work.calls


def test_ranks_share_the_cores(machine: Callable[..., Work], monkeypatch: pytest.MonkeyPatch) -> None:
    work = machine(8, 8, {4: 0.1, 2: 0.2})
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(threads, "free_cores", lambda cores, workers: cores)
    assert threads.choose_threads(work).threads == 4
