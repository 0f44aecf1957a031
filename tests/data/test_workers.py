"""Workers that are killed, stopped or hang are replaced, and the batches stay the same."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.data.clip_data import deadly_clips, equal, make_clips, write_videos
from videomaskfeat.data import worker_pool
from videomaskfeat.data.batches import PretrainBatch, empty_clips
from videomaskfeat.data.clips import SampleKey
from videomaskfeat.data.formats import load_records
from videomaskfeat.data.loader import ClipLoader, FailureCounter, ViewLoader
from videomaskfeat.data.reader import VideoReadError
from videomaskfeat.data.views import EvaluationViews
from videomaskfeat.data.worker_pool import WorkerPool, call_in_workers
from videomaskfeat.errors import RunFailed


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve videos."""
    return write_videos(tmp_path_factory.mktemp("videos"), 12)


@pytest.fixture(scope="module")
def undisturbed(videos: Path) -> list[PretrainBatch]:
    """Two epochs of six batches, made in this process."""
    loader = ClipLoader(make_clips(videos), batch_size=2)
    return [*loader.epoch(0), *loader.epoch(1)]


@pytest.fixture(autouse=True)
def no_worker_is_left() -> Iterator[None]:
    before = set(_pids())
    yield
    left = set(_pids()) - before
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def _pids() -> list[int]:
    return [process.pid for process in multiprocessing.active_children() if process.pid is not None]


def _two_epochs(loader: ClipLoader[PretrainBatch], after_first: Callable[[], None]) -> list[PretrainBatch]:
    batches = []
    for epoch in (0, 1):
        for batch in loader.epoch(epoch):
            batches.append(batch)
            if len(batches) == 1:
                after_first()
    loader.close()
    return batches


def _send(number: signal.Signals, loader: ClipLoader[PretrainBatch], count: int) -> None:
    """Send a signal to the first workers, once they have started: a start has a limit of its own."""
    assert loader._pool is not None
    workers = loader._pool._workers[:count]
    while not all(worker.started for worker in workers):
        time.sleep(0.01)
    for worker in workers:
        assert worker._process.pid is not None
        os.kill(worker._process.pid, number)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("share", [1, 2])
def test_killed_and_stopped_workers_are_replaced_and_the_stream_is_the_same(
    videos: Path, undisturbed: list[PretrainBatch], number: signal.Signals, share: int
) -> None:
    loader = ClipLoader(make_clips(videos), batch_size=2, workers=2, read_seconds=1.5)
    batches = _two_epochs(loader, lambda: _send(number, loader, share))
    assert all(equal(*pair) for pair in zip(batches, undisturbed, strict=True))


