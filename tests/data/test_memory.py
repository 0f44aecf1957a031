"""Decoded videos in memory: the same samples as from files, bounded, and shared by workers."""

from __future__ import annotations

import tempfile
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest

from tests.data.clip_data import equal, make_clips, write_videos
from videomaskfeat.data.formats import load_records
from videomaskfeat.data.loader import ClipLoader
from videomaskfeat.data.memory import MemoryNeed, VideoMemory, decode_videos, estimate_bytes
from videomaskfeat.data.video import open_from, open_video
from videomaskfeat.data.views import EvaluationViews
from videomaskfeat.errors import UserError
from videomaskfeat.machine import available_memory, machine_memory
from videomaskfeat.mp4 import write_mp4


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Eleven videos and an unreadable one."""
    path = write_videos(tmp_path, 12)
    (tmp_path / "004.mp4").write_bytes(b"damaged")
    return path


def paths_of(path: Path) -> list[str]:
    return [record.path for record in load_records(path)]


def hold(path: Path, workers: int = 0) -> VideoMemory:
    file = tempfile.TemporaryFile()  # noqa: SIM115
    return VideoMemory(file, decode_videos(paths_of(path), file, workers=workers))


def test_memory_has_the_frames_of_all_readable_videos(videos: Path) -> None:
    memory = hold(videos)
    assert len(memory.videos) == 11
    assert memory.bytes == 11 * 8 * 32 * 32 * 3
    for path in memory.videos:
        with open_video(path) as video, open_from(memory, path, "auto") as stored:
            assert (stored.path, stored.frames, stored.fps) == (path, video.frames, video.fps)
            assert np.array_equal(stored.read([5, 0, 5]), video.read([5, 0, 5]))
    assert memory.frames(str(videos.parent / "004.mp4")) is None


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_are_the_same_bit_for_bit(videos: Path, workers: int) -> None:
    """Also of the unreadable video, which is replaced as before, and from the middle of an epoch."""

    def batches(memory: VideoMemory | None, workers: int) -> list[object]:
        with ClipLoader(make_clips(videos, memory=memory), batch_size=2, workers=workers) as loader:
            return [*loader.epoch(0), *loader.epoch(1, first_batch=3)]

    from_files = batches(None, 0)
    memory = hold(videos, workers)
    for path in memory.videos:
        Path(path).unlink()  # nothing is read from the files
    assert len(from_files) == 9
    assert all(map(equal, from_files, batches(memory, workers)))
    assert any(batch.failures for batch in from_files)  # type: ignore[attr-defined]


def test_views_are_the_same(videos: Path) -> None:
    def clips(memory: VideoMemory | None) -> object:
        views = EvaluationViews(
            load_records(videos), frames=4, stride=1, views=2, crops=3, crop=16, short_side=20, memory=memory
        )
        return views.batch(range(12))

    assert equal(clips(None), clips(hold(videos)))


def test_empty_memory_reads_files(videos: Path) -> None:
    memory = VideoMemory(tempfile.TemporaryFile(), {})  # noqa: SIM115
    with open_from(memory, paths_of(videos)[0], "auto") as video:
        assert video.frames == 8


def test_frames_that_do_not_fit_are_refused(videos: Path) -> None:
    """The limit is exact: one byte less than all eleven readable videos need is refused."""
    size = 8 * 32 * 32 * 3
    with tempfile.TemporaryFile() as file:
        assert len(decode_videos(paths_of(videos), file, limit_bytes=11 * size)) == 11
    with (
        tempfile.TemporaryFile() as file,
        pytest.raises(UserError, match=r"12 decoded videos need about 0\.3 MiB, .* or set data.cache=none"),
    ):
        decode_videos(paths_of(videos), file, limit_bytes=11 * size - 1)


def test_memory_is_estimated_without_decoding_all_videos(tmp_path: Path) -> None:
    """Videos of 2, 4 and 6 frames of 48x64 pixels; the damaged one counts as 0 bytes."""
    paths = []
    for name, frames in (("a", 2), ("b", 4), ("c", 6)):
        paths.append(str(tmp_path / f"{name}.mp4"))
        write_mp4(paths[-1], np.zeros((frames, 48, 64, 3), np.uint8), fps=25)
    size = 48 * 64 * 3
    assert estimate_bytes(paths) == 12 * size
    (tmp_path / "d.mp4").write_bytes(b"damaged")
    assert estimate_bytes([*paths, str(tmp_path / "d.mp4")]) == 12 * size
    assert estimate_bytes([str(tmp_path / "d.mp4")]) is None
    # Of 128 videos every second one is opened: 64 of 4 frames each, so 128 x 4 frames are expected.
    assert estimate_bytes([paths[1], "missing.mp4"] * 64) == 128 * 4 * size


def test_need_reports_whether_videos_fit() -> None:
    gib = 2**30
    need = MemoryNeed(53, 7 * gib, 5 * gib)
    assert not need.fits
    assert need.problem == (
        "data.cache=memory: 53 decoded videos need about 7.0 GiB, and 5.0 GiB may be used (80% of the "
        "available memory); shrink the videos with `videomaskfeat prepare-videos`, or set data.cache=none"
    )
    assert MemoryNeed(53, 7 * gib, 7 * gib).fits
    assert MemoryNeed(53, 7 * gib, None).fits
    assert MemoryNeed(1, None, 1).fits
    assert (
        str(MemoryNeed(1, 2**20, 5 * gib)) == "1 decoded video in memory: about 1.0 MiB; 5.0 GiB may be used"
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_explained(videos: Path) -> None:
    with (
        pytest.raises(UserError, match=r"cannot write /dev/full: No space left.*set TMPDIR"),
        open("/dev/full", "wb", buffering=0) as file,
    ):
        decode_videos(paths_of(videos), file)


def test_processes_share_the_frames(videos: Path) -> None:
    """What a worker gets is a descriptor and the places."""
    memory = hold(videos)
    assert len(bytes(ForkingPickler.dumps(memory))) < 4000 < memory.bytes


def test_available_memory_is_part_of_the_machines() -> None:
    available, machine = available_memory(), machine_memory()
    if available is not None and machine is not None:
        assert 0 < available <= machine
