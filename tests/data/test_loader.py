"""The stream of batches: the same for any number of workers and ranks, and from any batch on."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.data.clip_data import deadly_clips, equal, make_clips, raise_bug, write_videos
from videomaskfeat.data.batches import Failure, PretrainBatch
from videomaskfeat.data.clips import PretrainClips, SampleKey
from videomaskfeat.data.loader import ClipLoader, FailureCounter
from videomaskfeat.errors import UserError


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-one videos; two cannot be read."""
    path = write_videos(tmp_path_factory.mktemp("videos"), 21)
    (path.parent / "004.mp4").write_bytes(b"")
    (path.parent / "013.mp4").write_bytes(b"this is text")
    return path


@pytest.fixture(scope="module")
def epochs(videos: Path) -> list[list[PretrainBatch]]:
    """Two epochs of steps of 8 clips, made in this process."""
    loader = ClipLoader(make_clips(videos), batch_size=8)
    return [list(loader.epoch(epoch)) for epoch in (0, 1)]


TRAINING = """
import multiprocessing, os, signal, sys
from multiprocessing import forkserver
from pathlib import Path
from tests.data.clip_data import make_clips
from videomaskfeat.data.loader import ClipLoader

loader = ClipLoader(make_clips(Path(sys.argv[1])), batch_size=4, workers=2)
batches = loader.epoch(0)
next(batches)
def list_workers():
    return sorted(worker.pid for worker in multiprocessing.active_children())

workers = list_workers()
Path(sys.argv[2]).write_text(" ".join(map(str, workers)))
if sys.argv[3] == "group":
    for pid in (*workers, forkserver._forkserver._forkserver_pid):
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
    assert sum(1 for _ in batches) == loader.batches_per_epoch - 1
    assert list_workers() == workers
    loader.close()
else:
    if sys.argv[3] == "stopped":
        os.kill(workers[0], signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(
    ("mode", "code"), [("killed", -signal.SIGKILL), ("stopped", -signal.SIGKILL), ("group", 0)]
)
def test_workers_end_with_the_training_and_not_before(
    videos: Path, tmp_path: Path, mode: str, code: int
) -> None:
    """Killed, also while a worker is stopped; Ctrl-C and SIGTERM reach workers and their server too, whose
    work the current step still needs.
    """
    command = [sys.executable, "-c", TRAINING, videos, tmp_path / "workers", mode]
    assert subprocess.run(command, timeout=120).returncode == code
    workers = [Path("/proc", pid) for pid in (tmp_path / "workers").read_text().split()]
    assert len(workers) == 2
    for _ in range(100):
        if not any(worker.exists() for worker in workers):
            return
        time.sleep(0.1)
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(worker.name), signal.SIGKILL)
    pytest.fail(f"{workers} are there ten seconds later")


def test_epoch_is_whole_steps_of_different_records(epochs: list[list[PretrainBatch]]) -> None:
    for batches in epochs:
        assert [tuple(batch.clips.shape) for batch in batches] == [(8, 2, 16, 16, 3)] * 2  # 21 = 2*8 + 5
        assert batches[0].clips.dtype == torch.uint8
        assert batches[0].mask.dtype == torch.bool
        assert batches[0].mask.shape == (8, 1, 4, 4)
    first, second = (torch.cat([batch.index for batch in batches]) for batches in epochs)
    assert not torch.equal(first, second)
    assert len(set(first.tolist())) >= 14  # 16 minus the replacements of at most two


def test_batch_reports_the_failures_it_replaces(epochs: list[list[PretrainBatch]]) -> None:
    failed = {failure.index for batches in epochs for batch in batches for failure in batch.failures}
    assert failed
    assert failed <= {4, 13}
    assert not {4, 13} & {int(i) for batches in epochs for batch in batches for i in batch.index}


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_are_the_same_for_any_number_of_workers(
    videos: Path, epochs: list[list[PretrainBatch]], workers: int
) -> None:
    loader = ClipLoader(make_clips(videos), batch_size=8, workers=workers)
    for epoch, expected in enumerate(epochs):
        batches = list(loader.epoch(epoch))
        assert all(equal(*pair) for pair in zip(batches, expected, strict=True))
    loader.close()


@pytest.mark.parametrize("ahead", [1, 2])
def test_stored_batches_do_not_change(videos: Path, ahead: int) -> None:
    """Workers reuse memory for batches; the caller may store all batches of an epoch."""
    expected = list(ClipLoader(make_clips(videos), batch_size=1).epoch(0))
    loader = ClipLoader(make_clips(videos), batch_size=1, workers=2, prefetch_batches=ahead)
    batches = list(loader.epoch(0))
    loader.close()
    assert len(batches) > 4 * (ahead + 1)
    assert all(equal(*pair) for pair in zip(batches, expected, strict=True))


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 2), (2, 1), (2, 2), (4, 1), (4, 2)])
def test_steps_are_the_same_for_any_number_of_ranks(
    videos: Path, epochs: list[list[PretrainBatch]], world_size: int, accumulate: int
) -> None:
    by_rank = []
    for rank in range(world_size):
        loader = ClipLoader(
            make_clips(videos), batch_size=8, accumulate=accumulate, rank=rank, world_size=world_size
        )
        assert loader.batches_per_epoch == 2 * accumulate
        by_rank.append(list(loader.epoch(1)))
    for step, whole in enumerate(epochs[1]):
        micro = [b for batches in by_rank for b in batches[step * accumulate : (step + 1) * accumulate]]
        assert torch.equal(torch.cat([b.clips for b in micro]), whole.clips)
        assert torch.equal(torch.cat([b.mask for b in micro]), whole.mask)
        assert torch.equal(torch.cat([b.index for b in micro]), whole.index)
        assert tuple(failure for b in micro for failure in b.failures) == whole.failures


class _CountingClips(PretrainClips):
    requested: list[SampleKey]

    def __getitem__(self, key: SampleKey):  # type: ignore[no-untyped-def]
        self.requested.append(key)
        return super().__getitem__(key)


def test_resume_in_mid_epoch_makes_only_the_remaining_batches(
    videos: Path, epochs: list[list[PretrainBatch]]
) -> None:
    dataset = make_clips(videos)
    dataset.__class__ = _CountingClips
    dataset.requested = []  # type: ignore[attr-defined]
    loader = ClipLoader(dataset, batch_size=8, accumulate=2)
    whole = list(ClipLoader(make_clips(videos), batch_size=8, accumulate=2).epoch(1))
    rest = list(loader.epoch(1, first_batch=3))
    assert len(rest) == 1
    assert equal(rest[0], whole[3])
    assert len(dataset.requested) == 4  # type: ignore[attr-defined]
    assert list(loader.epoch(1, first_batch=4)) == []


def test_resume_with_workers_continues_in_the_next_epoch(
    videos: Path, epochs: list[list[PretrainBatch]]
) -> None:
    loader = ClipLoader(make_clips(videos), batch_size=8, workers=2)
    batches = [*loader.epoch(0, first_batch=1), *loader.epoch(1)]
    assert all(equal(*pair) for pair in zip(batches, [epochs[0][1], *epochs[1]], strict=True))
    # An earlier batch restarts the stream.
    assert equal(next(loader.epoch(0)), epochs[0][0])
    loader.close()


def _workers() -> set[int]:
    return {process.pid for process in multiprocessing.active_children() if process.pid is not None}


def test_workers_persist_between_epochs_and_end_with_the_loader(videos: Path) -> None:
    before = _workers()
    loader = ClipLoader(make_clips(videos), batch_size=8, workers=2)
    list(loader.epoch(0))
    working = _workers() - before
    assert len(working) == 2
    list(loader.epoch(1))
    assert _workers() - before == working
    loader.close()
    assert not _workers() & working


def test_workers_with_growing_memory_are_renewed(videos: Path, epochs: list[list[PretrainBatch]]) -> None:
    before = _workers()
    leaking = deadly_clips(videos, dict.fromkeys(range(21), "leak"))
    # Growth is measured after four records of 16 MiB; six more add 96 MiB.
    loader = ClipLoader(
        leaking, batch_size=8, accumulate=4, workers=1, renew_megabytes=70, readings_to_settle=4
    )
    batches, workers = [], []
    for epoch in (0, 1):
        for batch in loader.epoch(epoch):
            batches.append(batch)
            workers.append(_workers() - before)
    loader.close()
    assert not _workers() - before
    steps = [torch.cat([part.clips for part in batches[first : first + 4]]) for first in range(0, 16, 4)]
    assert all(torch.equal(*pair) for pair in zip(steps, [b.clips for e in epochs for b in e], strict=True))
    assert 2 <= len(set(map(frozenset, workers))) <= 6  # 32 records, and those made ahead


def test_without_read_ahead_workers_end_with_the_epoch(
    videos: Path, epochs: list[list[PretrainBatch]]
) -> None:
    before = _workers()
    loader = ClipLoader(make_clips(videos), batch_size=8, workers=1, read_ahead=False)
    for _ in range(2):
        batches = list(loader.epoch(1))
        assert all(equal(*pair) for pair in zip(batches, epochs[1], strict=True))
        assert _workers() == before


def test_unshuffled_epochs_follow_the_list(videos: Path) -> None:
    dataset = make_clips(videos, samples_per_video=2)
    loader = ClipLoader(dataset, batch_size=8, shuffle=False)
    first = next(loader.epoch(0))
    assert first.index.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert loader.batches_per_epoch == 5
    assert not torch.equal(first.clips[0], first.clips[1])


def test_loader_does_not_change_the_global_random_state(videos: Path) -> None:
    before = torch.get_rng_state()
    list(ClipLoader(make_clips(videos), batch_size=8).epoch(0))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("workers", [0, 1])
def test_user_error_in_a_worker_keeps_its_class(tmp_path: Path, workers: int) -> None:
    path = write_videos(tmp_path, 2)
    for video in tmp_path.glob("*.mp4"):
        video.write_bytes(b"")
    loader = ClipLoader(make_clips(path), batch_size=2, workers=workers)
    with pytest.raises(UserError, match=r"train\.csv: 10 videos in a row") as caught:
        next(loader.epoch(0))
    assert type(caught.value) is UserError
    assert "\n" not in str(caught.value)


def test_bug_in_a_worker_is_reported_with_its_traceback(videos: Path) -> None:
    loader = ClipLoader(make_clips(videos, sampler=raise_bug), batch_size=2, workers=1)
    with pytest.raises(RuntimeError, match=r"(?s)worker process.*a bug in the sampler"):
        next(loader.epoch(0))
    loader.close()


def test_batch_moves_with_its_index_and_failures() -> None:
    failure = Failure(1, "a.mp4", "empty")
    batch = PretrainBatch(
        torch.zeros(1, 2, 4, 4, 3, dtype=torch.uint8), torch.ones(1, 1, 2, 2, dtype=torch.bool),
        torch.tensor([1]), (failure,),
    )  # fmt: skip
    moved = batch.to("cpu")
    assert equal(batch, moved)
    assert moved.failures == (failure,)


@pytest.mark.cuda
def test_pinned_batches_reach_the_gpu_unchanged(videos: Path, epochs: list[list[PretrainBatch]]) -> None:
    loader = ClipLoader(make_clips(videos), batch_size=8, workers=1, pin_memory=True)
    batch = next(loader.epoch(0))
    assert batch.clips.is_pinned()
    moved = batch.to("cuda")
    torch.cuda.synchronize()
    assert moved.clips.is_cuda
    assert moved.index.device.type == "cpu"
    assert equal(moved.to("cpu"), epochs[0][0])
    loader.close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch_size": 9, "world_size": 2}, r"batch_size=9 .* multiple of .* = 2; use 8 or 10"),
        ({"batch_size": 6, "accumulate": 4}, r"batch_size=6 .* = 4; use 4 or 8"),
        ({"batch_size": 0}, r"batch_size=0 .* = 1; use 1$"),
        ({"batch_size": 4, "accumulate": 0}, r"accumulate=0: must be at least 1"),
        ({"batch_size": 4, "workers": -1}, r"workers=-1: must be at least 0"),
        (
            {"batch_size": 24},
            r"train\.csv contains 21 videos, fewer than the 24 .*set optim\.batch_size=21 or less",
        ),
    ],
)
def test_impossible_batches_are_refused(videos: Path, arguments: dict[str, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        ClipLoader(make_clips(videos), **arguments)  # type: ignore[arg-type]


def _failures(*indices: int) -> list[Failure]:
    return [Failure(index, f"{index}.mp4", "empty file") for index in indices]


def test_counter_logs_each_record_once_and_stops_above_the_share(caplog: pytest.LogCaptureFixture) -> None:
    counter = FailureCounter(200, share=0.01)
    with caplog.at_level(logging.WARNING):
        counter.add(_failures(7, 7))
        counter.add(_failures(7))
        counter.add(_failures(8))
    assert [record.getMessage() for record in caplog.records] == [
        "unreadable video, replaced: 7.mp4: empty file",
        "unreadable video, replaced: 8.mp4: empty file",
    ]
    assert len(counter) == 2
    with pytest.raises(
        UserError,
        match=r"3 of 200 videos .* 2 may fail .* 7\.mp4 \(empty file\); 8\.mp4 .*9\.mp4 .*`videomaskf",
    ):
        counter.add(_failures(9))


def test_counter_allows_one_failure_in_a_short_list_unless_the_share_is_zero() -> None:
    counter = FailureCounter(10, share=0.01)
    counter.add(_failures(3))
    with pytest.raises(UserError, match="2 of 10"):
        counter.add(_failures(4))
    with pytest.raises(UserError, match=r"1 of 1000 .* 0 may fail"):
        FailureCounter(1000, share=0).add(_failures(3))
    with pytest.raises(UserError, match=r"13 of 1000 .* and 3 more;"):
        FailureCounter(1000).add(_failures(*range(13)))
    with pytest.raises(UserError, match=r"failure_share=5 must be between 0 and 1"):
        FailureCounter(10, share=5)


def test_counter_continues_after_a_resume() -> None:
    before = FailureCounter(200, share=0.01)
    before.add(_failures(3, 5))
    after = FailureCounter(200, share=0.01)
    after.load_state_dict(before.state_dict())
    assert after.failures == before.failures
    with pytest.raises(UserError, match="3 of 200"):
        after.add(_failures(8))