@pytest.mark.parametrize(
    ("deed", "cause"),
    [
        ("abort", "the decoder crashed (SIGABRT)"),
        ("kill", "the worker process was killed (SIGKILL)"),
        ("hang", "not read within 0.6 seconds"),
        ("stop", "not read within 0.6 seconds"),
    ],
)
def test_record_that_crashes_two_workers_fails_and_is_replaced(
    videos: Path, undisturbed: list[PretrainBatch], deed: str, cause: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its replacement is that of an empty file, and all other samples do not change."""
    loader = ClipLoader(
        deadly_clips(videos, {5: deed}), batch_size=2, workers=2, read_seconds=0.6, shuffle=False
    )
    with caplog.at_level(logging.WARNING):
        batches = list(loader.epoch(0))
    loader.close()
    assert sum("is lost" in message and "005.mp4" in message for message in caplog.messages) == 2
    undamaged = list(ClipLoader(make_clips(videos), batch_size=2, shuffle=False).epoch(0))
    hit = batches.pop(2), undamaged.pop(2)  # records 4 and 5
    assert all(equal(*pair) for pair in zip(batches, undamaged, strict=True))
    assert torch.equal(hit[0].clips[0], hit[1].clips[0])
    (failure,) = hit[0].failures
    assert (failure.index, failure.cause) == (5, cause)
    with_empty = make_clips(_with_empty_file(videos, 5))
    replaced = with_empty[SampleKey(0, 5)]
    assert hit[0].index.tolist() == [4, replaced.index]
    assert torch.equal(hit[0].clips[1], torch.from_numpy(replaced.clips[0]))


def _with_empty_file(videos: Path, index: int) -> Path:
    """The same list with a file that cannot be read."""
    folder = videos.parent / "copy"
    folder.mkdir(exist_ok=True)
    for path in videos.parent.glob("*.mp4"):
        (folder / path.name).write_bytes(b"" if path.stem == f"{index:03d}" else path.read_bytes())
    (folder / "train.csv").write_text(videos.read_text())
    return folder / "train.csv"


def test_resumed_stream_finds_the_same_failures_by_itself(videos: Path) -> None:
    """Record 3 occurs in each epoch, wherever the stream starts and for any number of workers."""

    def batches(first: int, workers: int) -> list[PretrainBatch]:
        loader = ClipLoader(deadly_clips(videos, {3: "abort"}), batch_size=4, workers=workers)
        try:
            return [*loader.epoch(0, first), *loader.epoch(1)]
        finally:
            loader.close()

    whole = batches(0, 1)
    assert sum(failure.index == 3 for batch in whole for failure in batch.failures) >= 2
    assert all(equal(*pair) for pair in zip(batches(1, 2), whole[1:], strict=True))


def test_losing_worker_after_worker_ends_the_run_with_the_likely_cause(videos: Path) -> None:
    """Each is killed before it reads a record, so no record is the cause."""
    dataset = make_clips(videos, transform=_KillsItsProcess())
    loader = ClipLoader(dataset, batch_size=4, workers=1)
    with pytest.raises(RunFailed, match=r"3 worker processes .* killed \(SIGKILL\); .*memory; lower data\.w"):
        next(loader.epoch(0))


class _Limited:
    """Makes a tensor in a worker that cannot allocate shared memory."""

    def __call__(self, task: int) -> torch.Tensor:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        return empty_clips((100, 100)) if task else torch.zeros(1000)


@pytest.mark.parametrize("task", [0, 1])
def test_full_shared_memory_is_named_in_one_line(task: int) -> None:
    """While a tensor is sent, and while clips are written."""
    pool = WorkerPool(_Limited(), iter([task]), path_of=str, workers=1)
    with closing(pool), pytest.raises(RunFailed) as caught:
        pool.take()
    assert re.match(
        r"cannot allocate (.* MB of )?shared memory for a batch: .*File too large.*; /dev/shm is probably",
        str(caught.value),
    )


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "raise `ulimit -n`, or lower"),
        (OSError("AF_UNIX path too long"), "set TMPDIR to a folder with a shorter path"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "/dev/shm is probably full"),
    ],
)
def test_worker_that_cannot_start_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, error: OSError, remedy: str
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(worker_pool, "_Worker", refuse)
    with pytest.raises(RunFailed, match=rf"^cannot allocate worker process 0: .* {remedy}"):
        WorkerPool(abs, iter([1]), path_of=str, workers=1)


def test_ended_fork_server_is_not_taken_for_full_shared_memory(tmp_path: Path) -> None:
    """A real server that ends while it starts, both times, and so refuses the connection."""
    (tmp_path / "ends_its_process.py").write_text("import os\nos._exit(1)\n")
    code = """if __name__ == "__main__":
        import multiprocessing, sys
        from videomaskfeat.data import worker_pool
        from videomaskfeat.errors import RunFailed

        def start_method():
            multiprocessing.get_context("forkserver").set_forkserver_preload(["ends_its_process"])
            return "forkserver"

        worker_pool._start_method = start_method
        try:
            worker_pool.WorkerPool(abs, iter([1]), path_of=str, workers=1)
        except RunFailed as error:
            sys.exit(str(error))
    """
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(code))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    ended = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=120
    )
    expected = (
        r"(?m)^cannot start worker process 0: the process that forks the workers has ended \(.+\); .*memory"
    )
    assert re.search(expected, ended.stderr), ended.stderr
    assert "/dev/shm" not in ended.stderr


def test_ended_fork_server_is_started_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    build, calls = worker_pool._Worker, list[Any]()

    def refuse_once(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 1:
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        return build(*arguments, **options)

    monkeypatch.setattr(worker_pool, "_Worker", refuse_once)
    with closing(WorkerPool(abs, iter([-3]), path_of=str, workers=1)) as pool:
        assert pool.take() == 3
    assert "the process that forks the workers has ended" in caplog.text


class _KillsItsProcess:
    """A transform that cannot be unpickled."""

    def __setstate__(self, state: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def __getstate__(self) -> dict[str, int]:
        return {"a": 1}


def test_stop_ends_waiting_for_a_batch(videos: Path) -> None:
    loader = ClipLoader(deadly_clips(videos, {0: "hang"}), batch_size=12, workers=1)
    assert list(loader.epoch(0, 0, lambda: True)) == []


def test_closing_ends_stopped_workers(videos: Path) -> None:
    before = set(_pids())
    loader = ClipLoader(make_clips(videos), batch_size=2, workers=2)
    next(loader.epoch(0))
    _send(signal.SIGSTOP, loader, 2)
    loader.close()
    assert set(_pids()) == before


def test_video_that_crashes_workers_in_testing_fails_in_each_iteration(
    videos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    views = _DeadlyViews(load_records(videos), frames=2, stride=1, views=1, crops=1, crop=16, short_side=16)
    undamaged = list(ViewLoader(_plain(views), per_batch=3, workers=0))
    loader = ViewLoader(views, per_batch=3, workers=2)
    for _ in range(2):
        batches = list(loader)
        failures = [failure for batch in batches for failure in batch.failures]
        assert [(f.index, f.cause) for f in failures] == [(7, "the decoder crashed (SIGABRT)")]
        whole, rows_read = (
            torch.cat([batch.index for batch in part]).tolist() for part in (undamaged, batches)
        )
        assert rows_read == [row for row in whole if row != 7]
        clips, others = (torch.cat([batch.clips for batch in part]) for part in (undamaged, batches))
        assert torch.equal(clips[[row != 7 for row in whole]], others)
    assert sum("is lost" in message for message in caplog.messages) == 2  # none in the second round


class _DeadlyViews(EvaluationViews):
    def _fill(self, clips, video):  # type: ignore[no-untyped-def]
        if video.path.endswith("007.mp4"):
            os.abort()
        super()._fill(clips, video)


def _plain(views: EvaluationViews) -> EvaluationViews:
    return EvaluationViews(views.records, frames=2, stride=1, views=1, crops=1, crop=16, short_side=16)


@pytest.mark.parametrize("workers", [1, 2])
def test_lost_record_is_skipped_two_epochs_later_and_in_a_resumed_run(
    videos: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    """It crashes workers in epochs 0 and 1, and none from 2 on; its replacements do not change."""

    def run(start: int, end: int, counter: FailureCounter) -> list[PretrainBatch]:
        loader = ClipLoader(
            deadly_clips(videos, {3: "abort"} if start < 2 else {}), batch_size=4, workers=workers
        )
        loader.skipped_records = counter.skipped_records
        batches = []
        with loader:
            for epoch in range(start, end):
                for batch in loader.epoch(epoch):
                    batches.append(batch)
                    counter.add(batch.failures)
        return batches

    counter = FailureCounter(12, share=0.5)
    whole = run(0, 4, counter)
    lost = [message for message in caplog.messages if "is lost" in message]
    assert len(lost) == 4 + 2 * (_count_failures(whole[:6]) - 2)
    assert counter.failures[3].lost_in_epoch == 0
    assert _count_failures(whole[6:]) >= 2
    # A run resumed at epoch 2 could read the file, which is repaired here: only the counter skips it.
    resumed = FailureCounter(12, share=0.5)
    at_two = FailureCounter(12, share=0.5)
    for batch in whole[:6]:
        at_two.add(batch.failures)
    resumed.load_state_dict(at_two.state_dict())
    assert all(equal(*pair) for pair in zip(run(2, 4, resumed), whole[6:], strict=True))


def _count_failures(batches: list[PretrainBatch]) -> int:
    """Number of failures of record 3, also as a replacement."""
    return sum(failure.index == 3 for batch in batches for failure in batch.failures)


def _variable(name: str) -> str:
    return os.environ.get(name, "")


def test_workers_see_variables_that_are_set_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as credentials that a notebook sets after its first loader, which started the fork server."""
    monkeypatch.setenv("FIRST_VARIABLE", "1")
    assert list(call_in_workers(_variable, [("FIRST_VARIABLE",)], workers=1)) == ["1"]
    monkeypatch.delenv("FIRST_VARIABLE")
    monkeypatch.setenv("SECOND_VARIABLE", "2")
    assert list(call_in_workers(_variable, [("FIRST_VARIABLE",), ("SECOND_VARIABLE",)], workers=1)) == [
        "",
        "2",
    ]


@pytest.mark.parametrize(
    ("deed", "cause"),
    [("abort", "the decoder crashed (SIGABRT)"), ("hang", "not read within 0.5 seconds")],
)
def test_call_that_crashes_two_workers_returns_an_error(deed: str, cause: str) -> None:
    calls = [(f"{number}.mp4", deed) for number in range(12)]
    results = list(call_in_workers(_read_seven_badly, calls, workers=2, ahead=4, read_seconds=0.5))
    error = results[7]
    assert isinstance(error, VideoReadError)
    assert (error.path, error.cause) == ("7.mp4", cause)
    assert [result for number, result in enumerate(results) if number != 7] == ["fine"] * 11


def _read_seven_badly(path: str, deed: str) -> str:
    if path == "7.mp4":
        os.abort() if deed == "abort" else time.sleep(3600)
    return "fine"
